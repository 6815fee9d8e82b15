"""``flask tasks db …``: create, upgrade and check the tables. Processes do so at their first use of the database; these
commands are for doing it at another moment, or as another database user."""

from __future__ import annotations

import sys
from typing import Any

import click
from flask.cli import AppGroup

from ..commands import tasks_command
from ..store.migrations import creation_sql, newest, refuse_newer, upgrade_sql
from ..store.statements.jobs import Dialect
from .group import CREATE, SCHEMA, CreatingCommand, app_state, tell
from .text import to_json


class _DbCommand(CreatingCommand):
    below = "db_"


class _DbGroup(AppGroup):
    command_class = _DbCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which they were declared."""
        return list(self.commands)


@tasks_command.group("db", cls=_DbGroup)
def db_command() -> None:
    """Create, upgrade and check the tables in the database.

    This happens by itself when a process first uses the database. Use these commands to do it beforehand, for example
    as a database user who may create tables.
    """


@db_command.command("init")
def init() -> None:
    """Create the tables if there are none, and print their version."""
    found = _found()
    if found is None:
        _prepare()
        tell("The tables were created.")
    else:
        _require(found)
        tell("The tables exist already.")
    click.echo(newest())


@db_command.command("upgrade")
def upgrade() -> None:
    """Upgrade the tables to the version that this Flask-TaskWorker needs, and print it.

    The database is locked meanwhile. Processes with older code keep working, but cannot be started again.
    """
    found = _found()
    _require(found, least=0)
    _prepare()
    tell("The tables need no upgrade." if found == newest() else f"The tables had version {found}.")
    click.echo(newest())


_AS_JSON = click.option("--json", "in_json", is_flag=True, help="Print one JSON object: version, needed and fits.")


@db_command.command("current")
@_AS_JSON
def current(in_json: bool) -> None:
    """Print the version of the tables. Exits with 5 if there are none. Changes nothing."""
    found = app_state().store.driver.schema_version()
    if in_json:
        _print_json(found)
    elif found is not None:
        click.echo(found)
    _require(found, least=0)


@db_command.command("check")
@_AS_JSON
def check(in_json: bool) -> None:
    """Exit with 0 if the tables fit this Flask-TaskWorker, else with 5. Changes nothing."""
    if in_json:
        _print_json(app_state().store.driver.schema_version())
    found = _found()
    _require(found)
    tell(f"The tables have version {found}, as needed.")


def _print_json(found: int | None) -> None:
    click.echo(to_json({"version": found, "needed": newest(), "fits": found == newest()}))


@db_command.command("sql")
@click.option(
    "--dialect", type=click.Choice(["sqlite", "postgresql"]), help="Database to print for. Defaults to TASKER_DRIVER."
)
@click.option(
    "--from",
    "since",
    type=click.IntRange(min=1),
    metavar="VERSION",
    help="Print the upgrade from that version instead.",
)
def sql(dialect: Any, since: int | None) -> None:
    """Print the SQL that creates the tables, for someone else to run. Opens no database."""
    chosen = Dialect(dialect or app_state().config.driver)
    statements = creation_sql(chosen) if since is None else upgrade_sql(chosen, since)
    if not statements:
        tell(f"Tables of version {since} need no upgrade.")
        return
    click.echo("BEGIN;")
    for statement in statements:
        click.echo(f"{statement};")
    click.echo("COMMIT;")


def _found() -> int | None:
    """The version of the tables. Raises SchemaError for those of a newer version."""
    found = app_state().store.driver.schema_version()
    refuse_newer(found)
    return found


def _require(found: int | None, *, least: int | None = None) -> None:
    """End the command with 5 without tables, or with older ones than *least*: the newest, if it is not given."""
    if found is None:
        tell(f"No tables yet. Create them: {CREATE}")
        sys.exit(SCHEMA)
    if found < (newest() if least is None else least):
        tell(f"The tables have version {found}; this Flask-TaskWorker needs {newest()}: flask tasks db upgrade")
        sys.exit(SCHEMA)


def _prepare() -> None:
    app_state().store.driver.prepare()
