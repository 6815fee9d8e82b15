"""Numbers and periods as people read them."""

from __future__ import annotations

import pytest

from flask_taskworker.core.words import spoken


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (7, "7 ms"),
        (400, "0.4 s"),
        (9_000, "9 s"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (3_599_000, "59 min"),
        (11_100_000, "3 h 5 min"),
        (183_600_000, "2 d 3 h"),
    ],
)
def test_periods_are_spoken_in_two_units(milliseconds: int, words: str) -> None:
    assert spoken(milliseconds) == words
