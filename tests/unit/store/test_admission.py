"""Admission by itself: who is admitted, and where the room goes when a job ends. On every database alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker.core.rows import LIMITED, Claim, Failure, Outcome, OutcomeKind
from flask_taskworker.store.sql import Store
from tests.support.stored import counts_of
from tests.unit.store.test_work import NOW, SUCCESS, Bench, Rows

pytestmark = pytest.mark.both_databases

RETRYING = Outcome(
    OutcomeKind.RETRYING,
    delay=timedelta(seconds=10),
    failure=Failure(kind="exception", type="ValueError", message="no"),
)
RELEASED = Outcome(OutcomeKind.RELEASED)


class Lanes(Bench):
    """A store with limited jobs."""

    def limit(self, name: str = "shop", **numbers: Any) -> None:
        self.store.driver.prepare()
        columns = {"name": name, "source": "code", "set_at": NOW, "seen_at": NOW, **numbers}
        marks = ", ".join("?" for _ in columns)
        self.rows(f"INSERT INTO taskworker_limit ({', '.join(columns)}) VALUES ({marks})", *columns.values())

    def hold(self, lane: str = "shop", **fields: Any) -> int:
        return self.add(lane=lane, marks=LIMITED, **fields)

    def admit(self) -> int:
        return len(self.do(lambda work: work.admit()).ready)

    def states(self, *ids: int) -> list[str]:
        return [self.record(job_id).state for job_id in ids]

    def run_next(self) -> Claim:
        self.admit()
        (claim,) = self.claim()
        return claim

    def phases(self) -> list[int]:
        return [row[0] for row in self.rows("SELECT phase FROM taskworker_permit ORDER BY job_id")]


@pytest.fixture
def lanes(app: Flask, idle_worker: object, store: Store, rows: Rows) -> Iterator[Lanes]:
    store.driver.prepare()
    bench = Lanes(store, rows)
    bench.worker()
    yield bench
    store.driver.close()


def test_limited_job_is_held_until_it_is_let_in(lanes: Lanes) -> None:
    lanes.limit(running=1)
    first, second = lanes.hold(), lanes.hold()
    assert lanes.states(first, second) == ["held", "held"]
    assert lanes.claim(9) == []
    assert lanes.admit() == 1
    assert lanes.states(first, second) == ["ready", "held"]


def test_ending_lets_the_next_in_line_in(lanes: Lanes) -> None:
    lanes.limit(running=1)
    ids = [lanes.hold() for _ in range(4)]
    ran = []
    for _ in ids:
        claim = lanes.run_next()
        assert lanes.admit() == 0
        ran.append(claim.id)
        lanes.finish(claim, SUCCESS)
    assert ran == ids
    assert lanes.admit() == 0
    assert lanes.phases() == [5, 5, 5, 5]


def test_line_has_the_highest_priority_first_and_then_the_oldest(lanes: Lanes) -> None:
    lanes.limit(running=1)
    low, high, second_high = lanes.hold(), lanes.hold(priority=5), lanes.hold(priority=5)
    ran = []
    for _ in range(3):
        ran.append(claim := lanes.run_next())
        lanes.finish(claim, SUCCESS)
    assert [claim.id for claim in ran] == [high, second_high, low]


def test_each_lane_has_room_of_its_own(lanes: Lanes) -> None:
    lanes.limit(running=2)
    for lane in ("shop:1", "shop:2", "shop:3"):
        for _ in range(5):
            lanes.hold(lane)
    assert lanes.admit() == 6
    for claim in lanes.claim(6):
        lanes.finish(claim, SUCCESS)
    assert lanes.admit() == 6


def test_waiting_for_the_next_try_frees_the_room(lanes: Lanes) -> None:
    lanes.limit(running=1)
    first, second = lanes.hold(), lanes.hold()
    lanes.finish(lanes.run_next(), RETRYING)
    assert lanes.run_next().id == second
    lanes.now += 20_000
    assert lanes.do(lambda work: work.promote()).number == 1
    assert lanes.states(first, second) == ["held", "running"]
    assert lanes.admit() == 0


def test_released_job_is_the_first_in_line_again(lanes: Lanes) -> None:
    lanes.limit(running=1)
    first, _ = lanes.hold(), lanes.hold()
    lanes.finish(lanes.run_next(), RELEASED)
    assert lanes.states(first) == ["held"]
    assert lanes.run_next().id == first


def test_cancelled_job_leaves_the_line_and_an_admitted_one_lets_the_next_in(lanes: Lanes) -> None:
    lanes.limit(running=1)
    first, second, third = (lanes.hold() for _ in range(3))
    assert lanes.admit() == 1
    lanes.store.cancel(second)
    lanes.store.cancel(first)
    assert lanes.admit() == 1
    assert lanes.states(first, second, third) == ["cancelled", "cancelled", "ready"]


def test_asking_a_running_job_to_stop_frees_no_room(lanes: Lanes) -> None:
    lanes.limit(running=1)
    lanes.hold(), lanes.hold()
    claim = lanes.run_next()
    lanes.store.cancel(claim.id)
    assert lanes.admit() == 0


def test_retried_job_goes_in_line(lanes: Lanes) -> None:
    lanes.limit(running=1)
    first, second = lanes.hold(), lanes.hold()
    lanes.admit()
    lanes.store.cancel(first)
    lanes.admit()
    assert lanes.store.retry(first)
    assert lanes.admit() == 0
    assert lanes.states(first, second) == ["held", "ready"]


def test_rescued_job_gives_its_room_back_and_is_first(lanes: Lanes) -> None:
    lanes.limit(running=1)
    first, _ = lanes.hold(), lanes.hold()
    lanes.run_next()
    lanes.rows("UPDATE taskworker_worker SET state = 'dead'")
    lanes.observe()
    lanes.rows("UPDATE taskworker_worker SET state = 'alive'")
    assert lanes.states(first) == ["held"]
    assert lanes.run_next().id == first


def test_job_of_a_paused_queue_has_not_the_room_of_others(lanes: Lanes) -> None:
    lanes.limit(running=1)
    paused, other = lanes.hold(queue="paused"), lanes.hold()
    lanes.rows("INSERT INTO taskworker_queue (name, paused) VALUES ('paused', 1)")
    assert lanes.admit() == 1
    assert lanes.states(paused, other) == ["held", "ready"]
    assert lanes.phases() == [4, 2]


def test_job_that_no_worker_serves_has_not_the_room_of_others(lanes: Lanes) -> None:
    lanes.limit(running=1)
    info = json.dumps({"queues": ["q"], "exclude": []})
    lanes.rows("UPDATE taskworker_worker SET info = ?", info)
    unserved, other = lanes.hold(queue="elsewhere"), lanes.hold()
    assert lanes.admit() == 1
    assert lanes.states(unserved, other) == ["held", "ready"]


def test_lane_without_a_limit_has_room_for_all(lanes: Lanes) -> None:
    for _ in range(5):
        lanes.hold()
    assert lanes.admit() == 5


def test_many_jobs_are_stored_with_their_places(lanes: Lanes) -> None:
    lanes.limit(running=3)
    jobs = [lanes.new(lane=f"shop:{i % 2}", marks=LIMITED) for i in range(20)]
    lanes.store.add(jobs)
    assert lanes.admit() == 6
    assert counts_of(lanes.store)["held"] == 14


def test_repeated_enqueue_with_a_uid_has_one_place(lanes: Lanes) -> None:
    lanes.limit(running=1)
    job = lanes.new(lane="shop", marks=LIMITED)
    assert lanes.store.add([job]) == lanes.store.add([job])
    assert lanes.phases() == [0]


def test_places_are_pruned_with_their_jobs(lanes: Lanes) -> None:
    lanes.hold()
    lanes.finish(lanes.run_next(), SUCCESS)
    lanes.now += 15 * 24 * 3_600_000
    lanes.do(lambda work: work.prune())
    assert lanes.phases() == []


def test_atomic_ending_gives_the_room_back(lanes: Lanes) -> None:
    lanes.limit(running=1)
    lanes.hold(), lanes.hold()
    claim = lanes.run_next()
    assert lanes.store.driver.transaction(lambda run: lanes.store.finish_within(run, claim, None, None))
    assert lanes.admit() == 1
