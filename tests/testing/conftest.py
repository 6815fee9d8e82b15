"""An app with tasks of every sort, as an application's own conftest.py would make one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from tests.postgres import a_schema

from flask_taskworker import BackgroundTaskWorker, Mail


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of what no database sees has the mark sqlite_only."""
    if "driver" in metafunc.fixturenames:
        file_only = metafunc.definition.get_closest_marker("sqlite_only")
        metafunc.parametrize("driver", ["sqlite"] if file_only else ["sqlite", "postgresql"])


@pytest.fixture
def app(make_app: Callable[..., Flask], driver: str, request: pytest.FixtureRequest) -> Iterator[Flask]:
    """On both databases."""
    if driver == "sqlite":
        yield _app(make_app, TASKER_DURABILITY="normal")
        return
    with a_schema(request.getfixturevalue("postgres")) as url:
        app = _app(make_app, TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=url)
        yield app
        app.extensions["taskworker"].client.close()


def _app(make_app: Callable[..., Flask], **config: Any) -> Flask:
    app = make_app(TESTING=True, MAIL_DEFAULT_SENDER="hello@example.org", **config)
    app.extensions["task_worker_of_test"] = BackgroundTaskWorker(app)
    Mail(app)
    return app


@pytest.fixture
def task_worker(app: Flask) -> BackgroundTaskWorker:
    """The app's worker, not started."""
    task_worker: BackgroundTaskWorker = app.extensions["task_worker_of_test"]
    return task_worker
