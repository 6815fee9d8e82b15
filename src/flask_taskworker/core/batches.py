"""Batches: jobs that belong together, whose end is counted.

Pure: what a :class:`Batch` does goes through the :class:`BatchClient` that made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from .habits import BATCH_METHODS, no_attribute
from .jobs import Job, Shown, moment
from .rows import JobState, shown

When = Literal["succeeded", "ended", "failed"]
BatchState = Literal["open", "running", "succeeded", "failed", "cancelled"]
Event = Literal["failure", "success", "end"]

_CODES = {"succeeded": 1, "failed": 2, "cancelled": 3}


class BatchCounts(NamedTuple):
    """How many jobs a batch has, and how many of them have ended how."""

    total: int
    succeeded: int
    failed: int
    cancelled: int

    @property
    def left(self) -> int:
        """How many have not ended."""
        return self.total - self.succeeded - self.failed - self.cancelled


class BatchRow(NamedTuple):
    """A batch as stored. Times are epoch milliseconds."""

    id: int
    name: str
    sealed: int
    stop: int
    stop_on_failure: int
    total: int
    ok: int
    failed: int
    cancelled: int
    round: int
    alarmed: int
    calls: str
    created_at: int
    ended_at: int | None
    expires_at: int | None

    @property
    def counts(self) -> BatchCounts:
        """Its jobs in numbers."""
        return BatchCounts(self.total, self.ok, self.failed, self.cancelled)

    @property
    def state(self) -> BatchState:
        """Where it is on its way: "open" until it is sealed, "running" until its last job has ended."""
        if self.ended_at is None:
            return "running" if self.sealed else "open"
        return "failed" if self.failed else "cancelled" if self.cancelled else "succeeded"

    def counting(self, states: dict[int, int], now: int, keep: int) -> tuple[BatchRow, list[Event]]:
        """This batch after further endings, how many of each code, and what has happened by that."""
        events: list[Event] = []
        row = self._replace(
            ok=self.ok + states.get(1, 0),
            failed=self.failed + states.get(2, 0),
            cancelled=self.cancelled + states.get(3, 0),
        )
        if states.get(2) and self.alarmed < self.round:
            row = row._replace(alarmed=self.round, stop=self.stop | self.stop_on_failure)
            events.append("failure")
        if row.sealed and row.ended_at is None and not row.counts.left:
            row = row._replace(ended_at=now, expires_at=now + keep, stop=0)
            events += ["success", "end"] if not (row.failed or row.cancelled) else ["end"]
        return row, events

    def reopened(self, states: dict[int, int]) -> BatchRow:
        """This batch when jobs that had ended, how many of each code, run again: in a new round if it had ended."""
        return self._replace(
            ok=self.ok - states.get(1, 0),
            failed=self.failed - states.get(2, 0),
            cancelled=self.cancelled - states.get(3, 0),
            round=self.round + (self.ended_at is not None),
            stop=0,
            ended_at=None,
            expires_at=None,
        )


def code_of(state: str) -> int:
    """How a job that has ended in this state is counted; 0 for one that has not ended."""
    return _CODES.get(state, 0)


class BatchClient(Protocol):
    """What a batch needs to act: one app's store and wake-up."""

    def batch_row(self, batch_id: int) -> BatchRow:
        """The batch as stored. Raises BatchNotFound."""

    def batch_jobs(self, batch_id: int, state: JobState | None) -> Iterator[Job[Any]]:
        """Its jobs, oldest first."""

    def wait_for_batch(self, batch_id: int, timeout: float | None) -> BatchRow:
        """Wait for its end. Raises JobTimeout or BatchNotFound."""

    async def await_batch(self, batch_id: int, timeout: float | None) -> BatchRow:
        """As :meth:`wait_for_batch`, without blocking the event loop."""

    def seal_batch(self, batch_id: int) -> bool:
        """Let only its own jobs add others; False if it was sealed. Raises BatchNotFound."""

    def cancel_batch(self, batch_id: int) -> bool:
        """Seal it and cancel its jobs; False if it had ended. Raises BatchNotFound."""

    def retry_batch(self, batch_id: int) -> int:
        """Put its failed jobs back into their queues; how many. Raises BatchNotFound."""


class Batch:
    """Jobs that belong together. Safe from any thread. Its figures are read when they are asked for."""

    __slots__ = ("_client", "_id", "_name", "_session")

    def __init__(self, batch_id: int, name: str, client: BatchClient, session: Any = None) -> None:
        self._id = batch_id
        self._name = name
        self._client = client
        self._session: Any = session
        """The session in which the batch is made, while it is."""

    def __repr__(self) -> str:
        return f"<Batch {self.id} {shown(self.name)}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute("A batch", name, BATCH_METHODS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and (other._id, other._client) == (self._id, self._client)

    def __hash__(self) -> int:
        return hash(self._id)

    id: Shown[int] = Shown(lambda batch: batch._id)
    """The store's number of the batch; never used again for another."""
    name: Shown[str] = Shown(lambda batch: batch._name)
    """What it was called when it was made."""
    state: Shown[BatchState] = Shown(lambda batch: batch._row().state)
    """"open", "running", "succeeded", "failed" (a job of it has) or "cancelled"."""
    counts: Shown[BatchCounts] = Shown(lambda batch: batch._row().counts)
    """Its jobs in numbers."""
    round: Shown[int] = Shown(lambda batch: batch._row().round)
    """1, and one more each time that a job which had failed runs again after the end."""
    ended_at: Shown[datetime | None] = Shown(lambda batch: moment(batch._row().ended_at))
    """When it ended (UTC), or None."""

    @property
    def progress(self) -> float:
        """The part of its jobs that have ended, from 0 to 1."""
        counts = self.counts
        return (counts.total - counts.left) / counts.total if counts.total else float(self.ended_at is not None)

    def jobs(self, state: JobState | str | None = None) -> Iterator[Job[Any]]:
        """Its jobs in that state, or all that were not pruned, oldest first."""
        return self._client.batch_jobs(self._id, None if state is None else JobState(state))

    def wait(self, timeout: float | None = None) -> BatchCounts:
        """Wait for the end of the batch, and of what it was retried for. ``timeout`` is in seconds.

        Raises JobTimeout (a TimeoutError) or BatchNotFound.
        """
        return self._client.wait_for_batch(self._id, timeout).counts

    async def await_(self, timeout: float | None = None) -> BatchCounts:
        """As :meth:`wait`, for coroutines on any event loop."""
        return (await self._client.await_batch(self._id, timeout)).counts

    def seal(self) -> bool:
        """Add no more jobs, but from its own; False if it was sealed. The end of the ``with`` block does it."""
        return self._client.seal_batch(self._id)

    def cancel(self) -> bool:
        """Seal the batch and cancel its jobs, as ``job.cancel()`` does; False if it had ended."""
        return self._client.cancel_batch(self._id)

    def retry(self) -> int:
        """Put the failed jobs back into their queues; with ``stop_on_failure`` the cancelled ones, too. How many.

        The batch has not ended then, and its callbacks are called again when it does.
        """
        return self._client.retry_batch(self._id)

    def _row(self) -> BatchRow:
        return self._client.batch_row(self._id)
