"""Admission: which limited jobs may run now.

A limited job is *held* when it is due, and has a place (a row of ``taskworker_permit``) for its whole life. Whatever
changes such a job says so at its place, in the same transaction (:func:`touch`); a worker takes up what has changed,
counts what each lane of it has admitted, and admits the next. So room is never kept anywhere: it is the limit less the
jobs that are admitted and have not ended, and comes back exactly when a job ends.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter

from ..core.limits import QUEUE, LaneFacts, Numbers, Room, in_turn, limit_of, room
from ..core.rows import HOLDS, LIMITED, Claim, NewJob
from .driver import Row, Run
from .statements import limits as statements
from .statements.jobs import Dialect, batch_of

MOST_TAKEN_BACK = 10_000
LOOKED_AT = 1_000
"""Places that are compared with their jobs at a time."""
UNSEEN_LIMIT_MS = 7 * 24 * 3600 * 1000
"""A limit that no code has declared for this time is deleted. During a rolling deploy old and new code disagree."""
ADMIT_BATCH = 250
"""Places that are taken up, and jobs that are let into one lane, at a time."""


def touch(dialect: Dialect, run: Run, rows: Iterable[Row]) -> bool:
    """In the transaction that has changed these jobs, rows of (id, state, marks, …): whether any is limited."""
    batch = [(row[0],) for row in rows if row[2] & LIMITED and not _keeps_room(row[1], row[2])]
    if batch:
        run(statements.touch(dialect), {"batch": batch_of(batch)})
    return bool(batch)


def _ones(values: Sequence[int] | Sequence[str]) -> str:
    """A batch of one column."""
    return batch_of([(value,) for value in values])


def _keeps_room(state: str, marks: int) -> bool:
    return state == "running" or (bool(marks & HOLDS) and state in ("ready", "scheduled"))


def add_permits(dialect: Dialect, run: Run, jobs: Iterable[tuple[int, NewJob]]) -> None:
    """Give those of *jobs*, which were stored under these numbers, a place that are limited."""
    batch = [(job_id, job.lane) for job_id, job in jobs if job.lane is not None]
    if batch:
        run(statements.add_permits(dialect), {"batch": batch_of(batch)})


def charge(dialect: Dialect, run: Run, lanes: Mapping[str, int], limits: Mapping[str, Numbers], now: int) -> int | None:
    """Charge starts to the rates of their lanes, as *lanes* counts them. Returns when to look again."""
    moments = []
    for lane in sorted(lanes):
        numbers = limits.get(limit_of(lane))
        if numbers is not None and (interval := numbers._interval_us):
            burst = numbers.burst or 1
            least, most = now * 1000 - numbers._slack_us, now * 1000 + burst * interval
            values = {"lane": lane, "cost": lanes[lane] * interval, "early": (burst - 1) * interval}
            ((open_at,),) = run(statements.charge(dialect), {**values, "least": least, "most": most})
            moments.append(open_at)
    return min(moments, default=None)


def begin(dialect: Dialect, run: Run, ids: Iterable[int], now: int) -> int | None:
    """These limited jobs begin: charge their lanes. Returns when the next of them is to be looked at."""
    lanes = Counter(row[0] for row in run(statements.begin(dialect), {"batch": _ones(list(ids))}))
    return charge(dialect, run, lanes, stored_limits(run), now) if lanes else None


def close_lane(dialect: Dialect, run: Run, job_id: int, queue: str, until: int) -> None:
    """Start nothing of the job's lane until then; of its queue, where it has none and the queue is limited."""
    for (lane,) in run(statements.LANE_OF, {"id": job_id}) or [(f"{QUEUE}:{queue}",)]:
        run(statements.CLOSE_LANE, {"lane": lane, "until": until})
        run(statements.COUNT_CLOSING, {"limit": limit_of(lane)})
        sql = statements.take_back(dialect, "p.lane = :lane")
        touch(dialect, run, run(sql, {"lane": lane, "number": ADMIT_BATCH}))


# -- the limits themselves ---------------------------------------------------------------------------------------------


def stored_limits(run: Run) -> dict[str, Numbers]:
    """Every limit that is stored."""
    return {name: Numbers(*numbers) for name, *numbers, _ in run(statements.LIMITS, {})}


