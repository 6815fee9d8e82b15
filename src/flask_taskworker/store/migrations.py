"""The schema's making, and the steps from one version of it to the next.

Tables are made, and brought to this version's form, when a process first uses the database; processes that start at
once do so one after the other. A step only adds, and what it adds has a default: processes with the code before it go
on working until they are replaced. Only a new start with the old code is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, Table
from sqlalchemy.schema import CreateIndex, CreateTable

from ..core.loggers import Logger, get_logger
from ..errors import SchemaError
from .driver import Run
from .schema import VERSION, WHERE, metadata
from .statements.jobs import Dialect

log: Logger = get_logger("store")

_READ_VERSION = "SELECT value FROM taskworker_meta WHERE name = 'schema_version'"
_WRITE_META = "INSERT INTO taskworker_meta (name, value) VALUES (:name, :value)"
_WRITE_VERSION = "UPDATE taskworker_meta SET value = '{}' WHERE name = 'schema_version'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What makes tables of *version* out of those of the version before."""

    version: int
    statements: Callable[[Dialect], Sequence[str]]


STEPS: tuple[Step, ...] = ()
"""From version 2 on, in order; the last one leads to schema.VERSION."""


def newest(steps: Sequence[Step] = STEPS) -> int:
    """The version to which these steps lead."""
    return steps[-1].version if steps else VERSION


def prepare_schema(dialect: Dialect, run: Run, steps: Sequence[Step] = STEPS) -> None:
    """Create the tables where there are none, take older ones to this version, and refuse newer ones.

    Must run inside a write transaction: processes that start at once then come one after the other.
    """
    found = found_version(dialect, run)
    if found is None:
        for statement in ddl(dialect):
            run(statement, {})
        run(_WRITE_META, {"name": "schema_version", "value": str(VERSION)})
        run(_WRITE_META, {"name": "store_id", "value": secrets.token_hex(16)})
        found = VERSION
    refuse_newer(found, steps)
    if found < newest(steps):
        for statement in upgrade_sql(dialect, found, steps):
            run(statement, {})
        log.info("the tables were taken from version %s to version %s", found, newest(steps))


def is_ready(dialect: Dialect, run: Run, steps: Sequence[Step] = STEPS) -> bool:
    """Whether the tables are of this version. Only looks. Raises SchemaError where they are newer."""
    found = found_version(dialect, run)
    refuse_newer(found, steps)
    return found == newest(steps)


def found_version(dialect: Dialect, run: Run) -> int | None:
    """The version of the tables that are there; None where there are none. Raises SchemaError for damaged ones."""
    looks = {
        "sqlite": "SELECT 1 FROM sqlite_master WHERE name = 'taskworker_meta'",
        "postgresql": "SELECT 1 WHERE to_regclass('taskworker_meta') IS NOT NULL",
    }
    if not run(looks[dialect.name], {}):
        return None
    rows = run(_READ_VERSION, {})
    try:
        return int(rows[0][0])
    except (IndexError, TypeError, ValueError):
        raise SchemaError(
            "The task database does not say which version its tables have: they are damaged, or not ours. Restore them "
            "from a backup, or give TASKER_DATABASE_URI another database."
        ) from None


def store_id_in(run: Run) -> str | None:
    """The random name that the store got when it was made."""
    rows = run("SELECT value FROM taskworker_meta WHERE name = 'store_id'", {})
    return rows[0][0] if rows else None


def refuse_newer(found: int | None, steps: Sequence[Step] = STEPS) -> None:
    """Raise SchemaError where the tables have a version that this one does not know."""
    if found is not None and found > newest(steps):
        raise SchemaError(
            f"The tables have version {found}, which a newer Flask-TaskWorker made; this one knows {newest(steps)}. "
            "Install the newer one, or give TASKER_DATABASE_URI another database."
        )


# -- the statements ----------------------------------------------------------------------------------------------------

_STORAGE = {
    # A queue's table is always changing: without this a million finished jobs would put off its cleaning.
    "taskworker_job": "autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.02",
    # Room for each beat on the page of its row.
    "taskworker_worker": "fillfactor = 50",
}


def ddl(dialect: Dialect) -> list[str]:
    """The statements that create all tables and indexes."""
    statements = [s for table in metadata.sorted_tables for s in _create_table(dialect, table)]
    if dialect.name == "postgresql":
        statements += [f"ALTER TABLE {name} SET ({parameters})" for name, parameters in _STORAGE.items()]
    return statements


def _create_table(dialect: Dialect, table: Table) -> list[str]:
    # Found by name: the other dialect, 3 MB, need not be in memory.
    words: Any = URL.create(dialect.name).get_dialect()()
    created = str(CreateTable(table).compile(dialect=words)).strip()
    if dialect.name == "sqlite":
        created += " STRICT" if table.dialect_options["sqlite"]["with_rowid"] else ", STRICT"
    return [
        created,
        *(
            str(CreateIndex(index).compile(dialect=words))
            + (f" WHERE {index.info[WHERE]}" if WHERE in index.info else "")
            for index in sorted(table.indexes, key=lambda i: str(i.name))
        ),
    ]


def creation_sql(dialect: Dialect) -> list[str]:
    """All that makes a database ready, for another user to run. Each run of it makes another store."""
    at_random = (
        "lower(hex(randomblob(16)))" if dialect.name == "sqlite" else "replace(gen_random_uuid()::text, '-', '')"
    )
    return [
        *ddl(dialect),
        f"INSERT INTO taskworker_meta (name, value) VALUES ('schema_version', '{VERSION}')",
        f"INSERT INTO taskworker_meta (name, value) VALUES ('store_id', {at_random})",
    ]


def upgrade_sql(dialect: Dialect, found: int, steps: Sequence[Step] = STEPS) -> list[str]:
    """The statements of all steps after version *found*."""
    statements: list[str] = []
    for step in steps:
        if step.version > found:
            statements += [*step.statements(dialect), _WRITE_VERSION.format(step.version)]
    return statements
