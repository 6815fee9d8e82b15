"""Task queues on Redis, and a Redis server of our own for them.

The server appends to its log and flushes that to the disk once a second: a crash of the machine loses what was accepted
in the last second. Few people run it with a flush for each command, which would be the counterpart to our default.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .peer import Program

STARTED_WITHIN = 10.0
DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")


def redis_server() -> str | None:
    """The program, if there is one."""
    return shutil.which("redis-server")


def redis_version() -> str:
    """What the server says of itself, and how it is run."""
    answer = subprocess.run([str(redis_server()), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"v=(\S+)", answer.stdout)
    return f"Redis {found[1] if found else '?'}, {' '.join(DURABLE[:-2])}"


@contextlib.contextmanager
def a_redis(folder: Path) -> Iterator[str]:
    """The URL of an empty server that keeps its data in *folder*."""
    program = redis_server()
    assert program is not None
    port = _free_port()
    place = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder))
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([program, *place, *DURABLE], stdout=log, stderr=log)
    try:
        _wait_for(server, port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(30)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(16).startswith(b"+PONG"):
                return
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("redis-server did not start")
        time.sleep(0.01)


class Celery(Program):
    """Celery with its pool of processes, one a processor."""

    package = "celery"
    note: ClassVar[str] = "one process a processor"
    several = True
    options: ClassVar[Sequence[str]] = ()

    def enqueue(self) -> None:
        """One job."""
        from .apps.celery_app import nothing

        nothing.delay()

    def command(self) -> Sequence[str]:
        """The documentation's, but for the log level."""
        return ("celery", "-A", "benchmarks.apps.celery_app", "worker", *self.options)


class CeleryTuned(Celery):
    """Celery in one process, which is quicker than its pools of processes, threads and greenlets for such jobs."""

    note = "--pool solo --prefetch-multiplier 128 --without-gossip --without-mingle --without-heartbeat"
    options = tuple(note.split())
    several = False


class RQ(Program):
    """RQ, which forks a process for each job."""

    package = "rq"
    note: ClassVar[str] = "a fork for each job"
    options: ClassVar[Sequence[str]] = ()

    def enqueue(self) -> None:
        """One job."""
        from .apps.rq_jobs import nothing

        self._queue().enqueue(nothing)

    def fill(self, jobs: int) -> None:
        """In batches."""
        from .apps.rq_jobs import nothing

        queue = self._queue()
        for begin in range(0, jobs, 1000):
            queue.enqueue_many([queue.prepare_data(nothing) for _ in range(min(1000, jobs - begin))])

    def _queue(self) -> Any:
        from redis import Redis
        from rq import Queue

        return Queue(connection=Redis.from_url(self.url))

    def command(self) -> Sequence[str]:
        """The documentation's."""
        return ("rq.cli", "worker", "-u", self.url, *self.options)


class RQTuned(RQ):
    """RQ in one process."""

    note = "SimpleWorker: no forks; --quiet"
    options = ("-w", "rq.worker.SimpleWorker", "--quiet")


class Dramatiq(Program):
    """dramatiq."""

    package = "dramatiq"
    note: ClassVar[str] = "one process a processor, 8 threads each"
    several = True
    options: ClassVar[Sequence[str]] = ()

    def enqueue(self) -> None:
        """One job."""
        from .apps.dramatiq_app import nothing

        nothing.send()

    def command(self) -> Sequence[str]:
        """The documentation's."""
        return ("dramatiq", "benchmarks.apps.dramatiq_app", *self.options)


class DramatiqTuned(Dramatiq):
    """dramatiq with few threads, which fetch many at once."""

    note = "one process a processor, 2 threads each, dramatiq_queue_prefetch=1000"
    options = ("--threads", "2")
    environment: ClassVar[Mapping[str, str]] = {"dramatiq_queue_prefetch": "1000"}


class Taskiq(Program):
    """taskiq."""

    package = "taskiq-redis"
    note: ClassVar[str] = "2 processes, 100 jobs at once each"
    several = True
    options: ClassVar[Sequence[str]] = ()

    def fill(self, jobs: int) -> None:
        """A hundred at once."""
        from .apps.taskiq_app import broker, nothing

        async def fill() -> None:
            await broker.startup()
            await _at_once(nothing.kiq, jobs)
            await broker.shutdown()

        asyncio.run(fill())

    def command(self) -> Sequence[str]:
        """The documentation's."""
        return ("taskiq", "worker", "benchmarks.apps.taskiq_app:broker", *self.options)


class TaskiqTuned(Taskiq):
    """taskiq without a log line for each job; prefetching more, or other numbers at once, make no difference."""

    note = "2 processes, 100 jobs at once each, --log-level WARNING"
    options = ("--log-level", "WARNING")


class SAQ(Program):
    """SAQ."""

    package = "saq"
    note: ClassVar[str] = "10 jobs at once"
    settings: ClassVar[str] = "settings"

    def fill(self, jobs: int) -> None:
        """A hundred at once."""
        from .apps.saq_app import queue

        async def fill() -> None:
            await queue.connect()
            await _at_once(lambda: queue.enqueue("nothing"), jobs)
            await queue.disconnect()

        asyncio.run(fill())

    def command(self) -> Sequence[str]:
        """The documentation's."""
        return ("saq", f"benchmarks.apps.saq_app.{self.settings}")


class SAQTuned(SAQ):
    """SAQ with more at once; with a hundred it is slower."""

    note = "20 jobs at once"
    settings = "tuned"


async def _at_once(enqueue: Callable[[], Coroutine[Any, Any, Any]], jobs: int) -> None:
    for begin in range(0, jobs, 100):
        await asyncio.gather(*(enqueue() for _ in range(min(100, jobs - begin))))
