"""The steps of one app's jobs: each is done, and stored; in a later execution it is only read."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from ..core.current_job import RunningJob, check_in
from ..core.loggers import get_logger
from ..core.steps import Cursor, StepsOfTry
from ..core.tasks import MAX_NAME, TaskRegistry
from ..errors import ArgumentsError, LeaseLost, NotDecodable, NotEncodable, StepError
from ..store.sql import Store
from ..store.statements import steps as statements
from .sessions import CallerTransaction, is_async

log = get_logger("jobs")

MANY = 1_000
"""Steps of one execution, from which on the log advises a cursor."""


@dataclass(frozen=True)
class Steps:
    """One app's. Safe from any thread."""

    _store: Store
    _registry: TaskRegistry
    _shares_database: Callable[[CallerTransaction], bool]
    _aside: Callable[..., Coroutine[Any, Any, Any]]
    """Runs a call in a thread."""
    _learned: WeakSet[Any] = field(default_factory=WeakSet)
    """The functions whose type hints the codec knows."""

    def step(self, job: RunningJob, name: str, function: Callable[..., Any], call: Callable[[], Any]) -> Any:
        """The result of a step, which *call* does unless it is stored; *function* has its type hints."""
        tried = self._begin(job, name, function)
        stored = self._stored(job, tried)
        if name in stored:
            return self._decoded(job, name, stored[name])
        began_at, value = self._store.clock(), call()
        return self._added(job, name, value, self._values(job, name, value, began_at))

    async def astep(
        self, job: RunningJob, name: str, function: Callable[..., Any], call: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Any:
        """As :meth:`step`."""
        tried = self._begin(job, name, function)
        stored = tried.stored if tried.stored is not None else await self._aside(self._stored, job, tried)
        if name in stored:
            return self._decoded(job, name, stored[name])
        began_at, value = self._store.clock(), await call()
        return await self._aside(self._added, job, name, value, self._values(job, name, value, began_at))

    def step_in(
        self, job: RunningJob, session: Any, name: str, function: Callable[..., Any], call: Callable[[], Any]
    ) -> Any:
        """As :meth:`step`; it is stored and committed with the session."""
        tried = self._begin(job, name, function)
        if is_async(session):
            raise ArgumentsError("step_in takes a synchronous session. Declare the task with def.")
        stored = self._stored(job, tried)
        if name in stored:
            return self._decoded(job, name, stored[name])
        transaction = CallerTransaction(session)
        if not self._shares_database(transaction):
            raise ArgumentsError(
                "The session of step_in is in another database than the jobs, so they cannot commit together. Use "
                "current_job.step, and make the function idempotent."
            )
        transaction.refuse_autocommit()
        ends = transaction.session or transaction.connection
        try:
            began_at, value = self._store.clock(), call()
            values = self._values(job, name, value, began_at)
            if transaction.session is not None:
                transaction.session.flush()
            # The function may have committed: that is its own business, but the session has another connection then.
            if CallerTransaction(session).run(statements.ADD_STEP, values):
                ends.commit()
                return value
        except BaseException:
            ends.rollback()
            raise
        ends.rollback()
        return self._others(job, name)

    def cursor(self, job: RunningJob, name: str, start: Any) -> Cursor[Any]:
        """The cursor of that name."""
        tried = self._begin(job, name, None)
        stored = self._stored(job, tried)
        began_at, number = self._store.clock(), len(tried.names)

        def move(position: Any) -> None:
            values = self._values(job, name, position, began_at) | {"number": number}
            if not self._write(statements.MOVE_CURSOR, values):
                job.lost = True
                raise LeaseLost
            cursor.position = position
            check_in(job)

        position = self._decoded(job, name, stored[name]) if name in stored else start
        cursor: Cursor[Any] = Cursor(position, move, lambda: job.stopping)
        return cursor

    # -- how a step begins ------------------------------------------------------------------------------------------

    def _begin(self, job: RunningJob, name: str, function: Callable[..., Any] | None) -> StepsOfTry:
        check_in(job)
        if not (0 < len(name) <= MAX_NAME and name.isprintable()):
            raise StepError(f"The name of a step is a text of 1 to {MAX_NAME} printable characters, not {name!r:.100}.")
        task = self._registry.get(job.claim.task)
        if task is not None and task.options.atomic is not None:
            raise StepError(
                f"{task.name} is atomic, so all that it does is one step. Leave the steps out, or declare the task "
                "without atomic=… and write in current_job.step_in(session, …)."
            )
        tried = job.tried = job.tried or StepsOfTry()
        if name in tried.names:
            raise StepError(
                f"The step {name!r} was used before in this execution. Give each step a name of its own; in a loop, "
                'number it: f"page {n}".'
            )
        tried.names.add(name)
        if len(tried.names) == MANY + 1:
            log.warning("%s has more than %d steps. For a long loop use current_job.cursor.", job.claim, MANY)
        while isinstance(function, functools.partial):
            function = function.func
        function = getattr(function, "__func__", function)
        if inspect.isfunction(function) and function not in self._learned:
            self._learned.add(function)
            self._registry.codec.learn(function)
        return tried

    def _stored(self, job: RunningJob, tried: StepsOfTry) -> dict[str, str | None]:
        """What earlier executions have stored; a first one asks for nothing."""
        if tried.stored is None:
            is_first = job.claim.claim == 1
            rows: list[Any] = [] if is_first else self._store.driver.read(statements.RESULTS, {"id": job.claim.id})
            tried.stored = dict(rows)
        return tried.stored

    # -- how it ends ------------------------------------------------------------------------------------------------

    def _values(self, job: RunningJob, name: str, value: Any, began_at: int) -> dict[str, Any]:
        if inspect.iscoroutine(value):
            value.close()
            raise StepError(f"The step {name!r} returned a coroutine. Write await current_job.astep(…).")
        try:
            result = None if value is None else self._registry.codec.encode(value)
        except NotEncodable as error:
            raise StepError(f"What the step {name!r} returned cannot be stored: {error}") from error
        assert job.tried is not None
        return {
            "id": job.claim.id,
            "claim": job.claim.claim,
            "name": name,
            "result": result,
            "number": len(job.tried.names),
            "began_at": began_at,
            "ended_at": self._store.clock(),
        }

    def _added(self, job: RunningJob, name: str, value: Any, values: dict[str, Any]) -> Any:
        return value if self._write(statements.ADD_STEP, values) else self._others(job, name)

    def _write(self, sql: str, values: dict[str, Any]) -> bool:
        return bool(self._store.driver.write(sql, values))

    def _others(self, job: RunningJob, name: str) -> Any:
        """What another execution has stored: the first to end counts. Raises LeaseLost where none has."""
        for (result,) in self._store.driver.read(statements.RESULT, {"id": job.claim.id, "name": name}):
            return self._decoded(job, name, result)
        job.lost = True
        raise LeaseLost

    def _decoded(self, job: RunningJob, name: str, result: str | None) -> Any:
        try:
            return None if result is None else self._registry.codec.decode(result)
        except NotDecodable as error:
            raise StepError(f"The stored result of the step {name!r} of {job.claim} cannot be read: {error}") from error
