"""What PostgreSQL refuses is reported at once, in words, with the remedy; and no password ever is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import make_url

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import (
    ConfigError,
    ConnectionLost,
    NotAccepted,
    NotReachable,
    NotSupported,
    SchemaError,
    StoreError,
)
from flask_taskworker.store.postgresql import driver as postgresql_driver
from flask_taskworker.store.postgresql.connections import PostgresqlLink, PostgresqlServer
from flask_taskworker.store.schema import VERSION
from flask_taskworker.worker.timing import Timing
from tests.support.apps import task_worker_of
from tests.support.postgres import LOCKED_USER, OVERRIDE, a_database, a_schema, run_sql, with_options
from tests.support.stored import counts_of
from tests.support.waiting import wait_for

SECRET = "hunter2%40"
SOURCES = Path(__file__).parents[4] / "src"


MakeWorker = Callable[..., BackgroundTaskWorker]


@pytest.fixture
def make_worker(make_app: Callable[..., Flask]) -> Iterator[MakeWorker]:
    """A factory of task workers on PostgreSQL, each with an app of its own."""
    apps: list[Flask] = []

    def make(uri: str, **config: Any) -> BackgroundTaskWorker:
        apps.append(make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=uri, **config))
        return BackgroundTaskWorker(apps[-1])

    yield make
    for app in apps:
        if state := app.extensions.get("taskworker"):
            task_worker_of(app).stop()
            state.client.close()


@pytest.fixture
def own(postgres: str) -> str:
    """A server whose users we may change."""
    if OVERRIDE in os.environ:
        pytest.skip(f"These tests change the server's users; unset {OVERRIDE}.")
    return postgres


def through(own: str, user: str, password: str | None = None) -> str:
    return make_url(own).set(username=user, password=password).render_as_string(hide_password=False)


def make_tables(url: str) -> None:
    driver = postgresql_driver.PostgresqlDriver(make_url(url), listen=False)
    driver.prepare()
    driver.close()


@contextmanager
def a_user(own: str, name: str, options: str = "") -> Iterator[str]:
    run_sql(own, f"CREATE ROLE {name} LOGIN {options}")
    try:
        yield through(own, name)
    finally:
        run_sql(own, f"DROP OWNED BY {name}")
        run_sql(own, f"DROP ROLE {name}")


# -- the package -------------------------------------------------------------------------------------------------------

APP = """
import sys
from flask import Flask
from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import ConfigError

app = Flask("app")
app.config.update(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI="postgresql://u:hunter2@localhost/x")
try:
    BackgroundTaskWorker(app)
except ConfigError as error:
    print(error)
