"""Jobs in processes of their own, as the worker sees them. What those processes do is in ``job_server``.

A job server is a process that has loaded the app and runs no jobs. It forks a process for each job, which takes
milliseconds, kills those that the worker wants to end, and says how each has ended. Each has a socket to the worker.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.spawn import get_executable
from typing import IO, Any, NamedTuple

from flask import Flask

from ..core.current_job import RunningJob
from ..core.hints import importable_name
from ..core.loggers import Logger, get_logger
from ..core.rows import Claim, Outcome, ProgressReport
from ..errors import AppError, ProcessDied
from .job_log import MAX_LINES
from .thread_bridge import OwnTask

log: Logger = get_logger("jobs")

COMMAND = struct.Struct("!cI")
"""What a worker sends to its job server: what to do, and the number of the process."""
START, KILL = b"s", b"k"
_SIZE = struct.Struct("!I")
_LONGEST_LOAD = 60.0
"""Seconds in which the app must load."""
_SERVER = "import sys; sys.path[:] = {!r}; from flask_taskworker.worker.job_server import main; main({})"


class ServerOrder(NamedTuple):
    """What a job server is to load."""

    paths: list[str]
    """What ``flask --app`` takes. The first that leads to an app counts."""
    key: str
    """The database that the app must use."""
    debug: bool


class JobOrder(NamedTuple):
    """What a process is to run."""

    claim: Claim
    stopping: bool
    log_level: float
    root_level: int
    """The level of the worker's root logger."""
    worker_id: str | None
    trace: tuple[str, str] | None


class JobNews(NamedTuple):
    """What a job has to say while it runs."""

    report: ProgressReport | None
    lines: tuple[tuple[int, str, str, str], ...]


class JobEnded(NamedTuple):
    """The last words of a job's process."""

    outcome: Outcome
    exception: bytes | None
    """The pickled exception, without its traceback."""


class End(NamedTuple):
    """The job is to end now."""

    cancelled: bool


STOPPING = "stopping"
"""The worker was asked to stop."""


def framed(message: object) -> bytes:
    """A message as it is sent."""
    data = pickle.dumps(message)
    return _SIZE.pack(len(data)) + data


def receive(file: IO[bytes]) -> Any:
    """The next message. Raises EOFError at the end of the stream."""
    head = file.read(_SIZE.size)
    if len(head) < _SIZE.size:
        raise EOFError
    return pickle.loads(file.read(_SIZE.unpack(head)[0]))


