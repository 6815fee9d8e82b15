"""What the doctor finds, and what it says to do about it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, StaticPool, event

from flask_taskworker import Every, Mail
from flask_taskworker.ops.doctor import Finding, file_system_of, findings, settings
from tests.support.cli_shop import Shop


@pytest.fixture
def shop(make_app: Callable[..., Flask]) -> Iterator[Shop]:
    shop = Shop(make_app())
    yield shop
    shop.task_worker.stop()
    shop.state.client.close()


def path_of(shop: Shop) -> Path:
    return Path(shop.state.config.database_uri.database or "")


def write(shop: Shop, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path_of(shop))) as connection:
        connection.execute(sql, values)
        connection.commit()


def found(shop: Shop, words: str) -> Finding:
    """The finding whose text has these words."""
    everything = findings(shop.app)
    matching = [finding for finding in everything if words in finding.text]
    assert len(matching) == 1, everything
    return matching[0]


def wrong(shop: Shop) -> list[str]:
    """What is not well, but for the version of SQLite that the tests run with."""
    return [f.text for f in findings(shop.app) if f.level != "ok" and not f.text.startswith("SQLite ")]


def test_sound_installation_has_nothing_wrong(shop: Shop) -> None:
    shop.add.enqueue(1)
    shop.register_worker()
    assert wrong(shop) == []
    answer = shop("doctor")
    assert answer.code == 0
    assert "ok       The code declares the tasks of all jobs that wait.\n" in answer.out


def test_doctor_makes_no_tables_and_no_file(make_app: Callable[..., Flask]) -> None:
    shop = Shop(make_app(), tables=False)
    answer = shop("doctor")
    assert answer.code == 1
    assert "ERROR    There are no tables in sqlite:///" in answer.out
    assert "         Check TASKER_DATABASE_URI. If it is right: flask tasks db init\n" in answer.out
    assert not path_of(shop).exists()


def test_json_has_a_finding_a_line(shop: Shop) -> None:
    shop.add.enqueue(1)
    answer = shop("doctor", "--json")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert answer.code == 4
    assert {tuple(row) for row in rows} == {("level", "text", "fix")}
    (error,) = [row for row in rows if row["level"] == "error"]
    assert error["text"].startswith("1 job is ready and no living worker takes it.")


@pytest.mark.parametrize(("version", "fix"), [("1", "flask tasks db upgrade"), ("99", "Install the newer one.")])
def test_schema_of_another_version_is_an_error_and_is_left_alone(
    shop: Shop, make_app: Callable[..., Flask], version: str, fix: str
) -> None:
    shop.add.enqueue(1)
    write(shop, "UPDATE taskworker_meta SET value = ? WHERE name = 'schema_version'", version)
    shop.state.client.close()
    other = Shop(make_app(TASKER_DATABASE_URI=f"sqlite:///{path_of(shop)}2"))
    path_of(shop).rename(path_of(other))
    finding = found(other, f"The tables are of version {version}")
    assert (finding.level, finding.fix) == ("error", fix)
    assert other("doctor").code == other("doctor", "--json").code == 5
    path_of(other).chmod(0o602)
    assert other("doctor").code == 4
    path_of(other).chmod(0o600)
    with closing(sqlite3.connect(path_of(other))) as connection:
        rows = connection.execute("SELECT value FROM taskworker_meta WHERE name = 'schema_version'").fetchall()
    assert rows == [(version,)]


def test_files_of_others_are_found(shop: Shop) -> None:
    shop.add.enqueue(1)
    path = path_of(shop)
    path.chmod(0o644)
    finding = found(shop, f"may use {path} (mode 0o644)")
    assert (finding.level, finding.fix) == ("warning", f"chmod 600 {path}")
    path.chmod(0o602)
    assert found(shop, f"Other users on this machine may write to {path} (mode 0o602)").level == "error"
    path.chmod(0o600)
    path.parent.chmod(0o777)
    assert found(shop, f"Everybody on this machine may replace files in {path.parent}").level == "error"
    path.parent.chmod(0o700)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give files away")
def test_live_directory_of_another_user_is_an_error(shop: Shop) -> None:
    live = Path(f"{path_of(shop)}-live")
    live.mkdir(0o700, exist_ok=True)
    os.chown(live, 4_242, -1)
    assert found(shop, f"{live} belongs to user 4242, the database to user 0.").level == "error"


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_live_directory_that_others_may_write_to_is_an_error(shop: Shop) -> None:
    live = Path(f"{path_of(shop)}-live")
    live.mkdir(0o700, exist_ok=True)
    live.chmod(0o770)
    finding = found(shop, f"Other users on this machine may write to {live} (mode 0o770).")
    assert (finding.level, finding.fix) == ("error", f"chmod 700 {live}")


def test_doctor_looks_at_a_file_that_other_commands_refuse(shop: Shop) -> None:
    shop.add.enqueue(1)
    path_of(shop).chmod(0o666)
    assert shop("status").code == 1
    assert "ERROR    Other users on this machine may write to" in shop("doctor").out


def test_other_journal_mode_is_an_error(shop: Shop) -> None:
    shop.add.enqueue(1)
    shop.state.client.close()
    write(shop, "PRAGMA journal_mode = DELETE")
    assert found(shop, "The journal mode of").level == "error"


def test_jobs_of_a_task_that_is_gone_are_found(shop: Shop) -> None:
    shop.add.enqueue_many([(1,), (2,)])
    write(shop, "UPDATE taskworker_job SET task = 'old.it''s gone'")
    finding = found(shop, "2 jobs wait for the task")
    assert finding.level == "warning"
    assert finding.fix is not None
    command = finding.fix.partition("put them away: flask tasks ")[2]
    assert command.startswith("discard --filter ")
    answer = shop("discard", "--filter", 'task:"old.it\'s gone"', "--yes")
    assert (answer.code, answer.out) == (0, "2\n")


def test_paused_queue_and_its_schedule_are_found(shop: Shop) -> None:
    shop.add.schedule(Every(hours=1), name="often", args=(1,))
    shop("pause", "web")
    shop("schedule", "pause", "often")
    finding = found(shop, "Queue 'web' is paused for ")
    assert (finding.level, finding.fix) == ("warning", "flask tasks resume web")
    assert found(shop, "The schedule 'often' is paused.").fix == "flask tasks schedule resume often"


def test_schedule_whose_task_is_gone_is_found(shop: Shop) -> None:
    shop.add.schedule(Every(hours=1), name="often", args=(1,))
    write(shop, "UPDATE taskworker_schedule SET task = 'gone'")
    assert found(shop, "The schedule 'often' is for the task 'gone'").level == "warning"


def test_schedule_that_nobody_fires_is_found(shop: Shop) -> None:
    # Half an hour off the beat: it is as late at whatever time of the hour.
    start = datetime.now(UTC) - timedelta(minutes=30)
    shop.add.schedule(Every(hours=1, start=start), name="often", args=(1,))
    shop.register_worker()
    shop.jump(2 * 3_600_000)
    assert found(shop, "The schedule 'often' is late for 1 h").level == "error"


def test_jobs_that_nobody_deletes_are_found(shop: Shop) -> None:
    shop.add.enqueue(1)
    shop.work()
    assert found(shop, "and deleted in time").level == "ok"
    shop.jump(26 * 3_600_000)
    finding = found(shop, "1 finished jobs should have been deleted an hour ago.")
    assert finding.level == "warning"
    assert "flask tasks purge --done-before 14d" in (finding.fix or "")


@pytest.mark.parametrize(
    ("behind_ms", "words"), [(-9_000, "is 9 s ahead of this machine's"), (8_000, "was last seen 8 s ago")]
)
def test_clocks_that_disagree_are_found(shop: Shop, behind_ms: int, words: str) -> None:
    now = shop.state.store.clock()
    shop.state.store.clock = lambda: now
    shop.register_worker(silent_for=behind_ms)
    (text,) = wrong(shop)
    assert words in text


# -- the application's own file ----------------------------------------------------------------------------------------


def recipe(engine: Engine) -> None:
    """As the documentation has it under Transactions."""

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def begin_deferred(engine: Engine) -> None:
    """SQLAlchemy's own recipe, for savepoints: it fails at read-then-write."""

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def break_off(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        raise RuntimeError("the application's own affair")


@pytest.fixture
def share(make_app: Callable[..., Flask]) -> Iterator[Callable[..., tuple[Shop, SQLAlchemy]]]:
    """Apps with Flask-SQLAlchemy that have their own tables and their jobs in one file."""
    made: list[tuple[Shop, SQLAlchemy]] = []

    def share(**config: object) -> tuple[Shop, SQLAlchemy]:
        app = make_app(**({"SQLALCHEMY_DATABASE_URI": "sqlite:///own.db"} | config))
        app.config["TASKER_DATABASE_URI"] = f"sqlite:///{app.instance_path}/own.db"
        shop, db = Shop(app), SQLAlchemy(app)
        made.append((shop, db))
        shop.add.enqueue(1)
        shop.register_worker()
        return shop, db

    yield share
    for shop, db in made:
        shop.state.client.close()
        with shop.app.app_context():
            for engine in db.engines.values():
                engine.dispose()


def engine_of(shop: Shop, db: SQLAlchemy, bind: str | None = None) -> Engine:
    with shop.app.app_context():
        return db.engines[bind]


OWN_TABLES = "The application keeps its own tables in"
Share = Callable[..., tuple[Shop, SQLAlchemy]]


@pytest.mark.parametrize("set_up", [None, begin_deferred], ids=["as it comes", "BEGIN"])
def test_own_file_without_immediate_transactions_is_a_warning(
    share: Share, set_up: Callable[[Engine], None] | None
) -> None:
    shop, db = share()
    if set_up is not None:
        set_up(engine_of(shop, db))
    finding = found(shop, OWN_TABLES)
    assert finding.level == "warning"
    assert "holds up every worker" in finding.text
    assert "Where no task is atomic, better leave out TASKER_DATABASE_URI" in (finding.fix or "")


@pytest.mark.parametrize("way", ["recipe", "isolation_level", "static pool"])
def test_own_file_with_immediate_transactions_is_no_warning(share: Share, way: str) -> None:
    options = {
        "recipe": {},
        "isolation_level": {"connect_args": {"isolation_level": "IMMEDIATE"}},
        "static pool": {"poolclass": StaticPool},
    }
    shop, db = share(SQLALCHEMY_ENGINE_OPTIONS=options[way])
    if way != "isolation_level":
        recipe(engine_of(shop, db))
    assert wrong(shop) == []
    assert found(shop, OWN_TABLES).text.endswith("its transactions begin with BEGIN IMMEDIATE.")
    assert shop("doctor").code == 0


def test_own_file_with_the_documented_recipe_waits_instead_of_failing(share: Share) -> None:
    """What the doctor calls right is right: of two transactions that read and then write none fails at once."""
    shop, db = share(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0}})
    recipe(engine_of(shop, db))
    with engine_of(shop, db).begin() as connection, closing(sqlite3.connect(path_of(shop), timeout=0)) as other:
        connection.exec_driver_sql("SELECT 1 FROM taskworker_meta")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")


