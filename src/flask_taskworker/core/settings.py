"""Reading configuration: each field of a frozen dataclass names the reader of its key and the default.

A reader takes the key and its value, and returns the value checked. It raises ConfigError for a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields
from datetime import timedelta
from typing import Any

from ..errors import ConfigError
from .clock import MAX_PERIOD

Reader = Callable[[str, Any], Any]


def setting(read: Reader, default: Any = None, *, repr: bool = True) -> Any:
    """A field that is read from the key of its name. *default*: the value of a missing key, or what makes it."""
    return field(repr=repr, metadata={"read": read, "default": default})


def read_fields(cls: type, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of *cls* that are settings, out of the keys of *config* that begin with *prefix*."""
    found = {}
    for one in fields(cls):
        if one.metadata:
            key, default = f"{prefix}{one.name.upper()}", one.metadata["default"]
            value = config[key] if key in config else default() if callable(default) else default
            found[one.name] = one.metadata["read"](key, value)
    return found


def choice(*allowed: str) -> Reader:
    """One of these texts."""

    def read(key: str, value: Any) -> Any:
        if value not in allowed:
            raise ConfigError._of(key, value, " or ".join(map(repr, allowed)))
        return value

    return read


def seconds(minimum: float = 0.0) -> Reader:
    """A number of seconds, or a timedelta; up to 100 years."""

    def read(key: str, value: Any) -> float:
        number = value.total_seconds() if isinstance(value, timedelta) else value
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not minimum <= number <= MAX_PERIOD.total_seconds():
            raise ConfigError._of(key, value, f"a number of seconds, at least {minimum:g} and at most 100 years")
        return float(number)

    return read


def period(minimum: float = 0.0) -> Reader:
    """As :func:`seconds`, as a timedelta."""
    read = seconds(minimum)
    return lambda key, value: timedelta(seconds=read(key, value))


def whole_number(key: str, value: Any) -> int:
    """A whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError._of(key, value, "a whole number, at least 1")
    return value


def flag(key: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ConfigError._of(key, value, "True or False")
    return value
