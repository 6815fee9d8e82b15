"""``flask tasks db …`` on both databases."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy.engine import URL

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.store.schema import VERSION, metadata
from tests.support.postgres import run_sql

pytestmark = pytest.mark.no_tables_yet


class Shop:
    """An app and its commands."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.task_worker = BackgroundTaskWorker(app)
        self.state = app.extensions["taskworker"]
        self.url: URL = self.state.config.database_uri

    def run(self, *words: str) -> Result:
        return self.app.test_cli_runner().invoke(args=["tasks", "db", *words])

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Past the package."""
        if self.url.get_backend_name() == "postgresql":
            return run_sql(self.url.render_as_string(hide_password=False), statement)
        with closing(sqlite3.connect(self.file, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    @property
    def file(self) -> Path:
        return Path(self.url.database or "")

    def set_version(self, version: int) -> None:
        self.sql(f"UPDATE taskworker_meta SET value = '{version}' WHERE name = 'schema_version'")


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(make_app: Callable[..., Flask], request: pytest.FixtureRequest) -> Iterator[Shop]:
    config = {}
    if request.param == "postgresql":
        config = {"TASKER_DRIVER": "postgresql", "TASKER_DATABASE_URI": request.getfixturevalue("postgres_url")}
    shop = Shop(make_app(**config))
    yield shop
    shop.state.client.close()


def said(result: Result) -> tuple[int, str, str]:
    return result.exit_code, result.stdout, result.stderr


def test_init_makes_the_tables_once(shop: Shop) -> None:
    assert said(shop.run("init")) == (0, f"{VERSION}\n", "The tables were created.\n")
    store_id = shop.state.store.store_id()
    assert said(shop.run("init")) == (0, f"{VERSION}\n", "The tables exist already.\n")
    assert shop.state.store.store_id() == store_id


@pytest.mark.parametrize("command", ["current", "check", "upgrade"])
def test_without_tables_nothing_is_made(shop: Shop, command: str) -> None:
    assert said(shop.run(command)) == (5, "", "No tables yet. Create them: flask tasks db init\n")
    if shop.url.get_backend_name() == "sqlite":
        assert not shop.file.exists()
    assert shop.state.store.driver.schema_version() is None


def test_tables_of_this_version_are_fine(shop: Shop) -> None:
    shop.run("init")
    assert said(shop.run("current")) == (0, f"{VERSION}\n", "")
    assert said(shop.run("check")) == (0, "", f"The tables have version {VERSION}, as needed.\n")
    assert said(shop.run("upgrade")) == (0, f"{VERSION}\n", "The tables need no upgrade.\n")


@pytest.mark.parametrize("command", ["current", "check"])
def test_versions_are_there_as_json(shop: Shop, command: str) -> None:
    def answer() -> tuple[int, Any]:
        result = shop.run(command, "--json")
        return result.exit_code, json.loads(result.stdout)

    assert answer() == (5, {"version": None, "needed": VERSION, "fits": False})
    shop.run("init")
    assert answer() == (0, {"version": VERSION, "needed": VERSION, "fits": True})
    for other in (VERSION - 1, VERSION + 1):
        shop.set_version(other)
        code = 0 if command == "current" else 5
        assert answer() == (code, {"version": other, "needed": VERSION, "fits": False})


@pytest.mark.parametrize("command", ["check", "init"])
def test_older_tables_want_an_upgrade(shop: Shop, command: str) -> None:
    shop.run("init")
    shop.set_version(VERSION - 1)
    words = f"The tables have version {VERSION - 1}; this Flask-TaskWorker needs {VERSION}: flask tasks db upgrade\n"
    assert said(shop.run(command)) == (5, "", words)
    assert said(shop.run("current")) == (0, f"{VERSION - 1}\n", "")


@pytest.mark.parametrize("command", ["check", "init", "upgrade"])
def test_newer_tables_are_refused(shop: Shop, command: str) -> None:
    shop.run("init")
    shop.set_version(VERSION + 1)
    code, out, err = said(shop.run(command))
    assert (code, out) == (5, "")
    assert err == (
        f"Error: The tables have version {VERSION + 1}, which a newer Flask-TaskWorker made; this one knows "
        f"{VERSION}. Install the newer one, or give TASKER_DATABASE_URI another database.\n"
    )
    assert shop.run("current").stdout == f"{VERSION + 1}\n"


def test_sql_makes_what_init_makes(shop: Shop) -> None:
    """On a database that only another user may change."""
    printed = shop.run("sql")
    assert (printed.exit_code, printed.stderr) == (0, "")
    if shop.url.get_backend_name() == "sqlite":
        shop.file.parent.mkdir()
        with closing(sqlite3.connect(shop.file)) as connection:
            connection.executescript(printed.stdout)
    else:
        run_sql(shop.url.render_as_string(hide_password=False), printed.stdout)
    assert shop.run("check").exit_code == 0
    assert len(shop.state.store.store_id()) == 32


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_sql_is_printed_for_either_database_and_opens_none(make_app: Callable[..., Flask], dialect: str) -> None:
    shop = Shop(make_app())
    printed = shop.run("sql", "--dialect", dialect).stdout
    assert printed.startswith("BEGIN;\n")
    assert printed.endswith(";\nCOMMIT;\n")
    assert printed.count("CREATE TABLE") == len(metadata.tables)
    assert ("autovacuum" in printed) is (dialect == "postgresql")
    assert ("randomblob" in printed) is (dialect == "sqlite")
    assert not shop.file.exists()


def test_sql_for_an_upgrade_that_is_not_needed_says_so(make_app: Callable[..., Flask]) -> None:
    shop = Shop(make_app())
    assert said(shop.run("sql", "--from", str(VERSION))) == (0, "", f"Tables of version {VERSION} need no upgrade.\n")


def test_options_come_from_the_environment(make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKER_CLI_DB_SQL_DIALECT", "postgresql")
    assert "autovacuum" in Shop(make_app()).run("sql").stdout


def test_server_that_cannot_be_reached_is_an_error_of_one_line(make_app: Callable[..., Flask]) -> None:
    shop = Shop(make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI="postgresql://ann:hunter2@127.0.0.1:1/x"))
    for command in ("current", "check", "init", "upgrade"):
        code, out, err = said(shop.run(command))
        assert (code, out) == (1, "")
        assert err.startswith("Error: PostgreSQL at 127.0.0.1:1/x: ")
        assert err.count("\n") == 1
        assert "hunter2" not in err