def test_own_file_in_autocommit_is_a_warning_of_its_own(share: Share) -> None:
    shop, _ = share(SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "AUTOCOMMIT"})
    finding = found(shop, OWN_TABLES)
    assert finding.level == "warning"
    assert "each of its statements is committed by itself" in finding.text


def test_engine_for_reading_beside_an_immediate_one_is_no_warning(share: Share) -> None:
    shop, db = share(SQLALCHEMY_BINDS={"reading": "sqlite:///own.db", "other": "sqlite:///other.db"})
    recipe(engine_of(shop, db))
    finding = found(shop, OWN_TABLES)
    assert finding.level == "ok"
    assert finding.text.endswith("Let what goes through the bind 'reading' only read.")


def test_bind_in_the_file_of_the_jobs_is_found(share: Share) -> None:
    binds = {"jobs": {"url": "sqlite:///own.db"}}
    shop, db = share(SQLALCHEMY_DATABASE_URI="sqlite:///other.db", SQLALCHEMY_BINDS=binds)
    assert found(shop, OWN_TABLES).level == "warning"
    recipe(engine_of(shop, db, "jobs"))
    assert found(shop, OWN_TABLES).level == "ok"


def test_looking_how_transactions_begin_waits_for_nothing_and_changes_nothing(share: Share) -> None:
    """Neither for the write lock nor for the pool, and neither the file nor a pooled connection is different then."""
    patient = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 300, "connect_args": {"timeout": 300}}
    shop, db = share(SQLALCHEMY_ENGINE_OPTIONS=patient)
    engine = engine_of(shop, db)
    recipe(engine)
    with engine.connect() as connection:
        timeout = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
        before = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master ORDER BY 1").all()
        version = connection.exec_driver_sql("PRAGMA data_version").scalar()
        # This transaction holds the lock, and the pool's only connection.
        assert found(shop, OWN_TABLES).level == "ok"
        assert connection.exec_driver_sql("PRAGMA data_version").scalar() == version
        assert connection.exec_driver_sql("SELECT name, sql FROM sqlite_master ORDER BY 1").all() == before
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == timeout


