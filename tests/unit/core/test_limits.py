"""Limits as they are declared, and the arithmetic of room and rates."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flask_taskworker import BackgroundTaskWorker, Limit, Rate
from flask_taskworker.core.limits import LaneFacts, Numbers, limit_of, room
from flask_taskworker.errors import ArgumentsError, DeclarationError

NOW = 1_700_000_000_000
TWENTY = Limit("api", rate=Rate(20, per=1))._numbers
BURST = Limit("api", rate=Rate(20, per=1, burst=5))._numbers


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Limit("api"), "'api' limits nothing. Give it running"),
        (lambda: Limit("api", running=0), "'api': running is 0. Give a whole number, at least 1"),
        (lambda: Limit("api", rate=5), "'api': rate is 5. Give a Rate"),  # type: ignore[arg-type]
        (lambda: Limit("a:b", running=1), "'a:b' cannot have this name: leave out the colon"),
        (lambda: Limit("queue", running=1), "'queue' cannot have this name"),
        (lambda: Limit("a\n", running=1), "Give up to 200 printable"),
        (lambda: Limit("api", running=1, key=7), "key is 7. Give the name of a parameter"),  # type: ignore[arg-type]
        (lambda: Limit("api", rate=Rate(1), hold=True), "it needs running="),
        (lambda: Rate(0), "Rate's number is 0"),
        (lambda: Rate(5, burst=6), "Rate's burst is 6, more than its number, 5"),
        (lambda: Rate(2_000_000, per=1), "Give a longer per"),
        (lambda: Rate(1, per=-1), "per"),
    ],
)
def test_a_wrong_limit_says_what_to_do(make: Any, words: str) -> None:
    with pytest.raises((DeclarationError, ArgumentsError), match=words):
        make()


def test_key_is_checked_against_the_parameters(task_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(DeclarationError, match=r"The limit 'shop' .*parameter 'shop_id'.*it has: shop"):

        @task_worker.task(limit=Limit("shop", running=1, key="shop_id"))
        def sync(shop: int) -> None: ...


def test_one_name_has_one_meaning(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(limit=Limit("api", running=1))
    def first() -> None: ...

    @task_worker.task(limit=Limit("api", running=1))
    def same() -> None: ...

    with pytest.raises(DeclarationError, match=r"The limit 'api' .* differs from that of .*Make one Limit"):

        @task_worker.task(limit=Limit("api", running=2))
        def other() -> None: ...


def test_task_takes_only_a_named_limit(task_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(DeclarationError, match="needs a name"):
        task_worker.task(limit=Limit(running=1))
    with pytest.raises(DeclarationError, match="Allowed: a Limit"):
        task_worker.task(limit=5)  # type: ignore[call-overload]


def test_limit_key_needs_a_limit_with_a_key(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def free() -> None: ...

    with pytest.raises(ArgumentsError, match="has no limit with a key"):
        free.using(limit_key="x")


def test_lane_is_the_limit_with_its_key(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(limit=Limit("shop", running=1, key="shop_id"))
    def named(shop_id: int = 7) -> None: ...

    @task_worker.task(limit=Limit("pair", running=1, key=lambda a, b: (a, b)))
    def pair(a: int, b: str) -> None: ...

    assert named._lane(named._encode((), {}))[1] == "shop:7"
    assert named._lane(named._encode((8,), {}), "7/eu")[1] == "shop:7/eu"
    assert pair._lane(pair._encode((1, "x"), {}))[1] == "pair:1/x"
    assert limit_of("shop:7:8") == "shop"
    with pytest.raises(ArgumentsError, match="key of a job under the limit 'shop' is None"):
        named._lane(named._encode((None,), {}))


def test_room_is_what_is_left_of_the_limit() -> None:
    three = Numbers(running=3)
    assert room(three, LaneFacts(0, 0), NOW, 250).number == 3
    assert room(three, LaneFacts(2, 0), NOW, 250).number == 1
    assert room(three, LaneFacts(5, 0), NOW, 250).number == 0
    assert room(None, LaneFacts(5, 0), NOW, 250).number == 250


def test_rate_has_room_for_its_burst_and_then_one_an_interval() -> None:
    assert room(TWENTY, LaneFacts(0, 0), NOW, 250) == (1, None, 0)
    assert room(BURST, LaneFacts(0, 0), NOW, 250).number == 5
    assert room(BURST, LaneFacts(0, 3), NOW, 250).number == 2
    just_started = LaneFacts(0, 0, tat=NOW * 1000 + 50_000)
    assert room(TWENTY, just_started, NOW, 250)[:2] == (0, NOW + 50)
    assert room(TWENTY, just_started, NOW + 50, 250).number == 1
    assert room(BURST, just_started, NOW, 250).number == 4


def test_clock_that_is_set_back_stalls_for_the_burst_at_most() -> None:
    ahead = LaneFacts(0, 0, tat=(NOW + 3_600_000) * 1000)
    number, opens_at, tat = room(BURST, ahead, NOW, 250)
    assert (number, opens_at) == (0, NOW + 52)
    assert tat == NOW * 1000 + 5 * TWENTY._interval_us


def test_closed_lane_has_no_room_until_it_opens() -> None:
    closed = LaneFacts(0, 0, closed_until=NOW + 10)
    assert room(Numbers(running=3), closed, NOW, 250)[:2] == (0, NOW + 10)
    assert room(Numbers(running=3), closed, NOW + 10, 250).number == 3


def test_rate_takes_any_period() -> None:
    assert Limit("a", rate=Rate(100, per=timedelta(minutes=1)))._numbers._interval_us == 600_000
    assert Limit("a", rate=Rate(3, per=1))._numbers._interval_us == 333_334


def test_close_starts_may_be_late_and_are_a_little_further_apart_for_it() -> None:
    assert (TWENTY._slack_us, TWENTY._interval_us) == (20_000, 52_000)
    assert Numbers(amount=6_000, per_us=60_000_000)._slack_us == 50_000
    assert Numbers(running=3)._slack_us == 0


# -- rates as text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate", "written"),
    [
        ("100/60s", Rate(100, per=60), "100/m"),
        ("100/m", Rate(100, per=60), "100/m"),
        ("20/s:5", Rate(20, per=1, burst=5), "20/s:5"),
        ("20/1", Rate(20), "20/s"),
        ("1 / 1.5 h", Rate(1, per=5400), "1/90m"),
        ("3/250ms", Rate(3, per=0.25), "3/0.25s"),
        ("5/2d", Rate(5, per=172_800), "5/2d"),
    ],
)
def test_rate_is_read_from_text_and_written_so_that_it_is_read_again(text: str, rate: Rate, written: str) -> None:
    assert Rate.parse(text) == rate
    assert Limit("a", rate=rate)._numbers.rate == written
    assert Rate.parse(written) == rate


@pytest.mark.parametrize(
    "text", ["", "100", "100/", "/60s", "100/60x", "100/s:", "-1/s", "0/s", "5/s:6", "1/s/2", "1e3/s"]
)
def test_what_is_not_a_rate_is_refused(text: str) -> None:
    with pytest.raises(DeclarationError):
        Rate.parse(text)


def test_fair_limit_needs_a_key() -> None:
    with pytest.raises(DeclarationError, match="needs key="):
        Limit("shop", running=1, fair=True)
