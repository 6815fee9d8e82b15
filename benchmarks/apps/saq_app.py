"""SAQ on Redis, with its ten jobs at once and with twenty."""

from __future__ import annotations

from typing import Any

from saq import Queue

from ..peer import this_tally, this_url

queue = Queue.from_url(this_url())
count = this_tally().count


async def nothing(context: Any) -> None:
    """No work."""
    count()


settings = {"queue": queue, "functions": [nothing]}
tuned = {**settings, "concurrency": 20}
