"""An app whose jobs have processes of their own. They load this module, so what a test wants comes as arguments."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from flask import Flask, current_app, g
from sqlalchemy.orm import Session

from flask_taskworker import BackgroundTaskWorker, Retry, current_job
from flask_taskworker.extension import TaskWorker
from tests.support.waiting import wait_for

engines: list[sqlalchemy.Engine] = []
"""To be disposed of where the app was not loaded for jobs."""


def create_app(uri: str, folder: str, **config: Any) -> Flask:
    """The app of the worker, and of its jobs' processes."""
    app = Flask("isolated", instance_path=folder, root_path=folder, static_folder=None)
    call = f"{__name__}:create_app({uri!r}, {folder!r})"
    app.config.update({"TASKER_DATABASE_URI": uri, "TASKER_APP": call, "TASKER_DURABILITY": "normal"} | config)
    task_worker = BackgroundTaskWorker(app)
    declare(task_worker, Path(folder), uri)
    # Nothing starts where the app is loaded for jobs.
    if config.get("START"):
        task_worker.start()
    return app


def noted(path: Path) -> int:
    """The number that a job has written there."""
    return int(wait_for(lambda: path.exists() and path.read_text(), f"{path} is written"))


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def declare(task_worker: TaskWorker, folder: Path, uri: str) -> None:  # noqa: C901 - many small tasks
    """The tasks, which keep what they note in *folder*."""
    task = task_worker.task
    task_worker.carry("tenant", save=lambda: g.get("tenant"), restore=lambda tenant: setattr(g, "tenant", tenant))

    engine = sqlalchemy.create_engine(uri.replace("postgresql:", "postgresql+psycopg:"))
    engines.append(engine)
    # What the app opens where it is loaded for jobs must not be shared by them.
    connections = [engine.connect()]
    with connections[0].begin():
        connections[0].execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS kept (text VARCHAR(20))"))
    connections[0].close()

    @task_worker.around
    def surround(job: Any) -> Iterator[None]:
        g.around = job.task
        with Session(engine) as g.session:
            yield

    @task(name="where", isolate=True)
    def where() -> tuple[int, str]:
        return os.getpid(), current_app.import_name

    @task(name="see", isolate=True)
    def see() -> dict[str, Any]:
        current_job.progress(3, 4, "nearly")
        logging.getLogger("shop").warning("a line of %s", "the job")
        job = task_worker.tasks["where"].enqueue()
        child = task_worker.get_job(job.id)
        return {
            "id": current_job.id,
            "attempt": current_job.attempt,
            "tenant": g.tenant,
            "around": g.around,
            "result": child.result(timeout=30)[1],
            "steps": [current_job.step(name, len, name) for name in ("a", "bc")],
        }

    @task(name="report", isolate=True)
    def report() -> None:
        current_job.progress(1, 2, "half")
        logging.getLogger("shop").warning("half of it")
        wait_for(folder.joinpath("go").exists)

    @task(name="fail", isolate=True, retry=Retry(2, base=0.001))
    def fail() -> None:
        raise KeyError(f"try {current_job.attempt}")

    @task(name="count", isolate=True, timeout=1)
    def count() -> int:
        return sum(range(10**12))

    @task(name="die", isolate=True)
    def die(how: str) -> None:
        match how:
            case "exit":
                os._exit(3)
            case "crash":
                ctypes.string_at(0)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)

    @task(name="keep", isolate=True, atomic=lambda: g.session)
    def keep(text: str) -> None:
        g.session.execute(sqlalchemy.text("INSERT INTO kept VALUES (:text)"), {"text": text})

    @task(name="leak", isolate=True)
    def leak(megabytes: int) -> int:
        return len(b"x" * (megabytes << 20))

    @task(name="hold", isolate=True)
    def hold() -> None:
        child = subprocess.Popen(["sleep", "1000"])
        folder.joinpath("child").write_text(str(child.pid))
        folder.joinpath(f"job-{current_job.claim}").write_text(str(os.getpid()))
        try:
            while True:
                time.sleep(1000)
        finally:
            folder.joinpath("left").touch()

    @task(name="hand_over", isolate=True)
    def hand_over() -> str:
        folder.joinpath(f"job-{current_job.claim}").write_text(str(os.getpid()))
        if current_job.claim > 1:
            return "went on"
        while True:
            current_job.check()
            time.sleep(0.01)
