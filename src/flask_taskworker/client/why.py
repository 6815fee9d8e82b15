"""Why a job waits, and what would end it: a pure function of what one statement has read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core.clock import from_ms
from ..core.jobs import Reason
from ..core.limits import LaneFacts, Numbers, limit_of, room
from ..core.rows import FAR_MS, WAITS, JobRecord, JobState
from ..core.tasks import TaskRegistry
from ..core.words import MOST, counted, spoken
from ..store.sql import Store, WorkerRow
from .health import BLOCKED_MS, info_of, is_silent, name_of, takes

_SHOWN = 3
"""Jobs that are named."""
NO_SPACE = 10_000_000
"""Bytes that are left on a disk that counts as full: a claim may need a few pages of the write-ahead log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a limited job stands."""

    lane: str
    phase: int
    """As in ``taskworker_permit``."""
    ahead: int
    """Jobs in line before it, counted up to MOST."""
    let_in: tuple[int, ...]
    """The jobs that have the room of its lane."""
    limit: Numbers | None
    """None where no limit of that name is known any more."""
    tat: int = 0
    closed_until: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What bears on the waiting of one job. Times are epoch milliseconds."""

    now: int
    job: JobRecord
    solo: bool
    """Whether it must run alone."""
    ahead: int
    """Ready jobs of its queue and kind that go first, counted up to MOST; of a job that runs alone, of those."""
    paused: tuple[int | None, str | None, int | None] | None
    """Since when its queue is paused, who has paused it, and until when."""
    ready: frozenset[str]
    """The queues with ready jobs."""
    workers: tuple[WorkerRow, ...]
    alone: frozenset[str]
    """The ids of workers that run a job alone."""
    place: Place | None = None
    """Where it stands in line, if it belongs to a limit."""
    parents: tuple[tuple[int, str, str | None], ...] = ()
    """What it waits for: a job, or a batch below zero, how it is to end, and the state of the job."""
    pause: tuple[str, str, int] | None = None
    """Its last sleep, or the notice that it waits for: which of the two, the name, and when it is over."""
    queue_limit: tuple[Numbers, LaneFacts] | None = None
    """The limit of its queue, and how many of the queue's jobs run."""
    is_known: bool
    """Whether this code declares the job's task."""
    free_bytes: int | None
    """What is left on the disk of the database; None where that is not known."""


def look(store: Store, registry: TaskRegistry, job_id: int) -> Facts:
    """What there is to know, read by one statement. Raises JobNotFound."""
    found = store.why(job_id)
    *record, solo = found["job"][0]
    job = JobRecord._make(record)
    is_limited = bool(found["place"] or found["queue_limit"])
    skew = store.lane_now() - store.clock() if is_limited else 0

    def here(tat: int, closed_until: int) -> tuple[int, int]:
        """What is stored of a lane, by this machine's clock. A zero says that there is no such moment."""
        return tat and tat - skew * 1000, closed_until and closed_until - skew

    place = None
    for lane, phase, ahead in found["place"]:
        limits = {name: Numbers(*numbers) for name, *numbers, _ in found["limits"]}
        tat, closed_until = here(*found["lane"][0]) if found["lane"] else (0, 0)
        place = Place(
            lane=lane,
            phase=phase,
            ahead=ahead,
            let_in=tuple(job_id for (job_id,) in found["let_in"]),
            limit=limits.get(limit_of(lane)),
            tat=tat,
            closed_until=closed_until,
        )
    queue_limit = None
    for *figures, running, tat, closed_until in found["queue_limit"]:
        queue_limit = Numbers(*figures), LaneFacts(running, 0, *here(tat, closed_until))
    return Facts(
        now=store.clock(),
        job=job,
        solo=bool(solo),
        ahead=found["ahead"][0][0],
        paused=next(map(tuple, found["paused"]), None),
        ready=frozenset(name for (name,) in found["ready"]),
        workers=tuple(WorkerRow(*row) for row in found["workers"]),
        alone=frozenset(worker for (worker,) in found["alone"]),
        place=place,
        parents=tuple((parent, rule, state) for parent, rule, state in found["parents"]),
        pause=next((tuple(row) for row in found["pause"]), None),
        queue_limit=queue_limit,
        is_known=registry.get(job.task) is not None,
        free_bytes=store.driver.free_bytes(),
    )


