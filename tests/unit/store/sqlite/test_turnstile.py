"""Waiting for SQLite's write lock behind others that wait."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flask_taskworker.store.sqlite.commits import patiently
from flask_taskworker.store.sqlite.forks import ForkSafeConnection
from flask_taskworker.store.sqlite.turnstile import LONGEST_LINE, Turn
from tests.support.waiting import wait_for

TRIES = 20


class Counting(ForkSafeConnection):
    """Counts how often the lock is tried, and is free after some tries."""

    tries = 0
    free_after = 1_000_000

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        self.tries += 1
        if self.tries <= self.free_after:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        return super().execute(sql, parameters)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Counting]:
    with closing(sqlite3.connect(tmp_path / "a.db", factory=Counting, check_same_thread=False)) as connection:
        connection.directory = str(tmp_path)
        yield connection


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[int]:
    """Another process stands in the turnstile."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


@pytest.mark.usefixtures("taken")
def test_process_behind_another_rarely_tries_the_lock(connection: Counting) -> None:
    waited = LONGEST_LINE * TRIES
    with pytest.raises(sqlite3.OperationalError):
        patiently(connection, "SELECT 1", {}, lambda: waited)
    assert connection.tries <= TRIES + 2


@pytest.mark.usefixtures("taken")
def test_process_that_is_frozen_in_the_turnstile_stops_no_other(connection: Counting) -> None:
    connection.free_after = 2
    assert patiently(connection, "SELECT 1", {}, lambda: 60.0) == [(1,)]


def test_next_one_passes_when_the_first_has_the_lock(connection: Counting, taken: int) -> None:
    connection.free_after = 1
    rows: list[object] = []
    thread = threading.Thread(target=lambda: rows.extend(patiently(connection, "SELECT 1", {}, lambda: 60.0)))
    thread.start()
    wait_for(lambda: connection.tries, "it has met the lock")
    fcntl.flock(taken, fcntl.LOCK_UN)
    thread.join(60)
    assert rows == [(1,)]
    fcntl.flock(taken, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_turn_ends_although_a_forked_process_has_the_descriptor(tmp_path: Path) -> None:
    first, second = Turn(str(tmp_path)), Turn(str(tmp_path))
    first.wait(0)
    copy = os.dup(first._descriptor or -1)
    first.end()
    second.wait(0)
    assert second._is_mine
    second.end()
    os.close(copy)


def test_without_a_directory_all_try(connection: Counting, tmp_path: Path) -> None:
    connection.directory = str(tmp_path / "none")
    connection.free_after = 3
    assert patiently(connection, "SELECT 1", {}, lambda: 60.0) == [(1,)]
