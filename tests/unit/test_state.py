"""One living app for each database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import AppError
from flask_taskworker.state import KEY

MakeApp = Callable[..., Flask]


def test_two_apps_on_one_database_are_refused_by_name(make_app: MakeApp, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/jobs.db"
    task_worker = BackgroundTaskWorker()
    task_worker.init_app(first := make_app(TASKER_DATABASE_URI=uri))
    with pytest.raises(AppError, match="'app1' and 'app2' would share the database"):
        task_worker.init_app(make_app(TASKER_DATABASE_URI=uri))
    assert KEY in first.extensions


def test_next_app_of_a_factory_takes_the_place_of_the_last(make_app: MakeApp, tmp_path: Path) -> None:
    task_worker = BackgroundTaskWorker()
    apps = [Flask("shop", instance_path=str(tmp_path)) for _ in range(2)]
    for app in apps:
        task_worker.init_app(app)
    assert apps[1].extensions[KEY].find_app() is apps[1]
    with apps[1].app_context():
        assert task_worker._state() is apps[1].extensions[KEY]
