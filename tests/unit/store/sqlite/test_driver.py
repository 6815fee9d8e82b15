"""The SQLite file: the lock of others, a file that is missing, replaced, unwritable or not a database, its modes."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event

from flask_taskworker import BackgroundTaskWorker, JobState
from flask_taskworker.core.tasks import Task
from flask_taskworker.errors import NotAccepted, SchemaError, StoreError
from flask_taskworker.store.driver import RowRefused, Run
from flask_taskworker.store.sql import Store
from flask_taskworker.store.sqlite import driver as sqlite_driver
from flask_taskworker.store.sqlite.commits import WriteTransaction
from flask_taskworker.store.sqlite.driver import SharedCommit, SqliteDriver
from flask_taskworker.store.sqlite.forks import ForkSafeConnection
from tests.support.stored import counts_of
from tests.support.twins import twin_of
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.sqlite_only

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]
AnyTask = Task[..., Any, Any]


def make_task(task_worker: BackgroundTaskWorker) -> AnyTask:
    return task_worker.task(name="work")(lambda x=1: x)


def path_of(app: Flask) -> Path:
    return Path(app.extensions["taskworker"].config.database_uri.database)


def driver_of(app: Flask) -> SqliteDriver:
    driver: SqliteDriver = app.extensions["taskworker"].store.driver
    return driver


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock, as another process's long transaction would."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=20, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


# -- another process's lock --------------------------------------------------------------------------------------------


def test_enqueue_waits_for_a_foreign_lock(app: Flask, idle_worker: BackgroundTaskWorker, store: Store) -> None:
    task = make_task(idle_worker)
    task.enqueue()
    jobs: list[Any] = []
    commits = driver_of(app)._commits
    with locked(path_of(app)):
        threads = [
            threading.Thread(target=lambda: jobs.append(task.enqueue())),
            threading.Thread(target=lambda: jobs.extend(task.enqueue_many([(1,), (2,)]))),
        ]
        for thread in threads:
            thread.start()
        wait_for(commits._lock.locked, "a thread waits for the lock")
        assert jobs == []
    for thread in threads:
        thread.join(20)
    assert len(jobs) == 3
    assert counts_of(store)["ready"] == 4


def test_enqueue_says_who_to_look_for_when_the_lock_does_not_come(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_LOCK_TIMEOUT=0.05)
    task = make_task(make_worker(app, start=False))
    task.enqueue()
    with locked(path_of(app)):
        for enqueue in (task.enqueue, lambda: task.enqueue_many([(1,), (2,)]), task.using(unique="k").enqueue):
            with pytest.raises(NotAccepted, match="not accepted.*database is locked.*write lock"):
                enqueue()
    assert counts_of(app.extensions["taskworker"].store)["ready"] == 1
    assert task.enqueue().id == 2


def test_reading_needs_no_lock(app: Flask, idle_worker: BackgroundTaskWorker, store: Store) -> None:
    job = make_task(idle_worker).enqueue()
    with locked(path_of(app)):
        assert job.refresh().state is JobState.READY
        assert counts_of(store)["ready"] == 1


def test_worker_waits_for_a_foreign_lock_and_loses_nothing(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app()
    task_worker = make_worker(app)
    release, ran = threading.Event(), []
    task = task_worker.task(name="work")(lambda: wait(release) or ran.append(1))
    jobs = task.enqueue_many([()] * 3)
    wait_for(lambda: jobs[2].refresh().state is JobState.RUNNING)
    with locked(path_of(app)):
        release.set()
        wait_for(lambda: len(ran) == 3)
        assert jobs[0].refresh().state is JobState.RUNNING
    for job in jobs:
        job.result(timeout=20)
    assert len(ran) == 3


def test_worker_goes_on_after_a_lock_that_did_not_come(
    make_app: MakeApp, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(TASKER_LOCK_TIMEOUT=0.02)
    task_worker = make_worker(app, start=False)
    release, ran = threading.Event(), []
    task = task_worker.task(name="work", retry=2)(lambda: wait(release) or ran.append(1))
    # Before the worker writes: it might keep the lock for longer, on a busy machine.
    jobs = task.enqueue_many([()] * 3)
    task_worker.start()
    wait_for(lambda: jobs[2].refresh().state is JobState.RUNNING)
    with locked(path_of(app)):
        release.set()
        wait_for(lambda: "database is locked" in caplog.text and "Next try in" in caplog.text)
    for job in jobs:
        job.result(timeout=20)
    assert len(ran) == 3
    assert {job.refresh()._record.claim for job in jobs} == {1}


def test_worker_that_cannot_write_does_not_ask_all_the_while(
    make_app: MakeApp, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(TASKER_LOCK_TIMEOUT=0.1)
    task_worker = make_worker(app, start=False)
    release = threading.Event()
    job = task_worker.task(name="work")(lambda: wait(release) or 1).enqueue()
    task_worker.start()
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    with locked(path_of(app)):
        caplog.clear()
        release.set()
        wait_for(lambda: [r.created for r in caplog.records if "Next try in" in r.getMessage()][3:])
    assert job.result(timeout=20) == 1
    told = [record.created for record in caplog.records if "Next try in" in record.getMessage()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(told)]
    # 0.05 s, then twice as long each time, spread by 20 %.
    assert all(gap >= least for gap, least in zip(gaps, (0.04, 0.08, 0.16), strict=False)), gaps


# -- threads that share a commit ---------------------------------------------------------------------------------------


class Line:
    """Statements of several threads that come into one transaction together."""

    def __init__(self, driver: SqliteDriver) -> None:
        self.driver = driver
        self.commits: SharedCommit = driver._commits
        self.outcomes: dict[str, object] = {}

    def run(self, *statements: str) -> dict[str, object]:
        threads = []
        with self.commits._lock:
            for statement in statements:
                threads.append(threading.Thread(target=self._write, args=(statement,)))
                threads[-1].start()
                wait_for(lambda: len(self.commits._line) == len(threads))
        for thread in threads:
            thread.join(20)
        return self.outcomes

    def _write(self, statement: str) -> None:
        try:
            self.outcomes[statement] = self.driver.write(statement, {})
        except StoreError as error:
            self.outcomes[statement] = error


@pytest.fixture
def line(app: Flask, idle_worker: BackgroundTaskWorker) -> Line:
    driver_of(app).prepare()
    return Line(driver_of(app))


GOOD = [f"INSERT INTO taskworker_meta VALUES ('name {i}', 'x') RETURNING name" for i in range(3)]
TAKEN = "INSERT INTO taskworker_meta VALUES ('schema_version', 'x')"


def stored(line: Line) -> list[str]:
    rows = line.driver.read("SELECT name FROM taskworker_meta WHERE name LIKE 'name %' ORDER BY name", {})
    return [name for (name,) in rows]


def test_threads_that_write_at_once_share_a_commit(line: Line) -> None:
    commits = []

    connection = line.commits._connected()
    connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    outcomes = line.run(*GOOD)
    assert outcomes == {sql: [(f"name {i}",)] for i, sql in enumerate(GOOD)}
    assert commits == ["COMMIT"]
    assert stored(line) == ["name 0", "name 1", "name 2"]


def test_statement_that_fails_fails_alone(line: Line) -> None:
    outcomes = line.run(GOOD[0], TAKEN, GOOD[1], "not even SQL", GOOD[2])
    assert isinstance(outcomes[TAKEN], StoreError)
    assert "UNIQUE constraint failed" in str(outcomes[TAKEN])
    assert isinstance(outcomes["not even SQL"], StoreError)
    assert stored(line) == ["name 0", "name 1", "name 2"]


def test_statement_that_ends_the_transaction_fails_all_of_it(line: Line) -> None:
    """As SQLite does on a full disk. A caller that gets an error must be able to rely on it: nothing is stored."""
    fatal = TAKEN.replace("INSERT", "INSERT OR ROLLBACK")
    outcomes = line.run(GOOD[0], fatal, GOOD[1], GOOD[2])
    assert outcomes.keys() == {*GOOD, fatal}
    assert all(isinstance(outcome, StoreError) for outcome in outcomes.values())
    assert stored(line) == []
    assert line.run(*GOOD)
    assert stored(line) == ["name 0", "name 1", "name 2"]


def test_value_that_sqlite_cannot_take_fails_alone(line: Line) -> None:
    results: list[object] = []

    def write() -> None:
        try:
            line.driver.write("SELECT :number", {"number": 2**70})
        except RowRefused as error:
            results.append(error)

    with line.commits._lock:
        threads = [threading.Thread(target=write)]
        threads += [threading.Thread(target=line._write, args=(sql,)) for sql in GOOD]
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_for(lambda number=number: len(line.commits._line) == number)
    for thread in threads:
        thread.join(20)
    assert len(results) == 1
    assert stored(line) == ["name 0", "name 1", "name 2"]


class InterruptedAtCommit(ForkSafeConnection):
    """A signal handler raises as soon as Python code runs again: after the commit."""

    statement = "COMMIT"

    def execute(self, sql: str, parameters: Any = ()) -> Any:  # type: ignore[override]
        rows = super().execute(sql, parameters)
        if sql == self.statement:
            raise KeyboardInterrupt
        return rows


class InterruptedAtBegin(InterruptedAtCommit):
    statement = "BEGIN IMMEDIATE"


def test_interruption_at_the_begin_of_a_transaction_leaves_the_lock_to_others(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path, isolation_level=None, factory=InterruptedAtBegin)) as connection:
        with pytest.raises(KeyboardInterrupt), WriteTransaction(connection, lambda: 1.0):
            pytest.fail("it does not begin")
        with locked(path):
            assert not connection.in_transaction


def test_threads_whose_leader_is_interrupted_after_the_commit_are_not_refused(line: Line) -> None:
    line.commits.close()
    line.commits._connection = sqlite3.connect(
        line.driver.path, isolation_level=None, check_same_thread=False, factory=InterruptedAtCommit
    )
    interrupted = []

    def write(statement: str) -> None:
        try:
            line._write(statement)
        except KeyboardInterrupt:
            interrupted.append(statement)

    with line.commits._lock:
        threads = [threading.Thread(target=write, args=(sql,)) for sql in GOOD]
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_for(lambda number=number: len(line.commits._line) == number)
    for thread in threads:
        thread.join(20)
    assert stored(line) == ["name 0", "name 1", "name 2"]
    assert len(interrupted) == 1
    assert line.outcomes == {sql: [(f"name {i}",)] for i, sql in enumerate(GOOD) if sql not in interrupted}


def test_statement_that_an_interrupted_leader_took_and_did_not_run_is_run(line: Line) -> None:
    with line.commits._lock:
        thread = threading.Thread(target=line._write, args=(GOOD[0],))
        thread.start()
        wait_for(lambda: len(line.commits._line) == 1)
        line.commits._line.popleft()
    thread.join(20)
    assert stored(line) == ["name 0"]


def test_writing_inside_a_write_of_the_same_thread_is_refused_and_does_not_hang(
    app: Flask, idle_worker: BackgroundTaskWorker
) -> None:
    """So signal handlers and ``__del__`` come to do it."""
    task = make_task(idle_worker)
    task.enqueue()
    refused = []

    def body(_: object) -> None:
        with pytest.raises(NotAccepted, match="in the middle of a write.*must not enqueue") as caught:
            task.enqueue()
        refused.append(caught.value)

    driver_of(app).transaction(body)
    assert refused
    assert task.enqueue().id == 2


def test_closing_never_waits_for_a_writer_which_then_closes_itself(line: Line) -> None:
    line.driver.write(GOOD[0], {})
    with line.driver._commits.transaction() as connection:
        line.driver.close()  # in the writing thread, as the garbage collector may do
        thread = threading.Thread(target=line.driver.close)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        connection.execute(GOOD[1])
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
    assert stored(line) == ["name 0", "name 1"]


@pytest.mark.slow
def test_each_thread_waits_for_a_foreign_lock_no_longer_than_the_timeout(
    make_app: MakeApp, make_worker: MakeWorker
) -> None:
    app = make_app(TASKER_LOCK_TIMEOUT=2)
    task = make_task(make_worker(app, start=False))
    task.enqueue()
    refused: list[NotAccepted] = []

    def enqueue() -> None:
        with pytest.raises(NotAccepted) as caught:
            task.enqueue_many([(1,), (2,)])
        refused.append(caught.value)

    threads = [threading.Thread(target=enqueue) for _ in range(20)]
    begun = time.monotonic()
    with locked(path_of(app)):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
    assert len(refused) == 20
    # One after the other it would be 40 seconds.
    assert time.monotonic() - begun < 30


# -- a file that is gone -----------------------------------------------------------------------------------------------


def test_deleted_file_is_an_error_and_no_empty_queue_takes_its_place(
    app: Flask, idle_worker: BackgroundTaskWorker
) -> None:
    job = make_task(idle_worker).enqueue()
    path_of(app).unlink()
    for use in (make_task(idle_worker).enqueue, job.refresh, job.cancel, lambda: job.result(timeout=1)):
        with pytest.raises(SchemaError, match="was deleted or replaced while in use. Put the file back, or restart"):
            use()
    assert not path_of(app).exists()


def test_replaced_file_is_an_error_and_is_not_written_to(
    app: Flask, idle_worker: BackgroundTaskWorker, tmp_path: Path
) -> None:
    task = make_task(idle_worker)
    task.enqueue()
    other = tmp_path / "other.db"
    shutil.copy(path_of(app), other)
    before = other.read_bytes()
    other.replace(path_of(app))
    with pytest.raises(SchemaError, match="deleted or replaced"):
        task.enqueue()
    assert path_of(app).read_bytes() == before


def test_file_that_is_put_back_is_used_again(app: Flask, idle_worker: BackgroundTaskWorker, tmp_path: Path) -> None:
    task = make_task(idle_worker)
    task.enqueue()
    path_of(app).rename(tmp_path / "away")
    with pytest.raises(SchemaError):
        task.enqueue()
    (tmp_path / "away").rename(path_of(app))
    assert task.enqueue().id == 2


@pytest.mark.timing(beat=0.02)
def test_worker_reports_a_file_that_is_gone_within_a_beat(
    make_app: MakeApp, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """It would look into the deleted file forever, where nothing comes any more."""
    app = make_app()
    task_worker = make_worker(app)
    make_task(task_worker).enqueue().result(timeout=20)
    caplog.set_level(logging.WARNING)
    away = path_of(app).rename(path_of(app).with_name("away"))
    wait_for(lambda: "was deleted or replaced while in use" in caplog.text)
    away.rename(path_of(app))
    assert make_task(task_worker).enqueue().result(timeout=20) == 1


def test_missing_folder_is_made(make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path) -> None:
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}/a/b/c/jobs.db")
    assert make_task(make_worker(app)).enqueue().result(timeout=20) == 1


def test_empty_file_becomes_the_database(make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path) -> None:
    (tmp_path / "jobs.db").touch()
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}/jobs.db")
    assert make_task(make_worker(app, start=False)).enqueue().id == 1


@pytest.mark.parametrize("name", ["a b", "a?b#c%20d&e", "é你", "'\"`", "x" * 200])
def test_file_may_have_any_name(make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path, name: str) -> None:
    from sqlalchemy import URL

    app = make_app(TASKER_DATABASE_URI=URL.create("sqlite", database=str(tmp_path / name / f"{name}.db")))
    assert make_task(make_worker(app)).enqueue().result(timeout=20) == 1
    assert (tmp_path / name / f"{name}.db").exists()


def test_deep_folder_is_not_an_obstacle_to_waking(make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path) -> None:
    """A UNIX socket's path may have 107 bytes."""
    deep = tmp_path.joinpath(*["x" * 60] * 4)
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{deep}/jobs.db", TASKER_LOOP_INTERVAL=3600)
    make_task(make_worker(app))
    elsewhere = make_task(make_worker(twin_of(app), start=False))
    assert elsewhere.enqueue().result(timeout=20) == 1


