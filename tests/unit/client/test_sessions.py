"""Enqueueing in the caller's own transaction: the job exists with its commit, and not at all without it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from flask_taskworker import BackgroundTaskWorker, Job, JobState
from flask_taskworker.errors import ArgumentsError, JobNotFound, NotAccepted, StoreError
from flask_taskworker.signals import job_enqueued
from flask_taskworker.store.sql import Store
from tests.support.doors import DOORS, AsyncDoor, Door, SessionDoor, engine_of, with_psycopg
from tests.support.postgres import a_schema

pytestmark = pytest.mark.both_databases

LONG = 300
"""Seconds between two looks of a worker: a job that runs sooner was a wake-up's."""


@pytest.fixture(params=["same", pytest.param("other", marks=pytest.mark.sqlite_only)])
def place(request: pytest.FixtureRequest) -> str:
    """Whether the jobs lie in the database of the session."""
    found: str = request.param
    return found


@pytest.fixture
def session_url(
    app: Flask, idle_worker: BackgroundTaskWorker, place: str, tmp_path: Path, request: Any
) -> Iterator[str]:
    """Where the session is: in the jobs' database, or in another one of that kind, with jobs of its own."""
    url = app.extensions["taskworker"].config.database_uri.render_as_string(hide_password=False)
    Path(app.instance_path).mkdir(exist_ok=True)
    if place == "same":
        if not request.node.get_closest_marker("no_tables_yet"):
            app.extensions["taskworker"].store.driver.prepare()
        yield url
    elif url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path}/other.db"
    else:
        with a_schema(request.getfixturevalue("postgres")) as other:
            yield other


@pytest.fixture
def open_door(session_url: str) -> Iterator[Callable[..., Any]]:
    """Open a door to the session's database, or to another; it is closed after the test."""
    with ExitStack() as doors:

        def make(kind: type[Door], url: str | None = None) -> Door:
            door = kind(url or session_url)
            doors.callback(door.end)
            return door

        yield make


@pytest.fixture(
    params=["session", "async", *(pytest.param(d, marks=pytest.mark.sqlite_only) for d in ("scoped", "flask"))]
)
def door(open_door: Callable[..., Door], request: pytest.FixtureRequest) -> Door:
    """Every kind of session in turn; one that is a plain Session in the end need not be so on PostgreSQL, too."""
    return open_door(DOORS[request.param])


@pytest.fixture
def session(open_door: Callable[..., SessionDoor]) -> SessionDoor:
    """A plain session, for what does not depend on its kind."""
    return open_door(SessionDoor)


@pytest.fixture
def add(idle_worker: BackgroundTaskWorker) -> Any:
    """A task of a worker that does not run."""

    @idle_worker.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def stored(store: Store) -> list[int]:
    """The numbers of the jobs that everybody sees."""
    store.driver.prepare()
    return [row[0] for row in store.driver.read("SELECT id FROM taskworker_job ORDER BY id", {})]


same_place = pytest.mark.parametrize("place", ["same"], indirect=True)
other_place = pytest.mark.parametrize("place", ["other"], indirect=True)


# -- commit and rollback -----------------------------------------------------------------------------------------------


def test_job_exists_with_the_commit_of_the_session(door: Door, add: Any, store: Store, place: str) -> None:
    door.write(1)
    job = door.enqueue(add, 1)
    assert job.state is JobState.PENDING
    assert bool(job.id) is (place == "same")
    assert stored(store) == []
    door.commit()
    assert job.state is JobState.READY
    assert (stored(store), door.rows()) == ([job.id], [1])
    assert job.refresh().state is JobState.READY


def test_rolled_back_session_leaves_no_job(door: Door, add: Any, store: Store) -> None:
    door.write(1)
    gone = door.enqueue(add, 1)
    door.roll_back()
    kept = door.enqueue(add, 2)
    door.commit()
    assert (gone.state, kept.state) == (JobState.PENDING, JobState.READY)
    assert (stored(store), door.rows()) == ([kept.id], [])


