"""The rows of pages and commands, as they come from ``browse.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..core.filters import STATES
from ..core.rows import JobRecord
from ..store.driver import Row
from ..store.rollups import Percentile, percentile
from ..store.schema import BUCKETS_MS, ROLLUP_FIGURES
from ..store.sql import Attempt


class JobRow(NamedTuple):
    """One job in a list. Times are epoch milliseconds; arguments and error are cut."""

    record: JobRecord
    discarded: int
    failure_group: str | None
    args: str
    error: str | None


@dataclass(frozen=True, slots=True)
class CallCount:
    """For how many calls a job stands, and when the first and the last of them came (epoch milliseconds)."""

    calls: int
    first_at: int
    last_at: int


class JobWhole(NamedTuple):
    """One job with all that is stored of it. Times are epoch milliseconds, payloads as stored."""

    record: JobRecord
    discarded: int
    failure_group: str | None
    args: str
    error: str | None
    result: str | None
    origin: str | None
    attempts: list[Attempt]
    lines: dict[int, list[LogLine]]
    """What each try has logged, by its claim."""
    calls: CallCount | None
    """For how many calls it stands, if it has a key: see ``store/keys.py``."""
    lane: str | None
    """The lane of its limit, if it has one."""
    has_steps: bool = False


class StepRow(NamedTuple):
    """A step of a job, or one of its cursors. Times are epoch milliseconds."""

    name: str
    claim: int
    began_at: int
    ended_at: int | None
    kind: str
    """``step``, ``sleep`` or ``wait``."""
    due_at: int | None
    """When a sleep ends, or a wait at the latest, if it ends by itself."""
    result: str | None
    """As stored, and cut."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a try has logged."""

    at: int
    level: str
    logger: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobList:
    """One page of a list, newest first."""

    rows: list[JobRow]
    older: int | None
    """``before`` of the next page; None where there is none.

    Of more than FEW ready or scheduled jobs a list shows those that are next; :meth:`Browser.ids` has them all.
    """
    searched_out: bool
    """Whether the page ended because WINDOW rows were looked at, rather than because it was full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCounts:
    """How many jobs each state has, each counted up to ``sql.MOST``; discarded ones are left out."""

    scheduled: int
    retrying: int
    waiting: int
    """Both of the scheduled."""
    held: int
    ready: int
    running: int
    succeeded: int | None
    """None where it cannot be told cheaply: the failed and cancelled ones alone fill the count."""
    failed: int
    cancelled: int
    at_least: frozenset[str]
    """The states that may have more jobs than were counted."""

    def words(self, state: str) -> str:
        """How many jobs have that state: "1,234", "10,000+", or nothing where that is unknown."""
        number = getattr(self, state)
        return "" if number is None else f"{number:,}{'+' if state in self.at_least else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue. Times are epoch milliseconds."""

    name: str
    ready: int
    """Counted up to ``sql.MOST``."""
    running: int
    oldest_at: int | None
    paused: bool
    paused_at: int | None
    paused_by: str | None
    paused_until: int | None
    figures: Figures | None
    """Those of the last hour."""


class ScheduleRun(NamedTuple):
    """One job of a schedule."""

    schedule: str
    id: int
    state: str
    fire_at: int
    started_at: int | None
    finished_at: int | None


class LimitRow(NamedTuple):
    """A stored limit: see ``browse.limits``. Times are epoch milliseconds, but for ``tat`` (microseconds)."""

    name: str
    running: int | None
    amount: int | None
    per_us: int | None
    burst: int | None
    source: str
    set_by: str | None
    set_at: int
    closings: int
    admitted: int
    waiting: int
    aside: int
    closed: int
    opens_at: int | None
    tat: int
    closed_until: int


class LaneRow(NamedTuple):
    """A lane with a line: see ``browse.lanes``. Times as in LimitRow."""

    lane: str
    waiting: int
    admitted: int
    not_begun: int
    first_admitted: int | None
    """The oldest of the jobs that it has admitted."""
    tat: int
    closed_until: int


class MailRow(NamedTuple):
    """One queued mail in a list. Times are epoch milliseconds."""

    id: str
    message_id: str
    sender: str
    once: int
    phase: str | None
    tries: int
    size: int
    created_at: int
    give_up_at: int
    finished_at: int | None
    head: bytes
    """The beginning of its bytes, with most of its header."""
    job_id: int | None
    state: str | None
    failure_kind: str | None
    run_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MailList:
    """One page of a list of queued mails, newest first."""

    rows: list[MailRow]
    older: str | None
    """``before`` of the next page; None where there is none."""
    searched_out: bool
    """Whether the page ended because WINDOW mails were looked at, rather than because it was full."""


