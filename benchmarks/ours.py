"""Ourselves, as a peer among the others."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from .common import an_app
from .peer import Peer, Tally


class Ours(Peer):
    """Flask-TaskWorker with its default settings."""

    kind: ClassVar[str] = "async"
    config: Mapping[str, Any] = {}

    def __init__(self, folder: Path, tally: Tally) -> None:
        super().__init__(folder, tally)
        self._app = an_app(folder, **self.config)
        self.task_worker = self._app.__enter__()
        count = tally.count

        @self.task_worker.task(name="nothing")
        def nothing() -> None:
            count()

        @self.task_worker.task(name="nothing_async")
        async def nothing_async() -> None:
            count()

        self.task = nothing if self.kind == "sync" else nothing_async
        self.task_worker._state().store.driver.prepare()

    def enqueue(self) -> None:
        """One job."""
        self.task.enqueue()

    def fill(self, jobs: int) -> None:
        """In batches of 10,000."""
        for begin in range(0, jobs, 10_000):
            self.task.enqueue_many([()] * min(10_000, jobs - begin))

    def context(self) -> AbstractContextManager[Any]:
        """The app's."""
        app = self.task_worker._state().find_app()
        assert app is not None
        return app.app_context()

    def work(self) -> None:
        """The background worker."""
        self.task_worker.start()


class OursSync(Ours):
    """With a sync task."""

    kind = "sync"


class OursNormal(Ours):
    """Without waiting for the disk."""

    note = "survives any process death; a power cut may undo the last moments"
    config: Mapping[str, Any] = {"TASKER_DURABILITY": "normal"}


class OursPostgres(Ours):
    """Flask-TaskWorker on PostgreSQL."""

    def __init__(self, folder: Path, tally: Tally) -> None:
        self.config = {"TASKER_DRIVER": "postgresql", "TASKER_DATABASE_URI": (folder / "url").read_text()}
        super().__init__(folder, tally)
