"""``flask tasks db …``: the tables and their version. Tables are made, and upgraded, at the first use; this is for
whoever wants to do that at a moment of their own, or has a database user of its own for it."""

from __future__ import annotations

import sys
from typing import Any

import click
from flask.cli import AppGroup

from ..commands import tasks_command
from ..errors import SchemaError
from ..store.migrations import creation_sql, newest, upgrade_sql
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
    """Make, upgrade and check the tables in the database.

    All of that happens by itself when a process first uses the database. These commands are for doing it beforehand,
    for example with a database user who may create tables, when the application's user may not.
    """


@db_command.command("init")
def init() -> None:
    """Make the tables where there are none, and print their version."""
    found = _found()
    if found is None:
        _prepare()
        tell("The tables are made.")
    elif found < newest():
        tell(f"The tables are of version {found}; this Flask-TaskWorker needs {newest()}: flask tasks db upgrade")
        sys.exit(SCHEMA)
    else:
        tell("The tables are there already.")
    click.echo(newest())


@db_command.command("upgrade")
def upgrade() -> None:
    """Take the tables to the version that this Flask-TaskWorker needs, and print it.

    The database is locked for that long. Processes with the former code go on working, but cannot be started again.
    """
    found = _found()
    if found is None:
        tell(f"There are no tables yet. Create them: {CREATE}")
        sys.exit(SCHEMA)
    _prepare()
    tell("The tables need no upgrade." if found == newest() else f"The tables were of version {found}.")
    click.echo(newest())


_AS_JSON = click.option(
    "--json", "in_json", is_flag=True, help="Print one JSON object: version, needed, and whether it fits."
)


@db_command.command("current")
@_AS_JSON
def current(in_json: bool) -> None:
    """Print the version of the tables that are there. Exits with 5 if there are none. Changes nothing."""
    found = app_state().store.driver.schema_version()
    if in_json:
        _print_json(found)
    elif found is not None:
        click.echo(found)
    if found is None:
        tell(f"There are no tables yet. Create them: {CREATE}")
        sys.exit(SCHEMA)


@db_command.command("check")
@_AS_JSON
def check(in_json: bool) -> None:
    """Exit with 0 if the tables are those that this Flask-TaskWorker needs, else with 5. Changes nothing."""
    if in_json:
        _print_json(app_state().store.driver.schema_version())
    found = _found()
    if found is None:
        tell(f"There are no tables yet. Create them: {CREATE}")
    elif found < newest():
        tell(f"The tables are of version {found}; this Flask-TaskWorker needs {newest()}: flask tasks db upgrade")
    else:
        tell(f"The tables are of version {found}, as they should be.")
        return
    sys.exit(SCHEMA)


def _print_json(found: int | None) -> None:
    click.echo(to_json({"version": found, "needed": newest(), "fits": found == newest()}))


@db_command.command("sql")
@click.option(
    "--dialect", type=click.Choice(["sqlite", "postgresql"]), help="For which database. Defaults to TASKER_DRIVER."
)
@click.option(
    "--from", "since", type=click.IntRange(min=1), metavar="VERSION", help="Upgrade tables of that version instead."
)
def sql(dialect: Any, since: int | None) -> None:
    """Print the statements that make the tables, for somebody else to run. Opens no database."""
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
    if found is not None and found > newest():
        raise SchemaError(
            f"The tables are of version {found}, which a newer Flask-TaskWorker made; this one knows {newest()}. "
            "Install the newer one."
        )
    return found


def _prepare() -> None:
    app_state().store.driver.prepare()
