"""Limits: how many jobs run at once, and how many start in a time, over all processes. Pure.

A limit without a key has one *lane*, one with a key has a lane for each value of the key. The arithmetic of rates is
the generic cell rate algorithm: a lane has a *tat* ("theoretical arrival time"), which each start moves on by the
interval between two starts; how far it is ahead of now says how many starts are left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from ..errors import ArgumentsError, DeclarationError
from .clock import as_timedelta

MAX_KEY = 200
MOST = 2**31 - 1
MOST_SLACK_US = 50_000
LONG_INTERVAL_US = 200_000
"""Where starts are further apart, it does not matter if one is a little late."""
QUEUE = "queue"
"""The limit of the queue "mail" is named "queue:mail", so no other limit may be named "queue"."""


@dataclass(frozen=True, slots=True, init=False)
class Rate:
    """At most *number* starts in *per* (seconds or a timedelta; default 1 s), evenly spread.

    ``burst`` (default 1): how many may start at once after a pause. In no period *per* do more than *number* + *burst*
    - 1 jobs start. Raises DeclarationError for values that make no sense.
    """

    number: int
    per: timedelta
    burst: int

    def __init__(self, number: int, per: float | timedelta = 1.0, burst: int = 1) -> None:
        _check_count("Rate's number", number)
        _check_count("Rate's burst", burst)
        if burst > number:
            raise DeclarationError(f"Rate's burst is {burst}, more than its number, {number}. Give a smaller burst.")
        period = as_timedelta(per, "Rate's per")
        if period // timedelta(microseconds=1) < number:
            raise DeclarationError(
                f"Rate({number}, per={per!r}) is more than one start in a microsecond. Give a longer per."
            )
        for name, value in (("number", number), ("per", period), ("burst", burst)):
            object.__setattr__(self, name, value)

    @property
    def _numbers(self) -> tuple[int, int, int]:
        """What it comes to where jobs are admitted: the number, the period in microseconds, and the burst."""
        return self.number, self.per // timedelta(microseconds=1), self.burst

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read "100/60s", or "100/m:5" with a burst. Raises DeclarationError."""
        found = _RATE.fullmatch(text.replace(" ", ""))
        if found is None:
            raise DeclarationError(
                f"{text!r:.80} is not a rate. Give N/PERIOD or N/PERIOD:BURST, as 100/60s or 20/s:5."
            )
        number, length, unit, burst = found.groups()
        period = timedelta(microseconds=int(Decimal(length or 1) * _UNITS_US[unit or "s"]))
        return cls(int(number), period, int(burst or 1))


