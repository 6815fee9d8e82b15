"""Oban's jobs name their function by module."""

from __future__ import annotations

from oban import job

from ..peer import this_tally

count = this_tally().count


@job()
async def nothing() -> None:
    """No work."""
    count()
