"""The store by itself: who may claim, which endings count, what a rescue does. On every database alike."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from flask import Flask

from flask_taskworker.core.rows import (
    Claim,
    Failure,
    JobRecord,
    JobState,
    NewJob,
    Outcome,
    OutcomeKind,
    Progress,
    ProgressReport,
)
from flask_taskworker.errors import JobNotFound, NotAccepted, SchemaError
from flask_taskworker.store.migrations import ddl
from flask_taskworker.store.sql import Store
from flask_taskworker.store.statements import jobs as job_statements
from flask_taskworker.store.statements import workers as worker_statements
from flask_taskworker.store.statements.jobs import batch_of
from flask_taskworker.store.work import (
    LONGEST_FLOOR,
    PROMOTE_BATCH,
    PRUNE_BATCH,
    DueSchedule,
    Ended,
    Firing,
    WorkerStore,
)
from flask_taskworker.worker.liveness import Heartbeat, News
from flask_taskworker.worker.timing import Timing
from tests.support.postgres import connect
from tests.support.stored import counts_of

pytestmark = pytest.mark.both_databases

T = TypeVar("T")
Rows = Callable[..., list[tuple[Any, ...]]]

NOW = 1_700_000_000_000
DAY = 24 * 3_600_000
FAILURE = Failure(kind="exception", type="ValueError", message="no")


class Bench:
    """A store, its clock, and a worker's face of it for single calls."""

    def __init__(self, store: Store, rows: Rows) -> None:
        self.store = store
        self.rows = rows
        self.now = NOW
        self._number = 0
        store.clock = lambda: self.now

    def new(self, **fields: Any) -> NewJob:
        self._number += 1
        values: dict[str, Any] = {
            "uid": f"uid-{self._number}", "task": "t", "queue": "q", "kind": "async", "priority": 0, "run_at": 0,
            "args": "[[],{}]", "max_attempts": 1, "timeout": None, "created_at": self.now,
        }  # fmt: skip
        return NewJob(**values | fields)

    def add(self, **fields: Any) -> int:
        return self.store.add([self.new(**fields)])[0].id

    def worker(self, worker_id: str = "w", state: str = "alive", beat_at: int = NOW) -> str:
        self.store.driver.prepare()
        self.rows(
            "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) VALUES (?,?,?,?,?,?,?)",
            worker_id, "h", 1, NOW, beat_at, state, "{}",
        )  # fmt: skip
        return worker_id

    def do(self, call: Callable[[WorkerStore], Awaitable[T]]) -> T:
        async def once() -> T:
            work = await WorkerStore.open(self.store)
            try:
                return await call(work)
            finally:
                await work.close()

        return asyncio.run(once())

    def claim(self, number: int = 1, *, worker: str = "w", queue: str = "q", kind: str = "async") -> list[Claim]:
        return self.do(lambda work: work.claim(worker, queue, kind, number))

    def finish(self, claim: Claim, outcome: Outcome, **fields: Any) -> dict[int, str]:
        ended = Ended(claim, outcome, self.now, self.now, **fields)
        return self.do(lambda work: work.finish("w", [ended])).states

    def claimed(self, **fields: Any) -> Claim:
        """A job that the worker w has claimed."""
        self.add(**fields)
        return self.claim(queue=fields.get("queue", "q"), kind=fields.get("kind", "async"))[0]

    def record(self, job_id: int) -> JobRecord:
        return self.store.record(job_id)

    def observe(self, worker_id: str = "0b5e4ae4") -> list[JobRecord]:
        """What a starting worker does about the dead: the jobs that it rescued."""
        rescued: list[JobRecord] = []
        news = News(
            lost=lambda: None, running=lambda: (), cancel=lambda _: None, rescued=rescued.extend,
            wished=lambda wish: None,
            sized=lambda kind, size: None,
            reached=lambda: None,
        )  # fmt: skip
        presence = self.store.driver.presence(worker_id)
        heartbeat = Heartbeat(self.store, presence, worker_id, news=news, info=dict, timing=Timing())
        heartbeat.observe()
        heartbeat._link.close()
        presence.close()
        return rescued


@pytest.fixture
def bench(app: Flask, idle_worker: object, store: Store, rows: Rows) -> Iterator[Bench]:
    store.driver.prepare()
    yield Bench(store, rows)
    store.driver.close()


SUCCESS = Outcome(OutcomeKind.SUCCEEDED)
WITH_RESULT = Outcome(OutcomeKind.SUCCEEDED, result="5")


# -- claiming ----------------------------------------------------------------------------------------------------------


def test_claim_takes_the_most_urgent_and_oldest_of_its_queue_and_kind(bench: Bench) -> None:
    bench.worker()
    low, high, second = bench.add(), bench.add(priority=5), bench.add()
    bench.add(queue="other"), bench.add(kind="sync"), bench.add(run_at=NOW + 1)
    assert [claim.id for claim in bench.claim(2)] == [high, low]
    assert [claim.id for claim in bench.claim(9)] == [second]
    assert bench.claim(9) == []


