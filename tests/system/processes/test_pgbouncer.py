"""All of it through a real PgBouncer, which lends the server's sessions: for as long as a client stays, or by the
transaction."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import make_url

from flask_taskworker import BackgroundTaskWorker, Every, JobState, current_job
from flask_taskworker.errors import NotAccepted, NotSupported, OutcomeUnknown, StoreError
from tests.support.postgres import PostgresServer, a_database, connect, run_sql
from tests.support.twins import twin_of
from tests.support.waiting import wait_for
from tests.system.processes.parent import Lab

POOLER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(POOLER is None, reason="no pgbouncer on PATH: apt-get install pgbouncer, for example")

PATIENCE = 20.0
MODES = {"session": True, "transaction": False}
"""TASKER_LISTEN for each pool_mode."""

CONFIGURATION = """
[databases]
{database} = {target}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
logfile = {folder}/log
query_wait_timeout = 2
server_login_retry = 1
{more}
"""

CHILD = """
import time
from flask import Flask
from flask_taskworker import BlockingTaskWorker

app = Flask("child")
app.config.update(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI={uri!r})
task_worker = BlockingTaskWorker(app)
task_worker.task(name="work")(lambda: time.sleep(600))
task_worker.start()
"""

Bouncer = Callable[..., str]
MakeApp = Callable[..., Flask]
WorkerOf = Callable[[Flask], BackgroundTaskWorker]


@contextmanager
def pgbouncer(url: str, mode: str, more: str) -> Iterator[str]:
    """A PgBouncer before the database of *url*; yields the URL through it."""
    assert POOLER is not None
    parts = make_url(url).translate_connect_args(username="user", database="dbname") | dict(make_url(url).query)
    folder = Path(tempfile.mkdtemp(prefix="twpgb-"))
    folder.chmod(0o755)
    (folder / "users").write_text(f'"{parts["user"]}" ""\n')
    target = " ".join(f"{key}='{value}'" for key, value in parts.items())
    values = {"database": parts["dbname"], "target": target, "folder": folder, "mode": mode, "more": more}
    (folder / "ini").write_text(CONFIGURATION.format(**values))
    # It refuses to run as root.
    user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "nobody")
    command = ["setpriv", *user, "--pdeathsig", "INT", POOLER, str(folder / "ini")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    try:
        wait_for(lambda: process.poll() is not None or _answers(folder / ".s.PGSQL.6432"))
        assert process.poll() is None, (folder / "log").read_text()
        yield f"postgresql://{parts['user']}@/{parts['dbname']}?host={folder}&port=6432"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as caller:
        return caller.connect_ex(str(path)) == 0


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """The URL of a database of its own, past the pooler: PgBouncer passes no search_path on."""
    with a_database(postgres) as url:
        yield url


@pytest.fixture
def bouncer(database: str) -> Iterator[Bouncer]:
    with ExitStack() as stack:
        yield lambda mode, more="": stack.enter_context(pgbouncer(database, mode, more))


@pytest.fixture
def pooled_app(make_app: Callable[..., Flask], bouncer: Bouncer) -> Callable[..., Flask]:
    """A factory of apps behind a PgBouncer each."""

    def make(mode: str, more: str = "", **config: Any) -> Flask:
        defaults = {"TASKER_LISTEN": MODES.get(mode), "TASKER_LOOP_INTERVAL": 0.2}
        return make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=bouncer(mode, more), **defaults | config)

    return make


@pytest.fixture
def worker_of(bouncer: Bouncer) -> Iterator[Callable[[Flask], BackgroundTaskWorker]]:
    """A factory of task workers, not started, that are stopped before the pooler is."""
    with ExitStack() as stack:

        def make(app: Flask) -> BackgroundTaskWorker:
            task_worker = BackgroundTaskWorker(app)
            stack.callback(task_worker._state().client.close)
            stack.callback(task_worker.stop, timeout=2)
            return task_worker

        yield make


def sql_of(app: Flask, mode: str) -> SQLAlchemy:
    """The application's own SQLAlchemy, through the same pooler."""
    url = make_url(app.config["TASKER_DATABASE_URI"]).set(drivername="postgresql+psycopg")
    arguments = {} if mode == "session" else {"prepare_threshold": None}
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": arguments})
    return SQLAlchemy(app)


