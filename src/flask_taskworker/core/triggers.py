"""When a schedule fires: ``Cron``, ``Every`` and ``At``, and what becomes of fire times that were missed.

All arithmetic is done on aware datetimes; a moment that comes out is in UTC and has whole milliseconds.
Safe to use from any thread: triggers are frozen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal, Never, Protocol, Self, cast, get_args
from zoneinfo import ZoneInfo

from ..errors import DeclarationError, NotDecodable
from .clock import EPOCH, MILLISECOND, as_timedelta, from_ms, require_aware, to_ms
from .cron import DAY, MIN_INTERVAL, SECOND, SHORTHANDS, CronError, CronFields, read_cron
from .habits import hint_for_trigger

Misfire = Literal["once", "skip", "all"]
Overlap = Literal["skip", "allow"]

MISFIRE_GRACE = timedelta(seconds=10)
"""A fire time is missed when it is noticed later than this."""

COUNTED_MISSES = 20
"""Missed fire times that are stepped through one by one. A month of downtime costs no more than that of an hour."""

MAX_EXPRESSION = 250

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

    def _in_zone(self, default: str) -> Trigger:
        """The same trigger, on the clock of the zone *default* if it needs one and names none."""


@dataclass(frozen=True, slots=True, init=False)
class Cron:
    """Fires by a cron expression: 5 fields, or 6 with the seconds first, or ``@hourly``, ``@daily``, ``@midnight``,
    ``@weekly``, ``@monthly``, ``@yearly``, ``@annually``, or ``@every`` with a duration such as ``5m`` or ``1h30m``.

    ``timezone`` is the name of the zone whose wall clock the expression speaks of. Defaults to None:
    ``TASKER_TIMEZONE``, which is UTC unless it is set. ``start`` and ``end`` are aware datetimes, the first and the
    last moment at which it may fire. Both default to None: no bound.

    Day of month and day of week: if one of them starts with ``*`` or is ``?`` both must match, else one is enough.
    Sunday is 0 or 7. Names (``MON``, ``JAN``), ranges over the end of a field (``FRI-MON``, ``22-2``), the last day
    (``L``), the third day before it (``L-3``), the last weekday (``LW``), the weekday nearest to the 15th (``15W``),
    the second Monday (``MON#2``) and the last Friday (``FRIL``, ``5L``) work. ``explain()`` says it in English.

    **When the clock changes**, Debian's cron is followed:

    * An expression is *fixed* if neither its minute nor its hour starts with ``*``, such as ``30 2 * * *``. A fixed
      time that spring leaves out fires once, at the first moment after the gap (02:30 fires at 03:00 in Berlin),
      together with whatever else would fire then. A fixed time that autumn repeats fires once, the first time.
    * Any other expression follows real time: it fires whenever the wall clock matches. Hours and minutes that spring
      leaves out do not fire; those that autumn repeats fire twice. ``0 * * * *`` so fires once in every real hour.

    Two fire times are never equal. The same rules hold for 6 fields. ``@every`` counts from 1970-01-01 00:00 UTC, as
    :class:`Every` does.

    Raises DeclarationError for an expression that cannot be read or can never fire, for an unknown zone, and for an
    ``end`` before ``start``.
    """

    expression: str
    timezone: str | None
    start: datetime | None
    end: datetime | None
    misfire: Misfire
    overlap: Overlap
    jitter: timedelta

    def __init__(
        self,
        expression: str,
        *,
        timezone: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        misfire: Misfire = "once",
        overlap: Overlap = "skip",
        jitter: float | timedelta = 0,
    ) -> None:
        _set_options(self, misfire, overlap, jitter)
        _set_bounds(self, start, end)
        object.__setattr__(self, "timezone", None if timezone is None else check_zone("Cron's timezone", timezone))
        object.__setattr__(self, "expression", _readable(expression))
        fields = read_cron(self.expression)
        if isinstance(fields, CronFields) and next(fields.after(EPOCH.replace(tzinfo=None)), None) is None:
            raise DeclarationError(f"Cron({expression!r}) can never fire. Check its day of month and its month.")

    def next_after(self, now: datetime) -> datetime | None:
        """The first fire time later than *now* (aware), in UTC; None if the next 50 years have none."""
        moment = require_aware(now, "now").astimezone(UTC)
        if self.start is not None and moment < self.start:
            moment = self.start - MILLISECOND
        fields = read_cron(self.expression)
        try:
            if isinstance(fields, timedelta):
                found: datetime | None = _next_interval(EPOCH, fields, moment)
            elif fields.fixed:
                found = self._next_fixed(fields, moment)
            else:
                found = self._next_real(fields, moment)
        except OverflowError:
            return None
        return found if found is None or self.end is None or found <= self.end else None

    def explain(self) -> str:
        """The expression in English, for example "At 03:00 every day"."""
        fields = read_cron(self.expression)
        return f"Every {_spoken(fields)}" if isinstance(fields, timedelta) else fields.explain()

    def _in_zone(self, default: str) -> Cron:
        """The same, with the zone *default* if it names none."""
        if self.timezone is not None:
            return self
        options: dict[str, Any] = {"misfire": self.misfire, "overlap": self.overlap, "jitter": self.jitter}
        return Cron(self.expression, timezone=default, start=self.start, end=self.end, **options)

    @property
    def zone(self) -> tzinfo:
        """The zone whose clock the expression speaks of."""
        return zone_of(self.timezone or "UTC")

    def _next_fixed(self, fields: CronFields, now: datetime) -> datetime | None:
        zone = self.zone
        for wall in fields.after(_wall(now, zone)):
            moment = _first_moment(wall, zone)
            # In the second of two equal hours the wall clock shows times that have fired already.
            if moment > now:
                return moment
        return None

    def _next_real(self, fields: CronFields, now: datetime) -> datetime | None:
        """Look for a match on the wall clock, one stretch between two changes of the offset at a time."""
        zone = self.zone
        start, offset = now.replace(microsecond=0), _offset(now, zone)
        after = start
        while True:
            wall = next(fields.after((after + offset).replace(tzinfo=None)), None)
            if wall is None:
                return None
            moment = wall.replace(tzinfo=UTC) - offset
            change = _first_change(start, moment, zone)
            if change is None:
                return moment
            # The moment of the change is itself a candidate, on the new wall clock.
            start, offset = change, _offset(change, zone)
            after = change - SECOND


@dataclass(frozen=True, slots=True, init=False)
class Every:
    """Fires at equal intervals, counted from ``start``: it does not drift, and all processes agree.

    The interval is the sum of ``weeks`` … ``seconds``, at least 0.1 seconds, in whole milliseconds. ``start`` is an
    aware datetime and is itself the first fire time. Defaults to 1970-01-01 00:00 UTC: ``Every(hours=1)`` fires on
    the hour. ``end`` is an aware datetime, the last moment at which it may fire. Defaults to None: no bound.

    Raises DeclarationError for an interval that is too short, a naive ``start`` or ``end``, and an ``end`` before
    ``start``.
    """

    interval: timedelta
    start: datetime
    end: datetime | None
    misfire: Misfire
    overlap: Overlap
    jitter: timedelta

    def __init__(
        self,
        *unnamed: Never,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        start: datetime | None = None,
        end: datetime | None = None,
        misfire: Misfire = "once",
        overlap: Overlap = "skip",
        jitter: float | timedelta = 0,
    ) -> None:
        _set_options(self, misfire, overlap, jitter)
        if unnamed:
            meant = hint_for_trigger(unnamed[0])
            raise DeclarationError(f"Every({unnamed[0]!r}) does not name its unit. Give {meant}, or minutes=, hours=…")
        given = {"weeks": weeks, "days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
        object.__setattr__(self, "interval", _interval(**given))
        _set_bounds(self, EPOCH if start is None else start, end)

    def next_after(self, now: datetime) -> datetime | None:
        """The first fire time later than *now* (aware), in UTC; None after ``end``."""
        moment = require_aware(now, "now")
        try:
            found = self.start if moment < self.start else _next_interval(self.start, self.interval, moment)
        except OverflowError:
            return None
        return found if self.end is None or found <= self.end else None

    def _in_zone(self, default: str) -> Self:
        """The same: real time passes alike in all zones."""
        return self


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

    def _in_zone(self, default: str) -> Self:
        """The same: a moment is the same in all zones."""
        return self


def _next_interval(start: datetime, interval: timedelta, now: datetime) -> datetime:
    return start + ((now - start) // interval + 1) * interval


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
    zone = trigger.zone if isinstance(trigger, Cron) else UTC
    fires: list[Fire] = []
    before = now
    for moment in _take(trigger, trigger.next_after(now), datetime.max.replace(tzinfo=UTC), number)[0]:
        notes = tuple(_notes(trigger, zone, before, moment)) if isinstance(trigger, Cron) else ()
        fires.append(Fire(at=moment, local=moment.astimezone(zone), notes=notes))
        before = moment
    return fires


def _notes(trigger: Cron, zone: tzinfo, before: datetime, moment: datetime) -> Iterator[str]:
    change = _first_change(before, moment, zone) if _offset(before, zone) != _offset(moment, zone) else None
    if change is not None:
        old, new = (change - SECOND).astimezone(zone), change.astimezone(zone)
        yield (
            f"The clock changes before it, on {new:%Y-%m-%d} from {_wall(change - SECOND, zone) + SECOND:%H:%M} to "
            f"{new:%H:%M}: {_spoken_offset(old)} becomes {_spoken_offset(new)}."
        )
    wall = _wall(moment, zone)
    fields = read_cron(trigger.expression)
    is_fixed = isinstance(fields, CronFields) and fields.fixed
    if isinstance(fields, CronFields) and fields.fixed and moment == change:
        meant = next(fields.after(_wall(moment - SECOND, zone)), wall)
        if meant < wall:
            yield f"{meant:%H:%M} is left out by the clock on that day: it fires at {wall:%H:%M}."
    first, second = (wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    if first is not None and second is not None and first > second:
        again = "it fires the first time only." if is_fixed else "it fires both times."
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
            values |= _bounds(start=trigger.start, end=trigger.end)
        case Every():
            interval_ms = trigger.interval // MILLISECOND
            values = {"type": "every", "interval_ms": interval_ms, "start_ms": to_ms(trigger.start)}
            values |= _bounds(end=trigger.end)
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
            fields = read_cron(trigger.expression)
            if isinstance(fields, timedelta):
                return fields, EPOCH if trigger.start is None else trigger.start, trigger.end
            return fields, trigger.timezone, trigger.start, trigger.end
        case Every():
            return trigger.interval, trigger.start, trigger.end
        case At():
            return (trigger.run_at,)


def describe(trigger: Trigger) -> str:
    """A short text for tables: "0 3 * * * (Europe/Berlin)", "every 5 minutes", "at 2026-05-01 12:00:00 UTC"."""
    match trigger:
        case Cron():
            return f"{trigger.expression} ({trigger.timezone or 'UTC'})"
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
    for name in ("start", "end"):
        if (bound := values.pop(f"{name}_ms", None)) is not None:
            options[name] = EPOCH + _milliseconds(bound)
    match kind, values:
        case "cron", {"expression": expression, "timezone": timezone, **rest} if not rest:
            return Cron(expression, timezone=timezone, **options)
        case "every", {"interval_ms": interval_ms, **rest} if not rest:
            return Every(seconds=_milliseconds(interval_ms).total_seconds(), **options)
        case "at", {"run_at_ms": run_at_ms, **rest} if not rest:
            return At(EPOCH + _milliseconds(run_at_ms), **options)
    raise ValueError(f"unknown type {kind!r} or unknown keys")


def _bounds(**bounds: datetime | None) -> dict[str, int]:
    return {f"{name}_ms": to_ms(bound) for name, bound in bounds.items() if bound is not None}


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
    try:
        read_cron(" ".join(expression.split()))
    except CronError as error:
        raise DeclarationError(
            f"Cron cannot read {expression!r}: {error}. Give 5 fields (minute hour day month weekday), "
            f"6 with the seconds first, or one of {', '.join(SHORTHANDS)}, @every 5m."
        ) from error
    return " ".join(expression.split())


def zone_of(name: str) -> tzinfo:
    """The zone of that name. UTC needs no zone database."""
    return UTC if name == "UTC" else ZoneInfo(name)


def check_zone(what: str, name: str) -> str:
    """*name*, if it is that of a zone. Raises DeclarationError that begins with *what*."""
    try:
        zone_of(name)
    # "Europe" is a folder, "../x" a forbidden path, and an unknown name a KeyError.
    except (KeyError, ValueError, OSError, TypeError, AttributeError) as error:
        raise DeclarationError(
            f"{what} {name!r} is not known here. Give a name such as 'Europe/Berlin'; "
            "where the system has no zone database, install the package tzdata."
        ) from error
    return name


def _set_bounds(trigger: Cron | Every, start: datetime | None, end: datetime | None) -> None:
    kind = type(trigger).__name__
    first, last = (
        None if moment is None else _whole_ms(moment, f"{kind}'s {name}")
        for name, moment in (("start", start), ("end", end))
    )
    if first is not None and last is not None and last < first:
        raise DeclarationError(f"{kind}'s end {end} is before its start {start}. Give a later end.")
    object.__setattr__(trigger, "start", first)
    object.__setattr__(trigger, "end", last)


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


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    """What the clock on the wall shows, as a naive datetime."""
    return moment.astimezone(zone).replace(tzinfo=None)


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return cast(timedelta, moment.astimezone(zone).utcoffset())


def _first_moment(wall: datetime, zone: tzinfo) -> datetime:
    """When the wall clock shows *wall* for the first time; the end of the gap if it never does."""
    moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _wall(moment, zone) == wall:
        return moment
    # In a gap, fold=0 counts with the offset before it and so lands behind it, fold=1 the other way round.
    return _change_between(wall.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone)


def _first_change(start: datetime, end: datetime, zone: tzinfo) -> datetime | None:
    """The first moment after *start*, up to *end*, with another offset than *start* has."""
    offset = _offset(start, zone)
    known = start
    while known < end:
        probe = min(known + DAY, end)
        if _offset(probe, zone) != offset:
            return _change_between(known, probe, zone)
        known = probe
    return None


def _change_between(low: datetime, high: datetime, zone: tzinfo) -> datetime:
    """The moment at which the offset changes; *low* is before it, *high* is not. Both have whole seconds."""
    offset = _offset(low, zone)
    while high - low > SECOND:
        middle = low + (high - low) // SECOND // 2 * SECOND
        if _offset(middle, zone) == offset:
            low = middle
        else:
            high = middle
    return high
