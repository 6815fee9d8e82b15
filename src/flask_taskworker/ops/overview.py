"""How it stands, and what is wrong: one look at everything, in one statement."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..core.words import MOST, counted, spoken
from ..store.fitting import columns, fitted, moment_in, text_in
from ..store.sql import QueueRow, ScheduleRow, Store, WorkerRow
from ..store.statements import browse as browse_statements
from ..store.statements import jobs as job_statements
from ..store.statements import workers as worker_statements
from ..store.statements.jobs import Dialect
from .health import BLOCKED_MS, LATE_MS, LONG_WAIT_MS, info_of, is_late, is_silent, name_of, takes

_FIRE = "Start one with this code and without --no-scheduler: flask tasks run"
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

    @classmethod
    def take(cls, store: Store) -> Overview:
        """Look now. Bounded. Raises StoreError."""
        store.driver.prepare()
        rows = store.driver.read(_statement(store.driver.dialect), {"most": MOST})
        found: dict[str, list[Any]] = {name: _rows(text) for name, text in rows}
        return cls(
            workers=tuple(fitted(WorkerRow, row) for row in found["workers"]),
            queues=tuple(fitted(QueueRow, row) for row in found["queues"]),
            ready=min(MOST, found["ready"][0][0] + found["suspect"][0][0]),
            scheduled=found["scheduled"][0][0],
            has_jobs=bool(found["any"]),
            schedules=tuple(fitted(ScheduleRow, row) for row in found["schedules"]),
            next_due=moment_in(found["next_due"][0][0]),
            paused=frozenset(text_in(row[0]) for row in found["paused"]),
            now=store.clock(),
        )

    def problems(self) -> list[str]:
        """What is wrong, a sentence each; empty when all is well."""
        taken = self._not_taken_by_all() if self.claiming else self._not_taken()
        return [*self._silent(), *self._stuck(), *taken, *self._late(), *self._slow()]

    @property
    def open_queues(self) -> list[QueueRow]:
        """The queues that have ready jobs and are not paused."""
        return [queue for queue in self.queues if queue.name not in self.paused]

    @property
    def claiming(self) -> list[WorkerRow]:
        """The living workers that take jobs; one that drains takes none."""
        return [worker for worker in self.workers if worker.state == "alive" and not is_silent(worker, self.now)]

    def _silent(self) -> Iterator[str]:
        for worker in self.workers:
            if is_silent(worker, self.now):
                yield (
                    f"Worker {name_of(worker)} has not checked in for {spoken(self.now - worker.beat_at)}: "
                    "frozen, cut off or dead. Another worker takes its jobs over."
                )

    def _stuck(self) -> Iterator[str]:
        for worker in self.claiming:
            info = info_of(worker)
            lag, hung, threads = (info.get(name) for name in ("loop_lag_ms", "hung_threads", "threads"))
            if lag is not None and lag > BLOCKED_MS:
                yield (
                    f"The event loop of worker {name_of(worker)} has not turned for {spoken(int(lag))}. "
                    "Its log names the job that blocks it."
                )
            if unable := info.get("unable_schedules"):
                what = "1 schedule" if unable == 1 else f"{unable} schedules"
                yield f"Worker {name_of(worker)} cannot fire {what}. Its log names them and says why."
            if hung and hung == threads:
                yield (
                    f"Worker {name_of(worker)} runs no sync jobs: jobs that exceeded their timeout hold all "
                    f"{hung} of its threads. Restart it."
                )

    def _not_taken(self) -> Iterator[str]:
        remedy = "and no living worker takes them. Start one: flask tasks run"
        ready = sum(queue.ready for queue in self.open_queues) if self.paused else self.ready
        if ready == 1:
            yield "1 job is ready and no living worker takes it. Start one: flask tasks run"
        elif ready:
            yield f"{counted(ready)} jobs are ready {remedy}"
        elif self.next_due is not None and self.now - self.next_due > LATE_MS:
            yield f"Jobs have been due for {spoken(self.now - self.next_due)} {remedy}"

    def _late(self) -> Iterator[str]:
        late = {
            schedule.name: self.now - (schedule.next_at or 0)
            for schedule in self.schedules
            if is_late(schedule, self.now)
        }
        if late:
            worst = max(late, key=lambda name: late[name])
            many = (
                f"{len(late)} schedules are late, {worst!r} by" if len(late) > 1 else f"Schedule {worst!r} is late by"
            )
            yield f"{many} {spoken(late[worst])}: no living worker fires {'them' if len(late) > 1 else 'it'}. {_FIRE}"

    def _not_taken_by_all(self) -> Iterator[str]:
        infos = [info_of(worker) for worker in self.claiming]
        for queue in self.open_queues:
            if not any(takes(info, queue.name) for info in infos):
                yield (
                    f"Queue {queue.name!r} has jobs that are ready ({counted(queue.ready)}) and no living worker works "
                    f"on it. Start one: flask tasks run {queue.name}"
                )

    def _slow(self) -> Iterator[str]:
        for queue in self.open_queues:
            if self.now - queue.oldest_at > LONG_WAIT_MS:
                yield f"A job in queue {queue.name!r} has been ready for {spoken(self.now - queue.oldest_at)}."


_COUNT = "SELECT count(*) FROM (SELECT 1 FROM taskworker_job WHERE {} LIMIT :most) AS counted"


def _statement(dialect: Dialect) -> str:
    parts = {
        "workers": (worker_statements.workers(), columns(WorkerRow)),
        "queues": (browse_statements.queues(), columns(QueueRow)),
        "ready": (_COUNT.format("state = 'ready' AND solo = 0"), ("number",)),
        "suspect": (_COUNT.format("state = 'ready' AND solo = 1"), ("number",)),
        "scheduled": (_COUNT.format("state = 'scheduled'"), ("number",)),
        "any": ("SELECT 1 FROM taskworker_job LIMIT 1", ("one",)),
        "schedules": (job_statements.schedules(), columns(ScheduleRow)),
        "next_due": (job_statements.next_due(), ("due",)),
        "paused": ("SELECT name FROM taskworker_queue WHERE paused = 1", ("name",)),
    }
    return " UNION ALL ".join(_part(dialect, name, sql, fields) for name, (sql, fields) in parts.items())


def _part(dialect: Dialect, name: str, sql: str, fields: Sequence[str]) -> str:
    """One row: the name, and the rows of *sql* as JSON, in their order."""
    picked = [f"c{i}" for i, _ in enumerate(fields)]
    rows = f"json_group_array(json_array({', '.join(map(_in_json, picked))}))"
    if dialect.name == "postgresql":
        rows = f"CAST(json_agg(json_build_array({', '.join(picked)})) AS text)"
    return f"SELECT '{name}', (WITH q({', '.join(picked)}) AS ({sql}) SELECT {rows} FROM q)"


def _in_json(column: str) -> str:
    """JSON takes neither blobs nor infinity. No column here is for either."""
    return f"CASE WHEN typeof({column}) IN ('blob', 'real') THEN CAST({column} AS text) ELSE {column} END"


def _rows(text: str | None) -> list[Any]:
    text = text or "[]"
    if "\\x" in text or "\\u0000" in text:
        # Bytes that are no UTF-8 have come as \\xff, and such an escape JSON does not know.
        text = _ESCAPE.sub(_doubled, text)
    found: list[Any] = json.loads(text)
    return found


_ESCAPE = re.compile(r"\\(x|u0000|.)")


def _doubled(escape: re.Match[str]) -> str:
    return {"x": r"\\x", "u0000": r"\\x00"}.get(escape[1], escape[0])


class FailureLine(NamedTuple):
    """Failed jobs with one cause, by their newest. Times are epoch milliseconds."""

    group: str | None
    number: int
    """How many of them are recent."""
    first_at: int
    """When the first of them failed, among the newest :data:`FAILURES` failed jobs."""
    last_at: int
    id: int
    task: str
    failure_kind: str | None
    error: str | None
    """The beginning of it."""


def latest_failures(store: Store, since: int, limit: int) -> list[FailureLine]:
    """The causes of the failures since *since* (epoch ms), latest first, in one statement. Raises StoreError."""
    store.driver.prepare()
    rows = store.driver.read(_latest_failures(), {"since": since, "window": FAILURES, "limit": limit})
    return [fitted(FailureLine, row) for row in rows]


def _latest_failures() -> str:
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
    return (
        "SELECT g.failure_group, g.recent, g.first_at, g.last_at, j.id, j.task, j.failure_kind, "
        f"substr(j.error, 1, {browse_statements.SHOWN}) FROM ({grouped}) AS g "
        "JOIN taskworker_job AS j ON j.id = g.newest ORDER BY g.last_at DESC, j.id DESC"
    )


class Ended(NamedTuple):
    """How many jobs ended in a slice of time, from *start* (epoch ms) on."""

    start: int
    succeeded: int
    failed: int
    cancelled: int


def ended(store: Store, since: int, *, step: int, span: Literal[60, 3600]) -> list[Ended]:
    """What ended since *since* in slices of *step* ms, from the roll-ups of *span* seconds. Raises StoreError."""
    store.driver.prepare()
    sums = ", ".join(f"CAST(sum({name}) AS bigint)" for name in Ended._fields[1:])
    sql = (
        f"SELECT start / :step * :step AS slice, {sums} FROM taskworker_rollup "
        "WHERE span = :span AND start >= :since GROUP BY 1 ORDER BY 1"
    )
    return [Ended._make(row) for row in store.driver.read(sql, {"since": since, "step": step, "span": span})]
