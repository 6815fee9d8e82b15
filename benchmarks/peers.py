"""Other task queues doing the same work, each in a process of its own.

``python -m benchmarks.peers NAME WORK FOLDER N``

Each peer is used as its documentation shows, with no-op tasks and one worker process with one thread or as many jobs
at once as it takes by itself. Prints one JSON value.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .common import an_app

PICK_UPS = 200
PAUSE = 0.005


class Counter:
    """Notes when the first and the last of so many jobs ran."""

    def __init__(self, jobs: int) -> None:
        self._left = jobs
        self._jobs = jobs
        self._lock = threading.Lock()
        self._first = 0.0
        self.rate = 0.0
        self.done = threading.Event()

    def count(self) -> None:
        """One job ran."""
        with self._lock:
            now = time.perf_counter()
            self._first = self._first or now
            self._left -= 1
            if not self._left:
                self.rate = (self._jobs - 1) / (now - self._first)
                self.done.set()


class Peer:
    """A task queue: how to fill it, enqueue into it and have it work."""

    def __init__(self, folder: Path, counter: Counter) -> None:
        self.folder = folder
        self.counter = counter

    def enqueue(self) -> None:
        """One job."""
        raise NotImplementedError

    def fill(self, jobs: int) -> None:
        """Many jobs, in the quickest way that the peer offers."""
        for _ in range(jobs):
            self.enqueue()

    def work(self) -> None:
        """Start the worker, in this process."""
        raise NotImplementedError


class Ours(Peer):
    """Flask-TaskWorker."""

    kind = "async"
    config: Mapping[str, Any] = {}

    def __init__(self, folder: Path, counter: Counter) -> None:
        super().__init__(folder, counter)
        self._app = an_app(folder, **self.config)
        self.task_worker = self._app.__enter__()
        count = counter.count

        @self.task_worker.task(name="nothing")
        def nothing() -> None:
            count()

        @self.task_worker.task(name="nothing_async")
        async def nothing_async() -> None:
            count()

        self.task = nothing if self.kind == "sync" else nothing_async
        self.task_worker.state().store.driver.prepare()

    def enqueue(self) -> None:
        """One job."""
        self.task.enqueue()

    def fill(self, jobs: int) -> None:
        """In batches of 10,000."""
        for begin in range(0, jobs, 10_000):
            self.task.enqueue_many([()] * min(10_000, jobs - begin))

    def work(self) -> None:
        """The background worker."""
        self.task_worker.start()


class OursSync(Ours):
    """With a sync task."""

    kind = "sync"


class OursNormal(Ours):
    """Without waiting for the disk."""

    config: Mapping[str, Any] = {"TASKER_DURABILITY": "normal"}


class Huey(Peer):
    """huey on SQLite with its default settings."""

    settings: Mapping[str, Any] = {}

    def __init__(self, folder: Path, counter: Counter) -> None:
        super().__init__(folder, counter)
        from huey import SqliteHuey

        self._huey = SqliteHuey(filename=str(folder / "huey.db"), results=False, **self.settings)
        count = counter.count

        @self._huey.task()
        def nothing() -> None:
            count()

        self._task = nothing

    def enqueue(self) -> None:
        """One job."""
        self._task()

    def work(self) -> None:
        """Its consumer, with one thread, polling as quickly as it can."""
        consumer = self._huey.create_consumer(
            workers=1, periodic=False, initial_delay=0.001, max_delay=0.001, backoff=1
        )
        consumer.start()


class HueyNoFsync(Huey):
    """huey without waiting for the disk."""

    settings: Mapping[str, Any] = {"fsync": False}


class APS(Peer):
    """APScheduler 3 with its SQLAlchemy job store on SQLite, one thread."""

    def __init__(self, folder: Path, counter: Counter) -> None:
        super().__init__(folder, counter)
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
        from apscheduler.schedulers.background import BackgroundScheduler

        global _count
        _count = counter.count
        store = SQLAlchemyJobStore(url=f"sqlite:///{folder / 'aps.db'}")
        self._scheduler = BackgroundScheduler(
            jobstores={"default": store}, executors={"default": ThreadPoolExecutor(1)}, timezone="UTC"
        )
        self._scheduler.start(paused=True)

    def enqueue(self) -> None:
        """One job, at once."""
        self._scheduler.add_job(count_one, misfire_grace_time=None)

    def work(self) -> None:
        """Its scheduler."""
        self._scheduler.resume()


_count: Callable[[], None] = lambda: None  # noqa: E731


def count_one() -> None:
    """APScheduler stores the name of a function."""
    _count()


class OnPostgres(Peer):
    """What needs a database: its URL is in a file of the folder."""

    @property
    def url(self) -> str:
        """A libpq URL."""
        return (self.folder / "url").read_text().replace("postgresql+psycopg", "postgresql")


class OursPostgres(OnPostgres, Ours):
    """Flask-TaskWorker on PostgreSQL."""

    def __init__(self, folder: Path, counter: Counter) -> None:
        self.config = {"TASKER_DRIVER": "postgresql", "TASKER_DATABASE_URI": (folder / "url").read_text()}
        super().__init__(folder, counter)


class Procrastinate(OnPostgres):
    """procrastinate with psycopg, jobs at once as many as ours."""

    def __init__(self, folder: Path, counter: Counter) -> None:
        super().__init__(folder, counter)
        import procrastinate

        connector = procrastinate.SyncPsycopgConnector(conninfo=self.url)
        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=self.url))
        count = counter.count

        @self._app.task(name="nothing")
        async def nothing() -> None:
            count()

        self._task = nothing
        self._sync = self._app.with_connector(connector)
        self._sync.open()
        schema = self._sync.schema_manager
        if not (folder / "made").exists():
            schema.apply_schema()
            (folder / "made").touch()

    def enqueue(self) -> None:
        """One job."""
        with self._app.replace_connector(self._sync.connector):
            self._task.defer()

    def fill(self, jobs: int) -> None:
        """In batches."""
        with self._app.replace_connector(self._sync.connector):
            for begin in range(0, jobs, 1000):
                self._task.batch_defer(*[{} for _ in range(min(1000, jobs - begin))])

    def work(self) -> None:
        """Its worker."""

        async def run() -> None:
            async with self._app.open_async():
                await self._app.run_worker_async(concurrency=100, wait=True, install_signal_handlers=False)

        threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()


class PgQueuer(OnPostgres):
    """pgqueuer with psycopg, batches of 200, its best according to its own benchmark."""

    batch = 200

    def __init__(self, folder: Path, counter: Counter) -> None:
        super().__init__(folder, counter)
        if not (folder / "made").exists():
            asyncio.run(self._with_queries(lambda queries: queries.install()))
            (folder / "made").touch()

    async def _with_queries(self, act: Callable[[Any], Any]) -> None:
        import psycopg
        from pgqueuer.db import PsycopgDriver
        from pgqueuer.queries import Queries

        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await act(Queries(PsycopgDriver(connection)))

    def fill(self, jobs: int) -> None:
        """In batches."""

        async def act(queries: Any) -> None:
            for _ in range(0, jobs, 1000):
                await queries.enqueue(["nothing"] * 1000, [None] * 1000, [0] * 1000)

        asyncio.run(self._with_queries(act))

    def work(self) -> None:
        """Its queue manager."""
        import psycopg
        from pgqueuer import PgQueuer as Manager
        from pgqueuer.db import PsycopgDriver

        async def run() -> None:
            async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
                manager = Manager(PsycopgDriver(connection))

                @manager.entrypoint("nothing")
                async def nothing(job: Any) -> None:
                    self.counter.count()

                await manager.run(batch_size=self.batch)

        threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()


PEERS: dict[str, type[Peer]] = {
    "ours": Ours,
    "ours, sync": OursSync,
    "ours, normal": OursNormal,
    "huey": Huey,
    "huey, no fsync": HueyNoFsync,
    "APScheduler": APS,
    "ours, PostgreSQL": OursPostgres,
    "procrastinate": Procrastinate,
    "pgqueuer": PgQueuer,
}


# -- the work ----------------------------------------------------------------------------------------------------------


def drain(make: Callable[[Counter], Peer], jobs: int) -> float:
    """Jobs a second, from the start of the first to that of the last."""
    counter = Counter(jobs)
    peer = make(counter)
    peer.fill(jobs)
    peer.work()
    assert counter.done.wait(300), "it did not come to its end"
    return counter.rate


def enqueue(make: Callable[[Counter], Peer], jobs: int) -> float:
    """Jobs a second, one after the other."""
    peer = make(Counter(10**9))
    peer.enqueue()
    begin = time.perf_counter()
    for _ in range(jobs):
        peer.enqueue()
    return jobs / (time.perf_counter() - begin)


def enqueue_threads(make: Callable[[Counter], Peer], jobs: int) -> float:
    """Jobs a second from eight threads at once."""
    peer = make(Counter(10**9))
    peer.enqueue()
    app = peer.task_worker.state().find_app() if isinstance(peer, Ours) else None

    def some() -> None:
        if app is None:
            for _ in range(jobs // 8):
                peer.enqueue()
            return
        with app.app_context():
            for _ in range(jobs // 8):
                peer.enqueue()

    threads = [threading.Thread(target=some) for _ in range(8)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return jobs / (time.perf_counter() - begin)


def bulk(make: Callable[[Counter], Peer], jobs: int) -> float:
    """Jobs a second in the quickest way that the peer offers."""
    peer = make(Counter(10**9))
    begin = time.perf_counter()
    peer.fill(jobs)
    return jobs / (time.perf_counter() - begin)


def busy(make: Callable[[Counter], Peer], jobs: int) -> list[float]:
    """Milliseconds of single enqueues while a worker of another process drains a backlog."""
    peer = make(Counter(10**9))
    peer.fill(jobs)
    name, _, folder, _ = sys.argv[1:]
    command = [sys.executable, "-m", "benchmarks.peers", name, "work", folder, str(jobs)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    worker.stdout.readline()
    times = []
    while worker.poll() is None:
        begin = time.perf_counter()
        peer.enqueue()
        times.append((time.perf_counter() - begin) * 1000)
        time.sleep(0.001)
    return times


def work(make: Callable[[Counter], Peer], jobs: int) -> float:
    """What is there already; tells when it has begun."""
    counter = Counter(jobs)
    peer = make(counter)
    print("begins", flush=True)
    peer.work()
    assert counter.done.wait(300), "it did not come to its end"
    return counter.rate


WORK: dict[str, Callable[[Callable[[Counter], Peer], int], Any]] = {
    "drain": drain,
    "enqueue": enqueue,
    "enqueue-threads": enqueue_threads,
    "bulk": bulk,
    "busy": busy,
    "work": work,
}


def main() -> None:
    """One peer, one kind of work, in this process."""
    name, work, folder, number = sys.argv[1:]
    logging.disable(logging.WARNING)
    print(json.dumps(WORK[work](lambda counter: PEERS[name](Path(folder), counter), int(number))), flush=True)
    # Their threads need not come to an end.
    os._exit(0)


if __name__ == "__main__":
    main()
