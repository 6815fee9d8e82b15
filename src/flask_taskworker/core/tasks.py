"""Tasks and their registry: what a function becomes under ``@task_worker.task``.

Pure: a task checks and encodes the arguments of a call; storing it is the business of the :class:`TaskClient` that
the registry's owner finds for the current app.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Generic, Never, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast, get_args

from ..errors import ArgumentsError, DeclarationError, TaskExists, TaskNotFound
from .around import Around, Surroundings
from .batches import Batch, Event, When
from .clock import as_timedelta, require_aware
from .codec import Codec
from .functions import is_in_a_variable, is_other_closure, place_of, positional_range, signature_of, task_name
from .habits import TASK_METHODS, hint_for_call, hint_for_options, hint_for_trigger, no_attribute
from .jobs import Job
from .limits import Limit
from .retry import Retry, policies_of
from .rows import KEEPS, LIMITED, Claim, Kind, Outcome
from .triggers import At, Cron, Every, Trigger
from .unique import Unique, Until, key_text

P = ParamSpec("P")
R = TypeVar("R")
Returned = TypeVar("Returned")

_SEQUENCES = (tuple, list)
MAX_NAME = 200
MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What the decorator was given, checked."""

    queue: str = "default"
    priority: int = 0
    retries: tuple[Retry, ...] = ()
    """The first that wants an exception decides about it. Attempts are counted together."""
    timeout: timedelta | None = None
    keep: timedelta | None = None
    expires: timedelta | None = None
    schedules: tuple[Trigger, ...] = ()
    schedule_args: tuple[Any, ...] = ()
    schedule_kwargs: Mapping[str, Any] = field(default_factory=dict)
    unique: Unique | None = None
    limit: Limit | None = None
    on_success: Bound[Any] | None = None
    on_failure: Bound[Any] | None = None
    atomic: Callable[[], Any] | None = None
    """Gives the session whose commit records the job's success, too."""
    at_most_once: bool = False
    isolate: bool = False
    """Whether each try has a process of its own."""
    sensitive: tuple[str, ...] = ()
    """Names of arguments, and of keys in them, whose values the dashboard covers; "return" is the result."""

    def __post_init__(self) -> None:
        if self.at_most_once and any(policy.max_attempts > 1 for policy in self.retries):
            raise DeclarationError("at_most_once=True and retry contradict each other. Leave one of them out.")
        check_name("queue", self.queue)
        check_priority(self.priority)
        if self.limit is not None and not self.limit.name:
            raise DeclarationError("The limit of a task needs a name, as in Limit('carrier', running=5).")
        if self.timeout is not None and self.timeout <= timedelta(0):
            raise DeclarationError(f"timeout = {self.timeout!r} is not allowed. Allowed: more than 0 seconds, or None.")
        if self.expires is not None and self.expires <= timedelta(0):
            raise DeclarationError(f"expires = {self.expires!r} is not allowed. Allowed: more than 0 seconds, or None.")

    @property
    def callbacks(self) -> dict[Event, Bound[Any]]:
        """What is enqueued when a job ends."""
        calls: tuple[tuple[Event, Bound[Any] | None], ...] = (
            ("success", self.on_success),
            ("failure", self.on_failure),
        )
        return {event: call for event, call in calls if call is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueOptions:
    """What ``using`` was given, checked."""

    delay: timedelta | None = None
    run_at: datetime | None = None
    expires: timedelta | None = None
    priority: int | None = None
    queue: str | None = None
    unique: str | None = None
    until: Until | None = None
    within: timedelta | None = None
    debounce: timedelta | None = None
    at_most: timedelta | None = None
    latest: bool = False
    limit_key: object = None
    uid: str | None = None
    batch: Batch | None = None
    after: tuple[Job[Any] | Batch, ...] = ()
    when: When | None = None
    session: Any = None

    def __post_init__(self) -> None:
        if self.delay is not None and self.run_at is not None:
            raise ArgumentsError("Give either delay or run_at, not both.")
        if self.run_at is not None:
            require_aware(self.run_at, "run_at")
        if self.expires is not None and self.expires <= timedelta(0):
            raise ArgumentsError(f"expires = {self.expires!r} is not allowed. Allowed: more than 0 seconds.")
        if self.priority is not None:
            check_priority(self.priority)
        for what, name in (("queue", self.queue), ("unique", self.unique), ("uid", self.uid)):
            if name is not None:
                check_name(what, name)
        if (merging := self._merging) and merging.debounce and (self.delay or self.run_at):
            raise ArgumentsError("debounce says when the job is due. Leave delay and run_at out.")
        if self.when is not None and (self.when not in get_args(When) or not self.after):
            raise ArgumentsError(
                f"when = {self.when!r:.80} is not allowed. Allowed: 'succeeded', 'ended' or 'failed', with after=…."
            )
        if self.after and merging:
            raise ArgumentsError("A job that waits for others stands for no other call. Leave until, within, debounce, "
                                 "at_most and latest out.")  # fmt: skip
        if self.batch is not None and self.batch in self.after:
            raise ArgumentsError("A job of a batch cannot wait for that batch: neither would ever end.")
        if self.uid is not None and self.uid.startswith(("batch:", "ended:")):
            raise ArgumentsError("A uid must not begin with 'batch:' or 'ended:', as those of callbacks do.")

    @property
    def _merging(self) -> Unique | None:
        """When another job stands for this one, where the call says so."""
        given = (self.until, self.within, self.debounce, self.at_most)
        if not self.latest and given == (None, None, None, None):
            return None
        return Unique(
            None,
            until=self.until,
            within=self.within,
            debounce=self.debounce,
            at_most=self.at_most,
            latest=self.latest,
        )


class Using(TypedDict, total=False):
    """What ``using`` takes."""

    delay: float | timedelta | None
    run_at: datetime | None
    expires: float | timedelta | None
    priority: int | None
    queue: str | None
    unique: object
    until: Until | None
    within: float | timedelta | None
    debounce: float | timedelta | None
    at_most: float | timedelta | None
    latest: bool
    limit_key: object
    uid: str | None
    batch: Batch | None
    after: Job[Any] | Batch | Sequence[Job[Any] | Batch] | None
    when: When | None
    session: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredSchedule:
    """A schedule as code declares it: what a worker puts into the store."""

    name: str
    task: str
    trigger: Trigger
    args: str

    def _in_zone(self, default: str) -> DeclaredSchedule:
        """The same, on the clock of the zone *default* where its trigger names none."""
        return replace(self, trigger=self.trigger._in_zone(default))


class TaskClient(Protocol):
    """What a task needs of the current app. Safe from any thread."""

    def enqueue(self, task: Task[..., Any, Any], calls: Sequence[str], options: EnqueueOptions) -> list[Job[Any]]:
        """Store one job for each encoded call, in one transaction."""

    async def aenqueue(
        self, task: Task[..., Any, Any], calls: Sequence[str], options: EnqueueOptions
    ) -> list[Job[Any]]:
        """As :meth:`enqueue`, in a thread."""

    def put_schedule(self, schedule: DeclaredSchedule) -> None:
        """Store a schedule made at run time, or change the one of that name."""


class Call(Generic[P, R]):
    """A task together with options for enqueueing. Frozen; safe from any thread."""

    __slots__ = ("_options", "_task")

    def __init__(self, task: Task[P, R, Any], options: EnqueueOptions) -> None:
        self._task = task
        self._options = options

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Store a job that calls the function with these arguments; durable when it returns.

        Raises ArgumentsError when they do not fit the signature, NotEncodable when JSON cannot hold them, AppError
        when it is not clear which app is meant, NotAccepted or OutcomeUnknown when the database did not take it.
        """
        task = self._task
        return task._client().enqueue(task, (task._encode(args, kwargs),), self._options)[0]

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """As :meth:`enqueue`, without blocking the event loop."""
        task = self._task
        return (await task._client().aenqueue(task, (task._encode(args, kwargs),), self._options))[0]

    def enqueue_many(self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[Job[R]]:
        """Store many jobs in one transaction: all or none. Each call is a tuple of arguments or a dict of keywords."""
        encoded = self._encode_many(calls)
        return self._task._client().enqueue(self._task, encoded, self._options) if encoded else []

    async def aenqueue_many(self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[Job[R]]:
        """As :meth:`enqueue_many`, without blocking the event loop."""
        encoded = self._encode_many(calls)
        return await self._task._client().aenqueue(self._task, encoded, self._options) if encoded else []

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Bound[R]:
        """This call, to be stored later: with calls of other tasks by ``task_worker.enqueue_all``.

        The arguments are checked and encoded now: raises ArgumentsError or NotEncodable as :meth:`enqueue` does.
        """
        return Bound(self._task, self._task._encode(args, kwargs), self._options)

    def _encode_many(self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[str]:
        encoded = self._task._encode_calls(calls)
        if (self._options.uid or self._options.unique) and len(encoded) > 1:
            raise ArgumentsError("uid and unique belong to one job. Enqueue the jobs one by one to give each its own.")
        return encoded


@dataclass(frozen=True, slots=True)
class Bound(Generic[R]):
    """A call of a task whose arguments are checked and encoded, and that is not stored yet. Safe from any thread."""

    task: Task[..., R, Any]
    args: str
    """The encoded arguments."""
    options: EnqueueOptions

    def using(self, **options: Unpack[Using]) -> Bound[R]:
        """This call with these options, as :meth:`Task.using` takes them, besides those that it has."""
        given: dict[str, Any] = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        given.update(options)
        return replace(self, options=self.task.using(**given)._options)


class Task(Call[P, R], Generic[P, R, Returned]):
    """A registered function. Calling it is a plain call; :meth:`enqueue` makes a job of the call.

    Safe from any thread.
    """

    name: str
    """The name by which stored jobs find it."""
    function: Callable[P, Returned]
    """What was decorated."""
    options: TaskOptions
    """What the decorator was given."""

    def __init__(
        self,
        function: Callable[P, Returned],
        *,
        name: str,
        options: TaskOptions,
        codec: Codec,
        find_client: Callable[[], TaskClient],
    ) -> None:
        super().__init__(self, EnqueueOptions())
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name
        self.options = options
        self.kind: Kind = "async" if inspect.iscoroutinefunction(function) else "sync"
        self._place: str = place_of(function)
        self._signature: inspect.Signature = signature_of(function)
        """As the function is written; a decorator around it may take other arguments."""
        self._client = find_client
        self._codec = codec
        self._called = signature_of(function, follow_wrapped=False)
        self._positional = positional_range(self._called)
        self._replaced = False
        """Another closure of the same function has the name now: a job would run that one."""

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            task = self.__dict__.get("name", "")
            raise no_attribute(f"The task {task}", name, TASK_METHODS, task=task.rpartition(".")[2])

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Returned:
        """A plain call of the function, here and now."""
        return self.function(*args, **kwargs)

    def using(
        self,
        *,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        expires: float | timedelta | None = None,
        priority: int | None = None,
        queue: str | None = None,
        unique: object = None,
        until: Until | None = None,
        within: float | timedelta | None = None,
        debounce: float | timedelta | None = None,
        at_most: float | timedelta | None = None,
        latest: bool = False,
        limit_key: object = None,
        uid: str | None = None,
        batch: Batch | None = None,
        after: Job[Any] | Batch | Sequence[Job[Any] | Batch] | None = None,
        when: When | None = None,
        session: Any = None,
        **unknown: Never,
    ) -> Call[P, R]:
        """This task with options for its next calls.

        ``delay`` (seconds or timedelta) or ``run_at`` (aware datetime) say when; ``expires`` (seconds or timedelta),
        how long after that a worker may begin with it: later it is cancelled. ``priority`` and ``queue`` override the
        task's. ``unique``, a string, a number, a UUID or a tuple of these: at most one unfinished job of this task
        with that key; enqueueing again returns it, and its ``merged`` is true. ``until="started"``, ``within``,
        ``debounce``, ``at_most`` and ``latest`` say when, as :class:`Unique` does.
        ``limit_key``: the key under the limit, instead of the one that the arguments give. ``uid``: the job's own
        name; enqueueing again with it returns the same job.
        ``batch``: the batch that it belongs to. ``after``: a job, a batch, or a list of them, that it waits for until
        they have "succeeded", or as ``when`` says, "ended" or "failed". Where one ends otherwise, it is cancelled.
        ``session``: an SQLAlchemy session or connection (with :meth:`aenqueue` also an asynchronous one): the job
        exists once its transaction has committed, and not at all if it is rolled back. Until then it is ``pending``.
        """
        if unknown:
            raise self._unknown_options(unknown)
        options = EnqueueOptions(
            delay=None if delay is None else as_timedelta(delay, "delay"),
            run_at=run_at,
            expires=None if expires is None else as_timedelta(expires, "expires"),
            priority=priority,
            queue=queue,
            unique=None if unique is None else key_text(unique),
            until=until,
            within=None if within is None else as_timedelta(within, "within"),
            debounce=None if debounce is None else as_timedelta(debounce, "debounce"),
            at_most=None if at_most is None else as_timedelta(at_most, "at_most"),
            latest=latest,
            limit_key=limit_key,
            uid=uid,
            when=when,
            **place_in_flow(batch, after),
            session=session,
        )
        if limit_key is not None and (self.options.limit is None or self.options.limit.key is None):
            raise ArgumentsError(f"{self.name} has no limit with a key, so limit_key means nothing. Leave it out.")
        if options._merging is not None and options.unique is None and self.options.unique is None:
            raise ArgumentsError("until, within, debounce, at_most and latest are about a key. Give unique=…, too.")
        return Call(self, options)

    def _unknown_options(self, unknown: Mapping[str, Any]) -> ArgumentsError:
        hint = hint_for_call(self.name.rpartition(".")[2], (), unknown, {})
        hint = hint or f" It takes {', '.join(Using.__annotations__)}."
        return ArgumentsError(f"using() takes no {', '.join(unknown)}.{hint}")

    def schedule(
        self, trigger: Trigger, *, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Run the task at the times of *trigger* from now on, whatever restarts.

        A schedule of the same *name* that was made at run time is replaced. ``task_worker.unschedule(name)`` ends it.
        Raises DeclarationError when the name belongs to a schedule that is declared in code, ArgumentsError when the
        arguments do not fit.
        """
        check_trigger(trigger)
        check_name("name", name)
        encoded = self._encode(_as_args("args", args), _as_kwargs("kwargs", kwargs))
        self._client().put_schedule(DeclaredSchedule(name=name, task=self.name, trigger=trigger, args=encoded))

    @property
    def max_attempts(self) -> int:
        """How many tries the retry policies allow; 1 without one."""
        return max((policy.max_attempts for policy in self.options.retries), default=1)

    def _encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Check the arguments against the signature and encode them."""
        if self._replaced:
            raise TaskExists(_two_closures(self))
        lowest, highest = self._positional
        if kwargs or not lowest <= len(args) <= highest:
            try:
                self._called.bind(*args, **kwargs)
            except TypeError as error:
                hint = hint_for_call(self.name.rpartition(".")[2], args, kwargs, self._called.parameters)
                raise ArgumentsError(f"Invalid arguments for {self.name}{self._called}: {error}.{hint}") from None
        return self._codec.encode_call(args, dict(kwargs))

    def _changed(self, encoded: str, changes: Mapping[str, Any]) -> str:
        """An encoded call with other values for some parameters; those that are not named stay."""
        args, kwargs = self._codec.decode_call(encoded)
        parameters = self._called.parameters
        if {one.kind for one in parameters.values()} & {Parameter.VAR_POSITIONAL, Parameter.POSITIONAL_ONLY}:
            # These have no names.
            return self._encode(args, {**kwargs, **changes})
        return self._encode((), {**dict(zip(parameters, args, strict=False)), **kwargs, **changes})

    def _check_key(self, what: str, key: str | Callable[..., object] | None) -> None:
        """Raise DeclarationError where a key is the name of no parameter."""
        if isinstance(key, str) and key not in self._called.parameters:
            known = ", ".join(self._called.parameters) or "none"
            raise DeclarationError(
                f"{what} of {self.name} takes its key from the parameter {key!r}, which the task does not have "
                f"(it has: {known}). Name one of them, or give a function of the arguments."
            )

    def _key_value(self, key: str | Callable[..., object], encoded: str) -> object:
        """What a key comes to for an encoded call: the argument of that name, or what the function makes of them."""
        args, kwargs = self._codec.decode_call(encoded)
        if callable(key):
            return key(*args, **kwargs)
        return self._named(args, kwargs)[key]

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by the names of the parameters, defaults included."""
        bound = self._called.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _lane(self, encoded: str, key: object = None) -> tuple[int, str | None]:
        """The marks of an encoded call, and the lane in which it waits: that of *key*, or of its arguments."""
        limit = self.options.limit
        if limit is None:
            return 0, None
        marks = LIMITED | KEEPS if limit.hold else LIMITED
        if limit.key is None:
            return marks, limit.name
        return marks, limit._lane(self._key_value(limit.key, encoded) if key is None else key)

    def _encode_calls(self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[str]:
        """Encode each call: a tuple or list of arguments, or a dict of keyword arguments."""
        if not isinstance(calls, Iterable):
            raise ArgumentsError(f"enqueue_many was given {calls!r:.100}. Give a list of calls, such as [(1,), (2,)].")
        encoded = []
        for number, call in enumerate(calls):
            if isinstance(call, _SEQUENCES):
                encoded.append(self._encode(tuple(call), {}))
            elif isinstance(call, Mapping) and all(isinstance(key, str) for key in call):
                encoded.append(self._encode((), call))
            else:
                raise ArgumentsError(
                    f"Call {number} of enqueue_many is {call!r:.100}. Each must be a tuple of arguments, such as "
                    f"({call!r:.40},), or a dict of keyword arguments."
                )
        return encoded

    def _encode_others(self, args: Sequence[Any] | Mapping[str, Any]) -> str:
        """Encode the arguments that a stored job is to have instead of its own."""
        for keyed in (self.options.limit, self.options.unique):
            if keyed is not None and keyed.key is not None:
                raise ArgumentsError(
                    f"The {type(keyed).__name__} of {self.name} takes its key from the arguments, so a stored job "
                    "keeps them. Cancel the job, and enqueue another."
                )
        return self._encode_calls([args])[0]

    def _declared_schedules(self) -> list[DeclaredSchedule]:
        """The schedules that the decorator was given; several are numbered from the second on."""
        options = self.options
        args = self._encode(options.schedule_args, options.schedule_kwargs) if options.schedules else ""
        return [
            DeclaredSchedule(
                name=f"{self.name}#{i}" if i > 1 else self.name, task=self.name, trigger=trigger, args=args
            )
            for i, trigger in enumerate(options.schedules, 1)
        ]


def callback_of(event: Event, call: object) -> Bound[Any]:
    """A call that is to be stored when something ends, checked. Raises ArgumentsError."""
    if isinstance(call, Task):
        call = call.bind()
    if not isinstance(call, Bound):
        raise ArgumentsError(f"on_{event} = {call!r:.100} is not allowed. Give a call: on_{event}=task.bind(…).")
    plain = EnqueueOptions()
    for what in ("run_at", "unique", "uid", "batch", "after", "session"):
        if getattr(call.options, what) != getattr(plain, what):
            raise ArgumentsError(f"A callback takes no {what}. It takes delay, queue, priority and limit_key.")
    return call


def place_in_flow(batch: Any, after: Any) -> dict[str, Any]:
    """Those options of a call, checked. Raises ArgumentsError."""
    parents = () if after is None else after if isinstance(after, _SEQUENCES) else (after,)
    for what, value, kinds in (("batch", batch, Batch), *(("after", one, Job | Batch) for one in parents)):
        if not isinstance(value, kinds) and (what, value) != ("batch", None):
            raise ArgumentsError(
                f"{what} = {value!r:.100} is not allowed. Give what enqueue() or batch() has returned."
            )
    return {"batch": batch, "after": tuple(parents)}


class Tracing(Protocol):
    """What follows jobs for a tracing system. Each returns a with block whose value is to be called with the end."""

    def sending(self, task: str, queue: str, number: int) -> AbstractContextManager[Callable[[Sequence[int]], None]]:
        """Around the enqueueing of *number* jobs; to be told their ids, 0 where one has none yet."""

    def processing(self, claim: Claim) -> AbstractContextManager[Callable[[Outcome], None]]:
        """Around one try of a job; to be told how it ended."""


class TaskRegistry:
    """The tasks of one TaskWorker by name. Names in stored rows are looked up here and nowhere else."""

    def __init__(self, find_client: Callable[[], TaskClient], codec: Codec) -> None:
        self.codec = codec
        self.version: int = 0
        """Grows with every registration, so that a running worker notices new schedules."""
        self.tracing: Tracing | None = None
        self.scope: Callable[[Claim], AbstractContextManager[object]] | None = None
        """Entered around each try and the log line about its end, in the context that the try runs in."""
        self.surroundings: Surroundings | None = None
        """What the application does around its jobs, if anything."""
        self.job_page = ""
        """The endpoint of a job's page on the dashboard, once there is one."""
        self._find_client = find_client
        self._tasks: dict[str, Task[..., Any, Any]] = {}
        self._built_in: dict[str, Task[..., Any, Any]] = {}
        self.limits: dict[str, Limit] = {}
        """The limits of the tasks, by name."""

    def register_built_in(self, function: Callable[..., Any], options: TaskOptions, name: str) -> None:
        """Make a task of a function of this package. It runs as any other, and is not listed among the user's."""
        self._built_in[name] = Task(
            function, name=name, options=options, codec=self.codec, find_client=self._find_client
        )

    def register(
        self, function: Callable[P, Returned], options: TaskOptions, name: str | None
    ) -> Task[P, Any, Returned]:
        """Make a task of *function*. The same place declared again replaces the task."""
        _check_function(function)
        if options.atomic is not None and inspect.iscoroutinefunction(function):
            raise DeclarationError(f"{function.__qualname__} is async, and atomic=… takes sync tasks only. Use def.")
        if options.isolate and inspect.iscoroutinefunction(function):
            raise DeclarationError(
                f"{function.__qualname__} is async, and isolate=True takes sync tasks only. A coroutine can be "
                "cancelled without it; for work that blocks use def."
            )
        if options.isolate and not hasattr(os, "fork"):
            raise DeclarationError(
                f"{function.__qualname__}: isolate=True needs os.fork, which this system does not have. Leave it out "
                "here, or run on Linux or macOS."
            )
        if name is not None:
            check_name("name", name)
        elif function.__name__ == "<lambda>":
            raise DeclarationError("A lambda has no name that another process could find. Use def, or give it name=….")
        task: Task[P, Any, Returned] = Task(
            function, name=name or task_name(function), options=options, codec=self.codec, find_client=self._find_client
        )
        known = self.get(task.name)
        if known is not None and known._place != task._place:
            raise TaskExists(
                f"The task name {task.name!r} belongs to the function at {known._place}; the one at {task._place} "
                "needs another. Give one of them name=…, or use functools.wraps in the decorator around them."
            )
        if known is not None and is_other_closure(known.function, function):
            if is_in_a_variable(known):
                raise TaskExists(_two_closures(task))
            # An app factory that is called again. Whatever still enqueues the earlier task is refused then.
            known._replaced = True
        self.codec.learn(function)
        self._check_with_others(task)
        for around in self.surroundings.arounds if self.surroundings is not None else ():
            around.check(task.name, task.kind)
        task._declared_schedules()
        self._tasks[task.name] = task
        self.version += 1
        return task

    def surround(self) -> Surroundings:
        """The surroundings, made where there are none yet."""
        if self.surroundings is None:
            self.surroundings = Surroundings(self.codec, self._built_in)
        return self.surroundings

    def add_around(self, around: Around) -> None:
        """Have it around the jobs of the user's tasks. Raises DeclarationError."""
        for task in self:
            around.check(task.name, task.kind)
        self.surround().add_around(around)

    def _check_with_others(self, task: Task[..., Any, Any]) -> None:
        options = task.options
        for call in options.callbacks.values():
            if call.task._codec is not self.codec:
                raise DeclarationError(f"The task {call.task.name} belongs to another TaskWorker.")
        if options.unique is not None:
            task._check_key("unique", options.unique.key)
        if options.limit is not None:
            self._add_limit(task, options.limit)

    def _add_limit(self, task: Task[..., Any, Any], limit: Limit) -> None:
        task._check_key(f"The limit {limit.name!r}", limit.key)
        for other in self:
            known = other.options.limit
            if other.name != task.name and known is not None and known.name == limit.name and not known._is_same(limit):
                raise DeclarationError(
                    f"The limit {limit.name!r} of {task.name} differs from that of {other.name}. Make one Limit and "
                    "give it to both, or give them different names."
                )
        self.limits[limit.name] = limit

    def get(self, name: str) -> Task[..., Any, Any] | None:
        """The task of that name, or None."""
        return self._tasks.get(name) or self._built_in.get(name)

    def find(self, name: str) -> Task[..., Any, Any]:
        """The task of that name. Raises TaskNotFound with the names that exist."""
        task = self.get(name)
        if task is None:
            known = ", ".join(sorted(self._tasks)) or "none"
            raise TaskNotFound(f"No task is registered as {name!r}. Registered: {known}.")
        return task

    def parameters_of(self, name: str) -> tuple[str, ...]:
        """The names of a task's parameters, in order; none where the task is not known."""
        task = self.get(name)
        return () if task is None else tuple(task._signature.parameters)

    def __iter__(self) -> Iterator[Task[..., Any, Any]]:
        return iter(tuple(self._tasks.values()))

    def __len__(self) -> int:
        return len(self._tasks)


class HasRegistry(Protocol):
    """What tasks are declared on: a TaskWorker."""

    _registry: TaskRegistry


def registry_of(task_worker: HasRegistry) -> TaskRegistry:
    """The registry of a TaskWorker. Raises ArgumentsError for anything else."""
    registry = getattr(task_worker, "_registry", None)
    if not isinstance(registry, TaskRegistry):
        raise ArgumentsError(
            f"{task_worker!r:.100} is not a TaskWorker. Give the BackgroundTaskWorker or BlockingTaskWorker itself."
        )
    return registry


def task_options(
    *,
    queue: str = "default",
    priority: int = 0,
    retry: Retry | int | Sequence[Retry] | None = None,
    timeout: float | timedelta | None = None,
    keep: float | timedelta | None = None,
    expires: float | timedelta | None = None,
    schedule: Trigger | Sequence[Trigger] | None = None,
    schedule_args: Sequence[Any] = (),
    schedule_kwargs: Mapping[str, Any] | None = None,
    unique: Unique | None = None,
    limit: Limit | None = None,
    on_success: Task[..., Any, Any] | Bound[Any] | None = None,
    on_failure: Task[..., Any, Any] | Bound[Any] | None = None,
    atomic: Any = None,
    at_most_once: bool = False,
    isolate: bool = False,
    sensitive: Sequence[str] = (),
    **unknown: Any,
) -> TaskOptions:
    """Check what the decorator was given. Raises DeclarationError or ArgumentsError."""
    if unknown:
        known = ", ".join(name for name in inspect.signature(task_options).parameters if name != "unknown")
        hint = hint_for_options(unknown) or f" It takes name, {known}."
        raise ArgumentsError(f"A task takes no {', '.join(unknown)}.{hint}")
    if isinstance(schedule, list | tuple):
        triggers = tuple(schedule)
    else:
        triggers = () if schedule is None else (cast(Trigger, schedule),)
    for trigger in triggers:
        check_trigger(trigger)
    if not isinstance(sensitive, list | tuple | set | frozenset):
        raise DeclarationError(
            f"sensitive = {sensitive!r:.100} is not allowed. Allowed: a tuple of names, as ('ssn',)."
        )
    for name in sensitive:
        check_name("sensitive", name)
    return TaskOptions(
        queue=queue,
        priority=priority,
        retries=policies_of(retry),
        timeout=None if timeout is None else as_timedelta(timeout, "timeout"),
        keep=None if keep is None else as_timedelta(keep, "keep"),
        expires=None if expires is None else as_timedelta(expires, "expires"),
        schedules=triggers,
        schedule_args=_as_args("schedule_args", schedule_args),
        schedule_kwargs=_as_kwargs("schedule_kwargs", schedule_kwargs),
        unique=_checked_unique(unique),
        limit=_checked_limit(limit),
        on_success=None if on_success is None else callback_of("success", on_success),
        on_failure=None if on_failure is None else callback_of("failure", on_failure),
        atomic=_checked_session(atomic),
        at_most_once=bool(at_most_once),
        isolate=bool(isolate),
        sensitive=tuple(sensitive),
    )


def _checked_limit(limit: object) -> Limit | None:
    if limit is not None and not isinstance(limit, Limit):
        raise DeclarationError(f"limit = {limit!r:.100} is not allowed. Allowed: a Limit(…), or None.")
    return limit


def _checked_session(atomic: Any) -> Callable[[], Any] | None:
    # Flask-SQLAlchemy-Lite's db.session is looked up again in each app context.
    looks_up = isinstance(getattr(type(atomic), "session", None), property)
    session = (lambda: atomic.session) if looks_up else getattr(atomic, "session", atomic)
    if session is not None and not callable(session):
        raise DeclarationError(
            f"atomic = {atomic!r:.100} is not allowed. Allowed: Flask-SQLAlchemy's db, or a callable that gives a "
            "session."
        )
    return session


def _checked_unique(unique: object) -> Unique | None:
    if unique is not None and (not isinstance(unique, Unique) or unique.key is None):
        raise DeclarationError(f"unique = {unique!r:.100} is not allowed. Allowed: Unique('parameter'), or None.")
    return unique


def _as_args(what: str, args: object) -> tuple[Any, ...]:
    if isinstance(args, str | bytes) or not isinstance(args, Iterable):
        raise ArgumentsError(
            f"{what} = {args!r:.100} is not allowed. Allowed: a tuple of arguments, as ({args!r:.40},)."
        )
    return tuple(args)


def _as_kwargs(what: str, kwargs: object) -> dict[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ArgumentsError(f"{what} = {kwargs!r:.100} is not allowed. Allowed: a dict of keyword arguments.")
    return dict(kwargs or {})


def check_trigger(trigger: object) -> None:
    """Raise DeclarationError unless *trigger* is one of ours."""
    if not isinstance(trigger, Cron | Every | At):
        raise DeclarationError(f"schedule = {trigger!r} is not a trigger. Give {hint_for_trigger(trigger)}.")


def check_name(what: str, name: object) -> None:
    """Raise DeclarationError unless *name* can name a task, queue, schedule, key or uid."""
    if not isinstance(name, str) or not name or len(name) > MAX_NAME or not name.isprintable():
        raise DeclarationError(
            f"{what} = {name!r:.80} is not allowed. Allowed: a string of 1 to {MAX_NAME} printable characters."
        )


def check_priority(priority: object) -> None:
    """Raise DeclarationError unless *priority* is a whole number that the database holds."""
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MAX_PRIORITY:
        raise DeclarationError(f"priority = {priority!r} is not allowed. Allowed: a whole number; higher goes first.")


def _check_function(function: object) -> None:
    if isinstance(function, Task):
        raise DeclarationError(f"{function.name} is a task already. Decorate the plain function.")
    if isinstance(function, str):
        raise DeclarationError(f"{function!r:.100} is not a function. Write @task_worker.task(name={function!r:.100}).")
    if not inspect.isfunction(function):
        raise DeclarationError(f"{function!r:.100} is not a function. Decorate a function made with def or async def.")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(
            f"{function.__qualname__} is a generator, which would not run. Return a value instead of yielding."
        )
    owner = function.__qualname__.rpartition(".")[0]
    if (
        owner
        and not owner.endswith("<locals>")
        and next(iter(signature_of(function).parameters), "") in ("self", "cls")
    ):
        raise DeclarationError(
            f"{function.__qualname__} is a method, and a job has no object to call it on. Make it a function of the "
            "module that takes plain values, or a @staticmethod above @task_worker.task."
        )


def _two_closures(task: Task[..., Any, Any]) -> str:
    return (
        f"Two tasks would have the name {task.name!r}: closures of one function at {task._place}. A worker "
        "could run only the latest. Give each a name of its own with name=…, or pass what differs as an argument."
    )
