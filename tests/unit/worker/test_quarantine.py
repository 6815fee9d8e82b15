"""The arithmetic of running a suspect alone."""

from __future__ import annotations

from flask_taskworker.worker.quarantine import PAUSE_SECONDS, ROOM_SECONDS, Quarantine


def waiting(now: float, *, busy: bool) -> Quarantine:
    quarantine = Quarantine(waiting=True)
    quarantine.update(now, busy=busy)
    return quarantine


def test_idle_worker_takes_a_suspect_at_once_and_nothing_beside_it() -> None:
    quarantine = waiting(100.0, busy=False)
    assert quarantine.ready(busy=False)
    quarantine.claimed(found=True)
    quarantine.update(200.0, busy=True)
    assert quarantine.closed(200.0)
    assert not quarantine.ready(busy=True)


def test_worker_is_open_again_when_the_suspect_has_ended() -> None:
    quarantine = waiting(100.0, busy=False)
    quarantine.claimed(found=True)
    quarantine.waiting = False
    quarantine.update(101.0, busy=False)
    assert not quarantine.closed(101.0)


def test_next_suspect_follows_without_a_pause() -> None:
    quarantine = waiting(100.0, busy=False)
    quarantine.claimed(found=True)
    quarantine.update(101.0, busy=False)
    assert quarantine.ready(busy=False)


def test_busy_worker_claims_nothing_while_it_makes_room() -> None:
    quarantine = waiting(100.0, busy=True)
    assert not quarantine.ready(busy=True)
    assert quarantine.closed(100.0 + ROOM_SECONDS - 0.1)
    assert quarantine.ready(busy=False)


def test_worker_whose_jobs_do_not_end_works_on_and_tries_again_later() -> None:
    quarantine = waiting(100.0, busy=True)
    end = 100.0 + ROOM_SECONDS
    quarantine.update(end, busy=True)
    assert not quarantine.closed(end)
    quarantine.update(end + PAUSE_SECONDS, busy=True)
    assert quarantine.closed(end + PAUSE_SECONDS)


def test_worker_wakes_when_its_time_for_making_room_is_over_and_when_it_is_to_try_again() -> None:
    quarantine = waiting(100.0, busy=True)
    assert quarantine.delay(101.0) == ROOM_SECONDS - 1
    assert quarantine.delay(100.0 + ROOM_SECONDS) == PAUSE_SECONDS


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
    quarantine = Quarantine(waiting=True)
    quarantine.update(100.0, busy=True, stuck=True)
    assert not quarantine.closed(100.0)
    assert not quarantine.ready(busy=True)
    assert quarantine.delay(101.0) is None, "it would turn and turn"


def test_worker_whose_jobs_ended_after_the_time_for_making_room_takes_the_suspect_at_once() -> None:
    quarantine = waiting(100.0, busy=True)
    quarantine.update(100.0 + ROOM_SECONDS + 1, busy=False)
    assert quarantine.ready(busy=False)
