"""Row 38: async jobs that use the plain calls on the worker's event loop."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any

from flask_taskworker import Every, Retry, TaskWorkerError
from flask_taskworker.core.tasks import Task
from flask_taskworker.mail import Mail, Message
from tests.system.chaos import journal
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import a_stage, settle
from tests.system.chaos.worker import Place, Shop, log_to, record

PARENTS = 5
LONGEST_STOP = 0.1
NOISE = ("shop.flaky", "shop.chime", "flask_taskworker.mail.deliver")
MAIL = {"MAIL_SUPPRESS_SEND": True, "MAIL_DEFAULT_SENDER": "from@example.com"}


@row("38", "plain-calls", "async jobs enqueue, cancel, mail and log plainly, beside failures, schedules and pruning")
def plain_calls(run: Run) -> Result:
    """They may slow down their own loop, and stop no other process."""
    seconds = run.choose(60.0, 3.0)
    with a_stage(run, **MAIL, TASKER_CONCURRENCY=20) as stage:
        parent = declare_parents(stage.shop)
        stage.noise += NOISE
        stage.start(2, serve_parents)
        settle(stage, 2)
        with stage.feeding(per_second=50, longest=0.01) as feeder:
            with stage.shop.app.app_context():
                stage.accept(parent.enqueue_many([(seconds,)] * PARENTS))
            time.sleep(seconds)
        result = Result(done=f"{PARENTS} parents for {seconds:g} s").weigh(stage.judge(), doubled=False)
        refused = stage.evidence("refused")
        calls = len(stage.evidence("called"))
        stage.stop()
    result.figures |= {
        "plain calls on the loops": calls,
        "jobs of the other process": feeder.accepted,
        "its longest stop": f"{feeder.slowest * 1000:.0f} ms",
    }
    result.expect("0 refused", not refused and not feeder.refused)
    result.expect(f"longest stop <= {LONGEST_STOP:g} s", feeder.slowest <= run.within(LONGEST_STOP))
    result.expect("the parents worked", calls > 10 * seconds)
    return result


def serve_parents(place: Place, log: str) -> None:
    """The life of a worker whose jobs use the plain calls."""
    log_to(log)
    shop = Shop(place)
    declare_parents(shop)
    shop.task_worker.start()


def declare_parents(shop: Shop) -> Task[..., Any, Any]:
    """The parents; what they call beside the shop's tasks is deleted as soon as it has ended."""
    folder, task, mail = shop.place.folder, shop.task_worker.task, Mail(shop.app)
    log = logging.getLogger("shop")

    @task(name="shop.flaky", keep=0, retry=Retry(max_attempts=2, base=0.01))
    async def flaky() -> None:
        await asyncio.sleep(random.random() * 0.01)
        raise ConnectionError("upstream")

    @task(name="shop.chime", keep=0, schedule=Every(seconds=0.2))
    async def chime() -> None: ...

    def enqueue() -> None:
        journal.write(folder, journal.ACCEPTED, [shop.pulse.enqueue(0.001).uid])

    def enqueue_what_fails() -> None:
        flaky.enqueue()

    def cancel() -> None:
        flaky.using(delay=3600).enqueue().cancel()

    def send() -> None:
        mail.send_later(Message("news", ["to@example.com"], "text"))

    @task(name="shop.parent")
    async def parent(seconds: float) -> None:
        with journal.executed(folder):
            over = time.monotonic() + seconds
            while time.monotonic() < over:
                act = random.choice((enqueue, enqueue_what_fails, cancel, send))
                try:
                    act()
                except TaskWorkerError as error:
                    record(folder, "refused", 1)
                    log.error("%s: %s", act.__name__, error)
                record(folder, "called", 1)
                log.warning("called %s", act.__name__)
                await asyncio.sleep(random.random() * 0.02)

    return parent