def test_transactions_that_cannot_be_seen_are_no_warning(share: Share, make_app: Callable[..., Flask]) -> None:
    """Of an app whose event listener fails, and of one with engines of its own making."""
    shop, db = share()
    break_off(engine_of(shop, db))
    app = make_app(
        SQLALCHEMY_DATABASE_URI="sqlite:///own.db", SQLALCHEMY_BINDS={"odd": "no url", "worse": 5, "none": "://"}
    )
    app.config["TASKER_DATABASE_URI"] = f"sqlite:///{app.instance_path}/own.db"
    app.extensions["sqlalchemy"] = object()
    other = Shop(app)
    other.add.enqueue(1)
    for one in (shop, other):
        finding = found(one, OWN_TABLES)
        assert finding.level == "ok"
        assert "cannot be seen from here" in finding.text
        assert "in transactions that begin with BEGIN IMMEDIATE" in (finding.fix or "")
    other.state.client.close()


def test_network_file_systems_are_told_by_the_mounts() -> None:
    mounts = (
        "/dev/sda1 / ext4 rw 0 0\n"
        "server:/export /srv/shared nfs4 rw 0 0\n"
        "//nas/a\\040b /mnt/a\\040b cifs rw 0 0\n"
        "broken\n"
    )
    assert file_system_of(Path("/srv/app/taskworker.db"), mounts) == "ext4"
    assert file_system_of(Path("/srv/shared/app/taskworker.db"), mounts) == "nfs4"
    assert file_system_of(Path("/srv/shared2/taskworker.db"), mounts) == "ext4"
    assert file_system_of(Path("/mnt/a b/taskworker.db"), mounts) == "cifs"
    assert file_system_of(Path("/srv/shared/taskworker.db"), "a:/b /srv/shared nfs rw\noverlay / overlay rw\n") == "nfs"


