"""Values of the wrong type in rows. Pure.

SQLite keeps a value of any type in any column. What was written there by hand must not take a page, or a worker,
with it: a value of the wrong type is taken out of its field, and shown as it is beside the row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from ..core.clock import EPOCH, to_ms

R = TypeVar("R", bound=tuple[Any, ...])

MAX_ODD = 200
"""Characters of a value of the wrong type that are shown."""
ODD = "odd"
"""The field in which a row has those values, as text, by the names of their fields."""

_FIRST_MS = to_ms(EPOCH.replace(year=2))
_LAST_MS = to_ms(EPOCH.replace(year=9999))
"""Between them a moment may be moved by a time zone, and stays in the calendar."""


class _Kind(NamedTuple):
    """What the columns of a named tuple may hold."""

    names: tuple[str, ...]
    allowed: tuple[tuple[type, ...], ...]
    neutral: tuple[object, ...]
    """What stands there instead of another."""
    moments: tuple[int, ...]
    """The places of moments."""
    has_odd: bool

    def takes(self, row: Sequence[Any]) -> bool:
        fits = all(type(value) in allowed for value, allowed in zip(row, self.allowed, strict=True))
        return fits and all(is_moment(row[place]) for place in self.moments)


def fitted(kind: type[R], row: Sequence[Any]) -> R:
    """*row* as *kind*, a named tuple, with neutral values in the place of those of the wrong type.

    If its last field is ``odd``, that is not a column, and gets what :func:`fitted_and_odd` has beside the row.
    """
    values, odd = _values(kind, row)
    return kind(*values, *([odd] if odd and _kind(kind).has_odd else []))


def fitted_and_odd(kind: type[R], row: Sequence[Any]) -> tuple[R, dict[str, str]]:
    """As :func:`fitted`; and the values that stood in fields for numbers and are none, as text, by their names."""
    values, odd = _values(kind, row)
    return kind(*values), odd


def columns(kind: type[tuple[Any, ...]]) -> tuple[str, ...]:
    """The fields of *kind* that are columns."""
    return _kind(kind).names


def _values(kind: type[tuple[Any, ...]], row: Sequence[Any]) -> tuple[Sequence[Any], dict[str, str]]:
    wanted = _kind(kind)
    if wanted.takes(row):
        return row, {}
    odd: dict[str, str] = {}
    values: list[Any] = []
    for place, (value, allowed) in enumerate(zip(row, wanted.allowed, strict=True)):
        if type(value) in allowed and (place not in wanted.moments or is_moment(value)):
            values.append(value)
        elif str in allowed and value is not None:
            values.append(text_in(value))
        elif bytes in allowed and isinstance(value, str):
            values.append(value.encode("utf-8", "replace"))
        else:
            values.append(wanted.neutral[place])
            odd[wanted.names[place]] = shown(value)
    return values, odd


@cache
def _kind(kind: type[tuple[Any, ...]]) -> _Kind:
    hints = get_type_hints(kind)
    has_odd = hints.pop(ODD, None) is not None
    allowed = tuple(get_args(hint) or (hint,) for hint in hints.values())
    return _Kind(
        names=tuple(hints),
        allowed=allowed,
        neutral=tuple(None if type(None) in types else types[0]() for types in allowed),
        moments=tuple(place for place, name in enumerate(hints) if name.endswith("_at") or name == "next_try"),
        has_odd=has_odd,
    )


# -- single values -----------------------------------------------------------------------------------------------------


def number_in(value: object) -> int:
    """A figure that a statement has made of such values; 0 where it is none."""
    return value if isinstance(value, int) else 0


def moment_in(value: object) -> int | None:
    """Likewise a moment; None where it is none, or is not in the calendar."""
    return value if isinstance(value, int) and is_moment(value) else None


def is_moment(value: object) -> bool:
    """Whether a number is a moment in the calendar, or is not there, or 0 in its place."""
    return not isinstance(value, int) or _FIRST_MS < value < _LAST_MS


def text_in(value: object) -> str:
    """Likewise a text. No address, and no line, takes NUL."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    return str(value)


def shown(value: object) -> str:
    """A value of the wrong type as it is shown beside its row."""
    return text_in(value)[:MAX_ODD]


def layout_in(value: object) -> list[int | str]:
    """The lengths and the hashes that a mail's layout consists of. Raises ValueError where it is no such list."""
    parts = json.loads(value) if isinstance(value, str) else None
    if not isinstance(parts, list) or not all(type(part) is str or (type(part) is int and part >= 0) for part in parts):
        raise ValueError(f"the layout {shown(value)!r} is not a list of lengths and hashes")
    return parts


def hashes_in(layout: object) -> list[str]:
    """The hashes in a mail's layout; none where it cannot be read."""
    try:
        return [part for part in layout_in(layout) if isinstance(part, str)] if layout else []
    except (ValueError, RecursionError):
        return []
