"""A job knows where it was enqueued: by which request, inside which job, from which command."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Mail, Message, current_job
from flask_taskworker.client import origin
from flask_taskworker.core.rows import read_origin
from flask_taskworker.ops.browse import Browser
from flask_taskworker.store.sql import Store

pytestmark = pytest.mark.both_databases

Find = Callable[[int], dict[str, Any]]


@pytest.fixture
def find(store: Store, idle_worker: BackgroundTaskWorker) -> Find:
    return lambda job_id: read_origin(Browser(store).job(job_id).origin)


@pytest.fixture
def command() -> Iterator[None]:
    with click.Context(click.Command("call"), info_name="flask tasks call"):
        yield


@pytest.fixture
def carriers() -> Iterator[list[Callable[[dict[str, Any]], None]]]:
    before = list(origin.carriers)
    yield origin.carriers
    origin.carriers[:] = before


def test_nothing_is_kept_where_nothing_is_known(idle_worker: BackgroundTaskWorker, store: Store, find: Find) -> None:
    job = idle_worker.task(name="t")(lambda: None).enqueue()
    assert Browser(store).job(job.id).origin is None
    assert find(job.id) == {}


@pytest.mark.usefixtures("command")
def test_a_job_of_a_request_names_it(app: Flask, idle_worker: BackgroundTaskWorker, find: Find) -> None:
    task = idle_worker.task(name="t")(lambda: None)
    found: list[int] = []

    @app.post("/reports/<path:rest>")
    def build(rest: str) -> str:
        found.extend([task.enqueue().id, *(job.id for job in task.enqueue_many([(), ()]))])
        return ""

    app.test_client().post("/reports/7?token=secret")
    for job_id in found:
        assert find(job_id) == {"request": "POST /reports/7"}
    app.test_client().post("/reports/" + "x" * 1000 + "%00")
    assert len(find(found[3])["request"]) == 200


@pytest.mark.usefixtures("command")
@pytest.mark.sqlite_only
def test_a_job_of_a_job_names_it(app: Flask, idle_worker: BackgroundTaskWorker, find: Find) -> None:
    child = idle_worker.task(name="child")(lambda: None)

    @idle_worker.task
    def sync_parent() -> int:
        return child.enqueue().id

    @idle_worker.task
    async def async_parent() -> tuple[int, int]:
        return child.enqueue().id, (await child.aenqueue()).id

    idle_worker.start()
    parent = sync_parent.enqueue()
    assert find(parent.result(timeout=20)) == {"job": parent.id}
    parents = async_parent.enqueue()
    for job_id in parents.result(timeout=20):
        assert find(job_id) == {"job": parents.id}
    assert find(parent.id) == {"command": "flask tasks call"}


@pytest.mark.usefixtures("command")
@pytest.mark.sqlite_only
def test_a_job_of_a_command_names_it(idle_worker: BackgroundTaskWorker, find: Find) -> None:
    assert find(idle_worker.task(name="t")(lambda: None).enqueue().id) == {"command": "flask tasks call"}


@pytest.mark.sqlite_only
def test_a_job_of_a_flask_command_names_it(app: Flask, idle_worker: BackgroundTaskWorker, find: Find) -> None:
    task = idle_worker.task(name="t")(lambda: None)
    found: list[int] = []

    @app.cli.command()
    def seed() -> None:
        found.append(task.enqueue().id)

    app.test_cli_runner().invoke(args=["seed"])
    assert find(found[0])["command"].endswith(" seed")


@pytest.mark.usefixtures("command")
def test_a_queued_mail_has_an_origin_too(app: Flask, idle_worker: BackgroundTaskWorker, find: Find) -> None:
    app.config["MAIL_DEFAULT_SENDER"] = "from@example.com"
    mail = Mail(app)
    with app.app_context():
        job = mail.send_later(Message("Hi", recipients=["a@x.org"], body="Hi"))
    assert find(job.id) == {"command": "flask tasks call"}


@pytest.mark.sqlite_only
def test_a_carrier_adds_what_the_job_carries(
    idle_worker: BackgroundTaskWorker, find: Find, carriers: list[Callable[[dict[str, Any]], None]]
) -> None:
    carriers.append(lambda found: found.update(traceparent="00-ü-\ud800"))
    received: list[str | None] = []

    @idle_worker.task
    def look() -> None:
        received.append(current_job._job().claim.origin)

    job = look.enqueue()
    assert find(job.id) == {"traceparent": "00-ü-\ud800"}
    idle_worker.start()
    job.result(timeout=20)
    assert read_origin(received[0]) == {"traceparent": "00-ü-\ud800"}


@pytest.mark.parametrize("text", [None, "", "{", "7", "[]", '"x"', "null"])
def test_a_damaged_origin_is_empty(text: str | None) -> None:
    assert read_origin(text) == {}


# -- enqueueing while a module is imported -----------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_enqueueing_while_a_module_is_imported_is_warned_about(
    app: Flask,
    idle_worker: BackgroundTaskWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    idle_worker.task(name="work")(lambda: None)
    monkeypatch.syspath_prepend(tmp_path)
    call = "from flask import current_app\ntasks = current_app.extensions['taskworker'].registry\n"
    (tmp_path / "once_only.py").write_text(f"{call}tasks.find('work').using(uid='one').enqueue()\n")
    (tmp_path / "each_time.py").write_text(f"{call}def go():\n    tasks.find('work').enqueue()\n\n\ngo()\n")
    with app.app_context():
        importlib.import_module("once_only")
        assert caplog.text == ""
        importlib.import_module("each_time").go()
    warnings = [record.getMessage() for record in caplog.records if "imported" in record.getMessage()]
    assert [words[:48] for words in warnings] == ["work is enqueued while each_time is imported, so"]
