"""A fleet whose every job leaves evidence, the faults that are done to it, and their log."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.system.chaos import journal
from tests.system.chaos.fleet import Fleet, until
from tests.system.chaos.row import Run
from tests.system.chaos.spawned import Spawned, spawn
from tests.system.chaos.verifier import DIED, FROZEN, TOLD_TO_END, Fault, Final, Judgement, Rules, judge
from tests.system.chaos.worker import Place

CONFIG = {"TASKER_CONCURRENCY": 8, "TASKER_THREADS": 4, "TASKER_SHUTDOWN_TIMEOUT": 10}


class Stage(Fleet):
    """A fleet, and what was done to it."""

    def __init__(self, place: Place, chance: random.Random) -> None:
        super().__init__(place)
        self.chance = chance
        self.noise = ("shop.note",)
        self.faults: list[Fault] = []
        self.rules = Rules()
        self._stopped: dict[int, float] = {}

    # -- processes --------------------------------------------------------------------------------------------------

    def spawn(
        self, number: int = 1, function: str = "tests.system.chaos.worker:serve", **environment: str
    ) -> list[Spawned]:
        """Start processes that are not forked from this one's server."""
        made = []
        for _ in range(number):
            log = str(Path(self.place.folder, f"log-{next(self._numbers)}"))
            made.append(spawn(self.place, function, log, environment))
        self.children += made
        return made

    # -- jobs -------------------------------------------------------------------------------------------------------

    def accept(self, jobs: Sequence[Any]) -> None:
        """Note that these were accepted: enqueueing has returned."""
        journal.write(self.place.folder, journal.ACCEPTED, [job.uid for job in jobs])

    def put(self, number: int, longest: float = 0.3) -> None:
        """Enqueue jobs of both kinds, most of them short."""
        calls = [self._seconds(longest) for _ in range(number)]
        half = number // 2
        self.accept(self.enqueue("pulse", calls[:half]))
        self.accept(self.enqueue("grind", calls[half:]))

    def _seconds(self, longest: float) -> tuple[float]:
        return (round(longest * self.chance.random() ** 3, 4),)

    @contextmanager
    def feeding(self, *, per_second: float, longest: float = 0.3, limit: int | None = None) -> Iterator[Feeder]:
        """Enqueue one job after the other meanwhile."""
        feeder = Feeder(self, per_second, longest, limit)
        feeder.start()
        try:
            yield feeder
        finally:
            feeder.stop()

    def running_on(self, child: Any) -> int:
        """How many executions this process has begun and not ended."""
        count = 0
        for entry in self.journal():
            if entry.pid == child.pid:
                count += {journal.BEGAN: 1, journal.ACCEPTED: 0}.get(entry.word, -1)
        return count

    def journal(self) -> list[journal.Entry]:
        """The evidence so far."""
        return journal.read(self.place.folder)

    # -- faults -----------------------------------------------------------------------------------------------------

    def kill(self, child: Any) -> None:
        """SIGKILL, and wait for the end."""
        at = time.monotonic()
        super().kill(child)
        self.faults.append(Fault(kind=DIED, pid=child.pid, at=at, until=time.monotonic()))

    def freeze(self, *children: Any) -> None:
        """SIGSTOP."""
        for child in children:
            self._stopped[child.pid] = time.monotonic()
            os.kill(child.pid, signal.SIGSTOP)

    def thaw(self, *children: Any) -> None:
        """SIGCONT."""
        for child in children:
            os.kill(child.pid, signal.SIGCONT)
            at = self._stopped.pop(child.pid)
            self.faults.append(Fault(kind=FROZEN, pid=child.pid, at=at, until=time.monotonic()))

    def end(self, child: Any, number: signal.Signals, *, grace: float, patience: float = 60.0) -> float:
        """Send a signal that ends it, and wait; the seconds that took."""
        at = time.monotonic()
        os.kill(child.pid, number)
        self.faults.append(Fault(kind=TOLD_TO_END, pid=child.pid, at=at, until=at + grace))
        return self.await_exit(child, at, patience)

    def await_exit(self, child: Any, since: float, patience: float = 60.0) -> float:
        """Wait for its end; the seconds since then."""
        child.join(patience)
        if child.exitcode is None:
            raise TimeoutError(f"process {child.pid} did not end within {patience:g} s")
        now = time.monotonic()
        self.faults.append(Fault(kind=DIED, pid=child.pid, at=now, until=now))
        self.children.remove(child)
        return now - since

    # -- the end ----------------------------------------------------------------------------------------------------

    def finals(self) -> dict[str, Final]:
        """Every job's row."""
        sql = f"SELECT uid, state, failure_kind, failures, solo_crashes FROM taskworker_job WHERE {self.judged}"
        return {
            uid: Final(state=state, failure_kind=kind, failures=failures, solo_crashes=solo)
            for uid, state, kind, failures, solo in self.shop.store.driver.read(sql, {})
        }

    def judge(self, rules: Rules | None = None, patience: float = 120.0) -> Judgement:
        """Wait until all jobs have ended, or the patience has, and weigh the evidence."""
        with suppress(TimeoutError):
            # Else they are stuck, and the verifier says so.
            self.await_end(patience)
        return judge(self.journal(), self.faults, self.finals(), rules or self.rules)

    def dead(self) -> int:
        """How many workers were ever declared dead by another."""
        return self.logs().count("was declared dead by another")

    def alive(self) -> list[int]:
        """The processes of the workers that are registered as alive."""
        return [row.pid for row in self.shop.store.workers() if row.state == "alive"]

    def whole_logs(self) -> str:
        """Everything the processes have said."""
        paths = [path for path in sorted(Path(self.place.folder).glob("log-*")) if path.suffix != ".id"]
        return "\n".join(path.read_text() for path in paths)


