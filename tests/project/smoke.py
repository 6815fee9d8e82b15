"""Run by `tox -e wheel` in an environment that holds nothing but the wheel and what it depends on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from flask import Flask

import flask_taskworker
from flask_taskworker import BackgroundTaskWorker

task_worker = BackgroundTaskWorker()


@task_worker.task
def add(x: int, y: int) -> int:
    return x + y


@task_worker.task
async def multiply(x: int, y: int) -> int:
    return x * y


def main() -> None:
    package = Path(flask_taskworker.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not the installed wheel"
    assert (package / "py.typed").is_file(), "py.typed is not in the wheel"
    assert importlib.util.find_spec("pytest") is None, "the environment holds more than the wheel needs"
    with TemporaryDirectory() as instance:
        app = Flask(__name__, instance_path=instance)
        app.config["TASKER_DASHBOARD_URL"] = "/tasks"
        task_worker.init_app(app)
        task_worker.start()
        with app.app_context():
            results = add.enqueue(1, 2).result(timeout=20), multiply.enqueue(3, 4).result(timeout=20)
        task_worker.stop(timeout=10)
        app.debug = True
        page = app.test_client().get("/tasks/jobs/1").text
    assert "smoke.add" in page, "the dashboard is not whole in the wheel"
    assert results == (3, 12), results
    print(f"{package.parent.name}: two jobs ran, one sync and one async")


if __name__ == "__main__":
    main()
