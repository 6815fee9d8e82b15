"""The batches of one app, as every process sees them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.batches import Batch, BatchRow, Event, code_of
from ..core.clock import as_seconds
from ..core.current_job import waiting_for_others
from ..core.jobs import Job, JobClient
from ..core.loggers import Logger, get_logger
from ..core.rows import JobRecord, JobState, NewJob
from ..core.tasks import Bound, callback_of, check_name
from ..errors import ArgumentsError, BatchNotFound, JobTimeout, StoreError
from ..store.flows import Flows
from ..store.sql import Store
from ..store.statements import flows as statements
from .rows import calls_of, new_job
from .sessions import CallerTransaction, is_async, run_within

log: Logger = get_logger("jobs")

PAGE = 1_000
"""Jobs that are read, or put back, at a time."""
_FIRST_POLL = 0.005
_LAST_POLL = 0.25


class BatchOwner(JobClient, Protocol):
    """What batches need of the client of their app."""

    def shares_database(self, transaction: CallerTransaction) -> bool:
        """Whether the jobs lie in the database of the caller's session."""

    def origin(self) -> str | None:
        """The origin of a job that is enqueued here and now."""

    def wake(self) -> None:
        """Tell all workers that there are jobs."""


@dataclass(frozen=True)
class Batches:
    """One app's. Safe from any thread."""

    _store: Store
    _owner: BatchOwner
    _aside: Callable[..., Any]
    """Runs a call in a thread."""

    def open(self, name: str, calls: Mapping[Event, Bound[Any]], *, stop_on_failure: bool, session: Any) -> BatchBlock:
        """What makes a batch in a ``with`` block. Raises ArgumentsError where a callback is none."""
        check_name("name", name)
        now, origin = self._store.clock(), self._owner.origin()
        jobs = {event: self._callback(event, call, now, origin) for event, call in calls.items()}
        values = {
            "name": name,
            "stop_on_failure": int(stop_on_failure),
            "calls": json.dumps(calls_of(jobs)),
            "now": now,
        }
        return BatchBlock(self, values, session)

    def _callback(self, event: Event, given: object, now: int, origin: str | None) -> NewJob:
        call = callback_of(event, given)
        owner: object = call.task._client()
        if owner is not self._owner:
            raise ArgumentsError(f"The task {call.task.name} belongs to another TaskWorker.")
        return new_job(call.task, call.args, call.options, now, origin)

    def get(self, batch_id: int) -> Batch:
        """The batch of that number. Raises BatchNotFound."""
        return Batch(batch_id, self.batch_row(batch_id).name, self)

    def of_job(self, job_id: int, uid: str) -> Batch | None:
        """The batch that a job belongs to, or whose callback it is."""
        if uid.startswith("batch:"):
            return self.get(int(uid.split(":")[1]))
        for batch_id, name in self._store.driver.read(statements.BATCH_OF, {"id": job_id}):
            return Batch(batch_id, name, self)
        return None

    def parents(self, job_id: int) -> list[Job[Any]]:
        """The jobs that a job has waited for."""
        rows = self._store.driver.read(statements.PARENTS, {"id": job_id})
        return [Job(JobRecord._make(row), self._owner) for row in rows]

    # -- the block --------------------------------------------------------------------------------------------------

    def add(self, values: Mapping[str, Any], session: Any) -> Batch:
        """Store a batch, in the caller's transaction where there is a session."""
        if session is None:
            self._store.driver.prepare()
            rows = self._store.driver.write(statements.ADD_BATCH, values)
        else:
            rows = self._within(session).run(statements.ADD_BATCH, values)
        return Batch(rows[0][0], values["name"], self, session)

    def close(self, batch: Batch, *, stop: bool) -> None:
        """The end of the block: seal it, or cancel it."""
        if batch._session is None:
            (self.cancel_batch if stop else self.seal_batch)(batch.id)
            return
        transaction = self._within(batch._session)
        flows = self._store.flows(transaction.run)
        flows.seal(batch.id, stop=stop)
        transaction.after_commit(lambda: self._store.follow(flows.effects))

    def _within(self, session: Any) -> CallerTransaction:
        transaction = CallerTransaction(session)
        if not self._owner.shares_database(transaction):
            raise ArgumentsError(
                "The session of a batch must be in the database of the jobs. Make the batch after the commit, without "
                "session=…."
            )
        transaction.refuse_autocommit()
        return transaction

    async def aside(self, session: Any, call: Callable[[Any], Any]) -> Any:
        """Call it with the session, in a thread; an asynchronous session has its own way."""
        if session is None:
            return await self._aside(call, None)
        return await run_within(session, call) if is_async(session) else call(session)

    # -- what a batch asks ------------------------------------------------------------------------------------------

    def batch_row(self, batch_id: int) -> BatchRow:
        """The batch as stored. Raises BatchNotFound."""
        self._store.driver.prepare()
        for row in self._store.driver.read(statements.BATCH_ROW, {"id": batch_id}):
            return BatchRow._make(row)
        raise BatchNotFound._of(batch_id)

    def batch_jobs(self, batch_id: int, state: JobState | None) -> Iterator[Job[Any]]:
        """Its jobs, oldest first."""
        sql = statements.members(state, code_of(state) if state is not None else 0)
        after = 0
        while rows := self._store.driver.read(sql, {"id": batch_id, "after": after, "number": PAGE}):
            for row in rows:
                yield Job(JobRecord._make(row), self._owner)
            after = rows[-1][0]

    def wait_for_batch(self, batch_id: int, timeout: float | None) -> BatchRow:
        """Wait for its end. Raises JobTimeout or BatchNotFound."""
        pauses = _pauses(batch_id, timeout)
        with waiting_for_others():
            while (row := self.batch_row(batch_id)).ended_at is None:
                time.sleep(next(pauses))
        return row

    async def await_batch(self, batch_id: int, timeout: float | None) -> BatchRow:
        """As :meth:`wait_for_batch`, without blocking the event loop."""
        pauses = _pauses(batch_id, timeout)
        with waiting_for_others():
            while (row := await self._aside(self.batch_row, batch_id)).ended_at is None:  # noqa: ASYNC110
                await asyncio.sleep(next(pauses))
        found: BatchRow = row
        return found

    def seal_batch(self, batch_id: int) -> bool:
        """Let only its own jobs add others; False if it was sealed. Raises BatchNotFound."""
        return self._sealed(batch_id, stop=False)

    def cancel_batch(self, batch_id: int) -> bool:
        """Seal it and cancel its jobs; False if it had ended. Raises BatchNotFound."""
        return self._sealed(batch_id, stop=True)

    def _sealed(self, batch_id: int, *, stop: bool) -> bool:
        done = self._store.change(lambda flows: flows.seal(batch_id, stop=stop))
        if done is None:
            raise BatchNotFound._of(batch_id)
        return done

    def retry_batch(self, batch_id: int) -> int:
        """Put its failed jobs back into their queues; how many. Raises BatchNotFound."""
        row = self.batch_row(batch_id)
        states = (JobState.FAILED, JobState.CANCELLED) if row.stop_on_failure else (JobState.FAILED,)
        number = self._store.change(lambda flows: retry_members(flows, batch_id, states))
        self._owner.wake()
        return number


