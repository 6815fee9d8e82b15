"""The heartbeat: how a worker shows that it lives, learns that it was given up, and rescues the jobs of the dead.

A worker's row has a beat counter, written once a second by a thread with a connection of its own, so that a blocked
event loop does not look like a death. No clocks are compared. There are two proofs of a death:

* *exact*: the lock that the kernel frees when a process ends (see ``store/live.py``) can be taken;
* *frozen*: ``lease_beats`` of the observer's own successful beats went by without one of the other's. A database
  outage or a sleeping machine stops the observer's count too, so no worker is declared dead.

The worker that finds a death says so in the dead worker's row, if its beat is still the one that was seen, and hands
the jobs of all dead workers back to their queues.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Literal

from ..core.loggers import Logger, get_logger
from ..core.rows import CRASHED, INTERRUPTED, JobRecord, OutcomeKind, shown
from ..errors import SchemaError, StoreError
from ..store.driver import Link, Other, Presence, Run
from ..store.sql import Store, to_duration_ms
from ..store.statements import workers as worker_statements
from ..store.statements.jobs import batch_of
from .timing import Timing

log: Logger = get_logger("worker")

CLEAN_BEATS = 600
"""Every this many beats the rows of workers that are long dead are deleted."""

GIVE_UP_PATIENCE = 5.0
"""Seconds that the last write of a worker that gives up may take."""

ORPHANS_BEATS = 60
"""Every this many beats jobs whose worker has no row are looked for."""

CLOCK_STEP = 5.0
"""The clock was set back if it lost this many seconds from one beat to the next."""

KEEP_DEAD_MS = 3_600_000
"""The row of a dead worker is shown for an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the heartbeat tells its worker. All are called in the heartbeat's thread."""

    lost: Callable[[], None]
    """This worker was declared dead."""
    running: Callable[[], Sequence[int]]
    """It asks: the numbers of the jobs that run."""
    cancel: Callable[[list[tuple[int, int]]], None]
    """These jobs, (id, claim), were asked to stop."""
    rescued: Callable[[list[JobRecord]], None]
    """These jobs are no longer a dead worker's: they went back to their queues, or ended."""
    wished: Callable[[Literal["quiet", "stop"]], None]
    """Someone has asked it to be quiet, or to stop; told with each beat from then on."""
    sized: Callable[[str, int], None]
    """How many jobs of a kind are to run at once; told with each beat from when someone has set it."""
    reached: Callable[[], None]
    """The database answers again, or is another, or the clock was set back: the worker should look for itself."""


