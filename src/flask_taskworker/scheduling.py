"""Firing schedules: needs no leader. Each fire time becomes a job at most once, however many workers look.

A due schedule fires by compare-and-set of its ``next_at`` and the INSERT of its jobs, which are unique by (schedule,
fire time), in one transaction.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable

from .client import new_uid
from .clock import MILLISECOND, from_ms, to_ms
from .errors import NotDecodable
from .jobs import JobRecord, NewJob
from .store.sql import to_duration_ms
from .store.work import DueSchedule, WorkerStore
from .tasks import Task, TaskRegistry
from .triggers import Trigger, due, trigger_from_text

log = logging.getLogger(__name__)

SEEN_INTERVAL_MS = 3_600_000
_PAUSE = 1.0


class Scheduler:
    """The schedules that one worker may fire: those of the tasks it knows. For the worker's loop only."""

    def __init__(self, registry: TaskRegistry, clock: Callable[[], int]) -> None:
        self._registry = registry
        self._clock = clock
        self._declared_version = -1
        self._next_seen = 0
        self._unreadable: set[str] = set()
        self.pause = 0.0
        """Seconds to wait before the next look at due schedules: more than 0 while one is due that cannot fire."""
        self.may_fire = "[]"
        """The declared schedules and the known tasks, as the JSON list that statements take."""

    async def declare(self, work: WorkerStore) -> None:
        """Put the schedules that code declares into the store, if tasks were added since the last time."""
        version = self._registry.version
        if version != self._declared_version:
            declared = [schedule for task in self._registry for schedule in task.declared_schedules()]
            for name in await work.declare_schedules(declared, from_ms):
                log.error(
                    "schedule %r is not stored: another of that name was made at run time; "
                    "task_worker.unschedule(%r) ends that one",
                    name,
                    name,
                )
            names = [f"code:{schedule.name}" for schedule in declared]
            self.may_fire = json.dumps(names + [f"runtime:{task.name}" for task in self._registry])
            self._declared_version = version

    async def fire_due(self, work: WorkerStore) -> list[tuple[str, JobRecord]]:
        """Fire what is due. Returns the jobs that this worker made, with the names of their schedules."""
        fired = []
        self.pause = 0.0
        for schedule in await work.due_schedules(self.may_fire):
            task = self._registry.get(schedule.task)
            trigger = self._trigger(schedule)
            if task is None:
                # Older code has declared it since: say again what it is.
                self._declared_version = -1
                self.pause = _PAUSE
            elif trigger is not None:
                fired += [(schedule.name, job) for job in await self._fire(work, schedule, task, trigger)]
        return fired

    def _trigger(self, schedule: DueSchedule) -> Trigger | None:
        try:
            return trigger_from_text(schedule.trigger)
        except NotDecodable as error:
            if schedule.name not in self._unreadable:
                log.error("schedule %r cannot fire: %s", schedule.name, error)  # noqa: TRY400 - a text, not a bug
                self._unreadable.add(schedule.name)
            self.pause = _PAUSE
            return None

    async def _fire(
        self, work: WorkerStore, schedule: DueSchedule, task: Task[..., object, object], trigger: Trigger
    ) -> list[JobRecord]:
        now = self._clock()
        times = due(trigger, from_ms(schedule.next_at), from_ms(now))
        if times.missed:
            log.warning("schedule %r missed %s fire times (misfire=%r)", schedule.name, times.missed, trigger.misfire)
        jobs = [_job(task, schedule, to_ms(fire_at), trigger, now) for fire_at in times.fires]
        next_at = None if times.next_at is None else to_ms(times.next_at)
        made = await work.fire(schedule, next_at, jobs, overlap=trigger.overlap == "allow")
        if made is None:
            return []
        if len(made) < len(jobs):
            log.info(
                "schedule %r: %s of %s jobs left out, an earlier one is unfinished",
                schedule.name,
                len(jobs) - len(made),
                len(jobs),
            )
        return made

    async def keep_up(self, work: WorkerStore) -> None:
        """Once an hour, note which schedules code still declares."""
        now = self._clock()
        if now >= self._next_seen:
            self._next_seen = now + SEEN_INTERVAL_MS
            await work.see_schedules([s.name for task in self._registry for s in task.declared_schedules()])


def _job(task: Task[..., object, object], schedule: DueSchedule, fire_at: int, trigger: Trigger, now: int) -> NewJob:
    # Jitter moves the start, never the fire time: that must be the same in all processes.
    late = random.randint(0, trigger.jitter // MILLISECOND)
    timeout = task.options.timeout
    return NewJob(
        uid=new_uid(now),
        task=task.name,
        queue=task.options.queue,
        kind=task.kind,
        priority=task.options.priority,
        run_at=fire_at + late if fire_at + late > now else 0,
        args=schedule.args,
        max_attempts=task.max_attempts,
        timeout=None if timeout is None else to_duration_ms(timeout),
        created_at=now,
        schedule=schedule.name,
        fire_at=fire_at,
        at_most_once=int(task.options.at_most_once),
    )
