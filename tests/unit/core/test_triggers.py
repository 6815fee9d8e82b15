from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from flask_taskworker.core.clock import EPOCH, MAX_PERIOD, as_timedelta, from_ms, require_aware, to_ms
from flask_taskworker.core.triggers import (
    MISFIRE_GRACE,
    SHORTHANDS,
    At,
    Cron,
    Every,
    Trigger,
    describe,
    due,
    fires_alike,
    trigger_from_text,
    trigger_to_text,
)
from flask_taskworker.errors import DeclarationError, NotDecodable

SECOND = timedelta(seconds=1)
NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)

# The nights in which the clock changes: zone, the moment of the change, and the offsets before and after in minutes.
CHANGES = [
    pytest.param("Europe/Berlin", datetime(2026, 3, 29, 1, 0, tzinfo=UTC), 60, 120, id="berlin-spring"),
    pytest.param("Europe/Berlin", datetime(2026, 10, 25, 1, 0, tzinfo=UTC), 120, 60, id="berlin-autumn"),
    pytest.param("America/New_York", datetime(2026, 3, 8, 7, 0, tzinfo=UTC), -300, -240, id="new-york-spring"),
    pytest.param("America/New_York", datetime(2026, 11, 1, 6, 0, tzinfo=UTC), -240, -300, id="new-york-autumn"),
    pytest.param("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC), 630, 660, id="lord-howe-spring"),
    pytest.param("Australia/Lord_Howe", datetime(2026, 4, 4, 15, 0, tzinfo=UTC), 660, 630, id="lord-howe-autumn"),
]


def fires(trigger: Trigger, start: datetime, end: datetime) -> Iterator[datetime]:
    """All fire times later than *start*, up to *end*."""
    moment = trigger.next_after(start)
    while moment is not None and moment <= end:
        yield moment
        moment = trigger.next_after(moment)


def walls(trigger: Cron, start: str, end: str) -> list[str]:
    """The fire times between two wall clock times, as the clock on the wall and the offset show them."""
    zone = ZoneInfo(trigger.timezone)
    first, last = (datetime.fromisoformat(text).replace(tzinfo=zone) for text in (start, end))
    return [f"{one.astimezone(zone):%d. %H:%M %z}" for one in fires(trigger, first, last)]


# ---- moments ----


def test_stored_moment_is_rounded_down_to_the_millisecond() -> None:
    assert to_ms(datetime(1970, 1, 1, 0, 0, 1, 999, tzinfo=UTC)) == 1000
    assert to_ms(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1
    assert from_ms(to_ms(NOON)) == NOON
    assert from_ms(1).tzinfo is UTC


def test_stored_moment_is_exact_over_the_whole_calendar() -> None:
    source = random.Random(1)
    for _ in range(2000):
        milliseconds = source.randrange(
            to_ms(datetime.min.replace(tzinfo=UTC)), to_ms(datetime.max.replace(tzinfo=UTC))
        )
        assert to_ms(from_ms(milliseconds)) == milliseconds


@pytest.mark.parametrize("value", [0, 0.5, 3, timedelta(hours=2), MAX_PERIOD])
def test_period_may_be_seconds_or_a_timedelta(value: float | timedelta) -> None:
    expected = value if isinstance(value, timedelta) else timedelta(seconds=value)
    assert as_timedelta(value, "delay") == expected


@pytest.mark.parametrize(
    "value",
    [
        *(-1, -0.001, timedelta(seconds=-1), float("nan"), float("inf"), float("-inf"), 10**30, 10**5000),
        *(MAX_PERIOD + SECOND, timedelta.max, True, None, "5", "x", [1], 1j),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or value < 10**9 else "huge",
)
def test_impossible_period_is_refused_by_name(value: object) -> None:
    with pytest.raises(DeclarationError, match=r"^the delay of add is "):
        as_timedelta(value, "the delay of add")  # type: ignore[arg-type]


def test_naive_moment_is_refused_with_the_remedy() -> None:
    with pytest.raises(DeclarationError, match=r"run_at is datetime.*no time zone.*ZoneInfo"):
        require_aware(datetime(2026, 1, 1), "run_at")  # noqa: DTZ001
    with pytest.raises(DeclarationError, match=r"run_at is 'tomorrow'.*aware datetime"):
        require_aware("tomorrow", "run_at")


# ---- cron ----


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 3 * * *", "2026-05-01T12:00:00", "2026-05-02T03:00:00"),
        ("*/5 * * * *", "2026-05-01T12:00:00", "2026-05-01T12:05:00"),
        ("*/5 * * * *", "2026-05-01T11:59:59.999999", "2026-05-01T12:00:00"),
        ("30 */10 * * * *", "2026-05-01T12:00:00", "2026-05-01T12:00:30"),
        ("* * * * * *", "2026-05-01T12:00:00.001", "2026-05-01T12:00:01"),
        ("0 9 * * MON-FRI", "2026-05-01T12:00:00", "2026-05-04T09:00:00"),
        ("0 9 L * *", "2026-05-01T12:00:00", "2026-05-31T09:00:00"),
        ("0 9 LW * *", "2026-05-01T12:00:00", "2026-05-29T09:00:00"),
        ("0 9 * * MON#2", "2026-05-01T12:00:00", "2026-05-11T09:00:00"),
        ("0 9 13 * FRI", "2026-05-01T12:00:00", "2026-05-08T09:00:00"),
        ("0 0 29 2 *", "2026-05-01T12:00:00", "2028-02-29T00:00:00"),
        ("0 0 29 2 *", "2096-03-01T00:00:00", "2104-02-29T00:00:00"),
        ("@hourly", "2026-05-01T12:00:00", "2026-05-01T13:00:00"),
        ("@daily", "2026-05-01T12:00:00", "2026-05-02T00:00:00"),
        ("@midnight", "2026-05-01T12:00:00", "2026-05-02T00:00:00"),
        ("@weekly", "2026-05-01T12:00:00", "2026-05-03T00:00:00"),
        ("@monthly", "2026-05-01T12:00:00", "2026-06-01T00:00:00"),
        ("@Yearly", "2026-05-01T12:00:00", "2027-01-01T00:00:00"),
        (" @annually ", "2026-05-01T12:00:00", "2027-01-01T00:00:00"),
    ],
)
def test_cron_fires_at_the_next_match_strictly_later_than_now(expression: str, after: str, expected: str) -> None:
    now = datetime.fromisoformat(after).replace(tzinfo=UTC)
    assert Cron(expression).next_after(now) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_cron_speaks_of_the_wall_clock_of_its_zone_and_answers_in_utc() -> None:
    moment = Cron("0 3 * * *", timezone="Europe/Berlin").next_after(NOON)
    assert moment == datetime(2026, 5, 2, 1, 0, tzinfo=UTC)
    assert moment.tzinfo is UTC


def test_cron_takes_now_in_any_zone() -> None:
    tokyo = NOON.astimezone(ZoneInfo("Asia/Tokyo"))
    assert Cron("0 3 * * *").next_after(tokyo) == Cron("0 3 * * *").next_after(NOON)


def test_cron_explains_itself() -> None:
    assert Cron("0 3 * * *").explain() == "At 03:00 every day"
    assert all(Cron(shorthand).explain() for shorthand in SHORTHANDS)


@pytest.mark.parametrize(
    "expression",
    [
        *("1--100000000 * * * *", "1-100000000 * * * *", "*/0 * * * *", "60 * * * *", "0 24 * * *", "0 0 0 * *"),
        *("", " ", "* * * *", "* * * * * * *", "@reboot", "0 0 * 13 *", "0 0 * * 8", "0 0 * * MON#6", "x y z a b"),
        *("1-5-1 * * * *", "1,,2 * * * *", "1-2-3 * * * *", "*/* * * * *", "-1 * * * *", "0 0 * * L/2", "² * * * *"),
        *(f"*/{'9' * 5000} * * * *", "1," * 200 + "1 * * * *", "\0 * * * *", "0 0 1 * * ; DROP"),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_unreadable_cron_is_refused_with_the_value(expression: str) -> None:
    with pytest.raises(DeclarationError, match=r"^Cron") as caught:
        Cron(expression)
    assert repr(expression)[:60] in str(caught.value)
    assert "Give" in str(caught.value)


@pytest.mark.parametrize("expression", [None, 5, b"0 3 * * *", ["0"]])
def test_cron_that_is_not_text_is_refused(expression: object) -> None:
    with pytest.raises(DeclarationError, match="Give a text"):
        Cron(expression)  # type: ignore[arg-type]


@pytest.mark.parametrize("expression", ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 * 2 MON#5,TUE#5 x"])
def test_cron_that_can_never_fire_is_refused(expression: str) -> None:
    with pytest.raises(DeclarationError):
        Cron(expression)


def test_cron_that_only_the_calendar_makes_impossible_is_refused() -> None:
    # The 30th is never the first Monday, but cronsim finds out only by looking at 50 years.
    with pytest.raises(DeclarationError, match="can never fire"):
        Cron("0 0 */29 * MON#2")


@pytest.mark.parametrize(
    "zone", ["Europe/Berlinn", "Europe", "", "../etc/passwd", "/etc/localtime", "\0", "CET\n", "x" * 5000]
)
def test_unknown_zone_is_refused_with_the_remedy(zone: str) -> None:
    with pytest.raises(DeclarationError, match=r"timezone.*Europe/Berlin.*tzdata"):
        Cron("@daily", timezone=zone)


@pytest.mark.parametrize("zone", [5, ZoneInfo("Europe/Berlin")])
def test_zone_that_is_not_text_is_refused(zone: object) -> None:
    with pytest.raises(DeclarationError, match="timezone"):
        Cron("@daily", timezone=zone)  # type: ignore[arg-type]


def test_cron_without_a_zone_takes_that_of_the_app() -> None:
    assert Cron("0 3 * * *")._in_zone("Europe/Berlin") == Cron("0 3 * * *", timezone="Europe/Berlin")
    assert Cron("0 3 * * *", timezone="UTC")._in_zone("Europe/Berlin") == Cron("0 3 * * *", timezone="UTC")
    assert Cron("0 3 * * *").next_after(NOON) == Cron("0 3 * * *", timezone="UTC").next_after(NOON)


def test_utc_needs_no_zone_database() -> None:
    code = (
        "import sys; sys.modules['tzdata'] = None; "
        "from datetime import datetime, UTC; from flask_taskworker import Cron; "
        "print(Cron('0 3 * * *', timezone='UTC').next_after(datetime(2026, 5, 1, tzinfo=UTC)).isoformat())"
    )
    environment = {**os.environ, "PYTHONTZPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "2026-05-01T03:00:00+00:00\n"


def test_schedule_fires_from_its_start_to_its_end_both_included() -> None:
    start, end = NOON + timedelta(minutes=30), NOON + timedelta(hours=3)
    hourly = Cron("30 * * * *", start=start, end=end)
    assert list(fires(hourly, NOON - timedelta(days=400), NOON + timedelta(days=9))) == [
        start + timedelta(hours=number) for number in range(3)
    ]
    assert hourly.next_after(end) is None
    every = Every(minutes=30, start=start, end=NOON + timedelta(hours=1))
    assert list(fires(every, NOON - timedelta(days=1), end)) == [start, start + timedelta(minutes=30)]
    assert trigger_from_text(trigger_to_text(hourly)) == hourly
    assert trigger_from_text(trigger_to_text(every)) == every


def test_impossible_bounds_are_refused() -> None:
    for make in (lambda **bounds: Cron("@daily", **bounds), lambda **bounds: Every(days=1, **bounds)):
        with pytest.raises(DeclarationError, match="end .* is before its start"):
            make(start=NOON, end=NOON - SECOND)
        with pytest.raises(DeclarationError, match="end is datetime.*no time zone"):
            make(end=datetime(2026, 1, 1))  # noqa: DTZ001


def test_naive_now_is_refused() -> None:
    for trigger in (Cron("@daily"), Every(seconds=5), At(NOON)):
        with pytest.raises(DeclarationError, match="now is"):
            trigger.next_after(datetime(2026, 1, 1))  # noqa: DTZ001


def test_end_of_the_calendar_is_not_an_error() -> None:
    last = datetime.max.replace(tzinfo=UTC)
    assert Cron("0 3 * * *").next_after(last) is None
    assert Cron("* * * * *", timezone="Asia/Tokyo").next_after(last) is None
    assert Cron("0 3 * * *", timezone="America/New_York").next_after(last) is None
    assert Every(hours=1).next_after(last) is None
    assert At(NOON).next_after(last) is None


def test_beginning_of_the_calendar_is_not_an_error() -> None:
    first = datetime.min.replace(tzinfo=UTC)
    assert Cron("0 3 * * *").next_after(first) == datetime(1, 1, 1, 3, tzinfo=UTC)
    assert Cron("0 3 * * *", timezone="America/New_York").next_after(first) is None
    assert Every(hours=1).next_after(first) == EPOCH


# ---- when the clock changes ----


@pytest.mark.parametrize(
    ("zone", "start", "end", "expected"),
    [
        # 02:00 becomes 03:00.
        ("Europe/Berlin", "2026-03-28", "2026-03-31", ["28. 02:30 +0100", "29. 03:00 +0200", "30. 02:30 +0200"]),
        ("America/New_York", "2026-03-07", "2026-03-10", ["07. 02:30 -0500", "08. 03:00 -0400", "09. 02:30 -0400"]),
        # 03:00 becomes 02:00, in New York 02:00 becomes 01:00, and so 02:30 is unique there.
        ("Europe/Berlin", "2026-10-24", "2026-10-27", ["24. 02:30 +0200", "25. 02:30 +0200", "26. 02:30 +0100"]),
        ("America/New_York", "2026-10-31", "2026-11-03", ["31. 02:30 -0400", "01. 02:30 -0500", "02. 02:30 -0500"]),
        # 02:00 becomes 02:30.
        ("Australia/Lord_Howe", "2026-10-03", "2026-10-06", ["03. 02:30 +1030", "04. 02:30 +1100", "05. 02:30 +1100"]),
        # 02:00 becomes 01:30.
        ("Australia/Lord_Howe", "2026-04-04", "2026-04-07", ["04. 02:30 +1100", "05. 02:30 +1030", "06. 02:30 +1030"]),
    ],
)
def test_daily_job_runs_once_in_every_night(zone: str, start: str, end: str, expected: list[str]) -> None:
    assert walls(Cron("30 2 * * *", timezone=zone), start, end) == expected


@pytest.mark.parametrize(
    ("expression", "zone", "start", "end", "expected"),
    [
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04", "2026-10-05", ["04. 02:30 +1100"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-05", "2026-04-06", ["05. 01:45 +1100"]),
        ("30 1 * * *", "America/New_York", "2026-11-01", "2026-11-02", ["01. 01:30 -0400"]),
        # Fixed times in the gap meet at its end, where they fire once.
        ("0,30 2,3 * * *", "Europe/Berlin", "2026-03-29", "2026-03-30", ["29. 03:00 +0200", "29. 03:30 +0200"]),
        ("0-59/20 2 * * *", "Europe/Berlin", "2026-03-29", "2026-03-30", ["29. 03:00 +0200"]),
        # The seconds do not matter: 02:30 is a fixed time with them, too.
        ("0 30 2 * * *", "Europe/Berlin", "2026-03-29", "2026-03-30", ["29. 03:00 +0200"]),
        ("0 30 2 * * *", "Europe/Berlin", "2026-10-25", "2026-10-26", ["25. 02:30 +0200"]),
        # Midnight does not exist.
        ("@daily", "Asia/Beirut", "2026-03-28T12:00", "2026-03-30T12:00", ["29. 01:00 +0300", "30. 00:00 +0300"]),
        # A whole day does not exist: Samoa left out 30 December 2011.
        (
            "0 9 * * *",
            "Pacific/Apia",
            "2011-12-29",
            "2011-12-31T12:00",
            ["29. 09:00 -1000", "31. 00:00 +1400", "31. 09:00 +1400"],
        ),
    ],
)
def test_fixed_time_fires_once(expression: str, zone: str, start: str, end: str, expected: list[str]) -> None:
    assert walls(Cron(expression, timezone=zone), start, end) == expected


def test_hourly_job_follows_real_time() -> None:
    berlin = Cron("0 * * * *", timezone="Europe/Berlin")
    assert walls(berlin, "2026-03-29T00:30", "2026-03-29T04:30") == [
        *("29. 01:00 +0100", "29. 03:00 +0200", "29. 04:00 +0200")
    ]
    assert walls(berlin, "2026-10-25T00:30", "2026-10-25T04:30") == [
        *("25. 01:00 +0200", "25. 02:00 +0200", "25. 02:00 +0100", "25. 03:00 +0100", "25. 04:00 +0100")
    ]
    new_york = Cron("@hourly", timezone="America/New_York")
    assert walls(new_york, "2026-11-01T00:30", "2026-11-01T03:30") == [
        *("01. 01:00 -0400", "01. 01:00 -0500", "01. 02:00 -0500", "01. 03:00 -0500")
    ]
    lord_howe = Cron("@hourly", timezone="Australia/Lord_Howe")
    assert walls(lord_howe, "2026-10-04T00:30", "2026-10-04T04:30") == [
        *("04. 01:00 +1030", "04. 03:00 +1100", "04. 04:00 +1100")
    ]


def test_quarter_hours_in_a_repeated_hour_fire_twice() -> None:
    assert walls(Cron("*/15 2 * * *", timezone="Europe/Berlin"), "2026-10-25", "2026-10-26") == [
        *("25. 02:00 +0200", "25. 02:15 +0200", "25. 02:30 +0200", "25. 02:45 +0200"),
        *("25. 02:00 +0100", "25. 02:15 +0100", "25. 02:30 +0100", "25. 02:45 +0100"),
    ]
    assert walls(Cron("*/15 2 * * *", timezone="Europe/Berlin"), "2026-03-29", "2026-03-30") == []


def test_lord_howe_keeps_the_half_hour_after_the_fold() -> None:
    # cronsim, given the zone, goes on in steps of an hour from 01:30 to 02:30 and loses the first two.
    assert walls(Cron("*/15 2 * * *", timezone="Australia/Lord_Howe"), "2026-04-05", "2026-04-06") == [
        *("05. 02:00 +1030", "05. 02:15 +1030", "05. 02:30 +1030", "05. 02:45 +1030")
    ]
    assert walls(Cron("*/15 1 * * *", timezone="Australia/Lord_Howe"), "2026-04-05", "2026-04-06") == [
        *("05. 01:00 +1100", "05. 01:15 +1100", "05. 01:30 +1100", "05. 01:45 +1100"),
        *("05. 01:30 +1030", "05. 01:45 +1030"),
    ]


@pytest.mark.parametrize(("zone", "change", "before", "after"), CHANGES)
def test_wildcards_fire_whenever_the_wall_clock_matches(zone: str, change: datetime, before: int, after: int) -> None:
    """Each moment of twelve hours is looked at, and its wall clock compared with the expression."""
    matches = {
        "* * * * *": lambda wall: True,
        "*/15 * * * *": lambda wall: wall.minute % 15 == 0,
        "0 * * * *": lambda wall: wall.minute == 0,
        "*/15 1,2 * * *": lambda wall: wall.minute % 15 == 0 and wall.hour in (1, 2),
        "7 */2 * * *": lambda wall: wall.minute == 7 and wall.hour % 2 == 0,
        "*/30 2 * * SUN": lambda wall: wall.minute % 30 == 0 and wall.hour == 2 and wall.isoweekday() == 7,
        "59 * * * *": lambda wall: wall.minute == 59,
    }
    start = change - timedelta(hours=6)
    minutes = [start + timedelta(minutes=number) for number in range(1, 12 * 60 + 1)]
    shown = [(one, one + timedelta(minutes=before if one < change else after)) for one in minutes]
    for expression, is_match in matches.items():
        expected = [moment for moment, wall in shown if is_match(wall)]
        assert list(fires(Cron(expression, timezone=zone), start, minutes[-1])) == expected, expression


@pytest.mark.parametrize(("zone", "change", "before", "after"), CHANGES)
def test_each_second_fires_through_the_change(zone: str, change: datetime, before: int, after: int) -> None:
    start = change - timedelta(minutes=2)
    moments = list(fires(Cron("* * * * * *", timezone=zone), start, change + timedelta(minutes=2)))
    assert moments == [start + number * SECOND for number in range(1, 241)]


@pytest.mark.parametrize(("zone", "change", "before", "after"), CHANGES)
@pytest.mark.parametrize(
    "expression",
    [
        *(
            "30 2 * * *",
            "30 1 * * *",
            "0 * * * *",
            "*/15 * * * *",
            "*/15 1-2 * * *",
            "0,30 1,2 * * *",
            "5-55/10 2 * * *",
        ),
        *("0 3 * * *", "@daily", "*/20 30 2 * * *", "15,45 */10 1,2 * * *", "10 */3 * * *", "0 2 * * 0", "0 12 1 * *"),
    ],
)
def test_answer_does_not_depend_on_where_one_starts(
    zone: str, change: datetime, before: int, after: int, expression: str
) -> None:
    trigger = Cron(expression, timezone=zone)
    moments = list(fires(trigger, change - timedelta(hours=4), change + timedelta(hours=4)))
    assert moments == sorted(set(moments))
    last = trigger.next_after(change + timedelta(hours=4))
    assert last is not None
    for moment, following in itertools.pairwise([*moments, last]):
        assert trigger.next_after(moment - SECOND) == moment
        assert trigger.next_after(moment - timedelta(microseconds=1)) == moment
        assert trigger.next_after(moment) == following
    source = random.Random(f"{zone} {expression}")
    for _ in range(20):
        now = change + timedelta(seconds=source.uniform(-7200, 7200))
        assert trigger.next_after(now) == next((one for one in moments if one > now), last), now


def test_every_night_of_four_years_has_its_daily_job() -> None:
    for zone in ("Europe/Berlin", "Australia/Lord_Howe"):
        trigger = Cron("30 2 * * *", timezone=zone)
        start = datetime(2020, 1, 1, tzinfo=ZoneInfo(zone))
        days = [one.astimezone(ZoneInfo(zone)).date() for one in fires(trigger, start, start.replace(year=2024))]
        assert days == [start.date() + timedelta(days=number) for number in range(4 * 365 + 1)]


# ---- every ----


def test_every_is_anchored_at_the_epoch() -> None:
    assert Every(minutes=5).next_after(NOON + timedelta(minutes=3)) == NOON + timedelta(minutes=5)
    assert Every(minutes=5).next_after(NOON) == NOON + timedelta(minutes=5)
    assert Every(minutes=5).next_after(NOON - timedelta(microseconds=1)) == NOON


def test_every_adds_its_units() -> None:
    given = Every(weeks=1, days=1, hours=1, minutes=1, seconds=1.5)
    assert given.interval == timedelta(days=8, hours=1, minutes=1, seconds=1.5)


def test_start_is_the_first_fire_time() -> None:
    trigger = Every(days=1, start=NOON)
    assert trigger.next_after(NOON - timedelta(days=400)) == NOON
    assert trigger.next_after(NOON) == NOON + timedelta(days=1)
    assert Every(minutes=1, start=NOON).next_after(NOON - timedelta(hours=1)) == NOON


def test_every_does_not_drift() -> None:
    trigger = Every(seconds=0.7, start=NOON)
    moment = NOON
    for number in range(1, 2_000):
        found = trigger.next_after(moment + timedelta(milliseconds=number % 700))
        assert found == NOON + number * timedelta(seconds=0.7)
        moment = found


def test_every_fires_at_whole_milliseconds() -> None:
    trigger = Every(seconds=1 / 3, start=NOON + timedelta(microseconds=999))
    assert trigger.interval == timedelta(milliseconds=333)
    assert trigger.start == NOON


@pytest.mark.parametrize(
    "given",
    [
        *({}, {"seconds": 0}, {"seconds": 0.099}, {"seconds": -5}, {"seconds": float("nan")}, {"days": float("inf")}),
        *({"days": 10**9}, {"weeks": 10**400}, {"seconds": True}, {"minutes": "5"}, {"hours": None}),
        *({"seconds": timedelta(seconds=5)}, {"seconds": 5, "start": datetime(2026, 1, 1)}),  # noqa: DTZ001
        *({"seconds": 5, "start": "now"}, {"seconds": 5, "jitter": -1}, {"seconds": 5, "misfire": "never"}),
    ],
    ids=lambda given: repr(given)[:40],
)
def test_impossible_every_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(DeclarationError, match=r"^Every's .* Give "):
        Every(**given)  # type: ignore[arg-type]


def test_shortest_interval_is_a_tenth_of_a_second() -> None:
    assert Every(seconds=0.1).interval == timedelta(milliseconds=100)


# ---- at, and the options of all ----


def test_at_fires_once() -> None:
    trigger = At(NOON)
    assert trigger.next_after(NOON - timedelta(milliseconds=1)) == NOON
    assert trigger.next_after(NOON) is None


def test_at_is_kept_in_utc_and_whole_milliseconds() -> None:
    trigger = At(datetime(2026, 5, 1, 14, 0, 0, 1999, tzinfo=ZoneInfo("Europe/Berlin")))
    assert trigger.run_at == NOON + timedelta(milliseconds=1)
    assert trigger.run_at.tzinfo is UTC


@pytest.mark.parametrize("run_at", [datetime(2026, 5, 1), "2026-05-01", None, 5])  # noqa: DTZ001
def test_at_wants_an_aware_datetime(run_at: object) -> None:
    with pytest.raises(DeclarationError, match=r"At's run_at is .*aware datetime"):
        At(run_at)  # type: ignore[arg-type]


def test_options_have_defaults() -> None:
    for trigger in (Cron("@daily"), Every(seconds=5), At(NOON)):
        assert (trigger.misfire, trigger.overlap, trigger.jitter) == ("once", "skip", timedelta(0))


def test_jitter_is_kept_as_a_timedelta_in_whole_milliseconds() -> None:
    assert Cron("@daily", jitter=1.2345).jitter == timedelta(milliseconds=1234)
    assert At(NOON, jitter=timedelta(minutes=1)).jitter == timedelta(minutes=1)


@pytest.mark.parametrize(
    "options",
    [{"misfire": "twice"}, {"misfire": None}, {"overlap": "once"}, {"overlap": True}, {"jitter": -1}, {"jitter": "5"}],
    ids=repr,
)
def test_wrong_option_is_refused_by_name(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(DeclarationError, match=f"Cron's {name} is .* Give"):
        Cron("@daily", **options)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match=f"At's {name} is .* Give"):
        At(NOON, **options)  # type: ignore[arg-type]


def test_triggers_are_frozen_and_comparable() -> None:
    trigger = Cron("0  3 * * *", timezone="Europe/Berlin")
    assert trigger == Cron(" 0 3 * * * ", timezone="Europe/Berlin")
    assert trigger != Cron("0 3 * * *")
    assert hash(Every(minutes=5)) == hash(Every(seconds=300))
    with pytest.raises(AttributeError):
        trigger.expression = "x"  # type: ignore[misc]


# ---- due ----


def stamps(*seconds: float) -> tuple[datetime, ...]:
    return tuple(NOON + timedelta(seconds=one) for one in seconds)


def test_nothing_is_due_before_its_time() -> None:
    for misfire in ("once", "skip", "all"):
        found = due(Every(minutes=1, misfire=misfire), NOON + SECOND, NOON)
        assert (found.fires, found.next_at, found.missed) == ((), NOON + SECOND, 0)


@pytest.mark.parametrize("misfire", ["once", "skip", "all"])
@pytest.mark.parametrize("late", [timedelta(0), MISFIRE_GRACE])
def test_fire_time_within_the_grace_fires(misfire: str, late: timedelta) -> None:
    found = due(Every(minutes=1, misfire=misfire), NOON, NOON + late)  # type: ignore[arg-type]
    assert (found.fires, found.next_at, found.missed) == (stamps(0), NOON + timedelta(minutes=1), 0)


def test_every_fire_time_within_the_grace_fires() -> None:
    for misfire in ("once", "skip", "all"):
        found = due(Every(seconds=5, misfire=misfire), NOON, NOON + timedelta(seconds=9))
        assert (found.fires, found.next_at, found.missed) == (stamps(0, 5), NOON + timedelta(seconds=10), 0)


def test_once_fires_the_latest_missed_only() -> None:
    found = due(Every(minutes=1), NOON, NOON + timedelta(minutes=10, seconds=30))
    assert found.fires == stamps(600)
    assert found.next_at == NOON + timedelta(minutes=11)
    assert found.missed == 10


def test_once_drops_the_missed_if_another_is_on_time() -> None:
    found = due(Every(minutes=1), NOON, NOON + timedelta(minutes=10, seconds=5))
    assert found.fires == stamps(600)
    assert found.missed == 10


def test_skip_drops_what_was_missed() -> None:
    found = due(Every(minutes=1, misfire="skip"), NOON, NOON + timedelta(minutes=10, seconds=30))
    assert (found.fires, found.next_at, found.missed) == ((), NOON + timedelta(minutes=11), 11)
    found = due(Every(minutes=1, misfire="skip"), NOON, NOON + timedelta(minutes=10, seconds=5))
    assert (found.fires, found.missed) == (stamps(600), 10)


def test_all_fires_everything_in_portions() -> None:
    trigger = Every(minutes=1, misfire="all")
    now = NOON + timedelta(minutes=25, seconds=30)
    seen: list[datetime] = []
    next_at: datetime | None = NOON
    sizes = []
    while next_at is not None and next_at <= now:
        found = due(trigger, next_at, now, limit=10)
        sizes.append(len(found.fires))
        seen.extend(found.fires)
        next_at = found.next_at
        assert found.missed == 0
    assert tuple(seen) == stamps(*range(0, 26 * 60, 60))
    assert sizes == [10, 10, 6]
    assert next_at == NOON + timedelta(minutes=26)


@pytest.mark.parametrize(("misfire", "expected"), [("once", (NOON,)), ("skip", ()), ("all", (NOON,))])
def test_missed_at_follows_its_rule(misfire: str, expected: tuple[datetime, ...]) -> None:
    found = due(At(NOON, misfire=misfire), NOON, NOON + timedelta(days=3))  # type: ignore[arg-type]
    assert (found.fires, found.next_at, found.missed) == (expected, None, 0 if expected else 1)


def test_at_on_time_fires_and_ends() -> None:
    found = due(At(NOON), NOON, NOON)
    assert (found.fires, found.next_at) == (stamps(0), None)


def test_on_time_fires_are_limited_too() -> None:
    found = due(Every(seconds=0.1, misfire="skip"), NOON, NOON + timedelta(seconds=5), limit=7)
    assert len(found.fires) == 7
    assert found.next_at == NOON + timedelta(seconds=0.7)


@dataclass
class Counted:
    """A trigger that counts how often it is asked."""

    inner: Trigger
    calls: int = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def next_after(self, now: datetime) -> datetime | None:
        self.calls += 1
        return self.inner.next_after(now)


@pytest.mark.parametrize("misfire", ["once", "skip"])
@pytest.mark.parametrize(
    "trigger",
    [
        lambda misfire: Cron("* * * * * *", misfire=misfire),
        lambda misfire: Every(seconds=0.2, misfire=misfire),
        lambda misfire: Cron("* * 3 1 1 *", timezone="Europe/Berlin", misfire=misfire),
        lambda misfire: Cron("* 1-3 * * *", timezone="Europe/Berlin", misfire=misfire),
    ],
)
def test_years_of_downtime_cost_a_bounded_number_of_steps(trigger: object, misfire: str) -> None:
    counted = Counted(trigger(misfire))  # type: ignore[operator]
    now = datetime(2026, 10, 25, 1, 30, 0, 500_000, tzinfo=UTC)
    first = counted.next_after(now - timedelta(days=10 * 365))
    counted.calls = 0
    found = due(counted, first, now, limit=100)  # type: ignore[arg-type]
    assert counted.calls < 300
    assert found.missed >= 19
    assert found.next_at == counted.inner.next_after(now)
    late = now - MISFIRE_GRACE
    if misfire == "once" and found.fires[-1] < late:
        assert counted.inner.next_after(found.fires[0]) >= late  # type: ignore[operator]


def test_due_agrees_with_the_naive_way() -> None:
    source = random.Random(3)
    for _ in range(150):
        kind = source.choice(["once", "skip", "all"])
        options = {"timezone": source.choice(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]), "misfire": kind}
        trigger = Cron(source.choice(["*/7 * * * *", "30 2 * * *", "*/9 * * * * *", "0 */3 * * *"]), **options)  # type: ignore[arg-type]
        start = datetime(2026, 10, 24, tzinfo=UTC) + timedelta(seconds=source.uniform(0, 2 * 86400))
        first = trigger.next_after(start)
        assert first is not None
        now = first + timedelta(seconds=source.choice([0, 5, 100, 4000, 30_000]) * source.random())
        everything = [first, *fires(trigger, first, now)]
        missed = [one for one in everything if now - one > MISFIRE_GRACE]
        on_time = everything[len(missed) :]
        expected = {"all": everything, "skip": on_time, "once": on_time or missed[-1:]}[kind]
        found = due(trigger, first, now, limit=source.choice([5000, 5]) if kind != "all" and len(on_time) < 5 else 5000)
        assert found.fires == tuple(expected)
        assert found.next_at == trigger.next_after(now)


# ---- texts ----

TRIGGERS: list[Trigger] = [
    Cron("0 3 * * *", timezone="Europe/Berlin"),
    Cron("@weekly", misfire="all", overlap="allow", jitter=5),
    Every(minutes=5),
    Every(seconds=0.7, start=NOON, misfire="skip", jitter=timedelta(milliseconds=1)),
    Every(days=1, start=datetime(1950, 1, 1, tzinfo=UTC)),
    At(NOON),
    At(datetime(1950, 1, 1, tzinfo=UTC), overlap="allow"),
]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=repr)
def test_trigger_comes_back_from_its_text(trigger: Trigger) -> None:
    text = trigger_to_text(trigger)
    assert trigger_from_text(text) == trigger
    assert trigger_to_text(trigger_from_text(text)) == text
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_different_triggers_have_different_texts() -> None:
    assert len({trigger_to_text(trigger) for trigger in TRIGGERS}) == len(TRIGGERS)


def test_equal_triggers_have_equal_texts() -> None:
    assert trigger_to_text(Every(minutes=5)) == trigger_to_text(Every(seconds=300, jitter=0.0))
    berlin = NOON.astimezone(ZoneInfo("Europe/Berlin"))
    assert trigger_to_text(At(NOON)) == trigger_to_text(At(berlin))


def test_text_of_a_trigger_is_stable() -> None:
    # It is stored and compared: another text would make every schedule look changed after an upgrade.
    assert trigger_to_text(TRIGGERS[0]) == (
        '{"expression":"0 3 * * *","jitter_ms":0,"misfire":"once","overlap":"skip",'
        '"timezone":"Europe/Berlin","type":"cron"}'
    )
    assert trigger_to_text(TRIGGERS[2]) == (
        '{"interval_ms":300000,"jitter_ms":0,"misfire":"once","overlap":"skip","start_ms":0,"type":"every"}'
    )
    assert trigger_to_text(TRIGGERS[5]) == (
        '{"jitter_ms":0,"misfire":"once","overlap":"skip","run_at_ms":1777636800000,"type":"at"}'
    )


def test_only_triggers_have_a_text() -> None:
    with pytest.raises(DeclarationError, match=r"Cron\(…\)"):
        trigger_to_text("0 3 * * *")  # type: ignore[arg-type]


OPTIONS = '"jitter_ms":0,"misfire":"once","overlap":"skip"'


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "5", '"cron"', "{}", "{", "[" * 100_000, "NaN", "\0", "\ud800", '{"type":"cron"}'),
        *('{"type":"os.system"}', '{"type":["cron"]}', '{"type":{}}'),
        '{"type":"cron","expression":"1--100000000 * * * *","timezone":"UTC",' + OPTIONS + "}",
        '{"type":"cron","expression":5,"timezone":"UTC",' + OPTIONS + "}",
        '{"type":"cron","expression":"@daily","timezone":"../x",' + OPTIONS + "}",
        '{"type":"cron","expression":"@daily","timezone":"UTC","x":1,' + OPTIONS + "}",
        '{"type":"every","interval_ms":0,"start_ms":0,' + OPTIONS + "}",
        '{"type":"every","interval_ms":true,"start_ms":0,' + OPTIONS + "}",
        '{"type":"every","interval_ms":5000.0,"start_ms":0,' + OPTIONS + "}",
        '{"type":"every","interval_ms":5000,"start_ms":' + "9" * 30 + "," + OPTIONS + "}",
        '{"type":"at","run_at_ms":' + "9" * 5000 + "," + OPTIONS + "}",
        '{"type":"at","run_at_ms":1e999,' + OPTIONS + "}",
        '{"type":"at","run_at_ms":null,' + OPTIONS + "}",
        '{"type":"at","run_at_ms":true,' + OPTIONS + "}",
        '{"type":"at","run_at_ms":0,"jitter_ms":-5,"misfire":"once","overlap":"skip"}',
        '{"type":"at","run_at_ms":0,"jitter_ms":0,"misfire":["once"],"overlap":"skip"}',
        *(None, 5, b"\xff", ["x"]),
    ],
    ids=lambda text: repr(text)[:50],
)
def test_malformed_text_is_not_decodable(text: str) -> None:
    with pytest.raises(NotDecodable, match="stored trigger") as caught:
        trigger_from_text(text)
    assert len(str(caught.value)) < 600


