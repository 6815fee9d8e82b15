"""Jobs: their states, what the store keeps of them, how they end, and ``current_job``.

Pure: nothing here reads a clock or touches a database. A :class:`Job` is a handle; what it does goes through the
:class:`JobClient` that made it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from .clock import from_ms
from .errors import ArgumentsError, JobCancelled, JobNotFound, LeaseLost

R = TypeVar("R")
Kind = Literal["sync", "async"]

MAX_PROGRESS_TEXT = 500
"""Characters."""
MAX_SHOWN = 200
"""Characters of a name in a log record."""


class JobState(StrEnum):
    """Where a job is on its way."""

    PENDING = "pending"
    """Enqueued with ``session=``, and that session has not committed yet. Never a state of a stored job."""
    SCHEDULED = "scheduled"
    """Not due yet: delayed, or waiting for its next try."""
    READY = "ready"
    """Due; the next free worker takes it."""
    RUNNING = "running"
    """Claimed by a worker."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether the job has ended for good (an operator's retry aside)."""
        return self in _FINISHED


STORED = tuple(state for state in JobState if state is not JobState.PENDING)
_FINISHED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


def shown(text: object) -> str:
    """Words of a row as they may stand in a line of a log: short, and without what would end the line."""
    words = str(text)
    short = words if len(words) <= MAX_SHOWN else f"{words[:MAX_SHOWN]}…"
    return short if short.isprintable() else ascii(short)[1:-1]


class NewJob(NamedTuple):
    """A job as it goes into the store. Times are epoch milliseconds; ``run_at`` 0 means at once."""

    uid: str
    task: str
    queue: str
    kind: Kind
    priority: int
    run_at: int
    args: str
    max_attempts: int
    timeout: int | None
    created_at: int
    unique_key: str | None = None
    schedule: str | None = None
    fire_at: int | None = None
    at_most_once: int = 0
    origin: str | None = None

    @property
    def state(self) -> str:
        """The state in which the row begins."""
        return "scheduled" if self.run_at > self.created_at else "ready"


class JobRecord(NamedTuple):
    """What the store knows of a job, without its arguments and result. Times are epoch milliseconds."""

    id: int
    uid: str
    task: str
    queue: str
    kind: str
    priority: int
    state: str
    run_at: int
    max_attempts: int
    timeout: int | None
    claim: int = 0
    worker_id: str | None = None
    failures: int = 0
    crashes: int = 0
    schedule: str | None = None
    fire_at: int | None = None
    at_most_once: int = 0
    unique_key: str | None = None
    cancel_requested: int = 0
    progress: str | None = None
    failure_kind: str | None = None
    created_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    expires_at: int | None = None


class Claim(NamedTuple):
    """A job in the hands of a worker: what it needs to run it. ``claim`` is the fencing token."""

    id: int
    uid: str
    task: str
    queue: str
    kind: str
    priority: int
    args: str
    claim: int
    failures: int
    crashes: int
    max_attempts: int
    timeout: int | None
    created_at: int
    run_at: int
    schedule: str | None
    fire_at: int | None
    at_most_once: int = 0
    origin: str | None = None

    @property
    def attempt(self) -> int:
        """The number of this try, from 1. A crash or a hand-back counts none."""
        return self.failures + 1

    def __str__(self) -> str:
        return f"job {self.id} ({shown(self.task)})"


