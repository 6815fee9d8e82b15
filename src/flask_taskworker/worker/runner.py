"""The runner: one event loop for the workers of all apps of a TaskWorker, in a thread or in the main thread."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..client.threads import LoopThreads, flush_output, give_way
from ..core.current_job import RunningJob
from ..core.loggers import Logger, get_logger, protect_libraries, show_on_terminal
from .job_log import install as install_job_log
from .thread_bridge import OwnTask
from .timing import DEFAULT_TIMING, Timing
from .watchdog import Watchdog
from .worker import Worker

log: Logger = get_logger("worker")

LOOP_LOST = 70
"""The exit code of a process whose event loop user code has ended or blocks for good: EX_SOFTWARE of sysexits.h."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AT_ONCE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name))
"""The terminal is gone, or a person wants the process to quit now."""
_LAST_OUTPUT = 1.0
"""Seconds that the handlers of logging get to write what they have."""
_LAST_HAND_BACK = 0.05
"""Seconds that the other apps of the process get when the first has handed back its jobs."""
_LAST_TASKS = 0.2
"""Seconds that coroutines which jobs have started beside themselves get at the end."""


class Runner:
    """One event loop and the workers on it. Made for one run."""

    def __init__(self, timing: Timing = DEFAULT_TIMING) -> None:
        protect_libraries()
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        # asyncio's own threads refuse work once the main thread has ended, when jobs may still need them: to look up
        # a host's address, for example. See test_coroutine_may_use_threads_and_the_network_while_the_process_ends.
        self.loop.set_default_executor(LoopThreads("taskworker-default"))
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._runs: set[asyncio.Task[None]] = set()
        self._holding: list[Worker] = []
        """Those that have ended but for jobs which threads still run."""
        self._stopping = False
        self.on_failure: Callable[[], None] = lambda: None
        """Called, in any thread, where the workers have ended although they were not asked to, in a thread."""
        self._closed = False
        self._thread: threading.Thread | None = None
        self._is_main = False
        self._all_ended = asyncio.Event()
        self._ended = threading.Event()
        self.error: BaseException | None = None
        """What ended a worker that should have gone on."""
        self.handed_back: bool = True
        """Whether, at the end, no thread ran a job any more."""
        self.exit_code: int = 0
        """With which the process should end, if it has nothing else to do."""
        self._watchdog = Watchdog(self.loop, self._job_of, self._on_blocked, timing)

    @property
    def alive(self) -> bool:
        """Whether the loop runs, and takes more workers."""
        return self._thread is not None and self._thread.is_alive() and not self._closed

    def serve(self, worker: Worker) -> bool:
        """Run one more worker; False when it is too late for that, since all others have ended. From any thread."""
        with self._lock:
            if self._closed:
                return False
            self._workers.add(worker)
        worker.lag_ms = lambda: self._watchdog.lag_ms

        def launch() -> None:
            run = OwnTask(self._attend(worker), loop=self.loop, name=f"taskworker-{worker.id}")
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)

        # An empty context: jobs must not see the request in which start() was called. See
        # test_job_sees_nothing_of_the_request_that_started_the_worker.
        self.loop.call_soon_threadsafe(launch, context=contextvars.Context())
        return True

    async def _attend(self, worker: Worker) -> None:
        """Run a worker to its end."""
        if self._stopping:
            worker.stop()
        try:
            self.handed_back &= await worker.run()
            exit_code = worker.exit_code
        except BaseException as error:
            self.error, exit_code = error, 1
            log.critical("a worker could not go on", exc_info=error)
        if exit_code:
            # The others end, too: a new process may be started, or a new loop in this one.
            self.exit_code = self.exit_code or exit_code
            self._stop(None, is_asked=False)
        if worker.must_hand_back:
            self._holding.append(worker)
        with self._lock:
            self._workers.discard(worker)
            self._closed = not self._workers
        if self._closed:
            self._all_ended.set()

    def _job_of(self, task: asyncio.Task[Any]) -> RunningJob | None:
        jobs = [worker.job_of(task) for worker in self._workers.copy()]
        return next((job for job in jobs if job is not None), None)

    def abandon(self) -> None:
        """After a fork, in the child: this loop is the parent's."""
        _watched.discard(self)

    # -- in a thread ------------------------------------------------------------------------------------------------

    def start_thread(self, debug: bool) -> None:
        """Run in a thread of its own until :meth:`stop`, or until the main thread ends.

        Raises RuntimeError where the system has no thread left.
        """
        self._thread = threading.Thread(target=self._run, args=(debug,), name="taskworker-loop")
        # Not a daemon: the interpreter waits for it, so that it can drain; the watcher tells it when to.
        self._thread.daemon = False
        try:
            # Before the start: a thread that misses the main thread's end would keep the process alive forever.
            _watch(self)
            self._thread.start()
        except RuntimeError:
            with self._lock:
                self._closed = True
            _watched.discard(self)
            self.loop.close()
            self._ended.set()
            raise

    def join(self) -> None:
        """Wait for the end. Returns at once on the loop's own thread."""
        if threading.current_thread() is not self._thread:
            self._ended.wait()

    # -- in the main thread -----------------------------------------------------------------------------------------

    def run_here(self, debug: bool) -> None:
        """Run in this thread, the main one, until SIGTERM or SIGINT. A second signal ends at once, as SIGHUP does."""
        for number in _SIGNALS:
            self.loop.add_signal_handler(number, self._on_signal, number)
        for number in _AT_ONCE:
            # Ignored under nohup, and left to a handler that the application has set.
            if signal.getsignal(number) is signal.SIG_DFL:
                self.loop.add_signal_handler(number, self._on_signal, number)
        self._thread = threading.current_thread()
        self._is_main = True
        self._run(debug)

    def _on_signal(self, number: signal.Signals) -> None:
        is_urgent = self._stopping or number in _AT_ONCE
        self._stop(0.0 if is_urgent else None)
        if is_urgent:
            log.warning("%s: running jobs go back to their queues now", number.name)
        else:
            log.info("%s: no more claims; waiting for running jobs", number.name)

    # -- both -------------------------------------------------------------------------------------------------------

    def stop(self, timeout: float | None) -> None:
        """Stop all workers; see :meth:`Worker.stop`. Safe from any thread."""
        try:
            self.loop.call_soon_threadsafe(self._stop, timeout)
        except RuntimeError:
            log.debug("the loop has ended already")

    def _stop(self, timeout: float | None, *, is_asked: bool = True) -> None:
        self._stopping |= is_asked
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.stop(timeout)

    def _run(self, debug: bool) -> None:
        install_job_log()
        self.loop.set_debug(debug)
        if debug:
            show_on_terminal()
        self.loop.set_exception_handler(_on_loop_error)
        asyncio.set_event_loop(self.loop)
        try:
            if asyncio._get_running_loop() is not None:
                for end in give_way:
                    end()
            self._watchdog.start()
            self._complete(self._all_ended.wait())
            self._complete(self._end_stray_tasks())
            if self._holding:
                self._complete(self._hand_back())
                self._complete(self._end_stray_tasks())
            self._complete(self.loop.shutdown_asyncgens())
        except BaseException as error:  # noqa: BLE001 - user code has closed its descriptors, for example
            self._give_up(error, declare=not any(worker.runs_threads for worker in self._workers))
        finally:
            self._watchdog.stop()
            asyncio.set_event_loop(None)
            # Where user code has closed its descriptors, each Python has an error of its own for that.
            with suppress(Exception):
                self.loop.close()
            _watched.discard(self)
            self._ended.set()
        if self.error is not None and not self._is_main and not self._stopping:
            self.on_failure()

    def _complete(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run the loop until this is done, and enter it again where user code has stopped it."""
        main = OwnTask(coroutine, loop=self.loop, name="taskworker-main")
        while not main.done():
            turned: list[bool] = []
            self.loop.call_soon(turned.append, True)
            try:
                self.loop.run_until_complete(main)
            except BaseException as error:
                # SystemExit and KeyboardInterrupt leave the loop where a coroutine raises them that a job has started
                # beside itself; loop.stop() ends it, too. The other jobs must not suffer for it.
                if main.done() or not turned:
                    raise
                log.critical("a job has stopped the event loop (%r); the worker goes on", error, exc_info=error)

    def _on_blocked(self, culprit: str) -> None:
        """In the watchdog's thread."""
        self._give_up(RuntimeError(f"The event loop is blocked by {culprit}."), declare=True)

    def _give_up(self, error: BaseException, *, declare: bool) -> None:
        """The loop will not turn any more: end a process that is the workers' alone, or let others have their jobs.

        Should it turn after all, its workers end. *declare*: others may have the jobs before the lease is over.
        """
        self.error = error
        log.critical("the event loop cannot go on; others run the jobs of its workers: %s", error, exc_info=error)
        if self._is_main:
            with suppress(RuntimeError):
                # What blocks the loop may hold the lock of a log handler.
                flusher = threading.Thread(target=flush_output, name="taskworker-flush", daemon=True)
                flusher.start()
                flusher.join(_LAST_OUTPUT)
            # The kernel frees the locks: the workers that look at them have the jobs then.
            os._exit(LOOP_LOST)
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        for worker in workers:
            worker.give_up(declare=declare)
        _watched.discard(self)
        self._ended.set()
        if not self._stopping:
            self.on_failure()

    async def _hand_back(self) -> None:
        """The last act where threads still run jobs: hand these back, and end before another worker can begin them."""
        try:
            await asyncio.gather(*(worker.wind_up() for worker in self._holding))
            if self._is_main:
                # In a thread: jobs may end meanwhile. One that writes into a full pipe may keep a lock forever.
                flushed = self.loop.run_in_executor(None, flush_output)
                await asyncio.wait({flushed}, timeout=_LAST_OUTPUT)
            handing = [self.loop.create_task(worker.hand_back()) for worker in self._holding]
            # From the first one on, others may run its jobs beside the threads of this process.
            await asyncio.wait(handing, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(handing, timeout=_LAST_HAND_BACK)
        except Exception:
            log.exception("this should not happen; please report it. Jobs are taken over when this process has ended.")
        finally:
            if self._is_main:
                os._exit(self.exit_code)
            for worker in self._holding:
                await worker.disconnect()

    async def _end_stray_tasks(self) -> None:
        running = {task for worker in self._holding for task, _ in worker.running_jobs()}
        strays = asyncio.all_tasks() - {asyncio.current_task()} - running
        for stray in strays:
            if not stray.get_name().startswith("taskworker-"):
                log.warning("a job left this coroutine behind, it is cancelled: %r", stray)
            asyncio.Task.cancel(stray)
        if strays:
            await asyncio.wait(strays, timeout=_LAST_TASKS)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As by default; but where logging raises the loop must not end."""
    with suppress(Exception):
        loop.default_exception_handler(context)


# -- the end of the main thread ----------------------------------------------------------------------------------------

_watched: set[Runner] = set()
_watching: int | None = None
"""The process in which a thread waits for the end of the main thread. A fork does not copy that thread."""


def _watch(runner: Runner) -> None:
    """Have *runner* stop when the main thread ends: the interpreter then waits for the runner's thread."""
    global _watching

    def stop_after_main_thread() -> None:
        threading.main_thread().join()
        for one in _watched.copy():
            one.stop(None)

    _watched.add(runner)
    if _watching != os.getpid():
        threading.Thread(target=stop_after_main_thread, name="taskworker-watch", daemon=True).start()
        _watching = os.getpid()
    elif not threading.main_thread().is_alive():
        runner.stop(None)


@atexit.register
def _stop_at_exit() -> None:
    """Elsewhere all have ended before; not so under uWSGI, nor after a second Ctrl-C, which means at once."""
    timeout = None if threading.main_thread().is_alive() else 0.0
    for runner in _watched.copy():
        runner.stop(timeout)
        runner.join()