class Feeder:
    """Enqueues at a steady pace in a thread of its own; what raises was not accepted, and is only counted."""

    def __init__(self, stage: Stage, per_second: float, longest: float, limit: int | None) -> None:
        self._stage = stage
        self._pause = 1 / per_second
        self._longest = longest
        self._limit = limit
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._chance = random.Random(stage.chance.random())
        self.accepted = 0
        self.refused = 0
        self.slowest = 0.0
        """Seconds that the slowest enqueueing took."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current enqueueing."""
        self._stopping.set()
        self._thread.join()

    @property
    def over(self) -> bool:
        """Whether all has been enqueued."""
        return not self._thread.is_alive()

    def _work(self) -> None:
        next_at = time.monotonic()
        with self._stage.shop.app.app_context():
            while not self._stopping.is_set() and (self._limit is None or self.accepted < self._limit):
                self._enqueue()
                next_at = max(next_at + self._pause, time.monotonic() - 1)
                self._stopping.wait(max(0.0, next_at - time.monotonic()))

    def _enqueue(self) -> None:
        task = self._chance.choice((self._stage.shop.pulse, self._stage.shop.grind))
        began = time.monotonic()
        try:
            job = task.enqueue(round(self._longest * self._chance.random() ** 3, 4))
        except Exception:  # noqa: BLE001 - whatever it is: not accepted
            self.refused += 1
        else:
            self._stage.accept([job])
            self.accepted += 1
        self.slowest = max(self.slowest, time.monotonic() - began)


@contextmanager
def a_stage(run: Run, *, knobs: dict[str, float] | None = None, url: str = "", **config: Any) -> Iterator[Stage]:
    """A stage for one row; whatever is left of it is killed in the end. Its logs are kept beside the evidence."""
    run.folder.mkdir(parents=True, exist_ok=True)
    stage = Stage(
        Place(str(run.folder), url or run.url, CONFIG | config, knobs=knobs or {}, neighbour=run.neighbour), run.chance
    )
    stage.rules = Rules(handover=run.within(Rules().handover))
    try:
        yield stage
    finally:
        for child in stage.children:
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
        stage.close()


def settle(stage: Stage, number: int) -> None:
    """Wait for that many living workers, and until the dead count as such: else a new one may not have begun yet."""

    def all_there() -> bool:
        alive = stage.alive()
        return len(alive) == number and all(Path(f"/proc/{pid}").exists() for pid in alive)

    until(all_there, f"{number} workers; there are {stage.alive()}")