@dataclass(frozen=True, slots=True)
class RecipientRow:
    """Where one recipient of a queued mail stands."""

    address: str
    ending: str
    code: int | None
    text: str | None
    next_try_at: int | None


class AuditRow(NamedTuple):
    """One thing that a person did."""

    id: int
    at: int
    who: str
    action: str
    target: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What ended in a slice of time, and how long it took."""

    start: int
    """Epoch milliseconds."""
    key: str
    """The task or the queue, where the figures are of one."""
    succeeded: int
    failed: int
    retried: int
    cancelled: int
    run_ms: int
    longest_ms: int
    wait_ms: int
    run: tuple[int, ...]
    """Tries by duration: counts by BUCKETS_MS."""
    wait: tuple[int, ...]
    """Tries by the time they waited: counts by BUCKETS_MS."""

    @property
    def ended(self) -> int:
        """Jobs that ended for good."""
        return self.succeeded + self.failed + self.cancelled

    def run_percentile(self, share: float) -> Percentile | None:
        """About how long *share* of the tries ran at most."""
        found = percentile(self.run, share)
        if found is None or found.ms < self.longest_ms:
            return found
        return Percentile(float(self.longest_ms))

    def wait_percentile(self, share: float) -> Percentile | None:
        """About how long *share* of the tries waited at most."""
        return percentile(self.wait, share)


_SINGLE = ROLLUP_FIGURES.index("run_0")


def add_up(parts: Sequence[Figures]) -> Figures | None:
    """The figures of all these together; None of none."""
    if not parts:
        return None
    run, wait = (
        tuple(sum(column) for column in zip(*buckets, strict=True))
        for buckets in ([part.run for part in parts], [part.wait for part in parts])
    )
    sums = {name: sum(getattr(part, name) for part in parts) for name in ROLLUP_FIGURES[:_SINGLE]}
    sums["longest_ms"] = max(part.longest_ms for part in parts)
    return Figures(start=parts[0].start, key=parts[0].key, run=run, wait=wait, **sums)


def counts_of(found: Mapping[str, int], most: int) -> StateCounts:
    """What the rows of ``count_states`` mean; each counts up to *most*."""
    others = [found[name] for name in ("failed", "cancelled", "discarded")]
    ready = min(most, found["ready"] + found["suspect"])
    succeeded = None if max(others) >= most else min(most, max(0, found["finished"] - sum(others)))
    counts = {**found, "ready": ready, "succeeded": succeeded or 0}
    full = {state for state in STATES if counts[state] >= most}
    return StateCounts(
        **{state: found[state] for state in STATES if state not in ("ready", "succeeded")},
        ready=ready,
        succeeded=succeeded,
        # The retrying are looked for among the first *most* of the scheduled.
        at_least=frozenset(full | {"retrying"} if "scheduled" in full else full),
    )


def figures_of(row: Row) -> Figures:
    """A row of ``series``."""
    start, key, *sums = row
    buckets = len(BUCKETS_MS) + 1
    single = dict(zip(ROLLUP_FIGURES[:_SINGLE], sums[:_SINGLE], strict=True))
    run, wait = sums[_SINGLE : _SINGLE + buckets], sums[_SINGLE + buckets :]
    return Figures(start=start, key=key, run=tuple(run), wait=tuple(wait), **single)


_RECORD = len(JobRecord._fields)


def job_row(row: Row) -> JobRow:
    """A row of ``jobs``."""
    return JobRow(JobRecord(*row[:_RECORD]), *row[_RECORD:])


def job_whole(
    row: Row,
    attempts: list[Attempt],
    lines: dict[int, list[LogLine]],
    calls: CallCount | None = None,
    lane: str | None = None,
    *,
    has_steps: bool = False,
) -> JobWhole:
    """A row of ``job_whole``, and what is known of the job's tries, calls, lane and steps."""
    return JobWhole._make((JobRecord(*row[:_RECORD]), *row[_RECORD:], attempts, lines, calls, lane, has_steps))


class QueueRow(NamedTuple):
    """A queue that has ready jobs, counted up to :data:`MOST`."""

    name: str
    ready: int
    oldest_at: int
    """Since when the oldest of those is due, in epoch milliseconds."""
