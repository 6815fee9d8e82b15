"""Waiting for a state, with a deadline: the only way in which these tests wait."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from flask_taskworker.store.sql import Store

T = TypeVar("T")

DEADLINE = 20.0
"""Seconds. Long, since a busy machine must not fail a test; reached only by a test that fails."""


def wait_for(predicate: Callable[[], T], what: str = "", *, deadline: float = DEADLINE) -> T:
    """Ask again and again until the answer is true, and return it. Fails at the deadline with *what*."""
    end, pause = time.monotonic() + deadline, 0.002
    while not (answer := predicate()):
        assert time.monotonic() < end, f"did not come about within {deadline:g} s: {what or predicate}"
        time.sleep(pause)
        # The question itself may take the time that the answer needs.
        pause = min(pause * 1.3, 0.03)
    return answer


def wait_for_collected(predicate: Callable[[], object], what: str = "") -> None:
    """As :func:`wait_for`, where something must be collected first: a thread may hold it for a moment longer."""
    wait_for(lambda: gc.collect() >= 0 and predicate(), what)


class Clock:
    """A store's clock that can be put forward, so that no test waits until something is due.

    Make it before the worker starts, and wake the worker after it was put forward.
    """

    def __init__(self, store: Store) -> None:
        self._clock = store.clock
        self._ahead = 0
        store.clock = self

    def __call__(self) -> int:
        return self._clock() + self._ahead

    def put_forward(self, milliseconds: int) -> None:
        self._ahead += milliseconds


def wait(event: threading.Event) -> None:
    """Wait for *event*, with the deadline."""
    assert event.wait(DEADLINE), "the event was not set in time"
