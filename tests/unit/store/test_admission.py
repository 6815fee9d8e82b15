"""Admission by itself: who is admitted, and where the room goes when a job ends. On every database alike."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker.core.rows import KEEPS, LIMITED, Claim, Failure, Outcome, OutcomeKind
from flask_taskworker.store.admission import Admitted, Wish, pause_queue, resume_queue
from flask_taskworker.store.sql import Store, epoch_ms
from flask_taskworker.store.work import Ended, WorkerStore
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

    def wish(self, serves: str | None = None) -> Wish:
        return Wish(
            worker_id="w", now=self.now, room={"async": 1, "sync": 0}, serves=lambda queue: serves in (None, queue)
        )

    def pass_on(self, claim: Claim, serves: str | None = None) -> Admitted:
        """End it, and let a worker claim one more with it."""
        ended = Ended(claim, SUCCESS, self.now, self.now)
        (admitted,) = self.do(lambda work: work.finish("w", [ended], self.wish(serves))).admitted
        return admitted

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


def test_ending_admits_and_claims_the_next_in_line_in_its_own_transaction(lanes: Lanes) -> None:
    lanes.limit(running=1)
    ids = [lanes.hold() for _ in range(4)]
    claim, ran = lanes.run_next(), []
    for _ in ids[1:]:
        (claim,) = lanes.pass_on(claim).claims
        ran.append(claim.id)
        assert lanes.states(claim.id) == ["running"]
    assert ran == ids[1:]
    assert lanes.pass_on(claim).claims == []


def test_ending_claims_no_more_than_a_worker_has_room_for_and_nothing_that_it_does_not_serve(lanes: Lanes) -> None:
    lanes.limit(running=2)
    lanes.hold(), lanes.hold()
    lanes.admit()
    first, second = lanes.claim(2)
    one, other, sync = lanes.hold(), lanes.hold(queue="other"), lanes.hold(kind="sync")
    lanes.admit()
    assert [claim.id for claim in lanes.pass_on(first).claims] == [one]
    assert lanes.pass_on(second, serves="q").ready == [("other", "async")]
    assert lanes.states(one, other, sync) == ["running", "ready", "held"]


def test_the_highest_priority_of_all_lanes_is_claimed_first(lanes: Lanes) -> None:
    lanes.limit(running=1)
    lanes.hold("shop:a"), lanes.hold("shop:b", priority=5), lanes.hold("shop:c", priority=9)
    admitted = lanes.do(lambda work: work.admit(lanes.wish()))
    assert [claim.priority for claim in admitted.claims] == [9]
    assert len(admitted.ready) == 2


def test_dead_worker_claims_nothing_with_its_ending_but_admits_the_next(lanes: Lanes) -> None:
    lanes.limit(running=1)
    _, second = lanes.hold(), lanes.hold()
    claim = lanes.run_next()
    lanes.rows("UPDATE taskworker_worker SET state = 'dead'")
    assert lanes.pass_on(claim).claims == []
    assert lanes.states(second) == ["ready"]


def test_claim_with_an_ending_is_charged_to_the_rate(lanes: Lanes) -> None:
    lanes.limit(running=5, amount=2, per_us=1_000_000, burst=2)
    for _ in range(4):
        lanes.hold()
    lanes.admit()
    first, second = lanes.claim(9)
    lanes.do(lambda work: work.begin([first, second]))
    assert lanes.pass_on(first).claims == []
    lanes.now += 500
    admitted = lanes.do(lambda work: work.admit(lanes.wish()))
    assert len(admitted.claims) == 1
    assert admitted.next_open == lanes.now + 500


@pytest.mark.parametrize("burst", [1, 5])
def test_late_starts_are_made_up_for_and_no_second_has_more_than_it_may(lanes: Lanes, burst: int) -> None:
    number, chance = 20, random.Random(burst)
    lanes.limit(amount=number, per_us=1_000_000, burst=burst)
    lanes.store.add([lanes.new(lane="shop", marks=LIMITED) for _ in range(120)])
    starts: list[int] = []

    async def work_late(work: WorkerStore) -> None:
        while len(starts) < 120:
            admitted = await work.admit(replace(lanes.wish(), room={"async": 9, "sync": 0}))
            starts.extend(lanes.now + chance.randint(0, 12) for _ in admitted.claims)
            for claim in admitted.claims:
                await work.finish("w", [Ended(claim, SUCCESS, lanes.now, lanes.now)])
            lanes.now = max(admitted.next_open or 0, lanes.now + 1) + chance.randint(0, 12)

    lanes.do(work_late)
    starts.sort()
    assert max(sum(at <= other < at + 1_000 for other in starts) for at in starts) <= number + burst - 1
    assert (len(starts) - 1) / (starts[-1] - starts[0]) * 1_000 >= 0.95 * number


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
    assert len(lanes.claim(9)) == 6


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
    assert lanes.states(first) == ["ready"]
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
    assert lanes.store.change(lambda flows: lanes.store.finish_within(flows, claim, None, None))
    assert lanes.admit() == 1


def test_pausing_a_queue_gives_its_room_to_others_and_resuming_puts_it_in_line(lanes: Lanes) -> None:
    lanes.limit(running=1)
    paused, other = lanes.hold(queue="slow"), lanes.hold()
    assert lanes.admit() == 1
    lanes.rows("INSERT INTO taskworker_queue (name, paused) VALUES ('slow', 1)")
    lanes.store.driver.transaction(lambda run: pause_queue(lanes.store.driver.dialect, run, "slow"))
    assert lanes.admit() == 1
    assert lanes.states(paused, other) == ["held", "ready"]
    lanes.rows("DELETE FROM taskworker_queue")
    lanes.store.driver.transaction(lambda run: resume_queue(lanes.store.driver.dialect, run, "slow"))
    lanes.finish(lanes.claim()[0], SUCCESS)
    assert lanes.admit() == 1
    assert lanes.states(paused) == ["ready"]


def test_places_that_contradict_their_jobs_are_healed(lanes: Lanes) -> None:
    lanes.limit(running=1)
    lanes.hold()
    assert lanes.do(lambda work: work.tidy_limits([])) == 0
    lanes.admit()
    lanes.rows("UPDATE taskworker_permit SET phase = 3")
    assert lanes.do(lambda work: work.tidy_limits([])) == 1
    lanes.admit()
    assert lanes.phases() == [2]


def test_raised_limit_admits_more_and_lowered_one_stops_nothing(lanes: Lanes, idle_worker: Any) -> None:
    lanes.limit(running=1)
    ids = [lanes.hold() for _ in range(4)]
    assert lanes.admit() == 1
    idle_worker.limits["shop"].set(running=3)
    assert lanes.admit() == 2
    idle_worker.limits["shop"].set(running=1)
    assert lanes.admit() == 0
    assert lanes.states(*ids) == ["ready", "ready", "ready", "held"]
    idle_worker.limits["shop"].reset()
    assert lanes.admit() == 1


@pytest.mark.parametrize("fair", [0, 1])
def test_keys_are_served_in_turn_where_that_is_asked_for(lanes: Lanes, fair: int) -> None:
    lanes.limit(running=3, fair=fair)
    slots = {"queues": None, "exclude": [], "concurrency": 2, "threads": 1}
    lanes.rows("UPDATE taskworker_worker SET info = ?", json.dumps(slots))
    keys = {lanes.hold(f"shop:{key}"): key for key in "abcdef" for _ in range(8)}

    running: list[Claim] = []
    ran: list[str] = []

    async def run_some(work: WorkerStore) -> None:
        for _ in range(24):
            await work.admit()
            running.extend(await work.claim("w", "q", "async", 3 - len(running)))
            ran.append(keys[running[0].id])
            await work.finish("w", [Ended(running.pop(0), SUCCESS, lanes.now, lanes.now)])
            lanes.now += 1

    lanes.do(run_some)
    assert (
        sorted(Counter(ran).items()) == [(key, 4) for key in "abcdef"] if fair else ran[:16] == list("aaaaaaaabbbbbbbb")
    )


def test_turns_leave_no_job_behind(lanes: Lanes) -> None:
    lanes.limit(running=1, fair=1)
    ids = [lanes.hold(f"shop:{i % 7}") for i in range(30)]

    async def run_all(work: WorkerStore) -> None:
        for _ in ids:
            while (await work.admit()).is_more:
                pass
            (claim,) = await work.claim("w", "q", "async", 1)
            await work.finish("w", [Ended(claim, SUCCESS, lanes.now, lanes.now)])

    lanes.do(run_all)
    assert set(lanes.states(*ids)) == {"succeeded"}
    assert lanes.rows("SELECT lane FROM taskworker_lane WHERE waits_in IS NOT NULL") == []


def test_suspect_waits_for_the_limit_of_its_queue_and_holds_up_no_other(lanes: Lanes) -> None:
    lanes.limit("queue:q", running=1)
    lanes.add()
    (running,) = lanes.claim()
    suspect, other = lanes.add(), lanes.add(queue="free")
    lanes.rows("UPDATE taskworker_job SET solo = 1 WHERE state = 'ready'")
    claim_next = lambda work: work.claim_suspect("w", ["q", "free"], ["q"])  # noqa: E731
    assert [claim.id for claim in lanes.do(claim_next)] == [other]
    assert lanes.do(claim_next) == []
    lanes.finish(running, SUCCESS)
    assert [claim.id for claim in lanes.do(claim_next)] == [suspect]


def test_lanes_follow_the_clock_of_the_server_where_there_is_one(lanes: Lanes) -> None:
    lanes.limit(amount=1, per_us=1_000_000, burst=1)
    lanes.store.clock = epoch_ms
    lanes.hold()

    async def start_with_a_clock_that_is_set(work: WorkerStore) -> None:
        await work.peek("[]")
        lanes.store.clock = lambda: epoch_ms() + 3_600_000
        assert len((await work.admit(lanes.wish())).claims) == 1

    lanes.do(start_with_a_clock_that_is_set)
    ((tat,),) = lanes.rows("SELECT tat FROM taskworker_lane")
    ahead = 3_600 if lanes.store.driver.dialect.name == "sqlite" else 0
    assert abs(tat / 1_000_000 - time.time() - ahead) < 60


class Model:
    """What a lane with room for *running* jobs does, in plain Python: states by number of job."""

    def __init__(self, running: int, hold: bool) -> None:
        self.running = running
        self.hold = hold
        self.jobs: dict[int, str] = {}
        self.priority: dict[int, int] = {}
        self.keeps: set[int] = set()

    def admit(self) -> None:
        is_open = sum(s in ("ready", "running") or (i in self.keeps and s == "scheduled") for i, s in self.jobs.items())
        line = sorted((i for i, s in self.jobs.items() if s == "held"), key=lambda i: (-self.priority[i], i))
        for job_id in line[: max(0, self.running - is_open)]:
            self.jobs[job_id] = "ready"

    def some(self, *states: str) -> list[int]:
        return [i for i, state in self.jobs.items() if state in states]


@pytest.mark.parametrize("hold", [False, True])
def test_lane_does_what_its_model_does(lanes: Lanes, hold: bool) -> None:
    check_against_model(lanes, Model(2, hold), random.Random(7), acts=150)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("hold", [False, True])
def test_lane_does_what_its_model_does_for_long(lanes: Lanes, hold: bool) -> None:
    check_against_model(lanes, Model(2, hold), random.Random(), acts=int(os.environ.get("LANE_ACTS", "1500")))


def check_against_model(lanes: Lanes, model: Model, chance: random.Random, *, acts: int) -> None:
    """Do the same to the store and to the model, and compare them after each act."""
    lanes.limit(running=model.running)
    lanes.do(lambda work: Play(lanes, model, chance, work).play(acts))


class Play:
    """Acts on a lane, each on the store and on the model."""

    def __init__(self, lanes: Lanes, model: Model, chance: random.Random, work: WorkerStore) -> None:
        self.lanes, self.model, self.chance, self.work = lanes, model, chance, work
        self.claims: dict[int, Claim] = {}

    async def play(self, acts: int) -> None:
        kinds = (self.add, self.add, self.claim, self.claim, self.end, self.end, self.end, self.cancel, self.promote)
        for _ in range(acts):
            act = self.chance.choice(kinds)
            await act()
            await self.work.admit()
            self.model.admit()
            assert dict(self.lanes.rows("SELECT id, state FROM taskworker_job")) == self.model.jobs, act.__name__
            self.forget()
        assert await self.work.tidy_limits([]) == 0

    async def add(self) -> None:
        priority, is_late = self.chance.choice((0, 0, 5)), self.chance.random() < 0.2
        marks = LIMITED | KEEPS if self.model.hold else LIMITED
        run_at = self.lanes.now + 5_000 if is_late else 0
        job = self.lanes.new(lane="shop", marks=marks, priority=priority, run_at=run_at)
        record = self.lanes.store.add([job])[0]
        self.model.jobs[record.id], self.model.priority[record.id] = "scheduled" if is_late else "held", priority

    async def claim(self) -> None:
        for claim in await self.work.claim("w", "q", "async", 1):
            self.claims[claim.id] = claim
            assert self.model.jobs[claim.id] == "ready"
            self.model.jobs[claim.id] = "running"

    async def end(self) -> None:
        for job_id in self.model.some("running")[:1]:
            again = "ready" if self.model.hold else "held"
            endings = ((SUCCESS, "succeeded"), (RETRYING, "scheduled"), (RELEASED, again))
            outcome, self.model.jobs[job_id] = self.chance.choice(endings)
            await self.work.finish("w", [Ended(self.claims[job_id], outcome, self.lanes.now, self.lanes.now)])
            if self.model.hold:
                self.model.keeps.add(job_id)

    async def cancel(self) -> None:
        if waiting := self.model.some("held", "ready", "scheduled"):
            job_id = self.chance.choice(waiting)
            self.lanes.store.cancel(job_id)
            self.model.jobs[job_id] = "cancelled"
            if self.chance.random() < 0.5:
                self.lanes.store.retry(job_id)
                self.model.jobs[job_id] = "held"
                self.model.keeps.discard(job_id)

    async def promote(self) -> None:
        self.lanes.now += 20_000
        await self.work.promote()
        for job_id in self.model.some("scheduled"):
            self.model.jobs[job_id] = "ready" if job_id in self.model.keeps else "held"

    def forget(self) -> None:
        """Else looking at all jobs takes longer and longer."""
        ended = self.model.some("succeeded", "cancelled")
        if len(ended) > 50:
            self.lanes.rows("DELETE FROM taskworker_permit WHERE phase = 5")
            self.lanes.rows("DELETE FROM taskworker_job WHERE finished_at IS NOT NULL")
            for job_id in ended:
                del self.model.jobs[job_id]
