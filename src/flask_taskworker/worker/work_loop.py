"""The work of a worker: one turn does all that there is to do, and says how long there is nothing more.

A turn records what ended (one statement for the batch), makes due jobs ready, fires due schedules, claims as many jobs
as there are free slots, and starts them. With one job in flight that is two calls of the database; in a busy worker
hundreds of jobs share them. Between turns the worker sleeps until it is woken, until the next job or schedule is due,
or for ``TASKER_LOOP_INTERVAL``, which is only a safety net.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flask import Flask

from ..client.client import Client
from ..core.config import TaskWorkerConfig
from ..core.limits import QUEUE, declared_limits
from ..core.loggers import Logger, get_logger, show_on_terminal
from ..core.rows import LIMITED, Claim, JobRecord
from ..core.tasks import TaskRegistry
from ..store.admission import Admitted, Wish
from ..store.driver import RowLocked
from ..store.work import PROMOTE_BATCH, WorkerStore
from .bounds import Bounds, BoundsWatch, WorkerRole
from .executor import Executor
from .finishing import FLUSH_DELAY, LOCKED_INTERVAL, OutcomeWriter
from .quarantine import Quarantine
from .queue_view import QueueView
from .running import KINDS, WAIT_FOR_SLOT, RunningJobs
from .scheduling import Scheduler
from .signalling import WorkerSignals
from .statistics import Statistics
from .timing import Timing

if TYPE_CHECKING:
    from .isolation import JobServer

CATCH_UP_INTERVAL = 0.05
SHORT_PAUSE = 0.02
"""Seconds until the next look after one that found something due and could do nothing about it."""
LOCKED_PAUSE_MS = 50
"""Milliseconds until jobs are admitted again where rows were locked."""
PROMOTE_BATCHES = 20
"""The number of batches of due jobs that are made ready before jobs are claimed."""


class WorkerParts:
    """What a worker is made of, and what it asks before it acts: the seam through which the testing kit plugs in."""

    prunes = True
    """Whether what is old is deleted."""

    def executor(self, *args: Any, **options: Any) -> Executor:
        """What runs the jobs."""
        return Executor(*args, **options)

    def signals(self, client: Client, find_app: Callable[[], Flask | None], timing: Timing) -> WorkerSignals:
        """What sends the signals."""
        return WorkerSignals(client, find_app, timing)

    def scheduler(self, registry: TaskRegistry, clock: Callable[[], int], timing: Timing) -> Scheduler:
        """What fires the schedules."""
        return Scheduler(registry, clock, timing)

    def queue_view(self, order: Sequence[str] | None, exclude: frozenset[str]) -> QueueView:
        """What the worker knows about the queues."""
        return QueueView(order, exclude)

    def room(self, room: int, loop: WorkLoop) -> int:
        """How many jobs to claim into this *room*."""
        return room

    def on_claim(self) -> None:
        """Jobs were claimed."""

    def is_over(self, loop: WorkLoop) -> bool:
        """Whether to end where the bounds are reached."""
        return True

    def ends_with(self, error: BaseException, *, has_begun: bool) -> bool:
        """Whether the worker ends where it cannot begin, or a turn fails. Else it tries again."""
        return False


log: Logger = get_logger("jobs")


class WorkLoop:
    """The work of one worker, from :meth:`open` on. For its event loop only."""

    work: WorkerStore
    jobs: RunningJobs
    writer: OutcomeWriter

    def __init__(
        self,
        *,
        client: Client,
        registry: TaskRegistry,
        config: TaskWorkerConfig,
        find_app: Callable[[], Flask | None],
        may_begin: Callable[[], bool],
        bounds: Bounds,
        role: WorkerRole,
        timing: Timing,
        parts: WorkerParts,
    ) -> None:
        self._client = client
        self._store = client.store
        self._registry = registry
        self._config = config
        self._find_app = find_app
        self._may_begin = may_begin
        self._bounds = bounds
        self._watch = BoundsWatch(bounds)
        self._role = role
        self._timing = timing
        self._parts = parts
        self.signals: WorkerSignals = parts.signals(client, find_app, timing)
        self.scheduler: Scheduler = parts.scheduler(registry, self._store.clock, timing)
        self.view: QueueView = parts.queue_view(config.queues, role.exclude)
        self.statistics: Statistics = Statistics(timing)
        self._quarantine = Quarantine(timing.suspect_room)
        self._next_look = 0.0
        self._declared_version = -1
        self._last_turn = 0
        """When the last turn began, by the clock, in epoch milliseconds."""

    async def open(self, on_change: Callable[[], None]) -> None:
        """Connect; *on_change* is called on the loop when something has ended. Raises StoreError."""
        self._loop = asyncio.get_running_loop()
        self.jobs = RunningJobs(
            executor=self._parts.executor(
                self._find_app,
                self._registry,
                threads=self._config.threads,
                clock=self._store.clock,
                run_atomically=self._client.run_atomically,
                timing=self._timing,
            ),
            config=self._config,
            clock=self._store.clock,
            find_app=self._find_app,
            on_change=on_change,
            on_start=self.signals.started,
            may_start=self._may_begin,
            flows=self._client.batches,
            steps=self._client.steps,
            timing=self._timing,
        )
        self.jobs.open_processes(self._open_server)
        self.work = await WorkerStore.open(self._store)
        self.writer = OutcomeWriter(
            self.work,
            self.jobs,
            client=self._client,
            signals=self.signals,
            statistics=self.statistics,
            scheduler=self.scheduler,
            view=self.view,
            timing=self._timing,
            prunes=self._parts.prunes,
        )

    def _open_server(self) -> JobServer:
        # Imported here: a worker without isolated tasks pays nothing for it.
        from .isolation import JobServer

        config, grace = self._config, self._timing.isolated_grace
        return JobServer(self._find_app, config.app, self._store.driver.key, grace)

    async def turn(self, worker_id: str) -> float:
        """Do all that there is to do. Returns the seconds until the next turn. Raises StoreError."""
        if not self._loop.get_debug() and self.jobs.is_debug():
            # app.run(debug=True) sets app.debug when the worker has long begun.
            self._loop.set_debug(True)
            show_on_terminal()
        if self.view.limits:
            await self._see_clock()
        self.jobs.worker_id = worker_id
        if self.writer.must_reconcile:
            await self.writer.reconcile(worker_id)
        self.jobs.start_waiting()
        made_ready = 0
        for admitted in await self.writer.flush(worker_id, self._wish(worker_id)):
            made_ready += await self._take_in(admitted)
        made_ready += await self._look(worker_id)
        if await self._claim(worker_id) < made_ready:
            # Others may have a slot, or work on that queue, and not know of the time that has come.
            self._store.driver.wake_others()
        self.jobs.start_waiting()
        if (words := self.jobs.to_tell_standstill()) is not None:
            log.error("worker %s: %s", worker_id, words)
        await self.writer.keep_up(worker_id)
        return self.delay()

    def delay(self) -> float:
        """Seconds for which there is nothing to do, as far as this worker knows."""
        view = self.view
        if view.has_news or any(names and self._room(kind) > 0 for kind, names in view.ready.items()):
            return 0.0
        if self._bounds.drain and not self._has_work():
            return 0.0
        delays = [min(self._next_look, self._watch.idle_until) - self._loop.time(), *self._chores()]
        now = self._store.clock()
        moments = (view.next_due, view.next_fire, view.next_resume)
        delays += [(moment - now) / 1000 for moment in moments if moment is not None]
        if view.next_open is not None:
            delays.append((view.next_open - self.work.lane_now()) / 1000)
        return min(delays)

    def _chores(self) -> Iterator[float]:
        """How long what is pending in this process may wait."""
        now = self._loop.time()
        if self.jobs.ended:
            yield FLUSH_DELAY
        if self.jobs.locked:
            yield LOCKED_INTERVAL
        if self.writer.must_go_on:
            yield 0.0
        if self.signals.is_behind:
            yield CATCH_UP_INTERVAL
        if self.jobs.waiting:
            yield WAIT_FOR_SLOT
        hung, standstill = self.jobs.hung.delay(now), self.jobs.standstill.delay(now)
        for delay in (*self.writer.delays(), self._quarantine.delay(now), hung, standstill):
            if delay is not None:
                yield delay

    # -- looking ----------------------------------------------------------------------------------------------------

    async def _look(self, worker_id: str) -> int:
        """Peek where there is a reason to, and act on what is due. Returns how many jobs that made ready."""
        view = self.view
        has_new_tasks = self._registry.version != self._declared_version
        if view.must_look or has_new_tasks or self._loop.time() >= self._next_look:
            # Before the peek: news that come during it must wake the loop again.
            view.begin_look()
            self._next_look = self._loop.time() + self._config.loop_interval
            if self._role.schedules:
                await self.scheduler.declare(self.work)
                await self.scheduler.correct(self.work)
            await self._see_limits()
            view.take(await self.work.peek(self.scheduler.may_fire))
            self._quarantine.waiting = bool(view.suspects)
        elif view.has_news:
            view.take_hints()
        now = self._store.clock()
        if view.next_resume is not None and view.next_resume <= now:
            await self._resume_queues()
        fires, promotes = (moment is not None and moment <= now for moment in (view.next_fire, view.next_due))
        lane_now = self.work.lane_now()
        opens = view.next_open is not None and view.next_open <= lane_now
        made_ready: list[tuple[str, str]] = []
        admitted = 0
        if fires:
            fired = await self.scheduler.fire_due(self.work)
            self.signals.fired(fired)
            made_ready += [(job.queue, job.kind) for _, job in fired if job.state == "ready"]
            view.must_admit |= any(job.state == "held" for _, job in fired)
        # All before the claim, which takes the highest priority first; but no more than memory and others bear.
        for _ in range(PROMOTE_BATCHES if promotes else 0):
            promoted = await self.work.promote()
            made_ready += promoted.ready
            view.must_admit |= promoted.number > len(promoted.ready)
            if promoted.number < PROMOTE_BATCH:
                break
        if (fires or promotes) and not made_ready and not view.must_admit:
            # What cannot fire, or is locked by another session, would be found due at once, again and again.
            self._next_look = self._loop.time() + max(self.scheduler.pause, SHORT_PAUSE)
            view.forget_due(self._store.clock())
        elif fires or promotes:
            # What is due next is looked for after the claim: these jobs are late already.
            view.must_look = True
        if made_ready:
            view.hear(made_ready)
            view.take_hints()
        if view.must_admit or opens:
            admitted = await self._admit(worker_id, lane_now)
        return len(made_ready) + admitted

    async def _resume_queues(self) -> None:
        """Resume what was paused until now, and look again."""
        self.view.next_resume = None
        for name in await self.work.resume_queues():
            log.info("queue %r is no longer paused: its time is over", name)
        self.view.must_look = True
        self._client.wake()

    async def _see_limits(self) -> None:
        """Store the limits of the code, if tasks were added since the last time."""
        version = self._registry.version
        if version != self._declared_version:
            declared = declared_limits(self._registry.limits, self._config.queue_limits)
            if declared:
                await self.work.declare_limits(declared)
            self.view.declared_limits = declared.keys()
            self._declared_version = version

    async def _see_clock(self) -> None:
        """Have all lanes looked at, where the clock went back: what they wait for may be hours away now."""
        now = self._store.clock()
        if now < self._last_turn:
            self.view.must_look = True
            await self.work.look_again()
        self._last_turn = now

    async def _admit(self, worker_id: str, now: int) -> int:
        """Admit limited jobs that there is room for. Returns how many of them are to be claimed."""
        view = self.view
        if view.next_open is not None and view.next_open <= now:
            view.next_open = None
        ready = 0
        for _ in range(PROMOTE_BATCHES):
            view.must_admit = False
            try:
                admitted = await self.work.admit(self._wish(worker_id))
            except RowLocked:
                # Another worker, or a person, is at it for long.
                view.note_open(now + LOCKED_PAUSE_MS)
                break
            ready += await self._take_in(admitted)
            if not view.must_admit:
                break
        return ready

    def _wish(self, worker_id: str) -> Wish | None:
        """What to claim in the transaction that admits it: nothing that others would have come before."""
        view = self.view
        if not view.limits or view.is_hinted or self._bounds.max_jobs is not None:
            return None
        room = {kind: 0 if view.ready[kind] else min(self._room(kind), self.jobs.free(kind)) for kind in KINDS}
        return Wish(worker_id=worker_id, now=self._store.clock(), room=room, serves=view.serves)

    async def _take_in(self, admitted: Admitted) -> int:
        """Act on what was admitted. Returns how many jobs are to be claimed."""
        view = self.view
        for kind in KINDS:
            if claims := [claim for claim in admitted.claims if claim.kind == kind]:
                await self._accept(kind, claims, begun=True)
        view.must_admit |= admitted.is_more
        view.note_open(admitted.next_open)
        if ready := view.limited_queues(admitted.queues) | set(admitted.ready):
            view.hear(ready)
            view.take_hints()
        return len(admitted.ready)

    # -- claiming ---------------------------------------------------------------------------------------------------

    async def _claim(self, worker_id: str) -> int:
        """Take as many jobs as there is room for. Returns how many."""
        taken = 0
        now, stuck, view = self._loop.time(), bool(self.jobs.hung.claims), self.view
        busy = self.jobs.busy or stuck
        self._quarantine.update(now, busy=busy, stuck=stuck)
        if self._may_begin() and self._quarantine.ready(now, busy=busy, others=view.has_ready):
            # Where some queues are excluded, only those are known that the last look has found.
            queues = view.suspects if self._role.exclude else self._config.queues
            limited = [name for name in view.suspects if f"{QUEUE}:{name}" in view.limits]
            claims = await self.work.claim_suspect(worker_id, view.suspects if limited else queues, limited)
            self._quarantine.claimed(found=bool(claims))
            for claim in claims:
                await self._accept(claim.kind, [claim])
            taken += len(claims)
        for kind, names in view.ready.items():
            while names and (room := self._room(kind)) > 0:
                if f"{QUEUE}:{names[0]}" in view.limits:
                    claims = await self._claim_within_limit(worker_id, names[0], kind, room)
                else:
                    claims = await self.work.claim(worker_id, names[0], kind, room)
                await self._accept(kind, claims)
                taken += len(claims)
                view.served(kind, more=len(claims) == room)
        return taken

    async def _claim_within_limit(self, worker_id: str, queue: str, kind: str, room: int) -> list[Claim]:
        if self.view.limits[f"{QUEUE}:{queue}"]:
            # A start is charged when it is claimed: none ahead.
            room = min(room, self.jobs.free(kind))
        claims, opens_at = await self.work.claim_within_limit(worker_id, queue, kind, room) if room else ([], None)
        self.view.note_open(opens_at)
        return claims

    async def _begin(self, kind: str, claims: list[Claim]) -> list[Claim]:
        """Charge the limited jobs that start now to their rates. Those that find no slot go back, uncharged."""
        free = self.jobs.free(kind)
        late = [claim for claim in claims[free:] if claim.marks & LIMITED]
        if late:
            self.jobs.refuse(kind, late)
        if begun := [claim for claim in claims[:free] if claim.marks & LIMITED]:
            self.view.note_open(await self.work.begin(begun))
        return [*claims[:free], *(claim for claim in claims[free:] if not claim.marks & LIMITED)]

    async def _accept(self, kind: str, claims: list[Claim], *, begun: bool = False) -> None:
        self._parts.on_claim()
        if not begun and any(self.view.limits.values()) and any(claim.marks & LIMITED for claim in claims):
            claims = await self._begin(kind, claims)
        if once := [claim for claim in claims if claim.at_most_once]:
            await self.work.confirm(once)
        self.jobs.take(kind, claims)

    def _room(self, kind: str) -> int:
        if self._quarantine.closed(self._loop.time()) or self.signals.is_behind or not self._may_begin():
            return 0
        room = self.jobs.room(kind)
        if self._bounds.max_jobs is not None:
            room = min(room, self._bounds.max_jobs - self.jobs.jobs_done - len(self.jobs.claims()))
        return self._parts.room(room, self)

    # -- whether to go on -------------------------------------------------------------------------------------------

    def is_over(self, worker_id: str) -> bool:
        """Whether the worker has reached its bounds."""
        if not self._watch.is_limited:
            return False
        idle = not (self._has_work() or self.view.has_news or not self._next_look)
        jobs_done = self.jobs.jobs_done
        is_over = self._watch.is_over(self._loop.time(), worker_id=worker_id, jobs_done=jobs_done, idle=idle)
        return is_over and self._parts.is_over(self)

    def _has_work(self) -> bool:
        """Whether there are jobs to see through, or to claim when they can be."""
        # Beside a thread that may never return no suspect is run here.
        has_suspect = self._quarantine.waiting and not self.jobs.hung.claims
        return bool(self.jobs.busy or self.jobs.ended or has_suspect or self.view.has_ready)

    # -- news -------------------------------------------------------------------------------------------------------

    def on_failed_turn(self) -> None:
        """What woke the worker may not have been acted on: see test_news_outlive_a_turn_that_failed."""
        self.writer.must_reconcile = self.view.must_look = True

    def on_rescued(self, records: list[JobRecord]) -> None:
        """This worker has rescued these jobs of a dead one."""
        self.writer.must_go_on = True
        self.signals.rescued(records)
        self.statistics.rescued(records)
        self._client.wake()
