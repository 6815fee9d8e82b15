"""The runner: one event loop for the workers of all apps of a TaskWorker, in a thread or in the main thread."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import threading

from . import logs
from .worker import Worker

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LAST_TASKS = 0.2
"""Seconds that coroutines which jobs have started beside themselves get at the end."""


class Runner:
    """One event loop and the workers on it. Made for one run."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._runs: set[asyncio.Task[bool]] = set()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._all_ended = asyncio.Event()
        self.error: BaseException | None = None
        """What ended a worker that should have gone on."""
        self.handed_back = True
        """Whether, at the end, no thread ran a job any more."""

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread is not None and self._thread.is_alive()

    def serve(self, worker: Worker) -> None:
        """Run one more worker. Safe from any thread. Raises RuntimeError when the loop has ended."""
        with self._lock:
            self._workers.append(worker)
        # An empty context: jobs must not see the request in which somebody has called start(). See
        # test_job_sees_nothing_of_the_request_that_started_the_worker.
        self.loop.call_soon_threadsafe(self._launch, worker, context=contextvars.Context())

    def _launch(self, worker: Worker) -> None:
        run = self.loop.create_task(worker.run())
        self._runs.add(run)
        run.add_done_callback(self._on_run_end)

    def _on_run_end(self, run: asyncio.Task[bool]) -> None:
        self._runs.discard(run)
        if run.cancelled() or run.exception() is not None:
            self.error = None if run.cancelled() else run.exception()
            log.critical("a worker could not go on", exc_info=self.error)
        else:
            self.handed_back &= run.result()
        if not self._runs:
            self._all_ended.set()

    # -- in a thread ------------------------------------------------------------------------------------------------

    def start_thread(self, debug: bool) -> None:
        """Run in a thread of its own until :meth:`stop`, or until the main thread ends."""
        self._thread = threading.Thread(target=self._run, args=(debug,), name="taskworker-loop")
        # Not a daemon: the interpreter waits for it, so that it can drain; the watcher tells it when to.
        self._thread.daemon = False
        self._thread.start()
        threading.Thread(target=self._watch_main_thread, name="taskworker-watch", daemon=True).start()

    def _watch_main_thread(self) -> None:
        threading.main_thread().join()
        self.stop(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the loop's thread. Returns at once on that thread itself."""
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # -- in the main thread -----------------------------------------------------------------------------------------

    def run_here(self, debug: bool) -> None:
        """Run in this thread, the main one, until SIGTERM or SIGINT. A second signal ends at once."""
        for number in _SIGNALS:
            self.loop.add_signal_handler(number, self._on_signal, number)
        self._thread = threading.current_thread()
        self._run(debug)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping:
            log.warning("%s again: running jobs go back to their queues now", number.name)
            self._stop(0.0)
        else:
            log.info("%s: no more claims; waiting for running jobs", number.name)
            self._stop(None)

    # -- both -------------------------------------------------------------------------------------------------------

    def stop(self, timeout: float | None) -> None:
        """Stop all workers; see :meth:`Worker.stop`. Safe from any thread."""
        try:
            self.loop.call_soon_threadsafe(self._stop, timeout)
        except RuntimeError:
            log.debug("the loop has ended already")

    def _stop(self, timeout: float | None) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.stop(timeout)
        if not self._runs:
            self._all_ended.set()

    def _run(self, debug: bool) -> None:
        logs.install()
        self.loop.set_debug(debug)
        asyncio.set_event_loop(self.loop)
        main = self.loop.create_task(self._until_ended())
        try:
            while not main.done():
                self._run_on(main)
            self.loop.run_until_complete(self._end_stray_tasks())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _until_ended(self) -> None:
        await self._all_ended.wait()

    def _run_on(self, main: asyncio.Task[None]) -> None:
        try:
            self.loop.run_until_complete(main)
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio lets these two out of the loop. Where a job raises them the executor has them; here it is a
            # coroutine that a job started beside itself, and the other jobs must not suffer for it.
            log.critical("a coroutine that a job started has raised %r; the worker goes on", error, exc_info=error)

    async def _end_stray_tasks(self) -> None:
        strays = asyncio.all_tasks() - {asyncio.current_task()}
        for stray in strays:
            log.warning("a job left this coroutine behind, it is cancelled: %r", stray)
            stray.cancel()
        if strays:
            await asyncio.wait(strays, timeout=_LAST_TASKS)
        await self.loop.shutdown_asyncgens()
