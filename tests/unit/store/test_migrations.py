"""The schema's versions: made once, taken from one to the next under a lock, and never undone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.engine import Connection

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.alembic import include_object
from flask_taskworker.errors import SchemaError
from flask_taskworker.store.driver import Driver, RowLocked, Run
from flask_taskworker.store.drivers import make_driver
from flask_taskworker.store.migrations import (
    STEPS,
    Step,
    creation_sql,
    found_version,
    is_ready,
    newest,
    prepare_schema,
    upgrade_sql,
)
from flask_taskworker.store.postgresql.driver import make_schema
from flask_taskworker.store.schema import VERSION, metadata
from flask_taskworker.store.sql import Store
from flask_taskworker.store.statements.jobs import Dialect
from tests.support.doors import engine_of
from tests.support.postgres import connect

pytestmark = [pytest.mark.both_databases, pytest.mark.no_tables_yet]

Rows = Callable[..., list[tuple[Any, ...]]]


def note_column(dialect: Dialect) -> list[str]:
    return ["ALTER TABLE taskworker_queue ADD COLUMN note TEXT", "UPDATE taskworker_queue SET note = 'old'"]


def broken(dialect: Dialect) -> list[str]:
    return ["ALTER TABLE taskworker_queue ADD COLUMN half TEXT", "ALTER TABLE nowhere ADD COLUMN x TEXT"]


NEXT = Step(version=VERSION + 1, statements=note_column)
AFTER = Step(version=VERSION + 2, statements=lambda dialect: ["ALTER TABLE taskworker_queue ADD COLUMN more TEXT"])
BROKEN = Step(version=VERSION + 2, statements=broken)


@pytest.fixture
def driver_of_old(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> Driver:
    """A database as today's code has left it."""
    driver: Driver = app.extensions["taskworker"].store.driver
    driver.prepare()
    rows("INSERT INTO taskworker_queue (name, paused) VALUES ('q', 1)")
    return driver


def upgrade(driver: Driver, *steps: Step) -> None:
    """As the drivers do it: one after the other."""
    if driver.dialect.name == "postgresql":
        driver.transaction(lambda run: make_schema(run, steps))
    else:
        driver.transaction(lambda run: prepare_schema(driver.dialect, run, steps))


def version_of(rows: Rows) -> str:
    return str(rows("SELECT value FROM taskworker_meta WHERE name = 'schema_version'")[0][0])


def test_steps_lead_to_the_version_of_the_tables() -> None:
    assert newest() == VERSION
    assert [step.version for step in STEPS] == list(range(2, VERSION + 1))


def test_older_tables_are_taken_to_the_next_version_and_keep_their_rows(
    driver_of_old: Driver, rows: Rows, store: Store
) -> None:
    store_id = store.store_id()
    upgrade(driver_of_old, NEXT)
    assert rows("SELECT name, paused, note FROM taskworker_queue") == [("q", 1, "old")]
    assert version_of(rows) == str(VERSION + 1)
    assert store.store_id() == store_id


def test_several_versions_are_taken_in_order(driver_of_old: Driver, rows: Rows) -> None:
    upgrade(driver_of_old, NEXT, AFTER)
    assert rows("SELECT note, more FROM taskworker_queue") == [("old", None)]
    assert version_of(rows) == str(VERSION + 2)


def test_upgrade_is_done_once_however_many_want_it(driver_of_old: Driver, rows: Rows) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(6)

    def want() -> None:
        barrier.wait()
        try:
            upgrade(driver_of_old, NEXT, AFTER)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert version_of(rows) == str(VERSION + 2)


def test_step_that_fails_leaves_everything_as_it_was(driver_of_old: Driver, rows: Rows) -> None:
    with pytest.raises(Exception, match="nowhere"):
        upgrade(driver_of_old, NEXT, BROKEN)
    assert version_of(rows) == str(VERSION)
    upgrade(driver_of_old, NEXT)
    assert rows("SELECT name, paused, note FROM taskworker_queue") == [("q", 1, "old")]


def test_upgrade_gives_up_soon_where_a_transaction_is_in_its_way(driver_of_old: Driver, rows: Rows, app: Flask) -> None:
    if driver_of_old.dialect.name == "sqlite":
        pytest.skip("one writer at a time")
    with connect(app.config["TASKER_DATABASE_URI"]) as session, session.transaction():
        session.execute("SELECT 1 FROM taskworker_queue")
        with pytest.raises(RowLocked, match="Another session holds a lock"):
            upgrade(driver_of_old, NEXT)
    upgrade(driver_of_old, NEXT)
    assert version_of(rows) == str(VERSION + 1)


