"""When a schedule fires: ``Cron``, ``Every`` and ``At``, and what becomes of fire times that were missed.

All arithmetic is done on aware datetimes; a moment that comes out is in UTC and has whole milliseconds.
Safe to use from any thread: triggers are frozen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, cast, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from ..errors import DeclarationError, NotDecodable
from .clock import EPOCH, MILLISECOND, as_timedelta, from_ms, require_aware, to_ms

Misfire = Literal["once", "skip", "all"]
Overlap = Literal["skip", "allow"]

MISFIRE_GRACE = timedelta(seconds=10)
"""A fire time is missed when it is noticed later than this."""

COUNTED_MISSES = 20
"""Missed fire times that are stepped through one by one. A month of downtime costs no more than that of an hour."""

MIN_INTERVAL = timedelta(milliseconds=100)
MAX_EXPRESSION = 250

SHORTHANDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

# cronsim is given wall clock times, which have no zone.
NAIVE_START = datetime(2000, 1, 1)  # noqa: DTZ001

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
SPOKEN_UNITS = (("week", 7 * DAY), ("day", DAY), ("hour", 3600 * SECOND), ("minute", 60 * SECOND))


class Trigger(Protocol):
    """What a schedule needs to know about time."""

    @property
    def misfire(self) -> Misfire:
        """What to do about fire times that passed while no worker ran: see :func:`due`. Defaults to "once"."""

    @property
    def overlap(self) -> Overlap:
        """Whether to fire while the schedule's last job is unfinished: "skip" or "allow". Defaults to "skip"."""

    @property
    def jitter(self) -> timedelta:
        """Each job starts up to this much later than its fire time. Defaults to 0."""

    def next_after(self, now: datetime) -> datetime | None:
        """The first fire time later than *now* (aware), in UTC, or None when there is none left."""


@dataclass(frozen=True, slots=True, init=False)
class Cron:
    """Fires by a cron expression: 5 fields, or 6 with the seconds first, or ``@hourly``, ``@daily``, ``@midnight``,
    ``@weekly``, ``@monthly``, ``@yearly``, ``@annually``.

    ``timezone`` is the name of the zone whose wall clock the expression speaks of. Defaults to ``"UTC"``.
    Day of month and day of week: if one of them starts with ``*`` both must match, else one is enough. Sunday is 0
    or 7; names (``MON``, ``JAN``), ``L``, ``LW`` and ``MON#2`` work. ``explain()`` says it in English.

    **When the clock changes**, Debian's cron is followed:

    * An expression is *fixed* if neither its minute nor its hour starts with ``*``, such as ``30 2 * * *``. A fixed
      time that spring leaves out fires once, at the first moment after the gap (02:30 fires at 03:00 in Berlin),
      together with whatever else would fire then. A fixed time that autumn repeats fires once, the first time.
    * Any other expression follows real time: it fires whenever the wall clock matches. Hours and minutes that spring
      leaves out do not fire; those that autumn repeats fire twice. ``0 * * * *`` so fires once in every real hour.

    Two fire times are never equal. The same rules hold for 6 fields.

    Raises DeclarationError for an expression that cannot be read or can never fire, and for an unknown zone.
    """

    expression: str
    timezone: str
    misfire: Misfire
    overlap: Overlap
    jitter: timedelta

    def __init__(
        self,
        expression: str,
        *,
        timezone: str = "UTC",
        misfire: Misfire = "once",
        overlap: Overlap = "skip",
        jitter: float | timedelta = 0,
    ) -> None:
        _set_options(self, misfire, overlap, jitter)
        object.__setattr__(self, "timezone", _known_zone(timezone))
        object.__setattr__(self, "expression", _readable(expression))
        if self.next_after(EPOCH) is None:
            raise DeclarationError(f"Cron({expression!r}) can never fire. Check its day of month and its month.")

    def next_after(self, now: datetime) -> datetime | None:
        """The first fire time later than *now* (aware), in UTC; None if the next 50 years have none."""
        moment = require_aware(now, "now")
        try:
            moment = moment.astimezone(UTC)
            return self._next_fixed(moment) if self._is_fixed else self._next_real(moment)
        except OverflowError:
            return None

    def explain(self) -> str:
        """The expression in English, for example "At 03:00 every day"."""
        return CronSim(self._fields, NAIVE_START).explain()

    @property
    def _fields(self) -> str:
        return SHORTHANDS.get(self.expression.lower(), self.expression)

    @property
    def _is_fixed(self) -> bool:
        minute, hour = self._fields.split()[-5:-3]
        return not minute.startswith("*") and not hour.startswith("*")

    def _next_fixed(self, now: datetime) -> datetime | None:
        zone = ZoneInfo(self.timezone)
        for wall in self._walls_after(_wall(now, zone)):
            moment = _first_moment(wall, zone)
            # In the second of two equal hours the wall clock shows times that have fired already.
            if moment > now:
                return moment
        return None

    def _next_real(self, now: datetime) -> datetime | None:
        """Look for a match on the wall clock, one stretch between two changes of the offset at a time."""
        zone = ZoneInfo(self.timezone)
        start, offset = now.replace(microsecond=0), _offset(now, zone)
        after = start
        while True:
            wall = next(self._walls_after((after + offset).replace(tzinfo=None)), None)
            if wall is None:
                return None
            moment = wall.replace(tzinfo=UTC) - offset
            change = _first_change(start, moment, zone)
            if change is None:
                return moment
            # The moment of the change is itself a candidate, on the new wall clock.
            start, offset = change, _offset(change, zone)
            after = change - SECOND

    def _walls_after(self, wall: datetime) -> Iterator[datetime]:
        # cronsim gets naive times: its own handling of zones loses fire times where a change is not a whole hour, and
        # repeats fixed ones that spring moves onto each other. See test_lord_howe_keeps_the_half_hour_after_the_fold.
        return iter(CronSim(self._fields, wall))


