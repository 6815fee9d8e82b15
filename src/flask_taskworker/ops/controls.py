"""Queues and schedules in Python: what the commands and the dashboard show of them and can do to them.

``task_worker.queues["mail"].pause()``, ``task_worker.schedules["digest"].run()``. Safe from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from ..core.jobs import Job, moment
from ..core.tasks import DeclaredSchedule, check_name, check_trigger
from ..core.triggers import Trigger, trigger_from_text
from ..errors import DeclarationError
from ..state import AppState
from ..store.sql import ScheduleRow
from .browse import Browser
from .operations import Operations, worker_named
from .status import LAST_RUNS
from .views import QueueSummary, ScheduleView, WorkerView, declared_schedules, queue_summary, schedule_view

WHO = "code"
"""Who has done it, in the audit log."""


class QueueControl:
    """One queue. Safe from any thread; what is changed holds for all processes, and stays when they restart."""

    def __init__(self, state: AppState, name: str) -> None:
        self._state = state
        self.name = name

    def __repr__(self) -> str:
        return f"<Queue {self.name}>"

    @property
    def summary(self) -> QueueSummary:
        """How it stands now, as ``flask tasks queues --json`` says it: state, ready, running, slots and so on."""
        store = self._state.store
        store.driver.prepare()
        (queue,) = [one for one in Browser(store).queues(also=(self.name,)) if one.name == self.name]
        return queue_summary(queue, store.workers(), store.clock())

    @property
    def paused(self) -> bool:
        """Whether it is paused now."""
        return self.summary.paused_at is not None

    def pause(self, *, until: datetime | None = None, who: str = WHO) -> None:
        """Start no more of its jobs; running ones go on. *who* stands in the audit log.

        *until*: an aware datetime at which a worker resumes it; without it :meth:`resume` does. Raises
        DeclarationError for one that is naive or has passed.
        """
        operations(self._state, who).pause_queue(self.name, until)

    def resume(self, *, who: str = WHO) -> bool:
        """Start its jobs again; False if it was not paused."""
        return operations(self._state, who).resume_queue(self.name)


class QueueControls(Mapping[str, QueueControl]):
    """The queues that have jobs, tasks or a pause, by name. Any other name gives a queue without jobs."""

    def __init__(self, state: AppState) -> None:
        self._state = state

    def __getitem__(self, name: str) -> QueueControl:
        check_name("queue", name)
        return QueueControl(self._state, name)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        declared = {task.options.queue for task in self._state.registry}
        self._state.store.driver.prepare()
        return iter(sorted(queue.name for queue in Browser(self._state.store).queues(also=sorted(declared))))

    def __len__(self) -> int:
        return len(list(iter(self)))


class WorkerControl:
    """One living worker. Safe from any thread, and from any process."""

    def __init__(self, state: AppState, name: str) -> None:
        self._state = state
        self.name = name

    def __repr__(self) -> str:
        return f"<Worker {self.name}>"

    @property
    def summary(self) -> WorkerView:
        """How it stands, as ``flask tasks workers --json`` says it. Raises DeclarationError once it has ended."""
        return worker_named(self._state.store, self.name)

    def quiet(self, *, who: str = WHO) -> bool:
        """Have it take no more jobs, while its running ones go on; False if it was asked before."""
        return operations(self._state, who).ask_worker(self.name, "quiet")

    def set(self, *, threads: int | None = None, concurrency: int | None = None, who: str = WHO) -> bool:
        """Have it run that many sync and async jobs at once, within about a second; False if it takes no jobs.

        It holds until the worker ends. Raises DeclarationError for a number below 1, and without any.
        """
        return operations(self._state, who).set_slots(self.name, threads=threads, concurrency=concurrency)

    def stop(self, *, who: str = WHO) -> bool:
        """Have it stop as after SIGTERM, within about a second; False if it was asked before."""
        return operations(self._state, who).ask_worker(self.name, "stop")


class WorkerControls(Mapping[str, WorkerControl]):
    """The living workers by id. A name gives its worker, too, while no other living one has it."""

    def __init__(self, state: AppState) -> None:
        self._state = state

    def __getitem__(self, name: str) -> WorkerControl:
        try:
            return WorkerControl(self._state, worker_named(self._state.store, name).id)
        except DeclarationError as error:
            raise KeyError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        self._state.store.look()
        return iter([row.id for row in self._state.store.workers() if row.state in ("alive", "draining")])

    def __len__(self) -> int:
        return len(list(iter(self)))


class ScheduleControl:
    """One schedule. Safe from any thread; what is changed holds for all processes, and stays when they restart.

    What asks the database raises DeclarationError where no schedule has this name.
    """

    def __init__(self, state: AppState, name: str) -> None:
        self._state = state
        self.name = name

    def __repr__(self) -> str:
        return f"<Schedule {self.name}>"

    @property
    def summary(self) -> ScheduleView:
        """How it stands now, as ``flask tasks schedule list --json`` says it."""
        now = self._state.store.clock()
        runs = Browser(self._state.store).schedule_runs([self.name], LAST_RUNS)
        return schedule_view(self._row(), now, runs.get(self.name, ()))

    @property
    def trigger(self) -> Trigger:
        """When it fires: a Cron, an Every or an At."""
        return trigger_from_text(self._row().trigger)

    @property
    def task(self) -> str:
        """The name of its task."""
        return self._row().task

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What its jobs are called with, by the names of the parameters, as in ``job.arguments``."""
        row = self._row()
        return self._state.client.named(row.task, row.args)

    @property
    def next_at(self) -> datetime | None:
        """When it fires next (UTC), or None."""
        return moment(self._row().next_at)

    @property
    def paused(self) -> bool:
        """Whether it is paused now."""
        return bool(self._row().paused)

    def pause(self, *, who: str = WHO) -> bool:
        """Fire no more; False if it was paused. *who* stands in the audit log."""
        return operations(self._state, who).pause_schedule(self.name)

    def resume(self, *, who: str = WHO) -> bool:
        """Fire again from the next time on; False if it was not paused. Times that have passed are not made up for."""
        return operations(self._state, who).resume_schedule(self.name)

    def run(self, *, who: str = WHO) -> Job[Any]:
        """Enqueue its job now, besides its times. Raises DeclarationError where an unfinished job forbids that."""
        return operations(self._state, who).run_schedule(self.name)

    def change(self, trigger: Trigger | None = None, *, args: tuple[Any, ...] | None = None, **kwargs: Any) -> None:
        """Give it another trigger, or other values for the parameters that are named; the rest stays.

        With ``args`` all arguments are replaced. Raises DeclarationError for a schedule in code, ArgumentsError for
        arguments that do not fit the task.
        """
        row = self._row()
        if row.source != "runtime":
            raise DeclarationError(
                f"The schedule {self.name!r} is declared in code: change it there, or pause it here."
            )
        if trigger is not None:
            check_trigger(trigger)
        encoded = row.args
        if args is not None or kwargs:
            task = self._state.registry.find(row.task)
            encoded = task._encode(args, kwargs) if args is not None else task._changed(row.args, kwargs)
        given = trigger or trigger_from_text(row.trigger)
        self._state.client.put_schedule(DeclaredSchedule(name=self.name, task=row.task, trigger=given, args=encoded))

    def remove(self, *, who: str = WHO) -> bool:
        """End it; False if there was none. Raises DeclarationError for a schedule in code."""
        return operations(self._state, who).remove_schedule(self.name)

    def _row(self) -> ScheduleRow:
        for row in schedule_rows(self._state):
            if row.name == self.name:
                return row
        raise DeclarationError(f"No schedule is named {self.name!r:.200}. There are: {', '.join(_names(self._state))}.")


class ScheduleControls(Mapping[str, ScheduleControl]):
    """The schedules by name: those in code, and those made at run time."""

    def __init__(self, state: AppState) -> None:
        self._state = state

    def __getitem__(self, name: str) -> ScheduleControl:
        if name not in _names(self._state):
            raise KeyError(
                f"No schedule is named {name!r:.200}. There are: {', '.join(_names(self._state)) or 'none'}."
            )
        return ScheduleControl(self._state, name)

    def __iter__(self) -> Iterator[str]:
        return iter(_names(self._state))

    def __len__(self) -> int:
        return len(_names(self._state))


def schedule_rows(state: AppState) -> list[ScheduleRow]:
    """Those that are stored, and those that the code declares and no worker has stored yet."""
    stored = state.store.schedules()
    names = {schedule.name for schedule in stored}
    return [*stored, *declared_schedules(state.registry, names, state.store.clock(), state.config.timezone)]


def operations(state: AppState, who: str) -> Operations:
    """What can be done, in that name. Raises AppError where the app is gone."""
    app = state.find_app()
    assert app is not None
    return Operations(app, state.client, state.registry, who=who)


def _names(state: AppState) -> list[str]:
    return sorted(row.name for row in schedule_rows(state))
