"""Flows: what follows, in the same transaction, from how a job ends.

A batch counts its jobs, and stores its callbacks with the ending that completes it. A job that waits for others is
scheduled far ahead; each ending of a parent meets its edge, and the last one releases it, or it is cancelled where a
parent did not end as it asked. Nothing is polled, and nothing is decided by looking at rows that may change.

What would be much is put off: :attr:`Effects.is_more` says that :func:`go_on` is to be called, a transaction each time.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.around import CARRIED
from ..core.batches import BatchRow, Event, code_of
from ..core.rows import CALLS, LIMITED, MEMBER, NOTICE, PARENT, THEN, WAITS, Failure, JobRecord, NewJob, read_origin
from ..errors import NotAccepted
from .admission import add_permits, touch
from .driver import Row, Run
from .statements import flows as statements
from .statements import jobs as job_statements
from .statements import operations as operation_statements
from .statements import steps as step_statements
from .statements.jobs import Dialect, batch_of

PIECE = 250
"""Jobs that are cancelled in one transaction because of others."""
LOOKED_AT = 1_000
"""Members and edges that are compared with their jobs at a time."""

_EVENTS: dict[str, Event] = {"succeeded": "success", "failed": "failure"}
_FINAL = ("succeeded", "failed", "cancelled")
_WORDS = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled"}


@dataclass(slots=True)
class Effects:
    """What others have to know of a transaction, once it has committed."""

    ready: set[tuple[str, str]] = field(default_factory=set)
    """Queues that have ready jobs now, and their kinds."""
    cancelled: list[JobRecord] = field(default_factory=list)
    """Jobs that were cancelled because of others."""
    admits: bool = False
    """Whether limited jobs have changed, so that others may be admitted."""
    is_more: bool = False
    """Whether there is more to do: see :func:`go_on`."""

    def __bool__(self) -> bool:
        return bool(self.ready or self.cancelled or self.admits or self.is_more)

    def add(self, other: Effects) -> None:
        """Have this stand for both."""
        self.ready |= other.ready
        self.cancelled += other.cancelled
        self.admits |= other.admits
        self.is_more |= other.is_more


class Flows:
    """One transaction: every change of a job's state that *marks* may concern goes through it."""

    def __init__(
        self,
        dialect: Dialect,
        run: Run,
        *,
        clock: Callable[[], int],
        keep: int,
        keep_failed: int,
        on_retry: Callable[[Run, Sequence[Row]], None] = lambda run, rows: None,
    ) -> None:
        """*keep*, *keep_failed*: how long cancelled jobs, and batches, are kept. Milliseconds.

        *on_retry*: called with the jobs that are put back into their queues: rows of (id, state, marks, task, uid).
        """
        self.run = run
        self.effects: Effects = Effects()
        self._dialect = dialect
        self._clock = clock
        self._keep = keep
        self._keep_failed = keep_failed
        self._on_retry = on_retry
        self._room = PIECE

    @property
    def now(self) -> int:
        """Asked when it is needed: what waited for a lock comes after what the lock was held for."""
        return self._clock()

    # -- adding -----------------------------------------------------------------------------------------------------

    def reserve(self, jobs: Iterable[NewJob]) -> None:
        """Before these jobs are stored: see that their batches and parents take them. Raises NotAccepted."""
        members = Counter(job.member for job in jobs if job.member is not None)
        parents = {parent for job in jobs if job.after is not None for parent in job.after.parents}
        if not (members or parents):
            return
        if ids := sorted(parent for parent in parents if parent > 0):
            found = {row[0] for row in self.run(statements.mark_parents(self._dialect), _ids(ids))}
            if missing := sorted(set(ids) - found):
                raise NotAccepted(f"Job {missing[0]} is not there, so no job can wait for it: it was pruned, or its "
                                  "transaction has not committed. Enqueue both in one transaction.")  # fmt: skip
        batches = {member.batch for member in members} | {-parent for parent in parents if parent < 0}
        rows = self._lock(batches)
        if missing := sorted(batches - rows.keys()):
            raise NotAccepted(f"Batch {missing[0]} is not there: it was pruned, or its transaction has not committed.")
        for batch_id, by in members:
            self._check_open(rows[batch_id], by)
        if members:
            totals = Counter({batch: 0 for batch, _ in members})
            for (batch, _), number in members.items():
                totals[batch] += number
            self._add_totals(totals)
        self.effects.is_more |= any(rows[batch].stop for batch, _ in members)

    def _check_open(self, batch: BatchRow, by: int) -> None:
        if not batch.sealed or (by and self.run(statements.OPEN_MEMBER, {"id": by}) == [(batch.id,)]):
            return
        state = "is sealed" if batch.ended_at is None else "has ended"
        raise NotAccepted(
            f"Batch {batch.id} ({batch.name}) {state}: only a job of it that runs may add jobs. Add them in the with "
            "block, or make another batch."
        )

    def _add_totals(self, numbers: Mapping[int, int]) -> None:
        self.run(statements.add_totals(self._dialect), {"batch": batch_of(list(numbers.items()))})

    def added(self, jobs: Sequence[NewJob], stored: Sequence[tuple[int, NewJob]]) -> None:
        """*stored* of *jobs* are new, under these numbers: give them their places in limits, batches and graphs."""
        add_permits(self._dialect, self.run, stored)
        members = [(job_id, job.member.batch) for job_id, job in stored if job.member is not None]
        if members:
            self.run(statements.add_members(self._dialect), {"batch": batch_of(members)})
        spare = Counter(job.member.batch for job in jobs if job.member is not None)
        spare.subtract(batch for _, batch in members)
        if spare := +spare:
            # Others stood for these, which belong where they were.
            self._add_totals({batch: -number for batch, number in spare.items()})
        waits = [(job_id, job.after) for job_id, job in stored if job.after is not None]
        if waits:
            edges = [(parent, job_id, after.when) for job_id, after in waits for parent in after.parents]
            self.run(statements.add_edges(self._dialect), {"batch": batch_of(edges)})
            needs = [(job_id, len(after.parents), after.run_at) for job_id, after in waits]
            self.run(statements.add_waits(self._dialect), {"batch": batch_of(needs)})
            self._meet_ended({parent for _, after in waits for parent in after.parents})

    def _meet_ended(self, parents: Iterable[int]) -> None:
        """Of these parents, which stay as they are for now, some may have ended before."""
        jobs, batches = [p for p in parents if p > 0], [-p for p in parents if p < 0]
        ended: list[tuple[int, str]] = []
        if jobs:
            records = self.records(jobs)
            ended += [(record.id, record.state) for record in records if record.state in _FINAL]
        if batches:
            ended += [(-row.id, row.state) for row in self._lock(batches).values() if row.ended_at is not None]
        if ended and self._meet(ended):
            self._count(self._cancel_broken())

    def records(self, ids: Iterable[int]) -> list[JobRecord]:
        """Jobs as they are now."""
        return [JobRecord._make(row) for row in self.run(statements.records(self._dialect), _ids(ids))]

    # -- endings ----------------------------------------------------------------------------------------------------

    def changed(self, rows: Iterable[Row], *, touches: bool = True) -> None:
        """These jobs have changed, rows of (id, state, marks, …): some of them may have ended.

        Unless it *touches*, their places are left to the caller.
        """
        marked = [row for row in rows if row[2]]
        if not marked:
            return
        if touches:
            self.effects.admits |= touch(self._dialect, self.run, marked)
        if waiting := [row[0] for row in marked if row[2] & NOTICE and row[1] == "scheduled"]:
            self.wake(waiting)
        ended = [row for row in marked if row[2] & (MEMBER | PARENT) and row[1] in _FINAL]
        if ended:
            self._follow(ended)
        if calling := [row[0] for row in marked if row[2] & CALLS and row[1] in _EVENTS]:
            rows = self.run(statements.callers(self._dialect), _ids(calling))
            if calls := [job for row in rows for job in _calls_of(row, self.now)]:
                self._call(calls)

    def wake(self, ids: Iterable[int]) -> None:
        """Have those of these jobs run that wait for a notice which is there."""
        self.moved(self.run(step_statements.wake(self._dialect), _ids(ids)))

    def moved(self, rows: Sequence[Row]) -> None:
        """These waiting jobs, rows of (id, state, marks, queue, kind), wait for something else now, or for nothing."""
        self.effects.admits |= touch(self._dialect, self.run, rows)
        self.effects.ready |= {(queue, kind) for _, state, _, queue, kind in rows if state == "ready"}

    def change(self, values: Mapping[str, Any]) -> list[Row]:
        """Change a job as ``Client.checked_change`` has it: its row, or none where a worker has taken it."""
        rows = self.run(operation_statements.CHANGE, values)
        if rows and values["queue"] is not None and rows[0][2] & LIMITED:
            self.run(operation_statements.MOVE_PLACE, values)
        self.moved(rows)
        # Workers look again: it may be due before anything that they know of.
        self.effects.admits |= bool(rows)
        return rows

    def _follow(self, ended: list[Row]) -> None:
        parents = [(row[0], row[1]) for row in ended if row[2] & PARENT]
        if parents and self._meet(parents):
            ended = ended + self._cancel_broken()
        self._count(ended)

    def _meet(self, ended: Sequence[tuple[int, str]]) -> bool:
        """These parents have ended, in these states; whether that is not what some child has asked for."""
        met, is_broken = Counter[int](), False
        for child, how in self.run(statements.meet(self._dialect), {"batch": batch_of(ended)}):
            met[child] += how == 1
            is_broken |= how == 2
        if met := +met:
            rows = self.run(statements.need_less(self._dialect), {"batch": batch_of(sorted(met.items()))})
            self._release(job_id for job_id, needs in rows if not needs)
        return is_broken

    def _release(self, ids: Iterable[int]) -> None:
        """These jobs wait for no parent any more."""
        if chosen := sorted(ids):
            self.moved(self.run(statements.release(self._dialect), {**_ids(chosen), "now": self.now}))

    def _cancel_broken(self) -> list[Row]:
        """Cancel the jobs whose parents did not end as they asked, and theirs in turn; no more than a piece."""
        cancelled: list[Row] = []
        is_broken = True
        while is_broken and self._room > 0:
            found = self.run(statements.broken(self._dialect), {"number": self._room})
            is_broken = len(found) == self._room
            self._room -= len(found)
            if not found:
                break
            reasons = {child: _reason(parent, state, rule) for child, parent, state, rule in found}
            values = {"batch": batch_of(sorted(reasons.items())), "now": self.now, "expires_at": self.now + self._keep}
            rows = self.run(statements.cancel_children(self._dialect), values)
            self.run(statements.settle_edges(self._dialect), _ids(sorted(reasons)))
            self.effects.cancelled += self.records([row[0] for row in rows])
            cancelled += rows
            touch(self._dialect, self.run, rows)
            if parents := [(row[0], row[1]) for row in rows if row[2] & PARENT]:
                is_broken |= self._meet(parents)
        self.effects.is_more |= is_broken
        return cancelled

    def _count(self, ended: Iterable[Row]) -> None:
        """Have batches count those of these jobs that belong to them."""
        members = [(row[0], code_of(row[1])) for row in ended if row[2] & MEMBER]
        if not members:
            return
        numbers: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for batch, code in self.run(statements.count_members(self._dialect), {"batch": batch_of(members)}):
            numbers[batch][code] += 1
        if numbers:
            self._change({batch: (lambda row, codes=codes: row.counting(codes, self.now, self._keep_failed))
                          for batch, codes in numbers.items()})  # fmt: skip

    # -- batches ----------------------------------------------------------------------------------------------------

    def _lock(self, batches: Iterable[int]) -> dict[int, BatchRow]:
        if not (ids := sorted(batches)):
            return {}
        rows = self.run(statements.lock_batches(self._dialect), _ids(ids))
        return {row[0]: BatchRow._make(row) for row in rows}

    def _change(self, changes: Mapping[int, Any]) -> None:
        """Change these batches, each by a function that gives its row afterwards and what has happened by that."""
        rows, happened, ended = [], [], []
        for batch_id, before in self._lock(changes).items():
            after, events = changes[batch_id](before)
            kept = (after.sealed, after.stop, after.ok, after.failed, after.cancelled, after.round, after.alarmed)
            rows.append((batch_id, *kept, after.ended_at, after.expires_at))
            happened += [(after, event) for event in events]
            self.effects.is_more |= after.stop > before.stop
            if after.ended_at is not None and before.ended_at is None:
                ended.append((-batch_id, after.state))
        self.run(statements.set_batches(self._dialect), {"batch": batch_of(rows)})
        if calls := [job for row, event in happened for job in _callback(row, event, self.now)]:
            self._call(calls)
        if ended:
            # What is to be cancelled by that is left to the next transaction: its batches may have to be locked first.
            self.effects.is_more |= self._meet(ended)

    def _call(self, jobs: Sequence[NewJob]) -> None:
        """Store callbacks: one job for an event of a round, whatever is tried again."""
        sql = job_statements.add_jobs(self._dialect)
        ids = {uid: job_id for job_id, uid in self.run(sql, {"batch": batch_of([job.row for job in jobs])})}
        add_permits(self._dialect, self.run, [(ids[job.uid], job) for job in jobs if job.uid in ids])
        self.effects.ready |= {(job.queue, job.kind) for job in jobs if job.state == "ready"}
        self.effects.admits |= any(job.lane is not None for job in jobs)

    def seal(self, batch_id: int, *, stop: bool = False) -> bool | None:
        """Let only its own jobs add others; with *stop* cancel what waits.

        Whether it did that; None without such a batch.
        """
        changed: list[bool] = []

        def seal(row: BatchRow) -> tuple[BatchRow, list[Event]]:
            changed.append(row.ended_at is None if stop else not row.sealed)
            if not changed[0]:
                return row, []
            return row._replace(sealed=1, stop=row.stop | stop).counting({}, self.now, self._keep_failed)

        self._change({batch_id: seal})
        return changed[0] if changed else None

    # -- coming back ------------------------------------------------------------------------------------------------

    def retry(self, ids: Sequence[int]) -> list[int]:
        """Put these jobs back into their queues, those that have failed or were cancelled; which these are."""
        if self._dialect.name == "postgresql":
            # An ending goes from the parents to their children, and may be under way.
            self.run(statements.lock_parents(self._dialect), _ids(ids))
        rows = [row for job_id in ids for row in self.run(job_statements.RETRY, {"id": job_id, "now": self.now})]
        self._on_retry(self.run, rows)
        self.back(rows)
        return [row[0] for row in rows]

    def back(self, rows: Sequence[Row], *, by_rule: bool = False) -> None:
        """These jobs had ended, and have not any more: rows of (id, state, marks, …).

        Those that waited for others wait again for those that have not ended. *by_rule*: and the others must have ended
        as it was asked.
        """
        marked = [row for row in rows if row[2] and row[1] not in (*_FINAL, "discarded")]
        if not marked:
            return
        self.effects.admits |= touch(self._dialect, self.run, marked)
        if members := [row[0] for row in marked if row[2] & MEMBER]:
            numbers: defaultdict[int, Counter[int]] = defaultdict(Counter)
            for _, batch, code in self.run(statements.counted_members(self._dialect), _ids(members)):
                numbers[batch][code] += 1
            self.run(statements.uncount_members(self._dialect), _ids(members))
        if waiting := [row[0] for row in marked if row[2] & WAITS]:
            self._wait_again(waiting, by_rule=by_rule)
        if members and numbers:
            self._change({batch: (lambda row, codes=codes: (row.reopened(codes), []))
                          for batch, codes in numbers.items()})  # fmt: skip

    def _wait_again(self, ids: Sequence[int], *, by_rule: bool) -> None:
        chosen = _ids(ids)
        if self._dialect.name == "postgresql":
            self.run(statements.lock_parents(self._dialect), chosen)
        self.run(statements.wait_again(self._dialect), chosen)
        self.run(statements.look_at_edges(self._dialect, by_rule=by_rule), chosen)
        rows = self.run(statements.count_needs(self._dialect), chosen)
        self._release(job_id for job_id, needs in rows if not needs)
        self.effects.is_more |= by_rule

    def cancelled_with(self, ids: Sequence[int]) -> list[int]:
        """The jobs that were cancelled because of these."""
        return [row[0] for row in self.run(statements.cancelled_with(self._dialect), _ids(ids))]

    # -- what was put off -------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Do a piece of what was put off."""
        self._count(self._cancel_broken())
        for (batch_id,) in self.run(statements.STOPPING, {"number": PIECE}):
            ids = self.run(statements.TO_STOP, {"id": batch_id, "number": self._room}) if self._room > 0 else []
            self._room -= len(ids)
            self.effects.is_more |= self._room <= 0
            if ids:
                values = {"batch": batch_of(ids), "now": self.now, "expires_at": self.now + self._keep}
                rows = self.run(operation_statements.cancel(self._dialect, "true"), values)
                self.effects.cancelled += self.records([row[0] for row in rows if row[1] == "cancelled"])
                self.changed(rows)

    # -- from time to time ------------------------------------------------------------------------------------------

    def tidy(self, after: tuple[int, int]) -> tuple[list[int], tuple[int, int]]:
        """Delete old batches, and look at some members and edges after those.

        Returns the jobs whose ending was not followed, which is a bug, and where to go on the next time.
        """
        self.run(statements.REMOVE_BATCHES, {"now": self.now, "number": PIECE})
        wrong: dict[int, Row] = {}
        cursors = []
        for sql, last in zip((statements.UNCOUNTED, statements.UNMET), after, strict=True):
            rows = self.run(sql, {"after": last, "number": LOOKED_AT})
            wrong |= {row[0]: (row[0], *row[2:]) for row in rows if row[1]}
            cursors.append(rows[-1][0] if len(rows) == LOOKED_AT else 0)
        self.changed([wrong[job_id] for job_id in sorted(wrong)])
        return sorted(wrong), (cursors[0], cursors[1])


