"""What the extension's original documentation shows of tasks works as it stands there."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask, current_app

from flask_taskworker import BackgroundTaskWorker, BlockingTaskWorker
from flask_taskworker.core.config import TaskWorkerConfig
from tests.support.apps import task_worker_of

SOURCES = Path(__file__).parents[2] / "src"


def make_app(tmp_path: Path, name: str = "shop") -> Flask:
    return Flask(name, instance_path=str(tmp_path / name), root_path=str(tmp_path))


def config_of(app: Flask) -> TaskWorkerConfig:
    config: TaskWorkerConfig = app.extensions["taskworker"].config
    return config


@pytest.mark.parametrize("kind", [BackgroundTaskWorker, BlockingTaskWorker])
@pytest.mark.parametrize("late", [False, True], ids=["with the app", "init_app"])
def test_construction_with_and_without_the_app(
    tmp_path: Path, kind: type[BackgroundTaskWorker | BlockingTaskWorker], late: bool
) -> None:
    app = make_app(tmp_path)
    if late:
        task_worker = kind()
        task_worker.init_app(app)
    else:
        task_worker = kind(app)
    assert task_worker_of(app) is task_worker
    assert not hasattr(task_worker, "app")
    assert task_worker.task(name="nothing")(lambda: None).enqueue().id == 1


def test_the_four_defaults(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    BackgroundTaskWorker(app)
    config = config_of(app)
    assert (config.engine, config.driver, config.loop_interval) == ("sqlalchemy", "sqlite", 5)
    for app.debug in (False, True):
        assert config.is_debug(app.debug) is app.debug


def test_the_four_settings(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.config.update(TASKER_ENGINE="sqlalchemy", TASKER_DRIVER="sqlite", TASKER_LOOP_INTERVAL=0.5, TASKER_DEBUG=True)
    BackgroundTaskWorker(app)
    config = config_of(app)
    assert (config.engine, config.driver, config.loop_interval, config.debug) == ("sqlalchemy", "sqlite", 0.5, True)
    assert config.is_debug(app_debug=False)


def test_tasks_use_the_configuration_of_the_current_app(tmp_path: Path) -> None:
    """Several applications in one process, with different configurations."""
    apps = [make_app(tmp_path, name) for name in ("one", "two")]
    task_worker = BackgroundTaskWorker()
    for number, app in enumerate(apps):
        app.config.update(TASKER_LOOP_INTERVAL=1 + number, GREETING=f"hello {number}")
        task_worker.init_app(app)

    @task_worker.task
    def greet() -> str:
        return str(current_app.config["GREETING"])

    task_worker.start()
    try:
        for number, app in enumerate(apps):
            with app.app_context():
                assert greet.enqueue().result(timeout=20) == f"hello {number}"
            assert config_of(app).loop_interval == 1 + number
    finally:
        task_worker.stop(timeout=2)


BACKGROUND = """
import os
from flask import Flask
from flask_taskworker import BackgroundTaskWorker

task_worker = BackgroundTaskWorker()

app = Flask(__name__)
task_worker.init_app(app)


@task_worker.task
def work():
    return os.getpid()


@app.route("/")
def index():
    return str(work.enqueue().result(timeout=20))


task_worker.start()
app.run(port=0)
"""

BLOCKING = BACKGROUND.replace("BackgroundTaskWorker", "BlockingTaskWorker").partition("task_worker.start()")[0]
WEB = BLOCKING + "app.run(port=0)\n"
WORKER = BLOCKING + "task_worker.start()\n"


class Program:
    """A program that runs in a process of its own."""

    def __init__(self, folder: Path, source: str) -> None:
        folder.mkdir()
        (folder / "shop.py").write_text(source)
        environment = {"PYTHONPATH": str(SOURCES), "PATH": "/usr/bin:/bin"}
        self.process = subprocess.Popen(
            [sys.executable, "shop.py"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []

    def url(self) -> str:
        """Where it listens."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"Running on (http://[\d.]+:\d+)", line):
                return found[1]
        raise AssertionError("".join(self.said))

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.said.append(self.process.communicate(timeout=20)[1])
        return self.process.returncode


@contextmanager
def running(*programs: Program) -> Iterator[None]:
    try:
        yield
    finally:
        for program in programs:
            program.process.kill()
            program.process.communicate()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
def test_start_and_then_run(tmp_path: Path) -> None:
    program = Program(tmp_path / "one", BACKGROUND)
    with running(program):
        url = program.url()
        assert {get(url) for _ in range(3)} == {str(program.process.pid)}
        program.end(signal.SIGINT)
    assert "Traceback" not in "".join(program.said)


@pytest.mark.slow
def test_one_machine_serves_and_another_works(tmp_path: Path) -> None:
    """The same program in two places, but for its last line; the database is between them."""
    shared = f'app.config["TASKER_DATABASE_URI"] = "sqlite:///{tmp_path}/jobs.db"\ntask_worker.init_app'
    web, worker = (
        Program(tmp_path / name, source.replace("task_worker.init_app", shared))
        for name, source in (("web", WEB), ("worker", WORKER))
    )
    with running(web, worker):
        url = web.url()
        assert {get(url) for _ in range(3)} == {str(worker.process.pid)}
        assert worker.end(signal.SIGTERM) == 0
        web.end(signal.SIGINT)
    assert "Traceback" not in "".join(web.said + worker.said)
