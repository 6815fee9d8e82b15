"""Jobs: their states, what the store keeps of them, how they end, and ``current_job``.

Pure: nothing here reads a clock or touches a database. A :class:`Job` is a handle; what it does goes through the
:class:`JobClient` that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, cast

from ..errors import JobCancelled, JobFailed, JobNotFound
from .clock import from_ms
from .habits import JOB_METHODS, no_attribute
from .rows import NOTICE, WAITS, Failure, JobRecord, JobState, Progress, read_meta, shown

R = TypeVar("R")
T = TypeVar("T")


class JobClient(Protocol):
    """What a job needs to act: one app's store and wake-up."""

    def record(self, job_id: int) -> JobRecord:
        """The job's row. Raises JobNotFound."""

    def wait(self, job_id: int, timeout: float | None) -> Any:
        """The decoded result. Raises JobFailed, JobCancelled, JobTimeout or JobNotFound."""

    async def await_result(self, job_id: int, timeout: float | None) -> Any:
        """As :meth:`wait`, without blocking the event loop."""

    def arguments(self, job_id: int, task: str) -> Mapping[str, Any]:
        """The arguments by the names of the parameters. Raises JobNotFound, NotDecodable."""

    def error(self, job_id: int) -> Failure | None:
        """Why it ended as it did. Raises JobNotFound."""

    def url(self, job_id: int) -> str | None:
        """The address of its page on the dashboard."""

    def cancel(self, job_id: int) -> bool:
        """Cancel, or ask the running job to stop."""

    def retry(self, job_id: int, *, following: bool = False, fresh: bool = False) -> bool:
        """Put a finished job back into its queue; with *following* also those that were cancelled because of it.

        *fresh*: its steps are forgotten.
        """

    def tell(self, uid: str, name: str, value: Any, session: Any = None) -> None:
        """Tell a job something: see :meth:`Job.tell`."""

    def change(self, job_id: int, **changes: Any) -> bool:
        """Change a waiting job: see :meth:`Job.change`."""

    def why(self, job_id: int) -> list[Reason]:
        """What a waiting job waits for. Raises JobNotFound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that a job waits for."""

    kind: str
    """A word for programs, such as "paused", "due" or "slots"."""
    text: str
    """What holds the job back, in a sentence or two."""
    ends: str
    """What would end that."""
    at: datetime | None = None
    """When it ends by itself (UTC), where that is known."""


def moment(ms: int | None) -> datetime | None:
    """A moment of a row in UTC; None where there is none."""
    return from_ms(ms) if ms else None


class Shown(Generic[T]):
    """An attribute that is read from what lies behind an object."""

    def __init__(self, read: Callable[[Any], T]) -> None:
        self._read = read

    def __get__(self, owner: Any, kind: type | None = None) -> T:
        return cast(T, self) if owner is None else self._read(owner)

    def __set__(self, owner: object, value: object) -> NoReturn:
        raise AttributeError("This attribute cannot be set.")


