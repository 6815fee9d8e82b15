"""The commands that list and steer, on PostgreSQL: some of their statements differ there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from flask_taskworker import Every, Mail, Message
from tests.support.cli_shop import Shop, rows_of


@pytest.fixture
def shop(make_app: Callable[..., Flask], postgres_url: str) -> Iterator[Shop]:
    app = make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=postgres_url, MAIL_SUPPRESS_SEND=False, MAIL_PORT=1)
    shop = Shop(app)
    yield shop
    shop.task_worker.stop()
    shop.state.client.close()


def test_jobs_are_listed_steered_and_purged(shop: Shop) -> None:
    failed = shop.add.enqueue_many([("a1",), ("a2",), (1,)])
    shop.work()
    assert [row["id"] for row in rows_of(shop("jobs", "state:failed", "--json"))] == [failed[1].id, failed[0].id]
    assert shop("jobs", "task:shop.a*").code == 0
    (group,) = rows_of(shop("failures", "--json"))
    assert group["count"] == 2
    assert shop("discard", "--group", str(group["group"]), "--yes").out == "2\n"
    assert shop("restore", "--filter", "task:*", "--yes").out == "2\n"
    assert shop("retry", "--group", str(group["group"]), "--yes").out == "2\n"
    assert shop("cancel", "--filter", "state:ready", "--yes").out == "2\n"
    assert shop("job", str(failed[0].id), "--follow").code == 1
    assert shop("purge", "--done-before", "0s", "--dry-run").out == "3\n"
    assert shop("purge", "--done-before", "0s", "--yes").out == "3\n"


def test_queues_and_schedules_are_steered(shop: Shop) -> None:
    shop.add.schedule(Every(hours=1), name="often", args=(1,))
    assert shop("pause", "web").code == 0
    assert shop("resume", "web").code == 0
    for command in ("list", "next often", "skip often", "pause often", "resume often", "run often"):
        assert shop("schedule", *command.split()).code == 0, command


def test_doctor_and_mails_are_shown(shop: Shop) -> None:
    mail = Mail(shop.app)
    with shop.app.app_context():
        number = mail.send_later(Message("hi", recipients=["ana@example.org"], body="x", sender="me@example.org")).id
    result = shop.runner.invoke(args=["mail", "list", "--to", "ANA@", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["subject"]) == (0, "hi")
    result = shop.runner.invoke(args=["mail", "show", str(number)])
    assert result.exit_code == 0
    assert "ana@example.org  waiting" in result.stdout
    texts = [str(row["text"]) for row in map(json.loads, shop("doctor", "--no-smtp", "--json").out.splitlines())]
    assert any(text.startswith("The tables have version") for text in texts)
    assert not any("check could not be made" in text for text in texts), texts