def retry_members(flows: Flows, batch_id: int, states: tuple[JobState, ...]) -> int:
    """Put the jobs of a batch that ended in these states back into their queues; how many."""
    # All in one transaction: between two of them the batch could end, and begin another round.
    ids = [row[0] for state in states for row in _members(flows, batch_id, state)]
    return len(flows.retry(sorted(ids)))


def _members(flows: Flows, batch_id: int, state: JobState) -> Iterator[tuple[Any, ...]]:
    sql, after = statements.members(state, code_of(state)), 0
    while rows := flows.run(sql, {"id": batch_id, "after": after, "number": PAGE}):
        yield from rows
        after = rows[-1][0]


def _pauses(batch_id: int, timeout: float | None) -> Iterator[float]:
    seconds, pause = as_seconds(timeout), _FIRST_POLL
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or (left := deadline - time.monotonic()) > 0:
        yield pause if deadline is None else min(pause, left)
        pause = min(pause * 2, _LAST_POLL)
    raise JobTimeout(f"Batch {batch_id} did not end within the timeout. It goes on; ask again later.")


class BatchBlock:
    """A batch that is made when the ``with`` block begins and sealed when it ends, or cancelled by an exception."""

    def __init__(self, batches: Batches, values: Mapping[str, Any], session: Any) -> None:
        self._batches = batches
        self._values = values
        self._session = session
        self._batch: Batch | None = None

    def __enter__(self) -> Batch:
        self._batch = self._batches.add(self._values, self._session)
        return self._batch

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        assert self._batch is not None
        batch, self._batch = self._batch, None
        try:
            self._batches.close(batch, stop=error is not None)
        except Exception as problem:
            if error is None:
                raise
            # It is the exception of the block that counts; a transaction that has failed takes the batch back.
            level = log.warning if isinstance(problem, StoreError) else log.debug
            level("batch %s, whose block has raised an exception, could not be cancelled: %s", batch.id, problem)
        finally:
            batch._session = None

    async def __aenter__(self) -> Batch:
        self._batch = await self._batches.aside(self._session, lambda session: self._batches.add(self._values, session))
        self._batch._session = self._session
        return self._batch

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        def leave(session: Any) -> None:
            assert self._batch is not None
            self._batch._session = session
            self.__exit__(kind, error, traceback)

        await self._batches.aside(self._session, leave)