def test_claims_of_a_backlog_take_the_most_urgent_first_and_leave_nothing_behind(bench: Bench) -> None:
    bench.worker()
    first, second, third, fourth = (bench.add() for _ in range(4))

    async def claim_all(work: WorkerStore) -> list[int]:
        (back,) = await work.claim("w", "q", "async", 1)
        taken = [back.id]
        await work.hand_back("other", [Ended(back, Outcome(OutcomeKind.RELEASED), NOW, NOW)])
        urgent, lazy = bench.add(priority=1), bench.add(priority=-1)
        assert (urgent, lazy) == (fourth + 1, fourth + 2)
        while claims := await work.claim("w", "q", "async", 2):
            taken += [claim.id for claim in claims]
        return taken

    taken = bench.do(claim_all)
    assert taken[:2] == [first, fourth + 1]
    # The job that came back may be passed by others for a moment.
    assert sorted(taken[2:]) == [first, second, third, fourth, fourth + 2]
    assert taken[-1] in (first, fourth + 2)


def test_claim_does_not_step_over_all_that_was_claimed_beside_an_old_transaction(bench: Bench, app: Flask) -> None:
    if app.config.get("TASKER_DRIVER") != "postgresql":
        pytest.skip("SQLite's index loses what is claimed at once")
    bench.worker()
    bench.store.add([bench.new() for _ in range(3000)])
    with closing(connect(app.config["TASKER_DATABASE_URI"])) as old:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM taskworker_meta").fetchone()

        async def entries_read(work: WorkerStore) -> list[int]:
            await work.claim("w", "q", "async", 2900)
            assert work._floors is not None
            (floor,) = work._floors.values()
            read = []
            for sql in (work._claim_behind["async"], work._claim["async"]):
                values = {"priority": floor.priority, "behind": floor.behind, "worker_id": "w", "queue": "q"}
                rows = await work._link.write(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", {**values, "number": 1, "now": 1})
                (found,) = re.findall(r"shared hit=(\d+)", rows[1][0])
                read.append(int(found))
            return read

        behind, from_the_start = bench.do(entries_read)
    assert behind * 2 < from_the_start


def test_claims_from_the_start_take_a_small_share_of_the_time(
    bench: Bench, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    if app.config.get("TASKER_DRIVER") != "postgresql":
        pytest.skip("SQLite's index loses what is claimed at once")
    monkeypatch.setattr("flask_taskworker.store.work.FLOOR_SECONDS", 0.0)
    monkeypatch.setattr("flask_taskworker.store.work.FLOOR_SHARE", 1e9)
    bench.worker()
    bench.store.add([bench.new() for _ in range(10)])

    async def lasts(work: WorkerStore) -> list[float]:
        ends = []
        for _ in range(2):
            await work.claim("w", "q", "async", 3)
            assert work._floors is not None
            (floor,) = work._floors.values()
            ends.append(floor.until)
        return [end - time.monotonic() for end in ends]

    first, second = bench.do(lasts)
    # It is long, but bounded; and a claim that began behind the last one does not make it longer.
    assert first == pytest.approx(second, abs=1e-3)
    assert LONGEST_FLOOR - 10 < first <= LONGEST_FLOOR


def test_requests_to_cancel_are_found_without_stepping_over_what_was_held_beside_an_old_transaction(
    bench: Bench, app: Flask
) -> None:
    if app.config.get("TASKER_DRIVER") != "postgresql":
        pytest.skip("SQLite's index loses what has ended at once")
    bench.worker()
    bench.store.add([bench.new() for _ in range(3000)])
    with closing(connect(app.config["TASKER_DATABASE_URI"])) as old:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM taskworker_meta").fetchone()

        async def pages_read(work: WorkerStore) -> int:
            claims = await work.claim("w", "q", "async", 3000)
            now = bench.now
            await work.finish("w", [Ended(claim, Outcome(OutcomeKind.SUCCEEDED), now, now) for claim in claims[1:]])
            sql = worker_statements.cancel_requests(job_statements.POSTGRESQL)
            values = {"batch": batch_of([(claims[0].id,)])}
            rows = await work._link.read(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", values)
            (execution, *_) = "\n".join(row[0] for row in rows).split("Planning:")
            return max(map(int, re.findall(r"shared hit=(\d+)", execution)))

        pages = bench.do(pages_read)
    # Stepping over them reads a page for each.
    assert pages < 200


def test_claim_says_who_runs_the_job_since_when_and_counts(bench: Bench) -> None:
    bench.worker()
    job_id = bench.add()
    bench.now += 7
    (claim,) = bench.claim()
    record = bench.record(job_id)
    assert (record.state, record.worker_id, record.claim, record.started_at) == ("running", "w", 1, NOW + 7)
    assert (claim.claim, claim.attempt, claim.args) == (1, 1, "[[],{}]")


@pytest.mark.parametrize("state", ["dead", "left", "draining", None])
def test_worker_that_does_not_count_as_alive_claims_nothing(bench: Bench, state: str | None) -> None:
    if state is not None:
        bench.worker(state=state)
    job_id = bench.add()
    assert bench.claim() == []
    assert bench.record(job_id).state == "ready"


def test_two_workers_that_claim_at_once_get_different_jobs(bench: Bench) -> None:
    for worker in "abcd":
        bench.worker(worker)
    bench.store.add([bench.new() for _ in range(40)])
    got: list[int] = []
    start = threading.Barrier(4)

    def claim(worker: str) -> None:
        start.wait(20)
        for _ in range(5):
            got.extend(c.id for c in bench.claim(2, worker=worker))

    threads = [threading.Thread(target=claim, args=(worker,)) for worker in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(got) == len(set(got)) == 40


# -- finishing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [SUCCESS, WITH_RESULT], ids=["plain", "with a result"])
def test_success_is_recorded_once(bench: Bench, outcome: Outcome) -> None:
    bench.worker()
    claim = bench.claimed()
    bench.now += 50
    assert bench.finish(claim, outcome) == {claim.id: "succeeded"}
    record = bench.record(claim.id)
    assert (record.state, record.worker_id, record.failures) == ("succeeded", None, 0)
    assert (record.finished_at, record.expires_at) == (NOW + 50, NOW + 50 + DAY)
    assert bench.store.ending(claim.id).result == outcome.result
    assert bench.finish(claim, outcome) == {}
    assert bench.store.attempts(claim.id) == []


OUTCOMES = {
    "plain success": SUCCESS,
    "success": WITH_RESULT,
    "failure": Outcome(OutcomeKind.FAILED, failure=FAILURE),
    "retry": Outcome(OutcomeKind.RETRYING, delay=timedelta(seconds=1), failure=FAILURE),
    "snooze": Outcome(OutcomeKind.SNOOZED, delay=timedelta(seconds=1)),
    "release": Outcome(OutcomeKind.RELEASED),
    "cancel": Outcome(OutcomeKind.CANCELLED, failure=FAILURE),
}


def test_ending_of_a_lost_claim_changes_nothing(bench: Bench) -> None:
    bench.worker()
    for outcome in OUTCOMES.values():
        old = bench.claimed()
        bench.finish(old, Outcome(OutcomeKind.RELEASED))
        (new,) = bench.claim()
        before = bench.record(old.id)
        assert bench.finish(old, outcome) == {}
        assert bench.record(old.id) == before
        assert bench.store.attempts(old.id) == []
        assert bench.finish(new, SUCCESS) == {new.id: "succeeded"}


@pytest.mark.parametrize("outcome", [SUCCESS, WITH_RESULT, OUTCOMES["failure"]], ids=["plain", "result", "failure"])
def test_late_ending_of_a_rescued_job_counts_while_no_one_has_claimed_it(bench: Bench, outcome: Outcome) -> None:
    """It saves a second execution."""
    bench.worker(state="dead")
    job_id = bench.add()
    bench.rows("UPDATE taskworker_job SET state = 'running', claim = 1, worker_id = 'w' WHERE id = ?", job_id)
    claim = Claim(job_id, "", "t", "q", "async", 0, "[[],{}]", 1, 0, 0, 1, None, NOW, 0, None, None)
    bench.observe()
    assert bench.record(job_id).state == "ready"
    assert bench.finish(claim, outcome) == {job_id: outcome.ending.value}


@pytest.mark.parametrize("ending", [OutcomeKind.RETRYING, OutcomeKind.FAILED])
def test_failure_that_is_recorded_twice_counts_once(bench: Bench, ending: OutcomeKind) -> None:
    """The worker says it again when the answer of the database was lost."""
    bench.worker()
    claim = bench.claimed()
    outcome = Outcome(ending, delay=timedelta(seconds=1) if ending is OutcomeKind.RETRYING else None, failure=FAILURE)
    bench.finish(claim, outcome)
    before = bench.record(claim.id)
    assert bench.finish(claim, outcome) == {}
    assert bench.record(claim.id) == before
    assert (before.failures, len(bench.store.attempts(claim.id))) == (1, 1)


def test_ending_whose_answer_was_lost_is_known_again(bench: Bench) -> None:
    bench.worker()
    for name in ["plain success", "success", "failure", "retry", "cancel"]:
        claim, other = bench.claimed(), bench.claimed()
        ended = [Ended(one, OUTCOMES[name], bench.now, bench.now) for one in (claim, other)]
        bench.finish(claim, OUTCOMES[name])
        assert bench.do(lambda work, ended=ended: work.recorded(ended)) == {claim.id: OUTCOMES[name].ending.state.value}


def test_late_ending_of_a_rescued_job_is_fenced_once_another_has_claimed_it(bench: Bench) -> None:
    bench.worker("old")
    bench.add()
    (old,) = bench.claim(worker="old")
    bench.rows("UPDATE taskworker_worker SET state = 'dead' WHERE id = 'old'")
    bench.observe()
    bench.worker()
    (new,) = bench.claim()
    assert (old.claim, new.claim) == (1, 2)
    assert bench.finish(old, WITH_RESULT) == {}
    assert bench.record(new.id).state == "running"


@pytest.mark.parametrize("late_first", [True, False])
def test_of_two_endings_of_one_job_that_come_together_the_later_claim_counts(bench: Bench, late_first: bool) -> None:
    bench.worker()
    old = bench.claimed()
    bench.finish(old, Outcome(OutcomeKind.RELEASED))
    (new,) = bench.claim()
    both = [Ended(claim, SUCCESS, bench.now, bench.now) for claim in (old, new)]
    recorded = bench.do(lambda work: work.finish("w", both if late_first else both[::-1]))
    assert recorded.states == {new.id: "succeeded"}
    assert bench.record(new.id).state == "succeeded"


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_finished_job_takes_no_other_ending(bench: Bench, state: str) -> None:
    bench.worker()
    claim = bench.claimed()
    bench.finish(claim, Outcome(OutcomeKind(state), failure=None if state == "succeeded" else FAILURE))
    before = bench.record(claim.id)
    for outcome in OUTCOMES.values():
        assert bench.finish(claim, outcome) == {}
    assert bench.record(claim.id) == before


def test_try_that_failed_counts_and_the_job_waits(bench: Bench) -> None:
    bench.worker()
    claim = bench.claimed()
    bench.now += 10
    assert bench.finish(claim, OUTCOMES["retry"]) == {claim.id: "scheduled"}
    record = bench.record(claim.id)
    assert (record.failures, record.run_at, record.finished_at, record.expires_at) == (1, NOW + 1010, None, None)
    assert record.failure_kind == "exception"
    (attempt,) = bench.store.attempts(claim.id)
    assert (attempt.claim, attempt.attempt, attempt.worker_id, attempt.outcome) == (1, 1, "w", "retrying")
    assert json.loads(attempt.error or "")["message"] == "no"


def test_try_counts_once_however_often_its_ending_is_recorded(bench: Bench) -> None:
    """Where a commit gets no answer, the worker repeats it."""
    bench.worker()
    claim = bench.claimed()
    for _ in range(2):
        bench.finish(claim, OUTCOMES["retry"])
    assert bench.record(claim.id).failures == 1
    assert len(bench.store.attempts(claim.id)) == 1


def test_snoozed_and_released_jobs_count_nothing(bench: Bench) -> None:
    bench.worker()
    for outcome, state, run_at in (
        (OUTCOMES["snooze"], "scheduled", NOW + 1000),
        (OUTCOMES["release"], "ready", 0),
        (Outcome(OutcomeKind.RELEASED, delay=timedelta(seconds=2)), "scheduled", NOW + 2000),
        (Outcome(OutcomeKind.SNOOZED, delay=timedelta(0)), "ready", 0),
        (Outcome(OutcomeKind.SNOOZED, delay=timedelta(microseconds=1)), "scheduled", NOW + 1),
    ):
        claim = bench.claimed(queue=str(id(outcome)))
        assert bench.finish(claim, outcome) == {claim.id: state}
        record = bench.record(claim.id)
        assert (record.failures, record.run_at, record.worker_id, record.finished_at) == (0, run_at, None, None)
        assert bench.store.attempts(claim.id) == []


@pytest.mark.parametrize("name", ["retry", "snooze", "release"])
def test_job_that_was_asked_to_stop_does_not_run_again(bench: Bench, name: str) -> None:
    bench.worker()
    claim = bench.claimed()
    assert bench.store.cancel(claim.id) is JobState.RUNNING
    assert bench.finish(claim, OUTCOMES[name]) == {claim.id: "cancelled"}
    record = bench.record(claim.id)
    assert (record.state, record.finished_at, record.expires_at) == ("cancelled", NOW, NOW + DAY)


@pytest.mark.parametrize("name", ["success", "failure"])
def test_job_that_ended_before_it_heard_that_it_should_stop_has_ended_so(bench: Bench, name: str) -> None:
    bench.worker()
    claim = bench.claimed()
    bench.store.cancel(claim.id)
    assert bench.finish(claim, OUTCOMES[name]) == {claim.id: OUTCOMES[name].ending.value}


def test_finished_jobs_are_kept_for_their_time(bench: Bench) -> None:
    bench.worker()
    for outcome, days in [
        (WITH_RESULT, 1),
        (OUTCOMES["failure"], 14),
        (OUTCOMES["cancel"], 1),
        (Outcome(OutcomeKind.SUCCEEDED, keep=timedelta(days=3)), 3),
        (Outcome(OutcomeKind.FAILED, failure=FAILURE, keep=timedelta(0)), 0),
    ]:
        claim = bench.claimed()
        bench.finish(claim, outcome)
        assert bench.record(claim.id).expires_at == NOW + days * DAY


def test_batch_of_endings_says_which_counted(bench: Bench) -> None:
    bench.worker()
    bench.store.add([bench.new() for _ in range(6)])
    claims = bench.claim(6)
    lost = claims[0]._replace(claim=7)
    outcomes = [SUCCESS, SUCCESS, WITH_RESULT, OUTCOMES["failure"], OUTCOMES["retry"], OUTCOMES["release"]]
    ended = [Ended(claim, o, NOW, NOW) for claim, o in zip([lost, *claims[1:]], outcomes, strict=True)]
    states = bench.do(lambda work: work.finish("w", ended)).states
    assert states == {
        claims[1].id: "succeeded",
        claims[2].id: "succeeded",
        claims[3].id: "failed",
        claims[4].id: "scheduled",
        claims[5].id: "ready",
    }
    assert bench.record(lost.id).state == "running"


def said(*numbers: Any) -> ProgressReport:
    return ProgressReport(Progress(*numbers))


def test_progress_is_written_for_the_one_who_runs_the_job(bench: Bench) -> None:
    bench.worker()
    claim = bench.claimed()
    bench.do(lambda work: work.report_progress([(claim, said(1, 2, "é")), (claim._replace(claim=9), said(5))]))
    assert Progress._from_text(bench.record(claim.id).progress) == Progress(1, 2, "é")
    # The success of an atomic job may come before the last that it told; that of another execution counts never.
    bench.finish(claim, WITH_RESULT)
    bench.do(lambda work: work.report_progress([(claim, said(9)), (claim._replace(claim=9), said(5))]))
    assert Progress._from_text(bench.record(claim.id).progress) == Progress(9)


def test_progress_of_a_job_that_waits_for_its_next_try_is_not_changed(bench: Bench) -> None:
    bench.worker()
    claim = bench.claimed()
    bench.finish(claim, Outcome(OutcomeKind.RELEASED))
    bench.do(lambda work: work.report_progress([(claim, said(9))]))
    assert bench.record(claim.id).progress is None


def test_last_progress_comes_with_the_ending(bench: Bench) -> None:
    bench.worker()
    claim = bench.claimed()
    bench.finish(claim, SUCCESS, report=said(2, 2))
    assert Progress._from_text(bench.record(claim.id).progress) == Progress(2, 2)


def test_texts_of_every_kind_come_back_unharmed(bench: Bench) -> None:
    """They travel as JSON inside JSON."""
    bench.worker()
    for text in ('"quotes \\" and \\\\"', '"\\u0000"', '"é 你 \\ud83d\\ude00"', '"' + "x" * 300_000 + '"', '"[1,{}]"'):
        claim = bench.claimed(args=f"[[{text}],{{}}]")
        assert claim.args == f"[[{text}],{{}}]"
        bench.finish(claim, Outcome(OutcomeKind.SUCCEEDED, result=text))
        assert bench.store.ending(claim.id).result == text


SQL = ["'; DROP TABLE taskworker_job; --", '" OR 1=1 --', "%s", ":id", "?", "$1", "a\\'b", "{x}", "%(id)s", "é'"]


def test_words_of_sql_are_only_words(bench: Bench) -> None:
    bench.worker()
    for words in SQL:
        job_id = bench.add(uid=words, task=words, queue=words, unique_key=words, schedule=words, fire_at=1)
        (claim,) = bench.claim(queue=words)
        assert (claim.id, claim.uid, claim.task, claim.queue, claim.schedule) == (job_id, words, words, words, words)
        failure = Failure(kind=words, type=words, message=words, traceback=words)
        bench.finish(claim, Outcome(OutcomeKind.FAILED, failure=failure))
        ending = bench.store.ending(job_id)
        assert Failure._from_text(ending.error, ending.failure_kind) == failure
        assert bench.store.add([bench.new(uid=words, task=words)])[0].id == job_id


# -- becoming due ------------------------------------------------------------------------------------------------------


def test_due_jobs_become_ready_and_others_do_not(bench: Bench) -> None:
    due, later = bench.add(run_at=NOW + 10), bench.add(run_at=NOW + 11)
    assert bench.do(lambda work: work.promote()).ready == []
    bench.now += 10
    assert bench.do(lambda work: work.promote()).number == 1
    assert (bench.record(due).state, bench.record(later).state) == ("ready", "scheduled")
    assert bench.record(due).run_at == NOW + 10


def test_due_jobs_become_ready_in_batches_oldest_first(bench: Bench) -> None:
    bench.store.add([bench.new(run_at=NOW + 1 + i) for i in range(PROMOTE_BATCH + 5)])
    bench.now += 10 * PROMOTE_BATCH
    assert [bench.do(lambda work: work.promote()).number for _ in range(3)] == [PROMOTE_BATCH, 5, 0]


def test_clock_that_is_set_back_hides_no_job_that_was_due_at_once(bench: Bench) -> None:
    bench.worker()
    job_id = bench.add()
    bench.now -= 3_600_000
    assert [claim.id for claim in bench.claim()] == [job_id]


# -- looking -----------------------------------------------------------------------------------------------------------


def test_peek_tells_what_there_is_to_do(bench: Bench) -> None:
    def peek(*may_fire: str) -> Any:
        return bench.do(lambda work: work.peek(json.dumps(may_fire)))

    empty = peek("runtime:t")
    assert (empty.next_due, empty.next_fire) == (None, None)
    assert empty.queues == {"async": (), "sync": ()}
    bench.add(queue="a"), bench.add(queue="a", kind="sync"), bench.add(queue="b"), bench.add(queue="z", kind="sync")
    bench.add(run_at=NOW + 9), bench.add(run_at=NOW + 5)
    add = "INSERT INTO taskworker_schedule (name, task, trigger, args, next_at, source, seen_at, paused) "
    for name, task, next_at, paused in (("x", "t", 7, 0), ("y", "t", 3, 1), ("v", "other", 1, 0), ("w", "t", None, 0)):
        bench.rows(f"{add} VALUES (?,?,'','',?,'runtime',0,?)", name, task, next_at, paused)
    bench.rows(f"{add} VALUES ('declared','t','','',6,'code',0,0)")
    bench.rows(f"{add} VALUES ('removed','t','','',2,'code',0,0)")
    found = peek("runtime:t", "runtime:u")
    assert (found.next_due, found.next_fire) == (NOW + 5, 7)
    assert peek("runtime:t", "code:declared").next_fire == 6
    assert {kind: sorted(names) for kind, names in found.queues.items()} == {"async": ["a", "b"], "sync": ["a", "z"]}
    assert peek().next_fire is None


def test_store_has_a_name_of_its_own(bench: Bench) -> None:
    assert re.fullmatch("[0-9a-f]{32}", bench.store.store_id())


def test_tables_of_a_newer_version_are_refused(bench: Bench, app: Flask) -> None:
    from flask_taskworker.store.drivers import make_driver

    bench.rows("UPDATE taskworker_meta SET value = '999' WHERE name = 'schema_version'")
    driver = make_driver(app.extensions["taskworker"].config)
    with pytest.raises(SchemaError, match="version 999, which a newer Flask-TaskWorker made"):
        driver.prepare()
    driver.close()


# -- steering ----------------------------------------------------------------------------------------------------------


def test_retry_keeps_the_claim_number_so_that_old_endings_stay_fenced(bench: Bench) -> None:
    bench.worker()
    old = bench.claimed()
    bench.finish(old, OUTCOMES["failure"])
    assert bench.store.retry(old.id)
    (new,) = bench.claim()
    assert (new.claim, new.failures) == (2, 0)
    assert bench.finish(old, SUCCESS) == {}
    record = bench.record(old.id)
    assert (record.finished_at, record.expires_at, record.failure_kind) == (None, None, None)


def test_retry_forgets_that_the_job_was_asked_to_stop(bench: Bench) -> None:
    job_id = bench.add()
    bench.store.cancel(job_id)
    assert bench.store.retry(job_id)
    assert bench.record(job_id).cancel_requested == 0


def test_schedule_is_fired_by_the_one_who_moves_it_on(bench: Bench) -> None:
    bench.rows(
        "INSERT INTO taskworker_schedule (name, task, trigger, args, next_at, source, seen_at) VALUES (?,?,?,?,?,?,?)",
        "s", "t", "", "[[],{}]", NOW, "code", NOW,
    )  # fmt: skip
    due = DueSchedule("s", "t", "", "[[],{}]", NOW)

    def fire(fire_at: int) -> Any:
        job = bench.new(schedule="s", fire_at=fire_at)
        firing = Firing(schedule=due, next_at=NOW + 100, jobs=[job], overlap=True)
        return bench.do(lambda work: work.fire([firing])).made

    assert [job.fire_at for job in fire(NOW)["s"]] == [NOW]
    assert fire(NOW + 1) == {}
    assert counts_of(bench.store)["ready"] == 1
    ((next_at, last_at),) = bench.rows("SELECT next_at, last_at FROM taskworker_schedule")
    assert (next_at, last_at) == (NOW + 100, NOW)


@pytest.mark.parametrize("state", ["scheduled", "ready", "running", "succeeded"])
def test_retry_is_for_failed_and_cancelled_jobs(bench: Bench, state: str) -> None:
    bench.worker()
    job_id = bench.add(run_at=NOW + 5 if state == "scheduled" else 0)
    if state in ("running", "succeeded"):
        (claim,) = bench.claim()
        if state == "succeeded":
            bench.finish(claim, SUCCESS)
    assert not bench.store.retry(job_id)
    assert bench.record(job_id).state == state
    with pytest.raises(JobNotFound):
        bench.store.retry(job_id + 1)


# -- rescue ------------------------------------------------------------------------------------------------------------


def test_job_of_a_dead_worker_waits_longer_with_each_crash(bench: Bench) -> None:
    bench.worker(state="dead")
    for crashes in range(1, 14):
        bench.rows("DELETE FROM taskworker_job")
        bench.store.add([bench.new() for _ in range(50)])
        bench.rows("UPDATE taskworker_job SET state = 'running', worker_id = 'w', crashes = ?", crashes - 1)
        rescued = bench.observe()
        assert len(rescued) == 50
        waits = {record.run_at - NOW if record.run_at else 0 for record in rescued}
        seconds = 0 if crashes == 1 else min(2 * 2**crashes, 3600)
        assert all(800 * seconds <= wait <= 1200 * seconds for wait in waits)
        assert len(waits) > 10 or crashes == 1, "not all at once"
        assert {(record.state, record.crashes) for record in rescued} == {
            ("scheduled" if crashes > 1 else "ready", crashes)
        }


def test_job_of_a_worker_that_left_in_order_counts_no_crash(bench: Bench) -> None:
    bench.worker(state="left")
    job_id = bench.add()
    bench.rows("UPDATE taskworker_job SET state = 'running', worker_id = 'w', crashes = 5")
    bench.observe()
    record = bench.record(job_id)
    assert (record.state, record.crashes, record.run_at, record.worker_id) == ("ready", 5, 0, None)


@pytest.mark.parametrize("state", ["dead", "left"])
def test_rescued_job_that_was_asked_to_stop_is_cancelled(bench: Bench, state: str) -> None:
    bench.worker(state=state)
    job_id = bench.add()
    bench.rows("UPDATE taskworker_job SET state = 'running', worker_id = 'w', cancel_requested = 1")
    bench.observe()
    record = bench.record(job_id)
    assert (record.state, record.finished_at, record.expires_at) == ("cancelled", NOW, NOW + DAY)


def test_rescue_leaves_the_jobs_of_the_living_alone(bench: Bench) -> None:
    bench.worker("a11e")
    bench.worker("d4a1", state="draining")
    mine, theirs = bench.add(), bench.add()
    for job_id, worker in ((mine, "a11e"), (theirs, "d4a1")):
        bench.rows("UPDATE taskworker_job SET state = 'running', worker_id = ? WHERE id = ?", worker, job_id)
    assert bench.observe() == []
    assert {bench.record(job_id).state for job_id in (mine, theirs)} == {"running"}


@pytest.mark.sqlite_only
def test_worker_whose_lock_is_free_is_dead(bench: Bench) -> None:
    """On SQLite the kernel frees the lock; a missing file proves nothing."""
    bench.worker("gone")
    bench.worker("unknown")
    live = Path(f"{bench.store.driver.key}-live")
    live.mkdir(exist_ok=True)
    (live / "gone").touch()
    bench.observe()
    assert {worker.id: worker.state for worker in bench.store.workers()} == {"gone": "dead", "unknown": "alive"}
    assert not (live / "gone").exists()


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_only_finished_jobs_whose_time_is_over_are_pruned(bench: Bench) -> None:
    bench.worker()
    over = bench.claimed()
    bench.finish(over, Outcome(OutcomeKind.FAILED, failure=FAILURE, keep=timedelta(milliseconds=5)))
    fresh = bench.claimed()
    bench.finish(fresh, Outcome(OutcomeKind.FAILED, failure=FAILURE, keep=timedelta(milliseconds=6)))
    waiting = bench.add()
    bench.now += 5
    assert bench.do(lambda work: work.prune()) == 1
    with pytest.raises(JobNotFound):
        bench.record(over.id)
    assert bench.store.attempts(over.id) == []
    assert len(bench.store.attempts(fresh.id)) == 1
    assert bench.record(waiting).state == "ready"


def test_pruning_goes_in_small_batches(bench: Bench) -> None:
    bench.store.add([bench.new() for _ in range(PRUNE_BATCH + 3)])
    bench.rows("UPDATE taskworker_job SET state = 'succeeded', finished_at = 1, expires_at = 1")
    assert [bench.do(lambda work: work.prune()) for _ in range(3)] == [PRUNE_BATCH, 3, 0]


def test_numbers_of_pruned_jobs_are_not_used_again(bench: Bench) -> None:
    last = bench.store.add([bench.new() for _ in range(5)])[-1].id
    bench.rows("DELETE FROM taskworker_job")
    assert bench.add() == last + 1


# -- what the tables refuse --------------------------------------------------------------------------------------------


def test_row_that_contradicts_itself_is_refused(bench: Bench) -> None:
    bench.add()
    for change in [
        "state = 'running'",
        "state = 'held', finished_at = 1",
        "worker_id = 'w'",
        "state = 'succeeded'",
        "finished_at = 1",
        "state = 'done'",
        "kind = 'thread'",
        "uid = NULL",
    ]:
        with pytest.raises(Exception, match="(?i)constraint"):
            bench.rows(f"UPDATE taskworker_job SET {change}")


def test_job_that_the_tables_refuse_is_not_accepted(bench: Bench) -> None:
    with pytest.raises(NotAccepted, match="(?i)The job was not accepted.*constraint"):
        bench.add(kind="thread")


# -- plans -------------------------------------------------------------------------------------------------------------


def hot() -> dict[str, str]:
    """The statements that run all the time or while a caller waits."""
    d = job_statements.SQLITE
    return {
        "add_job": job_statements.ADD_JOB,
        "due_schedules": job_statements.due_schedules(d),
        "advance_schedules": job_statements.advance_schedules(d),
        "add_scheduled_jobs": job_statements.add_scheduled_jobs(d),
        "existing_job": job_statements.EXISTING_JOB,
        "job_record": job_statements.JOB_RECORD,
        "job_ending": job_statements.JOB_ENDING,
        "attempts": job_statements.ATTEMPTS,
        "next_due": job_statements.NEXT_DUE,
        "waiting_by_queue": job_statements.waiting_by_queue(),
        "cancel": job_statements.CANCEL,
        "retry": job_statements.RETRY,
        "peek": job_statements.peek(d),
        "claim async": job_statements.claim(d, "async"),
        "claim sync": job_statements.claim(d, "sync"),
        "promote": job_statements.promote(d),
        "finish_succeeded": job_statements.finish_succeeded(d),
        "finish": job_statements.finish(d),
        "report_progress": job_statements.report_progress(d),
        "expired_jobs": job_statements.expired_jobs(d),
        "cancel_requests": worker_statements.cancel_requests(d),
        "held_jobs": worker_statements.HELD_JOBS,
        "held_by_the_dead": worker_statements.HELD_BY_THE_DEAD,
        "sweep": worker_statements.sweep(d, "dead"),
        "workers": worker_statements.WORKERS,
    }


@pytest.fixture(scope="module")
def tables() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in ddl(job_statements.SQLITE):
            connection.execute(statement)
        yield connection


@pytest.mark.parametrize("name", hot())
def test_no_statement_walks_through_all_jobs(tables: sqlite3.Connection, name: str) -> None:
    """A million finished or future rows must not slow anything down."""
    sql = hot()[name]
    parameters = dict.fromkeys(re.findall(r":([a-z_]+)", sql))
    plan = [row[3] for row in tables.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    assert not [step for step in plan if re.match(r"SCAN (taskworker_job|j)\b(?! USING.* INDEX)", step)], plan
    # Some sort what they were given, or the few rows of a small table.
    if name not in ("workers", "add_scheduled_jobs"):
        assert not [step for step in plan if "TEMP B-TREE FOR ORDER BY" in step], plan


def test_a_claim_knows_nothing_of_limits(tables: sqlite3.Connection) -> None:
    """What is held is in no index that a claim uses, so jobs without limits pay nothing for those with."""
    sql = job_statements.claim(job_statements.SQLITE, "async")
    conditions = sql.partition(" WHERE ")[2].partition(" RETURNING ")[0]
    assert conditions == (
        "id IN (SELECT id FROM taskworker_job WHERE state = 'ready' AND solo = 0 AND queue = :queue AND kind = 'async' "
        "ORDER BY priority DESC, id LIMIT :number) AND state = 'ready' "
        "AND EXISTS (SELECT 1 FROM taskworker_worker WHERE id = :worker_id AND state = 'alive') "
        "AND NOT EXISTS (SELECT name FROM taskworker_queue WHERE paused = 1 AND name = :queue)"
    )
    parameters = dict.fromkeys(re.findall(r":([a-z_]+)", sql))
    plan = [row[3] for row in tables.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    assert plan == [
        "SEARCH taskworker_job USING INTEGER PRIMARY KEY (rowid=?)",
        "LIST SUBQUERY 1",
        "SEARCH taskworker_job USING INDEX taskworker_job_ready (queue=? AND kind=?)",
        "SCALAR SUBQUERY 2",
        "SEARCH taskworker_worker USING INDEX sqlite_autoindex_taskworker_worker_1 (id=?)",
        "SCALAR SUBQUERY 3",
        "SEARCH taskworker_queue USING INDEX sqlite_autoindex_taskworker_queue_1 (name=?)",
    ]
