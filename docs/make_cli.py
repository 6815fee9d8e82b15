"""Writes the help of every command into docs/cli.md, below its ``<!-- help: COMMAND -->``.

Run it after a change of a command: ``python docs/make_cli.py``. A test compares the page with the commands.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from flask import Flask

PAGE = Path(__file__).parent / "cli.md"
PLACE = re.compile(r"(<!-- help: (?P<command>[^>]+) -->\n)```text\n.*?```\n", re.DOTALL)
WIDTH = 100


def helps() -> dict[str, str]:
    """The help of each command that an app gets, by the words to type for it."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
    package = importlib.import_module("flask_taskworker")
    app = Flask("shop")
    package.BackgroundTaskWorker(app)
    importlib.import_module("flask_taskworker.mail").Mail(app)
    groups = app.cli.commands.values()
    return dict(pair for g in groups for pair in helps_of(g, click.Context(g, info_name=f"flask {g.name}")))


def helps_of(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """The words to type and the help, for *command* and what is below it."""
    context.terminal_width = WIDTH
    context.max_content_width = WIDTH
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from helps_of(inner, click.Context(inner, info_name=name, parent=context))


def filled(page: str) -> str:
    """*page* with every help block as it is now. Raises KeyError for a command that does not exist."""
    known = helps()
    return PLACE.sub(lambda match: f"{match[1]}```text\n{known[match['command']]}\n```\n", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
