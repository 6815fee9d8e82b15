"""``flask tasks limits`` and ``flask tasks limit``: show limits, and change them for all processes."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from ..commands import tasks_command
from ..core.limits import Limit, Numbers, Rate, declared_limits
from ..core.words import counted, spoken
from ..ops.limits import LaneView, LimitView, limit_views
from ..ops.views import as_json
from .group import AS_JSON, NOTHING, Completion, app_state, browser, completing, operations, print_list, tell
from .text import moment, pairs, table, to_json

NONE = "none"
"""What removes a bound."""


def _known(name: str | None = None, *, lanes: int = 0) -> list[LimitView]:
    state = app_state()
    return limit_views(browser(), state.registry, state.config, name=name, lanes=lanes)


complete_limit: Completion = completing(
    lambda state, _: declared_limits(state.registry.limits, state.config.queue_limits).keys()
)


# -- list --------------------------------------------------------------------------------------------------------------


@tasks_command.command("limits")
@AS_JSON
def list_limits(in_json: bool) -> None:
    """List limits: what may run, what runs, and what waits.

    Limits of queues are called queue:NAME. A limit declared in code is stored when a worker first starts with it.
    """
    found, now = _known(lanes=3), app_state().store.clock()
    headers = ("limit", "key", "running", "rate", "admitted", "waiting", "state", "opens", "set by")
    print_list(
        found, headers, lambda limit: _cells(limit, now), in_json=in_json, right={"running", "admitted", "waiting"}
    )
    if not found and not in_json:
        tell("No limits yet. Declare one: @task_worker.task(limit=Limit('carrier', running=5))")


def _cells(limit: LimitView, now: int) -> tuple[str, ...]:
    return (
        limit.name,
        limit.key or "",
        str(limit.running or ""),
        limit.rate or "",
        str(limit.admitted),
        counted(limit.waiting),
        state_words(limit),
        _opening(limit.opens_at, now),
        source_words(limit),
    )


def state_words(limit: LimitView) -> str:
    """How it stands: "full", "closed", "closed: 3 lanes"."""
    lanes = f": {counted(limit.closed)} lanes" if limit.closed > 1 else ""
    aside = f", {counted(limit.aside)} aside" if limit.aside else ""
    return f"{limit.state}{lanes}{aside}"


def source_words(limit: LimitView) -> str:
    """Who has set it."""
    if not limit.is_declared:
        return f"{limit.set_by or 'code'}, no longer in the code"
    if limit.source == "runtime":
        return limit.set_by or "an unknown user"
    return "code" if limit.is_stored else "code, once a worker has started"


def _opening(at: int | None, now: int) -> str:
    return f"in {spoken(at - now)}" if at and at > now else ""


# -- one ---------------------------------------------------------------------------------------------------------------


@tasks_command.command("limit")
@click.argument("name", shell_complete=complete_limit)
@click.option("--running", metavar="N", help="Jobs that may run at once, from now on; none for no such bound.")
@click.option("--rate", metavar="N/PERIOD[:BURST]", help="Starts in a period: 100/60s, 20/s:5; none for no rate.")
@click.option("--reset", is_flag=True, help="Go back to what the code declares.")
@AS_JSON
def show_limit(name: str, running: str | None, rate: str | None, reset: bool, in_json: bool) -> None:
    """Show a limit and its longest lines, or change it for all processes.

    A change holds at once, and until --reset. Running jobs go on; no new ones start above the limit. Exits with 3 if
    there was nothing to change.
    """
    if reset and (running is not None or rate is not None):
        raise click.UsageError("Give either --reset, or --running and --rate.")
    before = _one(name)
    if reset:
        changed = operations().reset_limit(name)
    elif running is not None or rate is not None:
        changed = operations().set_limit(name, _changed(before.numbers, running, rate))
    else:
        _show(_one(name, lanes=10), in_json=in_json)
        return
    after = _known(name)
    if in_json and after:
        click.echo(to_json(as_json(after[0])))
    if not changed:
        tell(f"The limit {name!r} was {before.numbers} already.")
        sys.exit(NOTHING)
    tell(f"The limit {name!r} is {after[0].numbers if after else 'removed'}; it was {before.numbers}.")


def _one(name: str, *, lanes: int = 0) -> LimitView:
    for limit in _known(name, lanes=lanes):
        return limit
    hint = f"That of the queue is called queue:{name}." if _known(f"queue:{name}") else "List them: flask tasks limits"
    tell(f"No limit is named {name!r}. {hint}")
    sys.exit(NOTHING)


def _changed(numbers: Numbers, running: str | None, rate: str | None) -> Numbers:
    """*numbers* with what was given on the command line. Raises UsageError."""
    if running is not None:
        if running != NONE and not running.isdecimal():
            raise click.UsageError(f"--running is {running!r:.80}. Give a whole number, at least 1, or {NONE}.")
        numbers = replace(numbers, running=None if running == NONE else Limit(running=int(running)).running)
    if rate is not None:
        numbers = Numbers(numbers.running, *(() if rate == NONE else Rate.parse(rate)._numbers))
    return numbers


def _show(limit: LimitView, *, in_json: bool) -> None:
    if in_json:
        click.echo(to_json(as_json(limit)))
        return
    now = app_state().store.clock()
    set_at = f"{limit.set_by} at {moment(limit.set_at)}" if limit.source == "runtime" else None
    facts: list[tuple[str, str | None]] = [
        ("running", f"{limit.running} at once" if limit.running else None),
        ("rate", limit.rate),
        ("code", limit.declared if limit.source == "runtime" or not limit.is_declared else None),
        ("set by", set_at if limit.is_declared else source_words(limit)),
        ("key", limit.key),
        ("hold", "yes" if limit.hold else None),
        ("tasks", ", ".join(limit.tasks) or None),
        ("state", state_words(limit)),
        ("admitted", str(limit.admitted)),
        ("waiting", counted(limit.waiting)),
        ("opens", _opening(limit.opens_at, now) or None),
        ("closings", str(limit.closings) if limit.closings else None),
    ]
    click.echo(click.style(f"Limit {limit.name}", bold=True))
    click.echo("\n".join(pairs(facts)))
    if limit.key and limit.lanes:
        headers = ("key", "waiting", "admitted", "job", "state", "opens")
        rows = [_lane_cells(lane, now) for lane in limit.lanes]
        click.echo("\n".join(["", *table(headers, rows, right={"waiting", "admitted", "job"})]))


def _lane_cells(lane: LaneView, now: int) -> tuple[str, ...]:
    return (
        lane.key,
        counted(lane.waiting),
        str(lane.running),
        str(lane.job or ""),
        lane.state,
        _opening(lane.opens_at, now),
    )
