"""Words for a terminal, and JSON for programs. What came from a database or an exception is escaped in both."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import shutil
import sys
from collections.abc import Mapping, Sequence, Set
from datetime import date, datetime, time
from typing import Any

from ..core.words import stamp


def safe(text: object) -> str:
    r"""*text* as one line in which nothing steers a terminal: control characters are written as escapes (``\x1b``)."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def safe_lines(text: str) -> str:
    """As :func:`safe`, but line by line: for tracebacks."""
    return "\n".join(safe(line.expandtabs()) for line in text.splitlines())


def shortened(text: str, most: int) -> str:
    """The beginning of *text* if it is too long to be read."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters; --json shows all)"


def to_json(value: Any) -> str:
    """*value* as one line of JSON; what JSON does not know becomes the nearest that it does."""
    line = json.dumps(_plain(value), ensure_ascii=False)
    if line.isprintable():
        return line
    # A control character can only stand inside a string here, where this escape means the same.
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _plain(value: Any) -> Any:
    match value:
        case enum.Enum():
            return _plain(value.value)
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case datetime() | date() | time():
            return value.isoformat()
        case Sequence() | Set():
            return [_plain(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value)


def moment(milliseconds: int | None) -> str | None:
    """A stored moment for people: "2026-05-01 12:00:00 UTC"."""
    return stamp(milliseconds) if milliseconds else None


def plural(number: int, noun: str, nouns: str = "") -> str:
    """ "1 job", "2 jobs"; *nouns* where an s is not enough."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Set[str] = frozenset()) -> list[str]:
    """Lines with aligned columns, indented by two; the columns named in *right* are aligned on the right.

    At a terminal they are cut to its width.
    """
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    cells = [list(headers), *([safe(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "  "
        + "  ".join(
            cell.rjust(width) if header in right else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        ).rstrip()
        for row in cells
    ]
    return [line if most is None or len(line) <= most else f"{line[: most - 1]}…" for line in lines]


def pairs(rows: Sequence[tuple[str, str | None]]) -> list[str]:
    """Lines of "name  value", indented by two, escaped; those without a value are left out."""
    known = [(name, safe(value)) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    return [f"  {name.ljust(width)}  {value}" for name, value in known]
