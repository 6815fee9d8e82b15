"""One process at a time polls for SQLite's write lock; the others wait behind a turnstile.

Two dozen processes that all poll in short steps take the processor from the one that holds the lock. The turnstile is
``flock`` on the directory ``<database>-live/``; where there is none, all poll.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress

try:
    import fcntl
except ImportError:  # Windows
    _CAN_LOCK = False
else:
    _CAN_LOCK = True

LONGEST_LINE = 0.05
"""Seconds behind the turnstile until the lock is tried without it: the process that stands in it may be frozen."""
_STEP = 0.002


class Turn:
    """One wait for the write lock. *directory*: whose turnstile; empty for none."""

    __slots__ = ("_descriptor", "_directory", "_is_mine")

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._descriptor: int | None = None
        self._is_mine = not _CAN_LOCK or not directory

    def wait(self, step: float) -> None:
        """Sleep before the next try: *step* seconds if it is our turn, else until it is."""
        over = time.monotonic() + LONGEST_LINE
        if self._enter():
            time.sleep(step)
        else:
            while time.monotonic() < over:
                time.sleep(random.uniform(_STEP / 2, _STEP))
                if self._enter():
                    break

    def _enter(self) -> bool:
        if not self._is_mine:
            try:
                if self._descriptor is None:
                    # Its own: threads with one descriptor would share the lock.
                    self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                # No worker has made the directory yet, or this user may not open it.
                self.end()
            self._is_mine = True
        return True

    def end(self) -> None:
        """Let the next one pass."""
        if self._descriptor is not None:
            with suppress(OSError):
                # Closing alone would not: a process that was forked meanwhile has the descriptor, too.
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None
