"""What :mod:`benchmarks.guard` measures, with the ``flask_taskworker`` that is on the path: ``… WORK FOLDER``.

Only public names are used, so that commits can be compared. Prints figures by name as JSON; of each, more is better.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from flask import current_app

from flask_taskworker import BackgroundTaskWorker

from .common import an_app, child, median
from .idle import resident_mb_of
from .peer import Tally

JOBS = {"async": 20_000, "sync": 10_000}
SINGLE = 1000
BULK = 50_000
TIMES = 100
MAILS = 500

Figures = dict[str, float]
Work = Callable[[BackgroundTaskWorker, Path], Figures]


def declare(task_worker: BackgroundTaskWorker, kind: str, count: Callable[[], None]):  # type: ignore[no-untyped-def]
    """A task of that kind that only counts."""
    if kind == "async":

        @task_worker.task(name="count_async")
        async def count_async() -> None:
            count()

        return count_async

    @task_worker.task(name="count")
    def count_sync() -> None:
        count()

    return count_sync


def rates(what: str, number: int, act: Callable[[], object]) -> Figures:
    """How many a second, and how many a second of processor time of this process."""
    began, used = time.perf_counter(), time.process_time()
    act()
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    return {what: number / seconds, f"{what}, a CPU second": number / cpu}


def drain(kind: str) -> Work:
    """A backlog, by one worker."""

    def measure(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
        tally = Tally(path, JOBS[kind])
        declare(task_worker, kind, tally.count).enqueue_many([()] * JOBS[kind])

        def work() -> None:
            task_worker.start()
            tally.wait(lambda: True)

        return rates(f"drain {kind}", JOBS[kind], work)

    return measure


def drain_by_two(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
    """The same by this process and another one, which begin together."""
    tally = Tally(path, 2 * JOBS["async"])
    declare(task_worker, "async", tally.count).enqueue_many([()] * (2 * JOBS["async"]))
    with child("guarded", "beside", str(path)) as other:
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        task_worker.start()
        return {"drain async, two processes": tally.wait(lambda: other.poll() is None)}


def beside(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
    """That other process."""
    declare(task_worker, "async", Tally(path, -1).count)
    print("ready", flush=True)
    sys.stdin.readline()
    task_worker.start()
    sys.stdin.read()
    return {}


def enqueue(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
    """One after the other."""
    task = declare(task_worker, "async", int)
    task.enqueue()
    return rates("enqueue", SINGLE, lambda: [task.enqueue() for _ in range(SINGLE)])


def enqueue_by_eight(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
    """From eight threads at once."""
    task, app = declare(task_worker, "async", int), current_app._get_current_object()  # type: ignore[attr-defined]
    task.enqueue()

    def some() -> None:
        with app.app_context():
            for _ in range(SINGLE // 4):
                task.enqueue()

    def act() -> None:
        threads = [threading.Thread(target=some) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return rates("enqueue, eight threads", 2 * SINGLE, act)


def bulk(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
    """Many in one call."""
    task = declare(task_worker, "async", int)
    task.enqueue()
    return rates("enqueue in bulk", BULK, lambda: task.enqueue_many([()] * BULK))


def pick_up(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
    """How soon an idle worker starts a job: one over the median of the seconds from the call of ``enqueue``."""
    starts: queue.SimpleQueue[float] = queue.SimpleQueue()
    task = declare(task_worker, "async", lambda: starts.put(time.perf_counter()))
    task_worker.start()
    seconds = []
    for _ in range(TIMES):
        began = time.perf_counter()
        task.enqueue()
        seconds.append(starts.get(timeout=10) - began)
        # An idle worker is meant: let it go to sleep.
        time.sleep(0.005)
    return {"pick-up": 1 / median(seconds)}


def mail(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
    """Queued mail, to a server on loopback."""
    from flask_taskworker.mail import Mail, Message

    from .mail import messages
    from .smtp_sink import sink

    with sink() as port:
        current_app.config.update(MAIL_PORT=port, MAIL_DEFAULT_SENDER="sender@example.org")
        mail = Mail(current_app._get_current_object())  # type: ignore[attr-defined]
        task_worker.start()

        def send() -> None:
            for job in mail.send_later_many(messages(Message, MAILS)):
                job.result(60)

        return rates("queued mail", MAILS, send)


def hello(task_worker: BackgroundTaskWorker, path: Path) -> Figures:
    """What it costs to have a worker at all: starts of Python up to the first job a CPU second, and one over MB."""
    task = declare(task_worker, "async", int)
    task_worker.start()
    task.enqueue().result(10)
    return {"start, a CPU second": 1 / time.process_time(), "memory": 1 / resident_mb_of(os.getpid())}


WORK: dict[str, Work] = {
    "drain async": drain("async"),
    "drain sync": drain("sync"),
    "drain by two": drain_by_two,
    "beside": beside,
    "enqueue": enqueue,
    "enqueue by eight": enqueue_by_eight,
    "bulk": bulk,
    "pick-up": pick_up,
    "mail": mail,
    "hello": hello,
}


def main() -> None:
    """One kind of work, in this process."""
    work, path = sys.argv[1], Path(sys.argv[2])
    logging.disable(logging.WARNING)
    url = path / "url"
    config = {"TASKER_DRIVER": "postgresql", "TASKER_DATABASE_URI": url.read_text()} if url.exists() else {}
    with an_app(path, **config) as task_worker:
        print(json.dumps(WORK[work](task_worker, path)), flush=True)
        # Its threads need not come to an end.
        os._exit(0)


if __name__ == "__main__":
    main()
