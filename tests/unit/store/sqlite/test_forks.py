"""Connections are at rest while a process forks; more of this is in tests/system/processes/test_forks.py."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from flask_taskworker.store.sqlite import forks
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="needs os.fork")


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, factory=forks.ForkSafeConnection, check_same_thread=False)


def test_thread_in_a_transaction_may_use_another_connection_while_a_fork_waits_for_it(tmp_path: Path) -> None:
    """A checkpoint does: it holds the lock with one connection, and copies the log with another."""
    with closing(connect(tmp_path / "a")) as one, closing(connect(tmp_path / "a")) as other:
        begun, waits = threading.Event(), threading.Event()
        under_way: list[object] = []

        def checkpoint() -> None:
            one.execute("BEGIN IMMEDIATE")
            begun.set()
            wait(waits)
            other.execute("SELECT 1")
            one.execute("COMMIT")

        def fork() -> None:
            forks._before_fork()
            under_way.append(dict(forks._busy))
            forks._after_fork_in_parent()

        threads = [threading.Thread(target=checkpoint), threading.Thread(target=fork)]
        threads[0].start()
        wait(begun)
        threads[1].start()
        wait_for(lambda: not forks._entrance.acquire(blocking=False) or forks._entrance.release())
        waits.set()
        for thread in threads:
            thread.join(20)
        assert under_way == [{}]
