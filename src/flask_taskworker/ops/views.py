"""One reading of a row: what pages and commands show of jobs, schedules, queues, workers, failures and mails.

A view is frozen and complete: the state's word, which try it is, what it took. Commands print it, pages render it, and
:func:`as_json` makes the JSON of both. Times are epoch milliseconds in a view, ISO 8601 in its JSON.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

from ..client.health import LONG_WAIT_MS, info_of, is_late, is_silent, name_of, takes
from ..core.batches import BatchRow
from ..core.clock import from_ms
from ..core.failures import read_cut
from ..core.rows import FAR_MS, NOTICE, WAITS, Failure, JobRecord, Progress
from ..core.tasks import TaskRegistry
from ..core.triggers import Cron, Trigger, describe, trigger_from_text, trigger_to_text
from ..errors import NotDecodable
from ..mail.queue.reading import header_in, headers_of
from ..store.rollups import Percentile
from ..store.sql import ScheduleRow, WorkerRow, next_fire_ms
from .rows import JobRow, JobWhole, LogLine, MailRow, QueueState, RecipientRow, ScheduleRun

V = TypeVar("V")


def iso(moment: int | datetime | None) -> str | None:
    """A moment in ISO 8601, in UTC, with milliseconds; None where there is none."""
    if not moment:
        return None
    return (from_ms(moment) if isinstance(moment, int) else moment).isoformat(timespec="milliseconds")


PAYLOAD = frozenset({"args", "kwargs", "result"})
"""Fields whose values are the user's: no name in them means anything here."""


def as_json(view: Any) -> Any:
    """A view, or a page of views, as JSON has it: moments (``at``, ``…_at``) in ISO 8601, views inside it likewise."""
    if is_dataclass(view):
        view = with_more(view)
    if isinstance(view, Mapping):
        return {name: _in_json(name, value) for name, value in view.items()}
    return [as_json(one) for one in view] if isinstance(view, list | tuple) else view


def _in_json(name: str, value: Any) -> Any:
    if name == "at" or name.endswith("_at"):
        return iso(value)
    # The names in a mapping inside are those of tasks, settings and the like.
    return value if name in PAYLOAD or isinstance(value, Mapping) else as_json(value)


def with_more(view: Any, **more: Any) -> dict[str, Any]:
    """The fields of a view by their names, and more."""
    return {field.name: getattr(view, field.name) for field in fields(view)} | more


def _view(kind: type[V], row: Any, **own: Any) -> V:
    """A view of *row*: it has *own* values, and all others under the same names as the row."""
    names = (field.name for field in fields(cast(Any, kind)))
    return kind(**{name: own[name] if name in own else getattr(row, name) for name in names})


# -- jobs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorView:
    """Why a job or one of its tries failed."""

    kind: str
    type: str
    message: str

    @property
    def text(self) -> str:
        """Type and message."""
        return f"{self.type}: {self.message}" if self.type else self.message or self.kind


