from __future__ import annotations

import dataclasses
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import make_url

from flask_taskworker import BlockingTaskWorker
from flask_taskworker.core.config import TaskWorkerConfig
from flask_taskworker.errors import ConfigError

INSTANCE = "/srv/app/instance"
SECRET = "hunter2"


def read(**config: Any) -> TaskWorkerConfig:
    return TaskWorkerConfig.from_mapping(config, instance_path=INSTANCE)


def test_defaults_are_the_documented_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert dataclasses.asdict(read()) == {
        "engine": "sqlalchemy",
        "driver": "sqlite",
        "database_uri": make_url(f"sqlite:///{INSTANCE}/taskworker.db"),
        "loop_interval": 5.0,
        "debug": None,
        "app": None,
        "concurrency": 100,
        "threads": 8,
        "queues": None,
        "lock_timeout": 30.0,
        "shutdown_timeout": 25.0,
        "durability": "full",
        "keep_succeeded": timedelta(days=1),
        "keep_failed": timedelta(days=14),
        "queue_limits": {},
        "alerts": None,
        "listen": True,
        "job_log_level": 20,
        "timezone": "UTC",
        "command": "tasks",
        "dashboard_url": None,
        "dashboard_user": None,
        "dashboard_password": None,
    }


@pytest.mark.parametrize(("cpus", "threads"), [(1, 5), (28, 32), (64, 32), (None, 5)])
def test_threads_follow_the_processors(monkeypatch: pytest.MonkeyPatch, cpus: int | None, threads: int) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    assert read().threads == threads


def test_every_value_is_read() -> None:
    config = read(
        TASKER_ENGINE="sqlalchemy",
        TASKER_DRIVER="postgresql",
        TASKER_DATABASE_URI="postgresql://ann@host/db",
        TASKER_LOOP_INTERVAL=0.5,
        TASKER_DEBUG=True,
        TASKER_APP="shop:create_app()",
        TASKER_CONCURRENCY=7,
        TASKER_THREADS=3,
        TASKER_QUEUES=["mail", "default"],
        TASKER_LOCK_TIMEOUT=0,
        TASKER_SHUTDOWN_TIMEOUT=timedelta(minutes=1),
        TASKER_DURABILITY="normal",
        TASKER_KEEP_SUCCEEDED=3600,
        TASKER_KEEP_FAILED=timedelta(days=2),
        TASKER_LISTEN=False,
        TASKER_JOB_LOG_LEVEL="warning",
        TASKER_TIMEZONE="Europe/Berlin",
        TASKER_COMMAND="jobs",
        TASKER_DASHBOARD_URL="/tasks",
        TASKER_DASHBOARD_USER="ana",
        TASKER_DASHBOARD_PASSWORD="hunter2",
    )
    assert "hunter2" not in repr(config)
    assert dataclasses.asdict(config) == {
        "engine": "sqlalchemy",
        "driver": "postgresql",
        "database_uri": make_url("postgresql://ann@host/db"),
        "loop_interval": 0.5,
        "debug": True,
        "app": "shop:create_app()",
        "concurrency": 7,
        "threads": 3,
        "queues": ("mail", "default"),
        "lock_timeout": 0.0,
        "shutdown_timeout": 60.0,
        "durability": "normal",
        "keep_succeeded": timedelta(hours=1),
        "keep_failed": timedelta(days=2),
        "queue_limits": {},
        "alerts": None,
        "listen": False,
        "job_log_level": 30,
        "timezone": "Europe/Berlin",
        "command": "jobs",
        "dashboard_url": "/tasks",
        "dashboard_user": "ana",
        "dashboard_password": "hunter2",
    }


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_url_alone_says_which_database_it_is(scheme: str) -> None:
    config = read(TASKER_DATABASE_URI=f"{scheme}://ann@host/db")
    assert (config.driver, config.database_uri.host) == ("postgresql", "host")
    assert read(TASKER_DATABASE_URI="sqlite:////tmp/x.db").driver == "sqlite"
    with pytest.raises(ConfigError, match="Set TASKER_DRIVER to match the URL"):
        read(TASKER_DATABASE_URI=f"{scheme}://ann@host/db", TASKER_DRIVER="sqlite")


