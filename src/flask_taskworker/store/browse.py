"""The rows as people look at them: lists, groups and figures, each in a bounded time however many rows there are.

Nothing here counts a table. A list looks at no more than :data:`WINDOW` rows of an index and says where it stopped;
a count stops at :data:`MOST`; what ended, and how long it took, is read from the roll-ups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..errors import JobNotFound
from ..failures import place_in
from ..filters import EVERYTHING, JobFilter
from ..jobs import JobRecord
from ..rollups import percentile
from . import browse_statements as statements
from .driver import Row
from .schema import BUCKETS_MS, ROLLUP_FIGURES
from .sql import MAX_ID, MOST, Attempt, ScheduleRow, Store, WorkerRow
from .statements import batch_of

WINDOW = 20_000
"""Rows that one page of a list looks at."""
FEW = 5_000
"""Ready or scheduled jobs, or those of one schedule, among which a list looks: those that are next, or newest."""
ARGS_WINDOW = 10_000
"""Jobs whose arguments a filter looks at."""
GROUPED = 10_000
"""Failed jobs that are grouped: the newest."""
HOUR_MS = 3_600_000
_CHUNK = 500

Names = Callable[[str], Sequence[str]]
"""The names of a task's parameters, in order; none where the task is not known."""


class JobRow(NamedTuple):
    """One job in a list. Times are epoch milliseconds; arguments and error are cut."""

    record: JobRecord
    hidden: int
    failure_group: str | None
    args: str
    error: str | None


class JobWhole(NamedTuple):
    """One job with all that is stored of it. Times are epoch milliseconds, payloads as stored."""

    record: JobRecord
    hidden: int
    failure_group: str | None
    args: str
    error: str | None
    result: str | None
    origin: str | None
    attempts: list[Attempt]
    lines: dict[int, list[LogLine]]
    """What each try has logged, by its claim."""


class LogLine(NamedTuple):
    """One line that a try has logged."""

    at: int
    level: str
    logger: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
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
    """How many jobs each state has, each counted up to :data:`MOST`; discarded ones are left out."""

    scheduled: int
    retrying: int
    """Of the scheduled."""
    ready: int
    running: int
    succeeded: int | None
    """None where it cannot be told cheaply: the failed and cancelled ones alone fill the count."""
    failed: int
    cancelled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failed jobs with one cause."""

    group: str
    count: int
    """Those in the time that was asked for."""
    older: int
    """Those before it."""
    first_at: int
    """When the first of all of them failed."""
    last_at: int
    newest: JobRow
    place: str | None
    """Where the newest was raised: the last frame of the application's own code."""
    by_slice: dict[int, int]
    """How many in each slice of time, by its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue. Times are epoch milliseconds."""

    name: str
    ready: int
    """Counted up to MOST."""
    running: int
    oldest_at: int | None
    paused: bool
    paused_at: int | None
    paused_by: str | None
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


class RecipientRow(NamedTuple):
    """Where one recipient of a queued mail stands, in a list."""

    address: str
    ending: str
    code: int | None
    text: str | None


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

    def run_percentile(self, share: float) -> float | None:
        """About how many ms *share* of the tries ran at most."""
        found = percentile(self.run, share)
        return None if found is None else min(found, float(self.longest_ms))

    def wait_percentile(self, share: float) -> float | None:
        """About how many ms *share* of the tries waited at most."""
        return percentile(self.wait, share)


