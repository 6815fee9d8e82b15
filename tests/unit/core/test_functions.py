"""What a decorated function is: which arguments alone make a call, where it stands, what it closes over."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from flask_taskworker.core.functions import is_other_closure, place_of, positional_range, signature_of, task_name

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


def adder(x: int) -> Callable[[int], int]:
    def add(y: int, z: int = x) -> int:
        return x + y + z

    return add


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: None, (0, 0)),
        (lambda a, b=1: None, (1, 2)),
        (lambda a, /, b, *c: None, (2, sys.maxsize)),
        (lambda a, *, b=1: None, (1, 1)),
        (lambda a, *, b: None, (1, 0)),
    ],
)
def test_range_says_how_many_positional_arguments_make_a_call(
    function: Callable[..., Any], expected: tuple[int, int]
) -> None:
    assert positional_range(inspect.signature(function)) == expected


def test_signature_does_not_need_its_annotations() -> None:
    def pay(amount: Missing, note: str = "") -> None: ...

    assert list(signature_of(pay).parameters) == ["amount", "note"]


def test_signature_is_the_wrappers_where_that_is_asked_for() -> None:
    @functools.wraps(adder)
    def wrapper(*args: Any) -> Any:
        return adder(*args)

    assert list(signature_of(wrapper).parameters) == ["x"]
    assert list(signature_of(wrapper, follow_wrapped=False).parameters) == ["args"]


def test_closures_differ_by_what_they_close_over() -> None:
    assert is_other_closure(adder(1), adder(1000))
    assert not is_other_closure(adder(1), adder(1))
    assert not is_other_closure(adder(1), adder)
    assert place_of(adder(1)) == place_of(adder(2))


def test_name_is_the_modules_and_the_qualified_one() -> None:
    assert task_name(adder) == f"{__name__}.adder"
