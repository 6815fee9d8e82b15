"""The event loop under the workers: it obeys signals and goes on, whatever logging does."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.worker.runner import Runner
from tests.support.waiting import wait_for


@pytest.fixture
def broken_logging() -> Iterator[logging.Handler]:
    """Every record of the package and of asyncio meets a handler that raises."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left")

    broken = Broken()
    loggers = [logging.getLogger(name) for name in ("flask_taskworker", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger, level in zip(loggers, (logging.DEBUG, logging.WARNING), strict=True):
        logger.addHandler(broken)
        logger.setLevel(level)
    yield broken
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(broken)
        logger.setLevel(level)


def runner_of(task_worker: BackgroundTaskWorker) -> Runner:
    assert task_worker._runner is not None
    return task_worker._runner


@pytest.mark.usefixtures("broken_logging")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_obeyed_where_logging_raises(task_worker: BackgroundTaskWorker, number: signal.Signals) -> None:
    task_worker.task(name="work")(lambda: None).enqueue().result(timeout=20)
    runner = runner_of(task_worker)
    runner.loop.call_soon_threadsafe(runner._on_signal, number)
    wait_for(lambda: not runner.alive)


@pytest.mark.usefixtures("broken_logging")
def test_callback_that_raises_does_not_end_the_loop_where_logging_raises(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def leave_callback() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)

    leave_callback.enqueue().result(timeout=20)
    assert task_worker.task(name="next")(lambda: 1).enqueue().result(timeout=20) == 1
    assert runner_of(task_worker).alive


def test_runner_takes_no_worker_when_all_others_have_ended(
    make_app: Callable[..., Flask], task_worker: BackgroundTaskWorker
) -> None:
    runner = runner_of(task_worker)
    (worker,) = task_worker._workers()
    task_worker.stop()
    assert not runner.alive
    assert not runner.serve(worker)
