"""Batches and edges by themselves: what an ending costs, and two that come at once. On every database alike."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from flask import Flask

from flask_taskworker.client.rows import calls_of
from flask_taskworker.core.batches import BatchRow
from flask_taskworker.core.rows import FAR_MS, LIMITED, MEMBER, PARENT, WAITS, After, Member, Outcome, OutcomeKind
from flask_taskworker.store.driver import Parameters, Row, Run
from flask_taskworker.store.flows import PIECE, Flows
from flask_taskworker.store.migrations import ddl
from flask_taskworker.store.sql import Store
from flask_taskworker.store.statements.flows import BATCH_ROW, lock_batches
from flask_taskworker.store.statements.jobs import SQLITE
from tests.unit.store.test_work import FAILURE, NOW, SUCCESS, Bench, Rows

FAILED = Outcome(OutcomeKind.FAILED, failure=FAILURE)


class Lab(Bench):
    """A store with batches."""

    def batch(self, **columns: Any) -> int:
        self.store.driver.prepare()
        columns = {"name": "b", "calls": "{}", "created_at": NOW, "sealed": 0, **columns}
        marks = ", ".join("?" for _ in columns)
        sql = f"INSERT INTO taskworker_batch ({', '.join(columns)}) VALUES ({marks}) RETURNING id"
        number: int = self.rows(sql, *columns.values())[0][0]
        return number

    def member(self, batch: int, **fields: Any) -> int:
        return self.add(member=Member(batch, 0), **{"marks": MEMBER, **fields})

    def child(self, *parents: int, when: str = "succeeded", **fields: Any) -> int:
        return self.add(marks=WAITS, run_at=FAR_MS, after=After(parents, when, 0), **fields)

    def seal(self, batch: int) -> None:
        self.store.change(lambda flows: flows.seal(batch))

    def row(self, batch: int) -> BatchRow:
        return BatchRow._make(self.store.driver.read(BATCH_ROW, {"id": batch})[0])


@pytest.fixture
def lab(app: Flask, idle_worker: object, store: Store, rows: Rows) -> Iterator[Lab]:
    lab = Lab(store, rows)
    lab.worker()
    yield lab
    store.driver.close()


@pytest.mark.both_databases
def test_job_that_is_marked_while_it_runs_is_followed(lab: Lab) -> None:
    for outcome in (SUCCESS, Outcome(OutcomeKind.SUCCEEDED, result="1"), FAILED):
        claim = lab.claimed()
        child, alarm = lab.child(claim.id), lab.child(claim.id, when="failed")
        assert lab.finish(claim, outcome) == {claim.id: outcome.ending.value}
        states = [lab.record(job_id).state for job_id in (child, alarm)]
        assert states == (["cancelled", "ready"] if outcome is FAILED else ["ready", "cancelled"])
        lab.rows("DELETE FROM taskworker_job")


@pytest.mark.both_databases
def test_ending_said_twice_is_counted_once(lab: Lab) -> None:
    batch = lab.batch()
    lab.member(batch)
    lab.member(batch)
    (claim,) = lab.claim()
    lab.seal(batch)
    lab.finish(claim, SUCCESS)
    lab.finish(claim, SUCCESS)
    assert lab.row(batch).counts == (2, 1, 0, 0)
    (claim,) = lab.claim()
    lab.finish(claim, FAILED)
    assert lab.row(batch).state == "failed"


@pytest.mark.both_databases
def test_rescue_that_ends_a_job_is_counted(lab: Lab) -> None:
    batch = lab.batch()
    lab.member(batch, at_most_once=1)
    (claim,) = lab.claim()
    child = lab.child(claim.id)
    lab.seal(batch)
    lab.rows("UPDATE taskworker_worker SET state = 'dead'")
    lab.observe()
    assert lab.row(batch).counts == (1, 0, 1, 0)
    assert lab.record(child).state == "cancelled"


@pytest.mark.both_databases
def test_limited_child_goes_in_line_when_it_is_released(lab: Lab) -> None:
    claim = lab.claimed()
    child = lab.child(claim.id, lane="shop")
    lab.rows("UPDATE taskworker_job SET marks = marks | ? WHERE id = ?", LIMITED, child)
    lab.finish(claim, SUCCESS)
    assert lab.record(child).state == "held"
    assert lab.rows("SELECT phase FROM taskworker_permit") == [(0,)]


@pytest.mark.both_databases
def test_much_is_cancelled_a_piece_at_a_time(lab: Lab) -> None:
    claim = lab.claimed()
    after = After((claim.id,), "succeeded", 0)
    lab.store.add([lab.new(marks=WAITS, run_at=FAR_MS, after=after) for _ in range(3 * PIECE)])
    lab.finish(claim, FAILED)
    pieces = []
    while lab.store.go_on():
        pieces.append(lab.rows("SELECT count(*) FROM taskworker_job WHERE state = 'cancelled'")[0][0])
    assert pieces == [2 * PIECE, 3 * PIECE]


@pytest.mark.both_databases
def test_what_was_not_followed_is_found_and_followed(lab: Lab) -> None:
    batch = lab.batch()
    parent = lab.member(batch)
    child = lab.child(parent)
    lab.seal(batch)
    sql = "UPDATE taskworker_job SET state = 'succeeded', finished_at = ?, expires_at = ? WHERE id = ?"
    lab.rows(sql, NOW, FAR_MS, parent)
    assert lab.store.change(lambda flows: flows.tidy((0, 0)))[0] == [parent]
    assert lab.record(child).state == "ready"
    assert lab.row(batch).state == "succeeded"
    assert lab.store.change(lambda flows: flows.tidy((0, 0)))[0] == []


@pytest.mark.both_databases
def test_callback_is_younger_than_every_ending_that_its_batch_has_waited_for(lab: Lab) -> None:
    batch = lab.batch(calls=json.dumps(calls_of({"end": lab.new()})))
    driver, moment = lab.store.driver, [NOW]

    def body(run: Run) -> None:
        def behind_another_process(sql: str, parameters: Parameters) -> list[Row]:
            rows = run(sql, parameters)
            if sql == lock_batches(driver.dialect):
                # That one has counted its ending, and let go of the lock.
                moment[0] += 1_000
            return rows

        Flows(driver.dialect, behind_another_process, clock=lambda: moment[0], keep=1, keep_failed=1).seal(batch)

    driver.transaction(body)
    sql = "SELECT b.ended_at, j.created_at FROM taskworker_batch AS b CROSS JOIN taskworker_job AS j"
    assert lab.rows(sql) == [(NOW + 1_000, NOW + 1_000)]


@pytest.mark.both_databases
def test_batches_are_pruned_after_their_jobs(lab: Lab) -> None:
    batch = lab.batch()
    lab.member(batch)
    (claim,) = lab.claim()
    lab.seal(batch)
    lab.finish(claim, SUCCESS)
    lab.now += 400 * 24 * 3_600_000
    lab.store.change(lambda flows: flows.tidy((0, 0)))
    assert lab.rows("SELECT count(*) FROM taskworker_batch") == [(1,)]
    assert lab.do(lambda work: work.prune()) == 1
    lab.store.change(lambda flows: flows.tidy((0, 0)))
    assert lab.rows("SELECT count(*) FROM taskworker_batch") == [(0,)]
    assert lab.rows("SELECT count(*) FROM taskworker_member") == [(0,)]


@pytest.mark.both_databases
def test_two_last_endings_at_once_call_back_once(lab: Lab) -> None:
    end = lab.new(uid="x")
    calls = json.dumps(calls_of({"end": end, "success": end}))
    for _ in range(30):
        batch = lab.batch(calls=calls)
        ids = [lab.member(batch), lab.member(batch)]
        last = lab.child(*ids)
        lab.seal(batch)
        barrier = threading.Barrier(2)

        def finish(job_id: int, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(20)
            lab.store.change(lambda flows: _succeed(flows, job_id))

        threads = [threading.Thread(target=finish, args=(job_id,)) for job_id in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lab.row(batch).counts == (2, 2, 0, 0)
        uids = lab.rows("SELECT uid FROM taskworker_job WHERE uid LIKE ? ORDER BY uid", f"batch:{batch}:%")
        assert uids == [(f"batch:{batch}:1:end",), (f"batch:{batch}:1:success",)]
        assert lab.record(last).state == "ready"


def _succeed(flows: Flows, job_id: int) -> None:
    sql = (
        "UPDATE taskworker_job SET state = 'succeeded', finished_at = :now, expires_at = :now WHERE id = :id "
        "RETURNING id, state, marks"
    )
    flows.changed(flows.run(sql, {"now": NOW, "id": job_id}))


class Steps:
    """A database in memory with a batch of *number* jobs, and what an act takes there in SQLite's machine."""

    def __init__(self, number: int) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ddl(SQLITE):
            self.connection.execute(statement)
        many = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number}) "
        self.connection.execute(
            "INSERT INTO taskworker_job (id, uid, task, queue, kind, state, worker_id, args, created_at, marks, claim) "
            f"{many} SELECT i, i, 't', 'q', 'async', 'running', 'w', '', {NOW}, {MEMBER | PARENT}, 1 FROM n"
        )
        self.connection.execute(f"INSERT INTO taskworker_member (job_id, batch_id) {many} SELECT i, 1 FROM n")
        self.connection.execute(
            f"INSERT INTO taskworker_edge (parent_id, child_id, rule) VALUES (500, {number + 1}, 'succeeded')"
        )
        self.connection.execute("INSERT INTO taskworker_wait (job_id, needs) VALUES (?, ?)", (number + 1, number))
        self.connection.execute(
            "INSERT INTO taskworker_batch (name, calls, created_at, sealed, total) VALUES ('b', '{}', 0, 1, ?)",
            (number,),
        )

    def run(self, sql: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, dict(parameters)).fetchall()

    def of(self, act: Callable[[], object]) -> int:
        counted = 0

        def count() -> None:
            nonlocal counted
            counted += 1

        self.connection.set_progress_handler(count, 1)
        act()
        self.connection.set_progress_handler(None, 1)
        return counted


@pytest.mark.parametrize(
    "largest", [100_000, pytest.param(1_000_000, marks=(pytest.mark.slow, pytest.mark.timeout(300)))]
)
def test_ending_costs_the_same_in_a_large_batch(largest: int) -> None:
    steps = []
    for number in (1_000, largest):
        lab = Steps(number)
        flows = Flows(SQLITE, lab.run, clock=lambda: NOW, keep=1, keep_failed=1)
        steps.append(lab.of(lambda flows=flows: flows.changed([(500, "succeeded", MEMBER | PARENT)])))  # type: ignore[misc]
        assert lab.run("SELECT ok FROM taskworker_batch", {}) == [(1,)]
        lab.connection.close()
    assert steps[1] <= 1.05 * steps[0]
