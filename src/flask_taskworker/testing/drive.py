"""Running an app's worker for a test: the real one, one job at a time, until there is nothing left to do.

The worker gets a thread and an event loop of its own. So it works from a test that is a coroutine, inside a request,
inside an app context; and jobs see nothing of these, as in production.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from flask import Flask

from ..client.apps import as_app
from ..client.client import Client
from ..client.health import SILENT_MS
from ..core.current_job import RunningJob, running_job
from ..core.rows import FAR_MS, Claim, JobRecord, Outcome, OutcomeKind
from ..core.tasks import TaskRegistry
from ..errors import AppError, TaskWorkerError
from ..store.driver import Driver
from ..store.sql import WorkerRow
from ..store.work import Ended, Peek, WorkerStore
from ..worker.bounds import Bounds
from ..worker.executor import Executor
from ..worker.queue_view import QueueView
from ..worker.runner import Runner
from ..worker.scheduling import Scheduler
from ..worker.signalling import WorkerSignals
from ..worker.timing import Timing
from ..worker.work_loop import WorkerParts, WorkLoop
from .session_driver import SessionDriver

if TYPE_CHECKING:
    from ..state import AppState

CrashPoint = Literal["before_run", "before_finish"]

PATIENCE = 0.25
"""A job that runs longer may wait for another, which then runs beside it. Seconds."""
_LOOK_INTERVAL = 0.1
FOR_EVER = 250_000_000_000_000
"""In the year 9892, in epoch milliseconds."""


class MovableClock:
    """A store's clock that stands still until it is moved. Epoch milliseconds."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __call__(self) -> int:
        """What time it is."""
        return self.ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one run of the worker does."""

    max_jobs: int
    until: int | None = None
    """Whenever there is nothing to do, the clock moves to the next moment at which there is; as far as this."""
    schedules: bool = False
    """Fire schedules, too."""
    perform: bool = True
    """Run jobs; else they are made ready, and rescued, only."""
    only: tuple[str, str] | None = None
    """The (queue, kind) to work on."""


@dataclass(slots=True)
class Faults:
    """What goes wrong."""

    crash_at: CrashPoint | None = None
    """Where the process of the next job dies."""
    twice: bool = False
    """Run each job that succeeds again."""
    repeated: set[int] = field(default_factory=set)
    """The jobs whose second run is to come, or over."""

    def wants_again(self, job: RunningJob, outcome: Outcome) -> bool:
        """Whether the job must run a second time; never one that says that it must not."""
        if not self.twice or outcome.ending is not OutcomeKind.SUCCEEDED or outcome.recorded or job.claim.at_most_once:
            return False
        if job.claim.id in self.repeated:
            return False
        self.repeated.add(job.claim.id)
        return True


@dataclass(frozen=True, slots=True)
class Execution:
    """One try of one job, and the state in which it left the job."""

    claim: Claim
    outcome: Outcome
    state: str


@dataclass(slots=True)
class Report:
    """What came of one run of the worker."""

    executions: list[Execution] = field(default_factory=list)
    repeats: int = 0
    rescued: list[JobRecord] = field(default_factory=list)
    died: bool = False
    error: BaseException | None = None
    """Why the worker could not begin, or go on."""
    is_cut_short: bool = False
    """Whether the plan's ``max_jobs`` ended the run."""


class _Recorder(WorkerSignals):
    """Notes what is announced."""

    def __init__(self, client: Client, find_app: Callable[[], Flask | None], timing: Timing, report: Report) -> None:
        super().__init__(client, find_app, timing)
        self._report = report

    def ended(self, ended: Iterable[Ended], states: dict[int, str]) -> None:
        told = list(ended)
        self._report.executions += [
            Execution(e.claim, e.outcome, states[e.claim.id]) for e in told if e.claim.id in states
        ]
        super().ended(told, states)

    def rescued(self, records: Iterable[JobRecord]) -> None:
        told = list(records)
        self._report.rescued += told
        super().rescued(told)


class _NoSchedules(Scheduler):
    """Declares none and fires none: what a test runs must not depend on the time of day."""

    async def declare(self, work: WorkerStore) -> None:
        pass