def reasons(facts: Facts) -> list[Reason]:
    """What holds a waiting job back, each with what would end it; nothing for one that runs or has ended."""
    claiming = [w for w in facts.workers if w.state == "alive" and not is_silent(w, facts.now)]
    serving = [worker for worker in claiming if takes(info_of(worker), facts.job.queue)]
    match facts.job.state:
        case JobState.SCHEDULED if facts.job.marks & WAITS:
            return [_after(facts)]
        case JobState.SCHEDULED if facts.pause is not None and facts.pause[2] == facts.job.run_at:
            return [_pause(facts.job, *facts.pause)]
        case JobState.SCHEDULED:
            return [_due(facts), *_queue(facts, claiming, serving)]
        case JobState.HELD:
            return [*_queue(facts, claiming, serving), *([_line(facts.now, facts.place)] if facts.place else [])]
        case JobState.READY:
            busy = _busy(facts, serving) if serving else None
            found = [*_queue(facts, claiming, serving), *([busy] if busy else [])]
            return found or [Reason(kind="next", text="Nothing stands in its way.", ends="A worker takes it next.")]
    return []


def _due(facts: Facts) -> Reason:
    job = facts.job
    if job.failures:
        kind, text = "retry", f"Try {job.failures} of {job.max_attempts} failed, and it waits for the next one."
    elif job.claim:
        kind, text = "put off", "It was put off: it snoozed, or a worker did not know its task or its arguments."
    else:
        kind, text = "due", "It is not due yet." if job.run_at > facts.now else "It is due."
    ends = f"It is due in {spoken(job.run_at - facts.now)}: at {_stamp(job.run_at)}."
    if job.run_at <= facts.now:
        ends = f"A worker makes it ready; it was due at {_stamp(job.run_at)}."
    return Reason(kind=kind, text=text, ends=ends, at=from_ms(job.run_at))


def _pause(job: JobRecord, kind: str, name: str, due_at: int) -> Reason:
    """What a job waits for that has left its function."""
    if kind == "sleep":
        return Reason(kind="sleeps", text=f"It sleeps: {name!r}.", ends=f"At {_stamp(due_at)}.", at=from_ms(due_at))
    ends, is_bounded = f"Tell it: flask tasks tell {job.id} {shlex.quote(name)}", due_at < FAR_MS
    if is_bounded:
        ends += f". Its timeout is over at {_stamp(due_at)}"
    at = from_ms(due_at) if is_bounded else None
    return Reason(kind="notice", text=f"It waits for the notice {name!r}.", ends=ends, at=at)


def _queue(facts: Facts, claiming: Sequence[WorkerRow], serving: Sequence[WorkerRow]) -> Iterator[Reason]:
    """What holds back every job of its queue, or of its task."""
    queue = facts.job.queue
    if facts.paused is not None:
        since, who, until = facts.paused
        when = "" if since is None else f" since {_stamp(since)}"
        text = f"Queue {queue!r} is paused{when} by {who or 'an unknown user'}."
        ends = f"Resume it: flask tasks resume {shlex.quote(queue)}"
        if until is not None:
            ends += f". Its pause is over at {_stamp(until)}"
        yield Reason(kind="paused", text=text, ends=ends, at=None if until is None else from_ms(until))
    if not facts.is_known:
        text = f"This code does not declare the task {facts.job.task!r}. A worker without it puts the job back."
        yield Reason(kind="unknown task", text=text, ends="Deploy code that declares it, or discard the job.")
    if facts.free_bytes is not None and facts.free_bytes < NO_SPACE:
        text = f"The disk of the database is full: {facts.free_bytes / 1e6:.1f} MB are left."
        yield Reason(kind="disk full", text=text, ends="Free some space.")
    if not claiming:
        yield Reason(kind="no worker", text="No living worker takes jobs.", ends="Start one: flask tasks run")
    elif not serving:
        text = f"No living worker takes jobs of queue {queue!r}."
        yield Reason(kind="no worker", text=text, ends=f"Start one: flask tasks run {shlex.quote(queue)}")