@pytest.mark.parametrize("mode", MODES)
def test_jobs_of_many_threads_and_two_workers_run_once_each(
    pooled_app: MakeApp, worker_of: WorkerOf, database: str, mode: str
) -> None:
    app = pooled_app(mode)
    task_worker = worker_of(app)
    twin = worker_of(twin_of(app))
    ran: list[int] = []
    for worker in (task_worker, twin):

        @worker.task(name="double")
        async def double(x: int) -> int:
            ran.append(x)
            current_job.progress(1, 1)
            return 2 * x

    first = task_worker._registry.find("double")
    task_worker.start()
    twin.start()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda x: first.enqueue(x).result(timeout=PATIENCE), range(200)))
    assert found == [2 * x for x in range(200)]
    more = first.enqueue_many([(x,) for x in range(200, 400)])
    assert [job.result(timeout=PATIENCE) for job in more] == [2 * x for x in range(200, 400)]
    assert sorted(ran) == list(range(400))
    assert run_sql(database, "SELECT state, count(*) FROM taskworker_job GROUP BY state") == [("succeeded", 400)]


@pytest.mark.parametrize("mode", MODES)
def test_jobs_of_a_transaction_are_there_with_it_and_atomic_tasks_write_once(
    pooled_app: MakeApp, worker_of: WorkerOf, database: str, mode: str
) -> None:
    app = pooled_app(mode)
    task_worker = worker_of(app)
    db = sql_of(app, mode)
    run_sql(database, "CREATE TABLE note (x integer)")

    @task_worker.task(atomic=db)
    def note(x: int) -> None:
        db.session.execute(db.text("INSERT INTO note VALUES (:x)"), {"x": x})

    task_worker.start()
    jobs = []
    with app.app_context():
        for x in range(40):
            job = note.using(session=db.session).enqueue(x)
            if x % 2:
                db.session.rollback()
            else:
                db.session.commit()
                jobs.append(job)
        for job in jobs:
            job.result(timeout=PATIENCE)
        db.session.remove()
        db.engine.dispose()
    assert run_sql(database, "SELECT x FROM note ORDER BY x") == [(x,) for x in range(0, 40, 2)]
    assert run_sql(database, "SELECT count(*) FROM taskworker_job") == [(20,)]


@pytest.mark.parametrize("mode", MODES)
def test_schedules_fire_each_of_their_times(pooled_app: MakeApp, worker_of: WorkerOf, database: str, mode: str) -> None:
    app = pooled_app(mode)
    task_worker = worker_of(app)
    seen: list[int] = []
    task_worker.task(name="tick", schedule=Every(seconds=0.1, overlap="allow", misfire="all"))(lambda: seen.append(1))
    task_worker.start()
    wait_for(lambda: len(seen) >= 15)
    task_worker.stop()
    times = [at for (at,) in run_sql(database, "SELECT fire_at FROM taskworker_job ORDER BY fire_at")]
    assert times == [times[0] + 100 * number for number in range(len(times))]


def test_worker_behind_a_session_pool_is_woken_from_elsewhere(
    pooled_app: MakeApp,
    worker_of: WorkerOf,
) -> None:
    app = pooled_app("session", TASKER_LOOP_INTERVAL=3600)
    task_worker = worker_of(app)
    task_worker.task(name="hello")(lambda: "hello")
    task_worker.start()
    task_worker._registry.find("hello").enqueue().result(timeout=PATIENCE)
    elsewhere = worker_of(twin_of(app))
    hello = elsewhere.task(name="hello")(lambda: "hello")
    for _ in range(3):
        assert hello.enqueue().result(timeout=PATIENCE) == "hello"


