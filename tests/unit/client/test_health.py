"""When a worker is silent, a schedule late, and which queues a worker takes jobs from."""

from __future__ import annotations

from typing import Any

import pytest

from flask_taskworker.client.health import is_late, is_silent, takes
from flask_taskworker.store.sql import ScheduleRow, WorkerRow

NOW = 1_800_000_000_000


@pytest.mark.parametrize(
    ("state", "age_ms", "silent"),
    [("alive", 30_000, False), ("alive", 30_001, True), ("draining", 30_001, True), ("dead", 90_000, False)],
)
def test_a_worker_is_silent_after_half_a_minute(state: str, age_ms: int, silent: bool) -> None:
    assert is_silent(WorkerRow("w", "host", 1, 0, 1, NOW - age_ms, state, "{}", 0), NOW) is silent


@pytest.mark.parametrize(
    ("next_at", "paused", "late"),
    [(NOW - 60_000, 0, False), (NOW - 60_001, 0, True), (NOW - 60_001, 1, False), (None, 0, False)],
)
def test_a_schedule_is_late_after_a_minute(next_at: int | None, paused: int, late: bool) -> None:
    assert is_late(ScheduleRow("s", "t", "", "", next_at, None, paused, "code"), NOW) is late


@pytest.mark.parametrize(
    ("info", "taken"),
    [
        ({}, True),
        ({"queues": None, "exclude": []}, True),
        ({"queues": ["web", "mail"]}, True),
        ({"queues": ["mail"]}, False),
        ({"exclude": ["web"]}, False),
        ({"queues": ["web"], "exclude": ["web"]}, False),
    ],
)
def test_a_worker_takes_jobs_from_its_queues_but_those_it_excludes(info: dict[str, Any], taken: bool) -> None:
    assert takes(info, "web") is taken
