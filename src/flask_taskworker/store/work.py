"""The worker's face of the Store: what its loop does, one statement or transaction a hop to the link's thread."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from ..core.failures import group_of
from ..core.limits import QUEUE, LaneFacts, Numbers, Room, room
from ..core.loggers import Logger, get_logger
from ..core.rows import MEMBER, Claim, Failure, JobRecord, NewJob, Outcome, OutcomeKind, ProgressReport
from ..core.tasks import DeclaredSchedule
from ..errors import StoreError
from .admission import (
    Admission,
    Admitted,
    Wish,
    add_permits,
    begin,
    charge,
    close_lane,
    declare_limits,
    in_order,
    resume_queue,
    tidy,
    touch,
)
from .driver import LoopLink, Row, RowLocked, RowRefused, Run
from .flows import Effects, Flows
from .rollups import Tally
from .sql import Store, declare_schedule, epoch_ms, next_fire_ms, record_of, schedule_row, to_duration_ms
from .statements import flows as flow_statements
from .statements import jobs as job_statements
from .statements import limits as limit_statements
from .statements import mails as mail_statements
from .statements import operations as operation_statements
from .statements import workers as worker_statements
from .statements.jobs import Dialect, batch_of, in_pieces

log: Logger = get_logger("store")

PRUNE_BATCH = 250
"""Small, so that others get at the write lock between two batches."""
PROMOTE_BATCH = 250
FLOOR_SECONDS = 1.0
"""On PostgreSQL a claim begins behind the last one; after this time from the beginning, where jobs come back."""
FLOOR_SHARE, LONGEST_FLOOR = 30, 30.0
"""But not before this many times as long as that takes: beside an old transaction it takes longer and longer."""
KEEP_MINUTES_MS = 2 * 24 * 3600 * 1000
KEEP_HOURS_MS = 62 * 24 * 3600 * 1000
KEEP_NOTES_MS = 400 * 24 * 3600 * 1000
"""How long the figures of minutes, those of hours and the audit log are kept."""
KEEP_TRIES = 50
"""Tries of one job whose log lines are kept: one that snoozes may have any number."""
UNSEEN_SCHEDULE_MS = 7 * 24 * 3600 * 1000
"""A schedule that no code has declared for this time is deleted. During a rolling deploy old and new code disagree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peek:
    """What there is to do. Times are epoch milliseconds."""

    next_due: int | None
    """When the next scheduled job is due."""
    next_fire: int | None
    """When the next schedule fires."""
    queues: dict[str, tuple[str, ...]]
    """The queues that have ready jobs of each kind."""
    suspects: tuple[str, ...]
    """The queues that have ready jobs which must run alone."""
    next_resume: int | None = None
    """When the next pause of a queue is over."""
    changed: bool = False
    """Whether limited jobs have changed, so that others may be admitted."""
    next_open: int | None = None
    """When to look at the next lane again, by the clock of the lanes: see :meth:`WorkerStore.lane_now`."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """The names of the limits, and whether they have a rate."""


class Promoted(NamedTuple):
    """What became of a batch of due jobs."""

    number: int
    ready: list[tuple[str, str]]
    """The queue and kind of each that is ready now."""


class DueSchedule(NamedTuple):
    """A schedule whose time has come."""

    name: str
    task: str
    trigger: str
    args: str
    next_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """What firing a schedule comes to."""

    schedule: DueSchedule
    next_at: int | None
    """Its next fire time, in epoch milliseconds; None if there is none left."""
    jobs: Sequence[NewJob]
    """One for each fire time, oldest first."""
    overlap: bool
    """Whether to make them although an earlier job of the schedule is unfinished."""


class Fired(NamedTuple):
    """What came of firing schedules, by their names."""

    made: dict[str, list[JobRecord]]
    refused: dict[str, StoreError]
    """What the database refuses, and will refuse again."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One execution that is over: what the store must learn."""

    claim: Claim
    outcome: Outcome
    started_at: int
    ended_at: int
    report: ProgressReport | None = None
    lines: str | None = None
    """What it has logged, as JSON."""


class Recorded(NamedTuple):
    """What came of recording endings."""

    states: dict[int, str]
    """The state of each job that took its ending; the others were fenced."""
    ended: list[Ended]
    """The endings as they are stored: what the database refused has become a failure."""
    later: list[Ended]
    """Those whose rows another session has locked: they are to be recorded later."""
    effects: Effects
    """What else has changed by that."""
    admitted: list[Admitted]
    """What got the room of limited jobs."""


class _Floor(NamedTuple):
    """The last job of a claim that took as many as there was room for."""

    until: float
    priority: int
    behind: int


