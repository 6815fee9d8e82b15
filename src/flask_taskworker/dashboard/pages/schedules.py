"""Schedules: when each fires, how the last times went; run now, pause, resume, skip."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from flask import Response, request
from markupsafe import Markup
from werkzeug.exceptions import NotFound

from ...core.clock import from_ms, to_ms
from ...core.triggers import Cron, Trigger, describe, trigger_from_text, trigger_to_text, upcoming
from ...errors import NotDecodable
from ...ops.health import LATE_MS
from ...ops.rows import ScheduleRun
from ...store.sql import ScheduleRow, next_fire_ms
from .. import words
from ..routes import Route
from ..view import View

PER_PAGE = 25
RUNS = 30
FIRES = 10
_NOT_STORED = ""
_BADGES = {
    "odd": ("warn", "cannot be read"),
    "late": ("late", "LATE"),
    "failing": ("failed", "failing"),
    "running": ("running", "running"),
    "up": ("ok", "up"),
    "new": ("scheduled", "new"),
    "paused": ("paused", "paused"),
    "ended": ("cancelled", "ended"),
}
_COLOURS = {"succeeded": "ok", "failed": "failed", "running": "run"}
_ORDER = ("odd", "late", "failing", "running", "up", "new", "paused", "ended")


def page(view: View) -> Response:
    """A page of the schedules, what calls for attention first."""
    find = view.argument("find")
    stored = view.browser.schedules()
    schedules = [*stored, *_not_stored(view, {schedule.name for schedule in stored})]
    found = [schedule for schedule in schedules if find.lower() in f"{schedule.name} {schedule.task}".lower()]
    found.sort(key=lambda schedule: _place(schedule, view.now))
    shown, pages = view.part(found, PER_PAGE)
    runs = view.browser.schedule_runs([schedule.name for schedule in shown], RUNS)
    rows = [_row(view, schedule, runs.get(schedule.name, [])) for schedule in shown]
    rows.sort(key=lambda row: (_ORDER.index(row["state"]), row["next_at"] or 0, row["name"]))
    return view.page("schedules.html", {"schedules": rows, "kept": RUNS, "find": find, **pages}, title="Schedules")


def _place(schedule: ScheduleRow, now: int) -> tuple[int, int, str]:
    """Where a schedule comes in the list, as far as its own row says."""
    return (_ORDER.index(state_of(schedule, (), now)), schedule.next_at or 0, schedule.name)


def _not_stored(view: View, stored: Container[str]) -> Iterator[ScheduleRow]:
    """The schedules that the code declares and no worker has stored yet."""
    for task in view.state.registry:
        for declared in task.declared_schedules():
            if declared.name not in stored:
                next_at = next_fire_ms(declared, from_ms(view.now))
                trigger = trigger_to_text(declared.trigger)
                yield ScheduleRow(declared.name, declared.task, trigger, declared.args, next_at, None, 0, _NOT_STORED)


def one(view: View) -> Response:
    """One schedule: its next fire times, and what the clock does to them."""
    name = request.args.get("name", "")
    schedule = next((schedule for schedule in view.browser.schedules() if schedule.name == name), None)
    if schedule is None:
        raise NotFound(f"No schedule has the name {name!r:.200}.")
    row = _row(view, schedule, view.browser.schedule_runs([name], RUNS).get(name, []))
    return view.page("schedule.html", {**row, "fires": _fires(schedule, view.now)}, title=f"Schedule {name}")


def _row(view: View, schedule: ScheduleRow, runs: Sequence[ScheduleRun]) -> dict[str, Any]:
    trigger = _trigger(schedule)
    state = state_of(schedule, runs, view.now)
    return {
        "name": schedule.name,
        "task": schedule.task,
        "is_declared": view.state.registry.get(schedule.task) is not None,
        "source": schedule.source or "code",
        "is_stored": schedule.source != _NOT_STORED,
        **_when(trigger),
        "state": state,
        "badge": words.state(*_BADGES[state]),
        "last_at": schedule.last_at,
        "next_at": schedule.next_at,
        "runs": [_run(run) for run in runs],
        "chart": _chart(runs),
    }


def _trigger(schedule: ScheduleRow) -> Trigger | None:
    try:
        return trigger_from_text(schedule.trigger)
    except NotDecodable:
        return None


def _when(trigger: Trigger | None) -> dict[str, Any]:
    if trigger is None:
        when = "cannot be read by this version"
        return {
            "when_words": when,
            "explained": None,
            "zone": "UTC",
            "misfire": None,
            "overlap": None,
            "jitter_s": None,
        }
    return {
        "when_words": describe(trigger),
        "explained": trigger.explain() if isinstance(trigger, Cron) else None,
        "zone": trigger.timezone if isinstance(trigger, Cron) else "UTC",
        "misfire": trigger.misfire,
        "overlap": trigger.overlap,
        "jitter_s": trigger.jitter.total_seconds(),
    }


def state_of(schedule: ScheduleRow, runs: Sequence[ScheduleRun], now: int) -> str:
    """``new``, ``up``, ``running``, ``late``, ``failing`` or ``paused``; ``ended`` where no fire time is left; ``odd``
    where what stands there cannot be read."""
    ended = next((run.state for run in runs if run.finished_at is not None), None)
    if schedule.is_unclear:
        return "odd"
    if schedule.paused:
        return "paused"
    if schedule.next_at is not None and now - schedule.next_at > LATE_MS:
        return "late"
    if runs and runs[0].state == "running":
        return "running"
    if ended == "failed":
        return "failing"
    if schedule.next_at is None:
        return "ended"
    return "up" if runs or schedule.last_at is not None else "new"


def _run(run: ScheduleRun) -> dict[str, Any]:
    has_ended = run.started_at is not None and run.finished_at is not None
    return {
        "job": run.id,
        "state": run.state,
        "fire_at": run.fire_at,
        "took_ms": (run.finished_at or 0) - (run.started_at or 0) if has_ended else None,
    }


def _chart(runs: Sequence[ScheduleRun]) -> Markup:
    """A bar for each of the last runs, oldest first: its colour tells how it ended, its height how long it took."""
    if not runs:
        return Markup("")
    took = [_run(run)["took_ms"] or 0 for run in reversed(runs)]
    longest = max(took) or 1
    paths: dict[str, str] = {}
    for i, run in enumerate(reversed(runs)):
        height = 16 if run.state == "failed" else 4 + 12 * took[i] / longest
        colour = _COLOURS.get(run.state, "cancelled")
        paths[colour] = paths.get(colour, "") + f"M{i * 4} 16v-{height:.1f}h3V16z"
    bars = Markup("").join(Markup('<path class="{}" d="{}"/>').format(*path) for path in paths.items())
    told = ", ".join(f"{run.state} {words.took(_run(run)['took_ms'])}".removesuffix(" –") for run in reversed(runs))
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} 16" preserveAspectRatio="none" role="img"><title>{t}</title>{b}</svg>'
    ).format(w=RUNS * 4, t=f"The last runs, oldest first: {told}", b=bars)


def _fires(schedule: ScheduleRow, now: int) -> list[dict[str, Any]]:
    """The next fire times, as if a paused schedule were resumed now."""
    trigger = _trigger(schedule)
    if trigger is None or (schedule.next_at is None and not schedule.paused):
        return []
    start = now if schedule.paused or schedule.next_at is None else schedule.next_at - 1
    return [
        {"at": to_ms(fire.at), "local": f"{fire.local:%a %Y-%m-%d %H:%M:%S %z}", "notes": list(fire.notes)}
        for fire in upcoming(trigger, from_ms(start), FIRES)
    ]


# -- acting ------------------------------------------------------------------------------------------------------------


def run(view: View) -> Response:
    """Enqueue the schedule's job now, besides its times."""
    name = _asked()
    job = view.operations("run").run_schedule(name)
    return view.redirect("schedules", message=f"Schedule {name} runs now, as job {job.id}.")


