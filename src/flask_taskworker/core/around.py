"""What surrounds jobs: the application's code around each try and before each enqueueing, and values that jobs carry.

Pure: tasks and jobs are known by their names here. A registry without any of this has no :class:`Surroundings`.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from ..errors import ArgumentsError, DeclarationError, NotEncodable
from .codec import Codec
from .current_job import CurrentJob, RunningJob, current_job
from .rows import Kind, read_origin

T = TypeVar("T")

MAX_CARRIED = 10_000
"""Characters of JSON that a job carries."""
CARRIED = "carried"
"""The key in a job's origin."""


@dataclass(frozen=True, slots=True)
class Around:
    """A generator function of the application: what it does before and after its ``yield``, it does around a try."""

    function: Callable[..., Any]
    scope: Callable[[CurrentJob], Any]
    """Gives the context manager of one try."""
    is_async: bool
    blocking: bool | None
    """Whether a plain generator may wait, so that it must not run on the event loop; None: that was not said."""
    tasks: frozenset[str] | None
    queues: frozenset[str] | None

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        tasks: Collection[object] | None,
        queues: Collection[str] | None,
        blocking: bool | None,
    ) -> Around:
        """Check what was given. Raises DeclarationError."""
        is_async = inspect.isasyncgenfunction(function)
        if not (is_async or inspect.isgeneratorfunction(function)):
            raise DeclarationError(
                f"{function!r:.100} cannot surround a job. Give a function with one yield: what stands before it runs "
                "before the task, what stands after it runs after the task."
            )
        for what, given in (("tasks", tasks), ("queues", queues)):
            if given is not None and (isinstance(given, str) or not isinstance(given, Collection)):
                raise DeclarationError(f"{what} = {given!r:.100} is not allowed. Allowed: a list of {what}, or None.")
        names: Any = None if tasks is None else frozenset(getattr(task, "name", task) for task in tasks)
        if wrong := [name for name in names or () if not isinstance(name, str)]:
            raise DeclarationError(f"{wrong[0]!r:.100} is not a task. Give tasks, or their names.")
        scope = (asynccontextmanager if is_async else contextmanager)(function)
        return cls(
            function,
            scope,
            is_async,
            blocking,
            names,
            None if queues is None else frozenset(queues),
        )

    def __str__(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def is_around(self, task: str, kind: Kind, queue: str) -> bool:
        """Whether it surrounds the jobs of that task in that queue."""
        return (
            (self.tasks is None or task in self.tasks)
            and (self.queues is None or queue in self.queues)
            and (kind == "async" if self.is_async else kind == "sync" or self.blocking is not True)
        )

    def check(self, task: str, kind: Kind) -> None:
        """Raise DeclarationError where a plain generator would run on the event loop, which it does not say it may.

        Whatever the task's queue: a call may name another.
        """
        is_wanted = self.tasks is None or task in self.tasks
        if kind == "async" and not self.is_async and self.blocking is None and is_wanted:
            raise DeclarationError(
                f"{self} is a plain generator, and {task} is async: it would run on the event loop. Say "
                "blocking=False if it never waits, or blocking=True to have it around sync tasks only, and write "
                "another as an async generator (async def … yield) for the async ones."
            )


@dataclass(frozen=True, slots=True)
class Carry:
    """A value that jobs take along from where they were enqueued."""

    save: Callable[[], object]
    restore: Callable[[Any], object] | None


class Surroundings:
    """What one TaskWorker has been told to do around its jobs. What was declared first is outermost."""

    def __init__(self, codec: Codec, built_in: Collection[str]) -> None:
        """*built_in*: the tasks that are not the application's."""
        self._before: list[Callable[[Any], Any]] = []
        self._arounds: list[Around] = []
        self._carried: dict[str, Carry] = {}
        self._codec = codec
        self._built_in = built_in
        self._chosen: dict[tuple[str, str], tuple[Around, ...]] = {}

    @property
    def arounds(self) -> tuple[Around, ...]:
        """All of them."""
        return tuple(self._arounds)

    @property
    def sees_calls(self) -> bool:
        """Whether anything is called before a job is enqueued."""
        return bool(self._before)

    def add_before(self, function: object) -> None:
        """Have it called with each call that is to be enqueued: it returns the call to go on with.

        Raises DeclarationError.
        """
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise DeclarationError(
                f"{function!r:.100} cannot see calls before they are enqueued. Give a plain function."
            )
        self._before.append(function)

    def add_around(self, around: Around) -> None:
        """Have it around jobs from now on."""
        self._arounds.append(around)
        self._chosen.clear()

    def add_carried(self, name: object, carry: Carry) -> None:
        """Have jobs carry a value from now on. Raises DeclarationError."""
        if not isinstance(name, str) or not name.isidentifier():
            raise DeclarationError(f"name = {name!r:.80} is not allowed. Allowed: a name such as 'tenant'.")
        for function in (carry.save, carry.restore):
            is_plain = callable(function) and not inspect.iscoroutinefunction(function)
            if not is_plain and not (function is None and carry.restore is None):
                raise DeclarationError(f"{function!r:.100} cannot carry {name}. Give a plain function.")
        self._carried[name] = carry

    # -- before enqueueing ------------------------------------------------------------------------------------------

    def save(self, origin: dict[str, Any]) -> None:
        """Add what a job that is enqueued here carries. Raises NotEncodable, or what ``save`` raises."""
        values = {name: value for name, carry in self._carried.items() if (value := carry.save()) is not None}
        if not values:
            return
        text = self._codec.encode(values)
        if len(text) > MAX_CARRIED:
            sizes = ", ".join(f"{name} {len(self._codec.encode(value)):,}" for name, value in values.items())
            raise NotEncodable(
                f"What the job would carry takes {len(text):,} characters of JSON ({sizes}); {MAX_CARRIED:,} are "
                "allowed. Carry a key, and look up the rest in the job."
            )
        origin[CARRIED] = json.loads(text)

    def prepared(self, call: T) -> T:
        """The call as those that see it before it is enqueued want it. Raises ArgumentsError, or what they raise."""
        for prepare in self._before:
            changed = prepare(call)
            if type(changed) is not type(call) or (changed.task, changed.args) != (call.task, call.args):  # type: ignore[attr-defined]
                raise ArgumentsError(
                    f"{prepare.__qualname__} returned {changed!r:.100}. A function before enqueueing returns the call "
                    "that it was given, or call.using(…); to refuse it, raise an exception."
                )
            call = changed
        return call

    # -- around a try -----------------------------------------------------------------------------------------------

    def run(self, job: RunningJob, call: Callable[[], T]) -> T:
        """Call it inside all that is around this job. In the job's own thread."""
        self._restore(job)
        arounds = self._around(job)
        for around in reversed(arounds):
            call = functools.partial(_within, around, call)
        try:
            return call()
        except RuntimeError as error:
            _name(arounds, error)
            raise

    async def arun(self, job: RunningJob, call: Callable[[], Awaitable[T]]) -> T:
        """As :meth:`run`, for an async task."""
        self._restore(job)
        arounds = self._around(job)
        for around in reversed(arounds):
            call = functools.partial(_async_within if around.is_async else _within_on_loop, around, call)
        try:
            return await call()
        except RuntimeError as error:
            _name(arounds, error)
            raise

    def _around(self, job: RunningJob) -> tuple[Around, ...]:
        claim = job.claim
        found = self._chosen.get((claim.task, claim.queue))
        if found is None:
            arounds = () if claim.task in self._built_in else self._arounds
            found = tuple(one for one in arounds if one.is_around(claim.task, cast(Kind, claim.kind), claim.queue))
            self._chosen[claim.task, claim.queue] = found
        return found

    def _restore(self, job: RunningJob) -> None:
        origin = job.claim.origin
        if not self._carried or origin is None or job.claim.task in self._built_in:
            return
        values = read_origin(origin).get(CARRIED)
        if not values:
            return
        job.carried = self._codec.decode(json.dumps(values))
        for name, carry in self._carried.items():
            if carry.restore is not None and name in job.carried:
                carry.restore(job.carried[name])


def _within(around: Around, call: Callable[[], Any]) -> Any:
    with around.scope(current_job):
        return call()


async def _within_on_loop(around: Around, call: Callable[[], Awaitable[Any]]) -> Any:
    with around.scope(current_job):
        return await call()


async def _async_within(around: Around, call: Callable[[], Awaitable[Any]]) -> Any:
    async with around.scope(current_job):
        return await call()


def _name(arounds: Sequence[Around], error: RuntimeError) -> None:
    """contextlib says that a generator did not yield, or not stop, and not which."""
    if type(error) is RuntimeError and str(error).startswith("generator didn't"):
        error.add_note(f"Around the job are {', '.join(map(str, arounds))}, each of which must yield once.")
