from __future__ import annotations

import itertools
import random
from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from flask_taskworker import Cron
from flask_taskworker.core.cron import CronError, CronFields, read_cron
from flask_taskworker.errors import DeclarationError

VECTORS = [
    [part.strip() for part in line.split("|")]
    for line in Path(__file__).with_name("cron_vectors.txt").read_text().splitlines()
    if not line.startswith("#")
]

# Expression and moment of each vector that has another answer here, with the reason. docs/schedules.md lists them, too.
INTENDED = {
    "a step beyond the field is refused, not read as its first value": [
        ("1 1 */100,1-7 * MON", "2020-01-01T00:00"),
    ],
    "seconds make no difference: a fixed time in the gap fires at its end, as without seconds": [
        ("11,22 30 1,2,3,4 * * *", "2021-03-28T01:31"),
        ("33 30 1-10 * * *", "2021-03-28T01:31"),
        ("0 30 1-10 * * *", "2021-03-28T01:31"),
    ],
    "a fixed time in the gap fires at its end, not in the next year or on the next day": [
        ("0 30 2 11 Mar ?", "2012-03-11T00:00-05:00"),
        ("0 0 2 * * ?", "2012-03-11T00:00-05:00"),
    ],
    "a step of * counts as *: day and weekday must both match, as in Debian's cron": [
        ("* * */10 * Sun", "2012-07-15T00:00"),
        ("0 0 0 */5 Apr,Aug,Oct Mon", "2012-07-09T23:35"),
    ],
    "a fixed time in the fold fires once, the first time": [
        ("0 30 1 04 Nov ?", "2012-11-04T01:45-04:00"),
        ("0 0 1 * * ?", "2012-11-04T01:00-04:00"),
    ],
}
DIFFERS = {vector for vectors in INTENDED.values() for vector in vectors}


def fields(expression: str) -> CronFields:
    read = read_cron(expression)
    assert isinstance(read, CronFields)
    return read


def first(expression: str, number: int, after: str = "2026-01-01") -> list[str]:
    found = itertools.islice(fields(expression).after(datetime.fromisoformat(after)), number)
    return [f"{one:%Y-%m-%d %H:%M}" for one in found]


def agrees(expression: str, zone: str, after: str, expected: str) -> bool:
    info = ZoneInfo(zone)
    moment = datetime.fromisoformat(after)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=info)
    try:
        trigger = Cron(expression, timezone=zone)
    except DeclarationError:
        return expected == "never"
    if expected in ("fires", "does not fire"):
        return (trigger.next_after(moment - timedelta(seconds=1)) == moment) == (expected == "fires")
    for text in expected.split():
        shown = datetime.fromisoformat(text)
        found = trigger.next_after(moment)
        if found != (shown if shown.tzinfo else shown.replace(tzinfo=info)):
            return False
        moment = found
    return True


@pytest.mark.parametrize("library", ["cronsim", "robfig"])
def test_fire_times_of_another_library_are_ours_but_for_the_listed_differences(library: str) -> None:
    vectors = [vector[1:] for vector in VECTORS if vector[0] == library]
    other = [vector for vector in vectors if not agrees(*vector)]
    assert len(vectors) > 40
    assert [(expression, after) for expression, _, after, _ in other if (expression, after) not in DIFFERS] == []


def test_each_listed_difference_is_one() -> None:
    same = [vector for vector in VECTORS if (vector[1], vector[3]) in DIFFERS and agrees(*vector[1:])]
    assert same == []


def test_expressions_that_cronsim_reads_match_the_same_times() -> None:
    source = random.Random(5)

    def one(low: int, high: int) -> str:
        some = sorted(source.sample(range(low, high + 1), 3))
        return source.choice(
            [
                *("*", "*", f"*/{some[0] % 5 + 1}", f"{some[0]}-{some[1]}", f"{some[0]}-{some[2]}/2", f"{some[0]}"),
                *(f"{some[2]},{some[0]},{some[1]}", f"{some[0]}/{some[1] % 3 + 1}" if some[0] < high - 3 else "*"),
            ]
        )

    for _ in range(400):
        day = source.choice([one(1, 28), one(1, 28), "L", "LW", "15,L"])
        weekday = source.choice([one(0, 7), one(0, 6), "MON-FRI", "SUN#2", "5L", "1,3#4"])
        expression = " ".join([*source.choice([[], [one(0, 59)]]), one(0, 59), one(0, 23), day, one(1, 12), weekday])
        start = datetime(2026, 1, 1) + timedelta(seconds=source.randrange(10**8))  # noqa: DTZ001
        theirs = list(itertools.islice(CronSim(expression, start), 4))
        assert list(itertools.islice(fields(expression).after(start), 4)) == theirs, (expression, start)
        assert fields(expression).explain()


def test_ranges_go_over_the_end_of_a_field() -> None:
    assert fields("0 0 * * FRI-MON").weekdays == {5, 6, 0, 1}
    assert fields("0 0 * * SAT-SUN").weekdays == fields("0 0 * * SAT,SUN").weekdays == {6, 0}
    assert fields("0 22-2 * * *").hours == (0, 1, 2, 22, 23)
    assert fields("0 22-3/2 * * *").hours == (0, 2, 22)
    assert fields("0 0 * NOV-FEB *").months == {11, 12, 1, 2}
    assert fields("50-10/10 * * * *").minutes == (0, 10, 50)
    assert fields("0 0 28-3 * *").days == {28, 29, 30, 31, 1, 2, 3}
    assert fields("0 0 * * 0-7").weekdays == fields("0 0 * * 5-4").weekdays == set(range(7))


