"""The job's context in log records, for any formatter.

``%(taskworker_job)s`` is the job's id, ``%(taskworker_task)s`` its task and ``%(taskworker_attempt)s`` the number
of the try; outside of a job all three are None. The names are long because logging refuses an ``extra=`` that repeats
one. Installed at ``init_app``, over whatever record factory was set before. Here the lines of a job are kept, too.
"""

from __future__ import annotations

import logging
from typing import Any

from ..core.current_job import running_job
from .job_log import keep_line


def install() -> None:
    """Add the job's context to every log record of this process. Harmless when repeated."""
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
        if job is not None and record.levelno >= job.log_level:
            keep_line(job, record)
        return record

    factory.adds_job = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(factory)
