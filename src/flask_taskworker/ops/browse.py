"""The rows as people look at them: lists, groups and figures, each in a bounded time however many rows there are.

Nothing here counts a table. A list looks at no more than :data:`WINDOW` rows of an index and says where it stopped;
a count stops at :data:`MOST`; what ended, and how long it took, is read from the roll-ups.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from ..core.batches import BatchRow
from ..core.failures import place_in
from ..core.filters import EVERYTHING, JobFilter
from ..core.rows import JobRecord, read_stored
from ..core.words import MOST
from ..errors import BatchNotFound, JobNotFound
from ..store.driver import Row
from ..store.sql import MAX_ID, Attempt, Store
from ..store.statements import browse as statements
from ..store.statements import flows as flow_statements
from ..store.statements import keys as key_statements
from ..store.statements.jobs import batch_of
from ..store.statements.steps import LAST_STEPS
from .rows import (
    AuditRow,
    CallCount,
    Figures,
    JobList,
    JobRow,
    JobWhole,
    LaneRow,
    LimitRow,
    LogLine,
    MailList,
    MailRow,
    QueueState,
    RecipientRow,
    ScheduleRun,
    StateCounts,
    StepRow,
    counts_of,
    figures_of,
    job_row,
    job_whole,
)
from .views import FailureView, error_view

WINDOW = 20_000
"""Rows that one page of a list looks at."""
FEW = 5_000
"""Ready or scheduled jobs, or those of one schedule, among which a list looks: those that are next, or newest."""
ARGS_WINDOW = 10_000
"""Jobs whose arguments a filter looks at."""
GROUPED = 10_000
"""Failed jobs that are grouped: the newest."""
HOUR_MS = 3_600_000
SKEW_MS = 5_000
"""The clocks of the machines that enqueue may differ by this much."""
MOST_TEXT = 2**31 - 2
"""Characters that no stored text has."""
SAMPLE = 1_000
"""Jobs in one line that are counted to see which lines are the longest."""
SUCCESS_RUNS = 30
"""Jobs of a schedule among which its last success is looked for."""
_CHUNK = 500

Names = Callable[[str], Sequence[str] | None]
"""The names of a task's parameters, in order; none where the task is not known. None itself says that the arguments of
its jobs may not be asked for: they fit nothing then."""

Failures = tuple[FailureView, dict[int, int]]


MOST_DRAWN = 50
"""Jobs of a graph that are drawn."""


class Graph(NamedTuple):
    """Jobs that wait for others."""

    edges: frozenset[tuple[int, int]]
    """Who waits: a parent, which is a batch below zero, and its child."""
    jobs: dict[int, JobRow]


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
        everywhere: bool = False,
    ) -> JobList:
        """A page of jobs, newest first. *before*: the id above which to look no more. *names*: for ``args.…``.

        *everywhere*: look at all jobs, window by window, where a list begins with the few that are next.
        """
        below, floor = MAX_ID if before is None else before, None
        first = 0 if chosen.after is None else self._place(chosen.after - SKEW_MS)[0]
        if chosen.before is not None:
            below = min(below, self._place(chosen.before + SKEW_MS)[1] + 1)
        if everywhere or statements.few_ids(chosen) is None:
            # Asked for once: the window grows by what is pruned meanwhile, and its end then was not looked at.
            sql = statements.jobs_floor(self._dialect, chosen, everywhere=everywhere)
            end = self._read(sql, _parameters(chosen, below))
            # Below the first that may fit, nothing is left to look at.
            floor = end[0][0] if end and end[0][0] > first else None
        if not chosen.args:
            sql = statements.jobs(self._dialect, chosen, everywhere=everywhere)
            found = self._read(sql, {**_parameters(chosen, below, floor or first), "limit": limit + 1})
            rows = [job_row(row) for row in found]
            if len(rows) > limit:
                return JobList(rows=rows[:limit], older=rows[limit - 1].record.id, searched_out=False)
            return JobList(rows=rows, older=floor, searched_out=floor is not None)
        older, ids = floor, []
        for looked, (job_id, task, args) in enumerate(
            self._args(chosen, below, floor or first, everywhere=everywhere), 1
        ):
            if args_fit(args, chosen.args, names(task)):
                ids.append(job_id)
            if len(ids) == limit or looked == ARGS_WINDOW:
                older = job_id
                break
        rows = list(self.jobs_by_id(ids).values())
        return JobList(rows=rows, older=older, searched_out=older is not None and len(ids) < limit)

    def _place(self, moment: int) -> tuple[int, int]:
        """Around which numbers the jobs of that moment (epoch ms) are, however many there are: found by halving."""
        low, high = self._read(statements.PLACE, {"parent": 0, "moment": moment})[0]
        return low or 0, MAX_ID - 1 if high is None else high

    def _args(self, chosen: JobFilter, below: int, floor: int, *, everywhere: bool) -> Iterator[Row]:
        """Id, task and arguments of the jobs that fit but for these."""
        sql = statements.jobs(self._dialect, chosen, statements.ARGS_ROW, everywhere=everywhere)
        while rows := self._read(sql, {**_parameters(chosen, below, floor), "limit": _CHUNK}):
            yield from rows
            below = rows[-1][0]

    def first(self, chosen: JobFilter, *, limit: int, names: Names = lambda task: ()) -> JobList:
        """The newest jobs that fit, for an act on all that do: these are all of them only where ``older`` is None."""
        return self.jobs(chosen, limit=limit, names=names, everywhere=self._has_more_than_few(chosen))

    def count_all(self, chosen: JobFilter, *, before: int | None = None, names: Names = lambda task: ()) -> int:
        """Exactly how many jobs fit, however many there are. *before*: count only jobs with a smaller number.

        Takes time in proportion to the jobs that fit, up to a second for a million: for confirming a bulk action.
        """
        if chosen.args:
            return sum(map(len, self.ids(chosen, before=before, names=names)))
        parameters = {**statements.parameters_of(chosen), "before": MAX_ID if before is None else before}
        number: int = self._read(statements.count_all(self._dialect, chosen), parameters)[0][0]
        return number

    def end(self) -> int:
        """A number above that of every job stored so far: *before* for an act on what is there now."""
        newest: int = self._read(statements.NEWEST_ID, {})[0][0]
        return newest + 1

    def ids(
        self, chosen: JobFilter, *, before: int | None = None, names: Names = lambda task: ()
    ) -> Iterator[list[int]]:
        """The ids of all jobs that fit, newest first, in batches of at most 1,000; for bulk actions.

        It looks on, window by window, until it has seen all; jobs that an action changes meanwhile do not disturb it.
        """
        everywhere = self._has_more_than_few(chosen)
        while True:
            page = self.jobs(chosen, limit=1000, before=before, names=names, everywhere=everywhere)
            if page.rows:
                yield [row.record.id for row in page.rows]
            before = page.older
            if not before:
                return

    def records(self, chosen: JobFilter, *, names: Names) -> Iterator[JobRecord]:
        """All jobs that fit, newest first, read page by page."""
        self._store.driver.prepare()
        for ids in self.ids(chosen, names=names):
            yield from (row.record for row in self.jobs_by_id(ids).values())

    def _has_more_than_few(self, chosen: JobFilter) -> bool:
        sql = statements.few_ids(chosen)
        if sql is None:
            return False
        number: int = self._read(sql, {**statements.parameters_of(chosen), "few": FEW})[0][0]
        return number >= FEW

    def batches(self, *, limit: int, before: int | None = None) -> list[BatchRow]:
        """The newest batches, before the batch *before*."""
        parameters = {"limit": limit, "before": MAX_ID if before is None else before}
        return [BatchRow._make(row) for row in self._read(flow_statements.BATCHES, parameters)]

    def batch(self, batch_id: int) -> BatchRow:
        """One batch. Raises BatchNotFound."""
        for row in self._read(flow_statements.BATCH_ROW, {"id": min(batch_id, MAX_ID)}):
            return BatchRow._make(row)
        raise BatchNotFound._of(batch_id)

    def graph(self, job_id: int) -> Graph:
        """What the job waits for and what waits for it, and theirs, up to :data:`MOST_DRAWN` jobs."""
        found, edges, near = {job_id}, set[tuple[int, int]](), [job_id]
        while near and len(found) <= MOST_DRAWN:
            rows = self._read(flow_statements.edges_of(self._dialect), {"batch": batch_of([(i,) for i in near])})
            edges |= {(parent, child) for parent, child in rows}
            near = sorted({one for edge in rows for one in edge if one > 0} - found)
            found |= set(near)
        return Graph(edges=frozenset(edges), jobs=self.jobs_by_id(sorted(found)[: MOST_DRAWN + 1]))

    def job(self, job_id: int, *, tries: int = 100, most: int = MOST_TEXT) -> JobWhole:
        """One job with what is stored of it, and what its last *tries* have logged. Raises JobNotFound.

        *most*: characters of the arguments, and of the result; of longer ones one more is there.
        """
        parameters = {"id": job_id, "most": most + 1}
        rows = self._read(statements.JOB_WHOLE, parameters) if 0 < job_id <= MAX_ID else []
        if not rows:
            raise JobNotFound._of(job_id)
        parts = self._read(statements.TRIES, {"id": job_id, "tries": tries})
        attempts = [Attempt(*row) for what, *row in parts if what == "try"]
        logs = {claim: read_stored(text, "log") for what, claim, *_, text in parts if what == "log"}
        lines = {claim: [LogLine(*line) for line in log] for claim, log in logs.items()}
        calls = next((CallCount(row[1], row[4], row[5]) for row in parts if row[0] == "calls"), None)
        lane = next((text for what, *_, text in parts if what == "lane"), None)
        has_steps = any(what == "steps" for what, *_ in parts)
        return job_whole(rows[0], sorted(attempts, key=lambda one: one.claim), lines, calls, lane, has_steps=has_steps)

    def steps(self, job_id: int, *, limit: int, most: int = MOST_TEXT) -> list[StepRow]:
        """The last steps of a job, newest first, with at most *most* + 1 characters of what each has returned."""
        parameters = {"id": job_id, "most": most + 1, "number": limit}
        return [StepRow(*row) for row in self._read(LAST_STEPS, parameters)]

    def keys_of_gone_jobs(self) -> int:
        """How many keys belong to jobs that are gone, counted up to :data:`MOST`."""
        number: int = self._read(key_statements.GONE, {"most": MOST})[0][0]
        return number

    def children(self, whole: JobWhole, *, limit: int) -> list[JobRow]:
        """The first jobs that were enqueued inside this one, oldest first.

        Looked for among the first :data:`WINDOW` jobs that were enqueued between its first start and its end.
        """
        record = whole.record
        if not record.claim:
            return []
        starts = [at for at in (record.started_at, *(one.started_at for one in whole.attempts)) if at]
        parameters = {
            **statements.parameters_of(JobFilter(parent=record.id)),
            "since": min(starts, default=record.created_at) - SKEW_MS,
            "until": (record.finished_at or MAX_ID - SKEW_MS) + SKEW_MS,
            "window": WINDOW,
            "limit": limit,
        }
        return [job_row(row) for row in self._read(statements.children(self._dialect), parameters)]

    def running(self, limit: int = 200) -> list[JobRow]:
        """The jobs that run, those first that have run longest."""
        return [job_row(row) for row in self._read(statements.RUNNING, {"limit": limit})]

    def state_counts(self) -> StateCounts:
        """How many jobs there are in each state."""
        return counts_of(dict(self._read(statements.count_states(), {"most": MOST})), MOST)

    def tasks_waiting(self) -> dict[str, int]:
        """How many unfinished jobs each task has, among the first 10,000 ready and as many scheduled ones."""
        return dict(map(tuple, self._read(statements.unfinished_tasks(), {"window": MOST})))

    def overdue_for_pruning(self, before: int) -> int:
        """How many finished jobs should have been deleted before *before* (epoch ms), counted up to :data:`MOST`."""
        number: int = self._read(statements.OVERDUE_FOR_PRUNING, {"before": before, "most": MOST})[0][0]
        return number

    # -- failures ---------------------------------------------------------------------------------------------------

    def failures(self, since: int, *, step: int = HOUR_MS, limit: int = 1_000) -> list[Failures]:
        """The failed jobs since *since* by their cause, latest first; of the newest :data:`GROUPED`.

        Each with how many failed in each slice of *step* ms, by its start.
        """
        found: dict[str, list[Row]] = {}
        parameters = {"window": GROUPED, "since": since, "step": step}
        for group, *figures in self._read(statements.failure_groups(self._dialect), parameters):
            found.setdefault(group or "", []).append((group, *figures))
        latest = sorted((rows for rows in found.values() if _last_at(rows) >= since), key=_last_at, reverse=True)
        ids = [max(row[3] for row in rows) for rows in latest[:limit]]
        newest = self.jobs_by_id(ids)
        ends = self._read(statements.error_ends(self._dialect), {"batch": batch_of([(i,) for i in ids])}) if ids else []
        places = {job_id: place_in(end or "") for job_id, end in ends}
        groups = []
        for rows in latest[:limit]:
            last = max(row[3] for row in rows)
            # It may have been pruned meanwhile.
            if last not in newest:
                continue
            recent = {row[1]: row[2] for row in rows if row[1] >= 0}
            count = sum(recent.values())
            job = newest[last]
            view = FailureView(
                group=rows[0][0] or "",
                task=job.record.task,
                error=error_view(job.error, job.record.failure_kind),
                place=places.get(last),
                count=count,
                older=sum(row[2] for row in rows) - count,
                first_at=min(row[4] for row in rows),
                last_at=_last_at(rows),
                newest=last,
            )
            groups.append((view, recent))
        return groups

    def jobs_by_id(self, ids: Sequence[int]) -> dict[int, JobRow]:
        """These jobs, as far as they are there, in this order."""
        if not ids:
            return {}
        rows = self._read(statements.jobs_by_id(self._dialect), {"batch": batch_of([(i,) for i in ids])})
        found = {row[0]: job_row(row) for row in rows}
        return {job_id: found[job_id] for job_id in ids if job_id in found}

    # -- queues, schedules, workers -----------------------------------------------------------------------------------

    def queues(self, *, also: Sequence[str] = ()) -> list[QueueState]:
        """The queues with jobs, those that are paused, those that worked in the last hour, and *also*, by name."""
        ready = {name: (number, oldest) for name, number, oldest in self._read(statements.QUEUES, {"most": MOST})}
        facts = self._read(statements.RUNNING_AND_PAUSED, {})
        running: dict[str, int] = {name: number for name, is_paused, number, *_ in facts if not is_paused}
        paused = {name: pause for name, is_paused, _, *pause in facts if is_paused}
        worked = {f.key: f for f in self.figures(self._store.clock() - HOUR_MS, step=MAX_ID, by="queue")}
        return [
            QueueState(
                name=name,
                ready=ready.get(name, (0, None))[0],
                running=running.get(name, 0),
                oldest_at=ready.get(name, (0, None))[1],
                paused=name in paused,
                **dict(zip(("paused_at", "paused_by", "paused_until"), paused.get(name, [None] * 3), strict=True)),
                figures=worked.get(name),
            )
            for name in sorted({*ready, *running, *paused, *worked, *also})
        ]

    def schedule_runs(self, names: Sequence[str], limit: int = 30) -> dict[str, list[ScheduleRun]]:
        """The last jobs of each of these schedules, newest first."""
        runs: dict[str, list[ScheduleRun]] = {}
        sql = statements.schedule_runs(self._dialect)
        for row in self._read(sql, {"limit": limit, "names": json.dumps(list(names))}):
            run = ScheduleRun(*row)
            runs.setdefault(run.schedule, []).append(run)
        return runs

    def scheduled_by_queue(self) -> list[Row]:
        """Queue, scheduled jobs and those of them that are retried, among the next :data:`MOST` that are due."""
        return self._read(statements.SCHEDULED_BY_QUEUE, {"most": MOST})

    def schedule_figures(self, others: str) -> list[Row]:
        """Name, next time, whether it is paused, and last success of each schedule in code.

        One row named *others* has the next time of all those that were made at run time and are not paused.
        """
        return self._read(statements.SCHEDULE_FIGURES, {"others": others, "runs": SUCCESS_RUNS})

    # -- limits -------------------------------------------------------------------------------------------------------

    def limits(self) -> list[LimitRow]:
        """Every limit that is stored, by name."""
        parameters = {"now": self.lane_now(), "most": MOST, "sample": SAMPLE}
        return [LimitRow(*row) for row in self._read(statements.limits(), parameters)]

    def suspects(self) -> dict[str, int]:
        """How many ready jobs of each queue must run alone, counted up to :data:`MOST` in all."""
        return dict(map(tuple, self._read(statements.SUSPECTS, {"most": MOST})))

    def lanes(self, limits: Sequence[str], *, shown: int) -> dict[str, list[LaneRow]]:
        """The lanes of each of these limits that have the longest lines, *shown* of each at the most.

        With many lanes these are the longest of those that were looked at.
        """
        found: dict[str, list[LaneRow]] = {}
        batch = batch_of([(name,) for name in limits])
        bounds = {"window": WINDOW // 4, "budget": WINDOW // 8, "sample": SAMPLE, "most": MOST}
        parameters = {"batch": batch, "shown": shown, **bounds}
        for name, *row in self._read(statements.lanes(self._dialect), parameters) if limits else ():
            found.setdefault(name, []).append(LaneRow(*row))
        return found

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
        return [figures_of(row) for row in self._read(statements.series(by), parameters)]

    def totals(self) -> dict[tuple[str, str], Figures]:
        """What ended since the tables were made, by task and queue. It only grows."""
        return {(row[0], row[1]): figures_of((0, row[0], *row[2:])) for row in self._read(statements.TOTALS, {})}

    # -- mails and the audit log --------------------------------------------------------------------------------------

    def mails(self, *, limit: int = 50, before: str | None = None, address: str | None = None) -> MailList:
        """A page of queued mails, newest first. *before*: the id above which to look no more; *address*: only those
        with a recipient that has this in it, among :data:`WINDOW` mails."""
        given = {} if before is None else {"before": before}
        floor = None
        if address is not None:
            end = self._read(statements.mails_floor(given), {**given, "window": WINDOW})
            floor = end[0][0] if end else None
            escaped = re.sub(r"([\\%_])", r"\\\1", address)
            given |= {"address": f"%{escaped}%"} | ({"floor": floor} if floor else {})
        sql = statements.mails(self._dialect, given)
        rows = [MailRow(*row) for row in self._read(sql, {**given, "limit": limit + 1})]
        if len(rows) > limit:
            return MailList(rows=rows[:limit], older=rows[limit - 1].id, searched_out=False)
        return MailList(rows=rows, older=floor, searched_out=floor is not None)

    def mail(self, mail_id: str) -> MailRow | None:
        """One queued mail; None where there is none of that id."""
        rows = self._read(statements.MAIL, {"id": mail_id})
        return MailRow(*rows[0]) if rows else None

    def first_recipients(self, ids: Sequence[str], most: int) -> dict[str, list[RecipientRow]]:
        """The first *most* recipients of each of these mails."""
        if not ids:
            return {}
        found: dict[str, list[RecipientRow]] = {}
        parameters = {"batch": batch_of([(mail_id,) for mail_id in ids]), "most": most}
        for mail_id, *row in self._read(statements.first_recipients(self._dialect), parameters):
            found.setdefault(mail_id, []).append(RecipientRow(*row))
        return found

    def mail_endings(self, ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """How many recipients of each of these mails stand how."""
        found: dict[str, dict[str, int]] = {mail_id: {} for mail_id in ids}
        parameters = {"batch": batch_of([(mail_id,) for mail_id in ids])}
        for mail_id, ending, number in self._read(statements.mail_endings(self._dialect), parameters) if ids else ():
            found[mail_id][ending] = number
        return found

    def audit(self, *, limit: int = 50, before: int | None = None) -> list[AuditRow]:
        """What people did, newest first."""
        parameters = {"limit": limit, "before": MAX_ID if before is None else before}
        return [AuditRow(*row) for row in self._read(statements.AUDIT, parameters)]

    def now(self) -> int:
        """What time it is, in epoch milliseconds."""
        return self._store.clock()

    def lane_now(self) -> int:
        """What time it is for lanes: see :meth:`Store.lane_now`."""
        return self._store.lane_now()

    def _read(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        self._store.driver.prepare()
        return self._store.driver.read(sql, parameters)


def _parameters(chosen: JobFilter, below: int, floor: int | None = None) -> dict[str, Any]:
    # No child is older than its parent; said so in the statement, SQLite would go down to there, past the floor.
    least = max(floor or 0, chosen.parent or 0)
    return {**statements.parameters_of(chosen), "before": below, "floor": least, "window": WINDOW, "few": FEW}


def args_fit(args: str, wanted: Sequence[tuple[str, str]], names: Sequence[str] | None) -> bool:
    """Whether stored arguments have these values, written as text or JSON. Damaged ones fit nothing."""
    if names is None:
        return False
    try:
        positional, keywords = json.loads(args)
        given = {**dict(zip(names, positional, strict=False)), **keywords}
    except (ValueError, TypeError, RecursionError):
        return False
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    return all(name in written and written[name] == text for name, text in wanted)


def _last_at(rows: Sequence[Row]) -> int:
    last: int = max(row[5] for row in rows)
    return last