def test_empty_database_gets_the_newest_version(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows, driver: str
) -> None:
    if driver == "sqlite":
        # The file itself is made together with its first tables.
        app.extensions["taskworker"].store.driver.prepare()
        for (table,) in rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'taskworker%'"):
            rows(f"DROP TABLE {table}")
    upgrade(app.extensions["taskworker"].store.driver, NEXT)
    assert version_of(rows) == str(VERSION + 1)
    assert rows("SELECT note FROM taskworker_queue") == []


def test_code_before_the_upgrade_is_refused_at_its_next_start(driver_of_old: Driver, rows: Rows, app: Flask) -> None:
    upgrade(driver_of_old, NEXT)
    # A process that has begun with the tables as they were goes on.
    driver_of_old.prepare()
    later = make_driver(app.extensions["taskworker"].config)
    with pytest.raises(SchemaError, match=f"version {VERSION + 1}, which a newer .* made; this one knows {VERSION}"):
        later.prepare()
    assert later.schema_version() == VERSION + 1
    later.close()


def test_looking_is_enough_to_see_that_an_upgrade_is_needed(driver_of_old: Driver) -> None:
    run: Run = driver_of_old.read
    assert is_ready(driver_of_old.dialect, run)
    assert not is_ready(driver_of_old.dialect, run, (NEXT,))
    upgrade(driver_of_old, NEXT)
    assert is_ready(driver_of_old.dialect, run, (NEXT,))
    with pytest.raises(SchemaError):
        is_ready(driver_of_old.dialect, run)


@pytest.mark.parametrize("damage", ["DELETE FROM taskworker_meta", "UPDATE taskworker_meta SET value = 'x'"])
def test_tables_without_a_version_are_refused(driver_of_old: Driver, rows: Rows, damage: str) -> None:
    rows(damage)
    with pytest.raises(SchemaError, match="does not say which version its tables have.*Restore them from a backup"):
        found_version(driver_of_old.dialect, driver_of_old.read)


def test_printed_statements_make_a_database_that_works(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows, driver: str
) -> None:
    @idle_worker.task(name="add")
    def add(x: int) -> int:
        return x + 1

    opened = app.extensions["taskworker"].store.driver
    if driver == "sqlite":
        opened.prepare()
        for (table,) in rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'taskworker%'"):
            rows(f"DROP TABLE {table}")
        opened._prepared = False
    for statement in creation_sql(opened.dialect):
        rows(statement)
    assert opened.schema_version() == VERSION
    idle_worker.start()
    assert add.enqueue(1).result(timeout=20) == 2
    assert len(app.extensions["taskworker"].store.store_id()) == 32


def test_printed_upgrade_has_the_steps_that_are_left() -> None:
    dialect = Dialect("sqlite")
    write = "UPDATE taskworker_meta SET value = '{}' WHERE name = 'schema_version'"
    assert upgrade_sql(dialect, VERSION, (NEXT, AFTER)) == [
        *note_column(dialect),
        write.format(VERSION + 1),
        *AFTER.statements(dialect),
        write.format(VERSION + 2),
    ]
    assert upgrade_sql(dialect, VERSION + 1, (NEXT, AFTER))[-1] == write.format(VERSION + 2)
    assert upgrade_sql(dialect, VERSION + 2, (NEXT, AFTER)) == []


def test_tables_are_set_up_for_a_queue(driver_of_old: Driver, rows: Rows, driver: str) -> None:
    if driver == "sqlite":
        pytest.skip("SQLite has nothing to set.")
    found = dict(rows("SELECT relname, array_to_string(reloptions, ' ') FROM pg_class WHERE reloptions IS NOT NULL "
                      "AND relnamespace = current_schema()::regnamespace"))  # fmt: skip
    assert "autovacuum_vacuum_scale_factor=0.01" in found["taskworker_job"]
    assert "fillfactor=50" in found["taskworker_worker"]


# -- Alembic -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def connection(driver_of_old: Driver, app: Flask) -> Iterator[Connection]:
    """The application's own connection to the database that holds the jobs, too."""
    engine = engine_of(app.extensions["taskworker"].config.database_uri)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def differences(connection: Connection, models: MetaData, **options: Any) -> list[str]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts=options)
    return [str(difference[0]) for difference in compare_metadata(context, models)]


def test_autogenerate_leaves_the_tables_alone(connection: Connection) -> None:
    models = MetaData()
    Table("note", models, Column("x", Integer, nullable=False))
    assert differences(connection, models, include_object=include_object) == []
    # It is the guard that keeps them.
    assert differences(connection, models).count("remove_table") == len(metadata.tables)


def test_autogenerate_sees_the_applications_own_changes(connection: Connection) -> None:
    models = MetaData()
    Table("other", models, Column("x", Integer, index=True))
    assert sorted(differences(connection, models, include_object=include_object)) == [
        "add_index",
        "add_table",
        "remove_table",
    ]
