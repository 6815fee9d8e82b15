"""Numbers and periods as people read them."""

from __future__ import annotations

from itertools import pairwise

from .clock import from_ms

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def counted(number: int) -> str:
    """A count that stops at the most: "1,234", "10,000+"."""
    return f"{number:,}+" if number >= MOST else f"{number:,}"


def number_in(text: str) -> int | None:
    """The whole number that *text* is, if every database holds it; None for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def stamp(milliseconds: int) -> str:
    """A stored moment: "2026-05-01 12:00:00 UTC"."""
    return f"{from_ms(milliseconds):%Y-%m-%d %H:%M:%S} UTC"


def spoken(milliseconds: int) -> str:
    """A period in its two largest units: "5 ms", "0.4 s", "12 s", "3 min", "3 h 5 min", "2 d 3 h"."""
    if 0 < milliseconds < 100:
        return f"{milliseconds} ms"
    if milliseconds < 10_000:
        return f"{max(0, milliseconds) / 1000:.1f}".removesuffix(".0") + " s"
    seconds = milliseconds // 1000
    for (size, unit), (smaller, smaller_unit) in pairwise(_UNITS):
        if seconds >= size:
            rest = seconds % size // smaller
            # The seconds of half an hour do not matter.
            return f"{seconds // size} {unit}" + (f" {rest} {smaller_unit}" if rest and smaller > 1 else "")
    return f"{seconds} s"


MOST = 10_000
"""Counts stop here: how far beyond it a queue is does not matter."""
