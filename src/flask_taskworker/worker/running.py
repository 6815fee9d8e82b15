"""The jobs in one worker's hands, from the claim to the outcome that waits to be recorded.

They start in free slots; their outcomes and progress are collected here, and what others say about running jobs is
passed on. Nothing here knows the database.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask

from .. import signals
from ..core.config import TaskWorkerConfig
from ..core.current_job import JobFlows, JobSteps, RunningJob, set_running
from ..core.loggers import Logger, get_logger
from ..core.rows import INTERRUPTED, Claim, Outcome, OutcomeKind, ProgressReport
from ..errors import AppError
from ..store.work import Ended
from .executor import Executor
from .job_log import LoggingJobs, lines_of
from .thread_bridge import OwnTask
from .timing import Timing

if TYPE_CHECKING:
    from .isolation import JobServer

log: Logger = get_logger("jobs")

KINDS = ("async", "sync")
WAIT_FOR_SLOT = 0.25
"""Jobs that were claimed ahead go back for others to take when none could start in that time. Seconds."""
MAX_LOGGED = 16_000
"""Characters of a traceback up to which the exception itself is given to the log."""
SHOWN = 10
"""Jobs that a worker names."""
AHEAD_SECONDS = 0.02
"""Only jobs that will start within this time are claimed ahead, judged by how long recent jobs took."""

AHEAD_MOST = 128
LENT_MOST = 100
"""How many times its slots a worker lends to other jobs while async ones wait for them: what waits takes memory."""
_SMOOTHING = 0.2


@dataclass(slots=True)
class Slots:
    """The slots of one kind of job, and the claims that wait for one."""

    size: int
    running: int = 0
    overdue: int = 0
    """Threads that timed-out jobs still use."""
    waiting: deque[Claim] = field(default_factory=deque)
    parents: Counter[RunningJob] = field(default_factory=Counter)
    """The jobs that wait for the end of others."""
    lent: int = 0
    """The slots of those that do not count meanwhile."""
    moved_at: float = 0.0
    """When a job was last claimed or started, on the loop's clock."""
    seconds: float = 1.0
    """How long recent jobs took, smoothed."""

    @property
    def free(self) -> int:
        """Slots in which a job could start now."""
        return self.size - self.running - self.overdue + self.lent

    @property
    def room(self) -> int:
        """How many jobs to claim."""
        ahead = min(AHEAD_MOST, int(self.size * AHEAD_SECONDS / max(self.seconds, 1e-5)))
        return max(0, self.free - len(self.waiting) + ahead)

    def claim_none_ahead(self) -> None:
        """What was claimed ahead did not start soon: for a while claim only for free slots."""
        self.seconds = max(self.seconds, 1.0 + self.size * AHEAD_SECONDS)

    def learn(self, seconds: float) -> None:
        """Note how long a job took."""
        self.seconds += (seconds - self.seconds) * _SMOOTHING


@dataclass(slots=True)
class HungThreads:
    """The overdue sync jobs of one worker, which has *size* threads. *now* is on its loop's clock, in seconds."""

    size: int
    grace: float
    """Seconds that the last of them gets to return, before a worker without any free thread is given up."""
    claims: dict[tuple[int, int], Claim] = field(default_factory=dict)
    full_since: float | None = None
    """Since when no thread is left."""
    told: bool = False
    """Whether it was said so."""

    def add(self, claim: Claim, now: float) -> None:
        """A job has exceeded its timeout and keeps its thread."""
        self.claims[claim.id, claim.claim] = claim
        if len(self.claims) >= self.size and self.full_since is None:
            self.full_since = now

    def remove(self, claim: Claim) -> None:
        """Its function has returned."""
        self.claims.pop((claim.id, claim.claim), None)
        self.full_since, self.told = None, False

    def to_tell(self, now: float) -> bool:
        """Whether all threads are lost, and that was not reported yet. True once."""
        if self.told or self.full_since is None or now - self.full_since < self.grace:
            return False
        self.told = True
        return True

    def delay(self, now: float) -> float | None:
        """Seconds until there is something to tell, or None."""
        if self.told or self.full_since is None:
            return None
        return max(0.0, self.full_since + self.grace - now)

    def words(self, *, ends: bool) -> str:
        """What to tell when all threads are lost. *ends*: whether the worker ends."""
        some = [str(claim) for claim in list(self.claims.values())[:SHOWN]]
        more = len(self.claims) - len(some)
        names = ", ".join(some) + (f" and {more} more" if more > 0 else "")
        what = f"all {self.size} threads for sync jobs are held by jobs that exceeded their timeout: {names}."
        if ends:
            return f"{what} The worker ends, for a new process to be started."
        return (
            f"{what} Until one of them returns, or this process is restarted, it runs no sync jobs; async jobs go on. "
            "Give what these jobs wait for a timeout of its own, or raise TASKER_THREADS."
        )