_RATE = re.compile(r"(\d{1,10})/(?=.)(\d{1,10}(?:\.\d{1,6})?)?(ms|s|m|min|h|d)?(?::(\d{1,10}))?", re.ASCII)
_UNITS_US = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "min": 60_000_000, "s": 1_000_000, "ms": 1_000}


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a limit comes to where jobs are admitted."""

    running: int | None = None
    amount: int | None = None
    per_us: int | None = None
    burst: int | None = None
    fair: int = field(default=0, compare=False)
    """Whether keys are served in turn: only the code says so."""

    def __str__(self) -> str:
        parts = {"running": self.running, "rate": self.rate}
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)

    @property
    def rate(self) -> str | None:
        """The rate as :meth:`Rate.parse` reads it; None without one."""
        if self.amount is None or self.per_us is None:
            return None
        unit = next((name for name in ("d", "h", "m") if self.per_us % _UNITS_US[name] == 0), "s")
        length = Decimal(self.per_us) / _UNITS_US[unit]
        burst = "" if self.burst in (None, 1) else f":{self.burst}"
        return f"{self.amount}/{'' if length == 1 else f'{length:f}'}{unit}{burst}"

    @property
    def _slack_us(self) -> int:
        """How late a start may be, in microseconds, without all those behind it being late by as much."""
        if not self.per_us or not self.amount or self.per_us >= LONG_INTERVAL_US * self.amount:
            return 0
        return min(self.per_us // 50, MOST_SLACK_US)

    @property
    def _interval_us(self) -> int:
        """Microseconds between two starts, or 0 without a rate.

        Longer than the rate asks for by what starts may be late, and by as much for what passes between deciding and
        starting: so no period has more starts than it may have, although late ones are made up for.
        """
        return -(-(self.per_us + 2 * self._slack_us) // self.amount) if self.per_us and self.amount else 0


@dataclass(frozen=True, slots=True, init=False)
class Limit:
    """How many jobs may run at once, and how many may start in a time, over all processes and machines.

    ``running``: the most at once. ``rate``: a :class:`Rate`. At least one of them. ``key``: the name of a
    parameter of the task, or a function of its arguments: each value has a lane of its own. ``hold``: a job keeps its
    place between its tries, so that no other overtakes it. ``fair``: when the keys together have more jobs than the
    workers have slots, they are served in turn; else older jobs go first.

    Within a lane the highest priority goes first, then the oldest job. Raises DeclarationError.
    """

    name: str
    running: int | None
    rate: Rate | None
    key: str | Callable[..., object] | None
    hold: bool
    fair: bool

    def __init__(
        self,
        name: str = "",
        *,
        running: int | None = None,
        rate: Rate | None = None,
        key: str | Callable[..., object] | None = None,
        hold: bool = False,
        fair: bool = False,
    ) -> None:
        what = f"The limit {name!r}"
        if not _is_word(name):
            raise DeclarationError(f"A limit's name is {name!r:.80}. Give up to {MAX_KEY} printable characters.")
        if ":" in name or name == QUEUE:
            raise DeclarationError(f"{what} cannot have this name: leave out the colon, and do not call it {QUEUE!r}.")
        if running is None and rate is None:
            raise DeclarationError(f"{what} limits nothing. Give it running=…, rate=Rate(…) or both.")
        if running is not None:
            _check_count(f"{what}: running", running)
        if rate is not None and not isinstance(rate, Rate):
            raise DeclarationError(f"{what}: rate is {rate!r:.80}. Give a Rate(…), as Rate(20, per=1).")
        if key is not None and not isinstance(key, str) and not callable(key):
            raise DeclarationError(f"{what}: key is {key!r:.80}. Give the name of a parameter, or a function.")
        if hold and running is None:
            raise DeclarationError(f"{what}: hold=True keeps room between tries, so it needs running=….")
        if fair and key is None:
            raise DeclarationError(f"{what}: fair=True serves keys in turn, so it needs key=….")
        values = (("name", name), ("running", running), ("rate", rate), ("key", key), ("hold", hold), ("fair", fair))
        for attribute, value in values:
            object.__setattr__(self, attribute, value)

    @property
    def _numbers(self) -> Numbers:
        """What it comes to where jobs are admitted."""
        numbers = Numbers(self.running, *(self.rate._numbers if self.rate else ()))
        return replace(numbers, fair=int(self.fair))

    def _is_same(self, other: Limit) -> bool:
        """Whether both limit the same. Functions for keys cannot be compared."""
        is_named = isinstance(self.key, str) or isinstance(other.key, str)
        same_key = self.key == other.key if is_named else (self.key is None) == (other.key is None)
        return same_key and (self.name, self._numbers, self.hold) == (other.name, other._numbers, other.hold)

    def _lane(self, key: object) -> str:
        """The lane of a job with this key. Raises ArgumentsError for any other key."""
        if isinstance(key, tuple | list) and key and all(isinstance(part, str | int | UUID) for part in key):
            key = "/".join(map(str, key))
        text = str(key) if isinstance(key, str | int | UUID) else ""
        if not text or not _is_word(text):
            raise ArgumentsError(
                f"The key of a job under the limit {self.name!r} is {key!r:.80}. Give a whole number, a UUID, text, "
                f"or a tuple of these, of 1 to {MAX_KEY} printable characters."
            )
        return f"{self.name}:{text}"


def _is_word(text: object) -> bool:
    return isinstance(text, str) and len(text) <= MAX_KEY and text.isprintable()


def _check_count(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise DeclarationError(f"{what} is {value!r:.80}. Give a whole number, at least 1.")


# -- the arithmetic ----------------------------------------------------------------------------------------------------


class LaneFacts(NamedTuple):
    """How a lane stands. ``tat`` is in microseconds, ``closed_until`` in milliseconds."""

    open: int
    """Jobs that were admitted and have not ended."""
    not_begun: int
    """Of these the ones whose start was not charged to the rate."""
    tat: int = 0
    closed_until: int = 0


class Room(NamedTuple):
    """What a lane has room for."""

    number: int
    opens_at: int | None
    """When there will be room without anything else happening, in epoch milliseconds."""
    tat: int


def room(limit: Numbers | None, facts: LaneFacts, now: int, most: int) -> Room:
    """How many jobs to admit at *now* (epoch ms), *most* at the most. A lane without a limit has room for all."""
    now_us = now * 1000
    tat = facts.tat
    number = most
    opens_at = None
    if limit is not None and limit._interval_us:
        interval, burst = limit._interval_us, limit.burst or 1
        # The clock may have been set back.
        tat = min(tat, now_us + burst * interval)
        left = (now_us + burst * interval - max(tat, now_us - limit._slack_us)) // interval
        number = min(number, left - facts.not_begun)
        if left <= 0:
            opens_at = -(-(tat - (burst - 1) * interval) // 1000)
    if facts.closed_until > now:
        number, opens_at = 0, max(facts.closed_until, opens_at or 0)
    if limit is not None and limit.running is not None:
        number = min(number, limit.running - facts.open)
    return Room(max(0, number), opens_at, tat)


def in_turn(rooms: Mapping[str, int], free: Mapping[str, int], turns: Mapping[str, int]) -> dict[str, int]:
    """How many jobs to admit of each lane: of those of fair limits one in turn, until what is *free* there is given.

    *turns*: when each lane had its last turn.
    """
    shares = {lane: 0 if limit_of(lane) in free else number for lane, number in rooms.items()}
    for name, left in free.items():
        lanes = sorted((lane for lane in rooms if limit_of(lane) == name), key=lambda lane: (turns.get(lane, 0), lane))
        while left > 0 and (lanes := [lane for lane in lanes if shares[lane] < rooms[lane]]):
            for lane in lanes[:left]:
                shares[lane] += 1
            left -= min(left, len(lanes))
    return shares


def declared_limits(of_tasks: Mapping[str, Limit], of_queues: Mapping[str, Limit]) -> dict[str, Numbers]:
    """The limits of the code by name."""
    declared = {name: limit._numbers for name, limit in of_tasks.items()}
    return declared | {f"{QUEUE}:{name}": limit._numbers for name, limit in of_queues.items()}


def limit_of(lane: str) -> str:
    """The name of the limit that a lane belongs to."""
    return lane if lane.startswith(f"{QUEUE}:") else lane.partition(":")[0]