def test_other_keys_are_not_touched() -> None:
    assert read(SECRET_KEY="x", MAIL_SERVER="y", TASKER_SOMETHING=1) == read()


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().threads = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("debug", "app_debug", "expected"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_debug_follows_the_app_unless_it_is_set(debug: bool | None, app_debug: bool, expected: bool) -> None:
    assert read(TASKER_DEBUG=debug).is_debug(app_debug) is expected


NUMBERS = [
    "TASKER_LOOP_INTERVAL",
    "TASKER_LOCK_TIMEOUT",
    "TASKER_SHUTDOWN_TIMEOUT",
    "TASKER_KEEP_SUCCEEDED",
    "TASKER_KEEP_FAILED",
]
NO_NUMBERS = ["5", None, True, [], -1, -0.5, float("nan"), float("inf"), timedelta(seconds=-1), 1j, 10**400, -(10**400)]
COUNTS = ["TASKER_CONCURRENCY", "TASKER_THREADS"]
NO_COUNTS = [0, -1, 1.0, "5", None, True, float("nan"), timedelta(1)]


def test_wrong_value_is_an_error_with_key_value_and_what_is_allowed() -> None:
    for key, value, allowed in [
        *[("TASKER_ENGINE", value, "'sqlalchemy'") for value in ("redis", "", None, 5, ["sqlalchemy"])],
        *[("TASKER_DRIVER", value, "'sqlite' or 'postgresql'") for value in ("mysql", "SQLite", None, 5, {})],
        *[("TASKER_TIMEZONE", value, "the name of a zone") for value in ("Berlin", "", None, 5, "Europe")],
        *[("TASKER_DURABILITY", value, "'full' or 'normal'") for value in ("off", None, True, [])],
        *[(key, value, "a number of seconds, at least 0") for key in NUMBERS for value in NO_NUMBERS],
        ("TASKER_LOOP_INTERVAL", 0, "a number of seconds, at least 0.01"),
        *[(key, value, "a whole number, at least 1") for key in COUNTS for value in NO_COUNTS],
        *[("TASKER_DEBUG", value, "True, False or None") for value in (1, 0, "yes", "")],
        *[
            ("TASKER_QUEUES", value, "a list of different queue names")
            for value in ("mail", [], [""], ["a", "a"], [1], 5, {"a"})
        ],
        *[
            ("TASKER_QUEUES", value, "a list of different queue names")
            for value in (["a", None], [["a"]], b"ab", {"a": 1})
        ],
    ]:
        with pytest.raises(ConfigError) as caught:
            read(**{key: value})
        message = str(caught.value)
        assert message.startswith(f"{key} = ")
        assert repr(value) in message
        assert f"Allowed: {allowed}" in message


@pytest.mark.parametrize("key", NUMBERS)
def test_period_longer_than_any_calendar_is_an_error(key: str) -> None:
    for value in (1e300, timedelta.max):
        with pytest.raises(ConfigError, match=rf"^{key} = .*at most 100 years"):
            read(**{key: value})


# ---- the database ----


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///tasks.db", f"{INSTANCE}/tasks.db"),
        ("sqlite:///../tasks.db", "/srv/app/tasks.db"),
        ("sqlite:////var/lib/app/tasks.db", "/var/lib/app/tasks.db"),
        ("sqlite+aiosqlite:////var/lib/app/tasks.db", "/var/lib/app/tasks.db"),
        (make_url("sqlite:///tasks.db"), f"{INSTANCE}/tasks.db"),
    ],
)
def test_sqlite_path_is_relative_to_the_instance_folder(uri: object, path: str) -> None:
    url = read(TASKER_DATABASE_URI=uri).database_uri
    assert url.database == path
    assert url.get_backend_name() == "sqlite"


def test_relative_instance_path_gives_an_absolute_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    url = TaskWorkerConfig.from_mapping(
        {"TASKER_DATABASE_URI": "sqlite:///x.db"}, instance_path="instance"
    ).database_uri
    assert url.database == str(tmp_path / "instance" / "x.db")


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite:///x.db?mode=memory",
        "sqlite:///",
    ],
)
def test_in_memory_database_is_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"^TASKER_DATABASE_URI names an in-memory database.*Use a file"):
        read(TASKER_DATABASE_URI=uri)


def test_file_form_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"^TASKER_DATABASE_URI uses SQLite's file: form. Give a plain path"):
        read(TASKER_DATABASE_URI="sqlite:///file:/srv/x.db?uri=true")


def test_parameters_of_an_sqlite_url_are_refused_rather_than_ignored() -> None:
    with pytest.raises(ConfigError, match=r"^TASKER_DATABASE_URI has parameters \(timeout\).*TASKER_LOCK_TIMEOUT"):
        read(TASKER_DATABASE_URI="sqlite:////srv/x.db?timeout=5")


def test_postgresql_needs_a_uri() -> None:
    with pytest.raises(ConfigError, match=r"^TASKER_DATABASE_URI is required .*postgresql://host/database"):
        read(TASKER_DRIVER="postgresql")