class _FaultyExecutor(Executor):
    """Does what the plan wants to go wrong, where it would go wrong."""

    faults: Faults
    die: Callable[[], None]
    report: Report

    gate: threading.Lock | None
    isolates = False

    async def execute(self, job: RunningJob) -> Outcome:
        while self.gate is not None and not self.gate.acquire(blocking=False):  # noqa: ASYNC110 - a lock of threads
            await asyncio.sleep(0.001)
        try:
            if self.faults.crash_at == "before_run":
                await self._crash()
            outcome = await super().execute(job)
            if self.faults.crash_at == "before_finish":
                await self._crash()
        finally:
            if self.gate is not None:
                self.gate.release()
        if self.faults.wants_again(job, outcome):
            # As by a worker that had to hand the job back when it was done already.
            self.report.repeats += 1
            return Outcome(OutcomeKind.RELEASED)
        return outcome

    async def _crash(self) -> None:
        self.faults.crash_at = None
        self.die()
        await asyncio.Event().wait()


class _PlannedQueueView(QueueView):
    """Sees only what the plan wants done, in an order that is the same each time."""

    def __init__(self, order: Sequence[str] | None, plan: Plan) -> None:
        super().__init__(order)
        self._plan = plan

    def _in_order(self, names: Iterable[str]) -> list[str]:
        if not self._plan.perform:
            return []
        return super()._in_order(names) if self._order is not None else sorted(names)

    def take(self, peek: Peek) -> None:
        """Believe what the database said, as far as the plan goes."""
        super().take(peek)
        self._leave_out()

    def take_hints(self) -> None:
        """Believe what was heard, as far as the plan goes."""
        super().take_hints()
        self._leave_out()

    def _leave_out(self) -> None:
        if self._plan.only is not None:
            self.ready = {kind: names if kind == self._plan.only[1] else [] for kind, names in self.ready.items()}


class DrainParts(WorkerParts):
    """What makes the worker take one job at a time, end when the plan is done, and die where it is asked to."""

    prunes = False
    """What a test has done must stay to be looked at, however far it moves the clock."""
    die: Callable[[], None]

    def __init__(self, plan: Plan, faults: Faults, clock: MovableClock | None, driver: Driver) -> None:
        self.report: Report = Report()
        self._plan = plan
        self._faults = faults
        self._clock = clock
        self._claimed_at = 0.0
        # Two jobs at a time would disturb each other in one transaction.
        self._gate = driver.gate if isinstance(driver, SessionDriver) else None
        self._patience = PATIENCE if self._gate is None else math.inf

    def executor(self, *args: Any, **options: Any) -> Executor:
        """One that does what the plan wants to go wrong."""
        executor = _FaultyExecutor(*args, **options)
        executor.faults, executor.die, executor.report = self._faults, self._die, self.report
        executor.gate = self._gate
        return executor

    def _die(self) -> None:
        self.report.died = True
        self.die()

    def ends_with(self, error: BaseException, *, has_begun: bool) -> bool:
        """Not again and again, as in production: the test may itself hold what this waits for."""
        if not has_begun:
            error = TaskWorkerError(
                f"The jobs cannot be run. {error} If a session of this test holds the database, commit or roll it back "
                "first, or run the jobs through it: Jobs(app, session=…)."
            )
        self.report.error = error
        return True

    def signals(self, client: Client, find_app: Callable[[], Flask | None], timing: Timing) -> WorkerSignals:
        """One that keeps a record."""
        return _Recorder(client, find_app, timing, self.report)

    def scheduler(self, registry: TaskRegistry, clock: Callable[[], int], timing: Timing) -> Scheduler:
        """One that fires what the plan wants fired."""
        return (Scheduler if self._plan.schedules else _NoSchedules)(registry, clock, timing)

    def queue_view(self, order: Sequence[str] | None, exclude: frozenset[str]) -> QueueView:
        """One that sees what the plan wants done."""
        return _PlannedQueueView(order, self._plan)

    def room(self, room: int, loop: WorkLoop) -> int:
        """One job at a time; a further one beside a job that runs for long."""
        is_alone = not loop.jobs.claims() or time.monotonic() - self._claimed_at >= self._patience
        return min(1, room) if is_alone else 0

    def on_claim(self) -> None:
        """Note the time."""
        self._claimed_at = time.monotonic()

    def is_over(self, loop: WorkLoop) -> bool:
        """Go on at the next moment at which something is due, if there is one in the plan's time."""
        self.report.is_cut_short = loop.jobs.jobs_done >= self._plan.max_jobs
        last = self._plan.until
        if self.report.is_cut_short or last is None or self._clock is None:
            return True
        # What was due and did not fire cannot: its task is unknown, for example.
        now, coming = self._clock.ms, (loop.view.next_due, loop.view.next_fire, loop.view.next_open)
        moments = [moment for moment in coming if moment is not None and now < moment <= last and moment < FAR_MS]
        self._clock.ms = min(moments, default=now)
        return not moments


