"""``flask tasks doctor``: find problems and say how to fix them."""

from __future__ import annotations

import sys

import click
from flask import Flask, current_app

from ..commands import tasks_command
from ..ops.doctor import findings, settings
from .group import FAILED, SCHEMA, UNHEALTHY, CreatingCommand, Period, require_worker
from .text import pairs, safe, to_json

_EXIT_CODES = {"no tables": FAILED, "schema": SCHEMA, None: UNHEALTHY}
_SIGNS = {"ok": ("ok", "green"), "warning": ("WARNING", "yellow"), "error": ("ERROR", "red")}


@tasks_command.command("doctor", cls=CreatingCommand)
@click.option("--smtp/--no-smtp", default=True, show_default=True, help="Whether to connect to the mail server.")
@click.option(
    "--timeout",
    type=Period(least=0.1),
    default="3s",
    show_default=True,
    metavar="PERIOD",
    help="How long to wait for the mail server.",
)
@click.option("--settings", "with_settings", is_flag=True, help="Also print the settings in effect, without secrets.")
@click.option("--json", "in_json", is_flag=True, help="Print one JSON object a line.")
def doctor(smtp: bool, timeout: float, with_settings: bool, in_json: bool) -> None:
    """Find problems and say how to fix them.

    Checks the database, its files and their disk, workers, clocks, queues, limits, schedules and tasks, and the mail
    server. Changes nothing. Exits with 4 if it finds an error; with 1 if the only error is that no tables exist,
    with 5 if it is that they do not fit this version.
    """
    require_worker()
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    found = findings(app, smtp=smtp, timeout=timeout)
    for finding in found:
        if in_json:
            click.echo(to_json({"level": finding.level, "text": finding.text, "fix": finding.fix}))
            continue
        word, colour = _SIGNS[finding.level]
        click.echo(f"{click.style(word.ljust(7), fg=colour)}  {safe(finding.text)}")
        if finding.fix is not None:
            click.echo(f"         {safe(finding.fix)}")
    if with_settings and in_json:
        for key, value in settings(app).items():
            click.echo(to_json({"setting": key, "value": value}))
    elif with_settings:
        click.echo("\n" + "\n".join(pairs(list(settings(app).items()))))
    if causes := {finding.cause for finding in found if finding.level == "error"}:
        sys.exit(_EXIT_CODES[causes.pop()] if len(causes) == 1 else UNHEALTHY)