class Heartbeat:
    """One worker's heartbeat. Made on any thread; it then lives in its own until :meth:`stop`."""

    def __init__(
        self,
        store: Store,
        presence: Presence,
        worker_id: str,
        *,
        news: News,
        info: Callable[[], Any],
        timing: Timing,
    ) -> None:
        self._timing = timing
        self._store = store
        self._presence = presence
        self._id = worker_id
        self._news = news
        self._info = info
        self._link: Link = store.driver.connect_light()
        self._stopping = threading.Event()
        self._gives_up = False
        self._beaten_at = _now()
        self._clock_ahead = store.clock() / 1000 - _now()
        self._seen: dict[str, tuple[int, int]] = {}
        """The beat last seen of each other worker, and how often it was the same."""
        self.is_failing: bool = False
        """Whether the last beat did not reach the database. Safe from any thread."""
        self._beats = 0
        self._thread = threading.Thread(target=self._work, name=f"taskworker-beat-{worker_id}", daemon=True)

    @property
    def is_current(self) -> bool:
        """Whether a beat has reached the database within the lease: else others may have this worker's jobs by now.

        False after a freeze, until the next beat has told. Safe from any thread.
        """
        return _now() - self._beaten_at < self._timing.lease_beats * self._timing.beat

    def start(self) -> None:
        """Register the worker, rescue what is to be rescued now, and begin to beat. Raises StoreError."""
        row = {
            "id": self._id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "now": self._store.clock(),
            "server_started_at": self._presence.server_started_at,
            "info": json.dumps(self._info()),
        }
        try:
            self._link.write(worker_statements.ADD_WORKER, row)
        except BaseException:
            self._link.close()
            raise
        try:
            self.observe()
        except StoreError as error:
            self._note_failure(error)
        self._thread.start()

    def stop(self, *, holding: bool) -> None:
        """Stop beating and deregister, unless the worker still holds jobs: then its row stays until it is rescued."""
        self._stopping.set()
        self._link.hurry(0)
        self._presence.hurry(0)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        try:
            if not holding:
                self._link.write(worker_statements.REMOVE_WORKER, {"id": self._id})
        except StoreError as error:
            log.warning("worker %s could not deregister: %s", self._id, error)
        finally:
            self._link.close()

    def give_up(self, *, declare: bool) -> None:
        """Beat no more, so that others get the jobs: at once where *declare* is set, else after the lease.

        Safe from any thread; waits a little for the last write.
        """
        self._gives_up = declare
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(GIVE_UP_PATIENCE)

    def _work(self) -> None:
        while not self._stopping.wait(self._timing.beat):
            was_current, began_at = self.is_current, _now()
            try:
                if not self.beat():
                    self._news.lost()
                    return
            except StoreError as error:
                self._note_failure(error)
            except Exception:
                # Without this thread the worker would be taken for dead and never learn of it.
                log.exception("worker %s: this should not happen; please report it", self._id)
            else:
                self._beaten_at = began_at
                if self.is_failing:
                    log.info("worker %s beats again", self._id)
                if self.is_failing or not was_current:
                    self._news.reached()
                self.is_failing = False
        if self._gives_up:
            try:
                self._link.write(worker_statements.GIVE_UP, {"id": self._id})
            except StoreError as error:
                log.warning("worker %s could not declare itself dead, others do after the lease: %s", self._id, error)

    def _note_failure(self, error: StoreError) -> None:
        """A beat that failed is not counted, ours or theirs. Said once, not once a second."""
        if not self.is_failing:
            log.warning("worker %s cannot beat: %s", self._id, error)
            if isinstance(error, SchemaError):
                self._news.reached()
        self.is_failing = True

    def beat(self) -> bool:
        """One beat; False for a worker that was declared dead. Raises StoreError."""
        # A database file that is gone would otherwise be written to, and read, forever.
        self._store.driver.prepare()
        self._presence.renew()
        now, link = self._store.clock(), self._link
        parameters = {
            "id": self._id,
            "now": now,
            "info": json.dumps(self._info()),
            "server_started_at": self._presence.server_started_at,
        }
        rows = link.write(worker_statements.BEAT, parameters)
        if not rows:
            log.error("worker %s was declared dead by another: it was frozen or cut off for too long", self._id)
            return False
        _, wish, threads, concurrency = rows[0]
        if wish is not None:
            self._news.wished(wish)
        for kind, size in (("sync", threads), ("async", concurrency)):
            if size is not None:
                self._news.sized(kind, size)
        if running := self._news.running():
            sql = worker_statements.cancel_requests(self._store.driver.dialect)
            rows = link.read(sql, {"batch": batch_of([(job_id,) for job_id in running])})
            if rows:
                self._news.cancel([(job_id, claim) for job_id, claim in rows])
        ahead = now / 1000 - _now()
        lost, self._clock_ahead = self._clock_ahead - ahead, ahead
        if lost > CLOCK_STEP:
            log.warning("the clock went back by %.0f s: jobs that were delayed by it wait for as long", lost)
            self._news.reached()
        if self._beats % ORPHANS_BEATS == 0:
            link.write(worker_statements.ADD_MISSING_WORKERS, {"now": now})
        self.observe()
        try:
            self._store.driver.upkeep()
        except StoreError as error:
            # It can wait: the beat itself was written.
            log.info("worker %s: upkeep of the database is put off: %s", self._id, error)
        self._beats += 1
        if self._beats % CLEAN_BEATS == 0:
            link.write(worker_statements.REMOVE_DEAD_WORKERS, {"before": now - KEEP_DEAD_MS})
        return True

    # -- the others -------------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """Look at the other workers and rescue the jobs of those that died. Raises StoreError."""
        others = [Other._make(row) for row in self._link.read(worker_statements.OTHER_WORKERS, {"id": self._id})]
        seen = {}
        for other in others:
            beat, missed = self._seen.get(other.id, (other.beat, -1))
            seen[other.id] = (other.beat, missed + 1 if beat == other.beat else 0)
        self._seen = seen
        for other in others:
            if not self._presence.is_dead(other) and seen[other.id][1] < self._timing.lease_beats:
                continue
            rows = self._link.write(worker_statements.DECLARE_DEAD, {"id": other.id, "beat": other.beat})
            for state, host, pid, info in rows:
                words = "is dead" if state == "dead" else "has left"
                log.warning("worker %s (%s) %s", shown(other.id), _whereabouts(host, pid, info), words)
                self._presence.forget(other.id)
        if self._link.read(worker_statements.HELD_BY_THE_DEAD, {}):
            self._sweep()

    def _sweep(self) -> None:
        """Hand back the jobs of all dead workers, those of earlier deaths included that raced with a claim."""
        now, dialect = self._store.clock(), self._store.driver.dialect
        parameters = {
            "now": now,
            "expires_at": now + to_duration_ms(self._store.keep_succeeded),
            "failed_expires_at": now + to_duration_ms(self._store.keep_failed),
            "crashed": CRASHED._to_text(),
            "interrupted": INTERRUPTED._to_text(),
        }
        statements = (worker_statements.sweep(dialect, "dead"), worker_statements.sweep(dialect, "left"))

        def body(run: Run) -> tuple[list[JobRecord], list[JobRecord]]:
            flows = self._store.flows(run)
            swept = [JobRecord._make(row) for sql in statements for row in run(sql, parameters)]
            flows.changed([(job.id, job.state, job.marks) for job in swept])
            return swept, flows.effects.cancelled

        rescued, cancelled = self._link.transaction(body)
        for job in rescued:
            level = logging.ERROR if job.state == OutcomeKind.FAILED else logging.WARNING
            words = "job %s (%s) is %s: its worker died; crashes: %s"
            log.log(level, words, job.id, shown(job.task), job.state, job.crashes)
        if rescued:
            self._news.rescued(rescued + cancelled)


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one: other machines go on, too."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def _whereabouts(host: object, pid: object, info: str) -> str:
    """Where an operator finds a worker, or what is left of it."""
    try:
        name = json.loads(info)["name"]
    except (ValueError, TypeError, LookupError, RecursionError):  # another version of the code may have written the row
        name = None
    place = f"pid {shown(pid)} on {shown(host)}"
    return f"{shown(name)}, {place}" if name else place


