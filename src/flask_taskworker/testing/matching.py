"""Comparing what a test wants with the jobs that there are, and saying how they differ. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ..core.clock import require_aware
from ..core.functions import signature_of
from ..core.jobs import Job, JobClient
from ..core.rows import JobRecord, JobState
from ..errors import ArgumentsError

MOST_SHOWN = 20
"""Jobs in a message."""
_LONGEST = 120
_TOLERANCE = timedelta(seconds=1)


class EnqueuedJob(Job[Any]):
    """A job together with its arguments."""

    __slots__ = ("_arguments", "lane")

    def __init__(
        self, record: JobRecord, client: JobClient, arguments: Mapping[str, Any], lane: str | None = None
    ) -> None:
        super().__init__(record, client)
        self._arguments = dict(arguments)
        self.lane: str | None = lane
        """The lane of its limit, with the key, as "shop:7"; None without a limit."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments by name, defaults included, as they came out of the database."""
        return self._arguments

    def __str__(self) -> str:
        notes = [self.state.value, f"queue={self.queue!r}"]
        notes += [f"priority={self.priority}"] if self.priority else []
        notes += [f"lane={self.lane!r}"] if self.lane else []
        notes += [f"run_at={self.run_at.isoformat()}"] if self.run_at else []
        return f"job {self.id}  {self.task}({_listed(self.arguments)})  {', '.join(notes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A description of jobs: what it does not mention may be anything."""

    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)
    """Of queue, priority, run_at, lane and state."""

    def __str__(self) -> str:
        properties = "".join(f", {name}={_short(value)}" for name, value in self.properties.items())
        return f"{self.task}({_listed(self.arguments)}){properties}"

    def misses(self, job: EnqueuedJob) -> list[str]:
        """Where *job* differs, a line a field; empty for a job that fits."""
        found = [] if job.task == self.task else [f"task: wanted {self.task}, is {job.task}"]
        for name, value in self.arguments.items():
            if name not in job.arguments:
                found.append(f"{name}: wanted {_short(value)}, has none")
            elif not bool(value == job.arguments[name]):
                found.append(f"{name}: wanted {_short(value)}, is {_short(job.arguments[name])}")
        for name, value in self.properties.items():
            actual = getattr(job, name)
            if isinstance(value, datetime) and isinstance(actual, datetime):
                # To the second, because the millisecond of "in an hour" is not known beforehand.
                fits = abs(require_aware(value, name) - actual) < _TOLERANCE
            else:
                fits = bool(value == actual)
            if not fits:
                found.append(f"{name}: wanted {_short(value)}, is {_short(actual)}")
        return found


def no_match(wanted: Wanted, jobs: Sequence[EnqueuedJob], matches: Sequence[EnqueuedJob], times: int | None) -> str:
    """Why the jobs are not what was wanted."""
    head = f"No job is {wanted}." if not matches else f"{len(matches)} jobs are {wanted}."
    if times is not None:
        head = f"{head[:-1]}; wanted: {times}."
    parts = [head]
    others = [job for job in jobs if job not in matches]
    same_task = [job for job in others if job.task == wanted.task]
    if not matches and same_task:
        nearest = min(same_task, key=lambda job: len(wanted.misses(job)))
        parts.append("\n  ".join([f"Nearest miss: job {nearest.id}", *wanted.misses(nearest)]))
    elif not matches and others:
        parts.append(f"No job of {wanted.task} was enqueued at all.")
    return "\n".join([*parts, listing(jobs)])


def listing(jobs: Sequence[EnqueuedJob]) -> str:
    """All jobs, a line each."""
    if not jobs:
        return "Nothing was enqueued."
    more = [f"… and {len(jobs) - MOST_SHOWN} more"] if len(jobs) > MOST_SHOWN else []
    return "\n  ".join([f"Enqueued ({len(jobs)}):", *map(str, jobs[:MOST_SHOWN]), *more])


# -- arguments by name -------------------------------------------------------------------------------------------------


def by_name(function: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A stored call's arguments by name. Those that do not fit, of another version of the code, by number."""
    try:
        bound = signature_of(function).bind(*args, **kwargs)  # type: ignore[arg-type]
    except TypeError:
        return {f"[{number}]": value for number, value in enumerate(args)} | dict(kwargs)
    bound.apply_defaults()
    return _flat(bound)


def some_by_name(name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Some of a call's arguments by name. Raises ArgumentsError for one that the function does not take."""
    try:
        return _flat(signature_of(function).bind_partial(*args, **kwargs))
    except TypeError as error:
        raise ArgumentsError(f"{name}{signature_of(function)} has no such arguments: {error}.") from None


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    found = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())


def _short(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, JobState):
        return value.value
    words = repr(value)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