# -- one app's ---------------------------------------------------------------------------------------------------------


class Bench:
    """Where the jobs of one app are run for tests. One for each app; safe from any thread."""

    def __init__(self, app: Flask) -> None:
        if "taskworker" not in app.extensions:
            raise AppError(f"The app {app.import_name!r} has no TaskWorker. Call task_worker.init_app(app) first.")
        self.state: AppState = app.extensions["taskworker"]
        self.faults: Faults = Faults()
        self.clock: MovableClock | None = None
        """The frozen clock, while there is one."""
        self.driver: Driver = self.state.store.driver
        """The app's own, whatever stands for it."""
        self.dead: list[str] = []
        """The workers that have died and were not rescued yet."""
        self._lock = threading.Lock()

    @classmethod
    def of(cls, app: Flask) -> Bench:
        """The bench of *app*. Raises AppError for an app without a TaskWorker, ArgumentsError for anything else."""
        app = as_app(app)
        bench = _benches.get(app)
        if bench is None:
            bench = _benches[app] = cls(app)
        return bench

    def run(self, plan: Plan) -> Report:
        """Run the worker as planned, and wait for its end."""
        self._refuse_company()
        with self._lock:
            return self._run(plan)

    def run_unless_busy(self, plan: Plan, begin: Callable[[], None]) -> Report | None:
        """Call *begin* and run the worker as planned; None while it runs already, or where a job of it asks."""
        if running_job() is not None or not self._lock.acquire(blocking=False):
            return None
        try:
            self._refuse_company()
            begin()
            return self._run(plan)
        finally:
            self._lock.release()

    def other_workers(self) -> list[WorkerRow]:
        """The living workers of this database that neither this process nor a test's live worker has started."""
        # A frozen clock says nothing about them.
        now = time.time_ns() // 1_000_000
        return [
            worker
            for worker in self.state.store.workers()
            if worker.state in ("alive", "draining")
            and now - worker.beat_at <= SILENT_MS
            and worker.pid not in (os.getpid(), *live_processes)
        ]

    def _refuse_company(self) -> None:
        if running_job() is not None:
            raise RuntimeError("A job cannot run the worker that runs it. Enqueue, and let the test run the jobs.")
        worker = self.state.worker
        if worker is not None and self.state.client.on_news is not None:
            raise TaskWorkerError(
                f"{worker!r} of the app {self.state.import_name!r} runs in this process and takes the jobs. Stop it "
                "first: task_worker.stop(). Better do not start it in tests, or do without drain()."
            )

    def _run(self, plan: Plan) -> Report:
        state = self.state
        with self._movable_clock(plan) as clock:
            state.store.driver.prepare()
            runner = Runner()
            parts = DrainParts(plan, self.faults, clock, state.store.driver)
            queues = None if plan.only is None else (plan.only[0],)
            worker = state.make_worker(
                runner.loop,
                replace(state.config, queues=queues, loop_interval=_LOOK_INTERVAL),
                bounds=Bounds(drain=True, max_jobs=plan.max_jobs),
                parts=parts,
            )
            parts.die = lambda: worker.give_up(declare=False)
            runner.serve(worker)
            runner.start_thread(debug=False)
            try:
                runner.join()
            except BaseException:
                # Ctrl-C was pressed, or the test has taken too long.
                runner.stop(0.0)
                raise
        if runner.error is not None:
            raise runner.error
        if parts.report.error is not None:
            raise parts.report.error
        if parts.report.died:
            self.dead.append(worker.id)
        return parts.report

    @contextmanager
    def _movable_clock(self, plan: Plan) -> Iterator[MovableClock | None]:
        """The clock that the plan may move; one for this run alone where none is frozen."""
        if self.clock is not None or plan.until is None:
            yield self.clock
            return
        store = self.state.store
        before = store.clock
        clock = store.clock = MovableClock(before())
        try:
            yield clock
        finally:
            store.clock = before


live_processes: set[int] = set()
"""Those of live workers that this process has started."""

_benches: WeakKeyDictionary[Flask, Bench] = WeakKeyDictionary()
