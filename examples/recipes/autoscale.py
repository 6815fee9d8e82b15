"""How many worker processes to run, by how long the oldest ready job has waited.

`flask --app autoscale wanted 2` prints the number for two that run now; a timer calls it and applies the answer.
"""

from __future__ import annotations

import click
from wsgi import app, task_worker

SLOW, QUICK = 30, 2  # seconds
MOST = 8


def number(waited: float, now: int) -> int:
    """Add one where jobs wait too long, take one away where none waits: never more than one at a time."""
    if waited > SLOW:
        return min(now + 1, MOST)
    return max(now - 1, 1) if waited < QUICK else now


@app.cli.command()
@click.argument("now", type=int)
def wanted(now: int) -> None:
    status = task_worker.status()
    waits = [status.at - queue.oldest_at for queue in status.queues if queue.oldest_at and not queue.paused_at]
    click.echo(number(max(waits, default=0) / 1000, now))
