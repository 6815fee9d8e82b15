"""``flask tasks doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

import sys

import click
from flask import Flask, current_app

from ..commands import tasks_command
from ..ops.doctor import Finding, findings, settings
from .group import FAILED, SCHEMA, UNHEALTHY, CreatingCommand, Period, require_worker
from .text import pairs, safe, to_json

_EXIT_CODES = {"no tables": FAILED, "schema": SCHEMA, None: UNHEALTHY}
_SIGNS = {"ok": ("ok", "green"), "warning": ("WARNING", "yellow"), "error": ("ERROR", "red")}


@tasks_command.command("doctor", cls=CreatingCommand)
@click.option("--smtp/--no-smtp", default=True, show_default=True, help="Whether to connect to the mail server, too.")
@click.option(
    "--timeout",
    type=Period(least=0.1),
    default="3s",
    show_default=True,
    metavar="PERIOD",
    help="How long to wait for the mail server.",
)
@click.option("--settings", "with_settings", is_flag=True, help="Print the settings in effect, too, without secrets.")
@click.option("--json", "in_json", is_flag=True, help="Print one JSON object a line.")
def doctor(smtp: bool, timeout: float, with_settings: bool, in_json: bool) -> None:
    """Look for what is wrong, and say what to do about it.

    Looks at the database, its files and their disk, at workers, clocks, queues, schedules and tasks, and at the mail
    server. Changes nothing. Exits with 4 if it finds an error; with 1 if the only error is that there are no tables,
    with 5 if it is that they do not fit this version.
    """
    require_worker()
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    found = findings(app, smtp=smtp, timeout=timeout)
    for finding in found:
        click.echo(to_json(_fields(finding)) if in_json else _words(finding))
    if with_settings:
        _show_settings(settings(app), in_json=in_json)
    if causes := {finding.cause for finding in found if finding.level == "error"}:
        sys.exit(_EXIT_CODES[causes.pop()] if len(causes) == 1 else UNHEALTHY)


def _fields(finding: Finding) -> dict[str, str | None]:
    return {"level": finding.level, "text": finding.text, "fix": finding.fix}


def _words(finding: Finding) -> str:
    word, colour = _SIGNS[finding.level]
    line = f"{click.style(word.ljust(7), fg=colour)}  {safe(finding.text)}"
    return line if finding.fix is None else f"{line}\n         {safe(finding.fix)}"


def _show_settings(found: dict[str, str], *, in_json: bool) -> None:
    if in_json:
        for key, value in found.items():
            click.echo(to_json({"setting": key, "value": value}))
    else:
        click.echo("\n" + "\n".join(pairs([(key, safe(value)) for key, value in found.items()])))
