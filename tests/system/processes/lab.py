"""What the processes of these tests run: an app, tasks that leave evidence, gates that keep a job busy.

Imported by the tests themselves too: the process of the test is the web process that never starts a worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask

from flask_taskworker import current_job
from flask_taskworker.extension import TaskWorker

PATIENCE = 30.0
"""Seconds after which a wait is given up. The machine may be busy; nothing here depends on speed."""


def make_app(task_worker: TaskWorker, folder: str | Path | None = None, name: str = "lab", **config: Any) -> Flask:
    """An app whose task database is in *folder*, by default the one that the test gave this process.

    The variable LAB_TASKER_THREADS=1, for example, sets that key.
    """
    app = Flask(name, instance_path=str(folder or os.environ["LAB"]), root_path=str(folder or os.environ["LAB"]))
    app.config.from_prefixed_env("LAB")
    app.config.update(config)
    task_worker.init_app(app)
    return app


def record(what: str, **more: object) -> None:
    """One line of evidence: a single append, so that lines of different processes never mix."""
    claim = {"job": current_job.id, "claim": current_job.claim, "attempt": current_job.attempt} if current_job else {}
    line = json.dumps({"what": what, "pid": os.getpid(), "at": time.time(), **claim, **more}) + "\n"
    descriptor = os.open(Path(os.environ["LAB"], "evidence"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def evidence(folder: str | Path, what: str | None = None) -> list[dict[str, Any]]:
    """The lines so far, all of them or those that say *what*."""
    try:
        lines = Path(folder, "evidence").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = [json.loads(line) for line in lines]
    return [line for line in found if what is None or line["what"] == what]


@contextmanager
def recorded(**more: object) -> Iterator[None]:
    """The start of a job, and its end if it gets there."""
    record("start", **more)
    yield
    record("end", **more)


def gate(name: str) -> Path:
    """The file whose existence lets a job go on."""
    return Path(os.environ["LAB"], f"gate-{name}")


def until(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """Wait until *condition* gives something true, and return that. Raises TimeoutError."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience:g} s: {what or condition}")
        time.sleep(0.01)
    return found


class Tasks:
    """The tasks, declared on one TaskWorker under names that are the same in every process."""

    def __init__(self, task_worker: TaskWorker) -> None:
        @task_worker.task(name="lab.add")
        def add(x: int, y: int) -> int:
            with recorded():
                return x + y

        @task_worker.task(name="lab.aadd")
        async def aadd(x: int, y: int) -> int:
            with recorded():
                return x + y

        @task_worker.task(name="lab.hold")
        def hold(name: str) -> str:
            with recorded():
                until(gate(name).exists, name)
                return name

        @task_worker.task(name="lab.ahold")
        async def ahold(name: str) -> str:
            with recorded():
                while not gate(name).exists():
                    await asyncio.sleep(0.01)
                return name

        @task_worker.task(name="lab.hold_claim")
        def hold_claim(name: str) -> int:
            """Each execution waits at a gate of its own."""
            with recorded():
                until(gate(f"{name}-{current_job.claim}").exists)
                return current_job.claim

        @task_worker.task(name="lab.hang")
        def hang() -> None:
            with recorded():
                threading.Event().wait()

        self.add, self.aadd, self.hold, self.ahold, self.hang = add, aadd, hold, ahold, hang
        self.hold_claim = hold_claim
