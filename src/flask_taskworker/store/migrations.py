"""The schema's making and its versions."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from ..errors import SchemaError
from .driver import Run
from .schema import VERSION, metadata
from .statements import Dialect

_READ_VERSION = "SELECT value FROM taskworker_meta WHERE name = 'schema_version'"
_WRITE_META = "INSERT INTO taskworker_meta (name, value) VALUES (:name, :value)"


def prepare_schema(dialect: Dialect, run: Run) -> None:
    """Create the tables where there are none, and refuse those of a newer version.

    Must run inside a write transaction: processes that start at once then come one after the other.
    """
    if not has_schema(dialect, run):
        for statement in ddl(dialect):
            run(statement, {})
        run(_WRITE_META, {"name": "schema_version", "value": str(VERSION)})
        run(_WRITE_META, {"name": "store_id", "value": secrets.token_hex(16)})
        return
    check_version(run)


def check_version(run: Run) -> None:
    """Refuse tables that this version of the code does not know."""
    rows = run(_READ_VERSION, {})
    found = rows[0][0] if rows else "none"
    if found != str(VERSION):
        raise SchemaError(
            f"The task database has schema version {found}, this version of Flask-TaskWorker needs {VERSION}. "
            "Install the version of Flask-TaskWorker that fits, or give TASKER_DATABASE_URI another database."
        )


def ddl(dialect: Dialect) -> list[str]:
    """The statements that create all tables and indexes."""
    words: Any = sqlite.dialect() if dialect.name == "sqlite" else postgresql.dialect()  # type: ignore[no-untyped-call]
    statements = []
    for table in metadata.sorted_tables:
        statements.append(str(CreateTable(table).compile(dialect=words)))
        statements += [
            str(CreateIndex(index).compile(dialect=words)) for index in sorted(table.indexes, key=lambda i: str(i.name))
        ]
    return statements


def has_schema(dialect: Dialect, run: Run) -> bool:
    """Whether there are tables of ours, of whatever version."""
    if dialect.name == "sqlite":
        return bool(run("SELECT 1 FROM sqlite_master WHERE name = 'taskworker_meta'", {}))
    return bool(run("SELECT 1 WHERE to_regclass('taskworker_meta') IS NOT NULL", {}))
