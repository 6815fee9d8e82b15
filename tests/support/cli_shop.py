"""An app with a few tasks, and its commands called in this process."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flask import Flask, current_app

from flask_taskworker import BackgroundTaskWorker, Cron, Every, Retry
from flask_taskworker.state import AppState
from flask_taskworker.store.sql import epoch_ms
from flask_taskworker.store.statements import workers as worker_statements

PATIENCE = 30


@dataclass
class Answer:
    """What a command gave: the exit code and both outputs."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shop:
    """An app with a few tasks, and its commands."""

    def __init__(self, app: Flask, *, tables: bool = True) -> None:
        self.app = app
        self.task_worker = BackgroundTaskWorker(app)
        if tables:
            self.state.store.driver.prepare()
        self.runner = app.test_cli_runner()
        self.ran: list[Any] = []

        @self.task_worker.task(name="shop.add")
        def add(x: int, y: int = 2) -> int:
            if not isinstance(x, int):
                raise ValueError(f"\x1b[31m{x} is no number")
            self.ran.append((x, y))
            return x + y

        @self.task_worker.task(
            name="shop.crawl", queue="web", priority=10, retry=Retry(max_attempts=3, base=60), timeout=30
        )
        async def crawl(url: str, *, depth: int = 1) -> dict[str, object]:
            if url == "bad":
                raise ValueError("no\nsuch \x1b[31mpage")
            return {"app": current_app.name, "at": datetime(2026, 1, 2, tzinfo=UTC), "pair": (url, depth)}

        triggers = [Cron("0 3 * * *", timezone="Europe/Berlin"), Every(hours=1)]

        @self.task_worker.task(name="shop.nightly", schedule=triggers)
        def nightly() -> None: ...

        self.add, self.crawl = add, crawl

    @property
    def state(self) -> AppState:
        state: AppState = self.app.extensions["taskworker"]
        return state

    def __call__(self, *words: str, **options: Any) -> Answer:
        """``flask tasks …`` with these words."""
        result = self.runner.invoke(args=["tasks", *words], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    def jump(self, milliseconds: int) -> None:
        """Let the store's clock go ahead."""
        self.state.store.clock = lambda: epoch_ms() + milliseconds

    def register_worker(self, queues: list[str] | None = None, *, silent_for: int = 0) -> None:
        """A worker's row, as its heartbeat writes it."""
        running = {"async": 1, "sync": 2}
        info = {"queues": queues, "concurrency": 100, "threads": 6, "running": running, "resident_mb": 99}
        values = {
            "id": "0123456789ab",
            "host": "web1",
            "pid": 4312,
            "now": self.state.store.clock() - silent_for,
            "server_started_at": None,
            "info": json.dumps(info),
        }
        self.state.store.driver.prepare()
        self.state.store.driver.write(worker_statements.add_worker(), values)

    def work(self) -> None:
        """Run what is ready, in this process."""
        self.task_worker.start()
        try:
            deadline = time.monotonic() + PATIENCE
            while (counts := self.state.store.counts()).ready or counts.running:
                assert time.monotonic() < deadline, "the jobs did not end"
                time.sleep(0.005)
        finally:
            self.task_worker.stop()
