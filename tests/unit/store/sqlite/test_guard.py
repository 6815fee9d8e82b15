"""A database file that is gone, replaced or damaged: refused with words, and never an empty queue in its place."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobState, Task
from flask_taskworker.errors import DatabaseReplaced, NotAccepted, SchemaError, StoreError
from flask_taskworker.store.sql import Store
from flask_taskworker.store.sqlite.driver import SqliteDriver
from tests.support.waiting import Clock, wait_for

pytestmark = [pytest.mark.sqlite_only, pytest.mark.timing(beat=0.02)]

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]


def make_task(task_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
    return task_worker.task(name="work")(lambda x=1: len(x) if isinstance(x, str) else x)


def path_of(app: Flask) -> Path:
    return Path(app.extensions["taskworker"].config.database_uri.database)


def driver_of(app: Flask) -> SqliteDriver:
    driver: SqliteDriver = app.extensions["taskworker"].store.driver
    return driver


def filled(app: Flask, task_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
    """The task, with more jobs in the file than a connection reads by the way; most of them in the log."""
    task = make_task(task_worker)
    task.enqueue_many([("x" * 400,)] * 500)
    return task


def inspect(app: Flask) -> None:
    """What a worker's heartbeat does every third second."""
    driver_of(app)._inspect()


def write_through(path: Path) -> None:
    """Everything into the file itself, from outside."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


# -- what is left of a database ----------------------------------------------------------------------------------------


def leave_alone(path: Path, task: Task[..., Any, Any], words: str) -> None:
    """Enqueueing is refused, and changes nothing in the folder."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(SchemaError, match=words):
        task.enqueue()
    assert {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_no_empty_queue_is_made_beside_a_log_that_holds_jobs(
    make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path, what: str
) -> None:
    """SQLite would delete the log when it opens the empty file."""
    app = make_app()
    filled(app, make_worker(app, start=False))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(f"{path_of(app)}-wal", folder / "jobs.db-wal")
    if what == "empty":
        (folder / "jobs.db").touch()
    other = make_app(TASKER_DATABASE_URI=f"sqlite:///{folder}/jobs.db")
    task = make_task(make_worker(other, start=False))
    leave_alone(folder / "jobs.db", task, rf"jobs\.db is {what}, but its write-ahead log jobs\.db-wal is still there")


def test_no_empty_queue_is_made_while_a_worker_of_the_database_lives(
    make_app: MakeApp, make_worker: MakeWorker, tmp_path: Path
) -> None:
    app = make_app()
    task_worker = make_worker(app)
    assert make_task(task_worker).enqueue().result(timeout=20) == 1
    # Another process would find just this: no file, and a worker's lock.
    other = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}/jobs.db")
    Path(tmp_path, "jobs.db-live").symlink_to(f"{path_of(app)}-live")
    task = make_task(make_worker(other, start=False))
    leave_alone(tmp_path / "jobs.db", task, "missing, but workers of it are still alive")
    task_worker.stop()
    assert task.enqueue().id == 1


def test_no_empty_queue_is_made_in_place_of_one_that_this_process_has_open(
    make_app: MakeApp, make_worker: MakeWorker
) -> None:
    """The factory is called again while the first app lives on."""
    app = make_app()
    make_task(make_worker(app, start=False)).enqueue()
    path = path_of(app)
    path.unlink()
    Path(f"{path}-wal").unlink()
    again = Flask(app.import_name, instance_path=app.instance_path)
    task = make_task(make_worker(again, start=False))
    leave_alone(path, task, "missing, but this process still has it open, with its jobs")


def test_database_of_an_app_that_is_gone_may_be_made_again(make_app: MakeApp, make_worker: MakeWorker) -> None:
    """As between two tests that clean up after themselves."""

    def use() -> Path:
        app = make_app(TASKER_DATABASE_URI=f"sqlite:///{place}")
        task_worker = BackgroundTaskWorker(app)
        assert make_task(task_worker).enqueue().id == 1
        app.extensions["taskworker"].client.close()
        return path_of(app)

    place = Path(make_app().instance_path, "jobs.db")
    for _ in range(2):
        path = use()
        for file in path.parent.glob("jobs.db*"):
            file.unlink()


# -- while it is in use ------------------------------------------------------------------------------------------------