class Ending(StrEnum):
    """What becomes of a job after one execution."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRYING = "retrying"
    """A try failed; another follows."""
    SNOOZED = "snoozed"
    """Again later, no attempt counted."""
    CANCELLED = "cancelled"
    RELEASED = "released"
    """Handed back to its queue: shutdown, or a task that this worker does not know. No attempt counted."""

    @property
    def state(self) -> JobState:
        """The state that follows."""
        return JobState(self.value) if self.value in _FINISHED else JobState.SCHEDULED

    @property
    def failures(self) -> int:
        """How many failures this ending adds to the job's: 1 or 0."""
        return int(self in (Ending.FAILED, Ending.RETRYING))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one execution ended. Made in one place, by the executor."""

    ending: Ending
    result: str | None = None
    """The encoded result; None stands for the value None."""
    delay: timedelta | None = None
    """Retrying, snoozed, released: how long to wait."""
    failure: Failure | None = None
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    recorded: bool = False
    """The store knows already: an atomic job committed its ending together with its own writes."""
    keep: timedelta | None = None
    """How long the finished job is kept; None takes the configuration's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as it is stored: texts only, already shortened."""

    kind: str
    type: str
    message: str
    traceback: str = ""

    def to_text(self) -> str:
        """The stored form."""
        return json.dumps({"type": self.type, "message": self.message, "traceback": self.traceback})

    @classmethod
    def from_text(cls, text: str | None, kind: str | None) -> Failure:
        """Read the stored form; text of another origin becomes the message."""
        try:
            stored = json.loads(text or "{}")
            return cls(
                kind=kind or "exception",
                type=str(stored.get("type", "")),
                message=str(stored.get("message", "")),
                traceback=str(stored.get("traceback", "")),
            )
        except (ValueError, AttributeError, RecursionError):
            return cls(kind=kind or "exception", type="", message=text or "")


CRASHED = Failure(
    kind="crashed",
    type="",
    message="The process died three times while this job ran alone in it. Look for crashes in C code, or for memory.",
)
INTERRUPTED = Failure(
    kind="interrupted",
    type="",
    message="The worker ended while this job ran, and at_most_once=True forbids to run it again.",
)

SUCCEEDED = Outcome(Ending.SUCCEEDED)
"""The commonest outcome of all: a job that returned None."""


class JobClient(Protocol):
    """What a job needs to act: one app's store and wake-up."""

    def record(self, job_id: int) -> JobRecord:
        """The job's row. Raises JobNotFound."""

    def wait(self, job_id: int, timeout: float | None) -> Any:
        """The decoded result. Raises JobFailed, JobCancelled, JobTimeout or JobNotFound."""

    async def await_result(self, job_id: int, timeout: float | None) -> Any:
        """As :meth:`wait`, without blocking the event loop."""

    def cancel(self, job_id: int) -> bool:
        """Cancel, or ask the running job to stop."""

    def retry(self, job_id: int) -> bool:
        """Put a finished job back into its queue."""


