"""The log lines of a running job: the last ones, each of bounded size, for the pages and commands that show it.

They are caught where records are made, not by a handler: a handler at the root would keep ``logging.basicConfig`` and
Flask's own handler from doing anything. So a line is kept whatever handlers there are, and outside of a job, or below
the level, a record costs one comparison more.
"""

from __future__ import annotations

import json
import logging
from collections import deque

from .failures import storable
from .jobs import RunningJob

MAX_LINES = 200
"""Of each try; the last ones are kept."""
MAX_TEXT = 2_000
"""Characters of a line."""
_FORMATTER = logging.Formatter()


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
        return f"{record.msg!s:.500} ({type(error).__name__} when its arguments were put in)"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
