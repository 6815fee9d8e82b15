"""The arithmetic of running a suspect alone."""

from __future__ import annotations

import random

import pytest

from flask_taskworker.worker.quarantine import FIRST_WAIT, PAUSE_ROOMS, Quarantine
from flask_taskworker.worker.timing import DEFAULT_TIMING

FIRST_ROOM = 100.0 + FIRST_WAIT


def waiting(now: float, *, busy: bool) -> Quarantine:
    """A worker that hears of a suspect."""
    quarantine = Quarantine(waiting=True)
    quarantine.update(now, busy=busy)
    return quarantine


def with_room(*, busy: bool = True) -> Quarantine:
    """A worker that has heard of a suspect and begins to make room."""
    quarantine = waiting(100.0, busy=busy)
    quarantine.update(FIRST_ROOM, busy=busy)
    return quarantine


def test_worker_without_other_work_takes_a_suspect_at_once_and_nothing_beside_it() -> None:
    quarantine = waiting(100.0, busy=False)
    assert quarantine.ready(100.0, busy=False, others=False)
    quarantine.claimed(found=True)
    quarantine.update(200.0, busy=True)
    assert quarantine.closed(200.0)
    assert not quarantine.ready(200.0, busy=True, others=False)


def test_other_jobs_go_before_a_new_suspect() -> None:
    quarantine = waiting(100.0, busy=False)
    assert not quarantine.closed(100.0)
    assert not quarantine.ready(100.0, busy=False, others=True)
    quarantine.update(FIRST_ROOM, busy=False)
    assert quarantine.ready(FIRST_ROOM, busy=False, others=True)


def test_worker_is_open_again_when_the_suspect_has_ended() -> None:
    quarantine = waiting(100.0, busy=False)
    quarantine.claimed(found=True)
    quarantine.waiting = False
    quarantine.update(101.0, busy=False)
    assert not quarantine.closed(101.0)


def test_next_suspect_follows_in_the_same_room() -> None:
    quarantine = with_room(busy=False)
    quarantine.claimed(found=True)
    quarantine.update(FIRST_ROOM + 1, busy=False)
    assert quarantine.ready(FIRST_ROOM + 1, busy=False, others=True)


def test_busy_worker_claims_nothing_while_it_makes_room() -> None:
    quarantine = with_room()
    assert not quarantine.ready(FIRST_ROOM, busy=True, others=True)
    assert quarantine.closed(FIRST_ROOM + DEFAULT_TIMING.suspect_room - 0.1)
    assert quarantine.ready(FIRST_ROOM + 1, busy=False, others=True)


def test_room_that_was_too_short_is_doubled_after_a_pause() -> None:
    quarantine = with_room()
    end = FIRST_ROOM + DEFAULT_TIMING.suspect_room
    quarantine.update(end, busy=True)
    assert not quarantine.closed(end)
    again = end + PAUSE_ROOMS * DEFAULT_TIMING.suspect_room
    quarantine.update(again - 0.1, busy=True)
    assert not quarantine.closed(again - 0.1)
    quarantine.update(again, busy=True)
    assert quarantine.closed(again + 2 * DEFAULT_TIMING.suspect_room - 0.1)
    assert not quarantine.closed(again + 2 * DEFAULT_TIMING.suspect_room)


def test_room_is_short_again_for_the_next_suspect() -> None:
    quarantine = with_room()
    again = FIRST_ROOM + DEFAULT_TIMING.suspect_room * (1 + PAUSE_ROOMS)
    quarantine.update(again, busy=True)
    quarantine.claimed(found=True)
    quarantine.waiting = False
    quarantine.update(again + 20, busy=False)
    quarantine.waiting = True
    quarantine.update(1000.0, busy=True)
    quarantine.update(1000.0 + FIRST_WAIT, busy=True)
    assert not quarantine.closed(1000.0 + FIRST_WAIT + DEFAULT_TIMING.suspect_room)


def test_worker_wakes_when_its_room_begins_ends_and_begins_again() -> None:
    quarantine = waiting(100.0, busy=True)
    assert quarantine.delay(101.0) == FIRST_WAIT - 1
    quarantine.update(FIRST_ROOM, busy=True)
    assert quarantine.delay(FIRST_ROOM + 1) == DEFAULT_TIMING.suspect_room - 1
    assert quarantine.delay(FIRST_ROOM + DEFAULT_TIMING.suspect_room) == PAUSE_ROOMS * DEFAULT_TIMING.suspect_room


def test_suspect_that_another_worker_took_is_forgotten_until_the_next_look() -> None:
    quarantine = waiting(100.0, busy=False)
    quarantine.claimed(found=False)
    assert not quarantine.closed(100.0)
    assert quarantine.delay(100.0) is None


def test_without_a_suspect_nothing_is_closed_and_nothing_awaited() -> None:
    quarantine = Quarantine()
    quarantine.update(100.0, busy=False)
    assert not quarantine.closed(100.0)
    assert quarantine.delay(100.0) is None


def test_worker_with_a_thread_that_may_never_end_makes_no_room() -> None:
    quarantine = waiting(100.0, busy=True)
    quarantine.update(FIRST_ROOM, busy=True, stuck=True)
    assert not quarantine.closed(FIRST_ROOM)
    assert not quarantine.ready(FIRST_ROOM, busy=True, others=False)
    assert quarantine.delay(FIRST_ROOM) is None, "it would turn and turn"


@pytest.mark.parametrize("seed", range(20))
def test_suspect_among_jobs_of_seven_seconds_runs_within_a_minute_and_the_others_lose_little(seed: int) -> None:
    rand = random.Random(seed)
    slots = [rand.uniform(0, 7) for _ in range(4)]
    quarantine = Quarantine(waiting=True)
    now = worked = 0.0
    while True:
        slots = [end for end in slots if end > now]
        quarantine.update(now, busy=bool(slots))
        if quarantine.ready(now, busy=bool(slots), others=True):
            break
        while len(slots) < 4 and not quarantine.closed(now):
            slots.append(now + 7 * rand.uniform(0.8, 1.2))
        worked += 0.01 * len(slots)
        now += 0.01
    assert now < 57
    assert worked / (4 * now) >= 0.8
