"""taskiq with the broker of taskiq-redis that acknowledges, and no result backend."""

from __future__ import annotations

from taskiq_redis import RedisStreamBroker

from ..peer import this_tally, this_url

broker = RedisStreamBroker(url=this_url())
count = this_tally().count


@broker.task
async def nothing() -> None:
    """No work."""
    count()