@cache
def package_version() -> str | None:
    """This package's version, unless it runs without being installed."""
    try:
        return metadata.version("Flask-TaskWorker")
    except metadata.PackageNotFoundError:
        return None


class WorkerRegistration:
    """One worker's. For its loop only, unless said."""

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
        *,
        news: News,
        on_wake: Callable[[Collection[tuple[str, str]]], None],
        info: Callable[[], dict[str, object]],
        timing: Timing,
    ) -> None:
        self._store = store
        self._timing = timing
        self._loop = loop
        self._in_thread = in_thread
        self._news = news
        self._on_wake = on_wake
        self._info = info
        self._presence: Presence | None = None
        self._heartbeat: Heartbeat | None = None

    @property
    def is_failing(self) -> bool:
        """Whether the last beat did not reach the database. Safe from any thread."""
        return self._heartbeat is not None and self._heartbeat.is_failing

    @property
    def is_current(self) -> bool:
        """Whether jobs may begin: False after a gap of a lease, until a beat has reached the database again."""
        return self._heartbeat is not None and self._heartbeat.is_current

    def give_up(self, *, declare: bool) -> None:
        """Beat no more: others get the jobs, at once where *declare* is set. Safe from any thread."""
        if self._heartbeat is not None:
            self._heartbeat.give_up(declare=declare)

    async def join(self) -> str:
        """Take a lock, then register: so no registered worker lacks its lock. Returns the new id. Raises StoreError."""
        worker_id = secrets.token_hex(6)
        # A server may take its time.
        presence = await self._in_thread(lambda: self._store.driver.presence(worker_id))
        self._presence = presence
        presence.listen(self._loop, self._on_wake)
        try:
            self._heartbeat = Heartbeat(
                self._store, presence, worker_id, news=self._news, info=self._info, timing=self._timing
            )
            await self._in_thread(self._heartbeat.start)
        except BaseException:
            self.leave(holding=False)
            raise
        return worker_id

    async def stop_beating(self, *, holding: bool) -> None:
        """End the heartbeat, and deregister unless the worker still holds jobs."""
        heartbeat = self._heartbeat
        assert heartbeat is not None
        await self._in_thread(lambda: heartbeat.stop(holding=holding))

    def leave(self, *, holding: bool) -> None:
        """Free the lock; while jobs are held it stays until the process ends.

        A lock that is free would tell the others that they may run the jobs which a thread still runs here.
        """
        if self._presence is not None:
            self._presence.close(keep_lock=holding)
            self._presence = None

    def abandon(self) -> None:
        """After a fork, in the child: this place is the parent's. Its lock stays with the parent."""
        if self._presence is not None:
            self._presence.abandon()
