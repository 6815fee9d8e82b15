"""The help of every command, for the pages: ``{cli-help} COMMAND`` in a page shows it as the command prints it.

``{cli-help} GROUP *`` shows the help of a group and then that of each of its commands.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click

WIDTH = 100


@cache
def helps() -> dict[str, str]:
    """The help of each command that an app gets, by the words to type for it."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
    from flask import Flask

    import flask_taskworker

    app = Flask("shop")
    flask_taskworker.BackgroundTaskWorker(app)
    flask_taskworker.Mail(app)
    groups = app.cli.commands.values()
    return dict(pair for g in groups for pair in _helps_of(g, click.Context(g, info_name=f"flask {g.name}")))


def options() -> list[tuple[str, str]]:
    """Each option of more than one command: how it is spelled, and the commands that have it."""
    found: dict[str, list[str]] = {}
    for command, text in helps().items():
        for spelling in re.findall(r"^  ((?:-\w, )?--[\w-]+(?: \[?[A-Z]+\]?)?)", text, re.MULTILINE):
            found.setdefault(spelling, []).append(command.removeprefix("flask "))
    return sorted((spelling, ", ".join(names)) for spelling, names in found.items() if 1 < len(names) < len(helps()))


def shown(words: str) -> dict[str, str]:
    """The helps that ``{cli-help} words`` stands for. Raises KeyError for a command that does not exist."""
    if not words.endswith(" *"):
        return {words: helps()[words]}
    group = words.removesuffix(" *")
    return {command: text for command, text in helps().items() if f"{command} ".startswith(f"{group} ")}


def _helps_of(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    context.terminal_width = WIDTH
    context.max_content_width = WIDTH
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _helps_of(inner, click.Context(inner, info_name=name, parent=context))
