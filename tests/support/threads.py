"""Threads that cannot be had, and threads that must not be left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 20
"""Seconds within which a thread that has been told to end has ended."""


@contextmanager
def no_thread_can_be_started() -> Iterator[None]:
    """No system gives a thread so large a stack."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


@contextmanager
def no_threads_left() -> Iterator[None]:
    """Every thread that is begun inside, and that would hold up the end of the process, ends."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + PATIENCE
    begun = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in begun:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not [thread.name for thread in begun if thread.is_alive()]
