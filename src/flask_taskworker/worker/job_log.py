"""The log lines of a running job: the last ones, each of bounded size, for the pages and commands that show it.

They are caught where records are made, not by a handler: a handler at the root would keep ``logging.basicConfig`` and
Flask's own handler from doing anything. So a line is kept whatever handlers there are, and outside of a job, or below
the level, a record costs one comparison more.

Records carry the job's context, too, for any formatter: ``%(taskworker_job)s`` is the job's id, and its task, attempt,
queue, worker, trace and span have names like that; outside of a job all are None. The names are long because logging
refuses an ``extra=`` that repeats one.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from typing import Any

from ..client.origin import carriers, current_trace
from ..core.current_job import RunningJob, running_job
from ..core.failures import storable
from ..core.rows import Claim

MAX_LINES = 200
"""Of each try; the last ones are kept."""
MAX_TEXT = 2_000
"""Characters of a line."""
REWRITE_RATE = 100_000
"""Characters a second that are spent on lines of running jobs. Their last lines come with their endings anyway."""
LONGEST_PAUSE = 10.0
"""Seconds."""
_FORMATTER = logging.Formatter()


def install() -> None:
    """Add the job's context to every log record of this process, and keep its lines. Harmless when repeated."""
    previous = logging.getLogRecordFactory()
    if getattr(previous, "adds_job", False):
        return

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = previous(*args, **kwargs)
        job = running_job()
        claim = job.claim if job else None
        record.taskworker_job = claim.id if claim else None
        record.taskworker_task = claim.task if claim else None
        record.taskworker_attempt = claim.attempt if claim else None
        record.taskworker_queue = claim.queue if claim else None
        record.taskworker_worker = job.worker_id if job else None
        trace = (carriers and current_trace()) or (job.trace if job else None) or (None, None)
        record.taskworker_trace, record.taskworker_span = trace
        if job is not None and record.levelno >= job.log_level:
            keep_line(job, record)
        return record

    factory.adds_job = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(factory)


def keep_line(job: RunningJob, record: logging.LogRecord) -> None:
    """Keep *record* with *job*, in whose context it was made. Safe from any thread."""
    if job.ended:
        return
    if job.lines is None:
        job.lines = deque(maxlen=MAX_LINES)
    job.lines.append((round(record.created * 1000), record.levelname, record.name, _text(record)))
    if job.on_line is not None:
        job.on_line(job)


def lines_of(job: RunningJob) -> str | None:
    """The stored form of what *job* has logged so far; None where that is nothing."""
    lines = job.lines
    while lines:
        try:
            return json.dumps(list(lines))
        except RuntimeError:
            # Its thread has logged just now.
            continue
    return None


class LoggingJobs(dict[RunningJob, bool]):
    """The running jobs with lines that were not taken yet. Any thread may add one; :meth:`take` is for one alone.

    A job's lines are stored as a whole each time. So its first ones are given at once, and later ones of all jobs
    together: the more there is to write, the longer the pause after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next_rewrite = 0.0

    def take(self, now: float) -> list[tuple[Claim, str]]:
        """What is to be stored now, in the stored form. *now*: seconds on any clock."""
        is_time = now >= self._next_rewrite
        jobs = [job for job in list(self) if is_time or not job.lines_taken]
        for job in jobs:
            # Before its lines are read: what it logs from now on adds it again.
            self.pop(job, None)
            job.lines_taken = True
        taken = [(job.claim, text) for job in jobs if not job.ended and (text := lines_of(job))]
        if is_time:
            size = sum(len(text) for _, text in taken)
            self._next_rewrite = now + min(LONGEST_PAUSE, size / REWRITE_RATE)
        return taken


def _text(record: logging.LogRecord) -> str:
    text = _message(record)
    if record.exc_info and record.exc_info[0] is not None:
        trace = _FORMATTER.formatException(record.exc_info)
        text = _cut(text, MAX_TEXT // 2)
        room = MAX_TEXT - len(text) - 1
        # Its end says most.
        text = f"{text}\n{trace}" if len(trace) <= room else f"{text}\n…\n{trace[2 - room :]}"
    return storable(_cut(text, MAX_TEXT))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - the words of the caller, whose str() may do anything; logging reports it
        words = record.msg if isinstance(record.msg, str) else f"<{type(record.msg).__qualname__}>"
        return f"{words[:500]} ({type(error).__name__} when its text was asked for)"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
