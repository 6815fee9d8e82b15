"""What the store keeps of a job, and how an execution ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from ..errors import NotDecodable
from .unique import Key

Kind = Literal["sync", "async"]

LIMITED = 1
"""A mark: the job belongs to a limit, and asks for room when it is due."""
MEMBER = 2
"""A mark: the job belongs to a batch, which counts how it ends."""
PARENT = 4
"""A mark: other jobs wait, or have waited, for this one."""
WAITS = 8
"""A mark: the job waits for others; on a job that has ended: it was cancelled while it did."""
NOTICE = 16
"""A mark: the job waits for a notice, or is about to."""
CALLS = 32
"""A mark: another job is stored when it succeeds, or when it fails."""
KEEPS = 64
"""A mark: the limit is ``hold=True``, so the job keeps its room between its tries."""
CHILD = 256
"""A mark: the job waits, or has waited, for others."""
HOLDS = 128
"""A mark: the job waits for its next try and has kept its room."""

MAX_SHOWN = 200
"""Characters of a name in a log record."""


class JobState(StrEnum):
    """Where a job is on its way."""

    PENDING = "pending"
    """Enqueued with ``session=``, and that session has not committed yet. Never a state of a stored job."""
    SCHEDULED = "scheduled"
    """Not due yet: delayed, or waiting for its next try."""
    HELD = "held"
    """Due, and its limit has no room for it yet."""
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


def read_stored(text: str, what: str) -> Any:
    """What a row says as JSON. Raises NotDecodable, which names *what* it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotDecodable(f"The stored {what} cannot be read: {error}") from error


FAR_MS = 253_370_764_800_000
"""The year 9999 in epoch milliseconds: a later moment leaves the calendar. A job that waits for others is due then."""


class Member(NamedTuple):
    """To which batch a new job belongs."""

    batch: int
    by: int
    """The job that adds it, which may be a member, or 0."""


class After(NamedTuple):
    """What a new job waits for."""

    parents: tuple[int, ...]
    """The numbers of jobs, and those of batches below zero."""
    when: str
    """How they must have ended: "succeeded", "ended" or "failed"."""
    run_at: int
    """When the job is due of itself, or 0."""


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
    marks: int = 0
    key: Key | None = None
    """Under which key another job may stand for it. Not in the row of the job: see store/keys.py."""
    lane: str | None = None
    """Where a limited job stands in line. Not in the row of the job: see store/admission.py."""
    member: Member | None = None
    after: After | None = None
    """Not in the row of the job: see store/flows.py."""

    @property
    def row(self) -> tuple[object, ...]:
        """What goes into the row of the job."""
        return (*self[:_STORED], self.state)

    @property
    def is_alone(self) -> bool:
        """Whether its row is all that there is to store."""
        return self[_STORED:] == (None, None, None, None)

    @property
    def state(self) -> str:
        """The state in which the row begins."""
        if self.run_at > self.created_at:
            return "scheduled"
        return "held" if self.marks & LIMITED else "ready"


_STORED = NewJob._fields.index("key")
NEW_COLUMNS = NewJob._fields[:_STORED]


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
    marks: int = 0
    """What a transition of this job must see to, besides its row: 0 for most jobs."""


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
    marks: int = 0

    @property
    def attempt(self) -> int:
        """The number of this try, from 1. A crash or a hand-back counts none."""
        return self.failures + 1

    def missed_by(self, now: int) -> int | None:
        """How long after it was due the job was to begin, in milliseconds, where it has not and that is over."""
        # Most have none, which is seen without reading all of it. What has begun once goes on, however late.
        if self.claim > 1 or self.origin is None or EXPIRES not in self.origin:
            return None
        longest: int | None = read_origin(self.origin).get(EXPIRES)
        return longest if longest is not None and now - max(self.run_at, self.created_at) > longest else None

    def __str__(self) -> str:
        return f"job {self.id} ({shown(self.task)})"


class OutcomeKind(StrEnum):
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
        return int(self in (OutcomeKind.FAILED, OutcomeKind.RETRYING))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one execution ended. Made in one place, by the executor."""

    ending: OutcomeKind
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
    until: int | None = None
    """Snoozed: when it goes on, in epoch milliseconds, where that must be exact."""
    closes: bool = False
    """Snoozed: nothing else of its lane starts before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as it is stored: texts only, already shortened."""

    kind: str
    type: str
    message: str
    traceback: str = ""

    def _to_text(self) -> str:
        """The stored form."""
        return json.dumps({"type": self.type, "message": self.message, "traceback": self.traceback})

    @classmethod
    def _from_text(cls, text: str | None, kind: str | None) -> Failure:
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

SUCCEEDED = Outcome(OutcomeKind.SUCCEEDED)
"""The commonest outcome of all: a job that returned None."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come."""

    done: float
    total: float | None = None
    text: str = ""

    @property
    def percent(self) -> float | None:
        """From 0 to 100, where the total is known."""
        return round(max(0.0, min(100.0, 100 * self.done / self.total)), 1) if self.total else None

    def _to_text(self) -> str:
        """The stored form."""
        return json.dumps([self.done, self.total, self.text])

    @classmethod
    def _from_text(cls, text: str | None) -> Progress | None:
        """Read the stored form; None where there is none that can be read."""
        try:
            done, total, words, *_ = json.loads(text or "")
        except (ValueError, TypeError, RecursionError):
            return None
        numbers = isinstance(done, int | float) and isinstance(total, int | float | None)
        return cls(done, total, str(words)) if numbers else None


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """What a job has said so far while it runs."""

    progress: Progress | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_text(self) -> str:
        """The stored form: that of the progress, with the values behind it."""
        if not self.meta:
            return "null" if self.progress is None else self.progress._to_text()
        done = (None, None, "") if self.progress is None else astuple(self.progress)
        return json.dumps([*done, self.meta])


def read_meta(text: str | None) -> dict[str, Any]:
    """The values in the stored form of a :class:`ProgressReport`."""
    try:
        _, _, _, meta = json.loads(text or "")
    except (ValueError, TypeError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}


EXPIRES = "expires_ms"
"""The key in a job's origin: how long after it was due it may begin."""
THEN = "then"
"""The key in a job's origin: the jobs that are stored when it ends, by event."""


def read_origin(text: str | None) -> dict[str, Any]:
    """A stored origin; empty where there is none, or a damaged one."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
