"""The application behind the browser tests: one job of each state and more, queues, schedules, mails, failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Cron, Every, Limit, Mail, Message, Rate, Retry, current_job
from flask_taskworker.dashboard import create_dashboard
from flask_taskworker.ops.browse import Browser

READY_WITHIN = 50.0


class Shop:
    """The app, its worker and its tasks."""

    def __init__(self, folder: Path) -> None:
        self.app = Flask("shop", instance_path=str(folder))
        self.app.config.update(
            MAIL_BACKEND="memory", MAIL_DEFAULT_SENDER="shop@example.org", TASKER_THREADS=2, TASKER_CONCURRENCY=8
        )
        self.task_worker = BackgroundTaskWorker(self.app)
        self.mail = Mail(self.app)
        self.hold = threading.Event()
        self.permissions: Any = True
        access: Callable[[], Any] = lambda: self.permissions  # noqa: E731
        self.app.register_blueprint(
            create_dashboard(self.task_worker, access=access, who=lambda: "ana"), url_prefix="/tasks"
        )
        self._declare()

    def _declare(self) -> None:
        task = self.task_worker.task

        @task(name="shop.add")
        def add(x: int, y: int) -> int:
            return x + y

        @task(name="shop.pack", queue="slow")
        def pack(order: int, card_token: str = "tok_secret") -> None:
            current_job.progress(2, 5, "two of five")
            self.hold.wait()

        @task(name="shop.charge")
        def charge(order: int) -> None:
            raise KeyError("total")

        @task(name="shop.fetch", retry=Retry(max_attempts=5, base=3600))
        def fetch(url: str) -> None:
            raise ConnectionError(f"{url} does not answer")

        @task(name="shop.tick", schedule=[Every(seconds=1)], queue="ticks")
        def tick() -> None:
            pass

        @task(name="shop.nightly", schedule=Cron("0 3 * * *", timezone="Europe/Berlin"))
        def nightly() -> None:
            pass

        @task(name="shop.rest", queue="later")
        def rest(number: int) -> None:
            pass

        @task(name="shop.label", limit=Limit("carrier", running=5, rate=Rate(100, per=60)))
        def label(order: int) -> None:
            pass

        @task(name="shop.sync", queue="slow", limit=Limit("shop", running=1, key="shop_id"))
        async def sync(shop_id: int) -> None:
            await asyncio.to_thread(self.hold.wait)

        self.sync = sync
        self.add, self.pack, self.charge, self.fetch, self.rest = add, pack, charge, fetch, rest

    def seed(self) -> None:
        """Have jobs of every state, and wait until the worker has done what it can."""
        with self.app.app_context():
            self.task_worker.start()
            self.add.enqueue_many([(number, number) for number in range(60)])
            self.charge.enqueue_many([(number,) for number in range(14)])
            self.fetch.enqueue("https://example.org/<b>bold</b>")
            self.running = self.pack.enqueue(7)
            self.sync.enqueue_many([(7,), (7,), (7,), (8,)])
            self.rest.using(delay=3600).enqueue_many([(number,) for number in range(5)])
            self.rest.using(delay=7200).enqueue(99).cancel()
            self.mail.send_later(
                Message("Reset your password", ["zoe@example.org"], "https://example.org/reset/abc", html="<p>Hi</p>")
            )
            browser = Browser(self.app.extensions["taskworker"].store)
            self.wait(lambda: browser.state_counts().failed == 14 and browser.state_counts().running >= 1)
            self.wait(lambda: (browser.state_counts().succeeded or 0) >= 61)
            # The figures come some seconds after the facts.
            self.wait(lambda: sum(f.ended for f in browser.figures(0, step=2**62)) >= 75)

    @staticmethod
    def wait(condition: Callable[[], bool]) -> None:
        """Until the condition holds; fails after READY_WITHIN."""
        deadline = time.monotonic() + READY_WITHIN
        while not condition():
            assert time.monotonic() < deadline, "the shop did not come so far"
            time.sleep(0.05)

    def close(self) -> None:
        """Let everything end."""
        self.hold.set()
        self.task_worker.stop(timeout=5)