def pause(view: View) -> Response:
    """It fires no more."""
    return _act(view, view.operations("pause").pause_schedule, "is paused", "was paused already")


def resume(view: View) -> Response:
    """It fires again, from its next time on."""
    return _act(view, view.operations("pause").resume_schedule, "goes on with its next time", "was not paused")


def skip(view: View) -> Response:
    """Leave out the next fire time."""
    name = _asked()
    try:
        following = view.operations("pause").skip_next(name)
    except NotDecodable as error:
        view.refuse(str(error))
    after = f"Then it fires at {from_ms(following):%Y-%m-%d %H:%M:%S} UTC." if following else "It fires no more."
    return view.redirect("schedules", message=f"The next time of schedule {name} is left out. {after}")


def _act(view: View, act: Callable[[str], bool], done: str, not_done: str) -> Response:
    name = _asked()
    try:
        words = done if act(name) else not_done
    except NotDecodable as error:
        view.refuse(str(error))
    return view.redirect("schedules", message=f"Schedule {name} {words}.")


def _asked() -> str:
    return request.form.get("name", "")


ROUTES = (
    Route("/schedules", "schedules", page, arguments=("find", "page")),
    Route("/schedule", "schedule", one, arguments=("name",)),
    Route("/schedules/run", "run_schedule", run, methods=("POST",), permission="run"),
    Route("/schedules/pause", "pause_schedule", pause, methods=("POST",), permission="pause"),
    Route("/schedules/resume", "resume_schedule", resume, methods=("POST",), permission="pause"),
    Route("/schedules/skip", "skip_schedule", skip, methods=("POST",), permission="pause"),
)
