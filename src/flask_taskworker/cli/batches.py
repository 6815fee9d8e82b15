"""``flask tasks batches`` and ``flask tasks batch``."""

from __future__ import annotations

import sys
import time

import click

from ..commands import tasks_command
from ..core.words import spoken
from ..ops.views import BatchView, as_json, batch_view
from .follow import PAUSE
from .group import AS_JSON, FAILED, LIMIT, NOTHING, app_state, browser, operations, print_list, tell
from .text import moment, pairs, safe, to_json


@tasks_command.command("batches")
@LIMIT
@click.option("--before", type=click.IntRange(1), metavar="ID", help="Only batches older than this one: the next page.")
@AS_JSON
def list_batches(limit: int, before: int | None, in_json: bool) -> None:
    """List batches, newest first."""
    now = app_state().store.clock()
    batches = [batch_view(row, now) for row in browser().batches(limit=limit, before=before)]
    headers = ("batch", "name", "state", "jobs", "succeeded", "failed", "cancelled", "left", "created")
    print_list(batches, headers, _cells, in_json=in_json, right=set(headers[3:8]) | {"batch"})
    if len(batches) == limit:
        tell(f"Older batches: --before {batches[-1].id}")
    if not batches:
        tell("No batches yet. Make one: with task_worker.batch(name) as batch: …")


def _cells(batch: BatchView) -> tuple[str, ...]:
    counts = (batch.total, batch.succeeded, batch.failed, batch.cancelled, batch.left)
    numbers = (f"{number:,}" for number in counts)
    return (str(batch.id), batch.name, batch.state, *numbers, moment(batch.created_at) or "")


@tasks_command.command("batch")
@click.argument("batch_id", metavar="ID", type=click.IntRange(1))
@click.option("--follow", "act", flag_value="follow", help="Show its counts until it has ended.")
@click.option("--retry", "act", flag_value="retry", help="Retry its failed jobs.")
@click.option("--cancel", "act", flag_value="cancel", help="Cancel its jobs.")
@click.option("--seal", "act", flag_value="seal", help="Let no jobs be added but by its own.")
@AS_JSON
def batch(batch_id: int, act: str | None, in_json: bool) -> None:
    """Show one batch, follow it, or change it.

    Its jobs: flask tasks jobs batch:ID. Exits with 1 if --follow ends with a batch that has not succeeded, with 3 if
    there was nothing to retry, cancel or seal.
    """
    if act in ("retry", "cancel", "seal"):
        done = operations().act_on_batch(act, batch_id)
        if not done:
            tell(f"Nothing was done: batch {batch_id} was in no state for that.")
            sys.exit(NOTHING)
        click.echo(done if act == "retry" else batch_id)
        return
    clock = app_state().store.clock
    found, last = batch_view(browser().batch(batch_id), clock()), ""
    while act == "follow":
        words = _counts(found)
        if words != last:
            click.echo(to_json(as_json(found)) if in_json else words)
            sys.stdout.flush()
            last = words
        if found.ended_at is not None:
            if found.state != "succeeded":
                sys.exit(FAILED)
            return
        time.sleep(PAUSE)
        found = batch_view(browser().batch(batch_id), clock())
    if in_json:
        click.echo(to_json(as_json(found)))
        return
    facts = [
        ("state", found.state),
        ("jobs", _counts(found)),
        ("pace", f"{found.per_minute:g} a minute" if found.per_minute else None),
        ("done", f"in about {spoken(found.done_at - clock())}" if found.done_at else None),
        ("round", str(found.round)),
        ("created", moment(found.created_at)),
        ("ended", moment(found.ended_at)),
    ]
    click.echo("\n".join([click.style(f"Batch {found.id} {safe(found.name)}", bold=True), *pairs(facts)]))


def _counts(found: BatchView) -> str:
    ended = f"{found.succeeded:,} succeeded, {found.failed:,} failed, {found.cancelled:,} cancelled"
    return f"{found.percent:g} % of {found.total:,}: {ended}, {found.left:,} left"
