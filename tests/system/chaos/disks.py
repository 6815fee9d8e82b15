"""Rows 12 to 14: a disk that is full, a lock that another keeps, a reader that does not end."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from flask_taskworker.errors import StoreError
from flask_taskworker.store.sqlite.driver import KEPT_LOG_BYTES
from tests.support.postgres import connect
from tests.system.chaos import journal
from tests.system.chaos.fleet import until
from tests.system.chaos.row import SQLITE, Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle

# -- a full disk -------------------------------------------------------------------------------------------------------


@row("12", "disk-full", "the disk is full, and then has room again", (SQLITE,))
def fill_disk(run: Run) -> Result:
    """Enqueueing raises, the worker waits without spinning, and goes on when there is room."""
    disk = run.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        return Result(done="nothing", skipped="mounting a small disk needs root")
    try:
        # The journal and the logs are elsewhere, on a disk that has room.
        return _fill_disk(run, disk, f"sqlite:///{disk}/jobs.db")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def _fill_disk(run: Run, disk: Path, url: str) -> Result:
    seconds = run.choose(30.0, 3.0)
    result = Result(done=f"8 MB; full for {seconds:g} s")
    with a_stage(run, url=url) as stage:
        stage.start(2)
        settle(stage, 2)
        stage.put(run.choose(400, 50), longest=0.05)
        stage.accept(stage.enqueue("grind", [(1.0,)] * 4))
        _take_all_room(disk)
        raised = _enqueue_until_refused(stage)
        before = _cpu_seconds(stage)
        time.sleep(seconds)
        share = (_cpu_seconds(stage) - before) / seconds / 2
        # Room for the jobs: what was accepted has to be recorded as ended.
        (disk / "ballast").unlink()
        freed = time.monotonic()
        resumed = _await_resumption(stage) - freed
        result.weigh(stage.judge(), doubled=False)
        result.expect("deaths 0", stage.all_live() and stage.dead() == 0)
        stage.stop()
    result.recovery = [resumed]
    result.figures |= {"refused": raised, "processor of an idle worker": f"{share:.1%}", "resumed": f"{resumed:.2f} s"}
    result.expect("enqueue raises", bool(raised))
    result.expect("< 5 % of a processor", share < 0.05 or not run.full)
    result.expect("resumes <= 5 s", resumed <= run.within(5))
    return result


def _take_all_room(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        for size in (65_536, 512):
            try:
                while ballast.write(b"x" * size):
                    pass
            except OSError:
                continue


def _enqueue_until_refused(stage: Stage) -> str:
    """The log has some room within its last page; what is accepted there must be run, too."""
    with stage.shop.app.app_context():
        for _ in range(2000):
            try:
                stage.accept([stage.shop.pulse.enqueue(0.001)])
            except StoreError as error:
                return type(error).__name__
    return ""


def _cpu_seconds(stage: Stage) -> float:
    ticks = 0
    for child in stage.children:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _await_resumption(stage: Stage) -> float:
    """Enqueue again, and the moment at which that job runs."""
    with stage.shop.app.app_context():
        job = until(lambda: _try_to_enqueue(stage), "enqueueing works again", 30)
    stage.accept([job])
    return until(
        lambda: next((e.at for e in stage.journal() if e.uid == job.uid and e.word == journal.BEGAN), 0.0),
        "a new job runs",
        30,
    )


def _try_to_enqueue(stage: Stage) -> Any:
    try:
        return stage.shop.pulse.enqueue(0.001)
    except StoreError:
        return None


# -- a lock that another keeps -----------------------------------------------------------------------------------------


@row("13", "foreign-lock", "another process keeps the write lock (8 s, 60 s)")
def foreign_lock(run: Run) -> Result:
    """All wait; no worker is taken for dead, and all goes on when the lock is free."""
    waits = run.choose((8.0, 60.0), (1.5,))
    resumed: list[float] = []
    result = Result(done=f"locked for {' and '.join(f'{wait:g} s' for wait in waits)} under load")
    with a_stage(run, TASKER_LOCK_TIMEOUT=30) as stage:
        stage.start(2)
        settle(stage, 2)
        ids = {worker.id for worker in stage.shop.store.workers()}
        for wait in waits:
            with stage.feeding(per_second=40):
                time.sleep(1.0)
                with a_lock(run):
                    time.sleep(wait)
                freed = time.monotonic()
                resumed.append(_await_next_beginning(stage, freed) - freed)
                time.sleep(1.0)
        result.weigh(stage.judge(), doubled=False)
        result.expect("deaths 0", stage.all_live() and ids == {worker.id for worker in stage.shop.store.workers()})
        stage.stop()
    result.recovery = resumed
    result.expect("resumes <= 2 s", max(resumed) <= run.within(2))
    return result


@contextmanager
def a_lock(run: Run) -> Iterator[None]:
    """Keep every other from writing jobs."""
    if run.database == SQLITE:
        with closing(sqlite3.connect(run.url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)) as one:
            one.execute("BEGIN IMMEDIATE")
            yield
            one.execute("ROLLBACK")
        return
    with connect(run.url) as session, session.transaction():
        session.execute("LOCK TABLE taskworker_job IN EXCLUSIVE MODE")
        yield


def _await_next_beginning(stage: Stage, since: float) -> float:
    return until(
        lambda: next((e.at for e in stage.journal() if e.word == journal.BEGAN and e.at > since), 0.0), "a job begins"
    )


# -- a reader that does not end ----------------------------------------------------------------------------------------

BOUND = KEPT_LOG_BYTES
"""What the log is cut to; see ``store/sqlite.py``."""


@row("14", "long-reader", "a read transaction stays open under load", (SQLITE,))
def long_reader(run: Run) -> Result:
    """The log grows meanwhile, which is said; and it is cut when the reader has gone."""
    seconds = run.choose(120.0, 4.0)
    path = Path(run.url.removeprefix("sqlite:///"))
    log = Path(f"{path}-wal")
    result = Result(done=f"BEGIN; SELECT held for {seconds:g} s under load")
    with a_stage(run) as stage:
        stage.start(2)
        settle(stage, 2)
        payload = "x" * 20_000
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM taskworker_job").fetchall()
            with _writing(stage, payload):
                time.sleep(seconds)
                until(lambda: "read transaction" in _warnings(stage), "a warning that the log is long", 60)
            grown = log.stat().st_size
            reader.execute("ROLLBACK")
        released = time.monotonic()
        cut = _await_cut(stage, log, released)
        result.weigh(stage.judge(), doubled=False)
        stage.stop()
    result.recovery = [cut]
    result.figures |= {"log at most": f"{grown / 1e6:.0f} MB", "cut after": f"{cut:.1f} s"}
    result.expect("cut <= 10 s after the release", cut <= run.within(10))
    return result


@contextmanager
def _writing(stage: Stage, payload: str) -> Iterator[None]:
    """A job of a few pages each 2 ms."""
    stopping = threading.Event()

    def work() -> None:
        with stage.shop.app.app_context():
            while not stopping.wait(0.002):
                stage.accept([stage.shop.hold.enqueue(payload)])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _warnings(stage: Stage) -> str:
    return "\n".join(line for line in stage.whole_logs().splitlines() if "WARNING" in line and "write-ahead" in line)


def _await_cut(stage: Stage, log: Path, since: float) -> float:
    """A trickle of jobs, as there is always some; the seconds until the log is short."""

    def is_short() -> bool:
        stage.put(2, longest=0.001)
        time.sleep(0.1)
        return log.stat().st_size <= BOUND + 65_536

    try:
        until(is_short, "the log is cut", 60)
    except TimeoutError:
        return math.inf
    return time.monotonic() - since
