"""An app with a few tasks, and its commands called in this process."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from flask import Flask, current_app
from flask.cli import ScriptInfo

from flask_taskworker import BackgroundTaskWorker, Cron, Every, Job, Retry
from flask_taskworker.state import AppState
from flask_taskworker.store.sql import epoch_ms
from flask_taskworker.store.statements import workers as worker_statements
from tests.support.stored import counts_of

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
                raise ValueError(f"\x1b[31m{x} is not a number")
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
        self.state.store.driver.write(worker_statements.ADD_WORKER, values)

    def work(self) -> None:
        """Run what is ready, in this process."""
        self.task_worker.start()
        try:
            deadline = time.monotonic() + PATIENCE
            while (counts := counts_of(self.state.store))["ready"] or counts["running"]:
                assert time.monotonic() < deadline, "the jobs did not end"
                time.sleep(0.005)
        finally:
            self.task_worker.stop()


@pytest.fixture
def shop(make_app: Callable[..., Flask]) -> Iterator[Shop]:
    shop = Shop(make_app())
    yield shop
    shop.task_worker.stop()
    shop.state.client.close()


def fail(shop: Shop, *numbers: int) -> list[Job[int]]:
    """Jobs that have failed, because the numbers are not numbers."""
    jobs = shop.add.enqueue_many([(f"n{number}",) for number in numbers])
    shop.work()
    return [job.refresh() for job in jobs]


def rows_of(answer: Answer) -> list[dict[str, Any]]:
    """The lines of an answer in JSON."""
    return [json.loads(line) for line in answer.out.splitlines()]


def write(shop: Shop, sql: str, *values: object) -> None:
    """Run SQL on the SQLite file of the shop."""
    with closing(sqlite3.connect(shop.state.config.database_uri.database or "")) as connection:
        connection.execute(sql, values)
        connection.commit()


def completed(shop: Shop, words: list[str], incomplete: str) -> list[str]:
    """What a shell completes *incomplete* to, after these words."""
    info = ScriptInfo(create_app=lambda: shop.app)
    complete = ShellComplete(shop.app.cli, {"obj": info}, "flask", "_FLASK_COMPLETE")
    return [item.value for item in complete.get_completions(["tasks", *words], incomplete)]
