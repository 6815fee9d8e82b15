"""Postfix, Exim, OpenSMTPD, smtp-server and Haraka: every mail exactly once, and byte for byte."""

from __future__ import annotations

import email
import email.policy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.mail import Mail, Message
from tests.support.real_servers import SERVERS, NotThere, RealServer
from tests.support.smtp_server import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

Start = Callable[..., RealServer]
MakeApp = Callable[..., Flask]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a real server; one that is not there is a visible skip, and an error where CI is set."""
    with ExitStack() as servers:

        def started(name: str, **settings: Any) -> RealServer:
            try:
                return servers.enter_context(SERVERS[name](**settings))
            except NotThere as missing:
                if os.environ.get("CI"):
                    raise
                pytest.skip(f"{name}: {missing}")

        yield started


def make_mail(make_app: MakeApp, server: RealServer, **config: Any) -> Mail:
    return Mail(make_app(MAIL_PORT=server.port, MAIL_DEFAULT_SENDER="from@example.com", **config))


def letters(count: int, word: str = "m") -> list[Message]:
    return [Message(f"{word}{i}", [f"{word}{i}@example.com"], "text", sender="from@example.com") for i in range(count)]


CONTENTS: dict[str, dict[str, Any]] = {
    "dots": {"body": ".\n..\n.a\nb\n.\n"},
    "no end": {"body": "the last line has no end"},
    "utf-8": {"body": "Gr\u00fc\u00dfe \u2713\n" * 50, "subject": "\u00dcber \u2713 " * 20},
    "html": {"body": "a", "html": "<p>\u00fc</p>" * 300},
    "long line": {"body": "x" * 3000},
    "large": {"body": "0123456789abcde\n" * 40_000},
}


@pytest.mark.parametrize("name", SERVERS)
def test_content_arrives_byte_for_byte(name: str, start: Start, make_app: MakeApp) -> None:
    server = start(name)
    mail = make_mail(make_app, server)
    sent: dict[str, bytes] = {}
    with mail.app.app_context():
        for word, fields in CONTENTS.items():
            message = Message(**{"subject": word, "recipients": [f"{word.replace(' ', '')}@example.com"], **fields})
            message.attach("\u00fc.bin", "application/octet-stream", bytes(range(256)) * 400)
            assert mail.send(message)
            sent[message.msgId] = message.as_bytes()
    wait_until(lambda: len(server.arrived()) >= len(CONTENTS), 120)
    for arrived in server.arrived():
        parsed = email.message_from_bytes(arrived.data, policy=email.policy.default)
        mine = sent.pop(parsed["Message-ID"])
        head, _, body = mine.partition(b"\r\n\r\n")
        assert arrived.data.partition(b"\r\n\r\n")[2].rstrip(b"\r\n") == body.rstrip(b"\r\n")
        assert set(head.split(b"\r\n")) <= set(arrived.data.partition(b"\r\n\r\n")[0].split(b"\r\n"))
        attached = next(part for part in parsed.iter_attachments())
        assert (attached.get_filename(), attached.get_content()) == ("\u00fc.bin", bytes(range(256)) * 400)
    assert not sent


@pytest.mark.parametrize("name", SERVERS)
def test_bulk_and_queue_arrive_exactly_once(name: str, start: Start, make_app: MakeApp, tmp_path: Path) -> None:
    server = start(name)
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path / 'jobs.db'}")
    app.config.update(MAIL_PORT=server.port, MAIL_DEFAULT_SENDER="from@example.com")
    worker, mail = BackgroundTaskWorker(app), Mail(app)
    worker.start()
    try:
        with app.app_context():
            jobs = mail.send_later_many(letters(100, "q"))
            jobs += [mail.send_later(message, once=True) for message in letters(20, "once")]
            assert all(mail.send_many(letters(1000)))
            assert all(job.result(120) == {} for job in jobs)
    finally:
        worker.stop()
    wait_until(lambda: len(server.recipients()) >= 1120, 200)
    expected = {f"{word}{i}@example.com" for word, n in (("m", 1000), ("q", 100), ("once", 20)) for i in range(n)}
    assert Counter(server.recipients()) == Counter(expected)


LIMITS: dict[str, dict[str, Any]] = {
    "postfix": {"smtpd_client_connection_count_limit": 2, "smtpd_client_event_limit_exceptions": ""},
    "exim": {"smtp_accept_max_per_host": 2},
    "smtp-server": {"maxClients": 2},
}


@pytest.mark.parametrize("name", LIMITS)
def test_two_connections_are_enough(
    name: str, start: Start, make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(name, **LIMITS[name])
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path / 'jobs.db'}")
    app.config.update(MAIL_PORT=server.port, MAIL_DEFAULT_SENDER="from@example.com")
    worker, mail = BackgroundTaskWorker(app), Mail(app)
    worker.start()
    try:
        with app.app_context():
            results = mail.send_many(letters(1000))
            assert [result.error for result in results if not result] == []
            jobs = mail.send_later_many(letters(50, "q"))
            assert all(job.result(60) == {} for job in jobs)
    finally:
        worker.stop()
    wait_until(lambda: len(server.recipients()) >= 1050, 200)
    assert max(Counter(server.recipients()).values()) == 1
    assert "queued mail waits" not in caplog.text


@pytest.mark.parametrize(
    ("name", "settings", "count"), [("postfix", {}, 2100), ("exim", {"recipients_max": 100}, 450)], ids=str
)
def test_more_recipients_than_the_server_takes_at_once_are_all_reached(
    name: str, settings: dict[str, Any], count: int, start: Start, make_app: MakeApp
) -> None:
    server = start(name, **settings)
    mail = make_mail(make_app, server)
    everyone = [f"r{i}@example.com" for i in range(count)]
    with mail.app.app_context():
        assert mail.send(Message("all", bcc=everyone, body="text")).accepted == tuple(everyone)
    wait_until(lambda: len(server.recipients()) >= count, 120)
    assert Counter(server.recipients()) == Counter(everyone)


def test_mails_of_one_connection_may_be_few(start: Start, make_app: MakeApp) -> None:
    server = start("exim", smtp_accept_max_per_connection=7)
    mail = make_mail(make_app, server)
    with mail.app.app_context():
        assert all(mail.send_many(letters(100)))
    wait_until(lambda: len(server.recipients()) >= 100, 120)
    assert max(Counter(server.recipients()).values()) == 1


def test_message_over_the_servers_size_is_refused_with_its_words(start: Start, make_app: MakeApp) -> None:
    server = start("postfix", message_size_limit=20_000)
    mail = make_mail(make_app, server)
    with mail.app.app_context():
        results = mail.send_many(
            [*letters(3), Message("large", ["l@example.com"], "x" * 50_000, sender="f@example.com")]
        )
    assert [bool(result) for result in results] == [True, True, True, False]
    assert "5.3.4" in str(results[-1].error)