def test_worker_claims_nothing_from_a_file_that_is_gone(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connections still reach the file. But what it did there would never be seen."""
    clock = Clock(store)
    idle_worker.start()
    ran: list[int] = []
    task = idle_worker.task(name="note")(lambda number: ran.append(number))
    task.enqueue(1).result(timeout=20)
    job = task.using(delay=3600).enqueue(2)
    away = path_of(app).rename(path_of(app).with_name("away"))
    wait_for(lambda: "cannot beat" in caplog.text and "was deleted or replaced while in use" in caplog.text)
    clock.put_forward(3_600_000)
    caplog.clear()
    idle_worker._workers()[0].wake()
    wait_for(lambda: [record for record in caplog.records if "Next try in" in record.getMessage()])
    assert ran == [1]
    assert not path_of(app).exists()
    away.rename(path_of(app))
    job.result(timeout=20)
    assert ran == [1, 2]


def test_background_worker_says_that_its_file_was_replaced_and_touches_neither(
    app: Flask, task_worker: BackgroundTaskWorker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_task(task_worker).enqueue().result(timeout=20)
    other = tmp_path / "other.db"
    shutil.copy(path_of(app), other)
    write_through(other)
    before = other.read_bytes()
    kept = path_of(app).rename(tmp_path / "kept.db")
    other.replace(path_of(app))
    wait_for(lambda: [r for r in caplog.records if r.levelno == logging.ERROR and r.name.endswith(".worker")])
    assert "restart this process to work with the new one" in caplog.text
    assert path_of(app).read_bytes() == before
    kept.replace(path_of(app))
    assert make_task(task_worker).enqueue().result(timeout=20) == 1


def test_other_content_in_the_same_file_is_a_replaced_database(
    make_app: MakeApp, make_worker: MakeWorker, app: Flask, idle_worker: BackgroundTaskWorker
) -> None:
    """As ``cp backup.db taskworker.db`` does."""
    task = make_task(idle_worker)
    task.enqueue()
    other = make_app()
    make_task(make_worker(other, start=False)).enqueue()
    for each in (app, other):
        write_through(path_of(each))
    path_of(app).write_bytes(path_of(other).read_bytes())
    inspect(app)
    with pytest.raises(DatabaseReplaced, match="deleted or replaced while in use"):
        task.enqueue()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "overwritten": lambda path: path.write_bytes(b"Dear diary, " * (path.stat().st_size // 12)),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:8192]),
    "log cut to nothing": lambda path: Path(f"{path}-wal").write_bytes(b""),
    "log cut off": lambda path: truncate(Path(f"{path}-wal"), 0.005),
    "log removed": lambda path: Path(f"{path}-wal").unlink(),
}


def truncate(path: Path, share: float) -> None:
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_beneath_a_process_is_noticed_and_ends_all_use(
    app: Flask, idle_worker: BackgroundTaskWorker, name: str
) -> None:
    """The caches of this process would hide it for long, and a checkpoint would then make it worse."""
    task = filled(app, idle_worker)
    if not name.startswith("log"):
        write_through(path_of(app))
    DAMAGES[name](path_of(app))
    inspect(app)
    for use in (task.enqueue, lambda: task.enqueue_many([()] * 3), lambda: idle_worker.get_job(1)):
        with pytest.raises(StoreError, match="is damaged: stop all processes and restore it from a backup"):
            use()


def test_emptied_file_is_a_replaced_database(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    task = filled(app, idle_worker)
    write_through(path_of(app))
    truncate(path_of(app), 0)
    inspect(app)
    with pytest.raises(DatabaseReplaced):
        task.enqueue()
    assert path_of(app).stat().st_size == 0


def test_running_worker_says_that_its_file_is_damaged_and_lives_on(
    app: Flask, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["TASKER_LOOP_INTERVAL"] = 0.1
    task = make_task(make_worker(app))
    jobs = task.enqueue_many([("x" * 400,)] * 100)
    jobs[-1].result(timeout=20)
    write_through(path_of(app))
    DAMAGES["overwritten"](path_of(app))
    wait_for(lambda: "cannot beat" in caplog.text and "is damaged: stop all processes" in caplog.text)
    assert app.extensions["taskworker"].worker is not None


def test_worker_claims_nothing_from_a_damaged_file(
    app: Flask, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """A page of an index that no statement of its start comes across."""
    first = make_worker(app, start=False)
    jobs = filled(app, first).enqueue_many([()] * 3)
    write_through(path_of(app))
    driver_of(app).close()
    with closing(sqlite3.connect(path_of(app))) as connection:
        ((page,),) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE tbl_name = 'taskworker_attempt' AND type = 'table'"
        )
    content = bytearray(path_of(app).read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    path_of(app).write_bytes(content)
    first.start()
    wait_for(lambda: "cannot start" in caplog.text)
    assert "The file is damaged: stop all processes and restore it from a backup" in caplog.text
    assert "Next try in" in caplog.text
    assert jobs[0].refresh().state is JobState.READY


# -- a database to which every user may write --------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_nothing_is_enqueued_or_claimed_while_every_user_may_write_to_the_database(
    make_app: MakeApp, make_worker: MakeWorker
) -> None:
    app = make_app()
    task_worker = make_worker(app)
    task = make_task(task_worker)
    assert task.enqueue().result(timeout=20) == 1
    path = path_of(app)
    path.chmod(0o666)
    with pytest.raises(NotAccepted, match=r"Every user on this machine may write to .*Run: chmod 600"):
        task.enqueue()
    path.chmod(0o600)
    assert task.enqueue().result(timeout=20) == 1


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_database_to_which_every_user_may_write_is_not_opened(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app()
    make_task(make_worker(app, start=False)).enqueue()
    path_of(app).chmod(0o602)
    other = SqliteDriver(path_of(app), durability="full", lock_timeout=1)
    with pytest.raises(StoreError, match="Every user on this machine may write to"):
        other.prepare()
