"""``flask tasks …``: the commands. They reach the TaskWorker through ``app.extensions``."""

from __future__ import annotations

import click
from flask import current_app
from flask.cli import AppGroup

from .worker import Limits

tasks_command = AppGroup("tasks", help="Run and look after background tasks.")


@tasks_command.command("run")
@click.argument("queues", nargs=-1)
@click.option("--drain", "--burst", is_flag=True, help="End when no job is ready.")
def run(queues: tuple[str, ...], drain: bool) -> None:
    """Run a worker in this process until SIGTERM or SIGINT."""
    state = current_app.extensions["taskworker"]
    settings = {"queues": queues} if queues else {}
    state.task_worker.run(limits=Limits(drain=drain), **settings)
