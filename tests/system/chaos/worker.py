"""What the processes of these tests run: an app whose tasks leave evidence that outlives the process.

The same module makes the app of the test's own process, which enqueues and looks, and starts no worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, insert
from sqlalchemy.engine import make_url
from sqlalchemy.orm import scoped_session, sessionmaker

from flask_taskworker import BlockingTaskWorker, Every, Limit, Rate, Retry, TaskWorkerError, current_job
from flask_taskworker.core.tasks import Task
from flask_taskworker.extension import TaskWorker
from flask_taskworker.worker.timing import Timing
from tests.system.chaos.journal import ACCEPTED, BEGAN, executed, write

LANE_ROOM = 3
RATE = 20
MOST_STEPS, TOKEN_BITS = 1_000, 32
log = logging.getLogger("shop")
metadata = MetaData()
effect = Table("effect", metadata, Column("x", Integer, nullable=False))
"""What atomic jobs write, in the jobs' own database."""


class Place(NamedTuple):
    """Where a test happens, in words that reach another process."""

    folder: str
    url: str
    config: dict[str, Any] = {}  # noqa: RUF012 - read only
    ticks: bool = False
    """Whether the app has a schedule that fires each second."""
    knobs: dict[str, float] = {}  # noqa: RUF012 - read only
    """Fields of the workers' ``Timing``: a shorter beat, for example."""
    neighbour: bool = False
    """Whether the jobs share their event loop with user code that does what it should not."""


