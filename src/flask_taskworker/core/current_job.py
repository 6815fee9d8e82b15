"""The job that runs here, as its own code sees it."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ParamSpec, Protocol, TypeVar

from ..errors import ArgumentsError, JobCancelled, LeaseLost, StepError
from .batches import Batch
from .clock import from_ms
from .jobs import Job, Shown, moment
from .rows import Claim, Failure, Progress, ProgressReport, read_origin
from .steps import Cursor, HandedOver, StepsOfTry

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

MAX_PROGRESS_TEXT = 500
"""Characters."""
MAX_META = 10_000
"""Characters of JSON."""


class JobFlows(Protocol):
    """What belongs to a job."""

    def of_job(self, job_id: int, uid: str) -> Batch | None:
        """The batch that a job belongs to, or whose callback it is."""

    def parents(self, job_id: int) -> list[Job[Any]]:
        """The jobs that a job has waited for."""


class JobSteps(Protocol):
    """Where the steps of jobs are stored."""

    def step(self, job: RunningJob, name: str, function: Callable[..., Any], call: Callable[[], Any]) -> Any:
        """The result of a step, which *call* does unless it is stored; *function* has its type hints."""

    async def astep(
        self, job: RunningJob, name: str, function: Callable[..., Any], call: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Any:
        """As :meth:`step`."""

    def step_in(
        self, job: RunningJob, session: Any, name: str, function: Callable[..., Any], call: Callable[[], Any]
    ) -> Any:
        """As :meth:`step`; it is stored and committed with the session."""

    def cursor(self, job: RunningJob, name: str, start: Any, session: Any) -> Cursor[Any]:
        """The cursor of that name, which commits with the session where one is given."""

    def sleep(self, job: RunningJob, name: str, delay: float | timedelta) -> None:
        """Leave the function until the time is over."""

    async def asleep(self, job: RunningJob, name: str, delay: float | timedelta) -> None:
        """As :meth:`sleep`."""

    def wait_for(self, job: RunningJob, name: str, timeout: float | timedelta | None, default: Any) -> Any:
        """The value of the next notice of that name, for which the function is left."""

    async def await_for(self, job: RunningJob, name: str, timeout: float | timedelta | None, default: Any) -> Any:
        """As :meth:`wait_for`."""


@dataclass(slots=True, eq=False)
class RunningJob:
    """One execution as the task sees it through :data:`current_job`."""

    claim: Claim
    on_report: Callable[[RunningJob, ProgressReport], None]
    flows: JobFlows | None = None
    """Where it learns of its batch and its parents."""
    steps: JobSteps | None = None
    """Where its steps are stored."""
    tried: StepsOfTry | None = None
    """What this execution has to do with them."""
    on_wait: Callable[[RunningJob, int], None] | None = None
    """Told 1 when it begins to wait for the end of other jobs, and -1 when that is over; in any thread."""
    cancelled: bool = False
    lost: bool = False
    stopping: bool = False
    """The worker was asked to stop."""
    on_stopping: Callable[[], None] | None = None
    """Called on the worker's loop when it was."""
    isolated: bool = False
    """It runs in a process of its own."""
    releasing: bool = False
    """The worker shuts down: a cancelled await means hand back, not cancel."""
    ended: bool = False
    """Its ending is known."""
    failure: Failure | None = None
    """What went wrong, once its ending is logged."""
    thread: int | None = None
    """The thread that runs a sync job."""
    reported: ProgressReport | None = None
    """What it has said last."""
    log_level: float = math.inf
    """The lowest level of the log records that are kept with it."""
    on_line: Callable[[RunningJob], None] | None = None
    """Called with each kept line, in the thread that logged it."""
    lines: deque[tuple[int, str, str, str]] | None = None
    """What it has logged: epoch milliseconds, level, logger and text."""
    lines_taken: bool = False
    """Whether lines of it have been stored before its end."""
    worker_id: str | None = None
    """The worker that runs it."""
    trace: tuple[str, str] | None = None
    """The ids of the trace and the span around it, where there is tracing."""
    carried: Mapping[str, Any] | None = None
    """The values that it carries, where this process knows of any."""

    def report(self, **news: Any) -> None:
        """Say something besides what it has said before."""
        self.reported = replace(self.reported or ProgressReport(), **news)
        self.on_report(self, self.reported)

    @property
    def ends_when_cancelled(self) -> bool:
        """Whether it ends with the asyncio task that sees it through. A thread cannot be ended."""
        return self.isolated or self.claim.kind == "async"


_running: ContextVar[RunningJob | None] = ContextVar("flask_taskworker.running_job", default=None)


def set_running(job: RunningJob | None) -> None:
    """Name the execution that this thread or asyncio task is; for the executor."""
    _running.set(job)


