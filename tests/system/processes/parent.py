"""Real processes: each runs a small module that the test writes, and is ended by its id."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flask_taskworker import BlockingTaskWorker
from tests.system.processes import lab as parts

HERE = Path(__file__).parent
SOURCES = Path(__file__).parents[3] / "src"

BACKGROUND = """
from lab import *
from flask_taskworker import BackgroundTaskWorker, BlockingTaskWorker, Cron, Every, current_job
from flask_taskworker.worker.timing import Timing

task_worker = BackgroundTaskWorker()
tasks = Tasks(task_worker)
app = make_app(task_worker)
"""
BLOCKING = BACKGROUND.replace("= BackgroundTaskWorker", "= BlockingTaskWorker")


class Child:
    """A process that the test started, in a group of its own."""

    def __init__(self, argv: Sequence[str], folder: Path, environment: dict[str, str], number: int) -> None:
        self._log = folder / f"process-{number}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """A signal for this process alone."""
        os.kill(self.pid, number)

    def wait(self, patience: float = parts.PATIENCE) -> int:
        """Its exit code. Fails with its output when it does not end."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            pytest.fail(f"process {self.pid} did not end within {patience:g} s; it said:\n{self.output}")

    def went_well(self) -> None:
        """It ends by itself, with exit code 0 and without a word."""
        code, said = self.wait(), self.output
        assert not code, said
        assert not said, said

    def end(self) -> None:
        """Kill it and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(parts.PATIENCE)


class Lab:
    """One folder, one task database, any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task_worker = BlockingTaskWorker()
        self.tasks = parts.Tasks(self.task_worker)
        self.app = parts.make_app(self.task_worker, folder)
        self._children: list[Child] = []

    @property
    def database(self) -> Path:
        return self.folder / "taskworker.db"

    def write(self, name: str, *sources: str) -> Path:
        """A module in the folder: the sources one after the other."""
        path = self.folder / f"{name}.py"
        path.write_text("\n".join(textwrap.dedent(source) for source in sources))
        return path

    def start(self, *argv: str, **environment: str) -> Child:
        """Start a program; "python" is the interpreter of the tests."""
        program = sys.executable if argv[0] == "python" else str(Path(sys.executable).parent / argv[0])
        foreign = ("FLASK", "PYTEST", "WERKZEUG", "GUNICORN")
        variables = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        variables |= {
            "LAB": str(self.folder),
            "PYTHONPATH": os.pathsep.join(map(str, (SOURCES, HERE, self.folder))),
            "PYTHONUNBUFFERED": "1",
            # Python 3.12 and newer warn of every fork of a process that has threads.
            "PYTHONWARNINGS": "ignore:This process:DeprecationWarning",
            **environment,
        }
        child = Child([program, *argv[1:]], self.folder, variables, len(self._children))
        self._children.append(child)
        return child

    def run(self, *argv: str, **environment: str) -> Child:
        """Start a program and wait for its end."""
        child = self.start(*argv, **environment)
        child.wait()
        return child

    def strict(self, path: Path, **environment: str) -> Child:
        """Run a module in Python's development mode with every ResourceWarning an error."""
        return self.start("python", "-X", "dev", "-W", "error::ResourceWarning", str(path), **environment)

    def signal(self, pid: int, number: signal.Signals) -> None:
        """A signal for one process of ours: a child's child that has left evidence."""
        os.kill(pid, number)

    def open_gate(self, name: str) -> None:
        """Let the jobs behind that gate end."""
        (self.folder / f"gate-{name}").touch()

    def evidence(self, what: str | None = None) -> list[dict[str, Any]]:
        """What the processes have recorded so far."""
        return parts.evidence(self.folder, what)

    def await_evidence(self, what: str, number: int = 1) -> list[dict[str, Any]]:
        """Wait until at least *number* lines say *what*."""
        self.await_state(lambda: len(self.evidence(what)) >= number)
        return self.evidence(what)

    def await_state(self, condition: Callable[[], Any]) -> None:
        """Wait until *condition* holds. Fails with what the processes have said, at once when one of them failed."""
        try:
            parts.until(lambda: condition() or self._failed())
        except TimeoutError:
            pytest.fail(f"it never held. {self._account()}")
        if not condition():
            pytest.fail(f"a process failed. {self._account()}")

    def _failed(self) -> bool:
        return any((child.process.poll() or 0) > 0 for child in self._children)

    def _account(self) -> str:
        said = "\n".join(
            f"--- {child.pid}, exit code {child.process.poll()}:\n{child.output}" for child in self._children
        )
        return f"Evidence: {self.evidence()}; the processes said:\n{said}"

    def workers(self) -> list[Any]:
        """The rows of the workers that count as living."""
        return [row for row in self.app.extensions["taskworker"].store.workers() if row.state in ("alive", "draining")]

    def await_workers(self, number: int) -> list[Any]:
        """Wait until exactly *number* workers live."""
        return parts.until(lambda: len(found := self.workers()) == number and (found or [None]), f"{number} workers")

    def row(self, job: Any) -> Any:
        """The job's row."""
        return self.app.extensions["taskworker"].store.record(job.id)

    def close(self) -> None:
        for child in self._children:
            child.end()
        self.app.extensions["taskworker"].client.close()


def free_port() -> int:
    """A port without a listener. It is below those that the system hands out, so that no process
    has it by chance before the program for which it is meant."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def get(port: int, path: str = "/") -> str:
    """The body of a page, as soon as the server answers."""

    def answer() -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=parts.PATIENCE) as response:
                return str(response.read().decode())
        except (ConnectionError, urllib.error.URLError) as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            return None

    found: str = parts.until(answer, f"an answer on port {port}")
    return found
