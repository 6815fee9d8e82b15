"""Isolated jobs of real programs: how their processes find the app, and that they die with their worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flask_taskworker import JobState
from tests.support.apps import task_worker_of
from tests.support.isolated import create_app, is_alive, noted
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

SHOP = """
import logging, os, threading
from flask import Flask
from flask_taskworker import BackgroundTaskWorker, BlockingTaskWorker

task_worker = {worker}()

@task_worker.task(isolate=True)
def where() -> int:
    logging.getLogger("shop").warning("logged in %s", os.getpid())
    return os.getpid()

def look():
    print("pids:", os.getpid(), where.enqueue().result(timeout=30), flush=True)
"""
MODULE = "\napp = Flask(__name__)\ntask_worker.init_app(app)\n"
FACTORY = """
def create_app():
    app = Flask(__name__)
    task_worker.init_app(app)
    return app
"""
BLOCKING = """
def look_and_stop():
    with app.app_context():
        look()
    task_worker.stop()

threading.Thread(target=look_and_stop, daemon=True).start()
task_worker.start()
"""
MAIN = '\nif __name__ == "__main__":\n'
PROGRAMS = {
    "a variable, and start() at import": ("BackgroundTaskWorker", f"{MODULE}task_worker.start()\n{MAIN}    look()\n"),
    "a factory, and the app in the main part": (
        "BlockingTaskWorker",
        f"{FACTORY}{MAIN}    app = create_app()\n" + BLOCKING.replace("\n", "\n    "),
    ),
    "app.run() without a guard": (
        "BackgroundTaskWorker",
        f"{MODULE}task_worker.start()\n{MAIN}    threading.Thread(target=lambda: look() or os._exit(0)).start()\n"
        "app.run(port=0)\n",
    ),
}


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_processes_of_jobs_find_the_app_of_a_script(tmp_path: Path, program: str) -> None:
    worker, text = PROGRAMS[program]
    (tmp_path / "shop.py").write_text(SHOP.replace("{worker}", worker) + text)
    ended = run(tmp_path, "shop.py")
    # app.run() has words of its own, one of them about its being ignored in the other process.
    (pids,) = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("pids: ")]
    assert len(set(pids)) == 2, ended.stderr
    # Logging is not set up: the line comes out as the worker's own do.
    assert ended.stderr.count(f"logged in {pids[1]}") == 1


def test_processes_of_jobs_find_the_app_that_the_flask_command_loads(tmp_path: Path) -> None:
    text = SHOP.replace("{worker}", "BackgroundTaskWorker") + FACTORY.replace("create_app()", "make(name)")
    (tmp_path / "shop.py").write_text(text)
    flask = ["-m", "flask", "--app", "shop:make('a')", "tasks"]
    job = run(tmp_path, *flask, "call", "shop.where").stdout.strip()
    ended = run(tmp_path, *flask, "run", "--drain")
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(run(tmp_path, *flask, "job", job, "--json").stdout)
    assert shown["state"] == "succeeded"
    assert f"logged in {shown['result']}" in ended.stderr


def test_app_that_cannot_be_found_is_reported_at_the_start_of_the_worker(tmp_path: Path) -> None:
    text = SHOP.replace("{worker}", "BackgroundTaskWorker") + FACTORY.replace("create_app()", "make(name)")
    (tmp_path / "shop.py").write_text(f"{text}\napps = [make('a')]\ntask_worker.start()\ntask_worker.stop()\n")
    ended = run(tmp_path, "shop.py")
    assert "Set TASKER_APP to what flask --app takes" in ended.stderr


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "postgresql":
            yield stack.enter_context(request.getfixturevalue("schema_pool").schema())
        else:
            yield f"sqlite:///{tmp_path}/taskworker.db"


def test_killed_worker_leaves_no_process_behind_and_its_job_runs_again(tmp_path: Path, uri: str) -> None:
    app = create_app(uri, str(tmp_path))
    task_worker = task_worker_of(app)
    job = task_worker.tasks["hold"].enqueue()
    code = f"from tests.support.isolated import create_app; create_app({uri!r}, {str(tmp_path)!r}, START=True)"
    worker = subprocess.Popen([sys.executable, "-c", f"{code}; import threading; threading.Event().wait()"])
    try:
        pids = [noted(tmp_path / "job-1"), noted(tmp_path / "child")]
        parent = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        worker.kill()
        worker.wait()
        wait_for(lambda: not any(map(is_alive, [*pids, parent])), "all processes have ended")
        task_worker.start()
        again = noted(tmp_path / "job-2")
        assert job.refresh().state is JobState.RUNNING
        task_worker.stop(timeout=0)
        wait_for(lambda: not is_alive(again), "that one has ended, too")
    finally:
        worker.kill()
        worker.wait()
        app.extensions["taskworker"].client.close()
