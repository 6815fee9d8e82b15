"""The table at the end."""

from __future__ import annotations

import statistics

from . import index
from .screen import BOLD, DIM, Screen
from .stage import Stage

LONGEST = 10


def show(stage: Stage) -> None:
    """Print what was done, what came out, and whether all is as it should be."""
    screen = stage.screen
    tell_jobs(stage)
    tell_schedule(stage)
    screen.line()
    for word, figure in stage.figures:
        screen.line(f"  {screen.paint(f'{word:<14}', BOLD)}{figure}")
    show_longest(screen)
    screen.line()
    show_checks(stage)


def tell_jobs(stage: Stage) -> None:
    total = stage.tally.total()
    ended = sum(total[state] for state in ("succeeded", "failed", "cancelled"))
    outcomes = ", ".join(f"{total[state]:,} {state}" for state in ("succeeded", "failed", "cancelled"))
    stage.tell("jobs", f"{ended:,} in {stage.seconds:.1f} s, {ended / stage.seconds:,.0f} a second: {outcomes}")
    stage.tell("retries", f"{total['retrying']:,}")


def tell_schedule(stage: Stage) -> None:
    """Each second at most one job, whichever process made it."""
    reports = index.reports()
    moments = {report.fire_at for report in reports}
    stage.check("the schedule fired", bool(reports))
    stage.check("the schedule fired at most once a second", len(moments) == len(reports) <= stage.seconds + 1)
    if reports:
        late = statistics.median(report.late_ms for report in reports)
        stage.tell("schedule", f"{len(reports)} fires, one a second at most, each {late:.0f} ms late (median)")


def show_longest(screen: Screen) -> None:
    screen.line()
    screen.line(f"  {screen.paint('The ten longest functions', BOLD)}")
    for function in index.longest_functions(LONGEST):
        place = screen.paint(f"{function.file}:{function.line}", DIM)
        screen.line(f"  {function.lines:>6,} lines  {function.name}  {place}")


def show_checks(stage: Stage) -> None:
    broken = stage.broken_promises()
    for check in broken:
        stage.screen.line(f"  {stage.screen.mark(False)} not so: {check.promise}. Seen: {check.seen or 'the opposite'}")
    if not broken:
        stage.screen.line(f"  {stage.screen.mark(True)} All {len(stage.checks)} checks hold.")
