"""The evidence: one file to which all processes append, each line in a single write, so that lines never mix.

A line outlives the process that wrote it. Moments are on the machine's monotonic clock, which all processes share and
which no change of the time of day moves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flask_taskworker import current_job

NAME = "journal"
ACCEPTED = "accepted"
BEGAN = "began"
ENDED = "ended"
CANCELLED = "cancelled"
RAISED = "raised"


class Entry(NamedTuple):
    """One line."""

    word: str
    uid: str
    claim: int
    pid: int
    at: float


def write(folder: str | Path, word: str, uids: list[str], claim: int = 0) -> None:
    """Append a line for each uid, all in one write."""
    at, pid = time.monotonic(), os.getpid()
    text = "".join(f"{word} {uid} {claim} {pid} {at:.6f}\n" for uid in uids)
    descriptor = os.open(Path(folder, NAME), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


@contextmanager
def executed(folder: str | Path) -> Iterator[None]:
    """The beginning of the current job, and its end if it gets there."""
    uid, claim = [current_job.uid], current_job.claim
    write(folder, BEGAN, uid, claim)
    try:
        yield
    except Exception:
        write(folder, RAISED, uid, claim)
        raise
    except BaseException:
        write(folder, CANCELLED, uid, claim)
        raise
    write(folder, ENDED, uid, claim)


def read(folder: str | Path) -> list[Entry]:
    """All lines so far."""
    try:
        lines = Path(folder, NAME).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [_entry(*line.split()) for line in lines]


def _entry(word: str, uid: str, claim: str, pid: str, at: str) -> Entry:
    return Entry(word, uid, int(claim), int(pid), float(at))
