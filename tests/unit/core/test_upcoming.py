"""The fire times to come, and what a change of the clock does to them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flask_taskworker import At, Cron, Every
from flask_taskworker.core.triggers import Trigger, upcoming

SPRING = datetime(2026, 3, 28, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 24, tzinfo=UTC)


def notes(trigger: Trigger, now: datetime, number: int) -> list[tuple[str, ...]]:
    return [fire.notes for fire in upcoming(trigger, now, number)]


def berlin(expression: str) -> Cron:
    return Cron(expression, timezone="Europe/Berlin")


def test_fire_times_follow_each_other_on_the_clock_of_the_zone() -> None:
    fires = upcoming(berlin("0 3 * * *"), SPRING, 2)
    assert [f"{fire.at:%d %H:%M}" for fire in fires] == ["28 02:00", "29 01:00"]
    assert [f"{fire.local:%d %H:%M %z}" for fire in fires] == ["28 03:00 +0100", "29 03:00 +0200"]


def test_change_of_the_offset_is_said_where_it_comes() -> None:
    change = "The clock changes before it, on 2026-03-29 from 02:00 to 03:00: UTC+01:00 becomes UTC+02:00."
    assert notes(berlin("0 3 * * *"), SPRING, 3) == [(), (change,), ()]


def test_time_that_spring_leaves_out_is_said() -> None:
    left_out = notes(berlin("30 2 * * *"), SPRING, 2)[1][1]
    assert left_out == "02:30 is left out by the clock on that day: it fires at 03:00."


def test_time_that_autumn_repeats_is_said() -> None:
    assert notes(berlin("30 2 * * *"), AUTUMN, 3) == [
        (),
        ("The clock shows 02:30 twice on that day: it fires the first time only.",),
        ("The clock changes before it, on 2026-10-25 from 03:00 to 02:00: UTC+02:00 becomes UTC+01:00.",),
    ]
    every_half_hour = notes(berlin("*/30 * * * *"), AUTUMN.replace(hour=23, minute=59), 2)
    assert every_half_hour[0] == ("The clock shows 02:00 twice on that day: it fires both times.",)


@pytest.mark.parametrize("trigger", [Cron("0 3 * * *"), Every(days=1), At(datetime(2026, 11, 1, tzinfo=UTC))])
def test_no_note_without_a_change(trigger: Trigger) -> None:
    assert not any(notes(trigger, AUTUMN, 10))


def test_list_ends_with_the_last_fire_time() -> None:
    assert upcoming(At(SPRING), SPRING) == []
    assert len(upcoming(At(AUTUMN), SPRING)) == 1
