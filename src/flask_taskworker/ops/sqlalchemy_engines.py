"""The application's own SQLAlchemy engines on the SQLite file of the jobs, and how their transactions begin.

A transaction that reads first and takes SQLite's write lock later fails at once when somebody else has written in
between, whatever the timeout. One that begins with BEGIN IMMEDIATE waits for its turn.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from flask import Flask
from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

log = logging.getLogger("flask_taskworker")

Beginning = Literal["immediate", "deferred", "autocommit"]
"""``immediate``: with the write lock. ``autocommit``: never, each statement is committed by itself."""

_BEGIN = re.compile(r"\s*BEGIN\b\s*(IMMEDIATE|EXCLUSIVE)?", re.IGNORECASE)
_DEFAULT = "the default one"


def names_file(app: Flask, path: Path) -> bool:
    """Whether the application's settings for Flask-SQLAlchemy name the file *path*."""
    binds = app.config.get("SQLALCHEMY_BINDS") or {}
    urls = [app.config.get("SQLALCHEMY_DATABASE_URI"), *(binds.values() if isinstance(binds, dict) else ())]
    return any(_file_of(url, app) == path.resolve() for url in urls)


def _file_of(url: object, app: Flask) -> Path | None:
    address = url.get("url") if isinstance(url, dict) else url
    try:
        parsed = make_url(address) if isinstance(address, str | URL) else None
    except ArgumentError:
        return None
    if parsed is None or parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return (Path(app.instance_path) / parsed.database).resolve()


def engines_on(app: Flask, path: Path) -> dict[str, Engine]:
    """The engines of the application's Flask-SQLAlchemy on the file *path*, by their binds; none where it has none."""
    db = app.extensions.get("sqlalchemy")
    try:
        with app.app_context():
            found = dict(db.engines) if db is not None else {}
    except Exception as error:  # noqa: BLE001 - whatever stands there under that name
        log.debug("the engines of %r cannot be seen: %s", app.name, error)
        return {}
    return {
        _DEFAULT if bind is None else f"the bind {bind!r}": engine
        for bind, engine in found.items()
        if isinstance(engine, Engine) and _file_of(engine.url, app) == path.resolve()
    }


def beginning_of(engine: Engine) -> Beginning | None:
    """How write transactions of *engine* begin; None where it cannot be told.

    Seen at a transaction on a connection of its own, which takes part in the engine's events, waits neither for the
    pool nor for the write lock, and writes into a temporary table alone. It is rolled back.
    """
    try:
        with _apart(engine) as connection:
            return _seen(connection, connection.connection.dbapi_connection)
    except Exception as error:  # noqa: BLE001 - the application's own event listeners run here
        log.debug("how transactions of %r begin cannot be told: %s", engine, error)
        return None


@contextmanager
def _apart(engine: Engine) -> Iterator[Connection]:
    # One of the engine's own pool might be waited for, and would keep the timeout that is set here.
    pool = engine.pool.recreate()
    try:
        with Connection(engine, pool.connect()) as connection:
            yield connection
    finally:
        pool.dispose()


def _seen(connection: Connection, driver: Any) -> Beginning | None:
    if not isinstance(driver, sqlite3.Connection):
        return None
    with closing(driver.cursor()) as cursor:
        cursor.execute("PRAGMA busy_timeout = 0")
        cursor.execute("CREATE TEMP TABLE taskworker_doctor (x)")
    driver.rollback()
    statements: list[str] = []
    driver.set_trace_callback(statements.append)
    try:
        with connection.begin() as transaction:
            connection.exec_driver_sql("INSERT INTO temp.taskworker_doctor VALUES (1)")
            transaction.rollback()
    except DBAPIError as error:
        # Somebody else has the write lock: that it was asked for is seen all the same.
        log.debug("while looking how transactions begin: %s", error)
    finally:
        driver.set_trace_callback(None)
    return _first(statements)


def _first(statements: list[str]) -> Beginning | None:
    begins = [found for statement in statements if (found := _BEGIN.match(statement))]
    if begins:
        return "immediate" if begins[0][1] else "deferred"
    return "autocommit" if any(statement.startswith("INSERT") for statement in statements) else None