class Unspeakable:
    """An object that cannot be logged."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Shop:
    """The app and its tasks."""

    def __init__(self, place: Place, kind: type[TaskWorker] = BlockingTaskWorker) -> None:
        self.place = place
        self.task_worker = kind()
        backend = make_url(place.url).get_backend_name()
        self.app = Flask("shop", instance_path=place.folder, root_path=place.folder)
        self.app.config.update(TASKER_DRIVER=backend, TASKER_DATABASE_URI=place.url, **place.config)
        self.task_worker.init_app(self.app)
        self.engine = engine_of(place.url)
        self.session = scoped_session(sessionmaker(self.engine))
        self.app.teardown_appcontext(lambda _: self.session.remove())
        self._declare()
        self._declare_flows()
        self._declare_steps()

    def _declare(self) -> None:
        task = self.task_worker.task

        @task(name="shop.note")
        async def note(x: int) -> None:
            record(self.place.folder, "note", x)

        @task(name="shop.work")
        def work(x: int, seconds: float) -> None:
            record(self.place.folder, "begin", x)
            time.sleep(seconds * random.random())
            record(self.place.folder, "end", x)

        @task(name="shop.add", atomic=self.session)
        def add(x: int, seconds: float) -> None:
            time.sleep(seconds * random.random())
            self.session.execute(insert(effect).values(x=x))
            time.sleep(seconds * random.random())

        @task(name="shop.tick", schedule=Every(seconds=1, misfire="all", overlap="allow") if self.place.ticks else None)
        async def tick() -> None:
            assert current_job.fire_at is not None
            with executed(self.place.folder):
                record(self.place.folder, "tick", int(current_job.fire_at.timestamp()))

        @task(name="shop.pulse")
        async def pulse(seconds: float) -> None:
            with executed(self.place.folder):
                self._share_the_loop()
                await asyncio.sleep(seconds)

        @task(name="shop.grind")
        def grind(seconds: float) -> None:
            with executed(self.place.folder):
                time.sleep(seconds)

        @task(name="shop.pill")
        def pill() -> None:
            with executed(self.place.folder):
                os.kill(os.getpid(), 9)
                time.sleep(60)

        @task(name="shop.hold")
        async def hold(text: str) -> None:
            with executed(self.place.folder):
                assert text

        @task(name="shop.save")
        def save(key: int, call: str) -> None:
            write(Path(self.place.folder, "calls"), BEGAN, [call])

        @task(name="shop.ship", limit=Limit("shipper", running=LANE_ROOM, key="key"))
        async def ship(key: int, seconds: float) -> None:
            with executed(self.place.folder):
                record(self.place.folder, "ship+", key)
                await asyncio.sleep(seconds)
                record(self.place.folder, "ship-", key)

        @task(name="shop.call", limit=Limit("api", rate=Rate(RATE, per=1)))
        async def call() -> None:
            with executed(self.place.folder):
                record(self.place.folder, "call", 0)

        self.ship: Task[..., Any, Any] = ship
        self.call: Task[..., Any, Any] = call
        self.save: Task[..., Any, Any] = save
        self.hold: Task[..., Any, Any] = hold
        self.pulse: Task[..., Any, Any] = pulse
        self.grind: Task[..., Any, Any] = grind
        self.pill: Task[..., Any, Any] = pill
        self.note: Task[..., Any, Any] = note
        self.work: Task[..., Any, Any] = work
        self.add: Task[..., Any, Any] = add

    def _declare_flows(self) -> None:
        task = self.task_worker.task

        @task(name="shop.part", retry=Retry(2, base=0.05, jitter=0))
        async def part(fate: str) -> None:
            await asyncio.sleep(0.005 * random.random())
            if fate == "fail" or (fate == "once" and current_job.attempt == 1):
                raise ValueError(fate)

        @task(name="shop.node")
        async def node(fate: str) -> None:
            record(self.place.folder, "node", current_job.id)
            await asyncio.sleep(0.02 * random.random())
            if fate == "fail":
                raise ValueError(fate)

        @task(name="shop.told")
        async def told(event: str) -> None: ...

        self.part: Task[..., Any, Any] = part
        self.node: Task[..., Any, Any] = node
        self.told: Task[..., Any, Any] = told

    def _declare_steps(self) -> None:
        task = self.task_worker.task
        folder = self.place.folder

        def begin(which: int, seconds: float) -> int:
            record(folder, "step+", which)
            time.sleep(seconds)
            return random.getrandbits(TOKEN_BITS)

        def add(which: int, seconds: float) -> int:
            token = begin(which, seconds)
            self.session.execute(insert(effect).values(x=which))
            return token

        @task(name="shop.walk")
        def walk(number: int, seconds: float, writes: bool = True) -> None:
            plain, writing = (current_job.step, begin), (partial(current_job.step_in, self.session), add)
            for which in range(number):
                for step, does in (plain, writing) if writes else (plain,):
                    place = (current_job.id * MOST_STEPS + which) * 2 + (does is add)
                    token = step(f"{does.__name__} {which}", does, place, seconds)  # type: ignore[operator]
                    record(folder, "step-", (place << TOKEN_BITS) + token)

        @task(name="shop.nap")
        async def nap(seconds: float) -> None:
            await current_job.asleep("nap", seconds)
            record(folder, "woke", current_job.id)

        @task(name="shop.listen")
        async def listen(port: int) -> int:
            first: list[int] = []
            await current_job.astep("first", _note, first)
            if first:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.sendto(current_job.uid.encode(), ("127.0.0.1", port))
                await asyncio.sleep(0.002 * random.random())
            heard: int = await current_job.await_for("word")
            return heard

        self.walk: Task[..., Any, Any] = walk
        self.nap: Task[..., Any, Any] = nap
        self.listen: Task[..., Any, Any] = listen

    def _share_the_loop(self) -> None:
        """Do what user code should not do, on one of two occasions, where that is wanted."""
        match random.randrange(12) if self.place.neighbour else None:
            case 0:
                time.sleep(0.2)
            case 1:
                # Jobs are the user's own: one that user code cancels is cancelled.
                for task in asyncio.all_tasks():
                    if not task.get_name().startswith("taskworker-job"):
                        task.cancel()
            case 2:
                asyncio.get_running_loop().stop()
            case 3:
                log.error(Unspeakable())
                log.error("met %s", Unspeakable())
            case 4:
                with suppress(TaskWorkerError):
                    write(self.place.folder, ACCEPTED, [self.grind.enqueue(0.001).uid])
            case 5:
                with suppress(TaskWorkerError):
                    self.note.using(delay=3600).enqueue(1).cancel()

    @property
    def store(self) -> Any:
        return self.app.extensions["taskworker"].store

    def close(self) -> None:
        self.app.extensions["taskworker"].client.close()
        self.engine.dispose()


async def _note(first: list[int]) -> None:
    first.append(1)


def engine_of(url: str) -> Engine:
    """An engine as the documentation recommends it: SQLite takes its lock when a transaction begins."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return create_engine(parsed.set(drivername="postgresql+psycopg"))
    engine = create_engine(parsed, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def record(folder: str, what: str, x: int) -> None:
    """One line of evidence: a single append, so that lines of different processes never mix."""
    descriptor = os.open(Path(folder, what), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{x} {os.getpid()} {time.time()}\n".encode())
    finally:
        os.close(descriptor)


class Line(NamedTuple):
    """A line of evidence."""

    x: int
    pid: int
    at: float


def evidence(folder: str | Path, what: str) -> list[Line]:
    """What the processes have recorded so far."""
    try:
        text = Path(folder, what).read_text()
    except FileNotFoundError:
        return []
    return [Line(int(x), int(pid), float(at)) for x, pid, at in (line.split() for line in text.splitlines())]


def serve(place: Place, log: str) -> None:
    """The life of a worker process: until SIGTERM."""
    log_to(log)
    shop = Shop(place)
    shop.task_worker._timing = Timing(**place.knobs)  # type: ignore[arg-type]
    shop.task_worker.start()


def prepare(place: Place, log: str, gate: str) -> None:
    """Open the database for the first time, together with others, and say which one it is."""
    log_to(log)
    shop = Shop(place)
    Path(place.folder, f"ready-{os.getpid()}").touch()
    while not Path(gate).exists():
        time.sleep(0.0005)
    Path(f"{log}.id").write_text(shop.store.store_id())
    shop.close()


def log_to(path: str) -> None:
    """Have this process log to that file, whatever it prints included."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s", force=True
    )