def test_old_name_of_postgresql_is_understood() -> None:
    config = read(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI="postgres://ann@host/db")
    assert config.database_uri == make_url("postgresql://ann@host/db")


def test_password_among_the_parameters_is_hidden_like_any_other() -> None:
    uri = "postgresql://ann@host/db?password=hunter2&sslmode=require"
    config = read(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=uri)
    assert config.database_uri == make_url("postgresql://ann:hunter2@host/db?sslmode=require")
    assert "hunter2" not in f"{config} {config.database_uri.render_as_string(hide_password=True)}"


def test_postgresql_uri_is_taken_whole() -> None:
    uri = "postgresql+psycopg://ann:hunter2@host:5433/db?sslmode=require"
    assert read(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=uri).database_uri == make_url(uri)


@pytest.mark.parametrize(
    ("driver", "uri", "message"),
    [
        ("sqlite", f"postgresql://ann:{SECRET}@host/db", "is a 'postgresql' URL but TASKER_DRIVER is 'sqlite'"),
        ("postgresql", "sqlite:///x.db", "is a 'sqlite' URL but TASKER_DRIVER is 'postgresql'"),
        ("postgresql", f"mysql://ann:{SECRET}@host/db", "is a 'mysql' URL"),
        ("postgresql", f"mysql+nodriver://ann:{SECRET}@host/db", "is a 'mysql' URL"),
        ("sqlite", f"{SECRET}", "is not an SQLAlchemy URL. Example: sqlite:"),
        ("sqlite", "", "is not an SQLAlchemy URL"),
        ("postgresql", f"postgresql://ann:{SECRET}@host:port/db", "is not an SQLAlchemy URL"),
        ("postgresql", f"postgresql://ann:x@y:{SECRET}@host:{SECRET}/db", "is not an SQLAlchemy URL"),
        ("postgresql", f"postgresql//ann:{SECRET}@host/db", "is not an SQLAlchemy URL"),
        ("postgresql", f"ann:{SECRET}@host/db", "is not an SQLAlchemy URL"),
        ("sqlite", f"sqlite:///{SECRET}\0.db", "TASKER_DATABASE_URI"),
        ("sqlite", f"sqlite:///file:{SECRET}?mode=memory", "in-memory"),
        ("sqlite", [SECRET], "must be an SQLAlchemy URL as a string, not a value of type list"),
        ("sqlite", SECRET.encode(), "not a value of type bytes"),
        ("sqlite", False, "not a value of type bool"),
    ],
)
def test_no_error_repeats_the_uri(driver: str, uri: object, message: str) -> None:
    with pytest.raises(ConfigError, match="TASKER_DATABASE_URI") as caught:
        read(TASKER_DRIVER=driver, TASKER_DATABASE_URI=uri)
    assert message in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        assert SECRET not in repr(error.args)
        error = error.__cause__ or error.__context__
    # What a log would show; source lines hold no values.
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_password_is_not_in_the_repr() -> None:
    config = read(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=f"postgresql://ann:{SECRET}@host/db")
    assert SECRET not in repr(config)
    assert SECRET not in str(config.database_uri)


def test_unknown_keys_are_named_with_what_was_probably_meant() -> None:
    config = {"TASKER_THREAD": 8, "TASKER_COLOUR": "red", "TASKER_THREADS": 8, "DEBUG": True}
    assert TaskWorkerConfig.unknown_keys(config) == {"TASKER_COLOUR": None, "TASKER_THREAD": "TASKER_THREADS"}


def test_settings_of_one_run_are_checked_as_their_keys_are() -> None:
    given = {"queues": ["mail", "web"], "concurrency": 3, "shutdown_timeout": 60, "debug": None}
    assert TaskWorkerConfig.of_a_run(given) == {
        "queues": ("mail", "web"),
        "concurrency": 3,
        "shutdown_timeout": 60.0,
        "debug": None,
    }
    with pytest.raises(ConfigError, match="TASKER_QUEUES = 'mail' is not allowed. Allowed: a list"):
        TaskWorkerConfig.of_a_run({"queues": "mail"})


@pytest.mark.parametrize("name", ["quues", "durability", "database_uri"])
def test_settings_that_workers_do_not_read_are_refused_for_one_run(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' cannot be set for one run of the workers. What can: concurrency"):
        TaskWorkerConfig.of_a_run({name: "full"})


def test_wrong_setting_of_a_run_is_refused_before_anything_begins(tmp_path: Path) -> None:
    task_worker = BlockingTaskWorker(Flask("shop", instance_path=str(tmp_path)))
    with pytest.raises(ConfigError, match="TASKER_QUEUES"):
        task_worker._run(queues="mail")
    assert list(tmp_path.iterdir()) == []
