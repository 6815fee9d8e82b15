"""What runs beside a worker whose jobs have processes of their own: the job server, and in its forks the jobs.

The server never runs a job, so that it stays as small and as sound as the app was when it was loaded. It ends when its
worker does, and takes the processes of the jobs with it. A job's process is the leader of a group: what the job has
started, ends with it.
"""

from __future__ import annotations

import ctypes
import gc
import logging.handlers
import os
import pickle
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from flask import Flask
from flask.cli import NoAppException, ScriptInfo

from ..client.threads import flush_output
from ..core.current_job import RunningJob
from ..core.rows import OutcomeKind, ProgressReport
from .executor import Executor
from .isolation import COMMAND, KILL, START, STOPPING, End, JobEnded, JobNews, JobOrder, ServerOrder, framed, receive
from .job_log import install as install_job_log

_LOOK = 1.0
"""Seconds between two looks whether the worker lives. Its socket says so, too, unless a fork of the worker has it."""
_NEWS_PAUSE = 0.2
"""Seconds between two messages about progress and log lines."""
_EASY_TO_KILL = "500"
"""Where memory runs out, the kernel should take a job, not its worker."""
_PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> NoReturn:
    """Load the app, and serve the worker at the other end of this socket until it is gone."""
    # systemd signals all processes of a service. The worker decides what ends, and when.
    signal.signal(signal.SIGTERM, _ignore)
    worker = os.getppid()
    control = socket.socket(fileno=descriptor)
    order: ServerOrder = receive(control.makefile("rb"))
    try:
        app = load_app(order)
    except BaseException as error:  # noqa: BLE001 - SystemExit, too: the worker must hear of it
        if not isinstance(error, NoAppException):
            traceback.print_exception(error)
        control.sendall(framed("".join(traceback.format_exception_only(error)).strip()))
        flush_output()
        os._exit(1)
    engine: Any = getattr(sys.modules.get("sqlalchemy.engine"), "Engine", None)
    for one in gc.get_objects() if engine is not None else ():
        if issubclass(type(one), engine):
            # Two processes must not share the connections that the app has opened while it was loaded.
            one.dispose()
    gc.collect()
    gc.freeze()
    control.sendall(framed(None))
    ForkServer(app, control, worker).serve()


def load_app(order: ServerOrder) -> Flask:
    """The app, as ``flask --app`` loads it. ``start()`` does nothing meanwhile."""
    for path in order.paths:
        try:
            app = ScriptInfo(app_import_path=path, set_debug_flag=False).load_app()
            break
        except NoAppException:
            if path == order.paths[-1]:
                raise
    app.debug = order.debug
    state: Any = app.extensions.get("taskworker")
    if state is None:
        raise RuntimeError(f"The app {app.import_name!r} has no TaskWorker.")
    if state.store.driver.key != order.key:
        raise RuntimeError(
            f"Loaded again, the app {app.import_name!r} has its jobs in {state.store.driver.key}, not in {order.key}."
        )
    return app