# -- a file that is not a database -------------------------------------------------------------------------------------


def test_file_that_is_not_a_database_is_an_error_and_is_left_alone(
    make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 1000)
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{path}")
    task_worker = make_worker(app, start=False)
    with pytest.raises(NotAccepted, match="notes.txt: file is not a database. The file is not a database: move it"):
        make_task(task_worker).enqueue()
    with pytest.raises(StoreError, match="is not a database"):
        task_worker.start()
    assert path.read_text() == "Dear diary, " * 1000


def test_folder_is_not_a_database(make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path) -> None:
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}")
    with pytest.raises(NotAccepted, match="Check that the path in TASKER_DATABASE_URI exists"):
        make_task(make_worker(app, start=False)).enqueue()


def test_file_in_the_place_of_a_folder_is_an_error(make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}/file/jobs.db")
    with pytest.raises(NotAccepted, match="TASKER_DATABASE_URI"):
        make_task(make_worker(app, start=False)).enqueue()


def test_damaged_file_is_an_error(app: Flask, make_worker: MakeWorker) -> None:
    first = make_worker(app, start=False)
    task = make_task(first)
    task.enqueue_many([("x" * 1000,)] * 200)
    driver_of(app).close()
    with closing(sqlite3.connect(path_of(app), isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path_of(app).read_bytes())
    content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
    path_of(app).write_bytes(content)
    with pytest.raises(StoreError, match="The file is damaged: stop all processes and restore it from a backup"):
        task.enqueue_many([()] * 200)


READ_ONLY = """
import os, sys
from flask import Flask
from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import NotAccepted, StoreError

folder, what = sys.argv[1:]
app = Flask("app", instance_path=folder)
task_worker = BackgroundTaskWorker(app)
task = task_worker.task(name="work")(lambda: None)
task.enqueue()
app.extensions["taskworker"].client.close()
for name in os.listdir(folder) if what == "file" else []:
    os.chmod(os.path.join(folder, name), 0o444)
os.chmod(folder, 0o555)
if os.getuid() == 0:
    os.setuid(65534)
try:
    task.enqueue()
except NotAccepted as error:
    print(error)
"""


@pytest.mark.slow
def test_file_or_folder_that_must_not_be_written_is_an_error() -> None:
    """In processes of their own, which give up the rights of root."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": "/usr/bin:/bin"}
        runs = {}
        for what in ("file", "folder"):
            inner = Path(folder) / what
            inner.mkdir()
            command = [sys.executable, "-c", READ_ONLY, str(inner), what]
            runs[inner] = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        said = {inner: process.communicate(timeout=30)[0] for inner, process in runs.items()}
        for inner in runs:
            inner.chmod(0o755)
    for inner, words in said.items():
        assert words.startswith("The job was not accepted."), words
        assert str(inner / "taskworker.db") in words
        assert "writable for this user" in words or "this user may write there" in words


# -- modes -------------------------------------------------------------------------------------------------------------


def test_only_the_owner_can_read_what_lies_there(make_app: MakeApp, make_worker: MakeWorker) -> None:
    before = os.umask(0)
    try:
        app = make_app()
        task_worker = make_worker(app)
        make_task(task_worker).enqueue().result(timeout=20)
        path = path_of(app)
        live = Path(f"{path}-live")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in [*path.parent.iterdir(), *live.iterdir()]}
    finally:
        os.umask(before)
    assert modes.pop("taskworker.db-live") == 0o700
    assert {"taskworker.db", "taskworker.db-wal", "taskworker.db-shm"} < modes.keys()
    assert len(modes) == 5, "a lock and a socket"
    assert set(modes.values()) == {0o600}


def test_stopped_worker_leaves_no_lock_and_no_socket(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    make_task(task_worker).enqueue().result(timeout=20)
    live = Path(f"{path_of(app)}-live")
    assert len(list(live.iterdir())) == 2
    task_worker.stop()
    assert list(live.iterdir()) == []


# -- the write-ahead log -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
def test_connections_are_as_durable_as_configured(
    make_app: MakeApp, make_worker: MakeWorker, durability: str, level: int
) -> None:
    app = make_app(TASKER_DURABILITY=durability)
    make_task(make_worker(app, start=False)).enqueue()
    driver = driver_of(app)
    assert driver.read("PRAGMA synchronous", {}) == [(level,)]
    assert driver.read("PRAGMA journal_mode", {}) == [("wal",)]
    assert driver.read("PRAGMA wal_autocheckpoint", {}) == [(0,)]
    assert driver.read("PRAGMA trusted_schema", {}) == [(0,)]


def test_log_stays_short_without_any_worker(
    make_app: MakeApp, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_driver, "CHECKPOINT_ENQUEUES", 2)
    app = make_app(TASKER_DURABILITY="normal")
    task = make_task(make_worker(app, start=False))
    sizes = []
    for _ in range(30):
        task.enqueue("x" * 900_000)
        sizes.append(os.stat(f"{path_of(app)}-wal").st_size)
    assert max(sizes) < 3 * sqlite_driver.CHECKPOINT_BYTES
    assert path_of(app).stat().st_size > 20 * 900_000


@pytest.mark.timing(beat=0.01)
def test_log_stays_short_with_a_worker_that_does_nothing_else(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_DURABILITY="normal", TASKER_QUEUES=["none"])
    task = make_task(make_worker(app))
    for _ in range(10):
        task.enqueue("x" * 900_000)
    wait_for(lambda: path_of(app).stat().st_size > 5 * 900_000, "the log is copied into the database")


def test_log_keeps_the_length_of_a_busy_time_and_is_copied_seldom_afterwards(
    app: Flask, idle_worker: BackgroundTaskWorker
) -> None:
    driver, task = driver_of(app), make_task(idle_worker)
    task.enqueue_many([("x" * 100_000,)] * 100)
    long = log_size(app)
    assert long > 2 * sqlite_driver.CHECKPOINT_BYTES
    driver.upkeep()
    task.enqueue()
    assert log_size(app) == long
    driver.upkeep()
    copied_at = path_of(app).stat().st_mtime_ns
    for _ in range(sqlite_driver.QUIET_BEATS // 2):
        task.enqueue()
        driver.upkeep()
    assert path_of(app).stat().st_mtime_ns == copied_at


@pytest.mark.timing(beat=0.01)
def test_file_becomes_short_again_when_most_of_it_is_unused(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_DURABILITY="normal", TASKER_QUEUES=["none"])
    task = make_task(make_worker(app))
    task.enqueue_many([("x" * 1000,)] * 20_000)
    wait_for(lambda: path_of(app).stat().st_size > 20_000_000, "the file is long")
    driver_of(app).write("DELETE FROM taskworker_job", {})
    wait_for(lambda: path_of(app).stat().st_size < 10_000_000, "the file is cut")


def test_log_that_an_open_reader_holds_back_is_warned_of_once(
    make_app: MakeApp, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_driver, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(sqlite_driver, "LONG_LOG_BYTES", 500_000)
    monkeypatch.setattr(sqlite_driver, "CHECKPOINT_ENQUEUES", 2)
    app = make_app(TASKER_DURABILITY="normal")
    task = make_task(make_worker(app, start=False))
    task.enqueue()
    with closing(sqlite3.connect(path_of(app), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM taskworker_job").fetchall()
        for _ in range(10):
            task.enqueue("x" * 70_000)
    assert caplog.text.count("an open read transaction holds it back") == 1
    for _ in range(10):
        task.enqueue("x" * 70_000)
    assert caplog.text.count("an open read transaction holds it back") == 1


def log_size(app: Flask) -> int:
    return Path(f"{path_of(app)}-wal").stat().st_size


def test_log_is_laid_out_so_that_commits_need_not_lengthen_it(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    task = make_task(idle_worker)
    for _ in range(sqlite_driver.LAYING_OUT_ENQUEUES):
        task.enqueue()
    size = log_size(app)
    assert 0.99 * sqlite_driver.LAID_OUT_BYTES < size <= sqlite_driver.CHECKPOINT_BYTES
    for _ in range(20):
        task.enqueue()
    assert log_size(app) == size
    with closing(sqlite3.connect(path_of(app))) as other:
        count = sqlite_driver.LAYING_OUT_ENQUEUES + 20
        assert other.execute("SELECT count(*) FROM taskworker_job").fetchall() == [(count,)]
        assert other.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%space%'").fetchall() == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Open files are seen in /proc.")
def test_large_transaction_needs_no_temporary_file(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    @idle_worker.task(name="nothing")
    def nothing() -> None: ...

    nothing.enqueue_many([()] * 5000)

    def body(run: Run) -> list[str]:
        run("UPDATE taskworker_job SET priority = priority + 1 WHERE id > 0 RETURNING id", {})
        files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return [file for file in files if "etilqs" in file]

    # SQLite calls its temporary files so. A container may have no place for them.
    assert store.driver.transaction(body) == []


def test_log_that_cannot_be_laid_out_does_not_matter(
    make_app: MakeApp, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_driver, "LAYING_OUT_PATIENCE", 0.01)
    app = make_app()
    task = make_task(make_worker(app, start=False))
    task.enqueue()
    with locked(path_of(app)):
        driver_of(app)._lay_out_log()
    assert log_size(app) < sqlite_driver.LAID_OUT_BYTES
    assert task.enqueue().id == 2


def test_disk_that_does_not_tell_its_space_is_not_a_refusal_of_the_job(
    idle_worker: BackgroundTaskWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.disk_usage", refuse)
    task = make_task(idle_worker)
    jobs = [task.enqueue() for _ in range(sqlite_driver.LAYING_OUT_ENQUEUES)]
    assert [job.refresh().state for job in jobs] == [JobState.READY] * len(jobs)


def test_trouble_with_the_log_is_not_a_refusal_of_the_job(
    make_app: MakeApp, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The job was committed before."""
    monkeypatch.setattr(sqlite_driver, "CHECKPOINT_BYTES", 0)
    app = make_app(TASKER_LOCK_TIMEOUT=0.02)
    task = make_task(make_worker(app, start=False))
    task.enqueue()
    monkeypatch.setattr(sqlite_driver, "CHECKPOINT_ENQUEUES", 2)
    lent = []
    with closing(sqlite3.connect(path_of(app), isolation_level=None, timeout=0)) as other:

        @event.listens_for(driver_of(app).engine, "checkout")
        def lock(*_: object) -> None:
            lent.append(1)
            if len(lent) == 1:  # for the checkpoint: jobs have a connection of their own
                other.execute("BEGIN IMMEDIATE")

        driver_of(app)._writes = 0
        job = task.enqueue()
    assert lent
    assert job.refresh().state is JobState.READY
    assert "the write-ahead log could not be shortened" in caplog.text


# -- many at once ------------------------------------------------------------------------------------------------------


def test_many_processes_make_the_same_database_at_once(tmp_path: Path) -> None:
    """Each with a driver of its own, as in processes."""
    drivers = [SqliteDriver(tmp_path / "jobs.db", durability="normal", lock_timeout=20) for _ in range(8)]
    start, names = threading.Barrier(8), []

    def prepare(driver: SqliteDriver) -> None:
        start.wait(20)
        driver.prepare()
        names.append(driver.read("SELECT value FROM taskworker_meta WHERE name = 'store_id'", {}))
        driver.close()

    threads = [threading.Thread(target=prepare, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(names) == 8
    assert names == [names[0]] * 8


def test_opening_and_closing_at_once_is_never_refused(tmp_path: Path) -> None:
    """The last to close locks the whole file for a moment, to clear the log away."""
    path = tmp_path / "jobs.db"
    errors: list[Exception] = []

    def come_and_go() -> None:
        try:
            for _ in range(25):
                driver = SqliteDriver(path, durability="normal", lock_timeout=20)
                driver.prepare()
                driver.read("SELECT count(*) FROM taskworker_job", {})
                driver.write("UPDATE taskworker_meta SET value = value WHERE name = 'store_id'", {})
                driver.close()
        except (StoreError, sqlite3.Error) as error:
            errors.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []


def test_closed_client_opens_again_when_needed(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    task = make_task(idle_worker)
    task.enqueue()
    app.extensions["taskworker"].client.close()
    assert task.enqueue().id == 2


@pytest.mark.slow
@pytest.mark.sqlite_only
def test_worker_that_must_stop_does_not_wait_for_a_lock_that_another_keeps(
    app: Flask, task_worker: BackgroundTaskWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_driver, "LAST_PATIENCE", 0.05)
    task = make_task(task_worker)
    assert task.enqueue().result(timeout=20) is not None
    with locked(path_of(app)):
        # It wants to write what it has counted, and waits.
        wait_for(lambda: not task_worker._workers()[0].is_claiming)
        began = time.monotonic()
        task_worker.stop(timeout=0)
        assert time.monotonic() - began < 20, "TASKER_LOCK_TIMEOUT is 30 s"
