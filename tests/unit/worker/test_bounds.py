"""When a worker stops by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flask_taskworker.worker.bounds import NO_BOUNDS, Bounds, BoundsWatch, WorkerRole


def is_over(watch: BoundsWatch, now: float = 0.0, *, jobs_done: int = 0, idle: bool = False) -> bool:
    return watch.is_over(now, worker_id="w", jobs_done=jobs_done, idle=idle)


@pytest.mark.parametrize(
    ("bounds", "seen", "over"),
    [
        (NO_BOUNDS, {"jobs_done": 10**9, "idle": True}, False),
        (Bounds(drain=True), {"idle": True}, True),
        (Bounds(drain=True), {"idle": False}, False),
        (Bounds(max_jobs=3), {"jobs_done": 2}, False),
        (Bounds(max_jobs=3), {"jobs_done": 3}, True),
        (Bounds(max_memory_mb=0.1), {"jobs_done": 1}, True),
        (Bounds(max_memory_mb=0.1), {"jobs_done": 0}, False),
        (Bounds(max_memory_mb=10**9), {"jobs_done": 1}, False),
    ],
)
def test_worker_stops_at_its_bound(bounds: Bounds, seen: dict[str, Any], over: bool) -> None:
    assert is_over(BoundsWatch(bounds), **seen) is over


def test_idle_time_begins_with_the_last_work() -> None:
    watch = BoundsWatch(Bounds(max_idle=10))
    assert watch.is_limited
    assert not is_over(watch, 0)
    assert not is_over(watch, 9, idle=True)
    assert not is_over(watch, 9)
    assert not is_over(watch, 18, idle=True)
    assert is_over(watch, 19, idle=True)
    assert BoundsWatch(NO_BOUNDS).idle_until == math.inf


def test_role_says_what_it_works_on() -> None:
    assert WorkerRole().words(None) == "all queues"
    assert WorkerRole(exclude=frozenset({"b", "a"})).words(None) == "all queues, but not a, b"
    assert WorkerRole().words(["mail", "web"]) == "mail, web"
