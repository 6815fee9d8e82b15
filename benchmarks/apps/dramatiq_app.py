"""dramatiq with Redis as its broker."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from ..peer import this_tally, this_url

broker = RedisBroker(url=this_url())
dramatiq.set_broker(broker)
count = this_tally().count


@dramatiq.actor
def nothing() -> None:
    """No work."""
    count()
