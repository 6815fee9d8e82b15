"""``flask tasks job ID --follow``: what becomes of a job, as it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from ..core.clock import from_ms
from ..core.rows import JobState
from ..ops.overview import Overview
from ..ops.rows import JobWhole, LogLine
from ..ops.views import JobView, as_json, iso, job_view
from .group import FAILED, app_state, browser, tell
from .text import safe, to_json

PAUSE = 0.25
"""Seconds from look to look: progress is written twice a second."""


@dataclass(slots=True)
class Followed:
    """What has been shown of one job."""

    state: str | None = None
    progress: str | None = None
    lines: dict[int, list[LogLine]] = field(default_factory=dict)
    """Those of each claim."""

    def news(self, whole: JobWhole, now: int) -> Iterator[tuple[dict[str, Any], str]]:
        """What is new since the last look: events for programs, each with its words for people."""
        job = job_view(whole)
        for claim, lines in whole.lines.items():
            new = lines[_shown(self.lines.get(claim, []), lines) :]
            for line in new:
                yield {"event": "log", "claim": claim, **as_json(line)}, f"{line.level} {line.logger}: {line.text}"
            self.lines[claim] = lines
        if whole.record.progress != self.progress:
            self.progress = whole.record.progress
            if job.progress:
                yield {"event": "progress", "at": iso(now), "progress": job.progress}, progress_words(job)
        if (words := _state_words(job)) != self.state:
            self.state = words
            yield {"event": "state", "at": iso(now), "state": job.state}, words


def _shown(before: list[LogLine], now: list[LogLine]) -> int:
    """How many of the lines were there before. Of more than are kept the oldest are dropped."""
    for dropped in range(len(before)):
        kept = before[dropped:]
        if now[: len(kept)] == kept:
            return len(kept)
    return 0


def follow_job(job_id: int, *, in_json: bool) -> None:
    """Show what becomes of the job until it has ended. Exits with 1 if it has failed or was cancelled."""
    store, followed = app_state().store, Followed()
    job = browser().job(job_id)
    if not JobState(job.record.state).finished and not Overview.take(store).claiming:
        tell(NO_WORKER)
    while True:
        now = store.clock()
        for event, words in followed.news(job, now):
            click.echo(to_json(event) if in_json else safe(f"{from_ms(now):%H:%M:%S} {words}"))
        sys.stdout.flush()
        if JobState(job.record.state).finished:
            break
        time.sleep(PAUSE)
        job = browser().job(job_id)
    if job.record.state != "succeeded":
        sys.exit(FAILED)


NO_WORKER = "No worker runs, so nothing will happen until you start one: flask tasks run"


def _state_words(job: JobView) -> str:
    asked = ", asked to stop" if job.cancel_requested and job.state == "running" else ""
    again = f" until {from_ms(job.run_at):%H:%M:%S}" if job.state in ("scheduled", "retrying") else ""
    attempt = f", try {job.attempt} of {job.max_attempts}" if job.state == "running" else ""
    error = f": {job.error.text}" if job.error and job.state in ("failed", "retrying") else ""
    return f"{job.state}{again}{attempt}{asked}{error}"


def progress_words(job: JobView) -> str:
    """What the job has said about its progress."""
    progress = job.progress
    if progress is None:
        return ""
    total = "" if progress.total is None else f" of {progress.total:g}"
    share = "" if job.percent is None else f" ({job.percent:.0f} %)"
    return f"{progress.done:g}{total}{share} {progress.text}".rstrip()
