"""Atomic jobs under kill -9; ``python -m tests.system.chaos.atomic 200`` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.chaos.atomic import kill_many


@pytest.mark.slow
def test_killed_atomic_jobs_leave_both_their_rows_and_their_success_or_neither(url: str, tmp_path: Path) -> None:
    found = kill_many(url, tmp_path, kills=20, jobs=300, seconds=0.005)
    print(found)
    assert found.rows == found.jobs == found.states["succeeded"]
    assert found.doubled == 0
    assert found.rescued > 0
