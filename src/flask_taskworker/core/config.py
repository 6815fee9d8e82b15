"""The configuration of one app: frozen dataclasses, read once at ``init_app``.

This module is the only reader of ``TASKER_*`` and ``MAIL_*`` keys. It takes a mapping, so it needs no Flask objects.
Every wrong value raises :class:`~flask_taskworker.errors.ConfigError` with the key, the value and what is allowed.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import ConfigError, DeclarationError
from .clock import MAX_PERIOD
from .triggers import check_zone

MAX_SECONDS = MAX_PERIOD.total_seconds()

Driver = Literal["sqlite", "postgresql"]
Durability = Literal["full", "normal"]


_OF_A_RUN = ("concurrency", "debug", "job_log_level", "loop_interval", "queues", "shutdown_timeout", "threads")
"""The fields that only workers read, and so may differ in one run of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWorkerConfig:
    """What ``TASKER_*`` says, one field a key, lower case and without the prefix."""

    engine: str
    """The storage engine. Only "sqlalchemy" exists. Defaults to "sqlalchemy"."""

    driver: Driver
    """"sqlite" or "postgresql" (psycopg 3). Defaults to "sqlite"."""

    database_uri: URL
    """An SQLAlchemy URL. Defaults to taskworker.db in the instance folder; required for PostgreSQL."""

    loop_interval: float
    """Seconds: the longest a worker sleeps without looking. Defaults to 5."""

    debug: bool | None
    """Log every step. None follows app.debug at the time of use. Defaults to None."""

    concurrency: int
    """Async jobs at once in one process. Defaults to 100."""

    threads: int
    """Sync jobs at once in one process. Defaults to min(32, cpus + 4)."""

    queues: tuple[str, ...] | None
    """The queues to work on, in this order; None means all. Defaults to None."""

    lock_timeout: float
    """Seconds that a write waits for SQLite's lock before it raises. Defaults to 30."""

    shutdown_timeout: float
    """Seconds that running jobs have to end at shutdown before they are handed back. Defaults to 25."""

    durability: Durability
    """SQLite: "full" survives a power cut, "normal" the death of any process. Defaults to "full"."""

    keep_succeeded: timedelta
    """How long a succeeded or cancelled job and its result are kept. Defaults to 1 day."""

    keep_failed: timedelta
    """How long a failed job is kept. Defaults to 14 days."""

    listen: bool
    """PostgreSQL: hear notifications, hold a session lock, use prepared statements. False for PgBouncer in transaction
    mode, which allows none of them: workers behind it look every loop_interval. Defaults to True."""

    job_log_level: float
    """The lowest level of the log lines that are kept with each try of a job; infinite for none. Defaults to INFO."""

    timezone: str
    """The zone of cron expressions that name none. Defaults to "UTC"."""

    command: str
    """The name of the ``flask`` command group. Defaults to "tasks": ``flask tasks run``."""

    dashboard_url: str | None
    """Where the dashboard is mounted, for example "/tasks"; None mounts none. Defaults to None."""

    dashboard_user: str | None
    """Who may log in to a dashboard without an access callback. Defaults to None: no one."""

    dashboard_password: str | None = field(repr=False)
    """The password of dashboard_user. Defaults to None."""

    def is_debug(self, app_debug: bool) -> bool:
        """Whether to log every step, given what ``app.debug`` is now."""
        return app_debug if self.debug is None else self.debug

    @classmethod
    def of_a_run(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that may be set for one run of the workers, checked as their keys are. Raises ConfigError."""
        other = sorted(set(settings) - set(_OF_A_RUN))
        if other:
            raise ConfigError(
                f"{other[0]!r} cannot be set for one run of the workers. What can: {', '.join(_OF_A_RUN)}."
            )
        keys = {f"TASKER_{name.upper()}": value for name, value in settings.items()}
        checked = cls.from_mapping(keys, instance_path=os.sep)
        return {name: getattr(checked, name) for name in settings}

    @classmethod
    def unknown_keys(cls, config: Mapping[str, Any]) -> dict[str, str | None]:
        """The keys ``TASKER_…`` of *config* that are unknown, each with the key that was probably meant."""
        known = [f"TASKER_{name.upper()}" for name in cls.__dataclass_fields__]
        unknown = sorted(key for key in config if key.startswith("TASKER_") and key not in known)
        return {key: next(iter(get_close_matches(key, known, n=1, cutoff=0.8)), None) for key in unknown}

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any], *, instance_path: str) -> TaskWorkerConfig:
        """Read the ``TASKER_*`` keys of *config*; relative SQLite paths are relative to *instance_path*."""
        driver = cast(Driver, _choice(config, "TASKER_DRIVER", "sqlite", ("sqlite", "postgresql")))
        return cls(
            engine=_choice(config, "TASKER_ENGINE", "sqlalchemy", ("sqlalchemy",)),
            driver=driver,
            database_uri=_database_uri(config.get("TASKER_DATABASE_URI"), driver, Path(instance_path)),
            loop_interval=_seconds(config, "TASKER_LOOP_INTERVAL", 5.0, minimum=0.01),
            debug=_optional_flag(config, "TASKER_DEBUG"),
            concurrency=_count(config, "TASKER_CONCURRENCY", 100),
            threads=_count(config, "TASKER_THREADS", min(32, (os.cpu_count() or 1) + 4)),
            queues=_names(config, "TASKER_QUEUES"),
            lock_timeout=_seconds(config, "TASKER_LOCK_TIMEOUT", 30.0),
            shutdown_timeout=_seconds(config, "TASKER_SHUTDOWN_TIMEOUT", 25.0),
            durability=cast(Durability, _choice(config, "TASKER_DURABILITY", "full", ("full", "normal"))),
            keep_succeeded=timedelta(seconds=_seconds(config, "TASKER_KEEP_SUCCEEDED", 86_400.0)),
            keep_failed=timedelta(seconds=_seconds(config, "TASKER_KEEP_FAILED", 14 * 86_400.0)),
            listen=_flag(config, "TASKER_LISTEN", default=True),
            timezone=_zone(config, "TASKER_TIMEZONE", "UTC"),
            job_log_level=_log_level(config, "TASKER_JOB_LOG_LEVEL", logging.INFO),
            command=_word(config, "TASKER_COMMAND", "tasks"),
            dashboard_url=_mount_point(config, "TASKER_DASHBOARD_URL"),
            **_login(config),
        )


def _word(config: Mapping[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or not value.isprintable() or not value or " " in value:
        raise ConfigError.of(key, value, 'a word, such as "tasks"')
    return value


def _mount_point(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith("/") or set(value) & set("<>?#") or value.endswith("/"):
        raise ConfigError.of(key, value, 'a path with a slash before it and none behind it, such as "/tasks", or None')
    return value


def _login(config: Mapping[str, Any]) -> dict[str, str | None]:
    """User and password of the dashboard: both or neither. No error repeats the password."""
    keys = ("TASKER_DASHBOARD_USER", "TASKER_DASHBOARD_PASSWORD")
    user, password = (config.get(key) for key in keys)
    if any(value is not None and (not isinstance(value, str) or not value) for value in (user, password)):
        raise ConfigError(f"{keys[0]} and {keys[1]} must be texts that are not empty.")
    if (user is None) != (password is None):
        raise ConfigError(f"{keys[0]} and {keys[1]} belong together: set both, or neither.")
    if user is not None and ":" in user:
        raise ConfigError.of(keys[0], user, "a name without a colon, which browsers cannot send")
    return {"dashboard_user": user, "dashboard_password": password}


def _choice(config: Mapping[str, Any], key: str, default: str, allowed: tuple[str, ...]) -> str:
    value = config.get(key, default)
    if value not in allowed:
        raise ConfigError.of(key, value, " or ".join(map(repr, allowed)))
    return cast(str, value)


def _zone(config: Mapping[str, Any], key: str, default: str) -> str:
    name = config.get(key, default)
    try:
        return check_zone("timezone", name)
    except DeclarationError as error:
        allowed = "the name of a zone, such as 'Europe/Berlin'; without a zone database install the package tzdata"
        raise ConfigError.of(key, name, allowed) from error


def _seconds(config: Mapping[str, Any], key: str, default: float, *, minimum: float = 0.0) -> float:
    value = config.get(key, default)
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not minimum <= seconds <= MAX_SECONDS:
        raise ConfigError.of(key, value, f"a number of seconds, at least {minimum:g} and at most 100 years")
    return float(seconds)


def _count(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError.of(key, value, "a whole number, at least 1")
    return value


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError.of(key, value, "True or False")
    return value


def _optional_flag(config: Mapping[str, Any], key: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ConfigError.of(key, value, "True, False or None (None follows app.debug)")
    return value


def _log_level(config: Mapping[str, Any], key: str, default: int) -> float:
    value = config.get(key, default)
    levels = {**logging.getLevelNamesMapping(), "OFF": math.inf}
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.upper() not in levels:
        raise ConfigError.of(key, value, f"a level of logging ({', '.join(levels)}) or its number")
    return levels[value.upper()]


def _names(config: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    value = config.get(key)
    if value is None:
        return None
    allowed = "a list of different queue names, or None for all queues"
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError.of(key, value, allowed)
    if not all(isinstance(name, str) and name for name in value) or len(set(value)) != len(value):
        raise ConfigError.of(key, value, allowed)
    return tuple(value)


_IN_PASSWORDS = "In a password write @ as %40, / as %2F, : as %3A and % as %25."
_EXAMPLES: dict[Driver, str] = {
    "sqlite": "Example: sqlite:////var/lib/app/taskworker.db.",
    "postgresql": f"Example: postgresql://user:password@host:5432/database. {_IN_PASSWORDS}",
}


def _database_uri(value: object, driver: Driver, instance_path: Path) -> URL:
    key = "TASKER_DATABASE_URI"
    if value is None:
        if driver == "postgresql":
            raise ConfigError(
                f"{key} is required with TASKER_DRIVER = 'postgresql', for example postgresql://host/database."
            )
        return URL.create("sqlite", database=str((instance_path / "taskworker.db").resolve()))
    if not isinstance(value, str | URL):
        raise ConfigError(f"{key} must be an SQLAlchemy URL as a string, not a value of type {type(value).__name__}.")
    url = None
    with suppress(ArgumentError, ValueError):
        url = make_url(value)
    if url is None:
        # The text may hold a password: neither this error nor one behind it repeats it.
        raise ConfigError(f"{key} is not an SQLAlchemy URL. {_EXAMPLES[driver]}")
    if url.drivername == "postgres":
        # The old name, which hosting services still give out.
        url = url.set(drivername="postgresql")
    if url.get_backend_name() != driver:
        raise ConfigError(
            f"{key} is a {url.get_backend_name()!r} URL but TASKER_DRIVER is {driver!r}. "
            "Set TASKER_DRIVER to match the URL."
        )
    if driver == "sqlite":
        return _sqlite_file(key, url, instance_path)
    if "@" in (url.host or ""):
        # The rest of a password would be shown as part of the host.
        raise ConfigError(f"{key} has more than one @ before its host. {_IN_PASSWORDS}")
    password = url.query.get("password")
    if isinstance(password, str):
        # Where it is hidden when the URL is shown.
        url = url.difference_update_query(["password"]).set(password=password)
    return url


def _sqlite_file(key: str, url: URL, instance_path: Path) -> URL:
    database = url.database or ""
    if not database or database == ":memory:" or "mode=memory" in database or url.query.get("mode") == "memory":
        raise ConfigError(
            f"{key} names an in-memory database, which no other thread or process could see and no restart would "
            "survive. Use a file; in tests one in a temporary folder, for example sqlite:////tmp/test/taskworker.db."
        )
    if "\0" in database:
        raise ConfigError(f"{key} holds a NUL character, which no file name can.")
    if database.startswith("file:"):
        raise ConfigError(
            f"{key} uses SQLite's file: form. Give a plain path, for example sqlite:////var/lib/app/taskworker.db."
        )
    if url.query:
        raise ConfigError(
            f"{key} has parameters ({', '.join(sorted(url.query))}), which would be ignored. Leave them out; how long "
            "to wait for SQLite's lock is TASKER_LOCK_TIMEOUT."
        )
    return URL.create("sqlite", database=str((instance_path / database).resolve()))
