"""An app with tasks of every sort, as an application's own conftest.py would make one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Mail


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of what no database sees has the mark sqlite_only."""
    if "driver" in metafunc.fixturenames and not metafunc.definition.get_closest_marker("sqlite_only"):
        metafunc.parametrize("driver", ["sqlite", "postgresql"])


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    """On both databases."""
    app = make_app(TESTING=True, MAIL_DEFAULT_SENDER="hello@example.org")
    app.extensions["task_worker_of_test"] = BackgroundTaskWorker(app)
    Mail(app)
    return app


@pytest.fixture
def task_worker(app: Flask) -> BackgroundTaskWorker:
    """The app's worker, not started."""
    task_worker: BackgroundTaskWorker = app.extensions["task_worker_of_test"]
    return task_worker