class Job(Generic[R]):
    """One call of a task. Safe from any thread. What it shows is as of its making or the last :meth:`refresh`."""

    __slots__ = ("_client", "_record")

    def __init__(self, record: JobRecord, client: JobClient) -> None:
        self._record = record
        self._client = client

    def __repr__(self) -> str:
        return f"<Job {self.id} {shown(self.task)} {self.state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other._record.uid == self._record.uid

    def __hash__(self) -> int:
        return hash(self._record.uid)

    @property
    def id(self) -> int:
        """The store's number of the job; never used again for another.

        0 for a pending job whose session is in another database than the jobs: it is stored after the commit.
        """
        return self._record.id

    @property
    def uid(self) -> str:
        """The name given to the job by the caller; an enqueue repeated with it never doubles the job."""
        return self._record.uid

    @property
    def task(self) -> str:
        """The task's name."""
        return self._record.task

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._record.queue

    @property
    def kind(self) -> str:
        """Whether the task is "sync" or "async"."""
        return self._record.kind

    @property
    def priority(self) -> int:
        """Higher goes first within its queue."""
        return self._record.priority

    @property
    def state(self) -> JobState:
        """The state as of the last look; :meth:`refresh` looks again."""
        return JobState(self._record.state)

    @property
    def attempt(self) -> int:
        """The number of the current, next or last try, from 1."""
        return self._record.failures + (self.state is not JobState.FAILED or not self._record.failures)

    @property
    def max_attempts(self) -> int:
        """How many tries the task's policy allows."""
        return self._record.max_attempts

    @property
    def run_at(self) -> datetime | None:
        """When the job is due (UTC); None where it was due at once."""
        return _moment(self._record.run_at)

    @property
    def created_at(self) -> datetime | None:
        """When it was enqueued (UTC)."""
        return _moment(self._record.created_at)

    @property
    def started_at(self) -> datetime | None:
        """When it was last claimed (UTC), or None."""
        return _moment(self._record.started_at)

    @property
    def finished_at(self) -> datetime | None:
        """When it ended (UTC), or None."""
        return _moment(self._record.finished_at)

    @property
    def expires_at(self) -> datetime | None:
        """When the finished job is pruned (UTC), or None while it is unfinished."""
        return _moment(self._record.expires_at)

    @property
    def schedule(self) -> str | None:
        """The name of the schedule that made the job, or None."""
        return self._record.schedule

    @property
    def fire_at(self) -> datetime | None:
        """The schedule's fire time that this job stands for (UTC), or None."""
        return _moment(self._record.fire_at)

    @property
    def progress(self) -> Progress | None:
        """What the job last told of its progress, or None."""
        return Progress.from_text(self._record.progress)

    def become(self, record: JobRecord) -> None:
        """Told by the client: the session in which the job was enqueued has committed."""
        self._record = record

    def refresh(self) -> Job[R]:
        """Look again and return this job. Raises JobNotFound when it was pruned, or never committed."""
        record = self._look()
        # The number of a job that was rolled back may be given to another.
        if record is None or record.uid != self._record.uid:
            raise JobNotFound(
                "The job is pending: it is stored when the session that it was enqueued in has committed, and never if "
                "that was rolled back."
            )
        self._record = record
        return self

    def _look(self) -> JobRecord | None:
        if self.state is not JobState.PENDING:
            return self._client.record(self.id)
        try:
            return self._client.record(self.id)
        except JobNotFound:
            return None

    def _stored_id(self) -> int:
        if self.state is JobState.PENDING:
            self.refresh()
        return self._record.id

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end and return what the task returned.

        Waits through retries. ``timeout`` is in seconds; None waits for ever. Raises JobFailed, JobCancelled,
        JobTimeout (a TimeoutError), JobNotFound when the job was pruned or is pending, or ArgumentsError for a timeout
        that is no number. Safe from any thread but the worker's event loop, where it raises at once: use
        :meth:`aresult` there.
        """
        value: R = self._client.wait(self._stored_id(), timeout)
        return value

    async def aresult(self, timeout: float | None = None) -> R:
        """As :meth:`result`, for coroutines on any event loop."""
        value: R = await self._client.await_result(self._stored_id(), timeout)
        return value

    def cancel(self) -> bool:
        """Cancel the job; True unless it had already finished.

        A waiting job is cancelled at once. A running async job is cancelled at its next await; a running sync job
        sees ``current_job.cancelled``. Either within a beat (1 s), from any process. Raises JobNotFound.
        """
        return self._client.cancel(self._stored_id())

    def retry(self) -> bool:
        """Put a failed or cancelled job back into its queue with its counters at zero; False if it is neither.

        Raises NotAccepted while another unfinished job has its unique key, JobNotFound.
        """
        return self._client.retry(self._stored_id())


def _moment(ms: int | None) -> datetime | None:
    return from_ms(ms) if ms else None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come."""

    done: float
    total: float | None = None
    text: str = ""

    def to_text(self) -> str:
        """The stored form."""
        return json.dumps([self.done, self.total, self.text])

    @classmethod
    def from_text(cls, text: str | None) -> Progress | None:
        """Read the stored form; None where there is none that can be read."""
        try:
            done, total, words = json.loads(text or "")
        except (ValueError, TypeError, RecursionError):
            return None
        numbers = isinstance(done, int | float) and isinstance(total, int | float | None)
        return cls(done, total, str(words)) if numbers else None


