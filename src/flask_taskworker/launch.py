"""Under what this process was started: whether a ``start()`` at import is meant."""

from __future__ import annotations

import click
from flask.cli import FlaskGroup


def flask_command() -> str | None:
    """The command that ``flask`` runs in this thread: "run", "shell", "tasks", …; None when it is not ``flask``.

    Empty while ``flask`` only looks for its commands, as for ``flask --help``.
    """
    context = click.get_current_context(silent=True)
    name = ""
    while context is not None:
        if isinstance(context.command, FlaskGroup):
            return name
        name = context.info_name or ""
        context = context.parent
    return None