"""


def run_app(before: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(before) + APP],
        env={**os.environ, "PYTHONPATH": str(SOURCES), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
def test_missing_package_is_named_with_the_command_that_installs_it() -> None:
    said = run_app("import sys\nsys.modules['psycopg'] = None\n")
    assert said.startswith(
        "TASKER_DRIVER = 'postgresql' needs psycopg 3. Install it: pip install 'Flask-TaskWorker[pos"
    )
    assert "hunter2" not in said


@pytest.mark.slow
def test_package_without_its_library_says_so() -> None:
    said = run_app("", PSYCOPG_IMPL="c")
    assert "needs psycopg 3, which cannot be loaded: " in said
    assert said.rstrip().endswith("pip install 'psycopg[binary]'")


# -- the address -------------------------------------------------------------------------------------------------------


def test_unknown_parameter_of_the_url_is_named(make_worker: MakeWorker) -> None:
    with pytest.raises(ConfigError, match='TASKER_DATABASE_URI: invalid connection option "colour".*sslmode=require'):
        make_worker("postgresql://u:hunter2@localhost/x?colour=red").start()


def test_value_of_a_parameter_that_libpq_does_not_know_is_named(make_worker: MakeWorker) -> None:
    with pytest.raises(StoreError, match='invalid sslmode value: "on". Correct that parameter in TASKER_DATABASE_URI'):
        make_worker("postgresql://u:hunter2@127.0.0.1:1/x?sslmode=on").start()


def test_url_that_is_none_is_refused_with_an_example(make_worker: MakeWorker) -> None:
    with pytest.raises(ConfigError, match="not an SQLAlchemy URL. Example: postgresql://user:password@host") as caught:
        make_worker("postgresql://u:hunter2@host:port/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "postgresql://127.0.0.1:1/x",
            "PostgreSQL at 127.0.0.1:1/x: .*Connection refused. Check TASKER_DATABASE_URI, and",
        ),
        (
            "postgresql:///x?host=/nowhere",
            "PostgreSQL at /nowhere:5432/x: .*No such file.*Check TASKER_DATABASE_URI, and",
        ),
        ("postgresql://no.invalid/x", "PostgreSQL at no.invalid:5432/x: .*Check TASKER_DATABASE_URI, and"),
    ],
    ids=["port", "socket", "name"],
)
def test_server_that_cannot_be_reached_is_named(make_worker: MakeWorker, address: str, words: str) -> None:
    task_worker = make_worker(address)

    @task_worker.task(name="task")
    def task() -> None: ...

    with pytest.raises(NotReachable, match=words):
        task_worker._state().store.driver.prepare()
    with pytest.raises(NotAccepted, match=f"The job was not accepted. {words}"):
        task.enqueue()


def test_worker_starts_as_soon_as_a_server_that_was_away_answers(
    make_worker: MakeWorker, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Not in tmp_path: the path of a socket may have 107 characters.
    with a_schema(own) as url, tempfile.TemporaryDirectory() as place:
        folder = make_url(url).query["host"]
        own_folder = Path(place) / "s"
        path = make_url(url).query["options"].replace("=", "%3D")
        task_worker = make_worker(f"postgresql://postgres@/postgres?host={own_folder}&options={path}")
        task_worker._timing = Timing(reach_again=0.05)
        task = task_worker.task(name="task")(lambda: "ran")
        task_worker.start()
        assert "no worker runs in this process until the database answers" in caplog.text
        with pytest.raises(NotAccepted):
            task.enqueue()
        own_folder.symlink_to(str(folder))
        wait_for(task_worker._workers)
        assert task.enqueue().result(timeout=10) == "ran"


def test_requests_meanwhile_cause_no_further_tries(make_worker: MakeWorker, caplog: pytest.LogCaptureFixture) -> None:
    task_worker = make_worker("postgresql://127.0.0.1:1/x")
    task_worker._timing = Timing(reach_again=3600)
    task_worker.start()
    app = task_worker._state().find_app()
    assert app is not None
    for _ in range(20):
        assert app.test_client().get("/").status_code == 404
    names = [thread.name for thread in threading.enumerate()]
    assert "taskworker-boot" not in names
    assert caplog.text.count("no worker runs in this process") == 1
    assert task_worker._next_try is not None
    task_worker._next_try.cancel()


def test_stop_ends_the_tries_to_reach_a_server_that_is_away_also_amid_one(make_worker: MakeWorker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        task_worker = make_worker(f"postgresql://127.0.0.1:{server.getsockname()[1]}/x?sslmode=disable")
        task_worker._timing = Timing(reach_again=0.01)
        first = threading.Thread(target=lambda: server.accept()[0].close())
        first.start()
        task_worker.start()
        first.join()
        amid, _ = server.accept()
        task_worker.stop()
        amid.close()
        wait_for(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))
    assert not task_worker._start_again
    assert task_worker._workers() == []


def test_hosts_of_a_cluster_are_tried_in_turn(make_worker: MakeWorker, own: str) -> None:
    with a_schema(own) as url:
        folder = make_url(url).query["host"]
        path = make_url(url).query["options"].replace("=", "%3D")
        make_worker(f"postgresql://postgres@/postgres?host=/nowhere&host={folder}&options={path}").start()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ({"database": "nowhere"}, 'database "nowhere" does not exist. Create the database, or correct its name'),
        ({"username": "nobody_here"}, 'role "nobody_here" does not exist. Create the user, or correct its name'),
    ],
    ids=["database", "user"],
)
def test_what_does_not_exist_is_named(make_worker: MakeWorker, own: str, name: Any, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        make_worker(make_url(own).set(**name).render_as_string(hide_password=False)).start()


def test_schema_that_does_not_exist_is_named(make_worker: MakeWorker, own: str) -> None:
    with pytest.raises(
        StoreError, match="no schema has been selected.*search_path in TASKER_DATABASE_URI names no schema"
    ):
        make_worker(with_options(own, "-csearch_path=nowhere")).start()


# -- passwords ---------------------------------------------------------------------------------------------------------


def test_password_with_an_at_sign_is_not_taken_for_a_host_and_shown(make_worker: MakeWorker) -> None:
    with pytest.raises(ConfigError, match="more than one @ before its host. In a password write @ as %40") as caught:
        make_worker("postgresql://u:hun@ter2@127.0.0.1:1/x")
    assert not any("ter2" in repr(error) for error in chain_of(caught.value))


def test_wrong_password_is_refused_and_never_shown(
    make_worker: MakeWorker, own: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    with a_user(own, LOCKED_USER, "PASSWORD 'right'"):
        uri = through(own, LOCKED_USER, "hunter2@")
        task_worker = make_worker(uri, TASKER_DEBUG=True)

        @task_worker.task(name="task")
        def task() -> None: ...

        with pytest.raises(StoreError, match="authentication failed.*Check the user and the password") as start:
            task_worker.start()
        with pytest.raises(NotAccepted, match="authentication failed") as enqueue:
            task.enqueue()
    state = task_worker._state()
    shown = [repr(state.config), repr(state), state.store.driver.key, str(state.config.database_uri)]
    errors = [repr(error) for caught in (start, enqueue) for error in chain_of(caught.value)]
    for text in [*shown, *errors, caplog.text, *capfd.readouterr()]:
        assert "hunter2" not in text


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_password_among_the_parameters_works_and_is_hidden_too(make_worker: MakeWorker, own: str) -> None:
    with a_user(own, LOCKED_USER, "PASSWORD 'hunter2@'"), a_schema(own) as url:
        run_sql(own, f"GRANT CREATE, USAGE ON SCHEMA {schema_of(url)} TO {LOCKED_USER}")
        task_worker = make_worker(f"{through(url, LOCKED_USER)}&password={SECRET}")
        task_worker.start()
        task_worker.stop()
        state = task_worker._state()
        shown = (repr(state.config), state.store.driver.key, str(state.config.database_uri))
        assert not any("hunter2" in text for text in shown)


def schema_of(url: str) -> str:
    return str(make_url(url).query["options"]).partition("search_path=")[2]


def test_missing_password_is_asked_for(make_worker: MakeWorker, own: str) -> None:
    with a_user(own, LOCKED_USER, "PASSWORD 'right'"):
        with pytest.raises(StoreError, match="no password supplied. Give the password in TASKER_DATABASE_URI, or"):
            make_worker(through(own, LOCKED_USER)).start()


# -- rights ------------------------------------------------------------------------------------------------------------


def test_user_who_may_not_create_tables_learns_how_another_can(make_worker: MakeWorker, own: str) -> None:
    with a_user(own, "reader"), a_schema(own) as url:
        run_sql(own, f"GRANT USAGE ON SCHEMA {schema_of(url)} TO reader")
        with pytest.raises(StoreError, match="permission denied for schema.*let another do so: flask tasks db sql"):
            make_worker(through(url, "reader")).start()


def test_user_who_may_only_read_is_refused_with_words(make_worker: MakeWorker, own: str) -> None:
    with a_user(own, "reader"), a_schema(own) as url:
        make_tables(url)
        for right in ("USAGE ON SCHEMA {0}", "SELECT ON ALL TABLES IN SCHEMA {0}"):
            run_sql(own, f"GRANT {right.format(schema_of(url))} TO reader")
        task_worker = make_worker(through(url, "reader"))

        @task_worker.task(name="task")
        def task() -> None: ...

        with pytest.raises(
            NotAccepted, match="permission denied for .*taskworker_job.*Give this user the right to use"
        ):
            task.enqueue()
        assert counts_of(task_worker._state().store)["ready"] == 0


def test_user_who_may_use_but_not_create_needs_no_more(make_worker: MakeWorker, own: str) -> None:
    with a_user(own, "writer"), a_schema(own) as url:
        make_tables(url)
        for right in (
            "USAGE ON SCHEMA {0}",
            "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {0}",
            "USAGE ON ALL SEQUENCES IN SCHEMA {0}",
        ):
            run_sql(own, f"GRANT {right.format(schema_of(url))} TO writer")
        task_worker = make_worker(through(url, "writer"))

        @task_worker.task(name="task")
        def task() -> int:
            return 1

        task_worker.start()
        assert task.enqueue().result(timeout=20) == 1


def test_server_that_is_read_only_is_reported(make_worker: MakeWorker, own: str) -> None:
    with a_schema(own) as url:
        read_only = url.replace("options=", "options=-cdefault_transaction_read_only%3Don%20")
        with pytest.raises(StoreError, match="read-only transaction.*give TASKER_DATABASE_URI the primary's address"):
            make_worker(read_only).start()


def test_full_server_is_reported(make_worker: MakeWorker, own: str) -> None:
    with a_user(own, "lonely", "CONNECTION LIMIT 0") as url:
        with pytest.raises(StoreError, match="too many connections for role.*Raise the server's limit, run fewer"):
            make_worker(url)._state().store.driver.prepare()


# -- the server and its tables -----------------------------------------------------------------------------------------


def test_server_that_is_too_old_is_refused(make_worker: MakeWorker, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_driver, "OLDEST", 990_000)
    with pytest.raises(NotSupported, match=r"PostgreSQL \d+ is too old: 99 or newer is needed"):
        make_worker(own).start()


def test_database_in_another_encoding_is_refused(make_worker: MakeWorker, own: str) -> None:
    run_sql(own, "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    try:
        with pytest.raises(NotSupported, match="encoding is LATIN1: UTF8 is needed. Create one: createdb -E UTF8"):
            make_worker(make_url(own).set(database="latin").render_as_string(hide_password=False)).start()
    finally:
        run_sql(own, "DROP DATABASE latin WITH (FORCE)")


def test_tables_of_a_newer_version_are_refused(make_worker: MakeWorker, own: str) -> None:
    with a_schema(own) as url:
        make_tables(url)
        run_sql(url, f"UPDATE taskworker_meta SET value = '{VERSION + 1}' WHERE name = 'schema_version'")
        with pytest.raises(SchemaError, match=f"version {VERSION + 1}"):
            make_worker(url).start()


def test_tables_that_vanish_are_reported(make_worker: MakeWorker, own: str) -> None:
    with a_database(own) as url:
        task_worker = make_worker(url)

        @task_worker.task(name="task")
        def task() -> None: ...

        task.enqueue()
        run_sql(url, "DROP TABLE taskworker_job")
        with pytest.raises(NotAccepted, match="relation .*does not exist.*See: flask tasks db check"):
            task.enqueue()
        task_worker._state().client.close()


# -- a server that does not answer -------------------------------------------------------------------------------------


def test_worker_that_stops_waits_for_a_silent_server_no_more_than_a_moment(own: str) -> None:
    link = PostgresqlLink(PostgresqlServer(make_url(own), prepares=True), repeats=False)
    assert link.read("SELECT 1", {}) == [(1,)]
    link.hurry(0)
    with pytest.raises(ConnectionLost, match=r"the server has not answered for \d s"):
        link.read("SELECT pg_sleep(60)", {})
    assert link.read("SELECT 2", {}) == [(2,)]
    assert link.sessions == 2
    link.close()


def test_caller_that_enqueues_waits_for_a_slow_server(own: str) -> None:
    with closing(PostgresqlServer(make_url(own), prepares=True).open()) as connection:
        assert connection.answer_within is None
