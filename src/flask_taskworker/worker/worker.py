"""The worker of one app: how it begins, goes on when something fails, and ends. Its work is in ``work_loop``."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import secrets
import threading
from collections.abc import Callable, Collection
from typing import Any, Literal

from flask import Flask

from ..client.client import Client
from ..client.threads import ThreadPool
from ..core.config import TaskWorkerConfig
from ..core.current_job import RunningJob
from ..core.loggers import Logger, get_logger
from ..core.tasks import TaskRegistry
from ..errors import DatabaseReplaced, SchemaError, StoreError
from .bounds import EVERY_ROLE, NO_BOUNDS, Bounds, WorkerRole, resident_mb
from .launch import is_reloader_parent
from .liveness import News, WorkerRegistration, package_version
from .timing import DEFAULT_TIMING, Timing
from .work_loop import WorkerParts, WorkLoop

log: Logger = get_logger("worker")

LONGEST_BACK_OFF = 5.0
LAST_WORDS = 1.0
"""Seconds that receivers of signals get at the end."""
TEMPORARY_FAILURE = 75
"""The exit code of a process that cannot go on where a new one could: EX_TEMPFAIL of sysexits.h."""


class Worker:
    """The worker of one app in this process. For its event loop only, unless said."""

    exit_code: int = 0
    """With which the process should end, where it is this worker's alone."""
    must_hand_back: bool = False
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
        timing: Timing = DEFAULT_TIMING,
        parts: WorkerParts | None = None,
        may_abandon_threads: bool = False,
    ) -> None:
        self.id: str = secrets.token_hex(6)
        self.client = client
        self.config = config
        self._loop = loop
        self._store = client.store
        self._role = role
        self._parts = parts or WorkerParts()
        self._may_abandon_threads = may_abandon_threads
        self.job_of: Callable[[asyncio.Task[Any]], RunningJob | None] = lambda _: None
        """The job that an asyncio task runs, if it is one of this worker's. Safe from any thread."""
        self.lag_ms: Callable[[], float | None] = lambda: None
        """How late the loop is; the runner knows it. Safe from any thread."""
        self.work_loop: WorkLoop = WorkLoop(
            client=client,
            registry=registry,
            config=config,
            find_app=find_app,
            may_begin=lambda: self._registration.is_current and not (self._given_up or self.is_quiet),
            bounds=bounds,
            role=role,
            timing=timing,
            parts=self._parts,
        )
        self._aside = ThreadPool(1, "taskworker-aside")
        self._registration = WorkerRegistration(
            self._store,
            loop,
            self._in_thread,
            news=self._news_of_beats(),
            on_wake=self._hear,
            info=self._info,
            timing=timing,
        )
        self._back_off = 0.0
        self._declared_dead = self._has_begun = self._given_up = False
        self.is_quiet: bool = False
        """Whether an operator has asked it to take no more jobs. Safe from any thread."""
        self.is_stopping: bool = False
        """Whether it takes no more jobs. Safe from any thread."""
        self._deadline = math.inf
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()

    def _news_of_beats(self) -> News:
        return News(
            lost=lambda: self._call(self._on_lost),
            running=lambda: [job.claim.id for _, job in self.running_jobs()],
            cancel=lambda jobs: self._call(self.work_loop.jobs.cancel, jobs),
            rescued=lambda records: self._call(self.work_loop.on_rescued, records),
            wished=self._on_wish,
            sized=lambda kind, size: self._call(self.work_loop.jobs.resize, kind, size),
            reached=self.wake,
        )

    def __repr__(self) -> str:
        return f"<Worker {self.id}>"

    # -- how it stands ----------------------------------------------------------------------------------------------

    @property
    def is_claiming(self) -> bool:
        """Whether it takes jobs, and the database answers. Safe from any thread."""
        is_healthy = not self._back_off and not self._declared_dead and not self._registration.is_failing
        return self._has_begun and not (self.is_stopping or self.is_quiet) and is_healthy

    @property
    def runs_threads(self) -> bool:
        """Whether a thread runs a job. Safe from any thread."""
        return any(not job.ends_when_cancelled for _, job in self.running_jobs())

    def running_jobs(self) -> list[tuple[asyncio.Task[Any], RunningJob]]:
        """The jobs that run now, with the asyncio tasks that see them through. Safe from any thread."""
        return self.work_loop.jobs.running_jobs() if self._has_begun else []

    # -- from any thread --------------------------------------------------------------------------------------------

    def wake(self, ready: Collection[tuple[str, str]] = ()) -> None:
        """There is news: look at the database soon. Safe from any thread; repeated calls cost nothing.

        *ready* names (queue, kind) where jobs are ready; where that is all there is to know, no look is needed.
        """
        if self.work_loop.view.hear(ready):
            self._call(self._news.set)

    def _hear(self, ready: Collection[tuple[str, str]]) -> None:
        """As :meth:`wake`, on the loop itself, which need not wake itself through its pipe then."""
        if self.work_loop.view.hear(ready):
            self._news.set()

    def stop(self, timeout: float | None = None) -> None:
        """Stop claiming, let jobs end for *timeout* seconds (default: ``TASKER_SHUTDOWN_TIMEOUT``), then hand back.

        A second call can only shorten the time. Safe from any thread.
        """
        self._call(self._stop, timeout)

    def _on_wish(self, wish: Literal["quiet", "stop"]) -> None:
        """An operator has asked for it. Safe from any thread."""
        if not self.is_quiet:
            self.is_quiet = True
            log.info(
                "worker %s was asked to %s: it takes no more jobs", self.id, "stop" if wish == "stop" else "be quiet"
            )
        if wish == "stop" and not self.is_stopping:
            self.stop()

    def give_up(self, *, declare: bool) -> None:
        """Let other workers have the jobs, as if the process had ended. Safe from any thread.

        *declare*: at once; else after the lease. Nothing is recorded and nothing is handed back any more.
        """
        self._given_up = self.is_stopping = True
        self._let_client_go()
        for _, job in self.running_jobs():
            job.lost = True
        if self._has_begun:
            self.work_loop.jobs.end_processes()
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
        self.is_stopping = True
        if self._has_begun:
            self.work_loop.work.hurry(seconds)
        self._hurry.set()
        self._news.set()

    def _info(self) -> dict[str, object]:
        """What the worker's row says about it; read in the heartbeat's thread."""
        jobs = self.work_loop.jobs
        return {
            "name": self._role.name,
            "version": package_version(),
            "queues": self.config.queues,
            "exclude": sorted(self._role.exclude),
            "schedules": self._role.schedules,
            "concurrency": jobs.sizes["async"],
            "threads": jobs.sizes["sync"],
            "running": jobs.counts(),
            "resident_mb": resident_mb(),
            "loop_lag_ms": self.lag_ms(),
            "unable_schedules": len(self.work_loop.scheduler.unable),
            "hung_threads": len(jobs.hung.claims),
            "parents": jobs.parents,
        }

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Work until :meth:`stop`. Returns whether all is handed back: False while a thread still runs a job.

        Where ``must_hand_back`` is set then, :meth:`wind_up` and :meth:`hand_back` are the last acts of the process.
        """
        try:
            await self._begin()
        except BaseException as error:
            self._aside.shutdown()
            if not isinstance(error, RuntimeError) or threading.main_thread().is_alive():
                raise
            # Python 3.12.0 and 3.12.1 start no thread once the main thread has ended.
            log.info("worker %s does not start: the process ends", self.id)
            return True
        if not self._has_begun:
            self._aside.shutdown()
            return True
        try:
            while not self.is_stopping:
                await self._sleep(await self._guarded_turn())
        except BaseException:
            # The error is reported, so the process does not end at once.
            self._may_abandon_threads = False
            raise
        finally:
            handed_back = await self._end()
        return handed_back

    async def _begin(self) -> None:
        """Connect and register. Where another process keeps the database locked, until it works, or we are stopped."""
        while True:
            try:
                await self._in_thread(self._store.driver.prepare)
                await self.work_loop.open(self._news.set)
                try:
                    self.id = await self._registration.join()
                except BaseException:
                    await self.work_loop.work.close()
                    raise
                break
            except SchemaError:
                raise
            except StoreError as error:
                if self._parts.ends_with(error, has_begun=False):
                    return
                pause = self._longer_back_off()
                log.warning("worker %s cannot start: %s Next try in %.1f s.", self.id, error, pause)
                await self._sleep(pause)
                if self.is_stopping:
                    return
        self.job_of = self.work_loop.jobs.job_of
        self.client.worker_thread = threading.current_thread()
        self.client.on_news = self.wake
        self._has_begun = True
        log.info("worker %s works on %s", self.id, self._role.words(self.config.queues))
        self.work_loop.signals.worker_started(self)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Not asyncio.to_thread: its threads refuse work once the main thread has ended, which is when we stop."""
        return await self._loop.run_in_executor(self._aside, call)

    async def _guarded_turn(self) -> float:
        """One turn. When the database fails nothing is lost: what ended is recorded when it is back."""
        try:
            if is_reloader_parent() or self.work_loop.is_over(self.id) or self._is_out_of_threads():
                self._stop(None)
                return 0.0
            if self._declared_dead:
                # Register again, under a new id: the old one's claims are void.
                await self._registration.stop_beating(holding=True)
                self._registration.leave(holding=False)
                self.id = await self._registration.join()
                self._declared_dead = False
                if self.is_quiet:
                    await self.work_loop.work.start_draining(self.id)
                log.warning("worker %s is back under this new id", self.id)
            delay = await self.work_loop.turn(self.id)
        except (Exception, asyncio.CancelledError) as error:
            if self._parts.ends_with(error, has_begun=True):
                self.is_stopping = True
                return 0.0
            pause = self._longer_back_off()
            match error:
                case DatabaseReplaced() if self._may_abandon_threads:
                    raise
                case DatabaseReplaced():
                    log.error("worker %s: %s Next look in %.1f s.", self.id, error, pause)  # noqa: TRY400
                case StoreError():
                    log.warning("worker %s: %s Next try in %.1f s.", self.id, error, pause)
                case asyncio.CancelledError():
                    log.warning("worker %s: a job has cancelled what it waited for; it goes on", self.id)
                case _:
                    pause = self._back_off = LONGEST_BACK_OFF
                    log.exception("worker %s: this should not happen; please report it. Next try in 5 s.", self.id)
            self.work_loop.on_failed_turn()
            return pause * random.uniform(0.8, 1.2)
        self._back_off = 0.0
        return delay

    def _longer_back_off(self) -> float:
        self._back_off = min(LONGEST_BACK_OFF, max(0.05, self._back_off * 2))
        return self._back_off

    def _is_out_of_threads(self) -> bool:
        """Whether to end since hung sync jobs have all threads, which only the end of the process gives back."""
        hung = self.work_loop.jobs.hung
        if not hung.to_tell(self._loop.time()):
            return False
        ends = self._may_abandon_threads
        log.error("worker %s: %s", self.id, hung.words(ends=ends))
        self.exit_code = TEMPORARY_FAILURE if ends else 0
        return ends

    async def _sleep(self, delay: float) -> None:
        if delay <= 0:
            await asyncio.sleep(0)
            return
        handle = self._loop.call_later(delay, self._news.set)
        await self._news.wait()
        self._news.clear()
        handle.cancel()

    def _on_lost(self) -> None:
        self.work_loop.jobs.lose()
        self._declared_dead = True
        self._news.set()

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _end(self) -> bool:
        """Let jobs end, hand back the others, deregister. Returns whether no thread runs a job any more."""
        self._let_client_go()
        jobs = self.work_loop.jobs
        if self._given_up:
            jobs.lose()
            await self._close(holding=True)
            return True
        self._deadline = min(self._deadline, self._loop.time() + self.config.shutdown_timeout)
        holding = True
        try:
            recorded = await self._drain()
            holding = jobs.busy or not recorded
            self.must_hand_back = self._may_abandon_threads and self.runs_threads
        finally:
            if not self.must_hand_back:
                # Whatever happened: the connections' threads would keep the process.
                await self._close(holding=holding)
        return not holding

    def _let_client_go(self) -> None:
        if self.client.on_news == self.wake:
            # Else another worker of this app has begun since.
            self.client.on_news = None

    async def _drain(self) -> bool:
        """Returns whether all outcomes are recorded."""
        jobs, writer = self.work_loop.jobs, self.work_loop.writer
        if self.is_stopping:
            # Else it was not asked to stop: what it cannot hand back counts as a crash.
            try:
                await self.work_loop.work.start_draining(self.id)
            except StoreError as error:
                log.warning("worker %s: %s", self.id, error)
            jobs.stop()
        jobs.give_back_waiting()
        await writer.flush_all(self.id)
        left = self._deadline - self._loop.time()
        if jobs.busy and left > 0:
            running = sum(jobs.counts().values())
            log.info("worker %s stops: it waits for running jobs (%d), %.0f s at most", self.id, running, left)
        while jobs.busy and (left := self._deadline - self._loop.time()) > 0:
            self._hurry.clear()
            await jobs.wait_for_one(self._hurry, left)
            await writer.flush_all(self.id)
        await jobs.hand_back(may_abandon=self._may_abandon_threads)
        return await writer.flush_all(self.id)

    async def _close(self, *, holding: bool) -> None:
        loop = self.work_loop
        self._close_jobs()
        await self._registration.stop_beating(holding=holding)
        self._registration.leave(holding=holding and not self._given_up)
        await loop.statistics.close(loop.work)
        await loop.work.close()
        loop.signals.worker_stopped(self)
        await self._in_thread(lambda: loop.signals.close(timeout=LAST_WORDS))
        self._aside.shutdown()
        log.info("worker %s has stopped", self.id)

    def _close_jobs(self) -> None:
        # Not before: one of the last jobs, waiting for a result, would still block the loop.
        if self.client.worker_thread is threading.current_thread():
            self.client.worker_thread = None
        self.work_loop.jobs.close()

    # -- the end where threads still run jobs -----------------------------------------------------------------------

    async def wind_up(self) -> None:
        """Do what takes time before :meth:`hand_back`. Some of the jobs may end by then.

        From that on another worker may run them, so the threads must end at once.
        """
        loop = self.work_loop
        self._close_jobs()
        loop.jobs.leave_threads(at_most_once=True)
        await loop.writer.flush_all(self.id)
        await self._registration.stop_beating(holding=True)
        loop.signals.worker_stopped(self)
        deadline = self._loop.time() + LAST_WORDS
        while (left := deadline - self._loop.time()) > 0:
            await self._in_thread(functools.partial(loop.signals.close, timeout=left))
            if not loop.jobs.ended or not await loop.writer.flush_all(self.id):
                break
        await loop.statistics.close(loop.work)
        log.info("worker %s has stopped", self.id)

    async def hand_back(self) -> None:
        """Hand back the jobs that threads still run. The process should end right after this."""
        handed_back = await self.work_loop.writer.hand_back(self.id)
        self._registration.leave(holding=self.work_loop.jobs.busy or not handed_back)
        # The others hear of it last, since they begin at once.
        self._store.driver.wake_others(at_once=True)

    async def disconnect(self) -> None:
        """After :meth:`hand_back`, where the process lives on."""
        await self.work_loop.work.close()
        self._aside.shutdown()
