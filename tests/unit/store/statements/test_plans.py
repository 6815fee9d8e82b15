"""With many rows every statement of the pages goes through an index, and none through the table of jobs."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.core.filters import JobFilter
from flask_taskworker.ops import browse
from flask_taskworker.ops.browse import Browser
from flask_taskworker.store.driver import Parameters, Row
from flask_taskworker.store.sql import Store
from tests.support.stored import Rows, store_many

pytestmark = pytest.mark.both_databases

NUMBER = 50_000

# Every state, task, queue and name is there, most of them rarely.
RARE = (
    "CASE WHEN i - i / 100 * 100 < 3 THEN 'failed' WHEN i - i / 100 * 100 < 5 THEN 'cancelled' "
    "WHEN i - i / 100 * 100 < 8 THEN 'ready' WHEN i - i / 100 * 100 < 11 THEN 'scheduled' "
    "WHEN i - i / 1000 * 1000 = 99 THEN 'running' ELSE 'succeeded' END"
)
LIVE = "('ready', 'scheduled', 'running')"
COLUMNS = {
    "state": "state",
    "worker_id": "CASE WHEN state = 'running' THEN 'w1' END",
    "finished_at": f"CASE WHEN state IN {LIVE} THEN NULL ELSE i + 5 END",
    "expires_at": f"CASE WHEN state IN {LIVE} THEN NULL ELSE 4000000000000 END",
    "failure_group": "CASE WHEN state = 'failed' THEN 'g' || (i / 5000) END",
    "schedule": "CASE WHEN i - i / 50 * 50 = 20 THEN 's' || (i / 10000) END",
    "fire_at": "CASE WHEN i - i / 50 * 50 = 20 THEN i END",
    "run_at": "i",
    "failures": "i - i / 3 * 3",
    "discarded": "CASE WHEN i - i / 100 * 100 = 2 THEN 1 ELSE 0 END",
}

FILTERS = [
    *("", "state:ready", "state:scheduled", "state:retrying", "state:running", "state:succeeded", "state:failed"),
    *("state:cancelled", "state:failed,cancelled", "task:app.t3", "task:app.*", "task:gone", "queue:q2"),
    *("schedule:s1", "schedule:s1 state:failed", "worker:w1", "worker:w1 state:succeeded", "group:g3", "unique:k"),
    *("uid:u40000", "id:17", "attempts:2", "after:-1h", "before:1970-01-01T00:00:10", "discarded:yes", "args.x:30000"),
    *(
        "discarded:yes state:failed",
        "parent:30000",
        "parent:5 state:failed",
        "state:ready task:app.t3 queue:q1",
        "state:failed before:1970-01-01T00:00:10",
    ),
]


@pytest.fixture
def store(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> Store:
    found: Store = app.extensions["taskworker"].store
    found.driver.prepare()
    source = f"(SELECT i, {RARE} AS state FROM n) AS n"
    store_many(rows, NUMBER, source=source, **COLUMNS)
    return found


class Plans:
    """A driver's reads: each explained, and its steps in SQLite's machine counted."""

    def __init__(self, store: Store, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, list[str]] = {}
        self.steps: dict[str, int] = {}
        self._connection = sqlite3.connect(database)
        self._counted = 0
        self._connection.set_progress_handler(self._count, 100)
        self._read = store.driver.read
        monkeypatch.setattr(store.driver, "read", self.read)

    def _count(self) -> None:
        self._counted += 100

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        self.found[sql] = [row[3] for row in self._read(f"EXPLAIN QUERY PLAN {sql}", parameters)]
        self._counted = 0
        found = self._connection.execute(sql, dict(parameters)).fetchall()
        self.steps[sql] = max(self._counted, self.steps.get(sql, 0))
        return found

    def close(self) -> None:
        self._connection.close()

    def through_the_table(self) -> Iterator[tuple[str, str]]:
        """Steps that read jobs without an index, or all of them by an index that holds all."""
        for sql, steps in self.found.items():
            # Aliases of the table in these statements.
            names = {"taskworker_job", *re.findall(r"taskworker_job AS (\w+)", sql)}
            for step in steps:
                scan = re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", step)
                if scan and scan[1] in names and scan[2] not in PARTIAL:
                    yield sql, step

    def long(self) -> list[tuple[int, str]]:
        """Statements that took as many steps as a look at every job takes."""
        return [(steps, sql) for sql, steps in self.steps.items() if steps > 2 * NUMBER]


@pytest.fixture
def plans(store: Store, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plans]:
    for name, number in {"WINDOW": 1_000, "FEW": 500, "ARGS_WINDOW": 500, "GROUPED": 500, "MOST": 500}.items():
        monkeypatch.setattr(browse, name, number)
    found = Plans(store, database, monkeypatch)
    yield found
    found.close()


PARTIAL = {
    *("taskworker_job_ready", "taskworker_job_suspect", "taskworker_job_due", "taskworker_job_held"),
    *(
        "taskworker_job_gone",
        "taskworker_job_fire",
        "taskworker_job_ended",
        "taskworker_job_failure",
        "taskworker_job_discarded",
    ),
}
"""Each holds the rows of some states; where one is read from its beginning, a LIMIT ends that."""


@pytest.mark.sqlite_only
def test_no_statement_of_the_pages_goes_through_the_table(store: Store, plans: Plans) -> None:
    browser = Browser(store)
    for text in FILTERS:
        chosen = JobFilter.parse(text, 60_000)
        browser.jobs(chosen, names=lambda _: ("x",))
        browser.jobs(chosen, before=30_000, names=lambda _: ("x",))
        next(browser.ids(chosen, names=lambda _: ("x",)), None)
    calls: list[Any] = [browser.state_counts, browser.tasks_waiting, browser.queues]
    calls += [
        browser.running,
        lambda: browser.schedule_runs(["a"]),
        store.workers,
        store.schedules,
        browser.mails,
        browser.audit,
    ]
    for call in calls:
        call()
    browser.failures(0)
    browser.job(17)
    browser.children(browser.job(18)._replace(record=browser.job(18).record._replace(claim=1)), limit=20)
    browser.jobs_by_id([5, 7])
    browser.mails(address="x", before="u5")
    assert len(plans.found) > 50
    assert list(plans.through_the_table()) == []
    assert plans.long() == []


@pytest.mark.sqlite_only
def test_the_check_of_plans_finds_a_look_at_every_job(store: Store, plans: Plans) -> None:
    store.driver.read("SELECT count(*) FROM taskworker_job AS j WHERE priority = 5", {})
    assert len(list(plans.through_the_table())) == len(plans.long()) == 1
    # By its index, but all of it.
    store.driver.read("SELECT id FROM taskworker_job WHERE id > 0 AND state = 'running' ORDER BY id DESC LIMIT 60", {})
    assert len(plans.long()) == 2
