"""Schedules: each fire time at most once, what was missed, and what survives a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import At, BackgroundTaskWorker, Cron, Every, JobState, current_job
from flask_taskworker.core.clock import from_ms
from flask_taskworker.core.triggers import trigger_from_text
from flask_taskworker.errors import ArgumentsError, DeclarationError
from flask_taskworker.store.sql import ScheduleRow, Store
from flask_taskworker.store.work import WorkerStore
from tests.support.twins import twin_of
from tests.support.waiting import Clock, wait, wait_for

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]
Rows = Callable[..., list[tuple[Any, ...]]]

# Half a day away: at the hour itself "now" would not be the same here and there.
FAR_HOUR = (datetime.now(UTC).hour + 12) % 24
DAILY = Cron(f"0 {FAR_HOUR} * * *")
LATER = Cron(f"30 {FAR_HOUR} * * *")
HOUR = 3_600_000
DAY = 24 * HOUR


def the(store: Store, name: str) -> ScheduleRow:
    return next(schedule for schedule in store.schedules() if schedule.name == name)


def names(store: Store) -> set[str]:
    return {schedule.name for schedule in store.schedules()}


def fires(rows: Rows, schedule: str) -> list[int]:
    """The fire times for which there are jobs, oldest first."""
    return [at for (at,) in rows("SELECT fire_at FROM taskworker_job WHERE schedule = ? ORDER BY fire_at", schedule)]


def set_next(rows: Rows, name: str, next_at: int) -> None:
    """Pretend that no worker has looked since *next_at*."""
    rows("UPDATE taskworker_schedule SET next_at = ? WHERE name = ?", next_at, name)


def declare(task_worker: BackgroundTaskWorker, trigger: Any, **options: Any) -> list[Any]:
    """A task that runs by *trigger* and notes its arguments and fire times."""
    seen: list[Any] = []
    options = {"name": "tick", "schedule": trigger} | options

    @task_worker.task(**options)
    def tick(*args: Any) -> None:
        seen.append((args, current_job.schedule, current_job.fire_at))

    return seen


def restart(task_worker: BackgroundTaskWorker) -> None:
    task_worker.stop(timeout=2)
    task_worker.start()


# -- firing ------------------------------------------------------------------------------------------------------------


def test_every_fires_at_each_of_its_times_exactly_once_by_two_workers(
    app: Flask, make_worker: MakeWorker, rows: Rows
) -> None:
    first = make_worker(app)
    second = make_worker(twin_of(app))
    trigger = Every(seconds=0.1, overlap="allow")
    seen = declare(first, trigger), declare(second, trigger)
    wait_for(lambda: len(seen[0]) + len(seen[1]) >= 12)
    first.stop()
    second.stop()
    found = fires(rows, "tick")
    assert found == [found[0] + 100 * i for i in range(len(found))], "none is missing, none is there twice"
    assert all(at % 100 == 0 for at in found)
    ran = [fire_at for _, _, fire_at in seen[0] + seen[1]]
    assert len(set(ran)) == len(ran)


def test_cron_fires_once_by_two_workers(app: Flask, make_worker: MakeWorker, rows: Rows) -> None:
    workers = [make_worker(app, start=False)]
    store = workers[0]._state().store
    workers.append(make_worker(twin_of(app), start=False))
    seen = [declare(worker, DAILY) for worker in workers]
    workers[0].start()
    wait_for(lambda: "tick" in names(store))
    workers[0].stop()
    due = store.clock() - 5000
    set_next(rows, "tick", due)
    for worker in workers:
        worker.start()
    wait_for(lambda: seen[0] or seen[1])
    for worker in workers:
        worker.stop()
    assert fires(rows, "tick") == [due]
    schedule = the(store, "tick")
    assert schedule.last_at == due
    assert from_ms(schedule.next_at or 0) == DAILY.next_after(datetime.now(UTC))


@pytest.mark.timing(schedule_pause=0.1)
def test_schedule_that_cannot_be_read_is_tried_now_and_then(
    task_worker: BackgroundTaskWorker, store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = declare(task_worker, DAILY)
    wait_for(lambda: "tick" in names(store))
    tries: list[float] = []
    look = WorkerStore.due_schedules

    def noted(work: WorkerStore, may_fire: str, number: int) -> Any:
        tries.append(time.monotonic())
        return look(work, may_fire, number)

    monkeypatch.setattr(WorkerStore, "due_schedules", noted)
    rows("UPDATE taskworker_schedule SET trigger = ?, next_at = 1", '{"type": "of_tomorrow"}')
    task_worker._workers()[0].wake()
    wait_for(lambda: len(tries) >= 8)
    # Some may be those of turns that another reason began.
    assert tries[7] - tries[1] >= 0.3, "not as fast as the loop can turn"
    assert not seen


@pytest.mark.timing(schedule_pause=0.05)
def test_schedule_that_older_code_has_declared_again_goes_on(
    task_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    seen = declare(task_worker, DAILY)
    wait_for(lambda: "tick" in names(store))
    rows("UPDATE taskworker_schedule SET task = ?, next_at = 1", "its_former_name")
    task_worker._workers()[0].wake()
    wait_for(lambda: seen)
    assert the(store, "tick").task == "tick"


def test_job_knows_its_schedule_and_fire_time(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    seen = declare(task_worker, Every(seconds=0.1), schedule_args=(1, "a"))
    wait_for(lambda: seen)
    task_worker.stop()
    args, schedule, fire_at = seen[0]
    assert (args, schedule) == ((1, "a"), "tick")
    assert fire_at == from_ms(fires(rows, "tick")[0])
    ((job_id,),) = rows("SELECT min(id) FROM taskworker_job")
    job = task_worker.get_job(job_id)
    assert (job.schedule, job.fire_at) == ("tick", fire_at)


def test_at_fires_once_and_never_again(idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    clock = Clock(store)
    moment = datetime.now(UTC) + timedelta(hours=1)
    seen = declare(idle_worker, At(moment))
    idle_worker.start()
    wait_for(lambda: "tick" in names(store))
    assert not seen
    clock.put_forward(HOUR)
    idle_worker._workers()[0].wake()
    wait_for(lambda: seen)
    assert the(store, "tick").next_at is None
    restart(idle_worker)
    idle_worker.task(name="other")(lambda: None).enqueue().result(timeout=20)
    assert len(fires(rows, "tick")) == 1
    assert seen[0][2] == moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def test_several_schedules_of_one_task_fire_each(task_worker: BackgroundTaskWorker, store: Store) -> None:
    seen = declare(task_worker, [Every(seconds=0.1), Every(seconds=0.2), DAILY])
    wait_for(lambda: {schedule for _, schedule, _ in seen} == {"tick", "tick#2"})
    assert names(store) == {"tick", "tick#2", "tick#3"}


def test_schedule_of_a_task_declared_while_the_worker_sleeps_is_taken_up_at_once(
    make_app: MakeApp, make_worker: MakeWorker
) -> None:
    app = make_app(TASKER_LOOP_INTERVAL=3600)
    task_worker = make_worker(app)
    task_worker.task(name="other")(lambda: None).enqueue().result(timeout=20)
    seen = declare(task_worker, Every(seconds=0.1))
    wait_for(lambda: seen)


def test_each_app_fires_for_itself(make_app: MakeApp, make_worker: MakeWorker) -> None:
    from flask import current_app

    apps = [make_app(), make_app()]
    seen: set[str] = set()
    make_worker(*apps).task(name="tick", schedule=Every(seconds=0.1))(lambda: seen.add(current_app.import_name))
    wait_for(lambda: seen == {app.import_name for app in apps})


def test_cron_without_a_zone_follows_the_clock_of_its_app(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_TIMEZONE="Asia/Tokyo")
    task_worker = make_worker(app)
    declare(task_worker, [Cron("0 3 * * *"), Cron("0 3 * * *", timezone="UTC")])
    made = task_worker.task(name="made")(lambda: None)
    made.schedule(Cron("0 4 * * *"), name="at run time")
    store: Store = app.extensions["taskworker"].store
    wait_for(lambda: len(names(store)) == 3)
    zones = {row.name: trigger_from_text(row.trigger).zone for row in store.schedules()}  # type: ignore[union-attr]
    assert {name: str(zone) for name, zone in zones.items()} == {
        "tick": "Asia/Tokyo",
        "tick#2": "UTC",
        "at run time": "Asia/Tokyo",
    }


def test_jitter_moves_the_start_and_not_the_fire_time(
    app: Flask, task_worker: BackgroundTaskWorker, rows: Rows, store: Store
) -> None:
    declare(task_worker, Every(seconds=0.1, jitter=3600, overlap="allow"))
    wait_for(lambda: len(fires(rows, "tick")) >= 5)
    task_worker.stop()
    found = rows("SELECT fire_at, run_at, state FROM taskworker_job")
    assert all(fire_at % 100 == 0 for fire_at, *_ in found)
    late = [run_at - fire_at for fire_at, run_at, _ in found if run_at]
    assert all(0 <= by <= HOUR for by in late)
    assert len(set(late)) > 1, "each has its own"


def test_paused_schedule_does_not_fire(idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    declare(idle_worker, Every(seconds=0.1))
    idle_worker.start()
    wait_for(lambda: "tick" in names(store))
    rows("UPDATE taskworker_schedule SET paused = 1")
    wait_for(lambda: idle_worker._state().worker.work_loop.delay() > 1, "the worker sleeps")  # type: ignore[union-attr]
    before = fires(rows, "tick")
    idle_worker.task(name="other")(lambda: None).enqueue().result(timeout=20)
    assert fires(rows, "tick") == before


# -- what was missed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("misfire", "expected"), [("once", [5]), ("skip", []), ("all", [0, 1, 2, 3, 4, 5])])
def test_times_missed_while_no_worker_ran(
    idle_worker: BackgroundTaskWorker,
    store: Store,
    rows: Rows,
    caplog: pytest.LogCaptureFixture,
    misfire: Any,
    expected: list[int],
) -> None:
    # Half an hour off the beat, so that none is due while this test runs.
    start = from_ms(store.clock() - 10 * DAY - HOUR // 2)
    declare(idle_worker, Every(hours=1, start=start, misfire=misfire, overlap="allow"))
    idle_worker.start()
    wait_for(lambda: "tick" in names(store))
    idle_worker.stop()
    next_at = the(store, "tick").next_at
    assert next_at is not None
    missed = [next_at - HOUR * back for back in (6, 5, 4, 3, 2, 1)]
    set_next(rows, "tick", missed[0])
    idle_worker.start()
    wait_for(lambda: the(store, "tick").next_at == next_at)
    assert fires(rows, "tick") == [missed[i] for i in expected]
    assert ("missed" in caplog.text) == (misfire != "all")


def test_time_that_passed_a_moment_ago_is_not_missed(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    seen = declare(idle_worker, Cron(f"0 {FAR_HOUR} * * *", misfire="skip"))
    idle_worker.start()
    wait_for(lambda: "tick" in names(store))
    idle_worker.stop()
    # Ten seconds are allowed; the start may need some of them.
    set_next(rows, "tick", store.clock() - 100)
    idle_worker.start()
    wait_for(lambda: seen)


def test_years_of_downtime_make_no_flood(idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    seen = declare(idle_worker, Every(seconds=0.1, overlap="allow"))
    idle_worker.start()
    wait_for(lambda: seen)
    idle_worker.stop()
    rows("DELETE FROM taskworker_job")
    set_next(rows, "tick", store.clock() - 3650 * DAY)
    before = store.clock()
    seen.clear()
    idle_worker.start()
    wait_for(lambda: seen)
    idle_worker.stop()
    assert min(fires(rows, "tick")) > before - 20_000


# -- overlap -----------------------------------------------------------------------------------------------------------


def test_schedule_does_not_overlap_itself(task_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    release, started = threading.Event(), []

    @task_worker.task(name="slow", schedule=Every(seconds=0.1))
    def slow() -> None:
        started.append(1)
        wait(release)

    wait_for(lambda: started)
    next_at = the(store, "slow").next_at or 0
    wait_for(lambda: (the(store, "slow").next_at or 0) > next_at + 200, "two more fire times went by")
    assert len(fires(rows, "slow")) == 1
    release.set()
    wait_for(lambda: len(started) >= 2)


def test_schedule_may_overlap_itself(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_THREADS=3)
    barrier = threading.Barrier(3)
    met = []

    @make_worker(app).task(name="slow", schedule=Every(seconds=0.1, overlap="allow"))
    def slow() -> None:
        if not met:
            barrier.wait(20)
            met.append(1)

    wait_for(lambda: len(met) == 3)


def test_job_enqueued_by_hand_is_not_an_overlap(task_worker: BackgroundTaskWorker) -> None:
    release = threading.Event()
    seen: list[str | None] = []

    @task_worker.task(name="work", schedule=Every(seconds=0.1))
    def work() -> None:
        seen.append(current_job.schedule)
        if current_job.schedule is None:
            wait(release)

    work.enqueue()
    wait_for(lambda: None in seen and seen.count("work") >= 2)
    release.set()


# -- made at run time --------------------------------------------------------------------------------------------------


def test_schedule_made_at_run_time_fires_with_its_arguments(task_worker: BackgroundTaskWorker, store: Store) -> None:
    seen: list[tuple[str, int]] = []
    note = task_worker.task(name="note")(lambda what, times=1: seen.append((what, times)))
    note.schedule(Every(seconds=0.1), name="mine", args=("a",), kwargs={"times": 3})
    wait_for(lambda: seen)
    assert seen[0] == ("a", 3)
    assert the(store, "mine").source == "runtime"


def test_schedule_made_at_run_time_survives_a_restart(app: Flask, make_worker: MakeWorker) -> None:
    first = make_worker(app)
    store = first._state().store
    first.task(name="note")(lambda: None).schedule(Every(seconds=0.1), name="mine")
    first.stop()
    # Another process, whose code says nothing of the schedule.
    seen: list[int] = []
    second = make_worker(twin_of(app), start=False)
    second.task(name="note")(lambda: seen.append(1))
    second.start()
    wait_for(lambda: seen)
    assert names(store) == {"mine"}


def test_schedule_made_in_another_process_wakes_the_worker(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_LOOP_INTERVAL=3600)
    seen: list[int] = []
    task_worker = make_worker(app)
    task_worker.task(name="note")(lambda: seen.append(1))
    task_worker.task(name="other")(lambda: None).enqueue().result(timeout=20)
    elsewhere = make_worker(twin_of(app), start=False)
    elsewhere.task(name="note")(lambda: None).schedule(Every(seconds=0.1), name="mine")
    wait_for(lambda: seen)


def test_schedule_for_one_moment_is_gone_when_it_has_fired(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    clock = Clock(store)
    seen: list[int] = []
    note = idle_worker.task(name="note")(lambda: seen.append(1))
    note.schedule(At(datetime.now(UTC) + timedelta(hours=1)), name="once")
    clock.put_forward(HOUR)
    idle_worker.start()
    wait_for(lambda: seen)
    assert names(store) == set()


@pytest.mark.parametrize("moment", [datetime(2001, 1, 1, tzinfo=UTC), datetime(1969, 1, 1, tzinfo=UTC)])
@pytest.mark.sqlite_only
def test_schedule_that_would_never_fire_is_refused(
    idle_worker: BackgroundTaskWorker, store: Store, moment: datetime
) -> None:
    """It would be stored, and stay there, and do nothing."""
    note = idle_worker.task(name="note")(lambda: None)
    with pytest.raises(DeclarationError, match="'mine' would never fire: at .* has no time left.*enqueue"):
        note.schedule(At(moment), name="mine")
    assert names(store) == set()


def test_unschedule_ends_a_schedule(task_worker: BackgroundTaskWorker, store: Store) -> None:
    note = task_worker.task(name="note")(lambda: None)
    note.schedule(Every(seconds=0.1), name="mine")
    assert task_worker.unschedule("mine")
    assert names(store) == set()
    assert not task_worker.unschedule("mine")
    assert not task_worker.unschedule("never")


def test_schedule_of_the_same_name_is_replaced(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    one = idle_worker.task(name="one")(lambda x: None)
    two = idle_worker.task(name="two")(lambda x: None)
    one.schedule(DAILY, name="mine", args=(1,))
    before = the(store, "mine")
    one.schedule(DAILY, name="mine", args=(2,))
    assert the(store, "mine") == before._replace(args="[[2],{}]")
    two.schedule(LATER, name="mine", args=(3,))
    after = the(store, "mine")
    assert (after.task, after.args) == ("two", "[[3],{}]")
    assert from_ms(after.next_at or 0) == LATER.next_after(datetime.now(UTC))


def test_schedule_with_the_same_trigger_keeps_its_next_time(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    """So that declaring it again, at each start, misses nothing."""
    note = idle_worker.task(name="note")(lambda: None)
    note.schedule(DAILY, name="mine")
    set_next(rows, "mine", 12345)
    note.schedule(DAILY, name="mine")
    assert the(store, "mine").next_at == 12345


@pytest.mark.sqlite_only
def test_bad_schedule_is_refused(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    note = idle_worker.task(name="note")(lambda x=1: None)
    for arguments, error, words in [
        ({"trigger": "0 3 * * *", "name": "mine"}, DeclarationError, "is not a trigger"),
        ({"trigger": DAILY, "name": ""}, DeclarationError, "name = ''"),
        ({"trigger": DAILY, "name": None}, DeclarationError, "name = None"),
        ({"trigger": DAILY, "name": "mine", "args": (1, 2)}, ArgumentsError, "too many positional"),
        ({"trigger": DAILY, "name": "mine", "kwargs": {"z": 1}}, ArgumentsError, "unexpected keyword"),
        ({"trigger": DAILY, "name": "mine", "args": "a"}, ArgumentsError, r"args = 'a' .* as \('a',\)"),
        ({"trigger": DAILY, "name": "mine", "args": 3}, ArgumentsError, r"args = 3 .* as \(3,\)"),
        ({"trigger": DAILY, "name": "mine", "kwargs": [1]}, ArgumentsError, r"kwargs = \[1\] .* a dict"),
    ]:
        with pytest.raises(error, match=words):
            note.schedule(**arguments)
        assert names(store) == set()


def test_name_of_a_schedule_in_code_is_not_given_away(task_worker: BackgroundTaskWorker, store: Store) -> None:
    declare(task_worker, DAILY)
    wait_for(lambda: "tick" in names(store))
    note = task_worker.task(name="note")(lambda: None)
    with pytest.raises(DeclarationError, match="'tick' belongs to a schedule that code declares.*Take another name"):
        note.schedule(Every(hours=1), name="tick")
    with pytest.raises(DeclarationError, match="'tick' is declared in code: remove schedule=… there to end it"):
        task_worker.unschedule("tick")
    assert the(store, "tick").source == "code"


def test_schedule_in_code_whose_name_was_taken_at_run_time_is_reported(
    idle_worker: BackgroundTaskWorker, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    note = idle_worker.task(name="note")(lambda: None)
    note.schedule(Every(hours=1), name="tick")
    declare(idle_worker, DAILY)
    idle_worker.start()
    wait_for(lambda: "schedule 'tick' is not stored" in caplog.text)
    assert "unschedule('tick')" in caplog.text
    assert the(store, "tick").source == "runtime"


# -- declared in code --------------------------------------------------------------------------------------------------


def test_trigger_that_changed_in_code_is_replaced_at_the_next_start(
    app: Flask, make_worker: MakeWorker, rows: Rows
) -> None:
    first = make_worker(app)
    store = first._state().store
    declare(first, DAILY)
    wait_for(lambda: "tick" in names(store))
    first.stop()
    changed = Cron(f"30 {FAR_HOUR} * * *", timezone="Europe/Berlin")
    second = make_worker(twin_of(app))
    declare(second, changed)
    wait_for(lambda: from_ms(the(store, "tick").next_at or 0) == changed.next_after(datetime.now(UTC)))
    assert fires(rows, "tick") == []


@pytest.mark.parametrize(
    "edited", [Cron("0 3 * * *", jitter=60), Cron("0 3 * * *", misfire="all"), Cron("0  3 * * 0-7", overlap="allow")]
)
def test_edit_that_leaves_the_times_alone_keeps_the_next_one(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows, edited: Cron
) -> None:
    task = idle_worker.task(name="work")(lambda: None)
    task.schedule(Cron("0 3 * * *"), name="mine")
    set_next(rows, "mine", 12345)
    task.schedule(edited, name="mine")
    assert the(store, "mine").next_at == 12345
    assert trigger_from_text(the(store, "mine").trigger) == edited._in_zone("UTC")
    task.schedule(Cron("0 4 * * *"), name="mine")
    assert the(store, "mine").next_at != 12345


def test_trigger_that_stayed_keeps_its_next_time_over_a_restart(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    declare(idle_worker, DAILY)
    idle_worker.start()
    wait_for(lambda: "tick" in names(store))
    later = store.clock() + 3 * DAY
    set_next(rows, "tick", later)
    restart(idle_worker)
    idle_worker.task(name="other")(lambda: None).enqueue().result(timeout=20)
    assert the(store, "tick").next_at == later


def test_schedule_that_no_code_declares_any_more_is_removed_after_seven_days(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    declare(idle_worker, DAILY)
    note = idle_worker.task(name="note")(lambda: None)
    note.schedule(DAILY, name="runtime")
    row = "INSERT INTO taskworker_schedule (name, task, trigger, args, next_at, source, seen_at) VALUES (?,?,?,?,?,?,?)"
    now = store.clock()
    for name, age in (("six days", 6), ("eight days", 8)):
        rows(row, name, "gone", '{"type":"x"}', "[[],{}]", now - DAY, "code", now - age * DAY)
    rows("UPDATE taskworker_schedule SET seen_at = ?", now - 8 * DAY)
    rows("UPDATE taskworker_schedule SET seen_at = ? WHERE name = 'six days'", now - 6 * DAY)
    idle_worker.start()
    wait_for(lambda: "eight days" not in names(store))
    assert names(store) == {"tick", "runtime", "six days"}
    ((seen_at,),) = rows("SELECT seen_at FROM taskworker_schedule WHERE name = 'tick'")
    assert seen_at >= now


# -- what cannot fire --------------------------------------------------------------------------------------------------


def test_schedule_of_an_unknown_task_does_not_fire_and_keeps_no_worker_busy(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    """It is of another version of the code, which fires it."""
    note = idle_worker.task(name="note")(lambda: None)
    note.schedule(DAILY, name="mine")
    rows("UPDATE taskworker_schedule SET task = 'unknown', next_at = 1")
    idle_worker.start()
    note.enqueue().result(timeout=20)
    wait_for(lambda: idle_worker._state().worker.work_loop.delay() > 1, "the worker sleeps")  # type: ignore[union-attr]
    assert fires(rows, "mine") == []
    assert the(store, "mine").next_at == 1


BAD_TRIGGERS = ["", "no json", "[]", "null", '{"type":"sundial"}', '{"type":"cron"}', "{" * 5000]


@pytest.mark.slow
def test_schedule_that_cannot_be_read_is_reported_once_and_harms_no_other(
    idle_worker: BackgroundTaskWorker, rows: Rows, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    note = idle_worker.task(name="note")(lambda: None)
    for number, text in enumerate(BAD_TRIGGERS):
        note.schedule(DAILY, name=f"bad {number}")
        rows("UPDATE taskworker_schedule SET trigger = ?, next_at = 1 WHERE name = ?", text, f"bad {number}")
    seen = declare(idle_worker, Every(seconds=0.1))
    caplog.set_level(logging.ERROR)
    idle_worker.start()
    # It looks again at those that it cannot read, perhaps.
    wait_for(lambda: len(seen) >= 2)
    for number in range(len(BAD_TRIGGERS)):
        assert caplog.text.count(f"schedule 'bad {number}' cannot fire") == 1
        assert the(store, f"bad {number}").next_at == 1
    assert rows("SELECT DISTINCT schedule FROM taskworker_job") == [("tick",)]


def test_schedule_that_cannot_be_read_keeps_no_worker_busy(
    idle_worker: BackgroundTaskWorker, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    note = idle_worker.task(name="note")(lambda: None)
    note.schedule(DAILY, name="bad")
    rows("UPDATE taskworker_schedule SET trigger = 'x', next_at = 1")
    idle_worker.start()
    wait_for(lambda: "cannot fire" in caplog.text)
    note.enqueue().result(timeout=20)
    wait_for(lambda: idle_worker._state().worker.work_loop.delay() > 0.5, "the worker sleeps")  # type: ignore[union-attr]


def test_schedule_with_arguments_that_cannot_be_read_fails_its_jobs_alone(
    idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    note = idle_worker.task(name="note")(lambda: None)
    note.schedule(Every(seconds=0.1), name="bad")
    rows("UPDATE taskworker_schedule SET args = 'x'")
    seen = declare(idle_worker, Every(seconds=0.1))
    idle_worker.start()
    wait_for(lambda: rows("SELECT 1 FROM taskworker_job WHERE schedule = 'bad' AND state = 'failed'"))
    wait_for(lambda: len(seen) >= 2)
    assert rows("SELECT DISTINCT failure_kind FROM taskworker_job WHERE state = 'failed'") == [("payload",)]


def test_jobs_of_schedules_can_be_tried_again(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    release: list[int] = []

    @task_worker.task(name="fail", schedule=Every(seconds=0.1))
    def fail() -> None:
        if not release:
            raise ValueError

    wait_for(lambda: rows("SELECT 1 FROM taskworker_job WHERE state = 'failed'"))
    ((job_id,),) = rows("SELECT min(id) FROM taskworker_job WHERE state = 'failed'")
    release.append(1)
    job = task_worker.get_job(job_id)
    assert job.retry()
    job.result(timeout=20)
    assert job.refresh().state is JobState.SUCCEEDED


@pytest.mark.timing(beat=0.05)
def test_schedule_goes_on_after_the_clock_was_a_day_ahead(
    idle_worker: BackgroundTaskWorker, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad time server, or a machine that was resumed."""
    fired: list[int] = []
    idle_worker.task(name="tick", schedule=Every(seconds=0.2))(lambda: fired.append(1))
    clock = Clock(store)
    idle_worker.start()
    wait_for(lambda: fired)
    now, day = store.clock(), 86_400_000
    clock.put_forward(day)
    idle_worker._state().client.wake()
    wait_for(lambda: (store.schedules()[0].last_at or 0) > now + day - 60_000)
    # A leap that no heartbeat sees is corrected with the next look, TASKER_LOOP_INTERVAL later.
    wait_for(lambda: store.workers()[0].beat_at > now + day - 60_000)
    clock.put_forward(-day)
    before = len(fired)
    wait_for(lambda: len(fired) > before + 3)
    assert "fired while the clock was ahead; its next time is" in caplog.text
    assert (store.schedules()[0].next_at or 0) < store.clock() + 60_000