def declare_limits(run: Run, declared: Mapping[str, Numbers], now: int) -> None:
    """Store the limits of the code, but for those that were set at run time."""
    known = {name: (Numbers(*numbers), source) for name, *numbers, source in run(statements.LIMITS, {})}
    for name in sorted(declared):
        stored = known.get(name)
        if stored is None or (stored[1] == "code" and asdict(stored[0]) != asdict(declared[name])):
            set_limit(run, name, declared[name], now)


def set_limit(run: Run, name: str, numbers: Numbers, now: int, *, who: str | None = None) -> None:
    """Store a limit: that of the code, or, by *who*, one of the run time; and look at its lanes."""
    source = "code" if who is None else "runtime"
    values = {**asdict(numbers), "name": name, "source": source, "set_by": who, "now": now}
    run(statements.SET_LIMIT, values)
    run(statements.LOOK_AT_LIMIT, {"name": name})


def remove_limit(run: Run, name: str, now: int) -> None:
    """Delete a limit that no code declares, and look at its lanes."""
    run(statements.REMOVE_LIMIT, {"name": name})
    run(statements.LOOK_AT_LIMIT, {"name": name})


# -- from time to time -------------------------------------------------------------------------------------------------


def pause_queue(dialect: Dialect, run: Run, queue: str) -> None:
    """The queue was paused: its jobs that were admitted and have not begun give their room to others."""
    sql = statements.take_back(dialect, "p.queue = :queue")
    touch(dialect, run, run(sql, {"queue": queue, "number": MOST_TAKEN_BACK}))


def resume_queue(dialect: Dialect, run: Run, queue: str) -> None:
    """The queue is served again: its jobs go in line."""
    run(statements.unpark(dialect), {"queues": json.dumps([queue])})


def tidy(dialect: Dialect, run: Run, declared: Iterable[str], now: int, after: int) -> tuple[list[int], int]:
    """See which queues are served, delete what is as good as not there, and look at some places after *after*.

    Returns the jobs whose places contradicted them, which is a bug, and where to go on the next time.
    """
    known = Known.of(run(statements.facts(dialect), {"batch": "[]"}))
    for phase, act in ((4, resume_queue), (2, pause_queue)):
        for (queue,) in run(statements.queues_in(phase), {}):
            if known.serves(queue) == (phase == 4):
                act(dialect, run, queue)
    run(statements.REMOVE_LANES, {"now": now, "now_us": now * 1000})
    run(statements.see_limits(dialect), {"now": now, "names": json.dumps(list(declared))})
    run(statements.REMOVE_UNSEEN_LIMITS, {"before": now - UNSEEN_LIMIT_MS})
    looked_at = run(statements.heal(dialect), {"after": after, "number": LOOKED_AT})
    wrong = [job_id for job_id, fits in looked_at if not fits]
    if wrong:
        run(statements.touch(dialect), {"batch": _ones(wrong)})
    return wrong, looked_at[-1][0] if len(looked_at) == LOOKED_AT else 0


# -- admission ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a worker claims at once of what is admitted: it saves a lane the time of another call."""

    worker_id: str
    now: int
    """By its own clock."""
    room: Mapping[str, int]
    """In how many slots of each kind a job could start now."""
    serves: Callable[[str], bool]
    """Whether it takes jobs of a queue."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What one admission came to."""

    ready: list[tuple[str, str]] = field(default_factory=list)
    """The queue and kind of each job that was admitted and not claimed at once."""
    claims: list[Claim] = field(default_factory=list)
    """What was claimed at once, in the order in which it starts. Rates are charged."""
    is_more: bool = False
    """Whether there is more to take up."""
    next_open: int | None = None
    """When to look at the next of these lanes again, in epoch milliseconds."""
    queues: list[str] = field(default_factory=list)
    """Limited queues that may take more now."""


