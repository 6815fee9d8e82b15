"""How many jobs a second, when they have nothing to do."""

from __future__ import annotations

import time

from ..stage import Stage
from ..tasks import no_op


def run(stage: Stage) -> str:
    number = 10_000 if stage.limit is None else 1_000
    begun = time.perf_counter()
    no_op.enqueue_many([(n,) for n in range(number)])
    stored = time.perf_counter() - begun
    stage.screen.follow("burst", number, lambda: (stage.tally.ended(no_op), "all in one transaction"))
    seconds = stage.tally.last_end - begun
    stage.check("each job of the burst succeeded", stage.tally.of(no_op, "succeeded") == number)
    stage.tell("burst", f"{number:,} jobs in {seconds:.2f} s, {stored:.2f} s of it to store them")
    return f"{number:,} jobs enqueued in one transaction: {number / seconds:,.0f} jobs/s"
