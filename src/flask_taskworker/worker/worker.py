"""The worker: claims the jobs of one app and sees them through.

One turn of the loop finishes what ended (one statement for the batch), makes due jobs ready, fires due schedules,
claims as many jobs as there are free slots, and starts them. With one job in flight that is two hops to the database;
with a full house hundreds of jobs share them. Between turns the loop sleeps until it is woken, until the next job or
schedule is due, or for ``TASKER_LOOP_INTERVAL``, which is only a safety net.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
import secrets
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from flask import Flask

from ..client.client import Client
from ..client.threads import ThreadPool
from ..core.config import TaskWorkerConfig
from ..core.current_job import RunningJob
from ..core.loggers import get_logger
from ..core.rows import Claim, JobRecord
from ..core.tasks import TaskRegistry
from ..errors import DatabaseReplaced, SchemaError, StoreError
from ..store.sql import Store
from ..store.work import PROMOTE_BATCH, WorkerStore
from .bounds import NO_BOUNDS, Bounds, BoundsWatch
from .executor import Executor
from .finishing import FLUSH_DELAY, LOCKED_INTERVAL, OutcomeWriter
from .launch import is_reloader_parent
from .liveness import News, package_version, resident_mb
from .quarantine import Quarantine
from .queue_view import QueueView
from .registration import WorkerRegistration
from .role import EVERY_ROLE, WorkerRole
from .running import WAIT_FOR_SLOT, RunningJobs
from .scheduling import Scheduler
from .signalling import WorkerSignals
from .statistics import Statistics
from .upkeep import Upkeep

log = get_logger("worker")

CATCH_UP_INTERVAL = 0.05
SHORT_PAUSE = 0.02
"""Seconds until the next look after one that found something due and could do nothing about it."""
PROMOTE_BATCHES = 20
"""The batches of jobs that are due together that are made ready before jobs are claimed."""
LONGEST_BACK_OFF = 5.0
LAST_WORDS = 1.0
"""Receivers of signals have so long at the end. Seconds."""
TEMPORARY_FAILURE = 75
"""The exit code of a process that cannot go on where a new one could: EX_TEMPFAIL of sysexits.h."""

_IMMEDIATE = 0.0


class Worker:
    """The worker of one app in this process. Everything but :meth:`wake` and :meth:`stop` is for its loop alone."""

    exit_code = 0
    """With which the process should end, where it is this worker's alone."""
    must_hand_back = False
    """Whether threads still run jobs that are to be handed back when the process ends."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        client: Client,
        registry: TaskRegistry,
        config: TaskWorkerConfig,
        find_app: Callable[[], Flask | None],
        bounds: Bounds = NO_BOUNDS,
        role: WorkerRole = EVERY_ROLE,
        may_abandon_threads: bool = False,
    ) -> None:
        self.id = secrets.token_hex(6)
        self.client = client
        self.config = config
        self._loop = loop
        self._store: Store = client.store
        self._registry = registry
        self._find_app = find_app
        self._bounds = bounds
        self._watch = BoundsWatch(bounds)
        self._role = role
        self._may_abandon_threads = may_abandon_threads
        self.job_of: Callable[[asyncio.Task[Any]], RunningJob | None] = lambda _: None
        """The job that an asyncio task runs, if it is one of this worker's. Safe from any thread."""
        self.lag_ms: Callable[[], float | None] = lambda: None
        """How late the loop is; the runner knows it. Safe from any thread."""
        self._signals = WorkerSignals(client, find_app)
        self._quarantine = Quarantine()
        self._books = Statistics()
        self._scheduler = Scheduler(registry, self._store.clock)
        self._aside = ThreadPool(1, "taskworker-aside")
        self._registration = self._make_membership()
        self._queue_view = QueueView(config.queues, role.exclude)
        self._next_look = 0.0
        self._back_off = _IMMEDIATE
        self._declared_dead = self._has_begun = self._stopping = self._given_up = False
        self._deadline = math.inf
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Worker {self.id}>"

    # -- how it stands ----------------------------------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        """Whether it takes no more jobs, for good. Safe from any thread."""
        return self._stopping

    @property
    def is_claiming(self) -> bool:
        """Whether it takes jobs, and the database answers. Safe from any thread."""
        healthy = self._back_off == _IMMEDIATE and not self._declared_dead
        return self._has_begun and not self._stopping and healthy and not self._registration.is_failing

    @property
    def runs_threads(self) -> bool:
        """Whether a sync job runs. Safe from any thread."""
        return any(job.claim.kind == "sync" for _, job in self.running_jobs())

    def running_jobs(self) -> list[tuple[asyncio.Task[Any], RunningJob]]:
        """The jobs that run now, with the asyncio tasks that see them through. Safe from any thread."""
        return self._running_jobs.running_jobs() if self._has_begun else []

    # -- from any thread --------------------------------------------------------------------------------------------

    def wake(self, ready: Collection[tuple[str, str]] = ()) -> None:
        """There is news: look at the database soon. Safe from any thread; repeated calls cost nothing.

        *ready* names (queue, kind) where jobs are ready; where that is all there is to know, no look is needed.
        """
        if self._queue_view.hear(ready):
            self._call(self._news.set)

    def _hear(self, ready: Collection[tuple[str, str]]) -> None:
        """As :meth:`wake`, on the loop itself, which need not wake itself through its pipe then."""
        if self._queue_view.hear(ready):
            self._news.set()

    def stop(self, timeout: float | None = None) -> None:
        """Stop claiming, let jobs end for *timeout* seconds (default: ``TASKER_SHUTDOWN_TIMEOUT``), then hand back.

        A second call can only shorten the time. Safe from any thread.
        """
        self._call(self._stop, timeout)

    def give_up(self, *, declare: bool) -> None:
        """The loop will not turn any more: let other workers have the jobs. Safe from any thread.

        *declare*: at once; else after the lease. Should the loop turn after all, the worker ends without a word.
        """
        self._given_up = self._stopping = True
        if self.client.on_news == self.wake:
            self.client.on_news = None
        for _, job in self.running_jobs():
            job.lost = True
        self._registration.give_up(declare=declare)
        self._call(self._news.set)

    def abandon(self) -> None:
        """After a fork, in the child: this worker is the parent's. Its lock stays with the parent."""
        self._registration.abandon()

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            log.debug("worker %s: its loop has ended", self.id)

    def _stop(self, timeout: float | None) -> None:
        seconds = self.config.shutdown_timeout if timeout is None else timeout
        self._deadline = min(self._deadline, self._loop.time() + seconds)
        self._stopping = True
        if self._has_begun:
            self._work.hurry(seconds)
        self._hurry.set()
        self._news.set()

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Work until :meth:`stop`. Returns whether all is handed back: False while a thread still runs a job.

        Where ``must_hand_back`` is set then, :meth:`wind_up` and :meth:`hand_back` are the last acts of the process.
        """
        try:
            begun = await self._begin()
        except BaseException as error:
            self._aside.shutdown()
            if not isinstance(error, RuntimeError) or threading.main_thread().is_alive():
                raise
            # Python 3.12.0 and 3.12.1 start no thread once the main thread has ended.
            log.info("worker %s does not start: the process ends", self.id)
            return True
        if not begun:
            self._aside.shutdown()
            return True
        try:
            while not self._stopping:
                await self._sleep(await self._guarded_turn())
        except BaseException:
            # It is logged, so the process does not end at once.
            self._may_abandon_threads = False
            raise
        finally:
            handed_back = await self._end()
        return handed_back

    async def _begin(self) -> bool:
        """Connect and register. Where another process keeps the database locked, until it works, or we are stopped."""
        while True:
            try:
                await self._connect()
            except SchemaError:
                raise
            except StoreError as error:
                pause = self._longer_back_off()
                log.warning("worker %s cannot start: %s Next try in %.1f s.", self.id, error, pause)
                await self._sleep(pause)
                if self._stopping:
                    return False
            else:
                break
        self.client.worker_thread = threading.current_thread()
        self.client.on_news = self.wake
        self._has_begun = True
        log.info("worker %s works on %s", self.id, self._role.words(self.config.queues))
        self._signals.worker_started(self)
        return True

    async def _connect(self) -> None:
        await self._in_thread(self._store.driver.prepare)
        self._running_jobs = RunningJobs(
            executor=self._make_executor(),
            config=self.config,
            clock=self._store.clock,
            find_app=self._find_app,
            on_change=self._news.set,
            on_start=self._signals.started,
            may_start=lambda: self._registration.is_current and not self._given_up,
        )
        self.job_of = self._running_jobs.job_of
        self._work = await WorkerStore.open(self._store)
        self._upkeep = Upkeep(self._work, self._running_jobs, self._books, self._scheduler)
        self._outcome_writer = OutcomeWriter(
            self._work,
            self._running_jobs,
            books=self._books,
            worker_signals=self._signals,
            queue_view=self._queue_view,
            client=self.client,
        )
        try:
            self.id = await self._registration.join()
        except BaseException:
            await self._work.close()
            raise

    def _make_executor(self) -> Executor:
        return Executor(
            self._find_app,
            self._registry,
            threads=self.config.threads,
            clock=self._store.clock,
            run_atomically=self.client.run_atomically,
        )

    async def _in_thread(self, call: Callable[[], None]) -> None:
        """Not asyncio.to_thread: its threads refuse work once the main thread has ended, which is when we stop."""
        await self._loop.run_in_executor(self._aside, call)

    def _make_membership(self) -> WorkerRegistration:
        news = News(
            lost=lambda: self._call(self._on_lost),
            cancel=lambda jobs: self._call(self._running_jobs.cancel, jobs),
            rescued=lambda records: self._call(self._on_rescued, records),
            clock_back=lambda: self._call(self._on_clock_back),
            reached=self.wake,
        )
        return WorkerRegistration(
            self._store, self._loop, self._in_thread, news=news, on_wake=self._hear, info=self._info
        )

    def _info(self) -> dict[str, object]:
        """What the worker's row tells people; read in the heartbeat's thread."""
        return {
            "name": self._role.name,
            "version": package_version(),
            "queues": self.config.queues,
            "exclude": sorted(self._role.exclude),
            "schedules": self._role.schedules,
            "concurrency": self.config.concurrency,
            "threads": self.config.threads,
            "running": self._running_jobs.counts(),
            "resident_mb": resident_mb(),
            "loop_lag_ms": self.lag_ms(),
            "unable_schedules": self._scheduler.unable,
            "hung_threads": len(self._running_jobs.hung.claims),
        }

    async def _guarded_turn(self) -> float:
        """One turn. When the database fails nothing is lost: what ended is recorded when it is back."""
        try:
            delay = await self._turn()
        except DatabaseReplaced as error:
            if self._may_abandon_threads:
                raise
            log.error("worker %s: %s Next look in %.1f s.", self.id, error, self._longer_back_off())  # noqa: TRY400
        except StoreError as error:
            log.warning("worker %s: %s Next try in %.1f s.", self.id, error, self._longer_back_off())
        except asyncio.CancelledError:
            log.warning("worker %s: a job has cancelled what it waited for; it goes on", self.id)
            self._longer_back_off()
        except Exception:
            self._back_off = LONGEST_BACK_OFF
            log.exception("worker %s: this should not happen; please report it. Next try in 5 s.", self.id)
        else:
            self._back_off = _IMMEDIATE
            return delay
        # What woke the worker may not have been acted on: see test_news_outlive_a_turn_that_failed.
        self._upkeep.must_reconcile = self._queue_view.must_look = True
        return self._back_off * random.uniform(0.8, 1.2)

    def _longer_back_off(self) -> float:
        self._back_off = min(LONGEST_BACK_OFF, max(0.05, self._back_off * 2))
        return self._back_off

    async def _turn(self) -> float:
        """One round of all that there is to do. Returns the seconds until the next."""
        if is_reloader_parent() or self._is_at_limit() or self._is_out_of_threads():
            self._stop(None)
            return _IMMEDIATE
        if not self._loop.get_debug() and self._running_jobs.is_debug():
            # app.run(debug=True) sets app.debug when the worker has long begun.
            self._loop.set_debug(True)
        if self._declared_dead:
            await self._rejoin()
        if self._upkeep.must_reconcile:
            await self._upkeep.reconcile(self.id)
        self._running_jobs.start_waiting()
        await self._outcome_writer.flush(self.id)
        made_ready = await self._look()
        if await self._claim() < made_ready:
            # Others may have a slot, or work on that queue, and not know of the time that has come.
            self._store.driver.wake_others()
        self._running_jobs.start_waiting()
        await self._upkeep.keep_up(self.id, self._loop.time())
        return self._delay()

    # -- sleeping ---------------------------------------------------------------------------------------------------

    async def _sleep(self, delay: float) -> None:
        if delay <= 0:
            await asyncio.sleep(0)
            return
        handle = self._loop.call_later(delay, self._news.set)
        await self._news.wait()
        self._news.clear()
        handle.cancel()

    def _delay(self) -> float:
        """How long there is nothing to do, as far as this worker knows."""
        if self._queue_view.has_news:
            return _IMMEDIATE
        if any(names and self._room(kind) > 0 for kind, names in self._queue_view.ready.items()):
            return _IMMEDIATE
        if self._bounds.drain and not self._has_work():
            return _IMMEDIATE
        delays = [min(self._next_look, self._watch.idle_until) - self._loop.time(), *self._chores()]
        now = self._store.clock()
        if self._queue_view.next_due is not None:
            delays.append((self._queue_view.next_due - now) / 1000)
        if self._queue_view.next_fire is not None:
            delays.append((self._queue_view.next_fire - now) / 1000)
        return min(delays)

    def _chores(self) -> Iterator[float]:
        """How long what is pending in this process may wait."""
        if self._running_jobs.ended:
            yield FLUSH_DELAY
        if self._running_jobs.locked:
            yield LOCKED_INTERVAL
        yield from self._upkeep.delays()
        if self._signals.is_behind:
            yield CATCH_UP_INTERVAL
        if (suspect_delay := self._quarantine.delay(self._loop.time())) is not None:
            yield suspect_delay
        if self._running_jobs.waiting:
            yield WAIT_FOR_SLOT
        if (hung_delay := self._running_jobs.hung.delay(self._loop.time())) is not None:
            yield hung_delay

    # -- looking and claiming ---------------------------------------------------------------------------------------

    async def _look(self) -> int:
        """Peek where there is a reason to, and act on what is due. Returns how many jobs that made ready."""
        queue_view = self._queue_view
        if queue_view.must_look or self._loop.time() >= self._next_look:
            await self._peek()
        elif queue_view.has_news:
            queue_view.take_hints()
        if not self._is_due(queue_view.next_due) and not self._is_due(queue_view.next_fire):
            return 0
        made_ready = await self._act_on_time()
        if not made_ready:
            # What cannot fire, or is locked by another session, would be found due at once, again and again.
            self._next_look = self._loop.time() + max(self._scheduler.pause, SHORT_PAUSE)
            queue_view.forget_due(self._store.clock())
            return 0
        # What is due next is looked for after the claim: these jobs are late already.
        queue_view.hear(made_ready)
        queue_view.take_hints()
        queue_view.must_look = True
        return len(made_ready)

    def _is_due(self, moment: int | None) -> bool:
        return moment is not None and moment <= self._store.clock()

    async def _peek(self) -> None:
        # Before the peek: news that come during it must wake the loop again.
        self._queue_view.begin_look()
        self._next_look = self._loop.time() + self.config.loop_interval
        if self._role.schedules:
            await self._scheduler.declare(self._work)
            await self._scheduler.correct(self._work)
        self._queue_view.take(await self._work.peek(self._scheduler.may_fire))
        self._quarantine.waiting = bool(self._queue_view.suspects)

    async def _act_on_time(self) -> list[tuple[str, str]]:
        """Fire and promote what is due. Returns the queue and kind of each job that is ready now."""
        fired = await self._scheduler.fire_due(self._work) if self._is_due(self._queue_view.next_fire) else []
        self._signals.fired(fired)
        promoted: list[tuple[str, str]] = []
        if self._is_due(self._queue_view.next_due):
            # All before the claim, which takes the highest priority first; but no more than memory and others bear.
            for _ in range(PROMOTE_BATCHES):
                promoted += (batch := await self._work.promote())
                if len(batch) < PROMOTE_BATCH:
                    break
        return [(job.queue, job.kind) for _, job in fired if job.state == "ready"] + promoted

    async def _claim(self) -> int:
        """Take as many jobs as there is room for. Returns how many."""
        taken = 0
        now, stuck = self._loop.time(), self._running_jobs.overdue
        busy = self._running_jobs.busy or stuck
        self._quarantine.update(now, busy=busy, stuck=stuck)
        may_claim = self._registration.is_current
        if may_claim and self._quarantine.ready(now, busy=busy, others=self._queue_view.has_ready):
            taken += await self._claim_suspect()
        for kind, names in self._queue_view.ready.items():
            while names and (room := self._room(kind)) > 0:
                claims = await self._work.claim(self.id, names[0], kind, room)
                await self._accept(kind, claims)
                taken += len(claims)
                self._queue_view.served(kind, more=len(claims) == room)
        return taken

    async def _claim_suspect(self) -> int:
        # Of all queues but some, only those are known that the last look has found.
        queues = self._queue_view.suspects if self._role.exclude else self.config.queues
        claims = await self._work.claim_suspect(self.id, queues)
        self._quarantine.claimed(found=bool(claims))
        for claim in claims:
            await self._accept(claim.kind, [claim])
        return len(claims)

    async def _accept(self, kind: str, claims: list[Claim]) -> None:
        once = [claim for claim in claims if claim.at_most_once]
        if once:
            await self._work.confirm(once)
        self._running_jobs.take(kind, claims)

    def _room(self, kind: str) -> int:
        if self._quarantine.closed(self._loop.time()) or self._signals.is_behind or not self._registration.is_current:
            return 0
        room = self._running_jobs.room(kind)
        if self._bounds.max_jobs is None:
            return room
        return min(room, self._bounds.max_jobs - self._running_jobs.jobs_done - len(self._running_jobs.claims()))

    # -- whether to go on -------------------------------------------------------------------------------------------

    def _is_at_limit(self) -> bool:
        if not self._watch.is_limited:
            return False
        idle = not (self._has_work() or self._queue_view.has_news or not self._next_look)
        return self._watch.is_over(
            self._loop.time(), worker_id=self.id, jobs_done=self._running_jobs.jobs_done, idle=idle
        )

    def _has_work(self) -> bool:
        """Whether there are jobs to see through, or to claim when they can be."""
        running_jobs = self._running_jobs
        # Beside a thread that may never return no suspect is run here.
        has_suspect = self._quarantine.waiting and not running_jobs.overdue
        return bool(running_jobs.busy or running_jobs.ended or has_suspect or self._queue_view.has_ready)

    def _is_out_of_threads(self) -> bool:
        """Whether to end since hung sync jobs have all threads, which only the end of the process gives back."""
        if not self._running_jobs.hung.to_tell(self._loop.time()):
            return False
        ends = self._may_abandon_threads
        log.error("worker %s: %s", self.id, self._running_jobs.hung.words(ends=ends))
        self.exit_code = TEMPORARY_FAILURE if ends else 0
        return ends

    # -- news from the heartbeat's thread ---------------------------------------------------------------------------

    def _on_lost(self) -> None:
        self._running_jobs.lose()
        self._declared_dead = True
        self._news.set()

    def _on_rescued(self, records: list[JobRecord]) -> None:
        self._signals.rescued(records)
        self._books.rescued(records)
        self.client.wake()

    def _on_clock_back(self) -> None:
        self._scheduler.must_correct = True
        self.wake()

    async def _rejoin(self) -> None:
        """Register again, under a new id: the old one's claims are void."""
        await self._registration.stop_beating(holding=True)
        self._leave()
        self.id = await self._registration.join()
        self._declared_dead = False
        log.warning("worker %s is back under this new id", self.id)

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _end(self) -> bool:
        """Let jobs end, hand back the others, deregister. Returns whether no thread runs a job any more."""
        if self.client.on_news == self.wake:
            # Else another worker of this app has begun since.
            self.client.on_news = None
        if self._given_up:
            self._running_jobs.lose()
            await self._close(holding=True)
            return True
        self._deadline = min(self._deadline, self._loop.time() + self.config.shutdown_timeout)
        holding = True
        try:
            recorded = await self._drain()
            holding = self._running_jobs.busy or not recorded
            self.must_hand_back = self._may_abandon_threads and self._running_jobs.in_threads
        finally:
            if not self.must_hand_back:
                # Whatever happened: the connections' threads would keep the process.
                await self._close(holding)
        return not holding

    async def _close(self, holding: bool) -> None:
        self._end_crew()
        await self._registration.stop_beating(holding=holding)
        self._leave(holding=holding and not self._given_up)
        await self._books.close(self._work)
        await self._work.close()
        self._signals.worker_stopped(self)
        await self._in_thread(lambda: self._signals.close(timeout=LAST_WORDS))
        self._aside.shutdown()
        log.info("worker %s has stopped", self.id)

    def _end_crew(self) -> None:
        # Not before: one of the last jobs, waiting for a result, would still block the loop.
        if self.client.worker_thread is threading.current_thread():
            self.client.worker_thread = None
        self._running_jobs.close()

    async def wind_up(self) -> None:
        """Where threads still run jobs: do what takes time before :meth:`hand_back`. Some of the jobs may end by then.

        From that on another worker may run them, so the threads must end at once.
        """
        self._end_crew()
        self._running_jobs.interrupt()
        await self._outcome_writer.flush_all(self.id)
        await self._registration.stop_beating(holding=True)
        self._signals.worker_stopped(self)
        deadline = self._loop.time() + LAST_WORDS
        while (left := deadline - self._loop.time()) > 0:
            await self._in_thread(functools.partial(self._signals.close, timeout=left))
            if not self._running_jobs.ended or not await self._outcome_writer.flush_all(self.id):
                break
        await self._books.close(self._work)
        log.info("worker %s has stopped", self.id)

    async def hand_back(self) -> None:
        """Hand back the jobs that threads still run. The process should end right after this."""
        handed_back = await self._outcome_writer.hand_back(self.id)
        self._leave(holding=self._running_jobs.busy or not handed_back)
        # The others hear of it last, since they begin at once.
        self._store.driver.wake_others(at_once=True)

    async def disconnect(self) -> None:
        """After :meth:`hand_back`, if the process lives on anyway."""
        await self._work.close()
        self._aside.shutdown()

    def _leave(self, *, holding: bool = False) -> None:
        self._registration.leave(holding=holding)

    async def _drain(self) -> bool:
        """Returns whether all endings are recorded."""
        if self._stopping:
            # Else it was not asked to stop: what it cannot hand back counts as a crash.
            try:
                await self._work.start_draining(self.id)
            except StoreError as error:
                log.warning("worker %s: %s", self.id, error)
        self._running_jobs.give_back_waiting()
        await self._outcome_writer.flush_all(self.id)
        await self._await_running()
        await self._running_jobs.hand_back(may_abandon=self._may_abandon_threads)
        return await self._outcome_writer.flush_all(self.id)

    async def _await_running(self) -> None:
        left = self._deadline - self._loop.time()
        if self._running_jobs.busy and left > 0:
            running = sum(self._running_jobs.counts().values())
            log.info("worker %s stops: it waits for running jobs (%d), %.0f s at most", self.id, running, left)
        while self._running_jobs.busy and (left := self._deadline - self._loop.time()) > 0:
            self._hurry.clear()
            await self._running_jobs.wait_for_one(self._hurry, left)
            await self._outcome_writer.flush_all(self.id)
