"""The Store: one app's rows as every thread sees them. The worker's loop has a face of its own, in ``work.py``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from ..core.clock import MILLISECOND, to_ms
from ..core.rows import Claim, JobRecord, JobState, NewJob
from ..core.tasks import DeclaredSchedule
from ..core.triggers import fires_alike, trigger_to_text
from ..core.words import MOST
from ..errors import ConnectionLost, DeclarationError, JobNotFound, NotAccepted, OutcomeUnknown, SchemaError, StoreError
from .driver import Added, Driver, Row, Run
from .flows import Effects, Flows
from .keys import add_under_key
from .statements import jobs as job_statements
from .statements import workers as worker_statements
from .statements.jobs import batch_of, in_pieces
from .statements.steps import FORGET_STEPS
from .statements.why import why

T = TypeVar("T")

MAX_ID = 2**63 - 1
_ADD_TRIES = 5


def epoch_ms() -> int:
    """The clock: epoch milliseconds."""
    return time.time_ns() // 1_000_000


class JobEnding(NamedTuple):
    """What someone who waits for a job needs."""

    state: str
    result: str | None
    error: str | None
    failure_kind: str | None


class Attempt(NamedTuple):
    """A try that did not simply succeed. Times are epoch milliseconds."""

    claim: int
    attempt: int
    worker_id: str | None
    started_at: int | None
    finished_at: int
    outcome: str
    error: str | None


class ScheduleRow(NamedTuple):
    """A schedule as stored. Times are epoch milliseconds."""

    name: str
    task: str
    trigger: str
    args: str
    next_at: int | None
    last_at: int | None
    paused: int
    source: str


class WorkerRow(NamedTuple):
    """A worker as stored. Times are epoch milliseconds."""

    id: str
    host: str
    pid: int
    started_at: int
    beat: int
    beat_at: int
    state: str
    info: str
    running: int


class Store:
    """One app's rows. Safe from any thread, in a process with a running worker or without."""

    def __init__(
        self,
        driver: Driver,
        *,
        keep_succeeded: timedelta,
        keep_failed: timedelta,
        timezone: str = "UTC",
        clock: Callable[[], int] = epoch_ms,
    ) -> None:
        self.driver = driver
        self.clock = clock
        self.keep_succeeded = keep_succeeded
        self.keep_failed = keep_failed
        self.timezone = timezone
        """The zone of cron expressions that name none."""
        self.follow: Callable[[Effects], None] = lambda effects: None
        """Called after a commit that concerns others."""
        self.on_retry: Callable[[Run, Sequence[Row]], None] = lambda run, rows: None
        """Called with jobs that are put back into their queues, in that transaction: see :meth:`Flows.retry`."""
        self._add_job = job_statements.ADD_JOB
        self._add_jobs = job_statements.add_jobs(driver.dialect)

    # -- transactions -----------------------------------------------------------------------------------------------

    def flows(self, run: Run) -> Flows:
        """What follows from the changes of a transaction."""
        keep, keep_failed = to_duration_ms(self.keep_succeeded), to_duration_ms(self.keep_failed)
        return Flows(
            self.driver.dialect, run, clock=self.clock, keep=keep, keep_failed=keep_failed, on_retry=self.on_retry
        )

    def change(self, body: Callable[[Flows], T]) -> T:
        """Run *body* in one write transaction; afterwards pass on what others have to know."""
        value, effects = self._changed(body)
        if effects:
            self.follow(effects)
        return value

    def go_on(self) -> Effects:
        """Do a piece of what was put off: see :class:`Effects`."""
        return self._changed(lambda flows: flows.go_on())[1]

    def _changed(self, body: Callable[[Flows], T]) -> tuple[T, Effects]:
        def told(run: Run) -> tuple[T, Effects]:
            flows = self.flows(run)
            return body(flows), flows.effects

        self.driver.prepare()
        return self.driver.transaction(told)

    def look(self) -> None:
        """As ``driver.prepare``, but creates nothing: raises StoreError if the tables do not exist."""
        if self.driver.schema_version() is None:
            raise StoreError("No tables found. Check TASKER_DATABASE_URI, or create them: flask tasks db init")
        self.driver.prepare()

    # -- enqueueing -------------------------------------------------------------------------------------------------

    def add(self, jobs: Sequence[NewJob]) -> list[JobRecord]:
        """Store jobs, all or none, and return their rows; for a taken uid or unique key the row that has it.

        Raises NotAccepted when the database did not store them.
        """
        return self._accept(jobs, self._add)

    def add_all(self, jobs: Sequence[NewJob]) -> list[JobRecord]:
        """As :meth:`add`, for jobs that may be of different tasks."""
        return self._accept(jobs, self._add_together)

    def _accept(self, jobs: Sequence[NewJob], add: Callable[[Sequence[NewJob]], list[JobRecord]]) -> list[JobRecord]:
        try:
            self.driver.prepare()
            try:
                return add(jobs)
            except ConnectionLost as error:
                lost = error
            try:
                # The same uids on a new connection: what the first try may have stored is found, not doubled.
                return add(jobs)
            except StoreError as error:
                raise OutcomeUnknown(
                    "The connection broke while the job was being stored, so it may or may not be accepted. "
                    f"{lost} Look it up by its uid, or enqueue again with using(uid=error.uid), which never doubles "
                    "it.",
                    uids=tuple(job.uid for job in jobs),
                ) from error
        except (SchemaError, OutcomeUnknown):
            raise
        except StoreError as error:
            raise NotAccepted(f"The job was not accepted. {error}") from error

    def _add(self, jobs: Sequence[NewJob]) -> list[JobRecord]:
        if len(jobs) == 1 and jobs[0].is_alone:
            return [self._add_one(jobs[0], self.driver.write, self.driver.read, [])]
        if len(jobs) > 1 and all(job.unique_key is None and job.key is None for job in jobs):
            return self._add_batch(jobs)
        return self._add_together(jobs)

    def _add_batch(self, jobs: Sequence[NewJob]) -> list[JobRecord]:
        effects, changed = Effects(), list[JobRecord]()

        def also(run: Run) -> Added:
            flows = self.flows(run)
            flows.reserve(jobs)

            def added(stored: Sequence[tuple[int, NewJob]]) -> None:
                nonlocal effects, changed
                flows.added(jobs, stored)
                effects = flows.effects
                changed = flows.records([job_id for job_id, job in stored if job.after]) if effects else []

            return added

        ids = self.driver.add_batch(jobs, also if any(job.marks for job in jobs) else None)
        if effects:
            self.follow(effects)
        now = {record.id: record for record in changed}
        records = [record_of(job, job_id) for job, job_id in zip(jobs, ids, strict=True)]
        return [now.get(record.id, record) for record in records]

    def _add_together(self, jobs: Sequence[NewJob]) -> list[JobRecord]:
        return self.change(lambda flows: self.add_within(flows, jobs))

    def add_within(self, flows: Flows, jobs: Sequence[NewJob]) -> list[JobRecord]:
        """Store jobs inside a transaction of the caller's: in one statement, unless one is there."""
        run = flows.run
        flows.reserve(jobs)
        ids: dict[str, int] = {}
        new: list[tuple[int, NewJob]] = []
        plain = [job for job in jobs if job.key is None]
        if len(plain) > 1:
            for piece in in_pieces(plain, lambda job: len(job.args)):
                batch = batch_of([job.row for job in piece])
                ids.update((uid, job_id) for job_id, uid in run(self._add_jobs, {"batch": batch}))
            new = list({ids[job.uid]: job for job in reversed(plain) if job.uid in ids}.items())
        # In one order, against deadlocks: their keys stay locked until the commit.
        keyed = sorted((job.key.name, i) for i, job in enumerate(jobs) if job.key is not None)
        found = {i: self._add_keyed(jobs[i], flows, new) for _, i in keyed}
        # A uid that is there twice belongs to the first of the two.
        records = [
            found[i]
            if i in found
            else record_of(job, ids.pop(job.uid))
            if job.uid in ids
            else self._add_one(job, run, run, new)
            for i, job in enumerate(jobs)
        ]
        flows.added(jobs, new)
        if not flows.effects:
            return records
        # Some wait for jobs that have ended, so they do not wait, or were cancelled.
        waiting = [record.id for record, job in zip(records, jobs, strict=True) if job.after is not None]
        now = {record.id: record for record in flows.records(waiting)} if waiting else {}
        return [now.get(record.id, record) for record in records]

    def _add_keyed(self, job: NewJob, flows: Flows, new: list[tuple[int, NewJob]]) -> JobRecord:
        assert job.key is not None
        run = flows.run
        if job.key.named:
            for row in run(job_statements.EXISTING_JOB, {"uid": job.uid, "unique_key": None}):
                return _checked(JobRecord._make(row), job)
        return add_under_key(
            self.driver.dialect, run, job._replace(key=None), job.key, lambda one: self._add_one(one, run, run, new)
        )

    def finish_within(self, flows: Flows, claim: Claim, result: str | None, keep: timedelta | None) -> bool:
        """Record a success inside a transaction of the caller's; False if the claim was lost."""
        now = self.clock()
        expires_at = now + to_duration_ms(self.keep_succeeded if keep is None else keep)
        values = {"id": claim.id, "claim": claim.claim, "result": result, "now": now, "expires_at": expires_at}
        rows = flows.run(job_statements.FINISH_ONE, values)
        flows.changed(rows)
        return bool(rows)

    def _add_one(self, job: NewJob, write: Run, read: Run, new: list[tuple[int, NewJob]]) -> JobRecord:
        """Store one job, and add it to *new*; or find the one that stands for it."""
        for _ in range(_ADD_TRIES):
            rows = write(self._add_job, {**job._asdict(), "state": job.state})
            if rows:
                new.append((rows[0][0], job))
                return record_of(job, rows[0][0])
            # The row in the way may finish, and leave the way free, before we look at it: then try again.
            found = read(job_statements.EXISTING_JOB, {"uid": job.uid, "unique_key": job.unique_key})
            if found:
                return _checked(JobRecord._make(found[0]), job)
        raise NotAccepted(f"The unique key {job.unique_key!r} changed hands {_ADD_TRIES} times. Enqueue the job again.")

    # -- looking ----------------------------------------------------------------------------------------------------

    def record(self, job_id: int) -> JobRecord:
        """One job. Raises JobNotFound."""
        return JobRecord._make(self._one(job_statements.JOB_RECORD, job_id))

    def records(self, uids: Sequence[str]) -> list[JobRecord]:
        """The jobs with these uids, as far as there are any, in any order."""
        rows = self._read(job_statements.job_records(self.driver.dialect), uids=json.dumps(uids))
        return [JobRecord._make(row) for row in rows]

    def ending(self, job_id: int) -> JobEnding:
        """The state and payloads of one job. Raises JobNotFound."""
        return JobEnding._make(self._one(job_statements.JOB_ENDING, job_id))

    def args(self, job_id: int) -> str:
        """The encoded arguments of one job. Raises JobNotFound."""
        args: str = self._one(job_statements.JOB_ARGS, job_id)[0]
        return args

    def _one(self, sql: str, job_id: int) -> tuple[Any, ...]:
        _check_id(job_id)
        rows = self._read(sql, id=job_id)
        if not rows:
            raise JobNotFound._of(job_id)
        return rows[0]

    def attempts(self, job_id: int) -> list[Attempt]:
        """The last 100 tries of one job that did not simply succeed, oldest first."""
        return [Attempt._make(row) for row in reversed(self._read(job_statements.ATTEMPTS, id=job_id))]

    def why(self, job_id: int) -> dict[str, list[list[Any]]]:
        """What bears on the waiting of one job: the rows of each part of one statement. Raises JobNotFound."""
        _check_id(job_id)
        rows = self._read(why(self.driver.dialect), id=job_id, most=MOST)
        parts: dict[str, list[list[Any]]] = {name: json.loads(text or "[]") for name, text in rows}
        if not parts["job"]:
            raise JobNotFound._of(job_id)
        return parts

    def workers(self) -> list[WorkerRow]:
        """Every worker that the store knows, the dead of the last hour included."""
        return [WorkerRow(*row) for row in self._read(worker_statements.WORKERS)]

    def schedules(self) -> list[ScheduleRow]:
        """Every schedule."""
        return [ScheduleRow(*row) for row in self._read(job_statements.SCHEDULES)]

    def lane_now(self) -> int:
        """Now, as lanes have it: on PostgreSQL by the server's clock."""
        if self.driver.dialect.name == "sqlite" or self.clock is not epoch_ms:
            return self.clock()
        return int(self._read(job_statements.SERVER_CLOCK)[0][0])

    def store_id(self, *, patience: float | None = None) -> str:
        """The random name that this database was given when its tables were made.

        *patience*: seconds to wait for SQLite's lock if they have to be made now, instead of ``TASKER_LOCK_TIMEOUT``.
        """
        self.driver.prepare(patience=patience)
        name: str = self._read(job_statements.STORE_ID)[0][0]
        return name

    def _read(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        self.driver.prepare()
        return self.driver.read(sql, parameters)

    # -- steering ---------------------------------------------------------------------------------------------------

    def cancel(self, job_id: int) -> JobState | None:
        """Cancel a waiting job (CANCELLED), ask a running one to stop (RUNNING); None if it had finished.

        Raises JobNotFound.
        """

        def cancel(flows: Flows) -> JobState | None:
            _check_id(job_id)
            expires_at = flows.now + to_duration_ms(self.keep_succeeded)
            rows = flows.run(job_statements.CANCEL, {"id": job_id, "now": flows.now, "expires_at": expires_at})
            if not rows:
                self.record(job_id)
                return None
            flows.changed([(job_id, *rows[0])])
            return JobState(rows[0][0])

        return self.change(cancel)

    def retry(self, job_id: int, *, following: bool = False, fresh: bool = False) -> bool:
        """Put a failed or cancelled job back into its queue; with *following* also those that were cancelled by that.

        *fresh*: its steps are forgotten. Raises JobNotFound, or NotAccepted while another unfinished job has its unique
        key.
        """
        return self.change(lambda flows: self.retry_within(flows, job_id, following=following, fresh=fresh))

    def retry_within(self, flows: Flows, job_id: int, *, following: bool = False, fresh: bool = False) -> bool:
        """As :meth:`retry`, inside a transaction of the caller's."""
        _check_id(job_id)
        if not flows.retry([job_id]):
            self._refuse_taken_key(self.record(job_id))
            return False
        if fresh:
            flows.run(FORGET_STEPS, {"id": job_id})
        tail = [job_id] if following else []
        while tail := flows.cancelled_with(tail) if tail else []:
            flows.retry(tail)
        return True

    def _refuse_taken_key(self, job: JobRecord) -> None:
        if job.unique_key is None or job.state not in (JobState.FAILED, JobState.CANCELLED):
            return
        for row in self._read(job_statements.EXISTING_JOB, uid=None, unique_key=job.unique_key):
            raise NotAccepted(
                f"Job {job.id} cannot run again: job {JobRecord._make(row).id} has the same unique key and is "
                "unfinished. Wait for its end, or cancel it."
            )

    def put_schedule(self, schedule: DeclaredSchedule, next_at: int | None, source: str = "runtime") -> None:
        """Store a schedule. Raises DeclarationError for one made at run time whose name belongs to one in code."""
        row = schedule_row(schedule, next_at, source, self.clock())
        self.driver.prepare()
        if not self.driver.transaction(lambda run: declare_schedule(run, row)):
            raise DeclarationError(
                f"The schedule name {schedule.name!r} belongs to a schedule that code declares with schedule=…. "
                "Take another name."
            )

    def _write(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        self.driver.prepare()
        return self.driver.write(sql, parameters)


def _check_id(job_id: int) -> None:
    """No database holds a greater number; it would raise an error of its own."""
    if not 0 < job_id <= MAX_ID:
        raise JobNotFound._of(job_id)


def record_of(job: NewJob, job_id: int) -> JobRecord:
    """The row that *job* has just become."""
    return JobRecord(
        job_id,
        job.uid,
        job.task,
        job.queue,
        job.kind,
        job.priority,
        job.state,
        job.run_at,
        job.max_attempts,
        job.timeout,
        schedule=job.schedule,
        fire_at=job.fire_at,
        at_most_once=job.at_most_once,
        unique_key=job.unique_key,
        created_at=job.created_at,
        marks=job.marks,
    )


def _checked(found: JobRecord, wanted: NewJob) -> JobRecord:
    """The row in the way, if it may stand for the job that was to be stored."""
    if found.task != wanted.task:
        raise NotAccepted(
            f"The uid {wanted.uid!r} belongs to job {found.id} of the task {found.task!r}. Give each job its own uid."
        )
    return found


def declare_schedule(run: Run, row: dict[str, Any]) -> bool:
    """Store a schedule, or change it; False if the name belongs to one of another source.

    Only other fire times move the next one: what a restart with another jitter, or another spelling, had to make up
    for would be lost.
    """
    known = run(job_statements.STORED_TRIGGER, {"name": row["name"]})
    same = any(fires_alike(text, row["trigger"]) for (text,) in known)
    return bool(run(job_statements.DECLARE_SCHEDULE, {**row, "same_times": int(same)}))


def schedule_row(schedule: DeclaredSchedule, next_at: int | None, source: str, now: int) -> dict[str, Any]:
    """The parameters of ``declare_schedule``."""
    return {
        "name": schedule.name,
        "task": schedule.task,
        "trigger": trigger_to_text(schedule.trigger),
        "args": schedule.args,
        "next_at": next_at,
        "source": source,
        "now": now,
    }


def next_fire_ms(schedule: DeclaredSchedule, now: Any) -> int | None:
    """The first fire time after *now* in epoch milliseconds, or None."""
    moment = schedule.trigger.next_after(now)
    return None if moment is None else to_ms(moment)


def to_duration_ms(period: timedelta) -> int:
    """A period in whole milliseconds, rounded up: never early."""
    return -(-period // MILLISECOND)
