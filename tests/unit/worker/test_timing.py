"""The times of a worker that the documentation names."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.worker.timing import DEFAULT_TIMING, Timing


def test_loop_is_given_up_after_the_time_of_a_lease() -> None:
    assert DEFAULT_TIMING.lost_after == DEFAULT_TIMING.lease_beats * DEFAULT_TIMING.beat == 30.0
    assert DEFAULT_TIMING.blocked_after < DEFAULT_TIMING.lost_after


def test_times_are_passed_in_and_cannot_be_changed() -> None:
    assert BackgroundTaskWorker._timing is DEFAULT_TIMING
    with pytest.raises(FrozenInstanceError):
        DEFAULT_TIMING.beat = 0.1  # type: ignore[misc]
    assert Timing(beat=0.1) == Timing(beat=0.1) != DEFAULT_TIMING
