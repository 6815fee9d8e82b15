"""Waiting for a state, with a deadline: the only way in which these tests wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 20.0
"""Seconds. Long, since a busy machine must not fail a test; reached only by a test that fails."""


def wait_for(predicate: Callable[[], T], what: str = "", *, deadline: float = DEADLINE) -> T:
    """Ask again and again until the answer is true, and return it. Fails at the deadline with *what*."""
    end = time.monotonic() + deadline
    while not (answer := predicate()):
        assert time.monotonic() < end, f"did not come about within {deadline:g} s: {what or predicate}"
        time.sleep(0.002)
    return answer


def wait(event: threading.Event) -> None:
    """Wait for *event*, with the deadline."""
    assert event.wait(DEADLINE), "the event was not set in time"
