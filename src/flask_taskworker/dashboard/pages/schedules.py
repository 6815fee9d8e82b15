"""Schedules: when each fires, how the last times went; run now, pause, resume, skip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask import Response, request
from werkzeug.exceptions import BadRequest, NotFound

from ...core.clock import from_ms, to_ms
from ...core.triggers import upcoming
from ...core.words import stamp
from ...errors import NotDecodable
from ...ops.rows import ScheduleRun
from ...ops.views import declared_schedules, schedule_view, trigger_of, with_more
from ...store.sql import ScheduleRow
from ..view import Route, View

PER_PAGE = 25
RUNS = 30
FIRES = 10
_ORDER = ("unreadable", "late", "failing", "running", "up", "new", "paused", "ended")


def page(view: View) -> Response:
    """A page of the schedules, what needs attention first."""
    find = view.argument("find")
    stored = view.state.store.schedules()
    schedules = [
        *stored,
        *declared_schedules(view.state.registry, {row.name for row in stored}, view.now, view.state.config.timezone),
    ]
    found = [row for row in schedules if find.lower() in f"{row.name} {row.task}".lower()]
    # As far as its own row says; the runs are read for those on the page alone.
    found.sort(key=lambda row: _place(with_more(schedule_view(row, view.now))))
    part, pages = view.part(found, PER_PAGE)
    runs = view.browser.schedule_runs([row.name for row in part], RUNS)
    shown = [_shown(view, row, runs.get(row.name, [])) for row in part]
    data = {"schedules": sorted(shown, key=_place), "kept": RUNS, "find": find, **pages}
    return view.page("schedules.html", data, title="Schedules")


def one(view: View) -> Response:
    """One schedule: its next fire times, and what the clock does to them."""
    name = request.args.get("name", "")
    row = next((schedule for schedule in view.state.store.schedules() if schedule.name == name), None)
    if row is None:
        raise NotFound(f"No schedule has the name {name!r:.200}.")
    shown = _shown(view, row, view.browser.schedule_runs([name], RUNS).get(name, []))
    trigger = trigger_of(row)
    # As if a paused schedule were resumed now.
    start = view.now if row.paused else (row.next_at or 0) - 1
    has_ended = row.next_at is None and not row.paused
    fires = [] if trigger is None or has_ended else upcoming(trigger, from_ms(start), FIRES)
    shown["fires"] = [
        {"at": to_ms(fire.at), "local": f"{fire.local:%a %Y-%m-%d %H:%M:%S %z}", "notes": list(fire.notes)}
        for fire in fires
    ]
    return view.page("schedule.html", shown, title=f"Schedule {name}")


def _place(schedule: Mapping[str, Any]) -> tuple[int, int, str]:
    return (_ORDER.index(schedule["state"]), schedule["next_at"] or 0, schedule["name"])


def _shown(view: View, row: ScheduleRow, runs: Sequence[ScheduleRun]) -> dict[str, Any]:
    return with_more(
        schedule_view(row, view.now, runs),
        is_declared=view.task(row.task) is not None,
        runs=[
            {
                "job": run.id,
                "state": run.state,
                "fire_at": run.fire_at,
                "took_ms": run.finished_at - run.started_at if run.started_at and run.finished_at else None,
            }
            for run in runs
        ],
    )


# -- acting ------------------------------------------------------------------------------------------------------------


def run(view: View) -> Response:
    """Enqueue the schedule's job now, besides its times."""
    name = request.form.get("name", "")
    job = view.operations("run").run_schedule(name)
    return view.redirect("schedules", message=f"Schedule {name} runs now, as job {job.id}.")


def pause(view: View) -> Response:
    """It does not fire any more."""
    done = _act(view, view.operations("pause").pause_schedule)
    return _told(view, "is paused" if done else "was paused already")


def resume(view: View) -> Response:
    """It fires again, from its next time on."""
    done = _act(view, view.operations("pause").resume_schedule)
    return _told(view, "goes on with its next time" if done else "was not paused")


def skip(view: View) -> Response:
    """Leave out the next fire time."""
    following = _act(view, view.operations("pause").skip_next)
    after = f"then it fires at {stamp(following)}" if following else "it does not fire again"
    return _told(view, f"leaves its next time out; {after}")


def _act(view: View, act: Callable[[str], int | None]) -> int | None:
    try:
        return act(request.form.get("name", ""))
    except NotDecodable as error:
        raise BadRequest(str(error)) from error


def _told(view: View, words: str) -> Response:
    return view.redirect("schedules", message=f"Schedule {request.form.get('name', '')} {words}.")


ROUTES = (
    Route("/schedules", "schedules", page, arguments=("find", "page")),
    Route("/schedule", "schedule", one, arguments=("name",)),
    Route("/schedules/run", "run_schedule", run, methods=("POST",), permission="run"),
    Route("/schedules/pause", "pause_schedule", pause, methods=("POST",), permission="pause"),
    Route("/schedules/resume", "resume_schedule", resume, methods=("POST",), permission="pause"),
    Route("/schedules/skip", "skip_schedule", skip, methods=("POST",), permission="pause"),
)
