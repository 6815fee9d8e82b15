"""How many jobs a worker claims."""

from __future__ import annotations

import pytest

from flask_taskworker.worker.running import AHEAD_MOST, Slots


@pytest.mark.parametrize("size", [1, 8, 49, 50, 100, 1000, 100_000])
def test_nothing_is_claimed_ahead_after_it_had_to_be_given_back(size: int) -> None:
    slots = Slots(size)
    slots.running = size
    for _ in range(100):
        slots.learn(0.0001)
    slots.claim_none_ahead()
    assert slots.room == 0


def test_short_jobs_are_claimed_ahead_and_long_ones_are_not() -> None:
    slots = Slots(8)
    slots.running = 8
    assert slots.room == 0
    for _ in range(200):
        slots.learn(0.0001)
    assert slots.room == AHEAD_MOST
    for _ in range(20):
        slots.learn(10)
    assert slots.room == 0


def test_thread_of_a_timed_out_job_is_not_a_free_slot() -> None:
    slots = Slots(2)
    slots.overdue = 2
    assert (slots.free, slots.room) == (0, 0)
    slots.overdue = 1
    assert (slots.free, slots.room) == (1, 1)
