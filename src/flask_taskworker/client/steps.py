"""The steps of one app's jobs: each is done, and stored; in a later execution it is only read."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn
from weakref import WeakSet

from ..core.clock import as_timedelta
from ..core.current_job import RunningJob, check_in, refuse_swallowed
from ..core.loggers import Logger, get_logger
from ..core.rows import FAR_MS
from ..core.steps import Cursor, StepsOfTry, Suspended
from ..core.tasks import MAX_NAME, TaskRegistry
from ..errors import ArgumentsError, JobFinished, JobNotFound, LeaseLost, NotDecodable, NotEncodable, StepError
from ..store.flows import Flows
from ..store.sql import Store, to_duration_ms
from ..store.statements import steps as statements
from .sessions import CallerTransaction, is_async

log: Logger = get_logger("jobs")

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
    _trusted: WeakSet[Any] = field(default_factory=WeakSet)
    """The engines whose sessions commit together with the jobs."""

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
        stored = self._stored(job, tried)
        if name in stored:
            return self._decoded(job, name, stored[name])
        # A look begins a transaction, which on SQLite may take the lock for as long as the function runs.
        if getattr(session, "get_bind", lambda: None)() not in self._trusted:
            self._trusted.add(self._within(session).engine)
        began_at = self._store.clock()
        try:
            value = call()
            values = self._values(job, name, value, began_at)
        except BaseException:
            session.rollback()
            raise
        # The function may have committed: that is its own business.
        return value if self._commit(session, statements.ADD_STEP, values) else self._others(job, name)

    def _within(self, session: Any) -> CallerTransaction:
        """The transaction of a session with which something of a step is to commit."""
        if is_async(session):
            raise ArgumentsError("Steps commit with a synchronous session. Declare the task with def.")
        transaction = CallerTransaction(session)
        if not self._shares_database(transaction):
            raise ArgumentsError(
                "The session of the step is in another database than the jobs, so they cannot commit together. Leave "
                "it out (current_job.step, cursor.move), and make what is repeated idempotent."
            )
        transaction.refuse_autocommit()
        return transaction

    def _commit(self, session: Any, sql: str, values: dict[str, Any]) -> bool:
        """Store that and commit the session, or roll it back where nothing is stored."""
        transaction = self._within(session)
        try:
            if transaction.session is not None:
                transaction.session.flush()
            if transaction.run(sql, values):
                session.commit()
                return True
        except BaseException:
            session.rollback()
            raise
        session.rollback()
        return False

    def cursor(self, job: RunningJob, name: str, start: Any, session: Any) -> Cursor[Any]:
        """The cursor of that name, which commits with the session where one is given."""
        tried = self._begin(job, name, None)
        stored = self._stored(job, tried)
        began_at, number = self._store.clock(), len(tried.names)
        write = self._write if session is None else functools.partial(self._commit, session)

        def store(position: Any) -> None:
            values = self._values(job, name, position, began_at) | {"number": number}
            if not write(statements.MOVE_CURSOR, values):
                job.lost = True
                raise LeaseLost
            cursor.position = position

        def move(position: Any) -> None:
            store(position)
            check_in(job)

        async def amove(position: Any) -> None:
            await self._aside(store, position)
            check_in(job)

        position = self._decoded(job, name, stored[name]) if name in stored else start
        cursor: Cursor[Any] = Cursor(position, move, amove, lambda: job.stopping)
        return cursor

    # -- sleeping and waiting ---------------------------------------------------------------------------------------

    def sleep(self, job: RunningJob, name: str, delay: float | timedelta) -> None:
        """Leave the function until the time is over."""
        self._leave(job, self._sleep(job, self._begin_pause(job, name), delay))

    async def asleep(self, job: RunningJob, name: str, delay: float | timedelta) -> None:
        """As :meth:`sleep`."""
        self._leave(job, await self._aside(self._sleep, job, self._begin_pause(job, name), delay))

    def wait_for(self, job: RunningJob, name: str, timeout: float | timedelta | None, default: Any) -> Any:
        """The value of the next notice of that name, for which the function is left."""
        until, value = self._wait(job, self._begin_pause(job, name), timeout, default)
        self._leave(job, until)
        return value

    async def await_for(self, job: RunningJob, name: str, timeout: float | timedelta | None, default: Any) -> Any:
        """As :meth:`wait_for`."""
        until, value = await self._aside(self._wait, job, self._begin_pause(job, name), timeout, default)
        self._leave(job, until)
        return value

    def _begin_pause(self, job: RunningJob, name: str) -> str:
        if job.claim.at_most_once:
            raise StepError("A job that may run only once cannot sleep or wait for a notice: it would begin again.")
        self._begin(job, name, None)
        return name

    def _leave(self, job: RunningJob, until: int | None) -> None:
        if until is not None and job.tried is not None:
            job.tried.is_suspended = True
            raise Suspended(until)

    def _sleep(self, job: RunningJob, name: str, delay: float | timedelta) -> int | None:
        """When it ends; None if that is over."""
        now = self._store.clock()
        due_at: int = now + to_duration_ms(as_timedelta(delay, "delay"))
        values = {**self._place(job, name), "began_at": now, "due_at": due_at}
        if not self._write(statements.BEGIN_SLEEP, values):
            rows = self._store.driver.read(statements.DUE_AT, {"id": job.claim.id, "name": name})
            if not rows or rows[0][0] is None:
                self._refuse(job, name, is_there=bool(rows))
            due_at = rows[0][0]
        return due_at if due_at > now else None

    def _wait(
        self, job: RunningJob, name: str, timeout: float | timedelta | None, default: Any
    ) -> tuple[int | None, Any]:
        """Until when to leave the function, or None and the value."""
        stored_default = self._encoded(name, default)
        longest = None if timeout is None else to_duration_ms(as_timedelta(timeout, "timeout"))
        place = self._place(job, name)

        def body(flows: Flows) -> tuple[int | None, str | None]:
            run, values = flows.run, {**place, "now": flows.now}
            # First, so that no notice comes between the look and the wait.
            if not run(statements.LOCK_JOB, values):
                self._refuse(job, name, is_there=False)
            due_at = FAR_MS if longest is None else flows.now + longest
            run(statements.BEGIN_WAIT, {**values, "began_at": flows.now, "due_at": due_at})
            due_at, ended_at, result = run(statements.WAIT, values)[0]
            if due_at is None:
                self._refuse(job, name, is_there=True)
            if ended_at is not None:
                return None, result
            for notice, value in run(statements.OLDEST_NOTICE, values):
                run(statements.TAKE_NOTICE, {"notice": notice})
                run(statements.END_WAIT, {**values, "result": value})
                return None, value
            if flows.now >= due_at:
                run(statements.END_WAIT, {**values, "result": stored_default})
                return None, stored_default
            run(statements.MARK_WAITING, values)
            return due_at, None

        until, result = self._store.change(body)
        return until, None if until is not None else self._decoded(job, name, result)

    def _refuse(self, job: RunningJob, name: str, *, is_there: bool) -> NoReturn:
        if is_there:
            raise StepError(f"{name!r} is the name of a step that this job has done. Take another name for the pause.")
        job.lost = True
        raise LeaseLost

    # -- telling ----------------------------------------------------------------------------------------------------

    def tell(self, uid: str, name: str, value: Any, session: Any = None) -> None:
        """Tell the job of that uid something; in the transaction of a session if there is one."""
        if session is None:
            self._store.change(lambda flows: self.tell_within(flows, uid, name, value))
            return
        transaction = CallerTransaction(session)
        if not self._shares_database(transaction):
            raise ArgumentsError(
                "The session of tell is in another database than the jobs. Tell the job after the commit, without "
                "session=…."
            )
        transaction.refuse_autocommit()
        flows = self._store.flows(transaction.run)
        self.tell_within(flows, uid, name, value)
        transaction.after_commit(lambda: self._store.follow(flows.effects))

    def tell_within(self, flows: Flows, uid: str, name: str, value: Any) -> int:
        """As :meth:`tell`, inside a transaction; the number of the job."""
        values = {"uid": uid, "name": _checked_name(name), "value": self._encoded(name, value)}
        for job_id, finished_at, state in flows.run(statements.LOCK_TOLD, values):
            if finished_at is not None:
                raise JobFinished(f"Job {job_id} has {state}, so it takes no notice any more.")
            flows.run(statements.ADD_NOTICE, {**values, "id": job_id, "now": flows.now})
            flows.wake([job_id])
            number: int = job_id
            return number
        raise JobNotFound(f"No job has the uid {uid!r:.200}. It was pruned, or has not committed.")

    # -- how a step begins ------------------------------------------------------------------------------------------

    def _begin(self, job: RunningJob, name: str, function: Callable[..., Any] | None) -> StepsOfTry:
        refuse_swallowed(job)
        check_in(job)
        _checked_name(name)
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
        result = self._encoded(name, value)
        return {**self._place(job, name), "result": result, "began_at": began_at, "ended_at": self._store.clock()}

    def _place(self, job: RunningJob, name: str) -> dict[str, Any]:
        assert job.tried is not None
        return {"id": job.claim.id, "claim": job.claim.claim, "name": name, "number": len(job.tried.names)}

    def _encoded(self, name: str, value: Any) -> str | None:
        try:
            return None if value is None else self._registry.codec.encode(value)
        except NotEncodable as error:
            raise StepError(f"The value of {name!r} cannot be stored: {error}") from error

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


def _checked_name(name: str) -> str:
    if not (0 < len(name) <= MAX_NAME and name.isprintable()):
        raise StepError(f"The name of a step is a text of 1 to {MAX_NAME} printable characters, not {name!r:.100}.")
    return name
