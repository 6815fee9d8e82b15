"""Moments and periods: the lowest floor, with no clock in it.

Every moment in this package is an aware datetime, every stored moment an integer: milliseconds since 1970 in UTC.
Nothing here reads the time; *now* is always an argument.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from ..errors import ArgumentsError, DeclarationError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
MILLISECOND = timedelta(milliseconds=1)
MAX_PERIOD = timedelta(days=36_525)
"""The longest delay, interval or jitter: 100 years. A longer one would leave the calendar when added to a moment."""


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 in UTC, rounded down. *moment* must be aware: see :func:`require_aware`."""
    return (moment - EPOCH) // MILLISECOND


def from_ms(milliseconds: int) -> datetime:
    """The aware UTC datetime of a stored moment; of one outside the years 1 to 9999 the nearest that there is."""
    return EPOCH + timedelta(milliseconds=min(max(milliseconds, _FIRST_MS), _LAST_MS))


def as_timedelta(value: float | timedelta, what: str) -> timedelta:
    """A period that was given in seconds or as a timedelta: from zero to :data:`MAX_PERIOD`.

    Raises DeclarationError, which names *what* and the value, for anything else.
    """
    seconds: object = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise DeclarationError(f"{what} is {value!r}. Give a number of seconds or a timedelta.")
    if not 0 <= seconds <= MAX_PERIOD.total_seconds():
        raise DeclarationError(f"{what} is {_short(value)}. Give a period from 0 seconds to {MAX_PERIOD.days} days.")
    return value if isinstance(value, timedelta) else timedelta(seconds=seconds)


def as_seconds(timeout: float | None) -> float | None:
    """How long to wait, as a float; None for no limit, or as long as the configuration says.

    Raises ArgumentsError for anything but a number. A negative one is over already, and so is not refused.
    """
    if timeout is None:
        return None
    with suppress(TypeError, ValueError, OverflowError):
        seconds = float(timeout)
        if not isinstance(timeout, str | bytes | bool) and seconds == seconds:
            return seconds
    raise ArgumentsError(f"timeout is {_short(timeout)}. Give a number of seconds, or None.")


def require_aware(value: object, what: str) -> datetime:
    """*value* itself, if it is a datetime that knows its offset from UTC; else raises DeclarationError."""
    if not isinstance(value, datetime):
        raise DeclarationError(f"{what} is {value!r}. Give an aware datetime, for example datetime.now(timezone.utc).")
    if value.utcoffset() is None:
        raise DeclarationError(
            f"{what} is {value!r}, which has no time zone. "
            "Give an aware datetime, for example value.replace(tzinfo=ZoneInfo('Europe/Berlin'))."
        )
    return value


def _short(value: object) -> str:
    # Python refuses to print an int of more than 4300 digits.
    return "a very large number" if isinstance(value, int) and value.bit_length() > 1024 else repr(value)