async def _areceive(reader: asyncio.StreamReader) -> Any:
    """As :func:`receive`. Raises IncompleteReadError or OSError at the end of the stream."""
    (size,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
    return pickle.loads(await reader.readexactly(size))


class JobServer:
    """The job server of one worker, which starts with the first job. For its event loop only, but for :meth:`kill`."""

    def __init__(self, find_app: Callable[[], Flask | None], path: str | None, key: str, grace: float) -> None:
        """*path*: where the app is, if that was said. *grace*: the seconds in which a job may end by itself."""
        self._find_app = find_app
        self._path = path
        self._key = key
        self._grace = grace
        self._numbers = itertools.count(1)
        self._statuses: dict[int, asyncio.Future[int | str]] = {}
        """How each process ends: as of os.waitpid, or in words."""
        self._starting: OwnTask[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def run(self, job: RunningJob) -> Outcome:
        """Run one job in a process of its own, which ends when this is cancelled.

        Raises AppError where the app cannot be loaded, ProcessDied, TimeoutError.
        """
        await self.start()
        ours, theirs = socket.socketpair()
        number = next(self._numbers)
        status = self._statuses[number] = asyncio.get_running_loop().create_future()
        with theirs:
            self._command(START, number, theirs)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        order = JobOrder(
            job.claim, job.stopping, job.log_level, logging.root.getEffectiveLevel(), job.worker_id, job.trace
        )
        writer.write(framed(order))
        job.on_stopping = lambda: writer.write(framed(STOPPING))
        hearing = OwnTask(self._hear(job, reader, status), loop=asyncio.get_running_loop(), name="taskworker-process")
        try:
            return await self._wait(job, number, hearing, writer)
        finally:
            job.on_stopping = None
            writer.close()
            # It has said all there is. What it still does, for example write into a full pipe, must not take long.
            asyncio.get_running_loop().call_later(self._grace, self._end, number)
            hearing.add_done_callback(lambda done: done.exception())

    async def _wait(
        self, job: RunningJob, number: int, hearing: asyncio.Task[Outcome], writer: asyncio.StreamWriter
    ) -> Outcome:
        limit = None if job.claim.timeout is None else job.claim.timeout / 1000
        error: BaseException
        try:
            done, _ = await asyncio.wait({hearing}, timeout=limit)
            if done:
                return hearing.result()
            error = TimeoutError(f"The task did not end within {limit:g} s.")
        except asyncio.CancelledError as cancelled:
            error = cancelled
        writer.write(framed(End(job.cancelled)))
        await asyncio.wait({hearing}, timeout=self._grace)
        self._end(number)
        # What it has come to meanwhile counts: an atomic task may have committed.
        await asyncio.wait({hearing})
        if hearing.exception() is None:
            return hearing.result()
        raise error

    async def _hear(self, job: RunningJob, reader: asyncio.StreamReader, status: asyncio.Future[int | str]) -> Outcome:
        """Pass on what the process says, to its last words. Raises ProcessDied where it ends without them."""
        waits = 0
        try:
            while True:
                match await _areceive(reader):
                    case JobNews(report, lines):
                        if report is not None:
                            job.reported = report
                            job.on_report(job, report)
                        if lines and job.on_line is not None:
                            job.lines = deque(lines, maxlen=MAX_LINES)
                            job.on_line(job)
                    case logging.LogRecord() as record:
                        logging.getLogger(record.name).handle(record)
                    case int(change) if job.on_wait is not None:
                        waits += change
                        job.on_wait(job, change)
                    case JobEnded(outcome, exception):
                        return replace(outcome, exception=_unpickled(exception))
        except (asyncio.IncompleteReadError, OSError):
            raise ProcessDied(_words(await status)) from None
        finally:
            if waits and job.on_wait is not None:
                job.on_wait(job, -waits)

    # -- the server -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Have the server running. Raises AppError where the app cannot be loaded."""
        if self._starting is None:
            self._starting = OwnTask(self._start(), loop=asyncio.get_running_loop(), name="taskworker-job-server")
        starting = self._starting
        try:
            await asyncio.shield(starting)
        except AppError:
            # The next job tries again.
            if self._starting is starting:
                self._starting = None
            raise

    async def _start(self) -> None:
        app = self._find_app()
        if app is None:
            raise AppError("The app is gone.")
        paths = [self._path] if self._path else await asyncio.to_thread(paths_of, app)
        if not paths:
            raise AppError(_remedy("no module has it in a variable, nor a factory without arguments"))
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.to_thread(
                subprocess.Popen,
                [get_executable(), "-c", _SERVER.format(sys.path, theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # app.run() of a script does nothing then, as under the flask command.
                env={**os.environ, "FLASK_RUN_FROM_CLI": "true"},
                # Ctrl+C is for the worker, which lets jobs end.
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=self._control)
        writer.write(framed(ServerOrder(paths, self._key, app.debug)))
        try:
            async with asyncio.timeout(_LONGEST_LOAD):
                problem = await _areceive(reader)
        except TimeoutError:
            problem = f"it did not load within {_LONGEST_LOAD:g} s"
        except (asyncio.IncompleteReadError, OSError):
            problem = "its process ended while it loaded"
        if problem is not None:
            writer.close()
            self.kill()
            raise AppError(_remedy(f"{paths[0]}: {problem}"))
        self._listening = OwnTask(
            self._listen(reader, writer), loop=asyncio.get_running_loop(), name="taskworker-job-server"
        )

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear how processes end, until the server itself does; the next job starts another then."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                number, status = await _areceive(reader)
                self._note(number, status)
        writer.close()
        self._starting = None
        for number in list(self._statuses):
            self._note(number, "was killed, or lost the process that had started it")
        self.kill()

    def _note(self, number: int, status: int | str) -> None:
        future = self._statuses.pop(number, None)
        if future is not None and not future.done():
            future.set_result(status)

    def _command(self, what: bytes, number: int, *files: socket.socket) -> None:
        assert self._control is not None
        try:
            socket.send_fds(self._control, [COMMAND.pack(what, number)], [file.fileno() for file in files])
        except OSError as error:
            self._note(number, str(error))
            raise AppError(f"The process that starts isolated jobs does not answer: {error}") from error

    def _end(self, number: int) -> None:
        if number in self._statuses:
            with suppress(AppError):
                self._command(KILL, number)

    def kill(self) -> None:
        """End the server and all that it has started. Safe from any thread."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def paths_of(app: Flask) -> list[str]:
    """Where another process may find the app: in variables of modules that hold it, and by the factory of its own."""
    found = []
    for name, module in sys.modules.copy().items():
        for variable, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
            if value is app:
                found.append(f"{importable_name(name)}:{variable}")
    home = sys.modules.get(app.import_name)
    # Where the variable is set only in the script itself, below if __name__ == "__main__".
    factories = [name for name in ("create_app", "make_app") if callable(getattr(home, name, None))]
    return found + [f"{importable_name(app.import_name)}:{name}" for name in factories]


def _remedy(problem: str) -> str:
    return (
        "Tasks with isolate=True run in processes of their own, which must load the app, and they cannot: "
        f"{problem.rstrip('.')}. Set TASKER_APP to what flask --app takes, such as 'shop:create_app()'."
    )


def _unpickled(exception: bytes | None) -> BaseException | None:
    try:
        found = pickle.loads(exception) if exception is not None else None
    except Exception as error:  # noqa: BLE001 - the class of the exception is foreign code
        log.debug("an exception could not be passed on: %r", error)
        return None
    return found if isinstance(found, BaseException) else None


def _words(status: int | str) -> str:
    why = ""
    if isinstance(status, str):
        how = status
    elif os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        how = f"was killed by {signal.Signals(number).name}"
        why = " The system does that when memory runs out." if number == signal.SIGKILL else ""
    else:
        how = f"ended with exit code {os.waitstatus_to_exitcode(status)}"
    return f"The process of the job {how} before its function returned.{why}"
