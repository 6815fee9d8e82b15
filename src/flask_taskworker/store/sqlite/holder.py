"""Which process holds SQLite's write lock, for an error message."""

from __future__ import annotations

import os
from pathlib import Path

WRITE_BYTE = 120
"""The byte of the -shm file that a writer locks (``WAL_WRITE_LOCK`` in sqlite.org/walformat.html, "WAL Locks")."""


def write_lock_holder(path: Path) -> int | None:
    """The process that holds the write lock of the database at *path*; None if nothing does, or the system hides it.

    Read from the kernel's list: opening and closing the -shm file here would free SQLite's own locks on it.
    """
    try:
        shm = os.stat(f"{path}-shm")
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    place = f"{os.major(shm.st_dev):02x}:{os.minor(shm.st_dev):02x}:{shm.st_ino}"
    for _, _, _, kind, pid, where, first, last, *_ in (line for line in lines if "->" not in line):
        if (
            kind == "WRITE"
            and where == place
            and int(first) <= WRITE_BYTE <= (WRITE_BYTE if last == "EOF" else int(last))
        ):
            return int(pid) if int(pid) > 0 else None
    return None


def holder_in_words(path: Path) -> str:
    """What holds the write lock, and what to do about it."""
    pid = write_lock_holder(path)
    if pid == os.getpid():
        return (
            "This process holds the write lock itself: a transaction of its own, such as a session that has written "
            "and is not committed yet. Commit it first."
        )
    if pid is None:
        return (
            "The write lock was held for longer than TASKER_LOCK_TIMEOUT, by another process or by a transaction of "
            "this one that is not committed yet."
        )
    return f"Process {pid}{_command(pid)} held the write lock for longer than TASKER_LOCK_TIMEOUT."


def _command(pid: int) -> str:
    try:
        words = " ".join(
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").split()
        )
    except OSError:
        return ""
    return f" ({words[:100]})" if words else ""
