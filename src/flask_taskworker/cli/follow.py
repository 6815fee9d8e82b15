"""``flask tasks job ID --follow``: what becomes of a job, as it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from ..core.clock import from_ms
from ..core.failures import read_cut
from ..core.rows import JobRecord, JobState, Progress
from ..ops.health import Snapshot
from ..ops.rows import JobWhole, LogLine
from .group import FAILED, app_state, browser, tell
from .text import iso, safe, to_json

PAUSE = 0.25
"""Seconds from look to look: progress is written twice a second."""


@dataclass(slots=True)
class Followed:
    """What has been shown of one job."""

    state: str | None = None
    progress: str | None = None
    lines: dict[int, list[LogLine]] = field(default_factory=dict)
    """Those of each claim."""

    def news(self, job: JobWhole, now: int) -> Iterator[dict[str, Any]]:
        """What is new since the last look: an event each, with its moment in epoch milliseconds."""
        for claim, lines in job.lines.items():
            for line in lines[_shown(self.lines.get(claim, []), lines) :]:
                yield {"event": "log", **line_fields(claim, line), "at": line.at}
            self.lines[claim] = lines
        if job.record.progress != self.progress:
            self.progress = job.record.progress
            if progress := Progress.from_text(self.progress):
                yield {"event": "progress", "at": now, "progress": progress, "words": progress_words(job.record)}
        if (words := _state_words(job)) != self.state:
            self.state = words
            yield {"event": "state", "at": now, "state": job.record.state, "words": words}


def _shown(before: list[LogLine], now: list[LogLine]) -> int:
    """How many of the lines were there before. Of more than are kept the oldest are dropped."""
    for dropped in range(len(before)):
        kept = before[dropped:]
        if now[: len(kept)] == kept:
            return len(kept)
    return 0


def follow_job(job_id: int, *, as_json: bool) -> None:
    """Show what becomes of the job until it has ended. Exits with 1 if it has failed or was cancelled."""
    followed = Followed()
    job = browser().job(job_id)
    _tell_if_nobody_works(job)
    while _show(followed, job, as_json=as_json) and not JobState(job.record.state).finished:
        time.sleep(PAUSE)
        job = browser().job(job_id)
    if job.record.state != "succeeded":
        sys.exit(FAILED)


def _show(followed: Followed, job: JobWhole, *, as_json: bool) -> bool:
    for event in followed.news(job, app_state().store.clock()):
        at, words = event["at"], event.pop("words", None)
        if as_json:
            click.echo(to_json(event | {"at": iso(at)}))
        else:
            click.echo(f"{from_ms(at):%H:%M:%S} {words if words is not None else _line_words(event)}")
    sys.stdout.flush()
    return True


def _tell_if_nobody_works(job: JobWhole) -> None:
    finished = JobState(job.record.state).finished
    if not finished and not Snapshot.take(app_state().store).claiming:
        tell("No worker runs now, so nothing will happen until one is started: flask tasks run")


def _state_words(job: JobWhole) -> str:
    record = job.record
    if record.state == "failed" or (record.state == "scheduled" and record.failures):
        failure = read_cut(job.error, record.failure_kind)
        error = f": {failure.type}: {failure.message}" if failure.type else f": {failure.message or failure.kind}"
    else:
        error = ""
    asked = ", asked to stop" if record.cancel_requested and record.state == "running" else ""
    again = f" until {from_ms(record.run_at):%H:%M:%S}" if record.state == "scheduled" else ""
    attempt = f", try {record.failures + 1} of {record.max_attempts}" if record.state == "running" else ""
    return safe(f"{record.state}{again}{attempt}{asked}{error}")


def progress_words(record: JobRecord) -> str | None:
    """What the job has told of its progress; None where it has told nothing."""
    progress = Progress.from_text(record.progress)
    if progress is None:
        return None
    total = "" if progress.total is None else f" of {progress.total:g}"
    share = f" ({100 * progress.done / progress.total:.0f} %)" if progress.total else ""
    return safe(f"{progress.done:g}{total}{share} {progress.text}".rstrip())


def log_words(line: LogLine) -> str:
    """A line that a try has logged, for people."""
    return safe(f"{from_ms(line.at):%H:%M:%S} {line.level} {line.logger}: {line.text}")


def _line_words(event: dict[str, Any]) -> str:
    return safe(f"{event['level']} {event['logger']}: {event['text']}")


def line_fields(claim: int, line: LogLine) -> dict[str, Any]:
    """A line that a try has logged, for programs."""
    return {"claim": claim, "at": iso(line.at), "level": line.level, "logger": line.logger, "text": line.text}
