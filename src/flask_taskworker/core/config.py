"""The configuration of one app: frozen dataclasses, read once at ``init_app``.

This module is the only reader of ``TASKER_*`` and ``MAIL_*`` keys. It takes a mapping, so it needs no Flask objects.
Every wrong value raises :class:`~flask_taskworker.errors.ConfigError` with the key, the value and what is allowed.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import ConfigError, DeclarationError
from .limits import Limit
from .settings import choice, flag, period, read_fields, seconds, setting, whole_number
from .triggers import check_zone

Driver = Literal["sqlite", "postgresql"]
Durability = Literal["full", "normal"]


def _queue_limits(key: str, value: Any) -> dict[str, Limit]:
    def fits(name: object, limit: object) -> bool:
        is_plain = isinstance(limit, Limit) and limit.key is None and not limit.hold
        return is_plain and isinstance(name, str) and bool(name)

    if not isinstance(value, Mapping) or not all(fits(name, limit) for name, limit in value.items()):
        allowed = 'a dict such as {"mail": Limit(running=10, rate=Rate(20))}, without key and hold'
        raise ConfigError._of(key, value, allowed)
    return dict(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRules:
    """When an operator is to be told."""

    latency: timedelta | None
    """How long a ready job may wait."""
    failed_per_hour: int | None
    """How many jobs may fail in an hour."""
    mail: tuple[str, ...]
    """Who gets a mail."""


def _alerts(key: str, value: Any) -> AlertRules | None:
    allowed = 'a dict such as {"latency": 60, "failed_per_hour": 50, "mail": ["ops@example.org"]}, or None'
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) - set(AlertRules.__dataclass_fields__):
        raise ConfigError._of(key, value, allowed)
    latency, failed, mail = (value.get(name) for name in ("latency", "failed_per_hour", "mail"))
    addresses = [mail] if isinstance(mail, str) else mail or []
    if not isinstance(addresses, list | tuple) or not all(isinstance(one, str) and "@" in one for one in addresses):
        raise ConfigError._of(f"{key}['mail']", mail, "an address, or a list of addresses")
    return AlertRules(
        latency=None if latency is None else period()(f"{key}['latency']", latency),
        failed_per_hour=None if failed is None else whole_number(f"{key}['failed_per_hour']", failed),
        mail=tuple(addresses),
    )


def _word(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value or " " in value:
        raise ConfigError._of(key, value, 'a word, such as "tasks"')
    return value


def _import_path(key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ConfigError._of(key, value, 'what flask --app takes, such as "shop:create_app()", or None')
    return value


def _mount_point(key: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith("/") or set(value) & set("<>?#") or value.endswith("/"):
        raise ConfigError._of(key, value, 'a path with a slash before it and none behind it, such as "/tasks", or None')
    return value


def _login(key: str, value: Any) -> str | None:
    """User or password of the dashboard. The error does not repeat it."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigError(f"{key} must be a text that is not empty, or None.")
    return value


