"""A worker beside a test, for what only shows when jobs run at the same time as the application, or elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, NoReturn, Self

from flask import Flask

from ..client.threads import end_process
from ..core.clock import as_seconds
from ..core.loggers import Logger, get_logger
from ..errors import AppError, NotSupported, TaskWorkerError
from ..worker.runner import Runner
from .drive import Bench, live_processes

if TYPE_CHECKING:
    from ..state import AppState

log: Logger = get_logger("testing")

STARTS_WITHIN = 30.0
"""Seconds."""
_POLL = 0.005


class LiveWorker:
    """A worker of *app*, from ``with LiveWorker(app) as worker`` on until the end of the block.

    ``process``: whether it runs in a process of its own, forked off this one: it knows the app as it is now, and what
    jobs change in memory is not seen here. False takes a thread. Defaults to True on Linux and False elsewhere.

    Wait for its jobs with ``job.result(timeout=…)``.
    """

    def __init__(self, app: Flask, *, process: bool | None = None) -> None:
        if process and not hasattr(os, "fork"):
            raise NotSupported("This system cannot fork a process. Use LiveWorker(app, process=False).")
        self._bench = Bench.of(app)
        self._state = self._bench.state
        self._id = ""
        self._in_process = sys.platform == "linux" if process is None else process
        self._runner: Runner | None = None
        self._lifeline: int | None = None
        self.pid: int | None = None
        """The number of its process; None for a thread, and after its end."""

    def __enter__(self) -> Self:
        if self._state.worker is not None and self._state.client.on_news is not None:
            raise TaskWorkerError(f"A worker of the app {self._state.import_name!r} runs in this process already.")
        if self._state.store.driver is not self._bench.driver:
            raise TaskWorkerError(
                "A live worker has connections of its own, which do not see what a session has not committed. Use "
                "jobs.drain(), or Jobs(app) without session=…."
            )
        known = self._known()
        if self._in_process:
            self._fork()
        else:
            self._start_thread()
        self._await(known)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self, timeout: float | None = None) -> None:
        """Let its jobs end, for *timeout* seconds (default: ``TASKER_SHUTDOWN_TIMEOUT``); then it hands them back."""
        if self._runner is not None:
            self._runner.stop(as_seconds(timeout))
            self._runner.join()
            self._runner = None
        if self.pid is not None:
            self._end_process(signal.SIGTERM)

    def kill(self) -> None:
        """Let its process die at once, as by a power cut. :meth:`Jobs.recover` has its jobs rescued."""
        if self.pid is None:
            raise RuntimeError("No process to kill: it has ended, or the worker is a thread.")
        self._end_process(signal.SIGKILL)
        self._bench.dead.append(self._id)

    def _known(self) -> set[str]:
        self._state.store.driver.prepare()
        return {worker.id for worker in self._state.store.workers()}

    def _await(self, known: set[str]) -> None:
        deadline = time.monotonic() + STARTS_WITHIN
        while not (new := self._known() - known):
            if self._has_ended() or time.monotonic() > deadline:
                self.stop(0.0)
                raise TaskWorkerError("The worker did not start; the log says why.")
            time.sleep(_POLL)
        self._id = new.pop()

    def _has_ended(self) -> bool:
        if self._runner is not None:
            return not self._runner.alive
        if self.pid is None or os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            return self.pid is None
        self.pid = None
        return True

    # -- in a thread ------------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        self._runner = Runner()
        self._runner.serve(self._state.make_worker(self._runner.loop, may_abandon_threads=True))
        self._runner.start_thread(debug=False)

    # -- in a process -----------------------------------------------------------------------------------------------

    def _fork(self) -> None:
        # The child reads from it until its parent is gone, however that ends.
        reader, self._lifeline = os.pipe()
        with warnings.catch_warnings():
            # Other threads may run: the package starts afresh in a child.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            os.close(self._lifeline)
            _serve(self._state, reader)
        os.close(reader)
        self.pid = pid
        live_processes.add(pid)

    def _end_process(self, number: signal.Signals) -> None:
        pid, self.pid = self.pid, None
        assert pid is not None
        os.kill(pid, number)
        os.waitpid(pid, 0)
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def _serve(state: AppState, lifeline: int) -> NoReturn:
    """In the child: work until SIGTERM, or until the parent is gone. What the parent would do next is not ours."""
    try:
        if state.find_app() is None:
            raise AppError
        threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
        runner = Runner()
        runner.serve(state.make_worker(runner.loop, may_abandon_threads=True))
        runner.run_here(debug=False)
    except BaseException:
        log.exception("the live worker has ended")
        end_process(1)
    end_process(0)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    end_process(1)
