"""Other task queues doing the same work, each in a process of its own.

``python -m benchmarks.peers NAME WORK FOLDER N``; ``python -m benchmarks.peers installed`` tells which are there.

Each is measured as its documentation shows it and, "tuned", with what is quickest for jobs that do nothing, in one
worker: one process, unless its documentation starts several. Prints one JSON value.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .peer import Peer, Program, Tally, Unfinished

PEERS: dict[str, str] = {
    "ours": "ours.Ours",
    "ours, sync": "ours.OursSync",
    "ours, normal": "ours.OursNormal",
    "huey": "on_sqlite.Huey",
    "huey, tuned": "on_sqlite.HueyTuned",
    "APScheduler": "on_sqlite.APS",
    "APScheduler, tuned": "on_sqlite.APSTuned",
    "ours, PostgreSQL": "ours.OursPostgres",
    "ours, PostgreSQL, newer Python": "ours.OursPostgres",
    "procrastinate": "on_postgres.Procrastinate",
    "procrastinate, tuned": "on_postgres.ProcrastinateTuned",
    "pgqueuer": "on_postgres.PgQueuer",
    "pgqueuer, tuned": "on_postgres.PgQueuerTuned",
    "oban": "on_postgres.Oban",
    "oban, tuned": "on_postgres.ObanTuned",
    "celery": "on_redis.Celery",
    "celery, tuned": "on_redis.CeleryTuned",
    "RQ": "on_redis.RQ",
    "RQ, tuned": "on_redis.RQTuned",
    "dramatiq": "on_redis.Dramatiq",
    "dramatiq, tuned": "on_redis.DramatiqTuned",
    "taskiq": "on_redis.Taskiq",
    "taskiq, tuned": "on_redis.TaskiqTuned",
    "SAQ": "on_redis.SAQ",
    "SAQ, tuned": "on_redis.SAQTuned",
}
"""By the names that are shown. A process imports only what it measures: imports can take longer than measuring."""


def find(name: str) -> type[Peer]:
    """The class of a peer."""
    module, _, peer = PEERS[name].partition(".")
    found: type[Peer] = getattr(importlib.import_module(f".{module}", __package__), peer)
    return found


def installed() -> dict[str, str]:
    """The versions of the peers that are there, by package, and of Python."""
    found = {"Python": platform.python_version()}
    for package in {find(name).package for name in PEERS} - {""}:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


# -- the work ----------------------------------------------------------------------------------------------------------


def drain(make: Callable[[int], Peer], jobs: int) -> float:
    """Jobs a second, from the start of the first to that of the last."""
    peer = make(jobs)
    peer.fill(jobs)
    peer.work()
    return peer.tally.wait(peer.alive)


def drain_by(workers: int) -> Callable[[Callable[[int], Peer], int], float]:
    """The same with several worker processes on one database, which begin together."""

    def drain(make: Callable[[int], Peer], jobs: int) -> float:
        peer = make(jobs)
        peer.fill(jobs)
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(another("wait", jobs)) for _ in range(workers)]
            for process in processes:
                assert process.stdout is not None
                process.stdout.readline()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"\n")
                process.stdin.flush()
            return peer.tally.wait(lambda: all(process.poll() is None for process in processes))

    return drain


def wait_and_work(make: Callable[[int], Peer], jobs: int) -> None:
    """One of those workers: begins on the first line of its input, and ends with it."""
    peer = make(jobs)
    print("ready", flush=True)
    sys.stdin.readline()
    peer.work()
    sys.stdin.readline()


def enqueue(make: Callable[[int], Peer], jobs: int) -> float:
    """Jobs a second, one after the other."""
    peer = make(jobs)
    peer.enqueue()
    begin = time.perf_counter()
    for _ in range(jobs):
        peer.enqueue()
    return jobs / (time.perf_counter() - begin)


def enqueue_threads(make: Callable[[int], Peer], jobs: int) -> float:
    """Jobs a second from eight threads at once."""
    peer = make(jobs)
    peer.enqueue()

    def some() -> None:
        with peer.context():
            for _ in range(jobs // 8):
                peer.enqueue()

    threads = [threading.Thread(target=some) for _ in range(8)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return jobs / (time.perf_counter() - begin)


def bulk(make: Callable[[int], Peer], jobs: int) -> float:
    """Jobs a second in the quickest way that the peer offers."""
    peer = make(jobs)
    begin = time.perf_counter()
    peer.fill(jobs)
    return jobs / (time.perf_counter() - begin)


def busy(make: Callable[[int], Peer], jobs: int) -> list[float]:
    """Milliseconds of single enqueues while a worker of another process drains a backlog."""
    peer = make(jobs)
    peer.fill(jobs)
    with another("work", jobs) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        times = []
        while worker.poll() is None:
            begin = time.perf_counter()
            peer.enqueue()
            times.append((time.perf_counter() - begin) * 1000)
            time.sleep(0.001)
    return times


def work(make: Callable[[int], Peer], jobs: int) -> float:
    """What is there already; tells when it has begun."""
    peer = make(jobs)
    print("begins", flush=True)
    peer.work()
    return peer.tally.wait(peer.alive)


@contextlib.contextmanager
def another(work: str, jobs: int) -> Iterator[subprocess.Popen[bytes]]:
    """The same peer at other work on the same database, in a process of its own."""
    name, _, folder, _ = sys.argv[1:]
    command = [sys.executable, "-m", "benchmarks.peers", name, work, folder, str(jobs)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


WORK: dict[str, Callable[[Callable[[int], Peer], int], Any]] = {
    "drain": drain,
    "drain by one": drain_by(1),
    "drain by two": drain_by(2),
    "wait": wait_and_work,
    "enqueue": enqueue,
    "enqueue-threads": enqueue_threads,
    "bulk": bulk,
    "busy": busy,
    "work": work,
}


def main() -> None:
    """One peer, one kind of work, in this process."""
    if sys.argv[1:] == ["installed"]:
        print(json.dumps(installed()))
        return
    name, work, folder, number = sys.argv[1:]
    logging.disable(logging.WARNING)
    made: list[Peer] = []

    def make(jobs: int) -> Peer:
        made.append(find(name)(Path(folder), Tally(Path(folder), jobs)))
        return made[-1]

    try:
        print(json.dumps(WORK[work](make, int(number))), flush=True)
    except Unfinished as error:
        print(f"{error}{_last_words(made[-1])}", file=sys.stderr)
        os._exit(1)
    # Their threads need not come to an end.
    os._exit(0)


def _last_words(peer: Peer) -> str:
    if not isinstance(peer, Program):
        return ""
    lines = peer.log.read_text(errors="replace").split("\n")
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


if __name__ == "__main__":
    main()
