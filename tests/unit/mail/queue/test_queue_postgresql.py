"""Queued mail on PostgreSQL: the same statements in another dialect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import JobFailed
from flask_taskworker.mail import Attachment, Mail, Message
from flask_taskworker.mail.queue import delivery
from flask_taskworker.store.work import WorkerStore
from tests.support.apps import task_worker_of
from tests.support.smtp_server import Session, SMTPServer


@pytest.fixture
def server(serve: Callable[..., SMTPServer]) -> SMTPServer:
    return serve()


@pytest.fixture
def mail(
    server: SMTPServer, postgres_url: str, make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mail]:
    # On a busy machine a server that is there may need more than a second to greet, and mails would be put off.
    monkeypatch.setattr(delivery, "PATIENCE_S", 20.0)
    app = make_app(
        TASKER_DRIVER="postgresql",
        TASKER_DATABASE_URI=postgres_url,
        MAIL_PORT=server.port,
        MAIL_DEFAULT_SENDER="from@example.com",
        MAIL_RETRY_BASE=0.05,
    )
    worker = BackgroundTaskWorker(app)
    mail = Mail(app)
    worker.start()
    with app.app_context():
        yield mail
    worker.stop(5)


def test_mail_is_queued_sent_recorded_and_pruned(mail: Mail, server: SMTPServer) -> None:
    tries: list[str] = []

    def script(session: Session, verb: str, line: str) -> str | None:
        tries.append(line)
        if verb != "RCPT":
            return None
        if "absent@" in line:
            return "550 5.1.1 no such user"
        return "450 4.2.0 busy" if "later@" in line and tries.count(line) < 3 else None

    server.script = script
    shared = Attachment("a.bin", data=bytes(range(256)) * 40)
    message = Message("hi", ["now@x.org", "absent@x.org", "later@x.org"], "\u00fc", attachments=[shared])
    job = mail.send_later(message)
    others = mail.send_later_many([Message(f"n{i}", [f"r{i}@x.org"], "x", attachments=[shared]) for i in range(10)])
    assert job.result(30) == {"absent@x.org": 'rejected 550 "5.1.1 no such user"'}
    assert [other.result(30) for other in others] == [{}] * 10
    assert next(str(state) for state in job.recipients.values()).startswith("accepted 250")
    assert [sent.data for sent in server.mails if b"Subject: hi\r\n" in sent.data] == [message.as_bytes()] * 2

    store = mail.app.extensions["taskworker"].store
    assert store.driver.read("SELECT uses FROM taskworker_blob", {}) == [(11,)]
    store.driver.write("UPDATE taskworker_mail SET expires_at = 0", {})

    async def prune() -> None:
        work = await WorkerStore.open(store)
        await work.prune()
        await work.close()

    asyncio.run(prune())
    for table in ("mail", "mail_body", "recipient", "blob"):
        assert store.driver.read(f"SELECT count(*) FROM taskworker_{table}", {}) == [(0,)]


def test_once_is_held_and_sent_again_by_a_person(mail: Mail, server: SMTPServer) -> None:
    state = mail.app.extensions["taskworker"]
    task_worker_of(mail.app).stop(30)
    job = mail.send_later(Message("hi", ["a@x.org"], "x"), once=True)
    state.store.driver.write("UPDATE taskworker_mail SET phase = 'dot'", {})
    task_worker_of(mail.app).start()
    with pytest.raises(JobFailed) as caught:
        job.result(30)
    assert caught.value.kind == "unknown"
    assert job.retry()
    assert job.result(30) == {}
    assert len(server.mails) == 1
