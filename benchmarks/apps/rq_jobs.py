"""RQ enqueues functions by name."""

from __future__ import annotations

from ..peer import this_tally

count = this_tally().count


def nothing() -> None:
    """No work."""
    count()
