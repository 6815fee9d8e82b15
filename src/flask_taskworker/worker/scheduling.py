"""Firing schedules: needs no leader. Each fire time becomes a job at most once, however many workers look.

A due schedule fires by compare-and-set of its ``next_at`` and the INSERT of its jobs, which are unique by (schedule,
fire time), in one transaction; those that are due together share it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence

from ..client.rows import new_job
from ..core.clock import MILLISECOND, from_ms, to_ms
from ..core.loggers import Logger, get_logger
from ..core.rows import JobRecord, NewJob
from ..core.tasks import EnqueueOptions, Task, TaskRegistry
from ..core.triggers import Trigger, due, trigger_from_text
from ..errors import NotDecodable, StoreError
from ..store.driver import RowLocked
from ..store.work import DueSchedule, Firing, WorkerStore
from .timing import DEFAULT_TIMING, Timing

log: Logger = get_logger("schedules")

SEEN_INTERVAL_MS = 3_600_000
CLOCK_TOLERANCE_MS = 60_000
"""The clocks of two machines may differ by this without anything being corrected."""
_LOCKED_PAUSE = 0.25
_LOOK_AT = 100
_BATCH_SIZE = 100_000
_ROW_SIZE = 400
"""Characters: what one transaction may move, and a row of it beside arguments. Others get at the write lock then."""
_DECIDE_TIME = 0.02
"""Seconds that go into the fire times of one batch: those of a cron expression after a long downtime take long."""


class Scheduler:
    """The schedules that one worker may fire: those of the tasks it knows. For the worker's loop only."""

    def __init__(self, registry: TaskRegistry, clock: Callable[[], int], timing: Timing = DEFAULT_TIMING) -> None:
        self._pause_seconds = timing.schedule_pause
        self._registry = registry
        self._clock = clock
        self._declared_version = -1
        self._next_seen = 0
        self.unable: set[str] = set()
        """The schedules that were found due and cannot fire."""
        self._refused: set[tuple[str, int]] = set()
        self.must_correct: bool = True
        """Whether to look for schedules that fired while the clock was wrong."""
        self._seen_at = 0
        self.pause: float = 0.0
        """Seconds to wait before the next look at due schedules: more than 0 while one is due that cannot fire."""
        self.may_fire: str = "[]"
        """The declared schedules and the known tasks, as the JSON list that statements take."""

    async def declare(self, work: WorkerStore) -> None:
        """Put the schedules that code declares into the store, if tasks were added since the last time."""
        version = self._registry.version
        if version != self._declared_version:
            declared = [schedule for task in self._registry for schedule in task._declared_schedules()]
            try:
                missing = await work.declare_schedules(declared, from_ms)
            except RowLocked as error:
                # Other jobs must not wait for that. With the next look it is tried again.
                log.warning("the schedules in code are not stored yet: %s", error)
                return
            for name, refusal in missing.items():
                reason = refusal or (
                    f"another of that name was made at run time; task_worker.unschedule({name!r}) ends that one"
                )
                log.error("schedule %r is not stored: %s", name, reason)
            names = [f"code:{schedule.name}" for schedule in declared]
            self.may_fire = json.dumps(names + [f"runtime:{task.name}" for task in self._registry])
            self._declared_version = version

    async def fire_due(self, work: WorkerStore) -> list[tuple[str, JobRecord]]:
        """Fire a batch of what is due. Returns the jobs that this worker made, with the names of their schedules."""
        self.pause = 0.0
        number = _LOOK_AT
        page = await work.due_schedules(self.may_fire, number)
        while not (firings := self._batch(page)) and len(page) == number:
            # None of these can fire: those behind them must not wait for that.
            number *= 10
            page = await work.due_schedules(self.may_fire, number)
        if not firings:
            self.pause = self._pause_seconds if page else 0.0
            return []
        made, refused = await work.fire(firings)
        if not made:
            # They are another worker's now, or another session has them locked.
            self.pause = _LOCKED_PAUSE
        for firing in firings:
            schedule = firing.schedule
            if (refusal := refused.get(schedule.name)) is not None:
                self._report(schedule, refusal)
                self._refused.add((schedule.name, schedule.next_at))
            left_out = len(firing.jobs) - len(made.get(schedule.name, firing.jobs))
            if left_out:
                words = "schedule %r: %s of %s jobs left out, an earlier one is unfinished"
                log.info(words, schedule.name, left_out, len(firing.jobs))
        return [(name, job) for name, jobs in made.items() for job in jobs]

    def _batch(self, page: Sequence[DueSchedule]) -> list[Firing]:
        """What to do about the first of these, as many as make a short transaction. The others are still due then."""
        now = self._clock()
        until = time.monotonic() + _DECIDE_TIME
        firings: list[Firing] = []
        size = 0
        for schedule in page:
            task = self._registry.get(schedule.task)
            if task is None:
                # Older code has declared it since: say again what it is.
                self._declared_version = -1
                continue
            if (schedule.name, schedule.next_at) in self._refused:
                continue
            try:
                firings.append(_decided(task, schedule, now))
            except Exception as error:  # noqa: BLE001 - cron and zone arithmetic on stored text; harms this one alone
                self._report(schedule, error)
                continue
            size += _ROW_SIZE + sum(_ROW_SIZE + len(job.args) for job in firings[-1].jobs)
            if size > _BATCH_SIZE or time.monotonic() > until:
                break
        return firings

    def _report(self, schedule: DueSchedule, error: Exception) -> None:
        if schedule.name not in self.unable:
            is_bug = not isinstance(error, NotDecodable | OverflowError | StoreError)
            log.error("schedule %r cannot fire: %s", schedule.name, error, exc_info=error if is_bug else None)
            self.unable.add(schedule.name)

    async def correct(self, work: WorkerStore) -> None:
        """Compute the next times again of schedules that fired while the clock was ahead, if it was set back."""
        now = self._clock()
        was_ahead, self._seen_at = self._seen_at > now, now
        if not (self.must_correct or was_ahead):
            return
        self.must_correct = False
        for schedule in await work.schedules_of_the_future(self.may_fire, now + CLOCK_TOLERANCE_MS, _LOOK_AT):
            try:
                following = trigger_from_text(schedule.trigger).next_after(from_ms(now))
            except Exception as error:  # noqa: BLE001 - as in _batch
                self._report(schedule, error)
                continue
            next_at = None if following is None else to_ms(following)
            if next_at is not None and next_at < schedule.next_at and await work.move_schedule(schedule, next_at):
                ahead = (schedule.next_at - next_at) / 1000
                log.warning(
                    "schedule %r fired while the clock was ahead; its next time is %.0f s earlier", schedule.name, ahead
                )

    async def keep_up(self, work: WorkerStore) -> None:
        """Once an hour, note which schedules code still declares."""
        now = self._clock()
        if now >= self._next_seen:
            self._next_seen = now + SEEN_INTERVAL_MS
            self.must_correct = True
            await work.see_schedules([s.name for task in self._registry for s in task._declared_schedules()])


