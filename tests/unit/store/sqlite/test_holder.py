"""Which process holds SQLite's write lock."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flask_taskworker.store.sqlite.holder import holder_in_words, write_lock_holder

pytestmark = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists its locks")

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
    return tmp_path / "jobs.db"


def test_other_process_is_named_with_its_command(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert write_lock_holder(path) == process.pid
        assert holder_in_words(path).startswith(f"Process {process.pid} ({sys.executable} -c")
        process.communicate("")


def test_own_transaction_is_named_as_such(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert write_lock_holder(path) == os.getpid()
        assert "Commit it first" in holder_in_words(path)
        connection.execute("ROLLBACK")
        assert write_lock_holder(path) is None


def test_without_a_database_nothing_is_held(tmp_path: Path) -> None:
    assert write_lock_holder(tmp_path / "missing.db") is None