# -- texts -------------------------------------------------------------------------------------------------------------


def _callback(batch: BatchRow, event: Event, now: int) -> list[NewJob]:
    stored = json.loads(batch.calls).get(event)
    return [] if stored is None else [_called(stored, f"batch:{batch.id}:{batch.round}:{event}", now)]


def _calls_of(row: Row, now: int) -> list[NewJob]:
    """What a job that has ended calls: one job for each of its endings, which have claims of their own."""
    job_id, claim, state, origin = row
    found, event = read_origin(origin), _EVENTS[state]
    if (stored := found.get(THEN, {}).get(event)) is None:
        return []
    job = _called(stored, f"ended:{job_id}:{claim}:{event}", now)
    carried = {CARRIED: found[CARRIED]} if CARRIED in found else {}
    return [job._replace(origin=json.dumps({"job": job_id, **carried, **read_origin(job.origin)}))]


def _called(stored: Sequence[Any], uid: str, now: int) -> NewJob:
    job = NewJob._make((*stored, None, None))
    run_at = now + job.run_at - job.created_at if job.run_at else 0
    return job._replace(uid=uid, created_at=now, run_at=run_at, unique_key=None, key=None)


def _reason(parent: int, state: str | None, rule: str) -> str:
    """Why a job that waited was cancelled, as it is stored."""
    what = f"Job {parent} {_WORDS.get(state or '', 'ended')}" if parent > 0 else f"Batch {-parent} has ended"
    wanted = {"succeeded": "succeed", "failed": "fail"}.get(rule, "end")
    return Failure(kind="cancelled", type="", message=f"{what}. This job waited for it to {wanted}.")._to_text()


def _ids(ids: Iterable[int]) -> dict[str, str]:
    return {"batch": batch_of([(job_id,) for job_id in ids])}
