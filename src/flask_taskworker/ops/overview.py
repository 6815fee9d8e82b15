"""How it stands, and what is wrong: one look at everything, in one statement."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..client.health import (
    BLOCKED_MS,
    LATE_MS,
    LATE_PRUNING_MS,
    LONG_WAIT_MS,
    info_of,
    is_late,
    is_silent,
    name_of,
    takes,
)
from ..core.words import MOST, counted, spoken
from ..store.schema import FINISHED
from ..store.sql import ScheduleRow, Store, WorkerRow
from ..store.statements import browse as browse_statements
from ..store.statements import jobs as job_statements
from ..store.statements import workers as worker_statements
from ..store.statements.jobs import Dialect
from .rows import QueueRow
from .views import ErrorView, error_view

_START = "Start one: flask tasks run"
FAILURES = 3_000
"""Failed jobs that are looked at: the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The state of one store at one moment. Times are epoch milliseconds."""

    now: int
    workers: tuple[WorkerRow, ...]
    """Every worker that the store knows, the dead of the last hour included."""
    queues: tuple[QueueRow, ...]
    """Those with ready jobs."""
    ready: int
    """Counted up to MOST, as are the scheduled ones."""
    scheduled: int
    has_jobs: bool
    schedules: tuple[ScheduleRow, ...]
    next_due: int | None
    """When the next scheduled job is due."""
    paused: frozenset[str]
    """Names of paused queues: their jobs may wait."""
    held: Mapping[str, int]
    """How many jobs of each queue wait for their limits; each phase of them is counted up to MOST."""
    is_kept_too_long: bool
    """Whether a finished job should have been deleted an hour ago."""
    limited: frozenset[str]
    """Names of queues with a limit: their jobs may wait for that."""

    @classmethod
    def take(cls, store: Store) -> Overview:
        """Look now. Bounded. Raises StoreError."""
        store.driver.prepare()
        parameters = {"most": MOST, "before": store.clock() - LATE_PRUNING_MS}
        rows = store.driver.read(_statement(store.driver.dialect), parameters)
        found: dict[str, list[Any]] = {name: json.loads(text or "[]") for name, text in rows}
        return cls(
            workers=tuple(WorkerRow(*row) for row in found["workers"]),
            queues=tuple(QueueRow(*row) for row in found["queues"]),
            ready=min(MOST, found["ready"][0][0] + found["suspect"][0][0]),
            scheduled=found["scheduled"][0][0],
            has_jobs=bool(found["any"]),
            schedules=tuple(ScheduleRow(*row) for row in found["schedules"]),
            next_due=found["next_due"][0][0],
            paused=frozenset(row[0] for row in found["paused"]),
            held=dict(map(tuple, found["held"])),
            is_kept_too_long=bool(found["kept"]),
            limited=frozenset(row[0] for row in found["limited"]),
            now=store.clock(),
        )

    @property
    def claiming(self) -> list[WorkerRow]:
        """The living workers that take jobs; one that drains takes none."""
        return [worker for worker in self.workers if worker.state == "alive" and not is_silent(worker, self.now)]

    def problems(self) -> list[str]:
        """What is wrong, a sentence each; empty when everything is healthy."""
        found = []
        for worker in self.workers:
            name, info = name_of(worker), info_of(worker)
            lag, hung, unable = info.get("loop_lag_ms"), info.get("hung_threads"), info.get("unable_schedules")
            if is_silent(worker, self.now):
                found.append(
                    f"Worker {name} has not checked in for {spoken(self.now - worker.beat_at)}: frozen, cut off or "
                    "dead. Another worker takes over its jobs."
                )
            elif worker.state == "alive":
                if lag is not None and lag > BLOCKED_MS:
                    found.append(
                        f"The event loop of worker {name} has not turned for {spoken(int(lag))}. Its log names the job "
                        "that blocks it."
                    )
                if hung and hung == info.get("threads"):
                    found.append(
                        f"Worker {name} runs no sync jobs: jobs that exceeded their timeout hold all {hung} of its "
                        "threads. Restart it."
                    )
                if info.get("threads") and (info.get("parents") or {}).get("sync", 0) >= info["threads"]:
                    found.append(
                        f"Worker {name} runs no further sync job: those in its {info['threads']} threads wait for the "
                        "results of others. Use async tasks or after=… for that, or raise TASKER_THREADS."
                    )
                if unable:
                    what = "1 schedule" if unable == 1 else f"{unable} schedules"
                    found.append(f"Worker {name} cannot fire {what}. Its log names them and says why.")
        if self.is_kept_too_long and self.claiming:
            found.append(
                "Finished jobs should have been deleted an hour ago, and were not. The log of a worker says why."
            )
        return [*found, *self.unserved(), *self._slow(), *self._late()]

    def unserved(self) -> Iterator[str]:
        """Which jobs are ready or due, in a queue that is not paused, with no worker that takes them."""
        queues = [queue for queue in self.queues if queue.name not in self.paused]
        infos = [info_of(worker) for worker in self.claiming]
        ready = sum(queue.ready for queue in queues) if self.paused else self.ready
        held = {name: number for name, number in self.held.items() if name not in self.paused}
        if infos:
            for queue in (q for q in queues if not any(takes(info, q.name) for info in infos)):
                yield (
                    f"Queue {queue.name!r} has ready jobs ({counted(queue.ready)}) and no living worker takes them. "
                    f"Start one: flask tasks run {queue.name}"
                )
            for name in (name for name in held if not any(takes(info, name) for info in infos)):
                yield (
                    f"Queue {name!r} has held jobs ({counted(held[name])}) and no living worker takes them. "
                    f"Start one: flask tasks run {name}"
                )
        elif held:
            number = min(MOST, ready + sum(held.values()))
            what = "1 job waits and no living worker takes it." if number == 1 else ""
            yield f"{what or f'{counted(number)} jobs wait and no living worker takes them.'} {_START}"
        elif ready == 1:
            yield f"1 job is ready and no living worker takes it. {_START}"
        elif ready:
            yield f"{counted(ready)} jobs are ready and no living worker takes them. {_START}"
        elif self.next_due is not None and self.now - self.next_due > LATE_MS:
            yield f"Jobs have been due for {spoken(self.now - self.next_due)} and no living worker takes them. {_START}"

    def _slow(self) -> Iterator[str]:
        for queue in self.queues:
            is_free = queue.name not in self.paused and queue.name not in self.limited
            if is_free and self.now - queue.oldest_at > LONG_WAIT_MS:
                yield f"A job in queue {queue.name!r} has been ready for {spoken(self.now - queue.oldest_at)}."

    def _late(self) -> Iterator[str]:
        late = {s.name: self.now - (s.next_at or 0) for s in self.schedules if is_late(s, self.now)}
        if late:
            worst = max(late, key=lambda name: late[name])
            which = (
                f"Schedule {worst!r} is late by" if len(late) == 1 else f"{len(late)} schedules are late, {worst!r} by"
            )
            what = "it" if len(late) == 1 else "them"
            yield (
                f"{which} {spoken(late[worst])}: no living worker fires {what}. Start one with this code and without "
                "--no-scheduler: flask tasks run"
            )


_COUNT = "SELECT count(*) FROM (SELECT 1 FROM taskworker_job WHERE {} LIMIT :most) AS counted"
_WORKER, _QUEUE, _SCHEDULE = (row._fields for row in (WorkerRow, QueueRow, ScheduleRow))


def _statement(dialect: Dialect) -> str:
    """A row for each part: its name, and its rows as JSON, in their order."""
    parts = {
        "workers": (worker_statements.WORKERS, len(_WORKER)),
        "queues": (browse_statements.QUEUES, len(_QUEUE)),
        "ready": (_COUNT.format("state = 'ready' AND solo = 0"), 1),
        "suspect": (_COUNT.format("state = 'ready' AND solo = 1"), 1),
        "scheduled": (_COUNT.format("state = 'scheduled'"), 1),
        "any": ("SELECT 1 FROM taskworker_job LIMIT 1", 1),
        "schedules": (job_statements.SCHEDULES, len(_SCHEDULE)),
        "next_due": (job_statements.NEXT_DUE, 1),
        "kept": (
            f"SELECT 1 FROM taskworker_job WHERE {FINISHED} AND expires_at < :before LIMIT 1",
            1,
        ),
        "paused": ("SELECT name FROM taskworker_queue WHERE paused = 1", 1),
        "held": (browse_statements.HELD_BY_QUEUE, 2),
        "limited": ("SELECT substr(name, 7) FROM taskworker_limit WHERE substr(name, 1, 6) = 'queue:'", 1),
    }
    return dialect.together(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestFailure:
    """Failed jobs with one cause, by their newest. Times are epoch milliseconds."""

    group: str | None
    task: str
    error: ErrorView | None
    """Of the newest, cut."""
    count: int
    """How many of them are recent."""
    last_at: int
    is_new: bool
    """Whether none of them is older, among the newest :data:`FAILURES` failed jobs."""
    newest: int


def latest_failures(store: Store, since: int, limit: int) -> list[LatestFailure]:
    """The causes of the failures since *since* (epoch ms), latest first, in one statement. Raises StoreError."""
    store.driver.prepare()
    newest = (
        "SELECT id, failure_group, finished_at FROM taskworker_job WHERE state = 'failed' "
        "AND state IN ('failed', 'cancelled') AND discarded = 0 ORDER BY id DESC LIMIT :window"
    )
    recent = "SUM(CASE WHEN finished_at >= :since THEN 1 ELSE 0 END)"
    grouped = (
        f"SELECT failure_group, CAST({recent} AS bigint) AS recent, min(finished_at) AS first_at, "
        f"max(finished_at) AS last_at, max(id) AS newest FROM ({newest}) AS f GROUP BY failure_group "
        "HAVING max(finished_at) >= :since ORDER BY max(finished_at) DESC LIMIT :limit"
    )
    sql = (
        "SELECT g.failure_group, g.recent, g.first_at, g.last_at, j.id, j.task, j.failure_kind, "
        f"substr(j.error, 1, {browse_statements.SHOWN}) FROM ({grouped}) AS g "
        "JOIN taskworker_job AS j ON j.id = g.newest ORDER BY g.last_at DESC, j.id DESC"
    )
    rows = store.driver.read(sql, {"since": since, "window": FAILURES, "limit": limit})
    return [
        LatestFailure(
            group=group,
            task=task,
            error=error_view(error, kind),
            count=count,
            last_at=last_at,
            is_new=first_at >= since,
            newest=newest,
        )
        for group, count, first_at, last_at, newest, task, kind, error in rows
    ]


@dataclass(frozen=True, slots=True)
class EndedSlice:
    """How many jobs ended in a slice of time, from *start* (epoch ms) on."""

    start: int
    succeeded: int
    failed: int
    cancelled: int


def ended(store: Store, since: int, *, step: int, span: Literal[60, 3600]) -> list[EndedSlice]:
    """What ended since *since* in slices of *step* ms, from the roll-ups of *span* seconds. Raises StoreError."""
    store.driver.prepare()
    sums = ", ".join(f"CAST(sum({name}) AS bigint)" for name in ("succeeded", "failed", "cancelled"))
    sql = (
        f"SELECT start / :step * :step AS slice, {sums} FROM taskworker_rollup "
        "WHERE span = :span AND start >= :since GROUP BY 1 ORDER BY 1"
    )
    return [EndedSlice(*row) for row in store.driver.read(sql, {"since": since, "step": step, "span": span})]
