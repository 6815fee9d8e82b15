"""When a job that raised is tried again: the policy and its arithmetic.

Randomness is an argument, like the time: *rand* is a number from -1 to 1, ``random.uniform(-1, 1)`` where it is real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, cast

from ..errors import DeclarationError, StepError
from .clock import MAX_PERIOD, as_timedelta

Backoff = Literal["exponential", "linear"] | Callable[[int], float | timedelta]
ExceptionTypes = type[BaseException] | Iterable[type[BaseException]]

# 2.0 ** 1024 overflows, and the cap has won long before.
MAX_DOUBLINGS = 64
MAX_ATTEMPTS = 2**31 - 1
"""The largest number that both databases hold in the column."""
_MAX_LEAVES = 1000


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """How often and how soon a job is tried again after its task raised.

    ``max_attempts`` counts every try, the first included: 1 means never again. ``backoff`` is ``"exponential"``
    (``base``, 2 × ``base``, 4 × ``base``, …), ``"linear"`` (``base``, 2 × ``base``, 3 × ``base``, …), a list of delays
    whose last one repeats, or a callable that takes the number of the try that failed, from 1, and returns seconds or a
    timedelta; it must be safe to call from any thread. ``base`` (default 2 s) and ``cap`` (default 1 h) are seconds or
    timedeltas. Every delay is cut at ``cap`` and then spread by ± ``jitter`` (a share from 0 to 1, default 0.2).

    Only exceptions of the types in ``on`` (default: every Exception) are tried again, and none of those in ``never``.

    Raises DeclarationError for values that make no sense.
    """

    max_attempts: int
    backoff: Backoff | tuple[timedelta, ...]
    base: timedelta
    cap: timedelta
    jitter: float
    on: tuple[type[BaseException], ...]
    never: tuple[type[BaseException], ...]

    def __init__(
        self,
        max_attempts: int,
        backoff: Backoff | Sequence[float | timedelta] = "exponential",
        base: float | timedelta = 2.0,
        cap: float | timedelta = 3600.0,
        jitter: float = 0.2,
        on: ExceptionTypes = (Exception,),
        never: ExceptionTypes = (),
    ) -> None:
        if not _is_number(max_attempts, int) or not 1 <= max_attempts <= MAX_ATTEMPTS:
            raise DeclarationError(
                f"Retry's max_attempts is {max_attempts!r}. Give a whole number from 1, the first attempt alone, to "
                f"{MAX_ATTEMPTS}."
            )
        if isinstance(backoff, list | tuple) and backoff:
            backoff = tuple(as_timedelta(one, "a delay in Retry's backoff") for one in backoff)
        elif backoff not in ("exponential", "linear") and not callable(backoff):
            raise DeclarationError(
                f"Retry's backoff is {backoff!r}. Give 'exponential', 'linear', a list of delays, or a callable that "
                "takes the attempt's number."
            )
        if not _is_number(jitter) or not 0 <= jitter <= 1:
            raise DeclarationError(
                f"Retry's jitter is {jitter!r}. Give a share from 0 to 1; 0.2 spreads delays by ± 20 %."
            )
        _set = object.__setattr__
        _set(self, "max_attempts", max_attempts)
        _set(self, "backoff", backoff)
        _set(self, "base", as_timedelta(base, "Retry's base"))
        _set(self, "cap", as_timedelta(cap, "Retry's cap"))
        _set(self, "jitter", float(jitter))
        _set(self, "on", _exception_types(on, "on"))
        _set(self, "never", _exception_types(never, "never"))

    def wants(self, exception: BaseException) -> bool:
        """Whether *exception* is one to try again after; of an exception group, whether each one in it is.

        A policy may also name the class of the group itself.
        """
        groups = tuple(kind for kind in self.on if issubclass(kind, BaseExceptionGroup))
        leaves = leaves_of(exception)
        return not any(isinstance(one, (*self.never, StepError)) for one in (exception, *leaves)) and (
            isinstance(exception, groups) or all(isinstance(leaf, self.on) for leaf in leaves)
        )

    def delay(self, attempt: int, *, rand: float) -> timedelta:
        """How long to wait after the try number *attempt*, counted from 1, failed. *rand* is from -1 to 1.

        Raises DeclarationError if a callable ``backoff`` raises or returns anything but a period.
        """
        seconds = self.base.total_seconds()
        if self.backoff == "exponential":
            seconds *= 2.0 ** min(attempt - 1, MAX_DOUBLINGS)
        elif self.backoff == "linear":
            seconds *= attempt
        elif isinstance(self.backoff, tuple):
            seconds = self.backoff[min(attempt, len(self.backoff)) - 1].total_seconds()
        else:
            seconds = self._called(attempt).total_seconds()
        spread = max(0.0, min(seconds, self.cap.total_seconds()) * (1.0 + self.jitter * rand))
        return timedelta(seconds=min(spread, MAX_PERIOD.total_seconds()))

    def _called(self, attempt: int) -> timedelta:
        assert callable(self.backoff)
        try:
            value = self.backoff(attempt)
        except Exception as error:
            raise DeclarationError(
                f"Retry's backoff {self.backoff!r} raised {type(error).__name__}: {error} for attempt {attempt}. "
                "It must return seconds or a timedelta for every attempt."
            ) from error
        # 2**attempt is a sensible backoff and soon longer than any period: the cap comes before the check.
        if isinstance(value, timedelta):
            value = min(value, self.cap)
        elif _is_number(value) and value != math.inf:
            value = min(value, self.cap.total_seconds())
        return as_timedelta(value, f"What Retry's backoff {self.backoff!r} returned for attempt {attempt}")


def policies_of(value: Retry | int | Sequence[Retry] | None) -> tuple[Retry, ...]:
    """The policies that were meant: 5 is ``Retry(max_attempts=5)``, None stands for none."""
    if value is None or isinstance(value, Retry):
        return () if value is None else (value,)
    if isinstance(value, list | tuple) and all(isinstance(one, Retry) for one in value):
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DeclarationError(
            f"retry = {value!r} is not allowed. Give a Retry(…), a list of them, a number of attempts, or None."
        )
    return (Retry(max_attempts=value),)


def leaves_of(error: BaseException) -> list[BaseException]:
    """The exceptions that a group holds, those of groups inside it too; for any other exception only itself.

    Each is listed once, and at most 1,000 of them are.
    """
    waiting = [error]
    found: dict[int, BaseException] = {}
    while waiting and len(found) < _MAX_LEAVES:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            if issubclass(type(one), BaseExceptionGroup):
                waiting.extend(reversed(cast(BaseExceptionGroup[BaseException], one).exceptions))
    return [one for one in found.values() if not issubclass(type(one), BaseExceptionGroup)] or [error]


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds or (int, float)) and not isinstance(value, bool)


def _exception_types(value: object, what: str) -> tuple[type[BaseException], ...]:
    types = (value,) if isinstance(value, type) else value
    if isinstance(types, Iterable):
        types = tuple(types)
        if all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
            return types
    raise DeclarationError(f"Retry's {what} is {value!r}. Give exception classes: {what}=(ConnectionError,).")