class WorkerStore:
    """The rows as one worker's loop sees them. For that loop only. Errors come as StoreError."""

    def __init__(self, store: Store, link: LoopLink) -> None:
        dialect = store.driver.dialect
        self._store = store
        self._dialect = dialect
        self._link = link
        self._peek = job_statements.peek(dialect)
        self._claim = {kind: job_statements.claim(dialect, kind) for kind in ("async", "sync")}
        self._claim_behind = {kind: job_statements.claim_behind(kind) for kind in ("async", "sync")}
        self._floors: dict[tuple[str, str], _Floor] | None = {} if dialect.name == "postgresql" else None
        self._queue_facts = limit_statements.queue_facts(dialect)
        self._server_clock: tuple[int, float] | None = None
        """What the server's clock has said, in epoch milliseconds, and when that was."""
        self._claim_suspect = job_statements.claim_suspect(dialect)
        self._confirm = job_statements.confirm_claims(dialect)
        self._promote = job_statements.promote(dialect)
        self._finish_unmarked = [job_statements.finish_succeeded(dialect), job_statements.finish(dialect)]
        self._finish_succeeded, self._finish = (
            [statement(dialect, marked=True, skip_locked=skip) for skip in (False, True)]
            for statement in (job_statements.finish_succeeded, job_statements.finish)
        )
        self._locked_members = flow_statements.locked_members(dialect)
        self._unrecorded = job_statements.unrecorded(dialect)
        self._recorded = job_statements.recorded(dialect)
        self._add_attempts = job_statements.add_attempts(dialect)
        self._report_progress = job_statements.report_progress(dialect)
        self._due_schedules = job_statements.due_schedules(dialect)
        self._advance_schedules = job_statements.advance_schedules(dialect)
        self._add_scheduled_jobs = job_statements.add_scheduled_jobs(dialect)
        self._remove_ended_schedules = job_statements.remove_ended_schedules(dialect)
        self._see_schedules = job_statements.see_schedules(dialect)
        self._expired = job_statements.expired_jobs(dialect)
        self._flows_after = (0, 0)
        self._wrong = 0
        self._admission = Admission(dialect)
        self._looked_at = 0
        self._add_rollups = job_statements.add_rollups(dialect)
        self._add_lines = job_statements.add_lines(dialect)
        self._remove_lines = job_statements.remove_lines(dialect)
        self._keep_succeeded = to_duration_ms(store.keep_succeeded)
        self._keep_failed = to_duration_ms(store.keep_failed)

    @classmethod
    async def open(cls, store: Store) -> WorkerStore:
        """Connect. The connection belongs to the running loop."""
        return cls(store, await store.driver.connect())

    def hurry(self, seconds: float) -> None:
        """Wait for the database no longer than that: the worker stops."""
        self._link.hurry(seconds)

    async def close(self) -> None:
        """Close the connection and end its thread."""
        await self._link.close()

    # -- looking and claiming ---------------------------------------------------------------------------------------

    async def peek(self, may_fire: str) -> Peek:
        """Look at what there is to do. *may_fire*: the schedules of this worker, as ``Scheduler.may_fire`` has them."""
        found: dict[str, list[str]] = {"async": [], "sync": [], "suspect": []}
        moments: dict[str, Any] = {}
        limits: dict[str, int] = {}
        for what, queue, number in await self._link.read(self._peek, {"may_fire": may_fire}):
            if what in found:
                found[what].append(queue)
            elif what == "limit":
                limits[queue] = number
            else:
                moments[what] = number
        if "clock" in moments and self._store.clock is epoch_ms:
            self._server_clock = moments["clock"], time.monotonic()
        suspects = tuple(found.pop("suspect"))
        queues = {kind: tuple(names) for kind, names in found.items()}
        return Peek(
            next_due=moments["due"],
            next_fire=moments["fire"],
            queues=queues,
            suspects=suspects,
            next_resume=moments["resume"],
            changed=bool(moments["changed"]),
            next_open=moments["open"],
            limits=limits,
        )

    async def resume_queues(self) -> list[str]:
        """Resume the queues that were paused until now, and return their names."""
        now, dialect = self._store.clock(), self._dialect

        def body(run: Run) -> list[str]:
            over = [name for (name,) in run(limit_statements.PAUSES_OVER, {"now": now})]
            for name in over:
                run(operation_statements.RESUME_QUEUE, {"name": name})
                resume_queue(dialect, run, name)
            return over

        return await self._link.transaction(body)

    async def claim(self, worker_id: str, queue: str, kind: str, number: int) -> list[Claim]:
        """Take up to *number* ready jobs, highest priority and oldest first. None for a worker declared dead."""
        parameters = {"worker_id": worker_id, "queue": queue, "number": number, "now": self._store.clock()}
        rows: list[Row] = []
        floor = None if self._floors is None else self._floors.pop((queue, kind), None)
        began = time.monotonic()
        if floor is not None and floor.until > began:
            behind = {**parameters, "priority": floor.priority, "behind": floor.behind}
            rows = await self._link.write(self._claim_behind[kind], behind, durable=False)
        else:
            floor = None
        if len(rows) < number:
            rows += await self._link.write(
                self._claim[kind], {**parameters, "number": number - len(rows)}, durable=False
            )
        claims = in_order(rows)
        if self._floors is not None and len(claims) == number:
            now = time.monotonic()
            lasts = max(FLOOR_SECONDS, min(FLOOR_SHARE * (now - began), LONGEST_FLOOR))
            until = now + lasts if floor is None else floor.until
            self._floors[queue, kind] = _Floor(until, claims[-1].priority, claims[-1].id)
        return claims

    async def claim_within_limit(
        self, worker_id: str, queue: str, kind: str, number: int
    ) -> tuple[list[Claim], int | None]:
        """As :meth:`claim`, of a queue with a limit: no more than that has room for, and when it opens if it has none.

        Counting and claiming are one transaction, in which no other worker claims from the queue.
        """
        parameters = {"worker_id": worker_id, "queue": queue, "now": self._store.clock()}

        def body(run: Run) -> tuple[list[Row], int | None]:
            now = self.lane_now()
            limits, has = self._queue_room(run, [queue], now, number)
            rows = run(self._claim[kind], {**parameters, "number": has[queue].number}) if has[queue].number else []
            opens_at = charge(self._dialect, run, _lanes_of(rows), limits, now) if rows else has[queue].opens_at
            return rows, opens_at

        rows, opens_at = await self._link.transaction(body, durable=False)
        return in_order(rows), opens_at

    def _queue_room(
        self, run: Run, queues: Iterable[str], now: int, most: int
    ) -> tuple[dict[str, Numbers], dict[str, Room]]:
        """The limits of these queues, and what they have room for, *most* at the most; other workers wait meanwhile."""
        lanes = {queue: f"{QUEUE}:{queue}" for queue in queues}
        if self._dialect.name == "postgresql":
            run(limit_statements.lock_lanes(self._dialect), {"batch": batch_of([(lane,) for lane in lanes.values()])})
        limits: dict[str, Numbers] = {}
        has: dict[str, Room] = {}
        for queue, lane in lanes.items():
            has[queue] = room(None, LaneFacts(0, 0), now, most)
            for *numbers, running, tat, closed_until in run(self._queue_facts, {"queue": queue, "lane": lane}):
                limits[lane] = Numbers(*numbers)
                has[queue] = room(limits[lane], LaneFacts(running, 0, tat or 0, closed_until or 0), now, most)
        return limits, has

    async def begin(self, claims: Iterable[Claim]) -> int | None:
        """These limited jobs begin now: charge it to the rates of their lanes. When to look at the next of those."""
        ids = [claim.id for claim in claims]
        return await self._link.transaction(lambda run: begin(self._dialect, run, ids, self.lane_now()), durable=False)

    def lane_now(self) -> int:
        """Now in epoch milliseconds, as lanes have it: by PostgreSQL's clock, whatever becomes of this machine's."""
        if self._server_clock is None:
            return self._store.clock()
        ms, at = self._server_clock
        return ms + int((time.monotonic() - at) * 1000)

    async def declare_limits(self, declared: Mapping[str, Numbers]) -> None:
        """Store the limits of the code."""
        now = self._store.clock()
        await self._link.transaction(lambda run: declare_limits(run, declared, now))

    async def tidy_limits(self, declared: Iterable[str]) -> int:
        """What limits need from time to time; how many places contradicted their jobs."""
        now = self._store.clock()

        def body(run: Run) -> tuple[list[int], int]:
            return tidy(self._dialect, run, declared, now, self._looked_at)

        wrong, self._looked_at = await self._link.transaction(body, durable=False)
        if wrong:
            log.error("places in line contradicted their jobs, please report it: %s", wrong[:10])
        return len(wrong)

    async def go_on(self) -> Effects:
        """Do a piece of what was put off: see :class:`Effects`."""
        return await self._flow(lambda flows: flows.go_on())

    async def tidy_flows(self) -> tuple[int, Effects]:
        """What batches and jobs that wait need from time to time; how many endings were not followed."""

        def body(flows: Flows) -> None:
            wrong, self._flows_after = flows.tidy(self._flows_after)
            if wrong:
                log.error("endings of jobs were not followed, please report it: %s", wrong[:10])
            self._wrong = len(wrong)
            flows.go_on()

        effects = await self._flow(body)
        return self._wrong, effects

    async def _flow(self, body: Callable[[Flows], None]) -> Effects:
        def told(run: Run) -> Effects:
            flows = self._store.flows(run)
            body(flows)
            return flows.effects

        return await self._link.transaction(told)

    async def look_again(self) -> None:
        """The clock was set back: look at all lanes."""
        await self._link.write(limit_statements.LOOK_AGAIN, {}, durable=False)

    async def claim_suspect(
        self, worker_id: str, queues: Sequence[str] | None, limited: Collection[str] = ()
    ) -> list[Claim]:
        """Take one job that must run alone, of these queues or of all; *limited*: those of them that have a limit."""
        parameters = {"worker_id": worker_id, "now": self._store.clock()}
        if not limited:
            names = None if queues is None else json.dumps(queues)
            rows = await self._link.write(self._claim_suspect, {**parameters, "queues": names}, durable=False)
            return in_order(rows)

        def body(run: Run) -> list[Row]:
            now = self.lane_now()
            limits, has = self._queue_room(run, sorted(limited), now, 1)
            open_queues = [queue for queue in queues or () if queue not in has or has[queue].number]
            rows = run(self._claim_suspect, {**parameters, "queues": json.dumps(open_queues)})
            charge(self._dialect, run, _lanes_of(rows), limits, now)
            return rows

        return in_order(await self._link.transaction(body, durable=False))

    async def confirm(self, claims: Sequence[Claim]) -> None:
        """Have these claims reach the disk: a power cut must not undo one of a job that may run only once."""
        batch = batch_of([(claim.id,) for claim in claims])
        await self._link.write(self._confirm, {"batch": batch, "now": self._store.clock()})

    async def promote(self) -> Promoted:
        """Make due jobs ready, or held where they belong to a limit."""
        parameters = {"now": self._store.clock(), "number": PROMOTE_BATCH}

        def body(run: Run) -> list[Row]:
            rows = run(self._promote, parameters)
            touch(self._dialect, run, rows)
            return rows

        rows = await self._link.transaction(body, durable=False)
        return Promoted(len(rows), [(queue, kind) for _, state, _, queue, kind in rows if state == "ready"])

    async def admit(self, wish: Wish | None = None) -> Admitted:
        """Admit a batch of the limited jobs that there is room for, and claim of them what is wished for."""
        admit = self._admission.admit
        admitted = await self._link.transaction(lambda run: admit(run, self.lane_now, wish), durable=False)
        return self._seen(admitted)

    def _seen(self, admitted: Admitted) -> Admitted:
        if self._floors:
            # They may be older than what was claimed.
            for place in admitted.ready:
                self._floors.pop(place, None)
        return admitted

    # -- finishing --------------------------------------------------------------------------------------------------

    async def finish(self, worker_id: str, ended: Sequence[Ended], wish: Wish | None = None) -> Recorded:
        """Record endings, in pieces of a few megabytes. What the database refuses of one becomes a failure.

        The room of limited jobs is given to others in the same transaction; of these is claimed what is wished for.
        """
        states = {e.claim.id: e.outcome.ending.value for e in ended if e.outcome.recorded}
        book = Recorded(states, list(ended), [], Effects(), [])
        plain: list[Ended] = []
        special: list[tuple[Ended, tuple[object, ...]]] = []
        for e in ended:
            if _is_plain(e):
                plain.append(e)
            elif not e.outcome.recorded:
                special.append((e, self._finish_row(e)))
        if plain:
            await self._record_plain(plain, book, wish)
        for piece in in_pieces(special, lambda pair: _size(pair[1])):
            try:
                await self._record_special(worker_id, piece, book, wish)
            except RowRefused:
                for pair in piece:
                    await self._record_alone(worker_id, pair, book)
        if reports := [(e.claim, e.report) for e in ended if e.report is not None and e.outcome.recorded]:
            await self.report_progress(reports)
        return book

    async def recorded(self, ended: Sequence[Ended]) -> dict[int, str]:
        """Which of these endings are stored already, although the answer that said so was lost."""
        batch = batch_of([(e.claim.id, e.claim.claim, e.outcome.ending.state.value) for e in ended])
        return _states(await self._link.read(self._recorded, {"batch": batch}))

    async def _record_plain(self, ended: Sequence[Ended], book: Recorded, wish: Wish | None) -> None:
        now = ended[-1].ended_at
        # Of two tries of one job the later one counts.
        claims = {e.claim.id: e.claim.claim for e in sorted(ended, key=attrgetter("claim.claim"))}
        parameters = {"now": now, "expires_at": now + self._keep_succeeded}
        marked = {e.claim.id for e in ended if e.claim.marks}
        if unmarked := {job_id: claim for job_id, claim in claims.items() if job_id not in marked}:
            with suppress(RowLocked):
                rows = await self._link.write(self._finish_unmarked[0], {**parameters, "batch": batch_of(unmarked)})
                book.states.update(dict.fromkeys((row[0] for row in rows), OutcomeKind.SUCCEEDED.value))
            # The others were fenced, are locked, or were marked while they ran.
            claims = {job_id: claim for job_id, claim in claims.items() if job_id not in book.states}
        if claims:

            def values(locked: Collection[int]) -> dict[str, object]:
                return {**parameters, "batch": batch_of({i: claim for i, claim in claims.items() if i not in locked})}

            await self._record(self._finish_succeeded, values, [e for e in ended if e.claim.id in claims], book, wish)

    async def _record_special(
        self,
        worker_id: str,
        piece: Sequence[tuple[Ended, tuple[object, ...]]],
        book: Recorded,
        wish: Wish | None = None,
    ) -> None:
        if not any(e.outcome.failure or e.claim.marks or e.outcome.closes for e, _ in piece):
            with suppress(RowLocked):
                batch = batch_of([row for _, row in piece])
                book.states.update(_states(await self._link.write(self._finish_unmarked[1], {"batch": batch})))
            piece = [pair for pair in piece if pair[0].claim.id not in book.states]
        if piece:

            def values(locked: Collection[int]) -> dict[str, object]:
                return {"batch": batch_of([row for e, row in piece if e.claim.id not in locked])}

            ended = [e for e, _ in piece]
            also = partial(self._note_ends, worker_id, ended)
            await self._record(self._finish, values, ended, book, wish, also)

    async def _record(
        self,
        statements: Sequence[str],
        values: Callable[[Collection[int]], dict[str, object]],
        ended: Sequence[Ended],
        book: Recorded,
        wish: Wish | None,
        also: Callable[[Run, Mapping[int, str]], None] | None = None,
    ) -> None:
        """Record endings and what follows from them; later those of which another session has a row locked."""
        for skip_locked, sql in enumerate(statements):

            def body(
                run: Run, sql: str = sql, skip_locked: int = skip_locked
            ) -> tuple[dict[int, str], Effects, Admitted | None]:
                flows = self._store.flows(run)
                # SQLite has one writer at a time.
                locked = self._locked(run, ended) if skip_locked and self._dialect.name == "postgresql" else ()
                rows = run(sql, values(locked))
                if also is not None:
                    also(run, _states(rows))
                flows.changed(rows, touches=False)
                admitted = self._admission.pass_on(run, rows, self.lane_now, wish)
                return _states(rows), flows.effects, admitted

            try:
                states, effects, admitted = await self._link.transaction(body)
            except RowLocked:
                if not skip_locked:
                    continue
            else:
                book.states.update(states)
                book.effects.add(effects)
                if admitted is not None:
                    book.admitted.append(self._seen(admitted))
            if skip_locked:
                await self._note_locked(ended, book)
            return

    def _locked(self, run: Run, ended: Sequence[Ended]) -> Collection[int]:
        batch = batch_of([(e.claim.id,) for e in ended if e.claim.marks & MEMBER])
        return {row[0] for row in run(self._locked_members, {"batch": batch})}

    def _note_ends(self, worker_id: str, ended: Iterable[Ended], run: Run, states: Mapping[int, str]) -> None:
        """What endings leave behind besides their rows."""
        attempts = [_attempt_row(worker_id, e) for e in ended if e.outcome.failure and e.claim.id in states]
        if attempts:
            run(self._add_attempts, {"batch": batch_of(attempts)})
        for e in ended:
            if e.outcome.closes and states.get(e.claim.id) == "scheduled":
                until = e.ended_at + to_duration_ms(e.outcome.delay or timedelta(0))
                skew = self.lane_now() - self._store.clock()
                close_lane(self._dialect, run, e.claim.id, e.claim.queue, until + skew)

    async def _record_alone(self, worker_id: str, pair: tuple[Ended, tuple[object, ...]], book: Recorded) -> None:
        """Record an ending by itself; what is refused of it is left out, and the job has failed."""
        try:
            return await self._record_special(worker_id, [pair], book)
        except RowRefused as error:
            refused = _refused(pair[0], error)
            log.error("the ending of %s cannot be stored, so the job has failed: %s", refused.claim, error)  # noqa: TRY400
        book.ended[book.ended.index(pair[0])] = refused
        try:
            await self._record_special(worker_id, [(refused, self._finish_row(refused))], book)
        except RowRefused as error:
            log.critical("%s stays running, since nothing of its ending can be stored: %s", refused.claim, error)

    async def _note_locked(self, ended: Sequence[Ended], book: Recorded) -> None:
        """Put aside the endings whose rows another session has locked; the other missing ones were fenced."""
        missing = {e.claim.id: e for e in ended if e.claim.id not in book.states}
        batch = batch_of([(e.claim.id, e.claim.claim) for e in missing.values()])
        later = {row[0] for row in await self._link.read(self._unrecorded, {"batch": batch})}
        book.later.extend(e for e in missing.values() if e.claim.id in later)
        book.ended[:] = [e for e in book.ended if e not in book.later]

    async def hand_back(self, worker_id: str, ended: Sequence[Ended]) -> None:
        """Record the last endings, those of jobs that go back among them, and deregister, all in one transaction."""
        piece = [(e, self._finish_row(e)) for e in ended if not e.outcome.recorded]
        batch = batch_of([row for _, row in piece])
        skip_locked = self._finish[-1]

        def body(run: Run) -> None:
            rows = run(skip_locked, {"batch": batch})
            self._note_ends(worker_id, [e for e, _ in piece], run, _states(rows))
            self._store.flows(run).changed(rows)
            run(worker_statements.REMOVE_WORKER, {"id": worker_id})

        await self._link.transaction(body)

    def _finish_row(self, ended: Ended) -> tuple[object, ...]:
        outcome, claim = ended.outcome, ended.claim
        again = not outcome.ending.state.finished
        usual = self._keep_failed if outcome.ending is OutcomeKind.FAILED else self._keep_succeeded
        keep = usual if outcome.keep is None else to_duration_ms(outcome.keep)
        # 0 means "at once"; a moment is only for jobs that wait.
        run_at = ended.ended_at + to_duration_ms(outcome.delay) if outcome.delay else 0
        run_at = outcome.until if outcome.until is not None else run_at
        state = "ready" if again and not run_at else outcome.ending.state.value
        return (
            claim.id,
            claim.claim,
            state,
            int(again),
            run_at if again else claim.run_at,
            outcome.ending.failures,
            int(outcome.ending is not OutcomeKind.RELEASED),
            outcome.result,
            outcome.failure._to_text() if outcome.failure else None,
            outcome.failure.kind if outcome.failure else None,
            group_of(claim.task, outcome.failure) if outcome.failure and outcome.ending is OutcomeKind.FAILED else None,
            ended.ended_at,
            ended.ended_at + keep,
            ended.report.to_text() if ended.report else None,
        )

    async def report_progress(self, reports: Sequence[tuple[Claim, ProgressReport]]) -> None:
        """Write what jobs report."""
        rows = [(claim.id, claim.claim, report.to_text()) for claim, report in reports]
        await self._write_rows(self._report_progress, rows)

    async def _write_rows(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        """A statement over a batch, cheaply; a row that the database refuses is logged and left out."""
        for piece in in_pieces(rows, _size):
            try:
                await self._link.write(sql, {"batch": batch_of(piece)}, durable=False)
            except RowRefused as error:
                if len(rows) == 1:
                    log.error("not stored of job %s: %s", rows[0][0], error)  # noqa: TRY400
                    return
                for row in piece:
                    await self._write_rows(sql, [row])

    # -- schedules --------------------------------------------------------------------------------------------------

    async def declare_schedules(
        self, schedules: Iterable[DeclaredSchedule], now: Callable[[int], Any]
    ) -> dict[str, StoreError | None]:
        """Store the schedules that code declares. *now* turns the clock's milliseconds into a moment.

        Returns those that are not stored, by name: with the error where the database refuses one, without where the
        name belongs to a schedule made at run time. Raises RowLocked where another session has one locked.
        """
        ms = self._store.clock()
        # In one order in all processes: each waits for the rows of the other, and never both.
        ordered = sorted((s._in_zone(self._store.timezone) for s in schedules), key=lambda schedule: schedule.name)
        rows = [schedule_row(s, next_fire_ms(s, now(ms)), "code", ms) for s in ordered]

        def declare(some: Sequence[dict[str, Any]], run: Run) -> dict[str, StoreError | None]:
            return {row["name"]: None for row in some if not declare_schedule(run, row)}

        if not rows:
            return {}
        try:
            return await self._link.transaction(partial(declare, rows))
        except RowRefused:
            missing: dict[str, StoreError | None] = {}
            for row in rows:
                try:
                    missing |= await self._link.transaction(partial(declare, [row]))
                except RowRefused as error:
                    missing[row["name"]] = error
            return missing

    async def due_schedules(self, may_fire: str, number: int) -> list[DueSchedule]:
        """Up to *number* of the schedules of *may_fire* whose time has come, most overdue first."""
        parameters = {"may_fire": may_fire, "now": self._store.clock(), "number": number}
        return [DueSchedule._make(row) for row in await self._link.read(self._due_schedules, parameters)]

    async def fire(self, firings: Sequence[Firing]) -> Fired:
        """Move schedules on and make their jobs, in one transaction; a schedule that is refused is left out.

        A schedule that another worker was faster to move is not in the answer. Without *overlap* a job is left out
        while an earlier one of its schedule is unfinished.
        """
        try:
            return Fired(await self._link.transaction(partial(self._fire, firings)), {})
        except RowRefused as error:
            if len(firings) == 1:
                return Fired({}, {firings[0].schedule.name: error})
        fired = Fired({}, {})
        for firing in firings:
            made, refused = await self.fire([firing])
            fired.made.update(made)
            fired.refused.update(refused)
        return fired

    def _fire(self, firings: Sequence[Firing], run: Run) -> dict[str, list[JobRecord]]:
        steps = batch_of([(f.schedule.name, f.schedule.next_at, f.next_at, _last_at(f)) for f in firings])
        moved = {row[0] for row in run(self._advance_schedules, {"batch": steps})}
        mine = [f for f in firings if f.schedule.name in moved]
        jobs = {job.uid: job for f in mine for job in f.jobs}
        made: dict[str | None, list[JobRecord]] = {}
        if jobs:
            batch = batch_of([(*job.row, int(f.overlap)) for f in mine for job in f.jobs])
            rows = sorted(run(self._add_scheduled_jobs, {"batch": batch}))
            add_permits(self._dialect, run, [(job_id, jobs[uid]) for job_id, uid in rows])
            for job_id, uid in rows:
                made.setdefault(jobs[uid].schedule, []).append(record_of(jobs[uid], job_id))
        if ended := [f.schedule.name for f in mine if f.next_at is None]:
            run(self._remove_ended_schedules, {"names": json.dumps(ended)})
        return {f.schedule.name: made.get(f.schedule.name, []) for f in mine}

    async def schedules_of_the_future(self, may_fire: str, after: int, number: int) -> list[DueSchedule]:
        """Up to *number* of the schedules of *may_fire* that have fired at a time later than *after*."""
        sql = job_statements.schedules_of_the_future(self._store.driver.dialect)
        rows = await self._link.read(sql, {"may_fire": may_fire, "after": after, "number": number})
        return [DueSchedule._make(row) for row in rows]

    async def move_schedule(self, schedule: DueSchedule, next_at: int | None) -> bool:
        """Set a schedule's next time; False if another worker has moved it since it was read."""
        parameters = {"name": schedule.name, "expected": schedule.next_at, "next_at": next_at}
        return bool(await self._link.write(operation_statements.MOVE_SCHEDULE, parameters))

    async def see_schedules(self, names: Sequence[str]) -> None:
        """Note that these schedules are still declared, and delete those that no worker has declared for a week."""
        now = self._store.clock()
        await self._link.write(self._see_schedules, {"now": now, "batch": batch_of([(name,) for name in names])})
        await self._link.write(job_statements.REMOVE_UNSEEN_SCHEDULES, {"before": now - UNSEEN_SCHEDULE_MS})

    # -- upkeep -----------------------------------------------------------------------------------------------------

    async def prune(self) -> int:
        """Delete one small batch of jobs whose time is over, and one of queued mails; the size of the larger."""
        parameters = {"now": self._store.clock(), "number": PRUNE_BATCH}

        def body(run: Run) -> int:
            gone = run(self._expired, parameters)
            remove_parts(self._dialect, run, gone)
            return max(len(gone), prune_mails(self._store.driver.dialect, run, parameters))

        return await self._link.transaction(body, durable=False)

    async def add_rollups(self, tally: Tally) -> None:
        """Add what ended to the figures of its minute and hour. A power cut, or a lost answer, may cost some."""
        await self._link.write(self._add_rollups, {"batch": batch_of(tally.rows())}, durable=False)

    async def remove_old_figures(self) -> None:
        """Delete roll-ups and audit lines whose time is over."""
        now = self._store.clock()
        parameters = {"minutes_before": now - KEEP_MINUTES_MS, "hours_before": now - KEEP_HOURS_MS}
        await self._link.write(job_statements.REMOVE_ROLLUPS, parameters, durable=False)
        await self._link.write(operation_statements.REMOVE_NOTES, {"before": now - KEEP_NOTES_MS}, durable=False)

    async def add_lines(self, lines: Sequence[tuple[Claim, str]]) -> None:
        """Store what tries have logged: for each its lines so far, as JSON; of a job those of the last tries."""
        await self._write_rows(self._add_lines, [(claim.id, claim.claim, text) for claim, text in lines])
        old = [(c.id, c.claim - KEEP_TRIES) for c, _ in lines if c.claim > KEEP_TRIES]
        if old:
            await self._link.write(self._remove_lines, {"batch": batch_of(old)}, durable=False)

    async def start_draining(self, worker_id: str) -> None:
        """Say that this worker claims no more."""
        await self._link.write(worker_statements.START_DRAINING, {"id": worker_id})

    async def held(self, worker_id: str) -> dict[tuple[int, int], int]:
        """(id, claim) of the jobs that the worker holds according to the store, with their marks."""
        rows = await self._link.read(worker_statements.HELD_JOBS, {"id": worker_id})
        return {(job_id, claim): marks for job_id, claim, marks in rows}


def remove_parts(dialect: Dialect, run: Run, gone: Sequence[Row]) -> None:
    """Delete what belongs to deleted jobs, rows of (id, marks)."""
    marked = [row for row in gone if row[1]]
    for some, parts in ((gone, job_statements.PARTS), (marked, job_statements.MARKED_PARTS)):
        for table, column in parts if some else ():
            sql = job_statements.expired_attempts(dialect, table, column)
            run(sql, {"batch": batch_of([(row[0],) for row in some])})


def prune_mails(dialect: Dialect, run: Run, parameters: Mapping[str, Any]) -> int:
    """Delete one batch of queued mails whose time is over, and the blobs that no other mail uses."""
    gone = run(mail_statements.expired_mails(dialect), parameters)
    if gone:
        ids = json.dumps([mail_id for mail_id, _ in gone])
        run(mail_statements.remove_recipients(dialect), {"ids": ids})
        run(mail_statements.remove_bodies(dialect), {"ids": ids})
        released = Counter(part for _, layout in gone for part in mail_statements.hashes_in(layout))
        if released:
            run(mail_statements.release_blobs(dialect), {"batch": batch_of(list(released.items()))})
            run(mail_statements.remove_unused_blobs(dialect), {"hashes": json.dumps(list(released))})
    return len(gone)


def _refused(ended: Ended, error: StoreError) -> Ended:
    """The ending of a job of whose outcome the database refuses something."""
    message = ascii(str(error)).strip("'\"")[:500]
    failure = Failure(kind="result", type="RowRefused", message=message)
    outcome = Outcome(OutcomeKind.FAILED, failure=failure, keep=ended.outcome.keep)
    return Ended(ended.claim, outcome, ended.started_at, ended.ended_at)


def _size(row: Sequence[object]) -> int:
    """How many characters a row takes in a batch, about."""
    return 100 + sum(len(value) for value in row if isinstance(value, str))


def _is_plain(ended: Ended) -> bool:
    outcome = ended.outcome
    return (
        outcome.ending is OutcomeKind.SUCCEEDED
        and not outcome.recorded
        and outcome.result is None
        and outcome.keep is None
        and ended.report is None
        and not ended.claim.failures
    )


def _last_at(firing: Firing) -> int | None:
    return firing.jobs[-1].fire_at if firing.jobs else None


_QUEUE = Claim._fields.index("queue")


def _lanes_of(rows: Iterable[Row]) -> Mapping[str, int]:
    """How many of these claims are to be charged to the lane of each queue."""
    return Counter(f"{QUEUE}:{row[_QUEUE]}" for row in rows)


def _states(rows: Iterable[Sequence[Any]]) -> dict[int, str]:
    return {row[0]: row[1] for row in rows}


def _attempt_row(worker_id: str, ended: Ended) -> tuple[object, ...]:
    outcome, claim = ended.outcome, ended.claim
    error = outcome.failure._to_text() if outcome.failure else None
    return (
        claim.id,
        claim.claim,
        claim.attempt,
        worker_id,
        ended.started_at,
        ended.ended_at,
        outcome.ending.value,
        error,
    )
