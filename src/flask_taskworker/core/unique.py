"""Not twice: what lets one job stand for several calls. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

from ..errors import DeclarationError
from .clock import MILLISECOND, as_timedelta

Until = Literal["finished", "started"]
MAX_KEY = 200
_PARTS = (str, int, UUID, type(None))


class Key(NamedTuple):
    """How a new job may be stood for by another. Periods are in milliseconds; 0 where there is none."""

    name: str
    """The key, with the task's name."""
    until: Until
    within: int
    debounce: int
    at_most: int
    latest: int
    """Whether the arguments of the last call count."""
    named: int
    """Whether the caller gave the job's uid: then that comes first."""

    @property
    def is_plain(self) -> bool:
        """Whether a unique index says all: at most one unfinished job."""
        return self[1:6] == ("finished", 0, 0, 0, 0)


@dataclass(frozen=True, slots=True, init=False)
class Unique:
    """At most one job for a key, given to ``@task_worker.task(unique=…)``.

    ``key``: the name of a parameter of the task, or a function of its arguments. ``until``: how long a job stands for
    later calls: until it is "finished" (the default) or until it has "started". ``within`` (seconds or timedelta):
    also for that long after it was enqueued, started or not. ``debounce``: the job is due that long after the last
    call, with its arguments; ``at_most``: but no later than that after the first. ``latest``: the arguments of the
    last call count. Raises DeclarationError for values that contradict each other.
    """

    key: str | Callable[..., object] | None
    until: Until
    within: timedelta | None
    debounce: timedelta | None
    at_most: timedelta | None
    latest: bool

    def __init__(
        self,
        key: str | Callable[..., object] | None,
        *,
        until: Until | None = None,
        within: float | timedelta | None = None,
        debounce: float | timedelta | None = None,
        at_most: float | timedelta | None = None,
        latest: bool = False,
    ) -> None:
        if until not in (None, *get_args(Until)):
            raise DeclarationError(f"until = {until!r:.80} is not allowed. Allowed: 'finished' or 'started'.")
        periods = {
            name: None if value is None else as_timedelta(value, name)
            for name, value in (("within", within), ("debounce", debounce), ("at_most", at_most))
        }
        for name, period in periods.items():
            if period is not None and period <= timedelta(0):
                raise DeclarationError(f"{name} = {period!r} is not allowed. Allowed: more than 0 seconds, or None.")
        if at_most is not None and debounce is None:
            raise DeclarationError("at_most bounds debounce=…. Give that too, or leave at_most out.")
        if debounce is not None and (until == "finished" or within is not None):
            wrong = "within" if within is not None else "until='finished'"
            raise DeclarationError(f"A call that is debounced waits for a job that has not started: leave {wrong} out.")
        if latest and debounce is None and until != "started":
            raise DeclarationError("A job that has started keeps its arguments: latest=True needs until='started'.")
        values: dict[str, Any] = {
            "key": key,
            "until": until or ("finished" if debounce is None else "started"),
            **periods,
            "latest": bool(latest) or debounce is not None,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _for_key(self, name: str, *, named: bool) -> Key:
        """What it comes to for a job with this key."""
        within, debounce, at_most = map(_ms, (self.within, self.debounce, self.at_most))
        return Key(name, self.until, within, debounce, at_most, int(self.latest), int(named))


PLAIN = Unique(None)
"""What ``using(unique=…)`` alone means."""


def key_text(key: object) -> str:
    """A key as text: a string as it is, a number, a UUID, or a tuple of these as JSON. Raises DeclarationError."""
    if isinstance(key, tuple | list) and all(isinstance(part, _PARTS) for part in key):
        text = json.dumps([str(part) if isinstance(part, UUID) else part for part in key], separators=(",", ":"))
    else:
        text = str(key) if isinstance(key, str | int | UUID) else ""
    if not text or len(text) > MAX_KEY or not text.isprintable():
        raise DeclarationError(
            f"unique = {key!r:.80} is not allowed. Allowed: a string, a whole number, a UUID, or a tuple of these, of "
            f"1 to {MAX_KEY} printable characters in all."
        )
    return text


def _ms(period: timedelta | None) -> int:
    return 0 if period is None else -(-period // MILLISECOND)
