"""How it stands: the workers, queues, counts and schedules of one store at one moment, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..core.words import counted, spoken
from ..store.sql import Counts, QueueRow, ScheduleRow, Store, WorkerRow
from .browse import Browser

SILENT_MS = 30_000
"""A worker that has not checked in for so long is frozen, cut off or dead."""

LONG_WAIT_MS = 300_000
"""A ready job that waits longer than this waits too long."""

LATE_MS = 60_000
"""What is due for longer than this, with no worker to take it, is late."""

BLOCKED_MS = 5_000
"""An event loop that has not turned for so long is blocked."""

_FIRE = "Start one with this code and without --no-scheduler: flask tasks run"
_LARGEST = 10**15
_DEEPEST = 20
"""What a worker tells of itself has no greater numbers, and no deeper lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of one store. Times are epoch milliseconds."""

    now: int
    workers: tuple[WorkerRow, ...]
    """Every worker that the store knows, the dead of the last hour included."""
    queues: tuple[QueueRow, ...]
    """The queues that have ready jobs."""
    counts: Counts
    schedules: tuple[ScheduleRow, ...]
    next_due: int | None
    """When the next scheduled job is due."""
    paused: tuple[str, ...] = ()
    """The queues that are paused: that their jobs wait is what somebody wants."""

    @classmethod
    def take(cls, store: Store) -> Snapshot:
        """Look now. Reads only, each bounded. Raises StoreError."""
        return cls(
            workers=tuple(store.workers()),
            queues=tuple(store.queues()),
            counts=store.counts(),
            schedules=tuple(store.schedules()),
            next_due=store.next_due(),
            paused=tuple(Browser(store).paused_queues()),
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
        return [worker for worker in self.workers if worker.state == "alive" and not self.is_silent(worker)]

    def is_silent(self, worker: WorkerRow) -> bool:
        """Whether the worker should have checked in and has not."""
        return worker.state in ("alive", "draining") and self.now - worker.beat_at > SILENT_MS

    def _silent(self) -> Iterator[str]:
        for worker in self.workers:
            if self.is_silent(worker):
                yield (
                    f"Worker {name_of(worker)} has not checked in {self._since(worker)}: "
                    "frozen, cut off or dead. Another worker takes its jobs over."
                )

    def _since(self, worker: WorkerRow) -> str:
        odd = worker.odd.get("beat_at")
        return f"for {spoken(self.now - worker.beat_at)}" if odd is None else f"since {odd!r}, which is no moment"

    def _stuck(self) -> Iterator[str]:
        for worker in self.claiming:
            info = info_of(worker)
            lag, hung, threads = (info.get(name) for name in ("loop_lag_ms", "hung_threads", "threads"))
            if isinstance(lag, int | float) and lag > BLOCKED_MS:
                yield (
                    f"The event loop of worker {name_of(worker)} has not turned for {spoken(int(lag))}. "
                    "Its log names the job that blocks it."
                )
            if unable := info.get("unable_schedules"):
                what = "1 schedule" if unable == 1 else f"{unable} schedules"
                yield f"Worker {name_of(worker)} cannot fire {what}. Its log names them and says why."
            if isinstance(hung, int) and hung and hung == threads:
                yield (
                    f"Worker {name_of(worker)} runs no sync jobs: jobs that exceeded their timeout hold all "
                    f"{hung} of its threads. Restart it."
                )

    def _not_taken(self) -> Iterator[str]:
        remedy = "and no living worker takes them. Start one: flask tasks run"
        ready = sum(queue.ready for queue in self.open_queues) if self.paused else self.counts.ready
        if ready == 1:
            yield "1 job is ready and no living worker takes it. Start one: flask tasks run"
        elif ready:
            yield f"{counted(ready)} jobs are ready {remedy}"
        elif self.next_due is not None and self.now - self.next_due > LATE_MS:
            yield f"Jobs have been due for {spoken(self.now - self.next_due)} {remedy}"

    def _late(self) -> Iterator[str]:
        late = {
            schedule.name: self.now - (schedule.next_at or 0) for schedule in self.schedules if self.is_late(schedule)
        }
        if late:
            worst = max(late, key=lambda name: late[name])
            many = (
                f"{len(late)} schedules are late, {worst!r} by" if len(late) > 1 else f"Schedule {worst!r} is late by"
            )
            yield f"{many} {spoken(late[worst])}: no living worker fires {'them' if len(late) > 1 else 'it'}. {_FIRE}"

    def is_late(self, schedule: ScheduleRow) -> bool:
        """Whether a fire time has passed by and nobody has fired it."""
        return not schedule.paused and schedule.next_at is not None and self.now - schedule.next_at > LATE_MS

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
            if not queue.odd and self.now - queue.oldest_at > LONG_WAIT_MS:
                yield f"A job in queue {queue.name!r} has been ready for {spoken(self.now - queue.oldest_at)}."


def name_of(worker: WorkerRow) -> str:
    """The worker's machine and process."""
    return f"{worker.host}:{'?' if 'pid' in worker.odd else worker.pid}"


def takes(info: dict[str, Any], queue: str) -> bool:
    """Whether a worker that told this of itself works on that queue: on all without a list."""
    names, excluded = info.get("queues"), info.get("exclude")
    served = not isinstance(names, list) or queue in names
    return served and not (isinstance(excluded, list) and queue in excluded)


def info_of(worker: WorkerRow) -> dict[str, Any]:
    """What the worker told about itself; nothing where that cannot be read, as a whole or in one of its parts."""
    try:
        info = _sound(json.loads(worker.info))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(info, dict):
        return {}
    return {name: value for name, value in info.items() if value is None or _TOLD.get(name, _anything)(value)}


def _sound(value: Any, depth: int = _DEEPEST) -> Any:
    """*value* without what JSON, or UTF-8, cannot say again."""
    if not depth:
        return None
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case float():
            return value if isfinite(value) else None
        case list():
            return [_sound(inner, depth - 1) for inner in value]
        case dict():
            return {_sound(name): _sound(inner, depth - 1) for name, inner in value.items()}
    return value


def _anything(_: object) -> bool:
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_TOLD: dict[str, Callable[[object], bool]] = {
    "name": _is_text,
    "version": _is_text,
    "queues": _are_names,
    "exclude": _are_names,
    "running": _are_counts,
    "concurrency": _is_count,
    "threads": _is_count,
    "hung_threads": _is_count,
    "unable_schedules": _is_count,
    "resident_mb": _is_number,
    "loop_lag_ms": _is_number,
}
"""What a worker tells, and what each of that must be."""
