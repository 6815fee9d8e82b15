"""Which driver a configuration names."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import ConfigError
from flask_taskworker.store.sqlite.driver import SqliteDriver


def test_sqlite_is_the_driver_unless_another_is_named(make_app: Callable[..., Flask]) -> None:
    BackgroundTaskWorker(app := make_app())
    assert isinstance(app.extensions["taskworker"].store.driver, SqliteDriver)


def test_missing_psycopg_is_named_with_the_command_that_installs_it(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "psycopg":
            raise ModuleNotFoundError("No module named 'psycopg'")
        return real(name, *args, **options)

    for name in [name for name in sys.modules if name.startswith(("psycopg", "flask_taskworker.store.postgresql"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs psycopg 3\. Install it: pip install"):
        BackgroundTaskWorker(make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI="postgresql://x@localhost/y"))