def running_job() -> RunningJob | None:
    """The execution that this thread or asyncio task is, or None."""
    return _running.get()


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """A with block in which what runs here waits for the end of other jobs, if it is a job."""
    job = _running.get()
    if job is None or job.on_wait is None:
        yield
        return
    job.on_wait(job, 1)
    try:
        yield
    finally:
        job.on_wait(job, -1)


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

    id: Shown[int] = Shown(lambda job: job._job().claim.id)
    """The job's number."""
    uid: Shown[str] = Shown(lambda job: job._job().claim.uid)
    """The job's uid; with :attr:`claim` a key for your own idempotency."""
    task: Shown[str] = Shown(lambda job: job._job().claim.task)
    """The task's name."""
    queue: Shown[str] = Shown(lambda job: job._job().claim.queue)
    """The queue's name."""
    attempt: Shown[int] = Shown(lambda job: job._job().claim.attempt)
    """The number of this try, from 1."""
    max_attempts: Shown[int] = Shown(lambda job: job._job().claim.max_attempts)
    """How many tries the task's policy allows."""
    is_last_attempt: Shown[bool] = Shown(lambda job: job.attempt >= job.max_attempts)
    """Whether the job fails for good when this try fails."""
    created_at: Shown[datetime] = Shown(lambda job: from_ms(job._job().claim.created_at))
    """When the job was enqueued (UTC)."""
    parent: Shown[int | None] = Shown(lambda job: read_origin(job._job().claim.origin).get("job"))
    """The number of the job inside which this one was enqueued, or None."""
    claim: Shown[int] = Shown(lambda job: job._job().claim.claim)
    """The number of this claim: grows with every execution, whatever the reason for it.

    Only a power cut may take back the latest claims of SQLite, and their numbers are then given again.
    """
    schedule: Shown[str | None] = Shown(lambda job: job._job().claim.schedule)
    """The name of the schedule that made this job, or None."""
    fire_at: Shown[datetime | None] = Shown(lambda job: moment(job._job().claim.fire_at))
    """The fire time that this job stands for (UTC), or None."""
    cancelled: Shown[bool] = Shown(lambda job: job._job().cancelled)
    """Whether someone asked this job to stop; seen within a beat (1 s)."""

    stopping: Shown[bool] = Shown(lambda job: job._job().stopping)
    """Whether the worker of this job was asked to stop: a long job goes on elsewhere after its next step."""

    @property
    def carried(self) -> Mapping[str, Any]:
        """The values that the job carries, by the names given to ``task_worker.carry``."""
        return self._job().carried or {}

    @property
    def meta(self) -> Meta:
        """A small dict of this try that others read as ``job.meta`` while the job runs, and when it has ended.

        Keys are strings and values what JSON holds, 10,000 characters in all: else it raises ArgumentsError. A change
        is seen when a value is set or deleted, not inside a value. Written as :meth:`progress` is, twice a second.
        """
        return Meta(self._job())

    @property
    def batch(self) -> Batch | None:
        """The batch that the job belongs to, or whose callback it is; None without one."""
        job = self._job()
        return job.flows.of_job(job.claim.id, job.claim.uid) if job.flows is not None else None

    @property
    def parents(self) -> list[Job[Any]]:
        """The jobs that it has waited for with ``after=``, in the order of their numbers, to ask for their results."""
        job = self._job()
        return job.flows.parents(job.claim.id) if job.flows is not None else []

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Tell how far the job is. Cheap: it is written at most twice a second, and once at the end.

        Of *text* the first 500 characters are kept. Raises ArgumentsError for anything but a finite number.
        """
        job = self._job()
        # The worker writes it later, together with other jobs' news: nothing that it cannot write may get there.
        total = None if total is None else _number("total", total)
        job.report(progress=Progress(_number("done", done), total, _plain(text)))

    def check(self) -> None:
        """Raise JobCancelled if the job was asked to stop, LeaseLost if another worker owns it now.

        A worker that was asked to stop hands the job over here: it leaves the function, and runs again in another
        worker, with no attempt counted.
        """
        check_in(self._job())

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call *function* and store what it returns under *name*; when the job runs again, return that instead.

        A name is used once in an execution. Raises StepError for one that is used twice, for a result that cannot be
        stored, outside of a job and in an ``atomic`` task; LeaseLost; JobCancelled.
        """
        steps, job = self._steps()
        value: R = steps.step(job, name, function, lambda: function(*args, **kwargs))
        return value

    async def astep(
        self, name: str, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As :meth:`step`, for a coroutine function."""
        steps, job = self._steps()
        value: R = await steps.astep(job, name, function, lambda: function(*args, **kwargs))
        return value

    def step_in(self, session: Any, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """As :meth:`step`, and commit the step together with what *function* writes in *session*: exactly once.

        The session must be in the database of the jobs. Rolls it back where *function* raises. Raises ArgumentsError
        for another database, and what :meth:`step` raises.
        """
        steps, job = self._steps()
        value: R = steps.step_in(job, session, name, function, lambda: function(*args, **kwargs))
        return value

    def cursor(self, name: str, start: T, *, session: Any = None) -> Cursor[T]:
        """How far a loop of the job is, stored under *name*: *start*, or where an earlier execution has moved it.

        With *session*, which must be in the database of the jobs, a move commits together with what was written there.
        Raises as :meth:`step` does.
        """
        steps, job = self._steps()
        return steps.cursor(job, name, start, session)

    def sleep(self, name: str, delay: float | timedelta) -> None:
        """Leave the function, and go on when *delay* (seconds or timedelta) is over: the job runs again then.

        No slot is used meanwhile, and no attempt counted. The end is stored once under *name*, as a step. ``finally``
        and ``with`` blocks run. Raises as :meth:`step` does, and StepError in an ``at_most_once`` task.
        """
        steps, job = self._steps()
        steps.sleep(job, name, delay)

    async def asleep(self, name: str, delay: float | timedelta) -> None:
        """As :meth:`sleep`, in a coroutine."""
        steps, job = self._steps()
        await steps.asleep(job, name, delay)

    def wait_for(self, name: str, timeout: float | timedelta | None = None, default: Any = None) -> Any:
        """The value of the next notice of that name: see ``job.tell``. *default* when *timeout* is over.

        The oldest notice that is there already is taken at once. Else the function is left, as in :meth:`sleep`.
        """
        steps, job = self._steps()
        return steps.wait_for(job, name, timeout, default)

    async def await_for(self, name: str, timeout: float | timedelta | None = None, default: Any = None) -> Any:
        """As :meth:`wait_for`, in a coroutine."""
        steps, job = self._steps()
        return await steps.await_for(job, name, timeout, default)

    def _steps(self) -> tuple[JobSteps, RunningJob]:
        job = _running.get()
        if job is None or job.steps is None:
            raise StepError(
                "No job runs here: steps work only inside a task that a worker runs. A test runs "
                "the task with jobs.perform(task, …)."
            )
        return job.steps, job


class Meta(MutableMapping[str, Any]):
    """What a job lets others know while it runs. Safe from any thread of the job."""

    __slots__ = ("_job",)

    def __init__(self, job: RunningJob) -> None:
        self._job = job

    def __repr__(self) -> str:
        return repr(dict(self))

    def __getitem__(self, key: str) -> Any:
        return self._values()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        try:
            same = json.loads(json.dumps({key: value}, allow_nan=False)) == {key: value}
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise ArgumentsError(
                f"meta[{key!r:.80}] = {value!r:.100} cannot be stored. Allowed: a string as the key, and strings, "
                "numbers, True, False, None, and lists and dicts of these."
            )
        self._set({**self._values(), key: value})

    def __delitem__(self, key: str) -> None:
        values = dict(self._values())
        del values[key]
        self._set(values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def _values(self) -> Mapping[str, Any]:
        return self._job.reported.meta if self._job.reported is not None else {}

    def _set(self, values: dict[str, Any]) -> None:
        if (size := len(json.dumps(values))) > MAX_META:
            raise ArgumentsError(
                f"meta would take {size:,} characters of JSON; {MAX_META:,} are allowed. Keep the rest where your "
                "application keeps its data, or return it."
            )
        self._job.report(meta=values)


def refuse_swallowed(job: RunningJob) -> None:
    """Raise StepError where the task has gone on although its function was to be left."""
    if job.tried is not None and job.tried.is_suspended:
        raise StepError(
            "The task has caught what leaves it when it sleeps or waits for a notice. Catch Exception, not "
            "BaseException, and let no bare except: or return in finally: stand around these calls."
        )


def check_in(job: RunningJob) -> None:
    """Leave the function where the job is not to go on here: see :meth:`CurrentJob.check`."""
    if job.lost:
        raise LeaseLost
    if job.cancelled:
        raise JobCancelled
    # A job that may run only once has begun, and must not begin again.
    if job.stopping and not job.claim.at_most_once:
        job.releasing = True
        raise HandedOver


def _number(what: str, value: Any) -> float:
    """An int or a finite float of whatever behaves like one, a Decimal for example."""
    with suppress(TypeError, ValueError, OverflowError):
        number = value if type(value) is int else float(value)
        if not isinstance(value, str | bytes) and math.isfinite(number):
            return number
    raise ArgumentsError(f"progress: {what} is {value!r:.100}. Give a finite number.")


def _plain(text: object) -> str:
    return str(text)[:MAX_PROGRESS_TEXT].encode("utf-8", "backslashreplace").decode("utf-8")


current_job: CurrentJob = CurrentJob()