class Browser:
    """One app's rows for pages and commands. Safe from any thread. Errors come as StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._dialect = store.driver.dialect

    # -- jobs -------------------------------------------------------------------------------------------------------

    def jobs(
        self,
        chosen: JobFilter = EVERYTHING,
        *,
        limit: int = 50,
        before: int | None = None,
        names: Names = lambda task: (),
    ) -> JobPage:
        """A page of jobs, newest first. *before*: the id above which to look no more. *names*: for ``args.…``."""
        return self._page(chosen, limit, before, names)

    def _page(
        self, chosen: JobFilter, limit: int, before: int | None, names: Names, *, everywhere: bool = False
    ) -> JobPage:
        below = MAX_ID if before is None else before
        if chosen.args:
            return self._page_by_args(chosen, limit, below, names, everywhere=everywhere)
        sql, parameters = statements.jobs(self._dialect, chosen, everywhere=everywhere), _parameters(chosen, below)
        rows = [_job_row(row) for row in self._read(sql, {**parameters, "limit": limit + 1})]
        if len(rows) > limit:
            return JobPage(rows=rows[:limit], older=rows[limit - 1].record.id, searched_out=False)
        floor = self._floor(chosen, below, everywhere=everywhere)
        return JobPage(rows=rows, older=floor, searched_out=floor is not None)

    def _page_by_args(self, chosen: JobFilter, limit: int, below: int, names: Names, *, everywhere: bool) -> JobPage:
        floor = self._floor(chosen, below, everywhere=everywhere)
        older, found = floor, []
        for looked, (job_id, task, args) in enumerate(self._args(chosen, below, floor or 0, everywhere=everywhere), 1):
            if args_fit(args, chosen.args, names(task)):
                found.append(job_id)
            if len(found) == limit or looked == ARGS_WINDOW:
                older = job_id
                break
        rows = list(self.jobs_by_id(found).values())
        return JobPage(rows=rows, older=older, searched_out=older is not None and len(found) < limit)

    def _args(self, chosen: JobFilter, below: int, floor: int, *, everywhere: bool) -> Iterator[Row]:
        """Id, task and arguments of the jobs that fit but for these."""
        sql = statements.jobs(self._dialect, chosen, statements.ARGS_ROW, everywhere=everywhere)
        while rows := self._read(sql, {**_parameters(chosen, below), "limit": _CHUNK}):
            for row in rows:
                # A chunk has a window of its own, which may go further down.
                if row[0] < floor:
                    return
                yield row
            below = rows[-1][0]

    def _floor(self, chosen: JobFilter, below: int, *, everywhere: bool) -> int | None:
        """Where the window ends, if there is more below it."""
        if not everywhere and statements.few_ids(chosen) is not None:
            # They are fewer than a window.
            return None
        sql = statements.jobs_floor(self._dialect, chosen, everywhere=everywhere)
        rows = self._read(sql, _parameters(chosen, below))
        return rows[0][0] if rows else None

    def first(self, chosen: JobFilter, *, limit: int, names: Names = lambda task: ()) -> JobPage:
        """The newest jobs that fit, for an act on all that do: these are all of them only where ``older`` is None."""
        return self._page(chosen, limit, None, names, everywhere=self._has_more_than_few(chosen))

    def count(self, chosen: JobFilter, *, names: Names = lambda task: ()) -> int:
        """How many jobs fit, counted up to :data:`MOST`, among those that a page looks at."""
        if chosen.args:
            return len(self.jobs(chosen, limit=MOST, names=names).rows)
        parameters = {**_parameters(chosen, MAX_ID), "limit": MOST}
        number: int = self._read(statements.count_jobs(self._dialect, chosen), parameters)[0][0]
        return number

    def ids(
        self, chosen: JobFilter, *, before: int | None = None, names: Names = lambda task: ()
    ) -> Iterator[list[int]]:
        """The ids of all jobs that fit, newest first, in batches of at most 1,000; for bulk actions.

        It looks on, window by window, until it has seen all; jobs that an action changes meanwhile do not disturb it.
        """
        everywhere = self._has_more_than_few(chosen)
        while True:
            # Asked before, too: by what is pruned meanwhile the window grows, and its end after that was not looked at.
            floor = self._floor(chosen, before or MAX_ID, everywhere=everywhere) or 0
            page = self._page(chosen, 1000, before, names, everywhere=everywhere)
            if page.rows:
                yield [row.record.id for row in page.rows]
            before = page.older or 0 if len(page.rows) == 1000 else max(page.older or 0, floor)
            if not before:
                return

    def _has_more_than_few(self, chosen: JobFilter) -> bool:
        sql = statements.few_ids(chosen)
        if sql is None:
            return False
        number: int = self._read(sql, {**statements.parameters_of(chosen), "few": FEW})[0][0]
        return number >= FEW

    def job(self, job_id: int, *, tries: int = 100) -> JobWhole:
        """One job with all that is stored of it, and what its last *tries* have logged. Raises JobNotFound."""
        rows = self._read(statements.job_whole(), {"id": job_id}) if 0 < job_id <= MAX_ID else []
        if not rows:
            raise JobNotFound(f"There is no job {job_id}: it never existed, or it was pruned after its time.")
        fields = len(JobRecord._fields)
        record = JobRecord._make(rows[0][:fields])
        hidden, group, args, error, result, origin = rows[0][fields:]
        logged = self._read(statements.log_lines(), {"id": job_id, "tries": tries})
        lines = {claim: _lines(text) for claim, text in logged}
        attempts = self._store.attempts(job_id)
        return JobWhole(record, hidden, group, args, error, result, origin, attempts, lines)

    def running(self, limit: int = 200) -> list[JobRow]:
        """The jobs that run, those first that have run longest."""
        return [_job_row(row) for row in self._read(statements.running(), {"limit": limit})]

    def state_counts(self) -> StateCounts:
        """How many jobs there are in each state."""
        return counts_of(dict(self._read(statements.count_states(), {"most": MOST})))

    def oldest_ready_at(self) -> int | None:
        """Since when the job waits that has waited longest, in epoch ms; None where none waits."""
        at: int | None = self._read(statements.oldest_ready(), {"few": 1_000})[0][0]
        return at

    def tasks_waiting(self) -> dict[str, int]:
        """How many unfinished jobs each task has, among the first 10,000 ready and as many scheduled ones."""
        return dict(self._read(statements.unfinished_tasks(), {"window": MOST}))

    def overdue_for_pruning(self, before: int) -> int:
        """How many finished jobs should have been deleted before *before* (epoch ms), counted up to :data:`MOST`."""
        number: int = self._read(statements.overdue_for_pruning(), {"before": before, "most": MOST})[0][0]
        return number

    # -- failures ---------------------------------------------------------------------------------------------------

    def failures(self, since: int, *, step: int = HOUR_MS, limit: int = 1_000) -> list[FailureGroup]:
        """The failed jobs since *since* by their cause, latest first; of the newest :data:`GROUPED`."""
        found: dict[str, list[Row]] = {}
        for row in self._read(
            statements.failure_groups(self._dialect), {"window": GROUPED, "since": since, "step": step}
        ):
            found.setdefault(row[0] or "", []).append(row)
        latest = sorted((rows for rows in found.values() if _last_at(rows) >= since), key=_last_at, reverse=True)
        ids = [max(row[3] for row in rows) for rows in latest[:limit]]
        newest, places = self.jobs_by_id(ids), self._places(ids)
        groups = (_failure_group(rows, newest, places) for rows in latest[:limit])
        return [group for group in groups if group is not None]

    def _places(self, ids: Sequence[int]) -> dict[int, str | None]:
        if not ids:
            return {}
        rows = self._read(statements.error_ends(self._dialect), {"batch": batch_of([(i,) for i in ids])})
        return {job_id: place_in(end or "") for job_id, end in rows}

    def jobs_by_id(self, ids: Sequence[int]) -> dict[int, JobRow]:
        """These jobs, as far as they are there, in this order."""
        if not ids:
            return {}
        rows = self._read(statements.jobs_by_id(self._dialect), {"batch": batch_of([(i,) for i in ids])})
        found = {row[0]: _job_row(row) for row in rows}
        return {job_id: found[job_id] for job_id in ids if job_id in found}

    # -- queues, schedules, workers -----------------------------------------------------------------------------------

    def queues(self, *, also: Sequence[str] = ()) -> list[QueueState]:
        """The queues with jobs, those that are paused, those that worked in the last hour, and *also*, by name."""
        ready = {name: (number, oldest) for name, number, oldest in self._read(statements.queues(), {"most": MOST})}
        facts = self._read(statements.running_and_paused(), {})
        running: dict[str, int] = {name: number for name, is_paused, number, _, _ in facts if not is_paused}
        paused = {name: (at, who) for name, is_paused, _, at, who in facts if is_paused}
        now = self._store.clock()
        worked = {f.key: f for f in self.figures(now - HOUR_MS, step=MAX_ID, by="queue")}
        return [
            QueueState(
                name=name,
                ready=ready.get(name, (0, None))[0],
                running=running.get(name, 0),
                oldest_at=ready.get(name, (0, None))[1],
                paused=name in paused,
                paused_at=paused.get(name, (None, None))[0],
                paused_by=paused.get(name, (None, None))[1],
                figures=worked.get(name),
            )
            for name in sorted({*ready, *running, *paused, *worked, *also})
        ]

    def paused_queues(self) -> list[str]:
        """The names of the queues that are paused."""
        return sorted(name for name, is_paused, *_ in self._read(statements.running_and_paused(), {}) if is_paused)

    def schedules(self) -> list[ScheduleRow]:
        """Every schedule."""
        return self._store.schedules()

    def schedule_runs(self, limit: int = 30) -> dict[str, list[ScheduleRun]]:
        """The last jobs of each schedule, newest first."""
        runs: dict[str, list[ScheduleRun]] = {}
        for row in self._read(statements.schedule_runs(), {"limit": limit}):
            runs.setdefault(row[0], []).append(ScheduleRun._make(row))
        return runs

    def workers(self) -> list[WorkerRow]:
        """Every worker that the store knows, the dead of the last hour included."""
        return self._store.workers()

    # -- figures ----------------------------------------------------------------------------------------------------

    def figures(
        self,
        since: int,
        *,
        step: int,
        span: Literal[60, 3600] = 60,
        by: statements.Key | None = None,
        task: str | None = None,
        queue: str | None = None,
    ) -> list[Figures]:
        """What ended since *since*, in slices of *step* ms, oldest first; slices in which nothing ended are left out.

        *span* says which roll-ups are added up: those of minutes (60), kept for 2 days, or of hours (3600), kept for
        62. A *step* of MAX_ID gives one row for all the time. *by* tells tasks or queues apart.
        """
        parameters = {"since": since, "step": step, "span": span, "task": task, "queue": queue}
        return [_figures(row) for row in self._read(statements.series(by), parameters)]

    def totals(self) -> dict[tuple[str, str], Figures]:
        """What ended since the tables were made, by task and queue. It only grows."""
        return {(row[0], row[1]): _figures((0, row[0], *row[2:])) for row in self._read(statements.totals(), {})}

    # -- mails and the audit log --------------------------------------------------------------------------------------

    def mails(self, *, limit: int = 50, before: str | None = None, address: str | None = None) -> list[MailRow]:
        """The newest queued mails before that id; *address*: only those with a recipient that has this in it."""
        parameters: dict[str, Any] = {"limit": limit} if before is None else {"before": before, "limit": limit}
        if address is not None:
            pattern = address.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            parameters |= {"address": f"%{pattern}%", "window": WINDOW}
        sql = statements.mails(self._dialect, before=before is not None, addressed=address is not None)
        rows = self._read(sql, parameters)
        return [MailRow._make(row) for row in rows]

    def mail(self, mail_id: str) -> MailRow | None:
        """One queued mail; None where there is none of that id."""
        rows = self._read(statements.mail(), {"id": mail_id})
        return MailRow._make(rows[0]) if rows else None

    def first_recipients(self, ids: Sequence[str], most: int) -> dict[str, list[RecipientRow]]:
        """The first *most* recipients of each of these mails."""
        if not ids:
            return {}
        found: dict[str, list[RecipientRow]] = {}
        parameters = {"batch": batch_of([(mail_id,) for mail_id in ids]), "most": most}
        for mail_id, *row in self._read(statements.first_recipients(self._dialect), parameters):
            found.setdefault(mail_id, []).append(RecipientRow._make(row))
        return found

    def audit(self, *, limit: int = 50, before: int | None = None) -> list[AuditRow]:
        """What people did, newest first."""
        parameters = {"limit": limit, "before": MAX_ID if before is None else before}
        return [AuditRow._make(row) for row in self._read(statements.audit(), parameters)]

    def _read(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        self._store.driver.prepare()
        return self._store.driver.read(sql, parameters)


def add_up(parts: Sequence[Figures]) -> Figures | None:
    """The figures of all these together; None of none."""
    if not parts:
        return None
    run, wait = (
        tuple(sum(column) for column in zip(*buckets, strict=True))
        for buckets in ([part.run for part in parts], [part.wait for part in parts])
    )
    return Figures(
        start=parts[0].start,
        key=parts[0].key,
        succeeded=sum(part.succeeded for part in parts),
        failed=sum(part.failed for part in parts),
        retried=sum(part.retried for part in parts),
        cancelled=sum(part.cancelled for part in parts),
        run_ms=sum(part.run_ms for part in parts),
        longest_ms=max(part.longest_ms for part in parts),
        wait_ms=sum(part.wait_ms for part in parts),
        run=run,
        wait=wait,
    )


def counts_of(found: Mapping[str, int]) -> StateCounts:
    """What the rows of ``count_states`` mean."""
    others = [found[name] for name in ("failed", "cancelled", "hidden")]
    lost = max(others) >= MOST
    succeeded = max(0, found["finished"] - sum(others))
    return StateCounts(
        scheduled=found["scheduled"],
        retrying=found["retrying"],
        ready=min(MOST, found["ready"] + found["suspect"]),
        running=found["running"],
        succeeded=None if lost else min(MOST, succeeded),
        failed=found["failed"],
        cancelled=found["cancelled"],
    )


def _parameters(chosen: JobFilter, below: int) -> dict[str, Any]:
    return {**statements.parameters_of(chosen), "before": below, "window": WINDOW, "few": FEW}


def args_fit(args: str, wanted: Sequence[tuple[str, str]], names: Sequence[str]) -> bool:
    """Whether stored arguments have these values, written as text or JSON. Damaged ones fit nothing."""
    try:
        positional, keywords = json.loads(args)
        given = {**dict(zip(names, positional, strict=False)), **keywords}
    except (ValueError, TypeError, RecursionError):
        return False
    return all(name in given and _is_written(given[name], text) for name, text in wanted)


def _is_written(value: object, text: str) -> bool:
    return text == (value if isinstance(value, str) else json.dumps(value))


def _job_row(row: Row) -> JobRow:
    fields = len(JobRecord._fields)
    return JobRow(JobRecord._make(row[:fields]), *row[fields:])


def _lines(text: str) -> list[LogLine]:
    try:
        return [LogLine._make(line) for line in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        return []


def _last_at(rows: Sequence[Row]) -> int:
    last: int = max(row[5] for row in rows)
    return last


def _failure_group(
    rows: Sequence[Row], newest: dict[int, JobRow], places: dict[int, str | None]
) -> FailureGroup | None:
    last = max(row[3] for row in rows)
    if last not in newest:
        return None
    recent = {row[1]: row[2] for row in rows if row[1] >= 0}
    return FailureGroup(
        group=rows[0][0] or "",
        count=sum(recent.values()),
        older=sum(row[2] for row in rows) - sum(recent.values()),
        first_at=min(row[4] for row in rows),
        last_at=_last_at(rows),
        newest=newest[last],
        place=places.get(last),
        by_slice=recent,
    )


_SINGLE = ROLLUP_FIGURES.index("run_0")


def _figures(row: Row) -> Figures:
    start, key, *sums = row
    buckets = len(BUCKETS_MS) + 1
    single = dict(zip(ROLLUP_FIGURES[:_SINGLE], sums[:_SINGLE], strict=True))
    run, wait = sums[_SINGLE : _SINGLE + buckets], sums[_SINGLE + buckets :]
    return Figures(start=start, key=key, run=tuple(run), wait=tuple(wait), **single)
