"""What the doctor finds, and what it says to do about it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event

from flask_taskworker import Every, Limit, Mail
from flask_taskworker.ops.doctor import Finding, file_system_of, findings, settings
from tests.support.cli_shop import Shop


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
    assert "ok       The code declares the tasks of all waiting jobs.\n" in answer.out


@pytest.mark.no_tables_yet
def test_doctor_makes_no_tables_and_no_file(make_app: Callable[..., Flask]) -> None:
    shop = Shop(make_app(), tables=False)
    answer = shop("doctor")
    assert answer.code == 1
    assert "ERROR    No tables found in sqlite:///" in answer.out
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


@pytest.mark.parametrize(
    ("version", "fix"),
    [
        ("0", "flask tasks db upgrade"),
        ("99", "Install the newer one, or give TASKER_DATABASE_URI another database."),
    ],
)
def test_schema_of_another_version_is_an_error_and_is_left_alone(
    shop: Shop, make_app: Callable[..., Flask], version: str, fix: str
) -> None:
    shop.add.enqueue(1)
    write(shop, "UPDATE taskworker_meta SET value = ? WHERE name = 'schema_version'", version)
    shop.state.client.close()
    other = Shop(make_app(TASKER_DATABASE_URI=f"sqlite:///{path_of(shop)}2"))
    path_of(shop).rename(path_of(other))
    finding = found(other, f"The tables have version {version}")
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
    finding = found(shop, f"may read {path} (mode 0o644)")
    assert (finding.level, finding.fix) == ("warning", f"chmod 600 {path}")
    path.chmod(0o602)
    assert found(shop, f"Other users on this machine may write to {path} (mode 0o602)").level == "error"
    path.chmod(0o600)
    path.parent.chmod(0o777)
    assert found(shop, f"Other users on this machine may replace files in {path.parent}").level == "error"
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
    command = finding.fix.partition("discard them: flask tasks ")[2]
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


def test_schedule_that_no_one_fires_is_found(shop: Shop) -> None:
    # Half an hour off the beat: it is as late at whatever time of the hour.
    start = datetime.now(UTC) - timedelta(minutes=30)
    shop.add.schedule(Every(hours=1, start=start), name="often", args=(1,))
    shop.register_worker()
    shop.jump(2 * 3_600_000)
    assert found(shop, "The schedule 'often' is late by 1 h").level == "error"


def test_jobs_that_no_one_deletes_are_found(shop: Shop) -> None:
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


def test_network_file_systems_are_recognised_by_their_mounts() -> None:
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


@pytest.mark.parametrize("begins", [True, False], ids=["with the first read", "with the first write"])
def test_session_that_takes_the_write_lock_to_read_is_found(shop: Shop, *, begins: bool) -> None:
    shop.app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{path_of(shop)}"
    db = SQLAlchemy(shop.app)
    with shop.app.app_context():
        engine = db.engine

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        if begins:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    assert any("A session that only reads holds the write lock" in words for words in wrong(shop)) is begins


def test_check_that_cannot_look_says_so_and_others_go_on(shop: Shop) -> None:
    shop.add.enqueue(1)
    shop.state.client.close()
    path_of(shop).write_bytes(b"no database at all" * 100)
    texts = [finding.text for finding in findings(shop.app)]
    assert any("file is not a database" in text for text in texts), texts
    assert any("are free on the disk" in text for text in texts), texts


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


def test_app_without_a_worker_learns_what_to_do(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    Shop(app)
    del app.extensions["taskworker"]
    for words in (["doctor"], ["jobs"]):
        result = app.test_cli_runner().invoke(args=["tasks", *words])
        assert result.exit_code == 1
        assert "This app has no TaskWorker." in result.stderr


# -- limits ------------------------------------------------------------------------------------------------------------


def limited(make_app: Callable[..., Flask]) -> Shop:
    shop = Shop(make_app(TASKER_QUEUE_LIMITS={"web": Limit(running=2)}))
    shop.task_worker.task(name="shop.label", limit=Limit("carrier", running=5))(lambda: None)
    return shop


def test_limits_as_the_code_has_them_are_well(make_app: Callable[..., Flask]) -> None:
    assert found(limited(make_app), "2 limits hold, as the code declares.").level == "ok"


def test_limit_of_a_queue_that_no_task_uses_is_a_warning(make_app: Callable[..., Flask]) -> None:
    shop = Shop(make_app(TASKER_QUEUE_LIMITS={"wbe": Limit(running=2), "mail": Limit(running=1)}))
    Mail(shop.app)
    finding = found(shop, "TASKER_QUEUE_LIMITS")
    assert (finding.level, finding.fix) == ("warning", "Correct its name, or remove it.")
    assert "'wbe', and no task and no job uses it" in finding.text


def test_limit_that_the_code_lost_is_a_warning(make_app: Callable[..., Flask]) -> None:
    shop = limited(make_app)
    write(shop, "INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) VALUES ('old', 3, 'code', 1, 1)")
    finding = found(shop, "The limit 'old' (running 3) still holds, and this code does not declare it.")
    assert finding.level == "warning"
    assert finding.fix is not None
    assert finding.fix.endswith("flask tasks limit old --reset")


def test_limit_that_was_changed_at_run_time_is_a_warning(make_app: Callable[..., Flask]) -> None:
    shop = limited(make_app)
    assert shop("limit", "carrier", "--running", "2").code == 0
    finding = found(shop, "The limit 'carrier' is running 2: ")
    assert finding.text.endswith(" ago. The code says running 5.")
    assert finding.fix == "flask tasks limit carrier --reset"
    assert shop("limit", "carrier", "--reset").code == 0
    assert found(shop, "2 limits hold, as the code declares.").level == "ok"


def test_job_that_runs_alone_beside_the_limit_of_its_queue_is_a_warning(make_app: Callable[..., Flask]) -> None:
    shop = limited(make_app)
    with shop.app.app_context():
        shop.crawl.enqueue("x")
    write(shop, "UPDATE taskworker_job SET solo = 1")
    assert found(shop, "beside the limit of their queue 'web': 1.").level == "warning"


def test_batch_that_was_left_open_is_a_warning(shop: Shop) -> None:
    block = shop.task_worker.batch("import")
    batch = block.__enter__()
    shop.add.using(batch=batch).enqueue(1)
    assert not [finding for finding in findings(shop.app) if "import" in finding.text]
    shop.jump(2 * 3_600_000)
    (found,) = [finding for finding in findings(shop.app) if "import" in finding.text]
    assert (found.level, found.fix) == (
        "warning",
        f"If no process adds jobs to it any more: flask tasks batch {batch.id} --seal",
    )
    batch.seal()
    assert not [finding for finding in findings(shop.app) if "import" in finding.text]