def test_death_behind_a_session_pool_is_noticed_by_the_lock(pooled_app: MakeApp, worker_of: WorkerOf, lab: Lab) -> None:
    app = pooled_app("session")
    task_worker = worker_of(app)
    script = lab.folder / "child.py"
    script.write_text(CHILD.format(uri=app.config["TASKER_DATABASE_URI"]))
    job = task_worker.task(name="work")(lambda: "done").enqueue()
    child = lab.start("python", str(script))
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    task_worker.start()
    child.send(signal.SIGKILL)
    # Without the lock it would take 30 beats.
    assert job.result(timeout=PATIENCE) == "done"


def test_crash_of_the_server_behind_the_pooler_leaves_open_whether_a_job_was_stored(
    make_app: MakeApp, worker_of: WorkerOf
) -> None:
    server = PostgresServer()
    try:
        server.start()
        with pgbouncer(server.url(), "transaction", "") as uri:
            app = make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=uri, TASKER_LISTEN=False)
            hello = worker_of(app).task(name="hello")(lambda: None)
            hello.enqueue()
            with closing(connect(server.url())) as lock, ThreadPoolExecutor(1) as thread:
                lock.execute("BEGIN; LOCK TABLE taskworker_job")
                enqueued = thread.submit(hello.enqueue)
                wait_for(lambda: lock.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall())
                server.stop(signal.SIGQUIT)
                with pytest.raises(OutcomeUnknown, match="server conn crashed"):
                    enqueued.result(PATIENCE)
                with pytest.raises(NotAccepted, match="server_login|query_wait_timeout"):
                    hello.enqueue()
    finally:
        server.close()


@pytest.mark.parametrize("order", ["server_round_robin = 0", "server_round_robin = 1"])
def test_transaction_pool_is_refused_to_those_who_would_listen(
    pooled_app: MakeApp, worker_of: WorkerOf, order: str
) -> None:
    app = pooled_app("transaction", order, TASKER_LISTEN=True)
    task_worker = worker_of(app)
    hello = task_worker.task(name="hello")(lambda: None)
    for _ in range(2):
        with pytest.raises(NotSupported, match="a pooler is there.*Set TASKER_LISTEN = False, or give TASKER_DATABASE"):
            hello.enqueue()
    with pytest.raises(NotSupported, match="Set TASKER_LISTEN = False"):
        task_worker.start()


def test_session_pool_without_a_second_session_is_not_taken_for_another_kind(
    pooled_app: MakeApp, worker_of: WorkerOf
) -> None:
    app = pooled_app("session", "default_pool_size = 1")
    assert worker_of(app).task(name="hello")(lambda: None).enqueue().state is JobState.READY


def test_session_pool_that_is_too_small_says_so(pooled_app: MakeApp, worker_of: WorkerOf) -> None:
    app = pooled_app("session", "default_pool_size = 1")
    task_worker = worker_of(app)
    task_worker.task(name="hello")(lambda: None).enqueue()
    other = worker_of(twin_of(app))
    with pytest.raises(StoreError, match="query_wait_timeout.*its pool be large enough"):
        other.task(name="hello")(lambda: None).enqueue()


@pytest.mark.parametrize("listen", [True, False])
def test_statement_pool_is_refused(pooled_app: MakeApp, worker_of: WorkerOf, listen: bool) -> None:
    app = pooled_app("statement", TASKER_LISTEN=listen)
    task_worker = worker_of(app)
    with pytest.raises(NotAccepted, match="pool_mode must be session or transaction"):
        task_worker.task(name="hello")(lambda: None).enqueue()


def test_parameters_that_the_pooler_does_not_pass_on_are_refused_with_the_remedy(
    make_app: Callable[..., Flask], bouncer: Bouncer
) -> None:
    uri = bouncer("session") + "&options=-csearch_path%3Dtasks"
    app = make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=uri)
    task_worker = BackgroundTaskWorker(app)
    with pytest.raises(NotAccepted, match="unsupported startup parameter.*leave it out of TASKER_DATABASE_URI"):
        task_worker.task(name="hello")(lambda: None).enqueue()
