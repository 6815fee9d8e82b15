"""Fields that read themselves from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from flask_taskworker.core.settings import choice, flag, period, read_fields, seconds, setting, whole_number
from flask_taskworker.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    given: str
    colour: str = setting(choice("red", "blue"), "red")
    size: int = setting(whole_number, lambda: 3)


def test_each_setting_is_read_from_the_key_of_its_name_or_has_its_default() -> None:
    assert read_fields(Config, "APP_", {}) == {"colour": "red", "size": 3}
    assert read_fields(Config, "APP_", {"APP_COLOUR": "blue", "APP_SIZE": 4, "APP_GIVEN": 1}) == {
        "colour": "blue",
        "size": 4,
    }


@pytest.mark.parametrize(
    ("read", "value", "allowed"),
    [
        (choice("red", "blue"), None, "'red' or 'blue'"),
        (seconds(0.5), 0.4, "a number of seconds, at least 0.5 and at most 100 years"),
        (period(), timedelta(seconds=-1), "a number of seconds, at least 0"),
        (whole_number, True, "a whole number, at least 1"),
        (flag, 1, "True or False"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(read: Any, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError, match="KEY = .* is not allowed") as caught:
        read("KEY", value)
    assert allowed in str(caught.value)


def test_periods_may_be_numbers_or_timedeltas() -> None:
    assert (seconds()("KEY", timedelta(minutes=1)), period()("KEY", 2)) == (60.0, timedelta(seconds=2))
