"""Fixtures for pytest, which loads this module by itself wherever the package is installed.

They take the project's own fixture ``app``, a Flask app. Nothing else of the package is imported before one of them is
used, so that other projects pay nothing and the coverage of this package's users begins with their tests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

    from flask import Flask

    from .testing import Jobs, LiveWorker, Outbox, TaskClock

_BEGUN = time.time_ns() // 1_000_000
"""When this test run has begun. Epoch milliseconds."""


def _testing() -> ModuleType:
    return import_module("flask_taskworker.testing")


@pytest.fixture
def jobs(app: Flask) -> Iterator[Jobs]:
    """The jobs of ``app``: assertions about what was enqueued, and ``jobs.drain()``, which runs it."""
    found: Jobs = _testing().Jobs(app, begun=_BEGUN)
    yield found
    found.clear()


@pytest.fixture
def outbox(app: Flask) -> Iterator[Outbox]:
    """The mails that ``app`` would have sent."""
    with _testing().Outbox(app) as found:
        yield found


@pytest.fixture
def task_clock(app: Flask) -> Iterator[TaskClock]:
    """The time by which the jobs and schedules of ``app`` go; it stands still until the test moves it."""
    with _testing().TaskClock(app) as found:
        yield found


@pytest.fixture
def live_worker(app: Flask) -> Iterator[LiveWorker]:
    """A worker of ``app``, at work in a process of its own; on other systems than Linux, in a thread."""
    with _testing().LiveWorker(app) as found:
        yield found
