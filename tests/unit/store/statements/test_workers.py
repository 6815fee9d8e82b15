"""The statements of workers' lives, on a database of each kind."""

from __future__ import annotations

from typing import Any

import pytest

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.store.sql import Store
from flask_taskworker.store.statements import workers as statements

pytestmark = [pytest.mark.both_databases, pytest.mark.usefixtures("idle_worker")]

ROW = {"id": "w1", "host": "web1", "pid": 7, "now": 1_000, "server_started_at": None, "info": "{}"}


@pytest.fixture
def ready(idle_worker: BackgroundTaskWorker, store: Store) -> Store:
    store.driver.prepare()
    store.driver.write(statements.ADD_WORKER, ROW)
    return store


def beat(store: Store) -> list[Any]:
    return list(store.driver.write(statements.BEAT, ROW))


def test_worker_that_registers_twice_has_one_row(ready: Store) -> None:
    ready.driver.write(statements.ADD_WORKER, ROW)
    assert len(ready.driver.read("SELECT id FROM taskworker_worker", {})) == 1


def test_beat_of_a_worker_that_was_given_up_says_so(ready: Store) -> None:
    assert [tuple(row) for row in beat(ready)] == [(1, None, None, None)]
    ready.driver.write(statements.GIVE_UP, ROW)
    assert beat(ready) == []


def test_draining_worker_still_beats(ready: Store) -> None:
    ready.driver.write(statements.START_DRAINING, ROW)
    assert [tuple(row) for row in beat(ready)] == [(1, None, None, None)]
    assert [row[0] for row in ready.driver.read("SELECT state FROM taskworker_worker", {})] == ["draining"]


def test_worker_is_deregistered_unless_it_holds_a_job(ready: Store) -> None:
    ready.driver.write(statements.REMOVE_WORKER, ROW)
    assert ready.driver.read("SELECT id FROM taskworker_worker", {}) == []
