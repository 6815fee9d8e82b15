from __future__ import annotations

import random
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest

from flask_taskworker.core.clock import MAX_PERIOD
from flask_taskworker.core.retry import Retry, policies_of
from flask_taskworker.errors import DeclarationError


def seconds(retry: Retry, *attempts: int, rand: float = 0.0) -> list[float]:
    return [retry.delay(attempt, rand=rand).total_seconds() for attempt in attempts]


def test_defaults_are_the_documented_ones() -> None:
    retry = Retry(5)
    assert retry == Retry(
        max_attempts=5, backoff="exponential", base=2, cap=timedelta(hours=1), jitter=0.2, on=(Exception,), never=()
    )
    assert (retry.base, retry.cap) == (timedelta(seconds=2), timedelta(hours=1))


def test_exponential_delay_doubles_up_to_the_cap() -> None:
    assert seconds(Retry(99), *range(1, 14)) == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]


def test_linear_delay_grows_evenly_up_to_the_cap() -> None:
    assert seconds(Retry(99, "linear", base=10, cap=45), 1, 2, 3, 4, 5, 6) == [10, 20, 30, 40, 45, 45]


def test_callable_delay_is_taken_and_capped() -> None:
    retry = Retry(99, lambda attempt: timedelta(minutes=attempt) if attempt % 2 else attempt * 0.5, cap=100)
    assert seconds(retry, 1, 2, 3) == [60, 1, 100]


def test_listed_delays_are_taken_in_turn_and_the_last_repeats() -> None:
    assert seconds(Retry(99, backoff=[1, timedelta(seconds=10), 600], cap=60), 1, 2, 3, 4, 99) == [1, 10, 60, 60, 60]


@pytest.mark.parametrize("backoff", [[], (), [-1], ["soon"], [None]])
def test_list_without_delays_is_refused(backoff: list[float]) -> None:
    with pytest.raises(DeclarationError, match="Retry's backoff"):
        Retry(3, backoff=backoff)


def test_backoff_that_outgrows_every_period_is_capped() -> None:
    for huge in (10**400, 1e300, timedelta.max):
        assert seconds(Retry(99, lambda attempt, huge=huge: huge), 1) == [3600]  # type: ignore[misc]


def test_base_and_cap_may_be_timedeltas() -> None:
    retry = Retry(9, base=timedelta(minutes=1), cap=timedelta(minutes=3))
    assert seconds(retry, 1, 2, 3) == [60, 120, 180]


def test_jitter_spreads_both_ways() -> None:
    retry = Retry(9, base=10)
    assert seconds(retry, 1, rand=1) == [12]
    assert seconds(retry, 1, rand=-1) == [8]
    assert seconds(retry, 1, rand=0.5) == [11]
    assert seconds(Retry(9, base=10, jitter=0), 1, rand=1) == [10]
    assert seconds(Retry(9, base=10, jitter=1), 1, rand=-1) == [0]


@pytest.mark.parametrize("backoff", ["exponential", "linear", lambda attempt: 2**attempt])
@pytest.mark.parametrize("cap", [0, 1, 3600, MAX_PERIOD])
def test_delay_is_never_negative_and_never_overflows(backoff: str, cap: float | timedelta) -> None:
    source = random.Random(1)
    retry = Retry(10**6, backoff, base=MAX_PERIOD, cap=cap, jitter=1)  # type: ignore[arg-type]
    for attempt in (1, 2, 63, 64, 65, 1025, 10_000):
        for rand in (-1.0, 1.0, source.uniform(-1, 1)):
            assert timedelta(0) <= retry.delay(attempt, rand=rand) <= MAX_PERIOD


def test_only_wanted_exceptions_are_retried() -> None:
    assert Retry(3).wants(ValueError())
    assert not Retry(3).wants(KeyboardInterrupt())
    network = Retry(3, on=(OSError, TimeoutError), never=(FileNotFoundError,))
    assert network.wants(ConnectionResetError())
    assert not network.wants(FileNotFoundError())
    assert not network.wants(ValueError())


def test_exception_types_may_be_given_singly_or_as_a_list() -> None:
    assert Retry(3, on=OSError, never=[FileNotFoundError]) == Retry(3, on=(OSError,), never=(FileNotFoundError,))


def test_policy_may_be_a_number_or_nothing() -> None:
    retry = Retry(4, base=1)
    assert policies_of(5) == (Retry(max_attempts=5),)
    assert policies_of(None) == ()
    assert policies_of(retry) == (retry,)
    assert policies_of([retry, Retry(2)]) == (retry, Retry(2))


@pytest.mark.parametrize("value", [True, False, 0, -1, 2.0, "5", (5,), Retry])
def test_other_policy_is_refused(value: object) -> None:
    with pytest.raises(DeclarationError, match="Give a"):
        policies_of(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("max_attempts", value) for value in (0, -1, 1.5, True, "5", None)],
        *[("backoff", value) for value in ("fibonacci", None, 5)],
        *[
            ("base", value)
            for value in (-1, float("nan"), float("inf"), "2", None, True, timedelta(seconds=-1), 10**30)
        ],
        *[("cap", value) for value in (-1, float("nan"), "1h", None, timedelta.max)],
        *[("jitter", value) for value in (-0.1, 1.1, float("nan"), "0.2", None, True, timedelta(0), 10**400)],
        *[("on", value) for value in (None, (5,), ("ValueError",), int, (int,), ValueError(), "ValueError")],
        *[("never", value) for value in (None, (object,), 5)],
    ],
)
def test_wrong_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(DeclarationError, match=rf"^Retry's {field} is .*\. Give ") as caught:
        Retry(**{"max_attempts": 3, field: value})  # type: ignore[arg-type]
    assert repr(value)[:20] in str(caught.value)


def failing(attempt: int) -> float:
    raise ZeroDivisionError("no luck")


@pytest.mark.parametrize("returned", [None, "5", -1, float("nan"), float("inf"), timedelta(-1), [1], True])
def test_nonsense_from_a_callable_is_an_error_that_names_the_attempt(returned: object) -> None:
    with pytest.raises(DeclarationError, match=r"backoff .* attempt 7 is .*Give a"):
        Retry(9, lambda attempt: returned).delay(7, rand=0)  # type: ignore[arg-type, return-value]


def test_callable_that_raises_is_an_error_with_its_text() -> None:
    with pytest.raises(DeclarationError, match=r"failing.*ZeroDivisionError: no luck for attempt 3") as caught:
        Retry(9, failing).delay(3, rand=0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_policies_are_frozen_and_comparable() -> None:
    assert hash(Retry(3, base=2.0)) == hash(Retry(3, base=timedelta(seconds=2)))
    with pytest.raises(AttributeError):
        Retry(3).max_attempts = 4  # type: ignore[misc]


@pytest.mark.parametrize("make", [lambda: Retry(3), lambda: Retry(3, "linear")])
def test_same_rand_gives_the_same_delay(make: Callable[[], Retry]) -> None:
    assert make().delay(2, rand=0.3) == make().delay(2, rand=0.3)


@pytest.mark.parametrize("attempts", [2**31, sys.maxsize, 10**20])
def test_number_of_attempts_that_no_database_holds_is_refused_at_the_declaration(attempts: int) -> None:
    assert Retry(2**31 - 1).max_attempts == 2**31 - 1
    with pytest.raises(DeclarationError, match="from 1, the first attempt alone, to 2147483647"):
        Retry(attempts)
