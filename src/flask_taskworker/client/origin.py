"""Where a job was enqueued: by which request, inside which job, from which command. Kept as JSON with the job."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import click
from flask import has_app_context, has_request_context, request

from ..core.around import Surroundings
from ..core.current_job import running_job

MAX_WORDS = 200
"""Characters of a request's path, or a command's."""

carriers: list[Callable[[dict[str, Any]], None]] = []
"""Called with each origin, to add what the job carries; tracing adds itself here."""


def current_trace() -> tuple[str, str] | None:
    """The ids of the trace and the span in which this is called; None without tracing."""
    found: dict[str, Any] = {}
    for add in carriers:
        add(found)
    _, trace, span, *_ = [*str(found.get("traceparent", "")).split("-"), "", ""]
    return (trace, span) if span else None


def module_in_import() -> str | None:
    """The module in whose import this is called, if it is. The main module is not imported."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_back is not None:
        if (frame.f_code.co_name, frame.f_back.f_code.co_name) == ("<module>", "_call_with_frames_removed"):
            return str(frame.f_globals.get("__name__"))
        frame = frame.f_back
    return None


def current_origin(surroundings: Surroundings | None = None) -> str | None:
    """The origin of a job that is enqueued here and now, as JSON; None where nothing is known of it.

    With what the job carries. Raises NotEncodable, or what the application's own function raises.
    """
    found: dict[str, Any] = {}
    job = running_job()
    if job is not None:
        found["job"] = job.claim.id
    elif has_request_context():
        found["request"] = f"{request.method} {request.path}"[:MAX_WORDS]
    elif (context := click.get_current_context(silent=True)) is not None:
        found["command"] = context.command_path[:MAX_WORDS]  # for example "flask seed"
    for add in carriers:
        add(found)
    if surroundings is not None and has_app_context():
        surroundings.save(found)
    return json.dumps(found) if found else None