class Job(Generic[R]):
    """One call of a task. Safe from any thread. What it shows is as of its making or the last :meth:`refresh`."""

    __slots__ = ("_client", "_merged", "_record")

    def __init__(self, record: JobRecord, client: JobClient, *, merged: bool = False) -> None:
        self._record = record
        self._client = client
        self._merged = merged

    def __repr__(self) -> str:
        return f"<Job {self.id} {shown(self.task)} {self.state}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute("A job", name, JOB_METHODS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other._record.uid == self._record.uid

    def __hash__(self) -> int:
        return hash(self._record.uid)

    id: Shown[int] = Shown(lambda job: job._record.id)
    """The store's number of the job; never used again for another.

    0 for a pending job whose session is in another database than the jobs: it is stored after the commit.
    """
    uid: Shown[str] = Shown(lambda job: job._record.uid)
    """The name given to the job by the caller; an enqueue repeated with it never doubles the job."""
    task: Shown[str] = Shown(lambda job: job._record.task)
    """The task's name."""
    queue: Shown[str] = Shown(lambda job: job._record.queue)
    """The queue's name."""
    kind: Shown[str] = Shown(lambda job: job._record.kind)
    """Whether the task is "sync" or "async"."""
    priority: Shown[int] = Shown(lambda job: job._record.priority)
    """Higher goes first within its queue."""
    state: Shown[JobState] = Shown(lambda job: JobState(job._record.state))
    """The state as of the last look; :meth:`refresh` looks again."""
    attempt: Shown[int] = Shown(
        lambda job: job._record.failures + (job.state is not JobState.FAILED or not job._record.failures)
    )
    """The number of the current, next or last try, from 1."""
    max_attempts: Shown[int] = Shown(lambda job: job._record.max_attempts)
    """How many tries the task's policy allows."""
    run_at: Shown[datetime | None] = Shown(lambda job: None if job.waits else moment(job._record.run_at))
    """When the job is due (UTC); None where it was due at once, or waits for others."""
    waits: Shown[bool] = Shown(
        lambda job: job.state is JobState.SCHEDULED and bool(job._record.marks & (WAITS | NOTICE))
    )
    """Whether the job waits for others, as ``using(after=…)`` says, or for a notice."""
    created_at: Shown[datetime | None] = Shown(lambda job: moment(job._record.created_at))
    """When it was enqueued (UTC)."""
    started_at: Shown[datetime | None] = Shown(lambda job: moment(job._record.started_at))
    """When it was last claimed (UTC), or None."""
    finished_at: Shown[datetime | None] = Shown(lambda job: moment(job._record.finished_at))
    """When it ended (UTC), or None."""
    expires_at: Shown[datetime | None] = Shown(lambda job: moment(job._record.expires_at))
    """When the finished job is pruned (UTC), or None while it is unfinished."""
    schedule: Shown[str | None] = Shown(lambda job: job._record.schedule)
    """The name of the schedule that made the job, or None."""
    fire_at: Shown[datetime | None] = Shown(lambda job: moment(job._record.fire_at))
    """The schedule's fire time that this job stands for (UTC), or None."""
    progress: Shown[Progress | None] = Shown(lambda job: Progress._from_text(job._record.progress))
    """The job's last progress, or None."""
    meta: Shown[Mapping[str, Any]] = Shown(lambda job: read_meta(job._record.progress))
    """What the job lets others know by ``current_job.meta``, as of the last look."""

    merged: Shown[bool] = Shown(lambda job: job._merged)
    """Whether the job was there already and stands for the call that returned it, too: see ``unique=``."""

    def _become(self, record: JobRecord) -> None:
        """Told by the client: the session in which the job was enqueued has committed."""
        self._merged = self._merged or record.uid != self._record.uid
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

        Waits through retries. ``timeout`` is in seconds; None waits forever. Raises JobFailed, JobCancelled,
        JobTimeout (a TimeoutError), JobNotFound when the job was pruned or is pending, or ArgumentsError for a timeout
        that is not a number. Safe from any thread but the worker's event loop, where it raises at once: use
        :meth:`aresult` there.
        """
        value: R = self._client.wait(self._stored_id(), timeout)
        return value

    async def aresult(self, timeout: float | None = None) -> R:
        """As :meth:`result`, for coroutines on any event loop."""
        value: R = await self._client.await_result(self._stored_id(), timeout)
        return value

    def wait(self, timeout: float | None = None) -> Job[R]:
        """Wait for the end, whatever it is, and return this job, as it is then. Errors as in :meth:`result`."""
        with suppress(JobFailed, JobCancelled):
            self.result(timeout)
        return self.refresh()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the task is called with, by the names of its parameters, defaults included. Read from the database.

        Where this process does not know the task: the positional ones under "args", the others by their names.
        Raises JobNotFound.
        """
        return self._client.arguments(self._stored_id(), self.task)

    @property
    def error(self) -> Failure | None:
        """Why the job has failed or was cancelled, or why its last try failed; None without an error. Read each time.

        It has ``kind``, ``type``, ``message`` and ``traceback``. Raises JobNotFound.
        """
        return self._client.error(self._stored_id())

    @property
    def url(self) -> str | None:
        """The address of the job's page on the dashboard, from the host on; None where the app has no dashboard.

        Needs a request, or ``SERVER_NAME``.
        """
        return self._client.url(self._stored_id())

    def cancel(self) -> bool:
        """Cancel the job; True unless it had already finished.

        A waiting job is cancelled at once. A running async job is cancelled at its next await; a running sync job
        sees ``current_job.cancelled``. Either within a beat (1 s), from any process. Raises JobNotFound.
        """
        return self._client.cancel(self._stored_id())

    def retry(self, *, following: bool = False, fresh: bool = False) -> bool:
        """Put a failed or cancelled job back into its queue with its counters at zero; False if it is neither.

        ``following=True`` also brings back the jobs that were cancelled because of it, and theirs: they wait again.
        ``fresh=True`` forgets its steps, so that it begins from its beginning.
        Raises NotAccepted while another unfinished job has its unique key, JobNotFound.
        """
        return self._client.retry(self._stored_id(), following=following, fresh=fresh)

    def tell(self, name: str, value: Any = None, *, session: Any = None) -> None:
        """Give the job the value for which it waits with ``current_job.wait_for(name)``, now or later.

        ``session``: an SQLAlchemy session in the database of the jobs; the job gets it when that commits. Raises
        JobFinished, JobNotFound, or StepError for a value that cannot be stored.
        """
        self._client.tell(self.uid, name, value, session)

    def change(
        self,
        *,
        priority: int | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        args: Sequence[Any] | Mapping[str, Any] | None = None,
    ) -> bool:
        """Change what is given of a job that no worker has taken yet; False if one has.

        *run_at*: an aware datetime; one that has passed makes the job due now. *args*: a tuple of all arguments, or a
        dict of them by name, checked as those of ``enqueue`` are. Raises ArgumentsError, too for a job whose limit or
        unique key comes from its arguments, or that waits for others and is to be due earlier; JobNotFound.
        """
        return self._client.change(self._stored_id(), priority=priority, run_at=run_at, queue=queue, args=args)

    def why(self) -> list[Reason]:
        """What the job waits for, each with what would end it; empty for one that runs or has ended.

        ``flask tasks why ID`` and the dashboard say it in the same words. Raises JobNotFound.
        """
        return self._client.why(self._stored_id())