@dataclass(slots=True)
class Standstill:
    """Whether jobs that wait for others have all threads of one worker. *now* is on its loop's clock, in seconds."""

    size: int
    grace: float
    """Seconds for which that may be so."""
    since: float | None = None
    told: bool = False
    """Whether it was said so."""

    def update(self, parents: int, now: float) -> None:
        """Note how many jobs wait for others now."""
        if parents < self.size:
            self.since, self.told = None, False
        elif self.since is None:
            self.since = now

    def delay(self, now: float) -> float | None:
        """Seconds until there is something to tell, or None."""
        return None if self.told or self.since is None else max(0.0, self.since + self.grace - now)


class RunningJobs:
    """The jobs of one worker. For its loop only, but for :meth:`note_news`."""

    def __init__(
        self,
        *,
        executor: Executor,
        config: TaskWorkerConfig,
        clock: Callable[[], int],
        find_app: Callable[[], Flask | None],
        on_change: Callable[[], None],
        on_start: Callable[[Claim], None],
        may_start: Callable[[], bool],
        timing: Timing,
        flows: JobFlows,
        steps: JobSteps,
    ) -> None:
        self._flows = flows
        self._steps = steps
        self.worker_id: str | None = None
        self._executor = executor
        executor.on_overdue = self.note_overdue
        self._config = config
        self._clock = clock
        self._find_app = find_app
        self._on_change = on_change
        self._on_start = on_start
        self._may_start = may_start
        self._cancel_grace = timing.cancel_grace
        self._slots = {"async": Slots(config.concurrency), "sync": Slots(config.threads)}
        self.hung: HungThreads = HungThreads(config.threads, timing.hung_grace)
        """The threads that timed-out sync jobs still use."""
        self.standstill: Standstill = Standstill(config.threads, timing.standstill_grace)
        """Whether all threads are used by jobs that wait for others."""
        self._tasks: dict[asyncio.Task[None], RunningJob] = {}
        self._abandoned: list[asyncio.Task[None]] = []
        self._reports: dict[RunningJob, ProgressReport] = {}
        self._logging = LoggingJobs()
        self._loop = asyncio.get_running_loop()
        self.ended: list[Ended] = []
        """What ended and is not recorded yet, oldest first."""
        self.locked: list[Ended] = []
        """What ended and waits for another session that has its row locked."""
        self.ended_since: float = 0.0
        """When the oldest of them ended, on the loop's clock."""
        self.jobs_done: int = 0

    # -- how it stands ----------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return bool(self._tasks)

    @property
    def waiting(self) -> int:
        """How many claims wait for a slot."""
        return sum(len(slots.waiting) for slots in self._slots.values())

    @property
    def reporting(self) -> bool:
        """Whether a job has progress or log lines that are not written yet."""
        return bool(self._reports or self._logging)

    @property
    def sizes(self) -> dict[str, int]:
        """How many jobs of each kind run at once. Safe from any thread."""
        return {kind: slots.size for kind, slots in self._slots.items()}

    def resize(self, kind: str, size: int) -> None:
        """Run as many jobs of that kind at once from now on. Where more run now, they end first."""
        slots = self._slots[kind]
        if size == slots.size:
            return
        log.info("%s jobs at once: %s, and %s until now", kind, size, slots.size)
        slots.size = size
        if kind == "sync":
            self.hung.size = self.standstill.size = size
            self._executor.allow_threads(size)
        self._fill(kind)
        self._on_change()

    def room(self, kind: str) -> int:
        """How many jobs of that kind to claim now."""
        return self._slots[kind].room

    def free(self, kind: str) -> int:
        """In how many slots of that kind a job could start at once."""
        slots = self._slots[kind]
        return max(0, slots.free - len(slots.waiting))

    def claims(self) -> set[tuple[int, int]]:
        """(id, claim) of all that is in hand."""
        in_hand = [e.claim for e in (*self.ended, *self.locked)]
        in_hand += [job.claim for job in self._tasks.values()]
        in_hand += [claim for slots in self._slots.values() for claim in slots.waiting]
        return {(claim.id, claim.claim) for claim in in_hand}

    def counts(self) -> dict[str, int]:
        """How many jobs of each kind run. Safe from any thread."""
        return {kind: slots.running for kind, slots in self._slots.items()}

    @property
    def parents(self) -> dict[str, int]:
        """How many jobs of each kind wait for others. Safe from any thread."""
        return {kind: len(slots.parents) for kind, slots in self._slots.items()}

    def running_jobs(self) -> list[tuple[asyncio.Task[Any], RunningJob]]:
        """The jobs that run, with their asyncio tasks. Safe from any thread."""
        return list(self._tasks.copy().items())

    def job_of(self, task: asyncio.Task[Any]) -> RunningJob | None:
        """The job that this asyncio task runs. Safe from any thread."""
        return self._tasks.get(task)

    # -- starting ---------------------------------------------------------------------------------------------------

    def take(self, kind: str, claims: Iterable[Claim]) -> None:
        """Accept claims; they start as slots are free."""
        slots = self._slots[kind]
        slots.moved_at = self._loop.time()
        slots.waiting.extend(claims)

    def start_waiting(self) -> None:
        """Start what waits and finds a slot; what waited too long goes back."""
        for kind, slots in self._slots.items():
            self._fill(kind)
            if slots.waiting and self._loop.time() - slots.moved_at > WAIT_FOR_SLOT:
                self._give_back(slots)

    def _fill(self, kind: str) -> None:
        slots = self._slots[kind]
        if not slots.waiting or not self._may_start():
            return
        while slots.waiting and slots.free > 0:
            claim = slots.waiting.popleft()
            job = RunningJob(claim, self.note_news, self._flows, self._steps, worker_id=self.worker_id)
            job.log_level, job.on_line, job.on_wait = self._config.job_log_level, self.note_news, self.note_wait
            slots.running += 1
            slots.moved_at = self._loop.time()
            execution = self._execute(job) if self._executor.registry.scope is None else self._execute_within(job)
            # What loop.create_task() comes to; that takes some time for what we do not use.
            task = asyncio.Task(execution, loop=self._loop, name=f"taskworker-job-{claim.id}")
            # asyncio holds tasks weakly; see test_no_job_is_lost_to_the_garbage_collector.
            self._tasks[task] = job
            task.add_done_callback(self._on_done)
            if signals.job_started.receivers:
                self._on_start(claim)

    def note_overdue(self, claim: Claim, is_overdue: bool) -> None:
        """A timed-out sync job keeps its thread, or has given it back."""
        if is_overdue:
            self.hung.add(claim, self._loop.time())
        else:
            self.hung.remove(claim)
        self._slots["sync"].overdue = len(self.hung.claims)
        self._fill("sync")
        self._on_change()

    async def _execute_within(self, job: RunningJob) -> None:
        assert self._executor.registry.scope is not None
        with self._executor.registry.scope(job.claim):
            await self._execute(job)

    def note_wait(self, job: RunningJob, change: int) -> None:
        """A job begins to wait for others, or does so no longer. From any thread."""
        # The loop may have ended, where a thread outlives it.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._count_wait, job, change)

    def _count_wait(self, job: RunningJob, change: int) -> None:
        kind, slots = job.claim.kind, self._slots[job.claim.kind]
        slots.parents[job] += change
        if slots.parents[job] <= 0:
            del slots.parents[job]
        if kind == "async":
            slots.lent = min(len(slots.parents), LENT_MOST * slots.size)
            self._fill(kind)
        else:
            # A thread waits with its job.
            self.standstill.update(len(slots.parents), self._loop.time())
        self._on_change()

    def to_tell_standstill(self) -> str | None:
        """What to tell once, where jobs that wait for others have used all threads for too long."""
        if self.standstill.delay(self._loop.time()) != 0:
            return None
        self.standstill.told = True
        parents = list(self._slots["sync"].parents)
        names = ", ".join(str(job.claim) for job in parents[:SHOWN]) + (", …" if len(parents) > SHOWN else "")
        return (
            f"all {self.standstill.size} threads for sync jobs are used by jobs that wait for the results of others: "
            f"{names}. Until one of those ends in another worker, no sync job runs here. Use async tasks, which "
            "give their slots back while they wait, using(after=…) instead of waiting, or raise TASKER_THREADS."
        )

    async def _execute(self, job: RunningJob) -> None:
        started_at, started = self._clock(), self._loop.time()
        if not self._may_start():
            # Jobs before it have kept the loop, through a gap of a lease.
            job.ended = True
            self._note(Ended(job.claim, Outcome(OutcomeKind.RELEASED), started_at, started_at))
            return
        outcome = await self._executor.execute(job)
        seconds = self._loop.time() - started
        self._slots[job.claim.kind].learn(seconds)
        job.ended = True
        self._logging.pop(job, None)
        self._reports.pop(job, None)
        if job.releasing:
            # Its thread has returned before the release of its claim was recorded.
            self.ended = [e for e in self.ended if e.claim is not job.claim]
        # Again, should it be stored by now: where another session had locked the row, it is not.
        self._note(Ended(job.claim, outcome, started_at, self._clock(), job.reported, lines_of(job)))
        self._log(job, outcome, seconds)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        """The slot is free. A claim whose coroutine ended without an Outcome gets one here: none may stay behind."""
        job = self._tasks.pop(task)
        slots = self._slots[job.claim.kind]
        slots.running -= 1
        self.jobs_done += 1
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        # A coroutine that cancels its own task and awaits no more ends well and cancelled at once.
        if error is not None and not job.ended:
            now = self._clock()
            self._note(Ended(job.claim, self._executor.ending_of(job, error), now, now))
        # Here and now: the worker may be waiting for the database.
        self._fill(job.claim.kind)
        self._on_change()

    def _log(self, job: RunningJob, outcome: Outcome, seconds: float) -> None:
        """A final failure is an error, so that Sentry and mail handlers see it; a try that is repeated is a warning."""
        claim, failure = job.claim, outcome.failure
        is_failure = failure is not None and outcome.ending in (OutcomeKind.FAILED, OutcomeKind.RETRYING)
        if not is_failure and not log.isEnabledFor(logging.INFO):
            return
        # The record belongs to the job, whose context the executor has taken away by now.
        set_running(job)
        job.failure = failure
        fields = {"taskworker_outcome": outcome.ending.value, "taskworker_seconds": round(seconds, 6)}
        if failure is None or not is_failure:
            level = logging.INFO if self.is_debug() else logging.DEBUG
            log.log(level, "%s %s after %.3f s", claim, outcome.ending, seconds, extra=fields)
            return
        level = logging.ERROR if outcome.ending is OutcomeKind.FAILED else logging.WARNING
        again = f", again in {outcome.delay.total_seconds():.3g} s" if outcome.delay is not None else ""
        words = f"{failure.type}: {failure.message[:200]}"
        # What is stored is bounded; formatting the exception would put a message of 50 MB into the log, too.
        is_long = len(failure.traceback) > MAX_LOGGED
        error = None if is_long or job.isolated else outcome.exception
        # Exceptions leave their frames in the process that has raised them.
        has_frames = is_long or (job.isolated and "\n" in failure.traceback.strip())
        text = f"\n{failure.traceback.rstrip()}" if has_frames else ""
        words = f"{again}: {words!r}{text}"
        log.log(level, "%s %s after %.3f s%s", claim, outcome.ending, seconds, words, exc_info=error, extra=fields)

    def is_debug(self) -> bool:
        """Whether to log every step; looked at when used, since ``app.debug`` may be set late."""
        app = self._find_app()
        return self._config.is_debug(bool(app and app.debug))

    # -- collecting -------------------------------------------------------------------------------------------------

    def take_ended(self) -> list[Ended]:
        """What ended; the worker records it, or puts it back."""
        ended, self.ended = self.ended, []
        return ended

    def take_reports(self) -> list[tuple[Claim, ProgressReport]]:
        """What running jobs have to say."""
        reports, self._reports = self._reports, {}
        return [(job.claim, report) for job, report in reports.items()]

    def take_lines(self) -> list[tuple[Claim, str]]:
        """What running jobs have logged so far, of those whose lines are to be stored by now."""
        return self._logging.take(self._loop.time())

    def note_news(self, job: RunningJob, report: ProgressReport | None = None) -> None:
        """A job has a report, or a log line, to be stored. From any thread: each assignment is atomic."""
        is_first = not self.reporting
        if report is not None:
            self._reports[job] = report
        else:
            self._logging[job] = True
        if is_first:
            # The loop may sleep. It may have ended, too, where a thread outlives it.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_change)

    def _note(self, ended: Ended) -> None:
        if not self.ended:
            self.ended_since = self._loop.time()
        self.ended.append(ended)

    # -- what others say --------------------------------------------------------------------------------------------

    def cancel(self, requests: list[tuple[int, int]]) -> None:
        """These jobs, (id, claim), were asked to stop."""
        asked = set(requests)
        for task, job in list(self._tasks.items()):
            if (job.claim.id, job.claim.claim) in asked and not job.cancelled:
                job.cancelled = True
                if job.ends_when_cancelled:
                    task.cancel()

    def stop(self) -> None:
        """The worker was asked to stop: jobs hand themselves over where they can."""
        for job in self._tasks.values():
            job.stopping = True
            if job.on_stopping is not None:
                job.on_stopping()

    def lose(self) -> None:
        """The worker was declared dead: other workers own what runs here."""
        for task, job in list(self._tasks.items()):
            job.lost = True
            if job.ends_when_cancelled:
                task.cancel()
        for slots in self._slots.values():
            slots.waiting.clear()

    def release(self, claims: Iterable[Claim]) -> None:
        """Hand claims back."""
        now = self._clock()
        for claim in claims:
            self._note(Ended(claim, Outcome(OutcomeKind.RELEASED), now, now))

    # -- the end ----------------------------------------------------------------------------------------------------

    def give_back_waiting(self) -> None:
        """Hand back all that has not begun."""
        for slots in self._slots.values():
            self._give_back(slots)

    def refuse(self, kind: str, claims: Iterable[Claim]) -> None:
        """Hand back claims that find no slot at once, and claim none ahead for a while."""
        self._slots[kind].claim_none_ahead()
        self.release(claims)

    def _give_back(self, slots: Slots) -> None:
        """Jobs that were claimed ahead and that others could start sooner: claim none ahead for a while."""
        slots.claim_none_ahead()
        self.release(slots.waiting)
        slots.waiting.clear()

    async def wait_for_one(self, hurry: asyncio.Event, timeout: float) -> None:
        """Wait until a job ends, *hurry* is set or the time is over."""
        hurried = self._loop.create_task(hurry.wait())
        await asyncio.wait({*self._tasks, hurried}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    async def hand_back(self, *, may_abandon: bool) -> None:
        """Cancel coroutines and isolated jobs; they end as released. Threads run on: see :meth:`leave_threads`.

        What does not end keeps its claim until the process does; then another worker takes it over.
        """
        for task, job in list(self._tasks.items()):
            job.releasing = True
            if job.ends_when_cancelled:
                task.cancel()
        cancelled = [task for task, job in self._tasks.items() if job.ends_when_cancelled]
        if cancelled:
            await asyncio.wait(cancelled, timeout=self._cancel_grace)
        for job in self._tasks.values():
            if may_abandon and not job.ends_when_cancelled:
                log.warning("%s did not end in time and goes back to its queue", job.claim)
            else:
                log.warning("%s did not end in time; it is run again when this process has ended", job.claim)

    def leave_threads(self, *, at_most_once: bool) -> None:
        """Give up the sync jobs that may run only once, or hand back the others. Their threads run on.

        The process must end before another worker can begin those that are handed back.
        """
        outcome = Outcome(OutcomeKind.FAILED, failure=INTERRUPTED) if at_most_once else Outcome(OutcomeKind.RELEASED)
        now = self._clock()
        for task, job in list(self._tasks.items()):
            if not job.ends_when_cancelled and bool(job.claim.at_most_once) is at_most_once:
                task.remove_done_callback(self._on_done)
                del self._tasks[task]
                self._abandoned.append(task)
                self._note(Ended(job.claim, outcome, now, now))

    def open_processes(self, open_server: Callable[[], JobServer]) -> None:
        """Have the app loaded for isolated jobs, if there are such tasks; *open_server* makes what runs the jobs."""
        self._executor.open_server = open_server
        if self._executor.isolates and any(task.options.isolate for task in self._executor.registry):
            self._warming_up = OwnTask(self._warm_up(), loop=self._loop, name="taskworker-warm-up")

    async def _warm_up(self) -> None:
        try:
            await self._executor.server.start()
        except AppError as error:
            log.error("isolated jobs go back to their queues: %s", error)  # noqa: TRY400

    def end_processes(self) -> None:
        """End isolated jobs at once. Safe from any thread."""
        self._executor.end_processes()

    def close(self) -> None:
        """Let idle threads end; a busy one ends with its job or with the process."""
        self._executor.close()
