"""The task queues that store their jobs in SQLite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .peer import Peer, Tally


class Huey(Peer):
    """huey on SQLite with its default settings, one thread among them; more threads or greenlets are not faster."""

    package = "huey"
    settings: Mapping[str, Any] = {}

    def __init__(self, folder: Path, tally: Tally) -> None:
        super().__init__(folder, tally)
        from huey import SqliteHuey

        self._huey = SqliteHuey(filename=str(folder / "huey.db"), **self.settings)
        count = tally.count

        @self._huey.task()
        def nothing() -> None:
            count()

        self._task = nothing

    def enqueue(self) -> None:
        """One job."""
        self._task()

    def work(self) -> None:
        """Its consumer."""
        self._huey.create_consumer().start()


class HueyTuned(Huey):
    """huey without waiting for the disk."""

    note = "fsync=False"
    settings: Mapping[str, Any] = {"fsync": False}


class APS(Peer):
    """APScheduler 3 with its SQLAlchemy job store on SQLite."""

    package = "APScheduler"
    note: ClassVar[str] = "10 threads"
    pragmas: ClassVar[Sequence[str]] = ()

    def __init__(self, folder: Path, tally: Tally) -> None:
        super().__init__(folder, tally)
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
        from apscheduler.schedulers.background import BackgroundScheduler
        from sqlalchemy import create_engine, event

        global _count
        _count = tally.count
        engine = create_engine(f"sqlite:///{folder / 'aps.db'}")
        event.listen(engine, "connect", lambda connection, _: [connection.execute(pragma) for pragma in self.pragmas])
        self._scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(engine=engine)})
        self._scheduler.start(paused=True)

    def enqueue(self) -> None:
        """One job, at once."""
        self._scheduler.add_job(count_one, misfire_grace_time=None)

    def work(self) -> None:
        """Its scheduler."""
        self._scheduler.resume()


class APSTuned(APS):
    """APScheduler without waiting for the disk."""

    note = "10 threads, journal_mode = WAL, synchronous = OFF"
    pragmas = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF")


_count: Callable[[], None] = lambda: None  # noqa: E731


def count_one() -> None:
    """APScheduler stores the name of a function."""
    _count()
