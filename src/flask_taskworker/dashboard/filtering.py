"""Filters in links. Pure."""

from __future__ import annotations

from ..core.filters import JobFilter
from ..errors import ArgumentsError


def filter_text(chosen: JobFilter) -> str | None:
    """The text that means just these jobs; None where a name in it cannot be written so.

    A task with ``*`` in its name would mean others, too, and a quotation mark ends a value.
    """
    try:
        text = str(chosen)
        is_exact = "*" not in (chosen.task or "") and JobFilter.parse(text, 0) == chosen
    except ArgumentsError:
        return None
    return text if is_exact else None
