"""What limits cost: the same with a short line and with a long one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from flask_taskworker.store.admission import Admission
from flask_taskworker.store.migrations import ddl
from flask_taskworker.store.statements import jobs as job_statements
from flask_taskworker.store.statements.jobs import SQLITE

NOW = 1_700_000_000_000
COLUMNS = "id, uid, task, queue, kind, state, args, created_at, marks"


class Steps:
    """A database in memory with *number* jobs in line of one key, and what an act takes there in SQLite's machine."""

    def __init__(self, number: int) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ddl(SQLITE):
            self.connection.execute(statement)
        many = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number}) "
        self.connection.execute(
            f"INSERT INTO taskworker_job ({COLUMNS}) {many} SELECT i, i, 't', 'q', 'async', 'held', '', {NOW}, 1 FROM n"
        )
        self.connection.execute(
            f"INSERT INTO taskworker_permit (job_id, lane, queue, priority, phase) {many} "
            "SELECT i, 'shop:flood', 'q', 0, 1 FROM n"
        )
        self.connection.execute(
            "INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) VALUES ('shop', 1, 'code', 0, 0)"
        )
        self.connection.execute(
            f"INSERT INTO taskworker_job ({COLUMNS}) VALUES (-1, 'other', 't', 'q', 'async', 'held', '', {NOW}, 1)"
        )
        self.connection.execute(
            "INSERT INTO taskworker_permit (job_id, lane, queue, priority) VALUES (-1, 'shop:other', 'q', 0)"
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


def pass_on(lab: Steps) -> None:
    """Admit the job of the other lane, and end it: its lane is looked at in the same transaction."""
    Admission(SQLITE).pass_on(lab.run, [(-1, "succeeded", 1)], lambda: NOW, None)


@pytest.mark.parametrize("long", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["admit", "pass on", "peek", "claim"])
def test_long_line_of_one_key_costs_the_others_nothing(what: str, long: int) -> None:
    steps = []
    claim = {"worker_id": "w", "queue": "q", "number": 10, "now": NOW}
    for number in (1_000, long):
        lab = Steps(number)
        acts: dict[str, Callable[[], object]] = {
            "admit": lambda lab=lab: Admission(SQLITE).admit(lab.run, lambda: NOW),  # type: ignore[misc]
            "pass on": lambda lab=lab: pass_on(lab),  # type: ignore[misc]
            "peek": lambda lab=lab: lab.run(job_statements.peek(SQLITE), {"may_fire": "[]"}),  # type: ignore[misc]
            "claim": lambda lab=lab: lab.run(job_statements.claim(SQLITE, "async"), claim),  # type: ignore[misc]
        }
        steps.append(lab.of(acts[what]))
        if what == "admit":
            assert lab.run("SELECT state FROM taskworker_job WHERE id = -1", {}) == [("ready",)]
        lab.connection.close()
    assert steps[1] <= 1.05 * steps[0]
