"""Restart PostgreSQL under load: every accepted job runs, the workers come back by themselves, and none ends.

``python -m tests.system.chaos.restart 20`` restarts so often, fast and immediate in turns.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from flask_taskworker.errors import NotAccepted, OutcomeUnknown
from tests.support.postgres import PostgresServer, a_schema
from tests.system.chaos.fleet import Fleet, a_fleet, until

WORKERS = 3
HOW = (signal.SIGINT, signal.SIGQUIT)


class Enqueuer:
    """A web process that enqueues without a pause, and says the same again where it was not accepted."""

    def __init__(self, fleet: Fleet, seconds: float) -> None:
        self._fleet = fleet
        self._seconds = seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.words: set[str] = set()
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End with an accepted job."""
        self._stopping.set()
        self._thread.join()
        assert self.error is None, self.error

    def _work(self) -> None:
        try:
            with self._fleet.shop.app.app_context():
                while not self._stopping.is_set():
                    self._enqueue(self.accepted)
                    self.accepted += 1
                    time.sleep(0.002)
        except BaseException as error:
            self.error = error
            raise

    def _enqueue(self, x: int) -> None:
        while True:
            try:
                self._fleet.shop.work.using(uid=f"load-{x}").enqueue(x, self._seconds)
            except (NotAccepted, OutcomeUnknown) as error:
                self.refused[type(error).__name__] += 1
                self.words.add(str(error)[:200])
                time.sleep(0.02)
            else:
                return


class Found(NamedTuple):
    """What came of it."""

    restarts: int
    accepted: int
    run: int
    doubled: int
    refused: dict[str, int]
    recovery_s: list[float]
    dead: int
    ended: int
    states: dict[str, int]


def restart_many(server: PostgresServer, url: str, folder: Path, *, restarts: int) -> Found:
    """Restart so often, with workers and an enqueuer at work."""
    with a_fleet(url, folder) as fleet:
        fleet.start(WORKERS)
        ids = {row.id for row in fleet.await_workers(WORKERS)}
        load = Enqueuer(fleet, seconds=0.02)
        load.start()
        recovery = [_restart(server, fleet, HOW[number % 2]) for number in range(restarts)]
        load.stop()
        states = fleet.await_end()
        dead = len(ids - {row.id for row in fleet.await_workers(WORKERS)})
        ended = sum(not child.is_alive() for child in fleet.children)
        fleet.stop()
        lines = fleet.evidence("end")
    run = {line.x for line in lines}
    assert run == set(range(load.accepted)), sorted(set(range(load.accepted)) ^ run)
    doubled = len(lines) - len(run)
    return Found(restarts, load.accepted, len(run), doubled, dict(load.refused), recovery, dead, ended, dict(states))


def _restart(server: PostgresServer, fleet: Fleet, how: signal.Signals) -> float:
    """Seconds from the server's return until every worker has beaten and its loop has recorded a job."""
    time.sleep(random.uniform(0.2, 0.8))
    server.stop(how)
    time.sleep(random.uniform(0.0, 0.5))
    server.start()
    back, back_at = time.monotonic(), fleet.shop.store.clock()
    until(lambda: len(_back(fleet, back_at)) == WORKERS, "all workers are back", 30)
    return round(time.monotonic() - back, 2)


def _back(fleet: Fleet, since: int) -> list[Any]:
    sql = (
        "SELECT id FROM taskworker_worker AS w WHERE w.state = 'alive' AND w.beat_at > :since AND EXISTS "
        "(SELECT 1 FROM taskworker_job WHERE state = 'running' AND worker_id = w.id AND started_at > :since)"
    )
    return list(fleet.shop.store.driver.read(sql, {"since": since}))


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("restarts", nargs="?", type=int, default=20)
    arguments = parser.parse_args()
    server = PostgresServer()
    try:
        server.start()
        with a_schema(server.url()) as url, tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            found = restart_many(server, url, Path(folder), restarts=arguments.restarts)
            print(found._asdict())
            print(f"recovery: median {statistics.median(found.recovery_s)} s, max {max(found.recovery_s)} s")
    finally:
        server.close()


if __name__ == "__main__":
    main()