def _busy(facts: Facts, serving: Sequence[WorkerRow]) -> Reason | None:
    """What keeps the workers that serve its queue from taking it."""
    job, infos = facts.job, [info_of(worker) for worker in serving]
    first = ""
    if facts.ahead:
        first = " 1 job goes first." if facts.ahead == 1 else f" {counted(facts.ahead)} jobs go first."
    if facts.solo:
        text = f"{job.crashes} processes died while it ran, so it runs alone.{first}"
        ends = "A worker takes it when it has no other job. Busy workers make room from time to time."
        return Reason(kind="alone", text=text, ends=ends)
    if all((info.get("loop_lag_ms") or 0) > BLOCKED_MS for info in infos):
        text = f"The event loop of worker {name_of(serving[0])}, which takes its queue, is blocked."
        return Reason(kind="blocked", text=text, ends="The job that blocks it returns: the worker's log names it.")
    if facts.queue_limit is not None and (limited := _queue_room(facts.now, job.queue, *facts.queue_limit)):
        return limited
    if facts.alone.issuperset(worker.id for worker in serving):
        text = f"A job runs alone in worker {name_of(serving[0])}, which takes its queue."
        return Reason(kind="alone", text=text, ends="That job ends.")
    # How many sync jobs of each worker wait for others.
    parents = [(info.get("parents") or {}).get("sync", 0) for info in infos]
    if job.kind == "sync" and all(0 < (i.get("threads") or 0) <= n for i, n in zip(infos, parents, strict=True)):
        text = f"The jobs in all sync slots of the workers that take its queue wait for the results of others.{first}"
        ends = "Start another worker: flask tasks run. Let jobs that wait for others be async, or use after=…."
        return Reason(kind="waiting parents", text=text, ends=ends)
    slots = sum(info.get("concurrency" if job.kind == "async" else "threads") or 0 for info in infos)
    if sum((info.get("running") or {}).get(job.kind, 0) for info in infos) >= slots:
        text = f"All {slots} {job.kind} slots of the workers that take its queue are in use.{first}"
        return Reason(kind="slots", text=text, ends="A running job ends, or you start another worker: flask tasks run")
    # For each worker a queue with ready jobs that it prefers to the job's own.
    lists = [info.get("queues") or (job.queue,) for info in infos]
    earlier = [next((q for q in queues[: queues.index(job.queue)] if q in facts.ready), None) for queues in lists]
    if all(earlier):
        text = f"Its workers take the jobs of queue {earlier[0]!r} first.{first}"
        return Reason(kind="queue order", text=text, ends="That queue is empty, or a worker with a free slot starts.")
    return Reason(kind="in line", text=first[1:], ends="Those have begun.") if facts.ahead else None


def _after(facts: Facts) -> Reason:
    """What a job waits for that waits for others."""
    wanted = {"succeeded": "succeed", "failed": "fail"}
    parts = [
        f"{'job' if parent > 0 else 'batch'} {abs(parent)} to {wanted.get(rule, 'end')} ({state or 'not ended'})"
        for parent, rule, state in facts.parents[:_SHOWN]
    ]
    more = ", and for others" if len(facts.parents) > _SHOWN else ""
    text = f"It waits for {', '.join(parts) or 'others'}{more}."
    return Reason(kind="after", text=text, ends="These end as it asks; if one ends otherwise, this job is cancelled.")


def _queue_room(now: int, queue: str, numbers: Numbers, lane: LaneFacts) -> Reason | None:
    """What keeps the limit of a queue from letting another job of it run."""
    has = room(numbers, lane, now, 1)
    if has.number:
        return None
    if lane.closed_until > now:
        return _opens("closed", f"A job has closed queue {queue!r}.", has.opens_at or now, now)
    if numbers.running is not None and lane.open >= numbers.running:
        text = f"Queue {queue!r} has a limit: it runs {lane.open} of at most {numbers.running} at once."
        return Reason(kind="queue limit", text=text, ends="A running job of the queue ends.")
    return _opens("rate", f"Queue {queue!r} has a rate of {numbers.rate}.", has.opens_at or now, now)


def _line(now: int, place: Place) -> Reason:
    """What keeps a limited job from being admitted."""
    name, _, key = place.lane.partition(":")
    lane = f"the limit {name!r}{f', key {key!r}' if key else ''}"
    numbers = place.limit
    if place.phase != 1:
        return Reason(kind="in line", text=f"It belongs to {lane}.", ends="A worker looks whether there is room.")
    text = f"It is {_ordinal(place.ahead + 1)} in line of {lane}"
    opening = room(numbers, LaneFacts(len(place.let_in), 0, place.tat, place.closed_until), now, 1).opens_at or 0
    if place.closed_until > now:
        return _opens("closed", f"{text}, which a job has closed.", opening, now)
    if numbers and numbers.running is not None and len(place.let_in) >= numbers.running:
        number = len(place.let_in)
        jobs = ", ".join(map(str, place.let_in[:_SHOWN])) + (", …" if number > _SHOWN else "")
        text = f"{text} ({number} running: {'job' if number == 1 else 'jobs'} {jobs})."
        return Reason(kind="in line", text=text, ends="That job ends." if number == 1 else "One of these jobs ends.")
    if numbers and numbers.amount is not None and opening > now:
        return _opens("rate", f"{text}, which has a rate of {numbers.rate}.", opening, now)
    return Reason(kind="in line", text=f"{text}.", ends="A worker admits it.")


def _opens(kind: str, text: str, opening: int, now: int) -> Reason:
    ends = f"The next may start in {spoken(max(0, opening - now))}: at {_stamp(opening)}."
    return Reason(kind=kind, text=text, ends=ends, at=from_ms(opening))


def _ordinal(number: int) -> str:
    if number > MOST:
        return f"later than {MOST:,}th"
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def _stamp(moment: int) -> str:
    return f"{from_ms(moment):%Y-%m-%d %H:%M:%S} UTC"
