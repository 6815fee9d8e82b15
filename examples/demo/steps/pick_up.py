"""How soon a job starts: from the call of enqueue, the durable commit included, to the task's first line."""

from __future__ import annotations

import statistics
import time

from ..stage import Stage
from ..tasks import ping

PINGS = 100


def run(stage: Stage) -> str:
    latencies = [ping_once() for _ in range(PINGS)]
    median = statistics.median(latencies)
    stage.tell("pick-up", f"median {median:.2f} ms from enqueue to the task's first line, slowest {max(latencies):.1f}")
    return f"{PINGS} jobs, one at a time: each started within {median:.2f} ms (median)"


def ping_once() -> float:
    """Milliseconds. The worker is idle, asleep, until it hears of the job."""
    enqueued = time.perf_counter()
    return (ping.enqueue().result(timeout=10) - enqueued) * 1000