def test_mutated_text_is_not_decodable_or_a_trigger() -> None:
    source = random.Random(4)
    texts = [trigger_to_text(trigger) for trigger in TRIGGERS]
    for _ in range(3000):
        text = list(source.choice(texts))
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(text))
            text[at : at + source.randint(0, 3)] = source.choice(
                [*'{}[]":,0-9e', "null", "true", "\\u0000", "99999999999"]
            )
        try:
            found = trigger_from_text("".join(text))
        except NotDecodable:
            continue
        assert isinstance(found, Cron | Every | At)


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        (Cron("0 3 * * *", timezone="Europe/Berlin"), "0 3 * * * (Europe/Berlin)"),
        (Cron("@daily"), "@daily (UTC)"),
        (Every(minutes=5), "every 5 minutes"),
        (Every(minutes=60), "every hour"),
        (Every(hours=36), "every 36 hours"),
        (Every(days=14), "every 2 weeks"),
        (Every(seconds=1), "every second"),
        (Every(seconds=90), "every 90 seconds"),
        (Every(seconds=0.25), "every 0.25 seconds"),
        (Every(seconds=100), "every 100 seconds"),
        (At(NOON), "at 2026-05-01 12:00:00 UTC"),
    ],
)
def test_trigger_is_described_for_people(trigger: Trigger, expected: str) -> None:
    assert describe(trigger) == expected


