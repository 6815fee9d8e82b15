"""The extension: the only place that puts the parts together."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from flask import Flask, Response, abort, current_app, has_app_context, request, request_started

from .client.apps import as_app
from .client.batches import BatchBlock
from .client.client import Client
from .client.limits import LimitSettings
from .client.progress import ENDED, token_for, uid_of
from .client.threads import end_process
from .commands import add_commands, tasks_command
from .core.around import Around, Carry
from .core.batches import Batch, Event
from .core.clock import as_seconds
from .core.codec import Codec
from .core.config import TaskWorkerConfig
from .core.current_job import running_job
from .core.filters import JobFilter
from .core.habits import WORKER_METHODS, no_attribute
from .core.jobs import Job
from .core.limits import Limit, declared_limits
from .core.loggers import Logger, get_logger
from .core.retry import Retry
from .core.rows import JobState
from .core.tasks import Bound, Task, TaskClient, TaskRegistry, task_options
from .core.triggers import Trigger
from .core.unique import Unique
from .errors import AppError, ArgumentsError, ConnectionLost, NotReachable, TaskWorkerError
from .mail.queue.delivery import register_mail
from .mail.queue.queue import reopening
from .ops.alerts import AlertWatch
from .ops.browse import Browser
from .ops.bulk import register_bulk
from .ops.controls import QueueControls, ScheduleControl, ScheduleControls, WorkerControls
from .ops.status import Status, take_status
from .state import KEY, AppState, close_state, replace_predecessor
from .store.drivers import make_driver
from .store.sql import Store
from .worker.bounds import EVERY_ROLE, NO_BOUNDS, Bounds, WorkerRole
from .worker.job_log import install as install_job_log
from .worker.launch import (
    after_uwsgi_fork,
    app_of_command,
    check_gevent,
    check_server,
    flask_command,
    forks_later,
    is_loading_app,
    is_spawning,
    when_serving,
)
from .worker.runner import Runner
from .worker.timing import DEFAULT_TIMING, Timing
from .worker.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
BeforeEnqueue = Callable[[Bound[Any]], Bound[Any]]
log: Logger = get_logger("worker")

_NOTHING: Mapping[str, Any] = {}


class TaskWorker:
    """What both workers share: tasks, apps, jobs. Use one of the subclasses.

    Declare tasks at any time; register apps with :meth:`init_app`. Everything is safe from any thread unless said.
    """

    _timing: Timing = DEFAULT_TIMING
    """How long its workers wait for what; for tests of workers themselves."""

    def __init__(self, app: Flask | None = None) -> None:
        self._registry: TaskRegistry = TaskRegistry(self._find_client, Codec())
        register_mail(self._registry)
        register_bulk(self._registry)
        self._states: weakref.WeakKeyDictionary[Flask, AppState] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        self._runner: Runner | None = None
        self._settings: Mapping[str, Any] = _NOTHING
        self._options: Mapping[str, Any] = _NOTHING
        self._start_again = False
        self._next_try: threading.Timer | None = None
        """When it does, where that is not up to the next request."""
        self._stops = 0
        """How often stop() was called: what starts in another thread meanwhile must not outlive it."""
        _instances.add(self)
        if app is not None:
            self.init_app(app)

    # -- apps -------------------------------------------------------------------------------------------------------

    def init_app(self, app: Flask) -> None:
        """Register *app*: read its ``TASKER_*`` configuration and add the ``flask tasks`` commands.

        Opens no database. Raises ConfigError for a wrong value, AppError when the app has a TaskWorker already or
        another living app uses the same database, ArgumentsError for anything but a Flask app. An app with the same
        import name and database replaces the earlier.
        """
        app = as_app(app)
        if KEY in app.extensions:
            raise AppError(f"The app {app.import_name!r} has a TaskWorker already. Import and use that one instead.")
        config = TaskWorkerConfig.from_mapping(app.config, instance_path=app.instance_path)
        config = replace(config, app=config.app or app_of_command())
        for key, meant in TaskWorkerConfig.unknown_keys(app.config).items():
            remedy = f"Did you mean {meant}?" if meant is not None else "No such key is read."
            log.warning("The configuration of the app %r has %s, which means nothing. %s", app.import_name, key, remedy)
        install_job_log()
        find_app = weakref.ref(app)
        store = Store(
            make_driver(config),
            keep_succeeded=config.keep_succeeded,
            keep_failed=config.keep_failed,
            timezone=config.timezone,
        )
        store.on_retry = reopening(find_app, store)
        state = AppState(
            config=config,
            client=Client(store, self._registry, find_app),
            registry=self._registry,
            find_app=find_app,
            import_name=app.import_name,
            run=self._run,
            workers=self._workers,
            forget=lambda app: self._states.pop(app, None),
        )
        if config.alerts is not None:
            state.client.on_minute = AlertWatch(find_app)
        with self._lock:
            replace_predecessor(state)
            self._states[app] = state
            app.extensions[KEY] = state
            add_commands(app, tasks_command, config.command, "Choose another name with TASKER_COMMAND.")
            request_started.connect(self._on_request, app)
            weakref.finalize(app, close_state, state)
            if self._runner is not None and not self._serve(state):
                # All other apps were gone, and the runner with them.
                self._start_again = True
                self._restart()
        if config.dashboard_url is not None:
            # Fetched here: an app without a dashboard pays nothing for it.
            from .dashboard import create_dashboard

            app.register_blueprint(create_dashboard(self), url_prefix=config.dashboard_url)

    def _find_client(self) -> TaskClient:
        return self._state().client

    def _state(self) -> AppState:
        """The state of the app that is meant: the current one, else the only one. Raises AppError."""
        check_gevent()
        if has_app_context():
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
            state = self._states.get(app)
            if state is not None:
                return state
            if getattr(app.extensions.get(KEY), "registry", None) is self._registry:
                raise AppError(
                    f"A later app {app.import_name!r} with the same database has replaced this one, so its jobs would "
                    "run in that app. Use the later app, or give each app its own TASKER_DATABASE_URI."
                )
        states = self._living()
        if len(states) == 1:
            return states[0]
        if not states:
            raise AppError
        names = ", ".join(sorted(repr(state.import_name) for state in states))
        raise AppError(
            f"Several apps are registered ({names}). Push the context of the one you mean: with app.app_context(): …"
        )

    def _living(self) -> list[AppState]:
        """The states of all living apps.

        Apps are often in reference cycles: a view made inside a factory is enough. One that is gone but for the garbage
        collector, such as the last test's, must not count. See test_app_that_waits_for_the_garbage_collector_is_gone.
        """
        if len(self._states) > 1:
            gc.collect()
        with self._lock:
            return list(self._states.values())

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(f"A {type(self).__name__}", name, WORKER_METHODS)

    # -- tasks and jobs ---------------------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R, R]: ...
    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
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
    ) -> _Decorator: ...
    def task(self, function: Callable[..., Any] | None = None, /, *, name: str | None = None, **settings: Any) -> Any:
        """Make a task of a function, as ``@task_worker.task`` or ``@task_worker.task(…)``.

        ``name``: defaults to ``module.qualname``. ``queue`` and ``priority`` (higher goes first) of its jobs.
        ``retry``: a ``Retry``, a list of them of which the first that wants an exception decides, or a number of
        attempts; without one a task that raises fails at once. ``timeout``: seconds or timedelta for one try. ``keep``:
        how long a finished job and its result are kept, instead of the configured time. ``expires``: how long after it
        is due a job may begin; later it is cancelled. ``schedule``: a trigger, or a
        list of them, with ``schedule_args`` and ``schedule_kwargs``.
        ``unique``: a ``Unique``, for at most one job with the same key. ``limit``: a ``Limit``, how many of its jobs
        run at once, or start in a time, over all processes.
        ``on_success``, ``on_failure``: a task, or ``task.bind(…)``, of which one job is stored together with the
        ending of a job; ``current_job.parent`` is the number of the job that has ended.
        ``atomic``: Flask-SQLAlchemy's ``db``, or a callable that gives a session: what the task writes through it and
        the job's success are committed together, or not at all. It needs the jobs in the session's own database.
        ``at_most_once``: a job whose worker ends while it runs becomes failed (``interrupted``) and is not run again.
        ``isolate``, for sync tasks: each try runs in a process of its own, which timeout, cancel and shutdown end.
        ``sensitive``: names of arguments, and of keys in them, whose values the dashboard covers; ``"return"`` is the
        result.

        Raises DeclarationError, TaskExists, ArgumentsError or NotEncodable.
        """
        options = task_options(**settings)

        def decorate(decorated: Callable[..., Any]) -> Task[..., Any, Any]:
            task = self._registry.register(decorated, options, name)
            for worker in self._workers():
                worker.wake()
            return task

        return decorate if function is None else decorate(function)

    def register_type(self, *types: type) -> None:
        """Let arguments and results hold these dataclasses and enums. Those in annotations are known already."""
        self._registry.codec.register(*types)

    @overload
    def around(self, function: F, /) -> F: ...
    @overload
    def around(
        self,
        /,
        *,
        tasks: Collection[Task[..., Any, Any] | str] | None = None,
        queues: Collection[str] | None = None,
        blocking: bool | None = None,
    ) -> Callable[[F], F]: ...
    def around(self, function: Any = None, /, *, tasks: Any = None, queues: Any = None, blocking: Any = None) -> Any:
        """Have a generator function run around each try of a job, as a fixture: use it as a decorator.

        It is called with :data:`current_job`, inside the application context and in the thread or the asyncio task of
        the job. At its one ``yield`` the task runs, and what that raises is raised there. What it raises itself ends
        the try as if the task had; after the commit of an ``atomic`` task that is logged only. What is declared first
        is outermost. A plain generator is around sync tasks, an async one around async tasks.

        ``tasks``, ``queues``: only around these; by default around all. ``blocking``: False says that a plain
        generator never waits, so that it may be around async tasks, too, on the event loop; True that it is to be
        around sync tasks only. Raises DeclarationError, too where neither was said and there are async tasks.
        """

        def decorate(decorated: Any) -> Any:
            self._registry.add_around(Around.of(decorated, tasks, queues, blocking))
            return decorated

        return decorate if function is None else decorate(function)

    def before_enqueue(self, function: BeforeEnqueue, /) -> BeforeEnqueue:
        """Have *function* see each call before it is enqueued: use it as a decorator.

        It gets the call, with its ``task`` and ``options``, in the thread that enqueues, and returns it or
        ``call.using(…)``; an exception refuses the call. It does not see what schedules, callbacks and mails make.
        Raises DeclarationError for anything but a plain function.
        """
        self._registry.surround().add_before(function)
        return function

    def carry(self, name: str, *, save: Callable[[], Any], restore: Callable[[Any], Any] | None = None) -> None:
        """Have jobs carry a value: *save* gives it where a job is enqueued, and *restore* gets it before each try.

        A value is whatever an argument may be, or None where there is nothing to carry; then *restore* is not called.
        Both are called in the thread of the caller, or of the job, in its application context; without one nothing is
        carried. The values are in ``current_job.carried``, too. What *save* raises, ``enqueue`` raises. Raises
        DeclarationError.
        """
        self._registry.surround().add_carried(name, Carry(save, restore))

    def enqueue_all(self, calls: Iterable[Bound[Any]], *, session: Any = None) -> list[Job[Any]]:
        """Store a job for each call made by ``task.bind(…)``, of any tasks, in one transaction: all or none.

        ``session``: as in ``task.using(session=…)``, for all of them. Raises as ``task.enqueue`` does.
        """
        client = self._state().client
        bound = _checked_calls(calls, client)
        return client.enqueue_all(bound, session) if bound else []

    async def aenqueue_all(self, calls: Iterable[Bound[Any]], *, session: Any = None) -> list[Job[Any]]:
        """As :meth:`enqueue_all`, without blocking the event loop."""
        client = self._state().client
        bound = _checked_calls(calls, client)
        return await client.aenqueue_all(bound, session) if bound else []

    def tell(self, uid: str, name: str, value: Any = None, *, session: Any = None) -> None:
        """As ``job.tell``, for the job of that uid."""
        self._state().client.tell(uid, name, value, session)

    def get_job(self, job_id: int | None = None, *, uid: str | None = None) -> Job[Any]:
        """The job of that number, or of that uid, of the current app. Raises JobNotFound, AppError, ArgumentsError."""
        client = self._state().client
        if (job_id is None) == (uid is None):
            raise ArgumentsError("Give a job's number, or its uid: get_job(42) or get_job(uid='order 7').")
        return client.job(job_id) if job_id is not None else client.job_of(str(uid))

    def jobs(
        self,
        words: str = "",
        /,
        *,
        state: JobState | str | Sequence[JobState | str] = (),
        task: Task[..., Any, Any] | str | None = None,
        queue: str | None = None,
        args: Mapping[str, object] | None = None,
        limit: int | None = None,
    ) -> Iterator[Job[Any]]:
        """The jobs that fit, newest first, read page by page. Without arguments all but the discarded ones.

        ``words``: a filter as ``flask tasks jobs`` takes it, such as ``"state:failed after:-1h"``. ``task``: a task, or
        a name in which ``*`` stands for anything. ``args``: the values of arguments by the names of the parameters.
        ``limit``: how many at most. Raises ArgumentsError at the call, StoreError, AppError.
        """
        if not isinstance(words, str):
            raise ArgumentsError(f"{words!r:.100} is not a filter. Name what you look for, as jobs(task=…).")
        if not isinstance(args, Mapping | None):
            raise ArgumentsError(f"args = {args!r:.100} is not allowed. Allowed: a dict, as {{'order_id': 7}}.")
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ArgumentsError(f"limit = {limit!r:.100} is not allowed. Allowed: a whole number, or None.")
        store, registry = self._state().client.store, self._registry
        states = [state] if isinstance(state, str) else state
        chosen = JobFilter.parse(" ".join([words, *(f"state:{one}" for one in states)]), store.clock())
        chosen = replace(
            chosen,
            task=(task.name if isinstance(task, Task) else task) or chosen.task,
            queue=queue or chosen.queue,
            args=chosen.args + tuple((name, registry.codec.shown(value)) for name, value in (args or {}).items()),
        )
        pages = Browser(store).records(chosen, names=registry.parameters_of)
        return (Job(record, self._state().client) for record in itertools.islice(pages, limit))

    @property
    def tasks(self) -> Mapping[str, Task[..., Any, Any]]:
        """The tasks by name, to enqueue by name: ``task_worker.tasks["shop.greet"].enqueue("Ana")``."""
        return {task.name: task for task in self._registry}

    @property
    def queues(self) -> QueueControls:
        """The queues of the current app, to look at, pause and resume: ``queues["mail"].pause()``."""
        return QueueControls(self._state())

    @property
    def schedules(self) -> ScheduleControls:
        """The schedules of the current app, to look at, run, change, pause, resume and remove: ``schedules[name]``."""
        return ScheduleControls(self._state())

    @property
    def workers(self) -> WorkerControls:
        """The living workers of the current app, to look at, stop and make quiet: ``workers[name].stop()``."""
        return WorkerControls(self._state())

    def status(self) -> Status:
        """How the current app stands: problems, workers, queues, jobs and schedules. Raises AppError, StoreError."""
        store = self._state().client.store
        store.driver.prepare()
        return take_status(store)

    def batch(
        self,
        name: str,
        *,
        on_success: Bound[Any] | None = None,
        on_failure: Bound[Any] | None = None,
        on_end: Bound[Any] | None = None,
        stop_on_failure: bool = False,
        session: Any = None,
    ) -> BatchBlock:
        """Jobs that belong together: ``with task_worker.batch("import 7") as batch: …``, or ``async with``.

        Those enqueued in the block with ``task.using(batch=batch)`` belong to it, and those that they enqueue with
        ``current_job.batch``. ``on_success``, ``on_failure`` and ``on_end``, made by ``task.bind(…)``: stored as a
        job when all have succeeded, when the first has failed for good, when all have ended.
        ``stop_on_failure``: then the others are cancelled. ``session``: as in ``task.using(session=…)``, for all of it.
        An exception in the block cancels the batch. Raises ArgumentsError, StoreError.
        """
        given = {"success": on_success, "failure": on_failure, "end": on_end}
        calls: dict[Event, Any] = {event: call for event, call in given.items() if call is not None}  # type: ignore[misc]
        batches = self._state().client.batches
        return batches.open(name, calls, stop_on_failure=stop_on_failure, session=session)

    def get_batch(self, batch_id: int) -> Batch:
        """The batch of that number, of the current app. Raises BatchNotFound, AppError."""
        return self._state().client.batches.get(batch_id)

    def progress_token(self, job: Job[Any]) -> str:
        """What a URL of :meth:`progress_view` takes: the job's uid, signed with the current app's ``SECRET_KEY``.

        Raises ConfigError without a ``SECRET_KEY``.
        """
        app = self._state().find_app()
        assert app is not None
        return token_for(app, job.uid)

    def progress_view(self) -> Callable[[str], Response]:
        """A view that sends a browser's ``EventSource`` how far a job is, until it has ended.

        For ``app.add_url_rule("/progress/<token>", view_func=…)``, or to be called by a view of your own; its argument
        is a :meth:`progress_token`. Each event is JSON: ``state``, ``attempt`` and ``progress``, which is null or has
        ``done``, ``total``, ``text`` and ``percent``. Other tokens get 404. However many browsers watch, one thread of
        the process reads, once a second; but each of them holds a connection of the server, and one of its threads
        where it has threads.
        """

        def progress(token: str) -> Response:
            uid = uid_of(current_app, token)
            if uid is None:
                abort(404)
            if request.headers.get("Last-Event-ID") in ENDED:
                # A browser connects again where a stream ends, until it gets this.
                return current_app.response_class(status=204)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            stream = self._state().client.feed.watch(uid)
            return current_app.response_class(stream, mimetype="text/event-stream", headers=headers)

        return progress

    @property
    def limits(self) -> LimitSettings:
        """The limits of the current app by name, to be changed: ``limits["carrier"].set(running=2)``, ``.reset()``."""
        state = self._state()
        return LimitSettings(state.client, declared_limits(self._registry.limits, state.config.queue_limits))

    def unschedule(self, name: str) -> bool:
        """End a schedule made by ``task.schedule``; False if there is none. Raises DeclarationError for one in code."""
        return ScheduleControl(self._state(), name).remove()

    # -- starting and stopping --------------------------------------------------------------------------------------

    def stop(self, timeout: float | None = None) -> None:
        """Stop claiming, let running jobs end, hand back the others, and return when all is done.

        ``timeout`` is in seconds and defaults to ``TASKER_SHUTDOWN_TIMEOUT``. Harmless when nothing runs. Called by a
        job, or on the worker's own event loop, it does not wait. Raises ArgumentsError for anything but a number.
        """
        seconds = as_seconds(timeout)
        self._stops += 1
        runner = self._runner
        self._start_again = False
        if runner is not None:
            runner.stop(seconds)
            if running_job() is None:
                runner.join()
            self._forget_runner()

    def _forget_runner(self) -> None:
        with self._lock:
            self._runner = None
            for state in list(self._states.values()):
                state.worker = None

    def _workers(self) -> list[Worker]:
        """The workers that run in this process, one for each app. Safe from any thread."""
        return [state.worker for state in list(self._states.values()) if state.worker is not None]

    def _run(self, *, bounds: Bounds = NO_BOUNDS, role: WorkerRole = EVERY_ROLE, **settings: Any) -> None:
        """Run the workers of all apps in this thread, the main one, until SIGTERM or SIGINT, or until *bounds*.

        *role* say which part of the work they take on.
        ``settings`` override fields of the configuration that only workers read, for example ``queues=("mail",)``.
        A sync job that does not end within ``shutdown_timeout`` is handed back, and the process then ends at once,
        since its thread cannot be stopped. Where hung sync jobs hold all threads it ends with exit code 75.
        ``flask tasks run`` calls this. Raises RuntimeError outside of the main thread, AppError without an app,
        ConfigError, StoreError.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("A blocking worker must run in the main thread, where signals arrive.")
        runner = self._begin(settings, bounds=bounds, role=role, may_abandon_threads=True)
        try:
            runner.run_here(self._is_debug())
        finally:
            self._forget_runner()
        if runner.error is not None:
            raise runner.error
        if runner.exit_code or not runner.handed_back:
            end_process(runner.exit_code)

    def _begin(self, settings: Mapping[str, Any] = _NOTHING, **options: Any) -> Runner:
        """A runner that serves every app. The databases are opened here, so that errors reach the caller."""
        settings = TaskWorkerConfig.of_a_run(settings)
        with self._lock:
            states = self._living()
            if not states:
                raise AppError
            for state in states:
                state.store.driver.check_platform()
                state.store.driver.prepare()
                app = state.find_app()
                # Tasks are declared for all apps, and some may be for one of them only.
                if len(states) == 1 and app is not None:
                    state.client.check_atomic_tasks(app)
            self._runner = Runner(self._timing)
            self._settings, self._options = settings, options
            for state in states:
                self._serve(state)
            return self._runner

    def _serve(self, state: AppState) -> bool:
        """Run a worker for one app, as the others run: an app may join later."""
        assert self._runner is not None
        config = replace(state.config, **self._settings)
        state.worker = state.make_worker(self._runner.loop, config, timing=self._timing, **self._options)
        return self._runner.serve(state.worker)

    def _is_debug(self) -> bool:
        apps = [(state.config, state.find_app()) for state in self._states.values()]
        return any(config.is_debug(bool(app and app.debug)) for config, app in apps)

    def _is_meant(self) -> bool:
        """Whether a ``start()`` at import is meant, given what imports the app."""
        if is_spawning():
            log.info("not started in a process that imports this module only to work for another")
            return False
        command = flask_command()
        if command is None or command in self._STARTS_UNDER:
            return True
        if is_loading_app() and command != "run":
            log.debug("start() does nothing where a flask command imports the app")
        else:
            # This process was not meant to do without, and it may serve for long.
            log.warning("start() does nothing under flask %s, so no job runs in it. Use: flask tasks run", command)
        return False

    _STARTS_UNDER: frozenset[str] = frozenset()

    # -- processes --------------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """In the child: the loop's thread is gone. It starts again where this process serves requests, and only there.

        Such a child is a web process, as under ``gunicorn --preload``; any other child is a helper of another kind and
        must not claim jobs.
        """
        self._lock = threading.RLock()
        self._next_try = None
        if self._runner is not None:
            self._runner.abandon()
            _inherited.append(self._runner)
            self._runner = None
            self._start_again = True
        for state in list(self._states.values()):
            if state.worker is not None:
                state.worker.abandon()
                _inherited.append(state.worker)
                state.worker = None
            state.client.abandon()
        if self._start_again:
            when_serving(self._restart)

    def _on_request(self, app: Flask, **_: Any) -> None:
        if self._start_again and self._next_try is None:
            # In a thread: a request must not wait for the database, nor fail with it.
            threading.Thread(target=self._restart, name="taskworker-boot", daemon=True).start()

    def _restart(self) -> None:
        """Become a worker again, once."""


class BackgroundTaskWorker(TaskWorker):
    """Runs jobs in a thread with an event loop, beside the web application.

    Several processes may each run one: every job is claimed once. Where a server imports the application only to fork
    the processes that serve it (``gunicorn --preload``), the worker starts in each of those, as soon as it serves.
    When the main thread ends, the worker stops by itself. A sync job that does not end within
    ``TASKER_SHUTDOWN_TIMEOUT`` keeps its claim until the process dies; then another worker takes it over.
    """

    _STARTS_UNDER = frozenset({"run"})

    def start(self) -> None:
        """Start the thread, for all apps given to ``init_app`` and those given later. Harmless when repeated.

        Under the ``flask`` command it starts only for ``flask run``. Where the database server cannot be reached it
        logs that and returns: the worker starts as soon as the server answers. Raises AppError without an app,
        StoreError when the database cannot be opened for another reason, NotSupported where no worker can run.
        """
        if not self._is_meant():
            return
        if forks_later():
            check_server()
            log.info("not started in this process, which only forks others: it starts in each of those")
            self._start_again = True
            after_uwsgi_fork(self._restart)
            return
        try:
            self._start_thread()
        except (NotReachable, ConnectionLost) as error:
            self._start_later(error)

    def _start_thread(self) -> None:
        check_server()
        with self._lock:
            if self._runner is None or not self._runner.alive:
                runner = self._begin()
                runner.on_failure = lambda: self._replace(runner)
                runner.start_thread(self._is_debug())
            self._start_again = False

    def _replace(self, runner: Runner) -> None:
        """Begin again: user code has ended the loop of *runner*, or blocks it for good."""
        with self._lock:
            if self._runner is not runner:
                return
            self._forget_runner()
            self._start_again = True
        self._restart_after(self._timing.replace_after)

    def _start_later(self, error: Exception) -> None:
        is_away = isinstance(error, NotReachable | ConnectionLost)
        until = "until the database answers" if is_away else "yet, it tries again"
        log.error("no worker runs in this process %s: %s", until, error)
        self._start_again = True
        self._restart_after(self._timing.reach_again)

    def _restart_after(self, seconds: float) -> None:
        def restart() -> None:
            self._next_try = None
            self._restart()

        with self._lock:
            # One at a time, however many requests come meanwhile.
            if self._next_try is None and threading.main_thread().is_alive():
                self._next_try = threading.Timer(seconds, restart)
                self._next_try.daemon = True
                self._next_try.start()

    def _restart(self) -> None:
        with self._lock:
            if not self._start_again or self._next_try is not None:
                # stop(), or another request, was faster.
                return
            self._start_again, stops = False, self._stops
        try:
            self._start_thread()
        except (TaskWorkerError, OSError, RuntimeError) as error:
            if self._stops == stops:
                self._start_later(error)
        else:
            if self._stops != stops:
                # stop() came while this began, and found nothing to stop.
                self.stop()


class BlockingTaskWorker(TaskWorker):
    """Runs jobs in the main thread: ``start()`` returns after SIGTERM or SIGINT.

    For a machine or a process of its own. The web application makes the same object and never starts it.
    """

    def start(self) -> None:
        """Run until SIGTERM or SIGINT. Under the ``flask`` command it returns at once: use ``flask tasks run`` there.

        A sync job that does not end within ``TASKER_SHUTDOWN_TIMEOUT`` is handed back, and the process then ends at
        once, since its thread cannot be stopped. Where hung sync jobs hold all threads it ends with exit code 75.
        Raises RuntimeError outside of the main thread, AppError without an app, StoreError.
        """
        if self._is_meant():
            self._run()


class _Decorator:
    """The type of ``@task_worker.task(…)``: it keeps the signature of what it decorates."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, R]: ...
    def __call__(self, function: Any, /) -> Any:
        """Make a task of the function."""


def _checked_calls(calls: Iterable[Bound[Any]], client: TaskClient) -> list[Bound[Any]]:
    bound = list(calls)
    for call in bound:
        if not isinstance(call, Bound):
            raise ArgumentsError(f"{call!r:.100} cannot be enqueued. Make a call of a task with task.bind(…).")
        if call.task._client() is not client:
            raise ArgumentsError(f"The task {call.task.name} belongs to another TaskWorker. Enqueue its jobs there.")
        if call.options.session is not None:
            raise ArgumentsError("The calls of enqueue_all share one transaction. Give session=… to enqueue_all.")
    return bound


# -- fork --------------------------------------------------------------------------------------------------------------

_instances: weakref.WeakSet[TaskWorker] = weakref.WeakSet()
_inherited: list[object] = []
"""What a fork brought along and must not be used nor closed in the child: its destruction would do so."""


def _after_fork_in_child() -> None:
    for task_worker in list(_instances):
        task_worker._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