class Admission:
    """The statements of one database."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._changed = statements.changed(dialect)
        self._lock_lanes = statements.lock_lanes(dialect)
        self._place = statements.place(dialect)
        self._leave = statements.leave(dialect)
        self._touch = statements.touch(dialect)
        self._facts = statements.facts(dialect)
        self._first = statements.first_in_line(dialect)
        self._let_in = statements.let_in(dialect)
        self._take = statements.take(dialect)
        self._set_open, self._set_begun = (statements.set_phase(dialect, 2, begun=begun) for begun in (0, 1))
        self._park = statements.set_phase(dialect, 4)
        self._keep_lanes = statements.keep_lanes(dialect)
        self._next_turns = statements.next_turns(dialect)
        self._open_in = statements.open_in(dialect)
        self._set_turns = statements.keep_turns(dialect)

    def admit(self, run: Run, clock: Callable[[], int], wish: Wish | None = None) -> Admitted:
        """Take up what has changed, and admit what there is room for. In a write transaction at READ COMMITTED.

        A row that another session has locked is left alone: who has it changes it, or lets go of it, and the next look
        finds it. *clock* is that of the lanes: a start is charged when it is decided, however long what is before that
        takes.
        """
        changed = run(self._changed, {"number": ADMIT_BATCH, "now": clock()})
        if not changed:
            return Admitted()
        is_more = len(changed) >= ADMIT_BATCH
        if not all(row[2] for row in changed):
            # Others look at these lanes now. Wait for them only where there is nothing else to do.
            if any(row[2] for row in changed):
                changed, is_more = [row for row in changed if row[2]], True
            else:
                run(self._lock_lanes, {"batch": _ones(sorted({row[1] for row in changed}))})
        if ids := [row[0] for row in changed if row[0]]:
            run(self._place, {"batch": _ones(ids)})
        admitted = self._admit_to(run, clock(), {row[1] for row in changed}, wish)
        return replace(admitted, is_more=admitted.is_more or is_more)

    def pass_on(self, run: Run, rows: Iterable[Row], clock: Callable[[], int], wish: Wish | None) -> Admitted | None:
        """As :func:`touch`, and give the room of these jobs to the next in line. None where none has had any."""
        ids = [row[0] for row in rows if row[2] & LIMITED and not _keeps_room(row[1], row[2])]
        if not ids:
            return None
        left = run(self._leave, {"batch": _ones(ids)})
        if others := [job_id for job_id, _, is_locked in left if not is_locked]:
            # Another worker looks at these lanes, and may not see this ending.
            run(self._touch, {"batch": _ones(others)})
        lanes = {lane for _, lane, is_locked in left if is_locked}
        admitted = self._admit_to(run, clock(), lanes, wish) if lanes else Admitted()
        return replace(admitted, is_more=admitted.is_more or bool(others))

    def _admit_to(self, run: Run, now: int, lanes: Iterable[str], wish: Wish | None) -> Admitted:
        """Admit what these lanes, which are locked, have room for."""
        known = Known.of(run(self._facts, {"batch": _ones(sorted(lanes))}))
        free = self._free_of_fair(run, known)
        others = {name: self._whose_turn(run, name, number) for name, number in free.items()}
        if lanes := {lane for found in others.values() for lane, is_locked in found if is_locked} - known.lanes.keys():
            known = known.and_lanes_of(Known.of(run(self._facts, {"batch": _ones(sorted(lanes))})))
        rooms = {
            lane: room(known.limits.get(limit_of(lane)), facts, now, ADMIT_BATCH) for lane, facts in known.lanes.items()
        }
        shares = in_turn({lane: r.number for lane, r in rooms.items()}, free, known.turns)
        chosen, more = self._choose(run, {lane: number for lane, number in shares.items() if number}, known)
        numbers, taken = {lane: r.number for lane, r in rooms.items()}, Counter(limit_of(row[0]) for row in chosen)
        # Where those whose turn it was have no job in line, it is that of others.
        more |= {found[0][0] for name, found in others.items() if found and taken[name] < free[name]} & rooms.keys()
        rooms |= {lane: rooms[lane]._replace(opens_at=now) for lane in more}
        claims = self._claim(run, wish, chosen, known) if wish is not None and chosen else []
        claimed = {claim.id for claim in claims}
        rest = [row for row in chosen if row[1] not in claimed]
        if rest:
            batch = {"batch": _ones([row[1] for row in rest])}
            run(self._let_in, batch)
            if self._dialect.name == "sqlite":
                run(self._set_open, batch)
        rated = Counter(lane for lane, job_id, *_ in chosen if job_id in claimed and known.interval_us(lane))
        self._keep(run, {lane: r for lane, r in rooms.items() if lane not in rated}, known)
        if free:
            self._keep_turns(run, now, numbers, shares, chosen, known)
        moments = [charge(self._dialect, run, rated, known.limits, now) if rated else None]
        moments += [r.opens_at for lane, r in rooms.items() if lane not in rated]
        return Admitted(
            [(queue, kind) for _, _, queue, kind, *_ in rest],
            claims,
            is_more=bool(more),
            next_open=min((moment for moment in moments if moment is not None), default=None),
            queues=[lane.partition(":")[2] for lane in rooms if lane.startswith(f"{QUEUE}:")],
        )

    def _free_of_fair(self, run: Run, known: Known) -> dict[str, int]:
        """How many jobs may be admitted of each fair limit: one a slot, since a claim takes the oldest of them."""
        names = {limit_of(lane) for lane in known.lanes}
        fair = sorted(name for name in names if name in known.limits and known.limits[name].fair)
        return {name: max(0, known.slots - run(self._open_in, {"name": name})[0][0]) for name in fair}

    def _whose_turn(self, run: Run, name: str, number: int) -> list[Row]:
        """The lanes that have waited longest for their turn in that limit, and whether each is locked."""
        return run(self._next_turns, {"name": name, "number": min(number, ADMIT_BATCH)}) if number else []

    def _keep_turns(
        self,
        run: Run,
        now: int,
        numbers: Mapping[str, int],
        shares: Mapping[str, int],
        chosen: Iterable[Row],
        known: Known,
    ) -> None:
        """Store which lanes of fair limits have had their turn, and which wait for the next."""
        found = Counter(row[0] for row in chosen)
        turns: list[tuple[str, str | None, int]] = []
        for i, lane in enumerate(sorted(numbers, key=lambda lane: (known.turns[lane], lane))):
            limit = known.limits.get(limit_of(lane))
            if limit is not None and limit.fair:
                # One that was given less than it has room for, and took it all, may have more.
                waits = numbers[lane] > shares[lane] == found[lane]
                turns.append(
                    (lane, limit_of(lane) if waits else None, now * 1000 + i if found[lane] else known.turns[lane])
                )
        run(self._set_turns, {"batch": batch_of(sorted(turns))})

    def _claim(self, run: Run, wish: Wish, chosen: Iterable[Row], known: Known) -> list[Claim]:
        """Claim of these jobs, which are held and locked, as many as are wished for."""
        room = dict(wish.room)
        ids = []
        for _, job_id, queue, kind, solo, _ in sorted(chosen, key=lambda row: (-row[5], row[1])):
            if room[kind] > 0 and not solo and f"{QUEUE}:{queue}" not in known.limits and wish.serves(queue):
                room[kind] -= 1
                ids.append(job_id)
        if not ids:
            return []
        claims = in_order(run(self._take, {"batch": _ones(ids), "worker_id": wish.worker_id, "now": wish.now}))
        if claims and self._dialect.name == "sqlite":
            run(self._set_begun, {"batch": _ones([claim.id for claim in claims])})
        return claims

    def _choose(self, run: Run, rooms: Mapping[str, int], known: Known) -> tuple[list[Row], set[str]]:
        """The next in line of each lane, as many as there is room for, and the lanes that may take more."""
        admitted: list[Row] = []
        more: set[str] = set()
        number_aside = 0
        while rooms and number_aside < ADMIT_BATCH:
            found = self._first_in_line(run, rooms)
            numbers = Counter(row[0] for row in found)
            more |= {lane for lane, number in rooms.items() if number == ADMIT_BATCH == numbers[lane]}
            # A job that no worker would take must not have the room of others: it is put aside, and the next one comes.
            aside = {job_id: lane for lane, job_id, queue, *_ in found if not known.serves(queue)}
            if aside:
                run(self._park, {"batch": _ones(list(aside))})
                number_aside += len(aside)
            admitted += [row for row in found if row[1] not in aside]
            rooms = Counter(aside.values())
        return admitted, more | set(rooms)

    def _first_in_line(self, run: Run, rooms: Mapping[str, int]) -> list[Row]:
        if self._dialect.name == "postgresql":
            return run(self._first, {"batch": batch_of(list(rooms.items()))})
        return [row for lane, number in rooms.items() for row in run(self._first, {"lane": lane, "room": number})]

    def _keep(self, run: Run, rooms: Mapping[str, Room], known: Known) -> None:
        """Store when to look at lanes again. A lane that has no row, and needs no look, gets none."""
        kept: list[tuple[object, ...]] = []
        for lane, r in rooms.items():
            if lane in known.has_row:
                facts = known.lanes[lane]
                kept.append((lane, r.tat, r.opens_at, facts.tat, facts.closed_until))
            elif r.opens_at is not None:
                kept.append((lane, r.tat, r.opens_at, None, None))
        for statement in self._keep_lanes if kept else ():
            run(statement, {"batch": batch_of(kept)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What one admission knows."""

    lanes: dict[str, LaneFacts]
    has_row: frozenset[str]
    """The lanes that have a row."""
    limits: dict[str, Numbers]
    paused: frozenset[str]
    turns: dict[str, int]
    """When each lane last had its turn, where its limit is fair. Microseconds."""
    workers: tuple[tuple[frozenset[str] | None, frozenset[str], int], ...]
    """Of each worker the queues that it serves, None for all, those that it leaves to others, and its slots."""

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Known:
        """Read what :func:`statements.facts` gives."""
        lanes: dict[str, LaneFacts] = {}
        found: dict[str, dict[str, Row]] = {"lane": {}, "limit": {}, "paused": {}}
        workers: list[str] = []
        for what, name, *numbers in rows:
            if what == "worker":
                workers.append(name)
            else:
                found[what][name] = tuple(numbers)
        for lane, (is_open, not_begun, tat, closed_until, _) in found["lane"].items():
            lanes[lane] = LaneFacts(is_open, not_begun, tat or 0, closed_until or 0)
        return cls(
            lanes=lanes,
            has_row=frozenset(lane for lane, numbers in found["lane"].items() if numbers[2] is not None),
            limits={name: Numbers(*numbers) for name, numbers in found["limit"].items()},
            paused=frozenset(found["paused"]),
            turns={lane: numbers[4] or 0 for lane, numbers in found["lane"].items()},
            workers=tuple(map(_served, workers)),
        )

    @property
    def slots(self) -> int:
        """Those of all workers."""
        return sum(slots for _, _, slots in self.workers) or 1

    def and_lanes_of(self, other: Known) -> Known:
        """This, and what *other* knows about lanes."""
        return replace(
            self,
            lanes=self.lanes | other.lanes,
            has_row=self.has_row | other.has_row,
            turns=self.turns | other.turns,
        )

    def interval_us(self, lane: str) -> int:
        """The time between two starts of a lane, or 0 where its limit has no rate."""
        limit = self.limits.get(limit_of(lane))
        return limit._interval_us if limit is not None else 0

    def serves(self, queue: str) -> bool:
        """Whether a worker would take a job of that queue."""
        if queue in self.paused:
            return False
        return not self.workers or any(
            (names is None or queue in names) and queue not in excluded for names, excluded, _ in self.workers
        )


_ID, _PRIORITY = (itemgetter(Claim._fields.index(name)) for name in ("id", "priority"))


def in_order(rows: Iterable[Row]) -> list[Claim]:
    """The claims in the order in which they start: RETURNING promises none."""
    claims = sorted(map(Claim._make, rows), key=_ID)
    claims.sort(key=_PRIORITY, reverse=True)
    return claims


@functools.lru_cache(maxsize=256)
def _served(info: str) -> tuple[frozenset[str] | None, frozenset[str], int]:
    try:
        said = json.loads(info)
        queues = said["queues"]
        slots = said.get("concurrency", 1) + said.get("threads", 0)
        return None if queues is None else frozenset(queues), frozenset(said["exclude"]), slots
    except (ValueError, TypeError, LookupError):  # another version of the code may have written the row
        return None, frozenset(), 1
