"""Cron expressions: what they say, and which times of a wall clock match. Zones are the business of ``triggers``.

The syntax is that of Debian's crontab(5), with the seconds of a sixth field and what Quartz and Go's cron libraries
added: ``?``, ``L``, ``L-3``, ``LW``, ``15W``, ``MON#2``, ``FRIL``, ranges over the end of a field, ``@every 5m``.
Pure, and safe to use from any thread.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from .clock import MAX_PERIOD

T = TypeVar("T")

SHORTHANDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

MIN_INTERVAL = timedelta(milliseconds=100)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
YEARS = 50
"""How far ahead a match is looked for. 29 February on a given weekday can be 40 years away."""

_MONTHS = "January February March April May June July August September October November December"
MONTHS = tuple(_MONTHS.split())
WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
ORDINALS = {-1: "last", 1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth"}
TIMES_SPELLED_OUT = 4

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.ASCII)


class CronError(ValueError):
    """The expression cannot be read; the text says which part and what to write."""


@dataclass(frozen=True, slots=True)
class MonthDay:
    """A day that lies elsewhere in each month: ``L``, ``L-3``, ``15W``, ``LW``."""

    number: int
    from_end: bool
    nearest_weekday: bool

    def day_of(self, year: int, month: int) -> int | None:
        """Which day that is; None where the month has no such day. The nearest weekday is one of the same month."""
        length = monthrange(year, month)[1]
        day = length - self.number if self.from_end else self.number
        if not 1 <= day <= length:
            return None
        weekday = date(year, month, day).isoweekday() if self.nearest_weekday else 0
        if weekday == 6:
            return day - 1 if day > 1 else day + 2
        if weekday == 7:
            return day + 1 if day < length else day - 2
        return day

    def explain(self) -> str:
        """In English: "the weekday nearest to day 15 of the month"."""
        if not self.from_end:
            return f"the weekday nearest to day {self.number} of the month"
        day = "day of the month" if self.number or not self.nearest_weekday else "weekday of the month"
        if not self.number:
            return f"the last {day}"
        counted = f"day {self.number} before the last day of the month"
        return f"the weekday nearest to {counted}" if self.nearest_weekday else counted


@dataclass(frozen=True, slots=True)
class CronFields:
    """What an expression says. Two that match the same times are equal, however they are written."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    month_days: frozenset[MonthDay]
    months: frozenset[int]
    weekdays: frozenset[int]
    """Sunday is 0."""
    nth_weekdays: frozenset[tuple[int, int]]
    """A weekday and which of the month, -1 for the last."""
    both: bool
    """Day and weekday must both match; else one is enough. As in Debian's cron: if one of the fields starts with *."""
    fixed: bool
    """Neither minute nor hour starts with *."""

    def after(self, wall: datetime) -> Iterator[datetime]:
        """The matching times later than *wall*, in order. Raises OverflowError at the end of the calendar."""
        at = wall.replace(microsecond=0) + SECOND
        day, moment, last_year = at.date(), at.time(), at.year + YEARS
        while day.year <= last_year:
            if day.month not in self.months:
                day, moment = (day.replace(day=1) + 32 * DAY).replace(day=1), time()
                continue
            if self._is_day(day):
                for found in self._times_from(moment):
                    yield datetime.combine(day, found)
                    last_year = day.year + YEARS
            day, moment = day + DAY, time()

    def _is_day(self, day: date) -> bool:
        weekday = day.isoweekday() % 7
        of_month = day.day in self.days or any(one.day_of(day.year, day.month) == day.day for one in self.month_days)
        of_week = weekday in self.weekdays
        if not of_week and self.nth_weekdays:
            is_last = day.day + 7 > monthrange(day.year, day.month)[1]
            nth = {(day.day + 6) // 7, -1} if is_last else {(day.day + 6) // 7}
            of_week = any((weekday, one) in self.nth_weekdays for one in nth)
        return of_month and of_week if self.both else of_month or of_week

    def _times_from(self, first: time) -> Iterator[time]:
        for hour in self.hours:
            if hour < first.hour:
                continue
            for minute in self.minutes:
                if (hour, minute) < (first.hour, first.minute):
                    continue
                for second in self.seconds:
                    if (hour, minute, second) >= (first.hour, first.minute, first.second):
                        yield time(hour, minute, second)

    def explain(self) -> str:
        """In English: "At 07:30 on Monday through Friday"."""
        clock, days = self._spoken_clock(), self._spoken_days()
        if not days and ":" in clock:
            days = " every day"
        months = "" if len(self.months) == 12 else f" in {_listed(self.months, 1, 12, lambda one: MONTHS[one - 1])}"
        return clock + days + months

    def _spoken_clock(self) -> str:
        if len(self.hours) * len(self.minutes) * len(self.seconds) <= TIMES_SPELLED_OUT:
            times = [time(h, m, s) for h in self.hours for m in self.minutes for s in self.seconds]
            return f"At {_joined([f'{one:%H:%M}' if self.seconds == (0,) else f'{one:%H:%M:%S}' for one in times])}"
        units = [("second", self.seconds, 60), ("minute", self.minutes, 60), ("hour", self.hours, 24)]
        spoken, is_regular = "", False
        for unit, values, size in units[1:] if self.seconds == (0,) else units:
            step = size // len(values)
            every = step if len(values) > 1 and values == tuple(range(0, size, step)) and size % step == 0 else None
            if not spoken:
                at = f"At {_units(unit, values, 0, size - 1)}"
                spoken = at if every is None else f"Every {unit}" if every == 1 else f"Every {every} {unit}s"
            elif every is None:
                spoken += f" of {_units(unit, values, 0, size - 1)}"
            elif every > 1 or not is_regular:
                spoken += f" of every {unit if every == 1 else f'{_nth(every)} {unit}'}"
            is_regular = every is not None
        return spoken

    def _spoken_days(self) -> str:
        week = [_listed(self.weekdays, 0, 6, WEEKDAYS.__getitem__)] if self.weekdays else []
        week += [f"the {ORDINALS[nth]} {WEEKDAYS[one]} of the month" for one, nth in sorted(self.nth_weekdays)]
        month = [f"{_units('day', sorted(self.days), 1, 31)} of the month"] if self.days else []
        month += [one.explain() for one in sorted(self.month_days, key=lambda one: (one.from_end, -one.number))]
        if not self.both:
            return f" on {_joined(month)} or on {_joined(week)}"
        if len(self.days) == 31:
            return "" if len(self.weekdays) == 7 else f" on {_joined(week)}"
        return f" on {_joined(month)}" + ("" if len(self.weekdays) == 7 else f", only on {_joined(week)}")


@lru_cache(maxsize=1024)
def read_cron(expression: str) -> CronFields | timedelta:
    """What *expression* says: fields, or the interval of ``@every``. Raises CronError."""
    words = expression.upper().split()
    if words[:1] == ["@EVERY"]:
        return _read_every("".join(words[1:]).lower())
    if words == ["@REBOOT"]:
        raise CronError("a schedule does not fire at a start; enqueue the task where your application starts")
    if len(words) == 1:
        words = SHORTHANDS.get(words[0].lower(), expression).split()
    if len(words) not in (5, 6):
        raise CronError(f"it has {len(words)} fields")
    second, minute, hour, day, month, weekday = words if len(words) == 6 else ["0", *words]
    days, month_days = _DAY.read(day, _month_day)
    weekdays, nth_weekdays = _WEEKDAY.read(weekday, _nth_weekday)
    return CronFields(
        seconds=tuple(sorted(_SECOND.read(second)[0])),
        minutes=tuple(sorted(_MINUTE.read(minute)[0])),
        hours=tuple(sorted(_HOUR.read(hour)[0])),
        days=days,
        month_days=month_days,
        months=_MONTH.read(month)[0],
        weekdays=weekdays,
        nth_weekdays=nth_weekdays,
        both=day[0] in "*?" or weekday[0] in "*?",
        fixed=minute[0] != "*" and hour[0] != "*",
    )


def _read_every(text: str) -> timedelta:
    if not re.fullmatch(f"(?:{_DURATION.pattern})+", text, re.ASCII):
        raise CronError(f"'@every {text}' names no interval; write '@every 5m' or '@every 1h30m'")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    if not MIN_INTERVAL.total_seconds() <= seconds <= MAX_PERIOD.total_seconds():
        raise CronError(f"{seconds:g} seconds is not an interval here; the least is 0.1 seconds")
    return timedelta(milliseconds=round(seconds * 1000))


# -- fields ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    size: int = 0
    """How many values there are. A weekday has seven, and Sunday two numbers."""

    def read(
        self, text: str, special: Callable[[str], T | None] = lambda term: None
    ) -> tuple[frozenset[int], frozenset[T]]:
        """The values of a comma-separated list, and what *special* makes of the terms that only this field has."""
        found = {term: special(term) for term in text.split(",")}
        values = {value for term, other in found.items() if other is None for value in self._values(term)}
        return frozenset(values), frozenset(other for other in found.values() if other is not None)

    def _values(self, term: str) -> Iterator[int]:
        span, slash, step_text = term.partition("/")
        low, dash, high = span.partition("-")
        if span == "*" or (span == "?" and self in (_DAY, _WEEKDAY)):
            first, last = self.low, self.low + self.size - 1
        elif dash:
            first, last = self._number(low), self._number(high)
            last += self.size if last < first else 0
        else:
            first = self._number(span)
            last = self.high if slash else first
        step = 1
        if slash:
            step = int(step_text) if re.fullmatch(r"[0-9]{1,4}", step_text) else 0
            if not 0 < step <= last - first + 1:
                raise CronError(f"the step of {term!r} in the {self.name} is not 1-{last - first + 1}")
        return (self.low + (value - self.low) % self.size for value in range(first, last + 1, step))

    def _number(self, text: str) -> int:
        if text in self.names:
            return self.names.index(text) + self.low
        number = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else -1
        if not self.low <= number <= self.high:
            names = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
            raise CronError(f"{text!r} in the {self.name} is not {self.low}-{self.high}{names}")
        return number


_SECOND, _MINUTE, _HOUR = (
    _Field("second", 0, 59, size=60),
    _Field("minute", 0, 59, size=60),
    _Field("hour", 0, 23, size=24),
)
_DAY = _Field("day of the month", 1, 31, size=31)
_MONTH = _Field("month", 1, 12, tuple(name[:3].upper() for name in MONTHS), size=12)
_WEEKDAY = _Field("weekday", 0, 7, tuple(name[:3].upper() for name in WEEKDAYS), size=7)


def _month_day(term: str) -> MonthDay | None:
    found = re.fullmatch(r"(?:([0-9]{1,2})(?=W)|L(?:-([0-9]{1,2}))?)(W?)", term)
    if found is None:
        return None
    day, before_last, weekday = found.groups()
    if not 1 <= int(day or before_last or 1) <= (31 if day else 30):
        raise CronError(f"{term!r} in the {_DAY.name} is in no month")
    return MonthDay(number=int(day or before_last or 0), from_end=not day, nearest_weekday=bool(weekday))


def _nth_weekday(term: str) -> tuple[int, int] | None:
    name, hash_sign, nth = term.partition("#")
    if term == "L":
        raise CronError("'L' in the weekday does not say which; FRIL is the last Friday of the month")
    if hash_sign:
        if nth not in ("1", "2", "3", "4", "5"):
            raise CronError(f"{term!r} in the weekday must end in #1 to #5; MONL is the last Monday of the month")
        return _WEEKDAY._number(name) % 7, int(nth)
    return (_WEEKDAY._number(term[:-1]) % 7, -1) if term.endswith("L") else None


# -- English -----------------------------------------------------------------------------------------------------------


def _units(unit: str, values: Sequence[int], low: int, high: int) -> str:
    """ "minute 7", "minutes 0, 20 and 40", "every 2nd day from 1 through 31"."""
    steps = {later - value for value, later in pairwise(values)}
    if len(values) > 3 and len(steps) == 1 and steps != {1}:
        return f"every {_nth(*steps)} {unit} from {values[0]} through {values[-1]}"
    return f"{unit}{'s' if len(values) > 1 else ''} {_listed(values, low, high, str)}"


def _listed(values: Collection[int], low: int, high: int, name: Callable[[int], str]) -> str:
    """ "1, 3 and 5 through 9". A run may go over the end of the field: "Friday through Monday"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    if len(runs) > 1 and runs[0][0] == low and runs[-1][-1] == high:
        runs = [*runs[1:-1], runs[-1] + runs[0]]
    return _joined(
        [
            text
            for run in runs
            for text in ([f"{name(run[0])} through {name(run[-1])}"] if len(run) > 2 else map(name, run))
        ]
    )


def _joined(texts: Sequence[str]) -> str:
    return " and ".join([*([", ".join(texts[:-1])] if len(texts) > 1 else []), texts[-1]])


def _nth(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
