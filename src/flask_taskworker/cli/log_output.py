"""Where the log of ``flask tasks run`` goes: to stderr, as text or as JSON, unless the application has set it up."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from flask import Flask
from flask.logging import default_handler

from .text import safe_lines, to_json

Format = Literal["text", "json"]

PACKAGE = "flask_taskworker"

_JOB = {
    "taskworker_job": "job_id",
    "taskworker_task": "task",
    "taskworker_attempt": "attempt",
    "taskworker_queue": "queue",
    "taskworker_worker": "worker",
    "taskworker_outcome": "outcome",
    "taskworker_seconds": "duration",
    "taskworker_trace": "trace_id",
    "taskworker_span": "span_id",
}
"""The attributes of records about jobs, and their names in JSON."""
_KNOWN = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName", *_JOB}


class TextFormatter(logging.Formatter):
    """One line a record, with the job's number where there is one, and the traceback below it."""

    def __init__(self, *, with_process: bool = False) -> None:
        process = "%(process)d " if with_process else ""
        super().__init__(f"%(asctime)s {process}%(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().formatMessage(record)
        job_id = getattr(record, "taskworker_job", None)
        return line if job_id is None else f"{line} [job {job_id}]"

    def format(self, record: logging.LogRecord) -> str:
        """The record; control characters are escaped, and lines after the first indented: none looks like a record."""
        return safe_lines(super().format(record)).replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what is known of the job, and what ``extra=`` gave."""

    def __init__(self, *, with_process: bool = False) -> None:
        super().__init__()
        self._with_process = with_process

    def format(self, record: logging.LogRecord) -> str:
        """The record."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        known = {
            "time": moment,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process if self._with_process else None,
            **{name: getattr(record, attribute, None) for attribute, name in _JOB.items()},
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
            **{name: value for name, value in vars(record).items() if name not in _KNOWN},
        }
        return to_json({name: value for name, value in known.items() if value is not None})


def set_up_log(app: Flask, *, form: Format | None, verbose: bool, quiet: bool, with_process: bool = False) -> None:
    """Send the log to stderr, unless the application has set up logging. Options that were given always count."""
    root = logging.getLogger()
    formatter = (JsonFormatter if form == "json" else TextFormatter)(with_process=with_process)
    is_ours = not root.handlers
    if is_ours:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter)
        root.addHandler(handler)
        # Flask adds its own where logging is not set up; each of the app's lines would come twice.
        app.logger.removeHandler(default_handler)
    elif form is not None:
        for existing in (*root.handlers, default_handler):
            existing.setFormatter(formatter)
    if is_ours or verbose or quiet:
        level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
        logging.getLogger(PACKAGE).setLevel(level)