def error_view(text: str | None, kind: str | None) -> ErrorView | None:
    """A stored error, which may be cut; None where there is none."""
    if text is None and kind is None:
        return None
    return _view(ErrorView, read_cut(text, kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One job, without its arguments and result."""

    id: int
    uid: str
    task: str
    queue: str
    kind: str
    priority: int
    state: str
    """Where it is on its way; ``retrying`` where it is scheduled and has failed before, ``waiting`` for other jobs."""
    discarded: bool
    attempt: int
    """The number of its current, next or last try, from 1."""
    max_attempts: int
    failures: int
    crashes: int
    claim: int
    cancel_requested: bool
    at_most_once: bool
    progress: Progress | None
    percent: float | None
    """Of its progress, where the total is known."""
    run_at: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    expires_at: int | None
    took_ms: int | None
    """How long its last try took."""
    schedule: str | None
    fire_at: int | None
    unique_key: str | None
    worker_id: str | None
    failure_group: str | None
    error: ErrorView | None

    @property
    def word(self) -> str:
        """The state as a person reads it."""
        return "discarded" if self.discarded else self.state

    @property
    def at(self) -> int:
        """The moment that matters in this state: its end, its next try, its start."""
        started_at = self.started_at if self.state == "running" else None
        return self.finished_at or started_at or self.run_at or self.created_at


def _word_of(record: JobRecord) -> str:
    if record.state != "scheduled":
        return record.state
    return "waiting" if record.marks & (WAITS | NOTICE) else "retrying" if record.failures else "scheduled"


def job_view(row: JobRow | JobWhole) -> JobView:
    """One job of a list, or with all that is stored of it."""
    record = row.record
    progress = Progress._from_text(record.progress)
    has_ended = record.started_at is not None and record.finished_at is not None
    return _view(
        JobView,
        record,
        state=_word_of(record),
        run_at=0 if record.run_at >= FAR_MS else record.run_at,
        discarded=bool(row.discarded),
        attempt=record.failures + (record.state != "failed" or not record.failures),
        cancel_requested=bool(record.cancel_requested),
        at_most_once=bool(record.at_most_once),
        progress=progress,
        percent=progress.percent if progress else None,
        took_ms=max(0, (record.finished_at or 0) - (record.started_at or 0)) if has_ended else None,
        failure_group=row.failure_group,
        error=error_view(row.error, record.failure_kind),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchView:
    """One batch."""

    id: int
    name: str
    state: str
    """``open`` until it is sealed, ``running``, then ``succeeded``, ``failed`` or ``cancelled``."""
    total: int
    succeeded: int
    failed: int
    cancelled: int
    left: int
    round: int
    created_at: int
    ended_at: int | None
    expires_at: int | None
    per_minute: float | None
    """How many of its jobs have ended a minute, since it was made; None where it has ended, or runs another round."""
    done_at: int | None
    """When the last would end at that pace."""

    @property
    def percent(self) -> float:
        """How much of it has ended."""
        return round(100 * (self.total - self.left) / self.total, 1) if self.total else 100.0 * bool(self.ended_at)


def batch_view(row: BatchRow, now: int) -> BatchView:
    """One batch."""
    counts, took = row.counts, now - row.created_at
    ended = counts.total - counts.left
    is_paced = row.ended_at is None and row.round == 1 and ended > 0 and took > 0
    return _view(
        BatchView,
        row,
        **counts._asdict(),
        left=counts.left,
        per_minute=round(60_000 * ended / took, 1) if is_paced else None,
        done_at=now + took * counts.left // ended if is_paced and counts.left else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TryView:
    """One try of a job. One that simply succeeded, or goes on, has no row: of it the job says what is known."""

    claim: int
    attempt: int | None
    worker_id: str | None
    started_at: int | None
    finished_at: int | None
    outcome: str
    took_ms: int | None
    error: ErrorView | None = None
    traceback: str = ""
    is_stored: bool = False
    """Whether it has a row of its own."""
    lines: tuple[LogLine, ...] = ()
    """What it has logged."""


def try_views(job: JobView, whole: JobWhole) -> tuple[TryView, ...]:
    """The tries of which something is known, oldest first."""
    stored = {one.claim: one for one in whole.attempts}
    views = []
    for claim in sorted({*stored, *whole.lines, job.claim} - {0}):
        lines = tuple(whole.lines.get(claim, ()))
        if (one := stored.get(claim)) is not None:
            took_ms = one.finished_at - one.started_at if one.started_at else None
            failure = Failure._from_text(one.error, None)
            own = {"took_ms": took_ms, "error": error_view(one.error, None), "traceback": failure.traceback}
            views.append(_view(TryView, one, **own, lines=lines, is_stored=True))
            continue
        last = claim == job.claim and job.state in ("running", "succeeded")
        known: dict[str, Any] = {name: getattr(job, name) if last else None for name in _OF_THE_LAST}
        views.append(TryView(claim=claim, outcome=job.state if last else "ended", lines=lines, **known))
    return tuple(views)


_OF_THE_LAST = ("attempt", "worker_id", "started_at", "finished_at", "took_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureView:
    """Failed jobs with one cause."""

    group: str
    task: str
    error: ErrorView | None
    place: str | None
    """Where the newest was raised: the last frame of the application's own code."""
    count: int
    """Those in the time that was asked for."""
    older: int
    """Those before it."""
    first_at: int
    """When the first of all of them failed."""
    last_at: int
    newest: int
    """The number of the newest of these jobs."""


# -- schedules ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleView:
    """One schedule."""

    name: str
    task: str
    when: str
    explained: str | None
    zone: str
    misfire: str | None
    overlap: str | None
    jitter_s: float | None
    source: str
    is_stored: bool
    """False where code declares it and no worker has stored it yet."""
    state: str
    """``unreadable``, ``paused``, ``late``, ``running``, ``failing``, ``ended``, ``up`` or ``new``."""
    paused: bool
    late_ms: int
    """How long it has been late; 0 where it is not."""
    last_at: int | None
    next_at: int | None


UNREADABLE = "cannot be read by this version"


def schedule_view(schedule: ScheduleRow, now: int, runs: Sequence[ScheduleRun] = ()) -> ScheduleView:
    """One schedule. *runs*: its last jobs, newest first."""
    trigger = trigger_of(schedule)
    if trigger is None:
        state = "unreadable"
    elif schedule.paused:
        state = "paused"
    elif is_late(schedule, now):
        state = "late"
    elif runs and runs[0].state == "running":
        state = "running"
    elif next((run.state for run in runs if run.finished_at is not None), None) == "failed":
        state = "failing"
    elif schedule.next_at is None:
        state = "ended"
    else:
        state = "up" if runs or schedule.last_at is not None else "new"
    return _view(
        ScheduleView,
        schedule,
        when=UNREADABLE if trigger is None else describe(trigger),
        explained=trigger.explain() if isinstance(trigger, Cron) else None,
        zone=str(trigger.zone) if isinstance(trigger, Cron) else "UTC",
        misfire=None if trigger is None else trigger.misfire,
        overlap=None if trigger is None else trigger.overlap,
        jitter_s=None if trigger is None else trigger.jitter.total_seconds(),
        source=schedule.source or "code",
        is_stored=bool(schedule.source),
        state=state,
        paused=bool(schedule.paused),
        late_ms=now - (schedule.next_at or 0) if is_late(schedule, now) else 0,
    )


def trigger_of(schedule: ScheduleRow) -> Trigger | None:
    """When a schedule fires; None where a later version of the code has stored it."""
    try:
        return trigger_from_text(schedule.trigger)
    except NotDecodable:
        return None


def declared_schedules(registry: TaskRegistry, stored: Container[str], now: int, zone: str) -> Iterator[ScheduleRow]:
    """The schedules that the code declares and no worker has stored yet."""
    for task in sorted(registry, key=lambda task: task.name):
        for declared in (one._in_zone(zone) for one in task._declared_schedules()):
            if declared.name not in stored:
                next_at, trigger = next_fire_ms(declared, from_ms(now)), trigger_to_text(declared.trigger)
                yield ScheduleRow(declared.name, declared.task, trigger, declared.args, next_at, None, 0, "")


# -- workers and queues ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker."""

    id: str
    name: str
    host: str
    pid: int
    version: str | None
    state: str
    """``up``, ``draining``, ``silent``, ``lost`` (declared dead) or ``left`` (stopped by itself)."""
    started_at: int
    beat_at: int
    running: int
    """Jobs that it runs, by their rows."""
    async_busy: int
    async_slots: int | None
    sync_busy: int
    sync_slots: int | None
    hung_threads: int | None
    loop_lag_ms: float | None
    resident_mb: float | None
    queues: tuple[str, ...] | None
    """Those that it works on; None for all."""
    exclude: tuple[str, ...]


_WORKER_STATES = {"alive": "up", "draining": "draining", "left": "left", "dead": "lost"}


def worker_view(worker: WorkerRow, now: int) -> WorkerView:
    """One worker."""
    info = info_of(worker)
    busy, queues = info.get("running") or {}, info.get("queues")
    return _view(
        WorkerView,
        worker,
        name=info.get("name") or name_of(worker),
        version=info.get("version"),
        state="silent" if is_silent(worker, now) else _WORKER_STATES[worker.state],
        async_busy=busy.get("async", 0),
        async_slots=info.get("concurrency"),
        sync_busy=busy.get("sync", 0),
        sync_slots=info.get("threads"),
        hung_threads=info.get("hung_threads"),
        loop_lag_ms=info.get("loop_lag_ms"),
        resident_mb=info.get("resident_mb"),
        queues=None if queues is None else tuple(queues),
        exclude=tuple(info.get("exclude") or ()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSummary:
    """One queue."""

    name: str
    state: str
    """``paused``, ``no worker``, ``slow``, ``ok``, or ``idle``: no job is ready, and no worker is there for it."""
    ready: int
    """Counted up to ``sql.MOST``."""
    running: int
    slots: int
    """Jobs that its workers can run at once."""
    oldest_at: int | None
    paused_at: int | None
    paused_by: str | None
    paused_until: int | None
    """When it is resumed by itself."""
    done_last_hour: int
    failed_last_hour: int
    p95_wait: Percentile | None


def queue_summary(queue: QueueState, workers: Iterable[WorkerRow], now: int) -> QueueSummary:
    """One queue and the living ones among *workers* that take its jobs."""
    living = (info_of(w) for w in workers if w.state == "alive" and not is_silent(w, now))
    serving = [info for info in living if takes(info, queue.name)]
    if queue.paused:
        state = "paused"
    elif queue.ready and not serving:
        state = "no worker"
    elif queue.oldest_at is not None and now - queue.oldest_at > LONG_WAIT_MS:
        state = "slow"
    else:
        state = "ok" if serving else "idle"
    figures = queue.figures
    return _view(
        QueueSummary,
        queue,
        state=state,
        slots=sum(info.get("concurrency", 0) + info.get("threads", 0) for info in serving),
        done_last_hour=figures.ended if figures else 0,
        failed_last_hour=figures.failed if figures else 0,
        p95_wait=figures.wait_percentile(0.95) if figures else None,
    )


# -- mails -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MailView:
    """One queued mail."""

    id: str
    message_id: str
    subject: str
    author: str
    """Its From line."""
    sender: str
    """The envelope's."""
    state: str
    """Its job's state, or ``accepted``, ``partly refused``, ``held`` (perhaps delivered, and not tried
    again by itself) or ``orphaned`` (without a job)."""
    endings: Mapping[str, int]
    """How many of its recipients stand how."""
    recipients: tuple[RecipientRow, ...]
    job: int | None
    tries: int
    size: int
    once: bool
    created_at: int
    next_try_at: int | None
    give_up_at: int | None
    finished_at: int | None


def mail_view(mail: MailRow, endings: Mapping[str, int], recipients: Sequence[RecipientRow]) -> MailView:
    """One queued mail. *recipients*: those to show."""
    headers = headers_of(mail.head or b"")
    if mail.state == "failed" and mail.failure_kind == "unknown":
        state = "held"
    elif mail.state == "scheduled" and mail.tries:
        state = "retrying"
    elif mail.state == "succeeded" or (mail.state is None and mail.finished_at is not None):
        state = "accepted" if set(endings) <= {"accepted"} else "partly refused"
    else:
        state = mail.state or "orphaned"
    return _view(
        MailView,
        mail,
        subject=header_in(headers, "Subject") or "",
        author=header_in(headers, "From") or mail.sender,
        state=state,
        endings=endings,
        recipients=tuple(recipients),
        job=mail.job_id,
        once=bool(mail.once),
        next_try_at=mail.run_at if mail.state == "scheduled" else None,
        give_up_at=mail.give_up_at if mail.finished_at is None else None,
    )
