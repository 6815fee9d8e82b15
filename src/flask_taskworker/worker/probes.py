"""Probes: how a worker's process tells those who watch over it whether it works.

*Live*: its event loops turn. Nothing else counts: a database that is away must not make anybody restart workers, since
a new process would not find it either. *Ready*: its workers claim jobs, and the database answers.

Reported by HTTP (``/livez`` and ``/readyz``), by a file that is rewritten each second, and to systemd.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Protocol, Self

from ..core.loggers import Logger, get_logger
from .worker import Worker

log: Logger = get_logger("worker")

TICK = 1.0
"""Seconds from look to look."""

STILL_MS = 30_000
"""An event loop that has not turned for this time will not turn again."""

STALE = 15.0
"""Seconds: the file of a process that is older tells that it stands still."""


def words_of(not_live: str | None, not_ready: str | None) -> str:
    """What a health file says: a line on each, "ok" or what is wrong."""
    return f"live: {not_live or 'ok'}\nready: {not_ready or 'ok'}\n"


def read_health(path: Path, max_age: float, *, needs_ready: bool) -> str | None:
    """What is wrong with the process that writes the file; None where all is well."""
    try:
        age = time.time() - path.stat().st_mtime
        answers = dict(line.split(": ", 1) for line in path.read_text(errors="replace").splitlines() if ": " in line)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if age > max_age:
        return f"{path} was written {age:.0f} s ago: the worker hangs or has ended"
    for name in ("live", "ready") if needs_ready else ("live",):
        if answers.get(name) != "ok":
            return f"not {name}: {answers.get(name, 'the file does not say')}"
    return None


class Health(Protocol):
    """What can be asked about a process. Each answer is None where all is well, else what is wrong."""

    def not_live(self) -> str | None:
        """Why a new process should take its place."""

    def not_ready(self) -> str | None:
        """Why it takes no jobs."""

    def is_stopping(self) -> bool:
        """Whether it is about to end."""


class WorkersHealth:
    """The health of the workers in this process."""

    def __init__(self, workers: Callable[[], list[Worker]]) -> None:
        self._workers = workers

    def not_live(self) -> str | None:
        """Before they start there is nothing wrong yet."""
        for worker in self._workers():
            lag = worker.lag_ms()
            if lag is not None and lag > STILL_MS:
                return f"the event loop has not turned for {lag / 1000:.0f} s"
        return None

    def not_ready(self) -> str | None:
        """All must claim."""
        workers = self._workers()
        if not workers:
            return "no worker has started"
        if self.is_stopping():
            return "it stops"
        if any(worker.is_quiet for worker in workers):
            return "a worker was asked to be quiet"
        return None if all(worker.is_claiming for worker in workers) else "a worker does not reach the database"

    def is_stopping(self) -> bool:
        """Whether any has to stop: then all have to."""
        return any(worker.is_stopping for worker in self._workers())


class FilesHealth:
    """The health of several processes, by the files that they write."""

    def __init__(self, paths: Callable[[], Sequence[Path]], is_stopping: Callable[[], bool]) -> None:
        """*paths*: the files of those processes that should have written theirs by now."""
        self._paths = paths
        self.is_stopping = is_stopping

    def not_live(self) -> str | None:
        """One that stands still is enough: nothing else restarts it."""
        answers = (read_health(path, STALE, needs_ready=False) for path in self._paths())
        return next((answer for answer in answers if answer is not None), None)

    def not_ready(self) -> str | None:
        """One that takes jobs is enough."""
        if self.is_stopping():
            return "it stops"
        answers = [read_health(path, STALE, needs_ready=True) for path in self._paths()]
        return None if None in answers else next(iter(answers), "no worker has started")


class Probes:
    """Answers and tells, in threads of its own, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        health: Health,
        *,
        address: tuple[str, int] | None = None,
        file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """*address*: where to answer HTTP. *environment*: where systemd says how to reach it.

        Raises OSError where *address* cannot be listened on.
        """
        self._health = health
        self._file = file
        self._systemd = Systemd(environment or {})
        self._server = None if address is None else _Server(address, health)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="taskworker-probes", daemon=True)

    @property
    def port(self) -> int | None:
        """Where HTTP is answered."""
        return None if self._server is None else int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin."""
        if self._server is not None:
            threading.Thread(target=self._server.serve_forever, name="taskworker-http", daemon=True).start()
            log.info("health is served at http://%s:%s/livez and /readyz", *self._server.server_address[:2])
        self._thread.start()

    def stop(self) -> None:
        """End, and take the file away."""
        self._stopping.set()
        self._thread.join()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _work(self) -> None:
        while True:
            not_live, not_ready = self._health.not_live(), self._health.not_ready()
            if self._file is not None:
                self._write(self._file, words_of(not_live, not_ready))
            self._systemd.tell(live=not_live is None, ready=not_ready is None, stopping=self._health.is_stopping())
            if self._stopping.wait(min(TICK, self._systemd.interval)):
                return

    def _write(self, file: Path, words: str) -> None:
        """A reader sees the old or the new content, never a half."""
        new = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            new.write_text(words)
            new.replace(file)
        except OSError as error:
            log.warning("the health file cannot be written: %s", error)
            with suppress(OSError):
                new.unlink()


# -- HTTP --------------------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], health: Health) -> None:
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """As HTTPServer does, but without the look-up of the machine's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "taskworker"
    sys_version = ""
    timeout = 5.0
    """Seconds that a client has to say what it wants."""

    def do_GET(self) -> None:
        """Answer."""
        health = self.server.health
        answers = {"/livez": health.not_live, "/readyz": health.not_ready}
        ask = answers.get(self.path.partition("?")[0])
        if ask is None:
            self._answer(HTTPStatus.NOT_FOUND, "there are /livez and /readyz")
        elif (problem := ask()) is not None:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, problem)
        else:
            self._answer(HTTPStatus.OK, "ok")

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, words: str) -> None:
        body = f"{words}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A probe asks every few seconds."""


# -- systemd -----------------------------------------------------------------------------------------------------------


class Systemd:
    """Notify systemd over its datagram socket (sd_notify(3)). Does nothing unless systemd started this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        # The watchdog may be meant for another process of the service.
        is_watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "")
        self.interval: float = (
            int(usec) / 3e6 if self._address and is_watched and usec.isdecimal() and int(usec) else float("inf")
        )
        """Seconds: so often it wants to hear that this process lives."""
        self._is_ready = False
        self._is_stopping = False

    def tell(self, *, live: bool, ready: bool, stopping: bool) -> None:
        """Say what is new, and that this process lives."""
        if not self._address:
            return
        words = []
        if ready and not self._is_ready:
            self._is_ready = True
            words.append("READY=1")
        if stopping and not self._is_stopping:
            self._is_stopping = True
            words.append("STOPPING=1")
        if live and self.interval < float("inf"):
            words.append("WATCHDOG=1")
        if words:
            self._send("\n".join(words))

    def _send(self, words: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as outlet:
                outlet.sendto(words.encode(), self._address)
        except OSError as error:
            log.debug("systemd could not be told: %s", error)