def test_session_closed_without_a_commit_leaves_no_job(door: Door, add: Any, store: Store) -> None:
    door.write(1)
    gone = door.enqueue(add, 1)
    door.close()
    door.write(2)
    door.commit()
    assert gone.state is JobState.PENDING
    assert (stored(store), door.rows()) == ([], [2])


def test_session_can_be_used_again_and_again(door: Door, add: Any, store: Store) -> None:
    jobs = []
    for number in range(3):
        jobs.append(door.enqueue(add, number))
        door.commit()
        door.commit()
    assert [job.state for job in jobs] == [JobState.READY] * 3
    assert stored(store) == [job.id for job in jobs]


def test_savepoint_that_is_rolled_back_takes_its_jobs_along(door: Door, add: Any, store: Store) -> None:
    door.begin_immediately()
    before = door.enqueue(add, 1)
    savepoint = door.savepoint()
    inside = door.enqueue(add, 2)
    savepoint.rollback()
    after = door.enqueue(add, 3)
    door.commit()
    assert [job.state for job in (before, inside, after)] == ["ready", "pending", "ready"]
    assert stored(store) == [before.id, after.id]


def test_released_savepoint_waits_for_the_commit(door: Door, add: Any, store: Store) -> None:
    door.begin_immediately()
    outer = door.savepoint()
    inner = door.savepoint()
    job = door.enqueue(add, 1)
    inner.commit()
    assert job.state is JobState.PENDING
    outer.commit()
    assert (job.state, stored(store)) == (JobState.PENDING, [])
    door.commit()
    assert (job.state, stored(store)) == (JobState.READY, [job.id])


def test_outer_savepoint_takes_released_ones_along(session: SessionDoor, add: Any, store: Store) -> None:
    session.begin_immediately()
    outer = session.savepoint()
    inner = session.savepoint()
    job = session.enqueue(add, 1)
    inner.commit()
    outer.rollback()
    session.commit()
    assert (job.state, stored(store)) == (JobState.PENDING, [])