def _optional_flag(key: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ConfigError._of(key, value, "True, False or None (None follows app.debug)")
    return value


def _log_level(key: str, value: Any) -> float:
    levels = {**logging.getLevelNamesMapping(), "OFF": math.inf}
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.upper() not in levels:
        raise ConfigError._of(key, value, f"a level of logging ({', '.join(levels)}) or its number")
    return levels[value.upper()]


def _zone(key: str, value: Any) -> str:
    try:
        return check_zone("timezone", value)
    except DeclarationError as error:
        allowed = "the name of a zone, such as 'Europe/Berlin'; without a zone database install the package tzdata"
        raise ConfigError._of(key, value, allowed) from error


def _names(key: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not is_list or not all(isinstance(name, str) and name for name in value) or len(set(value)) != len(value):
        raise ConfigError._of(key, value, "a list of different queue names, or None for all queues")
    return tuple(value)


_OF_A_RUN = ("concurrency", "debug", "job_log_level", "loop_interval", "queues", "shutdown_timeout", "threads")
"""The fields that only workers read, and so may differ in one run of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWorkerConfig:
    """What ``TASKER_*`` says, one field a key, lower case and without the prefix."""

    engine: str = setting(choice("sqlalchemy"), "sqlalchemy")
    """The storage engine. Only "sqlalchemy" exists. Defaults to "sqlalchemy"."""

    driver: Driver = setting(choice("sqlite", "postgresql"), "sqlite")
    """"sqlite" or "postgresql" (psycopg 3). Defaults to that of database_uri, without one to "sqlite"."""

    database_uri: URL
    """An SQLAlchemy URL. Defaults to taskworker.db in the instance folder; required for PostgreSQL."""

    loop_interval: float = setting(seconds(minimum=0.01), 5.0)
    """Seconds: the longest a worker sleeps without looking. Defaults to 5."""

    debug: bool | None = setting(_optional_flag)
    """Log every step. None follows app.debug at the time of use. Defaults to None."""

    app: str | None = setting(_import_path)
    """Where the processes of isolated jobs find the app, as ``flask --app`` takes it. Defaults to None: looked for."""

    concurrency: int = setting(whole_number, 100)
    """Async jobs at once in one process. Defaults to 100."""

    threads: int = setting(whole_number, lambda: min(32, (os.cpu_count() or 1) + 4))
    """Sync jobs at once in one process. Defaults to min(32, cpus + 4)."""

    queues: tuple[str, ...] | None = setting(_names)
    """The queues to work on, in this order; None means all. Defaults to None."""

    lock_timeout: float = setting(seconds(), 30.0)
    """Seconds that a write waits for SQLite's lock before it raises. Defaults to 30."""

    shutdown_timeout: float = setting(seconds(), 25.0)
    """Seconds that running jobs have to end at shutdown before they are handed back. Defaults to 25."""

    durability: Durability = setting(choice("full", "normal"), "full")
    """SQLite: "full" survives a power cut, "normal" the death of any process. Defaults to "full"."""

    keep_succeeded: timedelta = setting(period(), timedelta(days=1))
    """How long a succeeded or cancelled job and its result are kept. Defaults to 1 day."""

    keep_failed: timedelta = setting(period(), timedelta(days=14))
    """How long a failed job is kept. Defaults to 14 days."""

    queue_limits: Mapping[str, Limit] = setting(_queue_limits, dict)
    """How many jobs of a queue run at once, or start in a time, over all processes: a dict of queue names and
    ``Limit``. Defaults to {}."""

    alerts: AlertRules | None = setting(_alerts)
    """When a signal and a mail say that something is wrong: a dict with "latency" (seconds), "failed_per_hour" and
    "mail" (addresses), each optional. Defaults to None: no alerts."""

    listen: bool = setting(flag, True)
    """PostgreSQL: hear notifications, hold a session lock, use prepared statements. False for PgBouncer in transaction
    mode, which allows none of them: workers behind it look every loop_interval. Defaults to True."""

    job_log_level: float = setting(_log_level, logging.INFO)
    """The lowest level of the log lines that are kept with each try of a job; infinite for none. Defaults to INFO."""

    timezone: str = setting(_zone, "UTC")
    """The zone of cron expressions that name none. Defaults to "UTC"."""

    command: str = setting(_word, "tasks")
    """The name of the ``flask`` command group. Defaults to "tasks": ``flask tasks run``."""

    dashboard_url: str | None = setting(_mount_point)
    """Where the dashboard is mounted, for example "/tasks"; None mounts none. Defaults to None."""

    dashboard_user: str | None = setting(_login)
    """Who may log in to a dashboard without an access callback. Defaults to None: no one."""

    dashboard_password: str | None = setting(_login, repr=False)
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
        readers = {field.name: field.metadata["read"] for field in fields(cls) if field.name in settings}
        return {name: readers[name](f"TASKER_{name.upper()}", value) for name, value in settings.items()}

    @classmethod
    def unknown_keys(cls, config: Mapping[str, Any]) -> dict[str, str | None]:
        """The keys of *config* that begin as ours and are unknown, each with the key that was probably meant."""
        known = [f"TASKER_{name.upper()}" for name in cls.__dataclass_fields__]
        prefix = re.compile(r"(TASKER|TASK_?WORKER|FLASK_TASKWORKER)_")
        unknown = sorted(key for key in config if prefix.match(key) and key not in known)
        return {key: close_key(prefix.sub("TASKER_", key), known) for key in unknown}

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any], *, instance_path: str) -> TaskWorkerConfig:
        """Read the ``TASKER_*`` keys of *config*; relative SQLite paths are relative to *instance_path*."""
        found = read_fields(cls, "TASKER_", config)
        if "TASKER_DRIVER" not in config and re.match(r"postgres(ql)?\b", str(config.get("TASKER_DATABASE_URI"))):
            found["driver"] = "postgresql"
        keys = ("TASKER_DASHBOARD_USER", "TASKER_DASHBOARD_PASSWORD")
        if (found["dashboard_user"] is None) != (found["dashboard_password"] is None):
            raise ConfigError(f"{keys[0]} and {keys[1]} belong together: set both, or neither.")
        if ":" in (found["dashboard_user"] or ""):
            raise ConfigError._of(
                keys[0], found["dashboard_user"], "a name without a colon, which browsers cannot send"
            )
        uri = _database_uri(config.get("TASKER_DATABASE_URI"), found["driver"], Path(instance_path))
        return cls(database_uri=uri, **found)


_IN_PASSWORDS = "In a password write @ as %40, / as %2F, : as %3A and % as %25."
_EXAMPLES: dict[Driver, str] = {
    "sqlite": "Example: sqlite:////var/lib/app/taskworker.db.",
    "postgresql": f"Example: postgresql://user:password@host:5432/database. {_IN_PASSWORDS}",
}


def close_key(key: str, known: Iterable[str], likeness: float = 0.8) -> str | None:
    """The key of *known* that was probably meant by *key*, or None."""
    return next(iter(get_close_matches(key, list(known), n=1, cutoff=likeness)), None)


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
