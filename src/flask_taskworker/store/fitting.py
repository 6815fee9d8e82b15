"""Values of the wrong type in rows. Pure.

SQLite keeps a value of any type in any column. What somebody wrote there by hand must not take a page, or a worker,
with it: a value of the wrong type is taken out of its field, and shown as it is beside the row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from ..clock import EPOCH, to_ms

R = TypeVar("R", bound=tuple[Any, ...])

MAX_ODD = 200
"""Characters of a value of the wrong type that are shown."""
ODD = "odd"
"""The field in which a row has those values, as text, by the names of their fields."""

_FIRST_MS = to_ms(EPOCH.replace(year=2))
_LAST_MS = to_ms(EPOCH.replace(year=9999))
"""Between them a moment may be moved by a time zone, and stays in the calendar."""


class _Field(NamedTuple):
    name: str
    allowed: tuple[type, ...]
    neutral: object
    """What stands there instead of another."""
    is_moment: bool

    def takes(self, value: object) -> bool:
        return type(value) in self.allowed and (not self.is_moment or is_moment(value))


def fitted(kind: type[R], row: Sequence[Any]) -> R:
    """*row* as *kind*, a named tuple, with neutral values in the place of those of the wrong type.

    If its last field is ``odd``, that is no column, and gets what :func:`fitted_and_odd` has beside the row.
    """
    values, odd = _values(kind, row)
    return kind(*values, *([odd] if odd and _names(kind)[-1] == ODD else []))


def fitted_and_odd(kind: type[R], row: Sequence[Any]) -> tuple[R, dict[str, str]]:
    """As :func:`fitted`; and the values that stood in fields for numbers and are none, as text, by their names."""
    values, odd = _values(kind, row)
    return kind(*values), odd


def columns(kind: type[tuple[Any, ...]]) -> tuple[str, ...]:
    """The fields of *kind* that are columns."""
    return tuple(name for name in _names(kind) if name != ODD)


def _values(kind: type[tuple[Any, ...]], row: Sequence[Any]) -> tuple[Sequence[Any], dict[str, str]]:
    fields = _fields(kind)
    if all(field.takes(value) for value, field in zip(row, fields, strict=True)):
        return row, {}
    odd: dict[str, str] = {}
    values: list[Any] = []
    for value, field in zip(row, fields, strict=True):
        if field.takes(value):
            values.append(value)
        elif str in field.allowed and value is not None:
            values.append(text_in(value))
        elif bytes in field.allowed and isinstance(value, str):
            values.append(value.encode("utf-8", "replace"))
        else:
            values.append(field.neutral)
            odd[field.name] = shown(value)
    return values, odd


@cache
def _fields(kind: type[tuple[Any, ...]]) -> list[_Field]:
    found: list[_Field] = []
    for name, hint in get_type_hints(kind).items():
        if name != ODD:
            allowed = get_args(hint) or (hint,)
            neutral = None if type(None) in allowed else allowed[0]()
            found.append(_Field(name, allowed, neutral, name.endswith("_at") or name == "next_try"))
    return found


@cache
def _names(kind: type[tuple[Any, ...]]) -> tuple[str, ...]:
    return tuple(get_type_hints(kind))


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
        raise ValueError(f"the layout {shown(value)!r} is no list of lengths and hashes")
    return parts


def hashes_in(layout: object) -> list[str]:
    """The hashes in a mail's layout; none where it cannot be read."""
    try:
        return [part for part in layout_in(layout) if isinstance(part, str)] if layout else []
    except (ValueError, RecursionError):
        return []