def test_check_that_cannot_look_says_so_and_others_go_on(shop: Shop) -> None:
    shop.add.enqueue(1)
    shop.state.client.close()
    path_of(shop).write_bytes(b"no database at all" * 100)
    texts = [finding.text for finding in findings(shop.app)]
    assert any("file is not a database" in text for text in texts), texts
    assert any("free beside" in text for text in texts), texts


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_show_no_secret(make_app: Callable[..., Flask]) -> None:
    shop = Shop(make_app(MAIL_PASSWORD="hunter2", MAIL_USERNAME="ana", MAIL_SUPPRESS_SEND=True))
    Mail(shop.app)
    shown = settings(shop.app)
    assert shown["MAIL_PASSWORD"] == "•••"
    assert (shown["MAIL_USERNAME"], shown["TASKER_THREADS"]) == ("ana", str(shop.state.config.threads))
    for words in (["doctor", "--settings"], ["doctor", "--settings", "--json"]):
        answer = shop(*words)
        assert "hunter2" not in answer.out + answer.err
        assert "TASKER_KEEP_FAILED" in answer.out
    shop.state.client.close()


def test_database_password_is_masked_everywhere(make_app: Callable[..., Flask]) -> None:
    pytest.importorskip("psycopg")
    url = "postgresql://ana:hunter2@127.0.0.1:1/none?connect_timeout=1"
    shop = Shop(make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=url), tables=False)
    answer = shop("doctor", "--settings")
    assert answer.code == 4
    assert "ERROR" in answer.out
    assert "hunter2" not in answer.out + answer.err
    assert "ana:***@" in answer.out
    shop.state.client.close()


def test_app_without_a_worker_is_told_what_to_do(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    Shop(app)
    del app.extensions["taskworker"]
    for words in (["doctor"], ["jobs"]):
        result = app.test_cli_runner().invoke(args=["tasks", *words])
        assert result.exit_code == 1
        assert "The app has no TaskWorker." in result.stderr
