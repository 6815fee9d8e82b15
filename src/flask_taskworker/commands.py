"""``flask tasks …`` and ``flask mail …``: their groups. The commands are imported when one of them is called.

A web application needs none of them: they would take a megabyte of its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
from flask import Flask
from flask.cli import AppGroup

from .core.loggers import Logger, get_logger

log: Logger = get_logger("worker")

INTERRUPTED = 130
"""The exit code after Ctrl+C."""

_ORDER = (
    *("run", "status", "workers", "queues", "doctor", "list", "call", "jobs", "job", "why", "failures"),
    *("retry", "cancel", "discard", "restore", "run-now", "tell", "change", "pause", "resume", "limits", "limit"),
    *("batches", "batch", "purge", "schedule", "db"),
)


class LazyGroup(AppGroup):
    """A group whose commands come with the import of *modules* of this package, which add them."""

    def __init__(self, name: str, *, modules: Sequence[str], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        self._load()
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run one of them. Ctrl+C ends it with 130, wherever it is: click would end with 1, as if it had failed."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)

    def _load(self) -> None:
        for module in self._modules:
            import_module(module, __package__)


_MEANT = {
    **dict.fromkeys(("worker", "work", "start", "consumer", "scheduler", "beat"), "run"),
    **dict.fromkeys(("info", "inspect", "ps", "health"), "status"),
    **dict.fromkeys(("call-task", "send", "enqueue"), "call"),
    **dict.fromkeys(("revoke", "stop", "abort"), "cancel"),
    **dict.fromkeys(("requeue",), "retry"),
    **dict.fromkeys(("rate-limit", "rate_limit", "rates"), "limits"),
    **dict.fromkeys(("flower", "monitor", "tail"), "jobs"),
}
"""What commands of other task queues are called here."""


class TasksGroup(LazyGroup):
    """The commands in the order in which they are wanted."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that *args* begin with. One that is called otherwise elsewhere is answered with its name here."""
        if args[0] in _MEANT and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}. It is called: {ctx.command_path} {_MEANT[args[0]]}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def add_commands(app: Flask, group: click.Group, name: str, remedy: str) -> None:
    """Add *group* to the ``flask`` commands of *app* as *name*, and warn where one group of commands hides another."""

    def warn(hidden: str, shown: str) -> None:
        log.warning(
            "the app %r has two commands `flask %s`: %s hides %s. %s", app.import_name, name, shown, hidden, remedy
        )

    if name in app.cli.commands:
        warn("the app's own", "Flask-TaskWorker's")
    app.cli.add_command(group, name)
    add_command, taken = app.cli.add_command, name

    def add_another(cmd: click.Command, name: str | None = None) -> None:
        if (name or cmd.name) == taken and cmd is not group:
            warn("Flask-TaskWorker's", "the app's own")
        add_command(cmd, name)

    # A command that is added later, by a blueprint for example, replaces the group silently.
    app.cli.add_command = add_another  # type: ignore[method-assign]


tasks_command: TasksGroup = TasksGroup(
    "tasks",
    modules=(".cli",),
    help="Run background tasks and manage their jobs.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 nothing matched, 4 unhealthy, 5 the database's schema does not "
    "fit, 6 search incomplete, 130 interrupted. Data goes to stdout, everything else to stderr.",
)

mail_commands: LazyGroup = LazyGroup(
    "mail", modules=(".mail.cli", ".cli"), help="Send test mails and look at queued ones."
)
