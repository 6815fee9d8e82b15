"""Worker processes that can be killed by the dozen, and what must hold afterwards.

They are forked from a server process that has imported everything, so that a new one is there in a moment.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.support.postgres import PostgresServer, a_schema
from tests.system.chaos.worker import Line, Place, Shop, evidence, prepare, serve

T = TypeVar("T")
PATIENCE = 60.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.system.chaos.worker"])


def until(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Wait until *condition* gives something true, and return it. Raises TimeoutError."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience:g} s: {what}")
        time.sleep(0.005)
    return found


class Fleet:
    """The processes of one place, and the shop of this process, which only enqueues and looks."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.shop = Shop(place)
        self.children: list[Any] = []
        self._numbers = itertools.count()
        self.noise: tuple[str, ...] = ("",)
        """Tasks whose jobs leave no evidence: they are not waited for, and not judged."""

    # -- processes --------------------------------------------------------------------------------------------------

    def start(self, number: int = 1, target: Callable[..., None] = serve, *args: Any) -> list[Any]:
        """Start worker processes."""
        made = []
        for _ in range(number):
            log = str(Path(self.place.folder, f"log-{next(self._numbers)}"))
            child = _context.Process(target=target, args=(self.place, log, *args), daemon=True)
            child.start()
            made.append(child)
        self.children += made
        return made

    def barrier(self, parties: int) -> Any:
        """Where that many of these processes wait for one another."""
        return _context.Barrier(parties)

    def prepare_at_once(self, number: int) -> list[str]:
        """Have *number* processes open the database for the first time at one moment; what they take it for."""
        gate = Path(self.place.folder, "gate")
        children = self.start(number, prepare, str(gate))
        until(lambda: len([*Path(self.place.folder).glob("ready-*")]) == number, "all are at the gate")
        gate.touch()
        for child in children:
            child.join(PATIENCE)
            assert child.exitcode == 0, self.logs()
        return [path.read_text() for path in sorted(Path(self.place.folder).glob("log-*.id"))]

    def await_workers(self, number: int) -> list[Any]:
        """Wait until exactly that many workers live, and each of them has beaten."""

        def all_there() -> list[Any]:
            rows = [row for row in self.shop.store.workers() if row.state == "alive"]
            return rows if len(rows) == number else []

        return until(all_there, f"{number} workers")

    def kill(self, child: Any) -> None:
        """SIGKILL."""
        os.kill(child.pid, signal.SIGKILL)
        child.join(PATIENCE)
        self.children.remove(child)

    def stop(self, patience: float = PATIENCE) -> None:
        """SIGTERM to all; each must end well."""
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.join(patience)
            assert child.exitcode == 0, (child.exitcode, self.logs())
        self.children.clear()

    def all_live(self) -> bool:
        """Whether no process has ended."""
        return all(child.is_alive() for child in self.children)

    def close(self) -> None:
        """Kill whatever is left."""
        for child in self.children:
            if child.is_alive():
                child.kill()
            child.join(PATIENCE)
        self.shop.close()

    def logs(self) -> str:
        """What the processes have said."""
        paths = [path for path in sorted(Path(self.place.folder).glob("log-*")) if path.suffix != ".id"]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in paths)

    # -- jobs -------------------------------------------------------------------------------------------------------

    def enqueue(self, task: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Enqueue jobs, a thousand in a transaction."""
        jobs = []
        with self.shop.app.app_context():
            for first in range(0, len(calls), 1000):
                jobs += getattr(self.shop, task).enqueue_many(calls[first : first + 1000])
        return jobs

    def states(self) -> Counter[str]:
        """How many jobs there are in each state."""
        sql = f"SELECT state, count(*) FROM taskworker_job WHERE {self.judged} GROUP BY state"
        rows = self.shop.store.driver.read(sql, {})
        return Counter(dict(rows))

    @property
    def judged(self) -> str:
        """Which jobs count, in SQL."""
        names = ", ".join(f"'{name}'" for name in self.noise)
        return f"task NOT IN ({names})"

    def await_end(self, patience: float = PATIENCE) -> Counter[str]:
        """Wait until no job is unfinished."""

        def over() -> bool:
            states = self.states()
            return not any(states[state] for state in ("scheduled", "ready", "running"))

        until(over, f"the end of all jobs: {self.states()}", patience)
        return self.states()

    def evidence(self, what: str) -> list[Line]:
        """What the tasks have recorded."""
        return evidence(self.place.folder, what)


# -- places ------------------------------------------------------------------------------------------------------------


@contextmanager
def a_fleet(url: str, folder: str | Path, *, ticks: bool = False, **config: Any) -> Iterator[Fleet]:
    """A fleet on that database; whatever is left of it is killed in the end."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    fleet = Fleet(Place(str(folder), url, {"TASKER_SHUTDOWN_TIMEOUT": 5, **config}, ticks))
    try:
        yield fleet
    finally:
        fleet.close()


@contextmanager
def a_place(database: str) -> Iterator[tuple[str, Path]]:
    """For scripts: a folder, and the URL of an empty database of that kind, on a server that is started for it."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        if database == "sqlite":
            yield f"sqlite:///{folder}/jobs.db", Path(folder)
            return
        server = PostgresServer()
        try:
            server.start()
            with a_schema(server.url()) as url:
                yield url, Path(folder)
        finally:
            server.close()