# ---- the same times ----


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Cron("0 0 * * *"), Cron("@daily", misfire="all", jitter=5, overlap="allow")),
        (Cron("0 3 * * MON-FRI"), Cron("0  3 * * 1,2,3,4,5")),
        (Cron("0 3 * * 0"), Cron("0 3 * * 7")),
        (Every(minutes=60), Every(hours=1, jitter=3, misfire="skip")),
        (At(NOON), At(NOON, misfire="skip")),
    ],
)
def test_spelling_and_options_leave_the_times_alike(one: Cron | Every | At, other: Cron | Every | At) -> None:
    assert fires_alike(trigger_to_text(one), trigger_to_text(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Cron("0 0 * * *"), Cron("0 1 * * *")),
        (Cron("0 0 * * *"), Cron("0 0 * * *", timezone="Europe/Berlin")),
        (Cron("0 * * * *"), Cron("0 0-23 * * *")),
        (Cron("0 0 1 * MON"), Cron("0 0 */1 * MON")),
        (Every(minutes=60), Every(minutes=61)),
        (Every(minutes=60), Every(minutes=60, start=NOON + SECOND)),
        (Every(minutes=60), Cron("0 * * * *")),
        (At(NOON), At(NOON + SECOND)),
    ],
)
def test_other_times_are_not_alike(one: Cron | Every | At, other: Cron | Every | At) -> None:
    assert not fires_alike(trigger_to_text(one), trigger_to_text(other))


def test_a_damaged_trigger_is_like_no_other() -> None:
    assert not fires_alike("{", trigger_to_text(At(NOON)))


def test_a_week_of_downtime_costs_a_few_steps() -> None:
    counted = Counted(Cron("* * * * *", timezone="Europe/Berlin"))
    first = NOON + timedelta(days=9)
    found = due(counted, first, first + timedelta(days=7, seconds=30))  # type: ignore[arg-type]
    assert counted.calls < 50
    assert found.missed >= 19