def _decided(task: Task[..., object, object], schedule: DueSchedule, now: int) -> Firing:
    """What is to be done about a due schedule. Raises NotDecodable where its trigger cannot be read."""
    trigger = trigger_from_text(schedule.trigger)
    times = due(trigger, from_ms(schedule.next_at), from_ms(now))
    if times.missed:
        log.warning("schedule %r missed %s fire times (misfire=%r)", schedule.name, times.missed, trigger.misfire)
    return Firing(
        schedule=schedule,
        next_at=None if times.next_at is None else to_ms(times.next_at),
        jobs=[_job(task, schedule, to_ms(fire_at), trigger, now) for fire_at in times.fires],
        overlap=trigger.overlap == "allow",
    )


def _job(task: Task[..., object, object], schedule: DueSchedule, fire_at: int, trigger: Trigger, now: int) -> NewJob:
    # Jitter moves the start, never the fire time: that must be the same in all processes.
    late = random.randint(0, trigger.jitter // MILLISECOND)
    return new_job(task, schedule.args, EnqueueOptions(), now)._replace(
        run_at=fire_at + late if fire_at + late > now else 0,
        schedule=schedule.name,
        fire_at=fire_at,
        # Whether it may overlap with others its trigger says.
        unique_key=None,
        key=None,
    )