def test_question_mark_is_a_star_in_the_days() -> None:
    assert first("15 10 ? * 6L", 2) == ["2026-01-31 10:15", "2026-02-28 10:15"]
    assert fields("0 9 15 * ?") == fields("0 9 15 * *")


def test_last_days_are_counted_from_the_end_of_each_month() -> None:
    assert first("0 9 L * *", 3) == ["2026-01-31 09:00", "2026-02-28 09:00", "2026-03-31 09:00"]
    assert first("0 9 L-3 * *", 3) == ["2026-01-28 09:00", "2026-02-25 09:00", "2026-03-28 09:00"]
    assert first("0 9 L-29 2-3 *", 1) == ["2026-03-02 09:00"]
    assert first("0 9 * * FRIL", 2) == first("0 9 * * 5L", 2) == ["2026-01-30 09:00", "2026-02-27 09:00"]


def test_nearest_weekday_is_in_the_same_month_and_never_on_a_weekend() -> None:
    for expression, day in [("0 9 1W * *", 1), ("0 9 15W * *", 15), ("0 9 31W * *", 31)]:
        for moment in itertools.islice(fields(expression).after(datetime(2026, 1, 1)), 200):  # noqa: DTZ001
            length = monthrange(moment.year, moment.month)[1]
            weekdays = [
                number for number in range(1, length + 1) if date(moment.year, moment.month, number).weekday() < 5
            ]
            assert moment.day == min(weekdays, key=lambda number: (abs(number - day), number)), moment
    assert first("0 9 31W 2,4 *,MON", 1) == []
    assert first("0 9 LW * *", 400) == [
        f"{one:%Y-%m-%d %H:%M}"
        for one in itertools.islice(
            CronSim("0 9 LW * *", datetime(2026, 1, 1)),  # noqa: DTZ001
            400,
        )
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("90s", 90), ("500ms", 0.5), ("1.5h", 5400), ("1d", 86400)]
)
def test_every_is_an_interval_counted_from_1970(text: str, seconds: float) -> None:
    interval = timedelta(seconds=seconds)
    assert read_cron(f"@every {text}") == interval
    now = datetime(2026, 5, 1, 12, 0, 0, 7, tzinfo=UTC)
    found = Cron(f"@every {text}", timezone="Europe/Berlin").next_after(now)
    assert found is not None
    assert now < found <= now + interval
    assert (found - datetime(1970, 1, 1, tzinfo=UTC)) % interval == timedelta(0)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("60 * * * *", "'60' in the minute is not 0-59"),
        ("0 24 * * *", "'24' in the hour is not 0-23"),
        ("0 0 * 13 *", "'13' in the month is not 1-12 or JAN-DEC"),
        ("0 0 * * MONDAY", "'MONDAY' in the weekday is not 0-7 or SUN-SAT"),
        ("*/61 * * * *", "the step of '*/61' in the minute is not 1-60"),
        ("0 0 */0 * *", "the step of '*/0' in the day of the month is not 1-31"),
        ("0 0 1-5/6 * *", "the step of '1-5/6' in the day of the month is not 1-5"),
        ("? * * * *", "'?' in the minute"),
        ("0 0 32W * *", "'32W' in the day of the month is in no month"),
        ("0 0 L-31 * *", "'L-31' in the day of the month is in no month"),
        ("0 0 * * L", "FRIL is the last Friday"),
        ("0 0 * * MON#6", "MONL is the last Monday"),
        ("0 0 * * 5L/2", "'5L' in the weekday"),
        ("0 0 1-L * *", "'L' in the day of the month"),
        ("@reboot", "enqueue the task where your application starts"),
        ("@every 5", "write '@every 5m'"),
        ("@every 1ms", "the least is 0.1 seconds"),
        ("@every 999999999999w", "is not an interval"),
        ("0 0 * *", "it has 4 fields"),
        ("0 0 0 1 1 * 2026", "it has 7 fields"),
    ],
)
def test_error_names_the_part_and_the_remedy(expression: str, words: str) -> None:
    with pytest.raises(CronError) as caught:
        read_cron(expression)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "english"),
    [
        ("0 3 * * *", "At 03:00 every day"),
        ("30 7 * * MON-FRI", "At 07:30 on Monday through Friday"),
        ("*/5 * * * *", "Every 5 minutes"),
        ("*/7 * * * *", "At every 7th minute from 0 through 56 of every hour"),
        ("7 * * * *", "At minute 7 of every hour"),
        ("0 */2 * * *", "At minute 0 of every 2nd hour"),
        ("0 0,8,16 * * *", "At 00:00, 08:00 and 16:00 every day"),
        ("5,20 9-17 * * *", "At minutes 5 and 20 of hours 9 through 17"),
        ("*/10 * 2 * * *", "Every 10 seconds of hour 2"),
        ("30 * * * * *", "At second 30 of every minute"),
        ("0 9 13 * FRI", "At 09:00 on day 13 of the month or on Friday"),
        ("0 9 */2 * FRI", "At 09:00 on every 2nd day from 1 through 31 of the month, only on Friday"),
        ("0 9 L-3 * *", "At 09:00 on day 3 before the last day of the month"),
        ("0 9 15W,LW * *", "At 09:00 on the weekday nearest to day 15 of the month and the last weekday of the month"),
        ("0 9 * * MON#2", "At 09:00 on the second Monday of the month"),
        (
            "0 22-2 * NOV-FEB FRI-MON",
            "At minute 0 of hours 22 through 2 on Friday through Monday in November through February",
        ),
    ],
)
def test_expression_is_said_in_english(expression: str, english: str) -> None:
    assert fields(expression).explain() == english


def test_interval_is_said_in_english() -> None:
    assert Cron("@every 5m").explain() == "Every 5 minutes"
