"""The task queues that store their jobs in PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .peer import Peer, Program, Tally


class Procrastinate(Peer):
    """procrastinate with psycopg."""

    package = "procrastinate"
    note: ClassVar[str] = "1 job at once"
    concurrency: ClassVar[int] = 1

    def __init__(self, folder: Path, tally: Tally) -> None:
        super().__init__(folder, tally)
        import procrastinate

        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=self.url))
        count = tally.count

        @self._app.task(name="nothing")
        async def nothing() -> None:
            count()

        self._task = nothing
        self._sync = self._app.with_connector(procrastinate.SyncPsycopgConnector(conninfo=self.url))
        self._sync.open()
        if once(folder):
            self._sync.schema_manager.apply_schema()

    def fill(self, jobs: int) -> None:
        """In batches."""
        with self._app.replace_connector(self._sync.connector):
            for begin in range(0, jobs, 1000):
                self._task.batch_defer(*[{} for _ in range(min(1000, jobs - begin))])

    def work(self) -> None:
        """Its worker."""

        async def run() -> None:
            async with self._app.open_async():
                await self._app.run_worker_async(concurrency=self.concurrency, install_signal_handlers=False)

        in_a_thread(run)


class ProcrastinateTuned(Procrastinate):
    """procrastinate with jobs at once as many as ours."""

    note = "100 jobs at once"
    concurrency = 100


class PgQueuer(Peer):
    """pgqueuer with psycopg."""

    package = "pgqueuer"
    note: ClassVar[str] = "batches of 10"
    batch: ClassVar[int] = 10

    def __init__(self, folder: Path, tally: Tally) -> None:
        super().__init__(folder, tally)
        if once(folder):
            asyncio.run(self._with_queries(lambda queries: queries.install()))

    async def _with_queries(self, act: Callable[[Any], Any]) -> None:
        import psycopg
        from pgqueuer.db import PsycopgDriver
        from pgqueuer.queries import Queries

        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await act(Queries(PsycopgDriver(connection)))

    def fill(self, jobs: int) -> None:
        """In batches."""

        async def act(queries: Any) -> None:
            for begin in range(0, jobs, 1000):
                number = min(1000, jobs - begin)
                await queries.enqueue(["nothing"] * number, [None] * number, [0] * number)

        asyncio.run(self._with_queries(act))

    def work(self) -> None:
        """Its queue manager."""
        import psycopg
        from pgqueuer import PgQueuer as Manager
        from pgqueuer.db import PsycopgDriver

        async def run() -> None:
            async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
                manager = Manager(PsycopgDriver(connection))

                @manager.entrypoint("nothing")
                async def nothing(job: Any) -> None:
                    self.tally.count()

                await manager.run(batch_size=self.batch)

        in_a_thread(run)


class PgQueuerTuned(PgQueuer):
    """pgqueuer with large batches, its best according to its own benchmark."""

    note = "batches of 200"
    batch = 200


class Oban(Program):
    """Oban for Python."""

    package = "oban"
    note: ClassVar[str] = "10 jobs at once"
    options: ClassVar[Sequence[str]] = ("--queues", "default:10")

    def fill(self, jobs: int) -> None:
        """In batches."""
        from oban import Oban as Client
        from oban.schema import install

        from .apps.oban_app import nothing

        async def fill() -> None:
            pool = await Client.create_pool(self.url)
            await install(pool)
            client = Client(pool=pool)
            for begin in range(0, jobs, 1000):
                await client.enqueue_many([nothing.new() for _ in range(min(1000, jobs - begin))])
            await pool.close()

        asyncio.run(fill())

    def command(self) -> Sequence[str]:
        """The documentation's."""
        return ("oban", "start", "--dsn", self.url, *self.options)


class ObanTuned(Oban):
    """Oban with more jobs at once, and without two log lines for each."""

    note = "200 jobs at once, --log-level WARNING"
    options = ("--queues", "default:200", "--log-level", "WARNING")


def once(folder: Path) -> bool:
    """Whether the tables have still to be made, which is asked for once."""
    made = folder / "made"
    if made.exists():
        return False
    made.touch()
    return True


def in_a_thread(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """An event loop beside this thread."""
    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