@dataclass(frozen=True, slots=True, init=False)
class Every:
    """Fires at equal intervals, counted from ``start``: it does not drift, and all processes agree.

    The interval is the sum of ``weeks`` … ``seconds``, at least 0.1 seconds, in whole milliseconds. ``start`` is an
    aware datetime and is itself the first fire time. Defaults to 1970-01-01 00:00 UTC: ``Every(hours=1)`` fires on
    the hour.

    Raises DeclarationError for an interval that is too short and for a naive ``start``.
    """

    interval: timedelta
    start: datetime
    misfire: Misfire
    overlap: Overlap
    jitter: timedelta

    def __init__(
        self,
        *,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        start: datetime | None = None,
        misfire: Misfire = "once",
        overlap: Overlap = "skip",
        jitter: float | timedelta = 0,
    ) -> None:
        _set_options(self, misfire, overlap, jitter)
        given = {"weeks": weeks, "days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
        object.__setattr__(self, "interval", _interval(**given))
        object.__setattr__(self, "start", EPOCH if start is None else _whole_ms(start, "Every's start"))

    def next_after(self, now: datetime) -> datetime | None:
        """The first fire time later than *now* (aware), in UTC."""
        passed = require_aware(now, "now") - self.start
        if passed < timedelta(0):
            return self.start
        try:
            return self.start + (passed // self.interval + 1) * self.interval
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True, init=False)
class At:
    """Fires once, at ``run_at``: an aware datetime, rounded down to a whole millisecond.

    Raises DeclarationError for a naive datetime.
    """

    run_at: datetime
    misfire: Misfire
    overlap: Overlap
    jitter: timedelta

    def __init__(
        self,
        run_at: datetime,
        *,
        misfire: Misfire = "once",
        overlap: Overlap = "skip",
        jitter: float | timedelta = 0,
    ) -> None:
        _set_options(self, misfire, overlap, jitter)
        object.__setattr__(self, "run_at", _whole_ms(run_at, "At's run_at"))

    def next_after(self, now: datetime) -> datetime | None:
        """``run_at`` if it is later than *now* (aware), else None."""
        return self.run_at if self.run_at > require_aware(now, "now") else None


# ---- the past ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a schedule has to do now."""

    fires: tuple[datetime, ...]
    """The fire times to enqueue a job for, oldest first."""

    next_at: datetime | None
    """The first fire time that is not decided yet. It may have passed already: then ask again. None: no more."""

    missed: int
    """How many fire times get no job, skipped or collapsed into a later one; after a long time this is a minimum."""


def due(trigger: Trigger, next_at: datetime, now: datetime, *, limit: int = 1000) -> Due:
    """Decide about all fire times from *next_at*, which is the first undecided one, to *now*, both included.

    Those not older than :data:`MISFIRE_GRACE` are on time and each fires. Older ones are missed. With misfire
    ``"all"`` each of them fires; with ``"skip"`` none does; with ``"once"`` the latest of them fires if no one is on
    time. At most *limit* fire in one call, and the work is bounded however late this is.
    """
    if trigger.misfire == "all":
        fires, following = _take(trigger, next_at, now + datetime.resolution, limit)
        return Due(fires=tuple(fires), next_at=following, missed=0)
    missed, following = _take_missed(trigger, next_at, now - MISFIRE_GRACE, limit)
    on_time, following = _take(trigger, following, now + datetime.resolution, limit)
    if trigger.misfire == "once" and missed and not on_time:
        return Due(fires=(missed[-1],), next_at=following, missed=len(missed) - 1)
    return Due(fires=tuple(on_time), next_at=following, missed=len(missed))


_Taken = tuple[list[datetime], datetime | None]


def _take(trigger: Trigger, first: datetime | None, end: datetime, limit: int) -> _Taken:
    """The fire times from *first* to before *end*, at most *limit*, and the one that follows."""
    fires: list[datetime] = []
    moment = first
    while moment is not None and moment < end and len(fires) < limit:
        fires.append(moment)
        moment = trigger.next_after(moment)
    return fires, moment


def _take_missed(trigger: Trigger, first: datetime, end: datetime, limit: int) -> _Taken:
    """As :func:`_take`; but beyond a few the times between are leapt over, so that the last one is the latest."""
    fires, following = _take(trigger, first, end, min(limit, COUNTED_MISSES))
    if following is None or following >= end:
        return fires, following
    # Look back from the end, further each time, for a time near to it.
    low, back = following, (following - fires[-1]) * 2
    while end - back > low:
        found = trigger.next_after(end - back)
        if found is not None and found < end:
            low = found
            break
        back *= 8
    high = end
    while (following := trigger.next_after(low)) is not None and following < end:
        middle = low + (high - low) / 2
        found = trigger.next_after(middle)
        if found is not None and found < end:
            low = found
        else:
            low, high = following, middle
    return [*fires[:-1], low], following


# ---- the future ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Fire:
    """A fire time to come, as people look at it."""

    at: datetime
    """In UTC."""
    local: datetime
    """On the clock of the trigger's zone; UTC where it has none."""
    notes: tuple[str, ...]
    """What a change of that clock does to it, a sentence each."""


def upcoming(trigger: Trigger, now: datetime, number: int = 10) -> list[Fire]:
    """The next *number* fire times after *now* (aware), with notes where the clock changes before one of them."""
    zone = ZoneInfo(trigger.timezone) if isinstance(trigger, Cron) else None
    fires: list[Fire] = []
    before = now
    for moment in _take(trigger, trigger.next_after(now), datetime.max.replace(tzinfo=UTC), number)[0]:
        local = moment if zone is None else moment.astimezone(zone)
        notes = tuple(_notes(trigger, zone, before, moment)) if zone is not None and isinstance(trigger, Cron) else ()
        fires.append(Fire(at=moment, local=local, notes=notes))
        before = moment
    return fires


def _notes(trigger: Cron, zone: ZoneInfo, before: datetime, moment: datetime) -> Iterator[str]:
    change = _first_change(before, moment, zone) if _offset(before, zone) != _offset(moment, zone) else None
    if change is not None:
        old, new = (change - SECOND).astimezone(zone), change.astimezone(zone)
        yield (
            f"The clock changes before it, on {new:%Y-%m-%d} from {_wall(change - SECOND, zone) + SECOND:%H:%M} to "
            f"{new:%H:%M}: {_spoken_offset(old)} becomes {_spoken_offset(new)}."
        )
    wall = _wall(moment, zone)
    if moment == change and trigger._is_fixed:
        meant = next(trigger._walls_after(_wall(moment - SECOND, zone)), wall)
        if meant < wall:
            yield f"{meant:%H:%M} is left out by the clock on that day: it fires at {wall:%H:%M}."
    first, second = (wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    if first is not None and second is not None and first > second:
        again = "it fires the first time only." if trigger._is_fixed else "it fires both times."
        yield f"The clock shows {wall:%H:%M} twice on that day: {again}"


def _spoken_offset(moment: datetime) -> str:
    offset = f"{moment:%z}"
    return f"UTC{offset[:3]}:{offset[3:5]}"


# ---- texts ----


def trigger_to_text(trigger: Trigger) -> str:
    """The trigger as JSON. Equal triggers give equal texts, so that a change can be seen by comparing."""
    match trigger:
        case Cron():
            values: dict[str, Any] = {"type": "cron", "expression": trigger.expression, "timezone": trigger.timezone}
        case Every():
            interval_ms = trigger.interval // MILLISECOND
            values = {"type": "every", "interval_ms": interval_ms, "start_ms": to_ms(trigger.start)}
        case At():
            values = {"type": "at", "run_at_ms": to_ms(trigger.run_at)}
        case _:
            raise DeclarationError(f"{trigger!r} is not a trigger. Give a Cron(…), an Every(…) or an At(…).")
    values |= {"misfire": trigger.misfire, "overlap": trigger.overlap, "jitter_ms": trigger.jitter // MILLISECOND}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def trigger_from_text(text: str) -> Cron | Every | At:
    """The trigger that :func:`trigger_to_text` wrote. Raises NotDecodable for any other text."""
    try:
        return _built(json.loads(text))
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise NotDecodable(f"The stored trigger {text!r:.200} cannot be read: {error!r:.200}") from error


def fires_alike(text: str, other: str) -> bool:
    """Whether two stored triggers fire at the same times, whatever else they say and however they are written."""
    try:
        return text == other or _times_of(trigger_from_text(text)) == _times_of(trigger_from_text(other))
    except NotDecodable:
        return False


def _times_of(trigger: Cron | Every | At) -> tuple[object, ...]:
    match trigger:
        case Cron():
            read = CronSim(trigger._fields, NAIVE_START)
            weekdays = {day % 7 if isinstance(day, int) else day for day in read.weekdays}
            fields = (read.seconds, read.minutes, read.hours, read.days, read.months, weekdays)
            return (*fields, read.day_and, trigger._is_fixed, trigger.timezone)
        case Every():
            return trigger.interval, trigger.start
        case At():
            return (trigger.run_at,)


def describe(trigger: Trigger) -> str:
    """A short text for tables: "0 3 * * * (Europe/Berlin)", "every 5 minutes", "at 2026-05-01 12:00:00 UTC"."""
    match trigger:
        case Cron():
            return f"{trigger.expression} ({trigger.timezone})"
        case Every():
            return f"every {_spoken(trigger.interval)}"
        case At():
            return f"at {trigger.run_at:%Y-%m-%d %H:%M:%S} UTC"
        case _:
            return repr(trigger)


def _built(values: dict[str, Any]) -> Cron | Every | At:
    kind = values.pop("type")
    options: dict[str, Any] = {
        "misfire": values.pop("misfire"),
        "overlap": values.pop("overlap"),
        "jitter": _milliseconds(values.pop("jitter_ms")),
    }
    match kind, values:
        case "cron", {"expression": expression, "timezone": timezone, **rest} if not rest:
            return Cron(expression, timezone=timezone, **options)
        case "every", {"interval_ms": interval_ms, "start_ms": start_ms, **rest} if not rest:
            seconds = _milliseconds(interval_ms).total_seconds()
            return Every(seconds=seconds, start=EPOCH + _milliseconds(start_ms), **options)
        case "at", {"run_at_ms": run_at_ms, **rest} if not rest:
            return At(EPOCH + _milliseconds(run_at_ms), **options)
    raise ValueError(f"unknown type {kind!r} or unknown keys")


def _milliseconds(value: object) -> timedelta:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number of milliseconds")
    return timedelta(milliseconds=value)


def _spoken(interval: timedelta) -> str:
    for name, length in SPOKEN_UNITS:
        if interval % length == timedelta(0):
            count = interval // length
            return name if count == 1 else f"{count} {name}s"
    seconds = interval.total_seconds()
    return "second" if seconds == 1 else f"{seconds:.3f}".rstrip("0").rstrip(".") + " seconds"


# ---- checks ----


def _set_options(trigger: Cron | Every | At, misfire: Misfire, overlap: Overlap, jitter: float | timedelta) -> None:
    kind = type(trigger).__name__
    for name, value, allowed in (("misfire", misfire, get_args(Misfire)), ("overlap", overlap, get_args(Overlap))):
        if value not in allowed:
            raise DeclarationError(f"{kind}'s {name} is {value!r}. Give {' or '.join(map(repr, allowed))}.")
        object.__setattr__(trigger, name, value)
    period = as_timedelta(jitter, f"{kind}'s jitter")
    object.__setattr__(trigger, "jitter", period - period % MILLISECOND)


def _readable(expression: object) -> str:
    if not isinstance(expression, str) or len(expression) > MAX_EXPRESSION:
        shown = repr(expression)[:80]
        raise DeclarationError(f"Cron's expression is {shown}. Give a text of at most {MAX_EXPRESSION} characters.")
    words = " ".join(expression.split())
    try:
        CronSim(SHORTHANDS.get(words.lower(), words), NAIVE_START)
    except (CronSimError, ValueError) as error:
        raise DeclarationError(
            f"Cron cannot read {expression!r}: {error}. Give 5 fields (minute hour day month weekday), "
            f"6 with the seconds first, or one of {', '.join(SHORTHANDS)}."
        ) from error
    return words


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    # "Europe" is a folder, "../x" a forbidden path, and an unknown name a KeyError.
    except (KeyError, ValueError, OSError, TypeError, AttributeError) as error:
        raise DeclarationError(
            f"Cron's timezone {name!r} is not known here. Give a name such as 'Europe/Berlin'; "
            "where the system has no zone database, install the package tzdata."
        ) from error
    return name


def _interval(**given: Any) -> timedelta:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DeclarationError(f"Every's {name} is {value!r}. Give a number.")
    try:
        interval = timedelta(**given)
    except (ValueError, OverflowError) as error:
        raise DeclarationError(f"Every's interval is not a period: {error}. Give finite numbers.") from error
    interval = as_timedelta(interval, "Every's interval")
    if interval < MIN_INTERVAL:
        shown = interval.total_seconds()
        raise DeclarationError(
            f"Every's interval is {shown} seconds. Give at least 0.1 seconds, for example seconds=5."
        )
    return timedelta(milliseconds=round(interval / MILLISECOND))


def _whole_ms(moment: datetime, what: str) -> datetime:
    return from_ms(to_ms(require_aware(moment, what)))


# ---- zones ----


def _wall(moment: datetime, zone: ZoneInfo) -> datetime:
    """What the clock on the wall shows, as a naive datetime."""
    return moment.astimezone(zone).replace(tzinfo=None)


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return cast(timedelta, moment.astimezone(zone).utcoffset())


def _first_moment(wall: datetime, zone: ZoneInfo) -> datetime:
    """When the wall clock shows *wall* for the first time; the end of the gap if it never does."""
    moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _wall(moment, zone) == wall:
        return moment
    # In a gap, fold=0 counts with the offset before it and so lands behind it, fold=1 the other way round.
    return _change_between(wall.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone)


def _first_change(start: datetime, end: datetime, zone: ZoneInfo) -> datetime | None:
    """The first moment after *start*, up to *end*, with another offset than *start* has."""
    offset = _offset(start, zone)
    known = start
    while known < end:
        probe = min(known + DAY, end)
        if _offset(probe, zone) != offset:
            return _change_between(known, probe, zone)
        known = probe
    return None


def _change_between(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """The moment at which the offset changes; *low* is before it, *high* is not. Both have whole seconds."""
    offset = _offset(low, zone)
    while high - low > SECOND:
        middle = low + (high - low) // SECOND // 2 * SECOND
        if _offset(middle, zone) == offset:
            low = middle
        else:
            high = middle
    return high
