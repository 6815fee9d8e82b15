"""The ways into an application's own transaction, with one face: a test then says once what holds for all of them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, insert, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_taskworker import BackgroundTaskWorker, Job

metadata = MetaData()
note = Table("note", metadata, Column("x", Integer, nullable=False))


def engine_of(url: str | URL) -> Engine:
    """An engine as an application has it, with the table of its own."""
    engine = create_engine(with_psycopg(url), connect_args=_patience(url))
    metadata.create_all(engine)
    return engine


def with_psycopg(url: str | URL) -> URL:
    parsed = make_url(url)
    return parsed.set(drivername="postgresql+psycopg") if parsed.get_backend_name() == "postgresql" else parsed


def _patience(url: str | URL) -> dict[str, Any]:
    return {"timeout": 20} if make_url(url).get_backend_name() == "sqlite" else {}


def begin_immediately(engine: Engine) -> None:
    """The recipe of docs/transactions.md: take the lock with the first write, so that savepoints work, too."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "before_cursor_execute")
    def begin(connection: Any, _: object, statement: str, *_more: object) -> None:
        reads = statement.lstrip().upper().startswith(("SELECT", "PRAGMA"))
        if not reads and not connection.connection.driver_connection.in_transaction:
            connection.connection.dbapi_connection.execute("BEGIN IMMEDIATE")


@contextmanager
def beside_the_jobs(
    app: Flask,
    make_worker: Callable[..., BackgroundTaskWorker],
    prepare: Callable[[SQLAlchemy], object] = lambda db: None,
) -> Iterator[SQLAlchemy]:
    """Flask-SQLAlchemy in the jobs' own database, in a context of *app*; its worker starts after *prepare*."""
    Path(app.instance_path).mkdir(exist_ok=True)
    worker = make_worker(app, start=False)
    app.extensions["taskworker"].store.driver.prepare()
    url = app.extensions["taskworker"].config.database_uri
    engine_of(url).dispose()
    options = {"connect_args": _patience(url)}
    app.config.update(SQLALCHEMY_DATABASE_URI=with_psycopg(url), SQLALCHEMY_ENGINE_OPTIONS=options)
    db = SQLAlchemy(app)
    with app.app_context():
        prepare(db)
        worker.start()
        yield db
        worker.stop(timeout=2)
        db.session.remove()
        db.engine.dispose()


class Door(ABC):
    """One session of one application; *url* is that of the application's database."""

    def __init__(self, url: str | URL) -> None:
        self.engine = engine_of(url)

    @abstractmethod
    def enqueue(self, task: Any, *args: Any, **options: Any) -> Job[Any]:
        """Enqueue within the session's transaction."""

    @abstractmethod
    def write(self, x: int) -> None:
        """Write a row of the application's own, and send it to the database."""

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def roll_back(self) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Close without a commit; the session can be used again."""

    @abstractmethod
    def savepoint(self) -> Any:
        """Begin one; it has commit() and rollback(). SQLite needs :meth:`begin_immediately` for it."""

    @abstractmethod
    def engines(self) -> list[Engine]:
        """Those that its transactions may come from."""

    def begin_immediately(self) -> None:
        """Apply the recipe of docs/transactions.md to SQLite's engines."""
        for engine in self.engines():
            if engine.dialect.name == "sqlite":
                engine.dispose()
                begin_immediately(engine)

    def rows(self) -> list[int]:
        """What is committed of the application's own."""
        with self.engine.connect() as connection:
            return [x for (x,) in connection.execute(select(note.c.x).order_by(note.c.x))]

    def end(self) -> None:
        self.close()
        self.engine.dispose()


class SessionDoor(Door):
    """A plain Session."""

    def __init__(self, url: str | URL) -> None:
        super().__init__(url)
        self.given: Any = Session(self.engine)

    def enqueue(self, task: Any, *args: Any, **options: Any) -> Job[Any]:
        job: Job[Any] = task.using(session=self.given, **options).enqueue(*args)
        return job

    def write(self, x: int) -> None:
        self.given.execute(insert(note).values(x=x))

    def commit(self) -> None:
        self.given.commit()

    def roll_back(self) -> None:
        self.given.rollback()

    def close(self) -> None:
        self.given.close()

    def savepoint(self) -> Any:
        return self.given.begin_nested()

    def engines(self) -> list[Engine]:
        return [self.engine]


class ScopedDoor(SessionDoor):
    """A scoped_session."""

    def __init__(self, url: str | URL) -> None:
        super().__init__(url)
        self.given = scoped_session(sessionmaker(self.engine))

    def close(self) -> None:
        self.given.remove()


class FlaskDoor(SessionDoor):
    """Flask-SQLAlchemy's ``db.session``, inside an app context of an app that is not the TaskWorker's."""

    def __init__(self, url: str | URL) -> None:
        super().__init__(url)
        app = Flask("door")
        app.config.update(
            SQLALCHEMY_DATABASE_URI=with_psycopg(url), SQLALCHEMY_ENGINE_OPTIONS={"connect_args": _patience(url)}
        )
        self.db = SQLAlchemy(app)
        self.given = self.db.session
        self._context = app.app_context()
        self._context.push()

    def engines(self) -> list[Engine]:
        return [self.db.engine]

    def end(self) -> None:
        self.db.session.remove()
        self.db.engine.dispose()
        self._context.pop()
        self.engine.dispose()


class AsyncDoor(Door):
    """An AsyncSession over aiosqlite or psycopg."""

    def __init__(self, url: str | URL) -> None:
        super().__init__(url)
        backend = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg_async"}
        parsed = make_url(url)
        self._runner = asyncio.Runner()
        self._engine = create_async_engine(
            parsed.set(drivername=backend[parsed.get_backend_name()]), connect_args=_patience(url)
        )
        self.given = AsyncSession(self._engine)

    def enqueue(self, task: Any, *args: Any, **options: Any) -> Job[Any]:
        job: Job[Any] = self.run(task.using(session=self.given, **options).aenqueue(*args))
        return job

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    def write(self, x: int) -> None:
        self.run(self.given.execute(insert(note).values(x=x)))

    def commit(self) -> None:
        self.run(self.given.commit())

    def roll_back(self) -> None:
        self.run(self.given.rollback())

    def close(self) -> None:
        self.run(self.given.close())

    def savepoint(self) -> Any:
        return _AsyncSavepoint(self)

    def engines(self) -> list[Engine]:
        return [self._engine.sync_engine]

    def end(self) -> None:
        self.close()
        self.run(self._engine.dispose())
        self._runner.close()
        self.engine.dispose()


class _AsyncSavepoint:
    def __init__(self, door: AsyncDoor) -> None:
        self._door = door
        self._transaction = door.run(self._begun())

    async def _begun(self) -> Any:
        return await self._door.given.begin_nested()

    def commit(self) -> None:
        self._door.run(self._transaction.commit())

    def rollback(self) -> None:
        self._door.run(self._transaction.rollback())


DOORS: dict[str, type[Door]] = {
    "session": SessionDoor,
    "scoped": ScopedDoor,
    "flask": FlaskDoor,
    "async": AsyncDoor,
}