def test_with_block_that_raises_leaves_no_job(session: SessionDoor, add: Any, store: Store) -> None:
    def begun() -> None:
        with session.given.begin():
            session.enqueue(add, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begun()
    with session.given.begin():
        job = session.enqueue(add, 2)
    assert stored(store) == [job.id]


def test_commit_that_fails_leaves_no_job(session: SessionDoor, add: Any, store: Store) -> None:
    session.write(1)
    job = session.enqueue(add, 1)
    session.given.execute(text("DROP TABLE note"))
    with pytest.raises(SQLAlchemyError):
        session.write(2)
    with pytest.raises(SQLAlchemyError):
        # PostgreSQL refuses everything in a transaction in which something has failed; SQLite only this.
        session.write(3)
    session.roll_back()
    session.commit()
    assert (job.state, stored(store), session.rows()) == (JobState.PENDING, [], [])


def test_many_jobs_of_one_call_share_the_fate_of_the_session(session: SessionDoor, add: Any, store: Store) -> None:
    jobs = add.using(session=session.given).enqueue_many([(1,), (2, 3), {"x": 4}])
    assert {job.state for job in jobs} == {"pending"}
    session.commit()
    assert stored(store) == [job.id for job in jobs]
    add.using(session=session.given).enqueue_many([(1,)] * 3)
    session.roll_back()
    assert len(stored(store)) == 3


def test_calls_of_different_tasks_share_the_fate_of_the_session(
    session: SessionDoor, add: Any, idle_worker: BackgroundTaskWorker, store: Store
) -> None:
    other = idle_worker.task(name="other", queue="else")(lambda x: x)
    jobs = idle_worker.enqueue_all([add.bind(1), other.bind(2)], session=session.given)
    assert {job.state for job in jobs} == {"pending"}
    session.commit()
    assert stored(store) == [job.id for job in jobs]
    assert [store.record(job.id).queue for job in jobs] == ["default", "else"]
    idle_worker.enqueue_all([add.bind(1), other.bind(2)], session=session.given)
    session.roll_back()
    assert len(stored(store)) == 2


@same_place
def test_many_jobs_take_one_statement_in_a_session(
    session: SessionDoor, add: Any, idle_worker: BackgroundTaskWorker
) -> None:
    other = idle_worker.task(name="other")(lambda x: x)
    statements: list[str] = []
    event.listen(session.given.get_bind(), "before_cursor_execute", lambda *given: statements.append(given[2]))
    add.using(session=session.given).enqueue_many([(1,)] * 50)
    idle_worker.enqueue_all([other.bind(1), add.bind(2)] * 50, session=session.given)
    session.commit()
    assert len([sql for sql in statements if sql.startswith("INSERT INTO taskworker_job")]) == 2


def test_options_hold_in_a_session_too(session: SessionDoor, add: Any, store: Store) -> None:
    job = session.enqueue(add, 1, delay=60, queue="slow", priority=7)
    session.commit()
    row = store.record(job.id)
    assert (row.state, row.queue, row.priority) == ("scheduled", "slow", 7)
    assert job.state is JobState.SCHEDULED


@pytest.mark.sqlite_only
def test_two_sessions_of_one_thread_do_not_mix(open_door: Callable[..., SessionDoor], add: Any, store: Store) -> None:
    one, two = open_door(SessionDoor), open_door(SessionDoor)
    kept, gone = one.enqueue(add, 1), None
    one.commit()
    gone = two.enqueue(add, 2)
    kept_too = None
    two.roll_back()
    kept_too = one.enqueue(add, 3)
    one.commit()
    assert [job.state for job in (kept, gone, kept_too)] == ["ready", "pending", "ready"]
    assert stored(store) == [kept.id, kept_too.id]


# -- after the commit --------------------------------------------------------------------------------------------------


def test_worker_is_woken_after_the_commit(door: Door, add: Any, app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    app.extensions["taskworker"].config = app.extensions["taskworker"].config.__class__.from_mapping(
        {**app.config, "TASKER_LOOP_INTERVAL": LONG}, instance_path=app.instance_path
    )
    idle_worker.start()
    for number in range(3):
        job = door.enqueue(add, number)
        door.commit()
        assert job.result(timeout=20) == number


def test_job_enqueued_is_sent_after_the_commit_and_never_without(
    door: Door, add: Any, app: Flask, store: Store
) -> None:
    seen: list[tuple[Job[Any], list[int]]] = []

    def receive(sender: Flask, job: Job[Any]) -> None:
        seen.append((job, stored(store)))

    with job_enqueued.connected_to(receive, app):
        door.enqueue(add, 1)
        door.roll_back()
        job = door.enqueue(add, 2)
        assert seen == []
        door.commit()
        door.commit()
    assert seen == [(job, [job.id])]
    assert seen[0][0].state is JobState.READY


@pytest.mark.sqlite_only
def test_receiver_that_raises_does_not_harm_the_commit(
    session: SessionDoor, add: Any, app: Flask, store: Store
) -> None:
    def receive(sender: Flask, job: Job[Any]) -> None:
        raise ZeroDivisionError

    with job_enqueued.connected_to(receive, app):
        job = session.enqueue(add, 1)
        session.commit()
    assert stored(store) == [job.id]


@other_place
def test_job_that_is_not_accepted_after_the_commit_is_reported_by_the_commit(
    session: SessionDoor, add: Any, store: Store
) -> None:
    """The application's own writes stand, and the session goes on."""
    jobs = [session.enqueue(add, 1), session.enqueue(add, 2)]
    session.write(1)
    store.driver.write("ALTER TABLE taskworker_job RENAME TO away", {})
    with pytest.raises(NotAccepted, match=r"The job was not accepted\..*taskworker_job"):
        session.commit()
    store.driver.write("ALTER TABLE away RENAME TO taskworker_job", {})
    assert [job.state for job in jobs] == ["pending", "pending"]
    assert (stored(store), session.rows()) == ([], [1])
    again = session.enqueue(add, 3)
    session.write(2)
    session.commit()
    assert (stored(store), session.rows()) == ([again.id], [1, 2])


# -- a pending job -----------------------------------------------------------------------------------------------------


def test_pending_job_is_not_found_and_says_why(session: SessionDoor, add: Any) -> None:
    job = session.enqueue(add, 1)
    asks: list[Callable[[], object]] = [
        job.refresh,
        job.result,
        job.cancel,
        job.retry,
        lambda: asyncio.run(job.aresult()),
    ]
    for ask in asks:
        with pytest.raises(
            JobNotFound, match="pending: it is stored when the session .* never if that was rolled back"
        ):
            ask()
    session.roll_back()
    for ask in asks:
        with pytest.raises(JobNotFound, match="pending"):
            ask()


@same_place
def test_job_that_got_the_number_of_a_rolled_back_one_is_another(session: SessionDoor, add: Any, store: Store) -> None:
    gone = session.enqueue(add, 1)
    session.roll_back()
    job = session.enqueue(add, 2)
    session.commit()
    if gone.id != job.id:
        # PostgreSQL gives a number once, whatever became of it.
        assert store.driver.key != str(getattr(store.driver, "path", ""))
    with pytest.raises(JobNotFound, match="pending"):
        gone.cancel()
    with pytest.raises(JobNotFound, match="pending"):
        gone.refresh()
    assert job.refresh().state is JobState.READY
    assert gone != job


def test_committed_job_is_known_to_everyone(session: SessionDoor, add: Any, idle_worker: BackgroundTaskWorker) -> None:
    job = session.enqueue(add, 1)
    session.commit()
    assert idle_worker.get_job(job.id) == job
    assert job.cancel() is True
    assert job.refresh().state is JobState.CANCELLED


# -- unique and uid ----------------------------------------------------------------------------------------------------


@same_place
def test_unique_key_holds_within_and_across_transactions(door: Door, add: Any, store: Store) -> None:
    first = door.enqueue(add, 1, unique="key")
    second = door.enqueue(add, 2, unique="key")
    assert second.id == first.id
    door.commit()
    third = door.enqueue(add, 3, unique="key")
    door.commit()
    assert (third.id, third.state, stored(store)) == (first.id, JobState.READY, [first.id])


@other_place
def test_unique_key_holds_after_the_commit(session: SessionDoor, add: Any, store: Store) -> None:
    first = add.using(unique="key").enqueue(1)
    second, third = session.enqueue(add, 2, unique="key"), session.enqueue(add, 3, unique="key")
    session.commit()
    assert [job.id for job in (first, second, third)] == [first.id] * 3
    assert stored(store) == [first.id]


def test_uid_is_never_stored_twice(door: Door, add: Any, store: Store) -> None:
    first = door.enqueue(add, 1, uid="one")
    second = door.enqueue(add, 1, uid="one")
    door.commit()
    third = door.enqueue(add, 1, uid="one")
    door.commit()
    assert [job.id for job in (first, second, third)] == [first.id] * 3
    assert stored(store) == [first.id]


@same_place
def test_refused_uid_leaves_the_session_usable(session: SessionDoor, add: Any, idle_worker: Any, store: Store) -> None:
    @idle_worker.task(name="another")
    def another() -> None: ...

    job = session.enqueue(add, 1, uid="one")
    session.write(1)
    with pytest.raises(NotAccepted, match="belongs to job"):
        session.enqueue(another, uid="one")
    session.commit()
    assert (stored(store), session.rows()) == ([job.id], [1])


# -- several apps ------------------------------------------------------------------------------------------------------


@same_place
def test_jobs_of_several_apps_in_one_session(
    session: SessionDoor, make_app: Callable[..., Flask], app: Flask, idle_worker: BackgroundTaskWorker, add: Any
) -> None:
    other = make_app()
    idle_worker.init_app(other)
    stores = [one.extensions["taskworker"].store for one in (app, other)]

    def enqueue_in_both() -> list[Job[Any]]:
        jobs = []
        for one in (app, other):
            with one.app_context():
                jobs.append(session.enqueue(add, 1))
        return jobs

    enqueue_in_both()
    session.roll_back()
    jobs = enqueue_in_both()
    assert [bool(job.id) for job in jobs] == [True, False]
    session.commit()
    assert [job.state for job in jobs] == ["ready", "ready"]
    assert [len(stored(store)) for store in stores] == [1, 1]


# -- the first use -----------------------------------------------------------------------------------------------------


@pytest.mark.no_tables_yet
@same_place
def test_first_job_of_all_is_within_the_transaction(session: SessionDoor, add: Any, store: Store) -> None:
    """The tables are made by then, not taken for those of another database."""
    session.given.execute(text("SELECT 1"))
    job = session.enqueue(add, 1)
    assert job.id
    session.commit()
    assert stored(store) == [job.id]


@pytest.mark.no_tables_yet
@same_place
@pytest.mark.sqlite_only
def test_tables_that_the_callers_own_lock_forbids_to_make_are_asked_for_in_words(
    session: SessionDoor, add: Any, store: Store
) -> None:
    session.write(1)
    began = time.monotonic()
    with pytest.raises(StoreError, match="tables for jobs are not yet in .* perhaps the one in which.*db init"):
        session.enqueue(add, 1)
    assert time.monotonic() - began < 15
    session.commit()
    job = session.enqueue(add, 1)
    session.commit()
    assert (stored(store), session.rows()) == ([job.id], [1])


@same_place
def test_process_that_never_used_the_jobs_may_begin_in_a_transaction_that_holds_the_lock(
    session: SessionDoor, make_app: Callable[..., Flask], app: Flask, store: Store
) -> None:
    store.driver.prepare()
    uri = app.extensions["taskworker"].config.database_uri.render_as_string(hide_password=False)
    later = make_app(TASKER_DATABASE_URI=uri)
    later.import_name = app.import_name
    task_worker = BackgroundTaskWorker(later)

    @task_worker.task(name="add")
    def add(x: int) -> int:
        return x

    session.write(1)
    job = session.enqueue(add, 1)
    session.commit()
    assert stored(store) == [job.id]


# -- connections -------------------------------------------------------------------------------------------------------


@same_place
def test_connection_is_a_transaction_too(session: SessionDoor, add: Any, store: Store) -> None:
    session.begin_immediately()
    with session.engine.connect() as connection:
        gone = add.using(session=connection).enqueue(1)
        connection.rollback()
        job = add.using(session=connection).enqueue(2)
        with connection.begin_nested() as savepoint:
            inside = add.using(session=connection).enqueue(3)
            savepoint.rollback()
        assert (job.state, stored(store)) == (JobState.PENDING, [])
        connection.commit()
    assert job.refresh().state is JobState.READY
    assert stored(store) == [job.id]
    assert [one.state for one in (gone, inside)] == ["pending", "pending"]


@same_place
def test_worker_finds_what_the_commit_of_a_connection_left(
    session: SessionDoor, add: Any, idle_worker: BackgroundTaskWorker
) -> None:
    with session.engine.begin() as connection:
        job = add.using(session=connection).enqueue(1, 2)
    idle_worker.start()
    assert job.result(timeout=20) == 3


@other_place
def test_connection_to_another_database_is_refused(session: SessionDoor, add: Any, store: Store) -> None:
    with session.engine.connect() as connection:
        with pytest.raises(ArgumentsError, match="in another database than the jobs.*Give a Session"):
            add.using(session=connection).enqueue(1)
    assert stored(store) == []


@same_place
def test_asynchronous_connection_and_scoped_session(session_url: str, add: Any, store: Store, app: Flask) -> None:
    backend = "sqlite+aiosqlite" if session_url.startswith("sqlite") else "postgresql+psycopg_async"

    async def main() -> list[Job[Any]]:
        engine = create_async_engine(session_url.replace(session_url.partition(":")[0], backend, 1))
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        async with engine.begin() as connection:
            one = await add.using(session=connection).aenqueue(1)
        two = await add.using(session=scoped).aenqueue(2)
        assert two.state is JobState.PENDING
        await scoped.commit()
        await add.using(session=scoped).aenqueue(3)
        await scoped.remove()
        await engine.dispose()
        return [one, two]

    jobs = asyncio.run(main())
    assert jobs[1].state is JobState.READY
    assert jobs[0].refresh().state is JobState.READY
    assert stored(store) == [job.id for job in jobs]


# -- what is not a session ---------------------------------------------------------------------------------------------


@same_place
@pytest.mark.parametrize("given", [object(), "session", Session], ids=["object", "text", "the class"])
@pytest.mark.sqlite_only
def test_what_is_not_a_session_is_refused(add: Any, store: Store, given: object, session: SessionDoor) -> None:
    with pytest.raises(ArgumentsError, match="is not an SQLAlchemy Session, scoped_session or Connection"):
        add.using(session=given).enqueue(1)
    assert stored(store) == []


class Owner:
    """Stands for Flask-SQLAlchemy's db, which is not a session but has one."""

    session = None


@pytest.mark.sqlite_only
def test_owner_of_a_session_is_pointed_to_it(idle_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(ArgumentsError, match=r"is not an SQLAlchemy Session.* as in session=db\.session\."):
        idle_worker.task(name="work")(lambda: 1).using(session=Owner()).enqueue()


@same_place
@pytest.mark.sqlite_only
def test_asynchronous_session_wants_aenqueue(open_door: Callable[..., AsyncDoor], add: Any, store: Store) -> None:
    door = open_door(AsyncDoor)
    with pytest.raises(ArgumentsError, match="session is asynchronous: await .*aenqueue"):
        add.using(session=door.given).enqueue(1)
    assert stored(store) == []


@same_place
def test_sync_session_may_be_used_with_aenqueue(session: SessionDoor, add: Any, store: Store) -> None:
    job = asyncio.run(add.using(session=session.given).aenqueue(1))
    session.commit()
    assert stored(store) == [job.id]


@pytest.mark.sqlite_only
def test_sessions_of_many_threads_do_not_mix(
    open_door: Callable[..., SessionDoor], add: Any, store: Store, session_url: str
) -> None:
    engine = open_door(SessionDoor).engine
    kept: list[Job[Any]] = []

    def work(number: int) -> None:
        for turn in range(5):
            with Session(engine) as session:
                job = add.using(session=session).enqueue(number, turn)
                if turn % 2:
                    session.rollback()
                else:
                    session.commit()
                    kept.append(job)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(store) == sorted(job.id for job in kept)
    assert len(kept) == 12


@pytest.mark.sqlite_only
def test_nothing_is_kept_of_a_session_that_is_gone(session_url: str, add: Any, store: Store) -> None:
    import gc
    import weakref

    engine = engine_of(session_url)
    session = Session(engine)
    add.using(session=session).enqueue(1)
    session.commit()
    gone = weakref.ref(session)
    session.close()
    del session
    gc.collect()
    assert gone() is None
    engine.dispose()


def test_session_that_commits_each_statement_is_refused(session_url: str, add: Any, store: Store, place: str) -> None:
    engine = create_engine(with_psycopg(session_url), isolation_level="AUTOCOMMIT")
    with Session(engine) as given:
        if place == "same":
            with pytest.raises(ArgumentsError, match="is in AUTOCOMMIT"):
                add.using(session=given).enqueue(1)
        else:
            add.using(session=given).enqueue(1)
        given.rollback()
    engine.dispose()
    assert stored(store) == []


@pytest.mark.parametrize("name", ["before_commit", "after_commit"])
def test_listeners_of_a_session_enqueue_while_it_can_still_take_a_job(
    session: SessionDoor, add: Any, store: Store, name: str
) -> None:
    refused = []

    def listener(given: Session) -> None:
        try:
            add.using(session=given).enqueue(1)
        except ArgumentsError as error:
            refused.append("in the middle of its commit" in str(error))

    given = session.given
    given.execute(text("SELECT 1"))
    event.listen(given, name, listener)
    given.commit()
    event.remove(given, name, listener)
    assert (len(stored(store)), refused) == ((1, []) if name == "before_commit" else (0, [True]))
