"""What the tables themselves refuse, so that no code has to look for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_taskworker.store.driver import RowRefused
from flask_taskworker.store.schema import metadata
from flask_taskworker.store.sql import Store

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]
REFUSED = (sqlite3.IntegrityError, psycopg.DataError, psycopg.IntegrityError)


@pytest.fixture
def job(app: Flask, idle_worker: object, store: Store, rows: Rows) -> None:
    store.driver.prepare()
    rows("INSERT INTO taskworker_job (uid, task, queue, kind, state, args, created_at) VALUES (?,?,?,?,?,?,?)",
         "u", "t", "q", "sync", "ready", "[[],{}]", 1)  # fmt: skip


def test_tables_refuse_what_no_job_can_have(job: None, rows: Rows) -> None:
    for column, value in [
        ("priority", "'high'"),
        ("failures", "'many'"),
        ("timeout", "'soon'"),
        ("created_at", "'yesterday'"),
        ("kind", "'thread'"),
        ("state", "'lost'"),
        ("solo", "2"),
        ("discarded", "3"),
        ("cancel_requested", "-1"),
        ("state", "'running'"),
        ("state", "'succeeded'"),
        ("worker_id", "'w'"),
        ("finished_at", "5"),
        ("task", "NULL"),
    ]:
        with pytest.raises(REFUSED):
            rows(f"UPDATE taskworker_job SET {column} = {value}")


def test_refusal_of_a_table_is_distinguished_from_other_errors(job: None, store: Store) -> None:
    with pytest.raises(RowRefused):
        store.driver.write("UPDATE taskworker_job SET kind = :kind", {"kind": "thread"})


def test_tables_of_sqlite_are_strict(app: Flask, idle_worker: object, store: Store, rows: Rows, driver: str) -> None:
    if driver != "sqlite":
        pytest.skip("PostgreSQL's always are")
    store.driver.prepare()
    strict = rows("SELECT name FROM pragma_table_list WHERE strict = 1 AND name LIKE 'taskworker%'")
    assert {name for (name,) in strict} == set(metadata.tables)


def test_what_may_be_long_is_behind_all_other_columns_of_a_job() -> None:
    """SQLite reads through a value of a megabyte to find the columns behind it: see sqlite.org/fileformat2.html."""
    assert [column.name for column in metadata.tables["taskworker_job"].columns][-4:] == [
        "progress",
        "args",
        "result",
        "error",
    ]