def _ignore(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN: a new program would inherit that."""


class ForkServer:
    """Forks processes for jobs, ends them, and says how they have ended."""

    def __init__(self, app: Flask, control: socket.socket, worker: int) -> None:
        self._app = app
        self._control = control
        self._worker = worker
        self._running: dict[int, int] = {}
        """The numbers of processes by their pids."""
        self._libc = ctypes.CDLL(None)

    def serve(self) -> NoReturn:
        """Serve the worker until it is gone."""
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        commands, files = b"", deque[int]()
        try:
            while os.getppid() == self._worker:
                ready, _, _ = select.select([self._control.fileno(), woken], [], [], _LOOK)
                if woken in ready:
                    os.read(woken, 4096)
                if self._control.fileno() in ready:
                    data, descriptors, _, _ = socket.recv_fds(self._control, 4096, 64)
                    if not data:
                        break
                    commands += data
                    files += descriptors
                while len(commands) >= COMMAND.size:
                    what, number = COMMAND.unpack(commands[: COMMAND.size])
                    commands = commands[COMMAND.size :]
                    if what == START:
                        self._start(number, socket.socket(fileno=files.popleft()))
                    elif what == KILL:
                        for pid in [pid for pid, one in self._running.items() if one == number]:
                            self._end_group(pid)
                self._reap()
        except OSError:
            # The worker is gone.
            pass
        finally:
            for pid in self._running:
                self._end_group(pid)
            os._exit(0)

    def _start(self, number: int, link: socket.socket) -> None:
        with warnings.catch_warnings(), link:
            # The app may have started threads: it is as under gunicorn --preload.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                pid = os.fork()
            except OSError as error:
                self._control.sendall(framed((number, f"could not be started ({error})")))
                return
            if pid == 0:
                self._become_job(link)
        self._running[pid] = number
        # It does so, too; but it may be killed at once.
        with suppress(OSError):
            os.setpgid(pid, pid)

    def _become_job(self, link: socket.socket) -> NoReturn:
        try:
            os.setpgid(0, 0)
            server = os.getppid()
            if sys.platform == "linux":
                self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                with suppress(OSError):
                    Path("/proc/self/oom_score_adj").write_text(_EASY_TO_KILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            if os.getppid() == server:
                JobProcess(self._app, link).run()
        except BaseException:  # noqa: BLE001 - nothing of this process may reach the server's loop
            traceback.print_exc()
        finally:
            os._exit(1)

    def _end_group(self, pid: int) -> None:
        """End a job, and what it has started."""
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        # Not -1: the app may have processes of its own.
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._end_group(pid)
                self._control.sendall(framed((self._running.pop(pid), status)))


class JobProcess:
    """The process of one job."""

    def __init__(self, app: Flask, link: socket.socket) -> None:
        self._app = app
        self._link = link
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._report: ProgressReport | None = None
        self._is_ending = False
        """The worker wants it to end."""
        self._is_done = False

    def run(self) -> NoReturn:
        """Run the job, report its outcome, and end."""
        state: Any = self._app.extensions["taskworker"]
        commands = self._link.makefile("rb")
        order: JobOrder = receive(commands)
        client = state.client
        job = RunningJob(order.claim, self._note, client.batches, client.steps)
        job.stopping, job.log_level = order.stopping, order.log_level
        job.worker_id, job.trace = order.worker_id, order.trace
        job.on_line, job.on_wait = self._note, lambda _, change: self._send(change)
        install_job_log()
        if not logging.root.handlers:
            # The application has set up nothing: what the worker does with its own lines is done with these.
            logging.root.addHandler(_Forwarding(self._send))
            logging.root.setLevel(order.root_level)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        for target, args in ((self._listen, (job, commands)), (self._tell, (job,))):
            threading.Thread(target=target, args=args, name="taskworker-link", daemon=True).start()
        executor = Executor(
            lambda: self._app,
            state.registry,
            threads=1,
            clock=client.store.clock,
            run_atomically=client.run_atomically,
        )
        outcome = executor.perform(self._app, job)
        self._is_done = True
        # A failure of a job that had to end is that end.
        if not self._is_ending or outcome.ending not in (OutcomeKind.FAILED, OutcomeKind.RETRYING):
            job.ended = True
            self._send_news(job)
            exception = None
            with suppress(Exception):  # its class is foreign code
                exception = pickle.dumps(outcome.exception)
            self._send(JobEnded(replace(outcome, exception=None), exception))
        flush_output()
        os._exit(0)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending and not self._is_done:
            # So that finally and with blocks run, and processes end that subprocess.run() waits for.
            raise SystemExit(128 + number)

    def _listen(self, job: RunningJob, commands: Any) -> None:
        with suppress(EOFError, OSError):
            while True:
                match receive(commands):
                    case End(cancelled):
                        job.cancelled |= cancelled
                        self._is_ending = True
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                    case command if command == STOPPING:
                        job.stopping = True
        if not self._is_done:
            # The worker is gone.
            os.killpg(0, signal.SIGKILL)

    # -- what the worker hears --------------------------------------------------------------------------------------

    def _note(self, job: RunningJob, report: ProgressReport | None = None) -> None:
        """From any thread."""
        if report is not None:
            self._report = report
        self._news.set()

    def _tell(self, job: RunningJob) -> None:
        while True:
            self._news.wait()
            if self._is_done:
                return
            self._send_news(job)
            time.sleep(_NEWS_PAUSE)

    def _send_news(self, job: RunningJob) -> None:
        if self._news.is_set():
            # Before the look: what comes from now on is sent again.
            self._news.clear()
            report, self._report = self._report, None
            self._send(JobNews(report, tuple(job.lines or ())))

    def _send(self, message: object) -> None:
        with self._lock, suppress(OSError):
            self._link.sendall(framed(message))


class _Forwarding(logging.handlers.QueueHandler):
    """Sends records to the worker."""

    def __init__(self, send: Callable[[object], None]) -> None:
        super().__init__(queue.SimpleQueue())
        self.enqueue = send  # type: ignore[method-assign, assignment]
