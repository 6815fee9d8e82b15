"""Moments and periods: whole milliseconds in UTC, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from flask_taskworker.core.clock import (
    EPOCH,
    MAX_PERIOD,
    MILLISECOND,
    as_seconds,
    as_timedelta,
    from_ms,
    require_aware,
    to_ms,
)
from flask_taskworker.errors import ArgumentsError, DeclarationError


@pytest.mark.parametrize("milliseconds", [0, 1, -1, 1_777_777_777_777, to_ms(datetime.max.replace(tzinfo=UTC))])
def test_a_stored_moment_comes_back(milliseconds: int) -> None:
    assert to_ms(from_ms(milliseconds)) == milliseconds


def test_a_moment_is_rounded_down_in_any_zone() -> None:
    moment = datetime(1970, 1, 1, 2, 0, 0, 1999, tzinfo=timezone(timedelta(hours=2)))
    assert to_ms(moment) == 1
    assert from_ms(1) == EPOCH + MILLISECOND


@pytest.mark.parametrize(("given", "period"), [(0, timedelta(0)), (1.5, timedelta(seconds=1.5)), (MAX_PERIOD,) * 2])
def test_a_period_is_seconds_or_a_timedelta(given: Any, period: timedelta) -> None:
    assert as_timedelta(given, "delay") == period


@pytest.mark.parametrize(
    "given",
    [-1, MAX_PERIOD + MILLISECOND, float("nan"), float("inf"), True, "5", None, pytest.param(10**5000, id="huge")],
)
def test_any_other_period_is_refused_by_name(given: Any) -> None:
    with pytest.raises(DeclarationError, match="^delay is "):
        as_timedelta(given, "delay")


@pytest.mark.parametrize(("given", "seconds"), [(None, None), (3, 3.0), (-1, -1.0)])
def test_a_timeout_is_a_number_or_none(given: Any, seconds: float | None) -> None:
    assert as_seconds(given) == seconds


@pytest.mark.parametrize("given", ["5", b"5", True, float("nan"), object(), pytest.param(10**5000, id="huge")])
def test_any_other_timeout_is_refused(given: Any) -> None:
    with pytest.raises(ArgumentsError, match="^timeout is "):
        as_seconds(given)


@pytest.mark.parametrize("given", [datetime(2026, 5, 1), "2026-05-01", None])  # noqa: DTZ001 - it has no zone
def test_a_naive_moment_is_refused(given: Any) -> None:
    with pytest.raises(DeclarationError, match="^run_at is .*aware datetime"):
        require_aware(given, "run_at")