@dataclass(slots=True, eq=False)
class RunningJob:
    """One execution as the task sees it through :data:`current_job`."""

    claim: Claim
    report: Callable[[RunningJob, Progress], None]
    cancelled: bool = False
    lost: bool = False
    releasing: bool = False
    """The worker shuts down: a cancelled await means hand back, not cancel."""
    ended: bool = False
    """Its ending is known."""
    thread: int | None = None
    """The thread that runs a sync job."""
    log_level: float = math.inf
    """The lowest level of the log records that are kept with it."""
    on_line: Callable[[RunningJob], None] | None = None
    """Told of each kept line, in the thread that logged it."""
    lines: deque[tuple[int, str, str, str]] | None = None
    """What it has logged: epoch milliseconds, level, logger and text."""
    lines_taken: bool = False
    """Whether lines of it have been stored before its end."""


_running: ContextVar[RunningJob | None] = ContextVar("flask_taskworker.running_job", default=None)


def set_running(job: RunningJob | None) -> None:
    """Name the execution that this thread or asyncio task is; for the executor."""
    _running.set(job)


def running_job() -> RunningJob | None:
    """The execution that this thread or asyncio task is, or None."""
    return _running.get()


class CurrentJob:
    """The job that runs here. Each attribute raises RuntimeError outside of a job; ``bool(current_job)`` asks."""

    __slots__ = ()

    def _job(self) -> RunningJob:
        job = _running.get()
        if job is None:
            raise RuntimeError(
                "No job runs here: current_job works only inside a task that a worker runs. A function that is also "
                "called plainly asks first: if current_job: …; a test runs the task with jobs.perform(task, …)."
            )
        return job

    def __bool__(self) -> bool:
        return _running.get() is not None

    def __repr__(self) -> str:
        job = _running.get()
        return f"<current_job {job.claim}>" if job else "<current_job: none>"

    @property
    def id(self) -> int:
        """The job's number."""
        return self._job().claim.id

    @property
    def uid(self) -> str:
        """The job's uid; with :attr:`claim` a key for your own idempotency."""
        return self._job().claim.uid

    @property
    def task(self) -> str:
        """The task's name."""
        return self._job().claim.task

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._job().claim.queue

    @property
    def attempt(self) -> int:
        """The number of this try, from 1."""
        return self._job().claim.attempt

    @property
    def claim(self) -> int:
        """The number of this claim: grows with every execution, whatever the reason for it.

        Only a power cut may take back the latest claims of SQLite, and their numbers are then given again.
        """
        return self._job().claim.claim

    @property
    def schedule(self) -> str | None:
        """The name of the schedule that made this job, or None."""
        return self._job().claim.schedule

    @property
    def fire_at(self) -> datetime | None:
        """The fire time that this job stands for (UTC), or None."""
        return _moment(self._job().claim.fire_at)

    @property
    def cancelled(self) -> bool:
        """Whether someone asked this job to stop; seen within a beat (1 s)."""
        return self._job().cancelled

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Tell how far the job is. Cheap: it is written at most twice a second, and once at the end.

        Of *text* the first 500 characters are kept. Raises ArgumentsError for what is no finite number.
        """
        job = self._job()
        # The worker writes it later, together with other jobs' news: nothing that it cannot write may get there.
        total = None if total is None else _number("total", total)
        job.report(job, Progress(_number("done", done), total, _plain(text)))

    def check(self) -> None:
        """Raise JobCancelled if the job was asked to stop, LeaseLost if another worker owns it now."""
        job = self._job()
        if job.lost:
            raise LeaseLost
        if job.cancelled:
            raise JobCancelled


def _number(what: str, value: Any) -> float:
    """An int or a finite float of whatever behaves like one, a Decimal for example."""
    with suppress(TypeError, ValueError, OverflowError):
        number = value if type(value) is int else float(value)
        if not isinstance(value, str | bytes) and math.isfinite(number):
            return number
    raise ArgumentsError(f"progress: {what} is {value!r:.100}. Give a finite number.")


def _plain(text: object) -> str:
    return str(text)[:MAX_PROGRESS_TEXT].encode("utf-8", "backslashreplace").decode("utf-8")


current_job = CurrentJob()
