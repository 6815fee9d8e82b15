"""Postfix, Exim, OpenSMTPD, smtp-server and Haraka: every mail exactly once, and byte for byte."""

from __future__ import annotations

import email
import email.policy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import JobFailed
from flask_taskworker.mail import AuthenticationFailed, Mail, Message
from tests.support.mail_fixtures import Certificates
from tests.support.real_servers import SERVERS, Limits, NotThere, RealServer
from tests.support.smtp_server import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

Start = Callable[..., RealServer]
MakeApp = Callable[..., Flask]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a real server; one that is not there is a visible skip, and an error where CI is set."""
    with ExitStack() as servers:

        def started(name: str, *args: Any, **settings: Any) -> RealServer:
            try:
                return servers.enter_context(SERVERS[name](*args, **settings))
            except NotThere as missing:
                if os.environ.get("CI") == "true":
                    raise
                pytest.skip(f"{name}: {missing}")

        yield started


@contextmanager
def mail_of(app: Flask, server: RealServer, **config: Any) -> Iterator[Mail]:
    """A Mail whose worker runs."""
    app.config.update(MAIL_PORT=server.port, MAIL_DEFAULT_SENDER="from@example.com", **config)
    worker, mail = BackgroundTaskWorker(app), Mail(app)
    worker.start()
    try:
        with app.app_context():
            yield mail
    finally:
        worker.stop()


def letters(count: int, word: str = "m") -> list[Message]:
    return [Message(f"{word}{i}", [f"{word}{i}@example.com"], "text") for i in range(count)]


def each_once(server: RealServer, **counts: int) -> None:
    """Wait until all mails have arrived, and see that no further ones have."""
    expected = Counter(f"{word}{i}@example.com" for word, count in counts.items() for i in range(count))
    wait_until(lambda: len(server.recipients()) >= len(expected), 120)
    assert Counter(server.recipients()) == expected


CONTENTS: dict[str, dict[str, Any]] = {
    "dots": {"body": ".\n..\n.a\nb\n.\n"},
    "no end": {"body": "the last line has no end"},
    "utf-8": {"body": "Gr\u00fc\u00dfe \u2713\n" * 50, "subject": "\u00dcber \u2713 " * 20},
    "html": {"body": "a", "html": "<p>\u00fc</p>" * 300},
    "html alone": {"html": "<p>\u00fc <a href='https://example.com/?a=1&amp;b=2'>there</a></p>"},
    "long line": {"body": "x" * 3000},
    "large": {"body": "0123456789abcde\n" * 40_000},
}


@pytest.mark.parametrize("name", SERVERS)
def test_content_arrives_byte_for_byte(name: str, start: Start, make_app: MakeApp) -> None:
    server = start(name)
    mail = Mail(make_app(MAIL_PORT=server.port, MAIL_DEFAULT_SENDER="from@example.com"))
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
def test_bulk_and_queue_arrive_exactly_once(name: str, start: Start, make_app: MakeApp) -> None:
    server = start(name, relay=False)
    with mail_of(make_app(), server) as mail:
        jobs = mail.send_later_many(letters(100, "queued"))
        jobs += [mail.send_later(message, once=True) for message in letters(20, "once")]
        assert all(mail.send_many(letters(1000)))
        assert all(job.result(120) == {} for job in jobs)
    each_once(server, m=1000, queued=100, once=20)


HAVE = {"postfix": {"connections", "rate", "greylisting"}}
"""What is not among the settings of all of them: Postfix lets a connection have as many mails as it wants."""
LIMITS = {
    "connections": (Limits(connections=2), 1000),
    "mails": (Limits(mails=7), 100),
    "rate": (Limits(rate=10), 20),
    "greylisting": (Limits(greylisting=True), 10),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", SERVERS)
def test_limit_loses_doubles_and_parks_nothing(
    name: str, limit: str, start: Start, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    if limit not in HAVE.get(name, LIMITS):
        pytest.skip(f"{name} has no such limit")
    limits, count = LIMITS[limit]
    server = start(name, limits, relay=False)
    with mail_of(make_app(), server, MAIL_RETRY_BASE=0.5, MAIL_RETRY_CAP=2) as mail:
        results = mail.send_many(letters(count))
        jobs = mail.send_later_many(letters(max(count // 20, 10), "queued"))
        assert all(job.result(120) == {} for job in jobs)
    refused = [next(iter(result.refused.values())).code for result in results if not result]
    assert set(refused) <= ({450, 451} if limit in ("rate", "greylisting") else set())
    accepted = [address for result in results for address in result.accepted]
    expected = Counter([*accepted, *(address for job in jobs for address in job.recipients)])
    wait_until(lambda: len(server.recipients()) >= len(expected), 120)
    assert Counter(server.recipients()) == expected
    assert "queued mail waits" not in caplog.text


@pytest.mark.parametrize("name", SERVERS)
def test_everyone_is_reached_where_the_server_takes_few_recipients_at_once(
    name: str, start: Start, make_app: MakeApp
) -> None:
    server = start(name, Limits(recipients=20), relay=False)
    with mail_of(make_app(), server, MAIL_RETRY_BASE=0.5) as mail:
        everyone = [[f"{word}{i}@example.com" for i in range(90)] for word in ("now", "later")]
        assert mail.send(Message("all", bcc=everyone[0], body="text")).accepted == tuple(everyone[0])
        assert mail.send_later(Message("all", bcc=everyone[1], body="text")).result(120) == {}
    each_once(server, now=90, later=90)


def test_2100_recipients_are_reached_through_a_default_postfix(start: Start, make_app: MakeApp) -> None:
    server = start("postfix")
    with mail_of(make_app(), server) as mail:
        everyone = [f"now{i}@example.com" for i in range(2100)]
        assert mail.send(Message("all", bcc=everyone, body="text")).accepted == tuple(everyone)
        later = Message("all", bcc=[f"later{i}@example.com" for i in range(2100)], body="text")
        assert mail.send_later(later).result(120) == {}
    each_once(server, now=2100, later=2100)


@pytest.mark.parametrize("name", SERVERS)
def test_message_over_the_servers_size_is_refused_with_its_words(name: str, start: Start, make_app: MakeApp) -> None:
    server = start(name, Limits(size=20_000), relay=False)
    with mail_of(make_app(), server) as mail:
        large = [Message("large", [f"{word}@example.com"], "x" * 50_000) for word in ("now", "later")]
        results = mail.send_many([*letters(3), large[0], *letters(3, "after")])
        with pytest.raises(JobFailed, match=r"later@example.com: 55[024] .*(size|too big)"):
            mail.send_later(large[1]).result(120)
    assert [bool(result) for result in results] == [True] * 3 + [False] + [True] * 3
    assert results[3].refused["now@example.com"].code in (550, 552, 554)
    each_once(server, m=3, after=3)


@pytest.mark.parametrize(
    "name", [name for name in SERVERS if name != "opensmtpd"]
)  # its patience is five minutes, and cannot be set
def test_mail_after_the_server_hung_up_is_sent_once(name: str, start: Start, make_app: MakeApp) -> None:
    server = start(name, Limits(patience=1), relay=False)
    with mail_of(make_app(), server) as mail:
        assert all(mail.send_many(letters(4)))
        wait_until(lambda: not open_connections(server.port))
        assert all(mail.send_many(letters(4, "again")))
        assert mail.send_later(Message("later", ["later0@example.com"], "text")).result(60) == {}
    each_once(server, m=4, again=4, later=1)


def open_connections(port: int) -> int:
    """Of clients on this machine to a server on *port*."""
    peer = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(fields[2] == peer and fields[3] == "01" for fields in map(str.split, lines))


def test_refused_recipients_do_not_pay_for_the_servers_patience_with_errors(start: Start, make_app: MakeApp) -> None:
    server = start(
        "postfix",
        smtpd_hard_error_limit=3,
        smtpd_error_sleep_time=0,
        smtpd_recipient_restrictions="check_recipient_access inline:{bad@example.com=REJECT}",
    )
    with mail_of(make_app(), server) as mail:
        bad = Message("bad", ["bad@example.com"], "text")
        results = mail.send_many([message for letter in letters(60) for message in (letter, bad)])
        jobs = mail.send_later_many([message for letter in letters(30, "queued") for message in (letter, bad)])
        assert all(job.result(120) == {} for job in jobs[::2])
        for job in jobs[1::2]:
            with pytest.raises(JobFailed, match="554 5.7.1"):
                job.result(120)
    assert [bool(result) for result in results] == [True, False] * 60
    assert {result.refused["bad@example.com"].code for result in results[1::2]} == {554}
    each_once(server, m=60, queued=30)


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "opensmtpd"])  # Debian's fails in each handshake
def test_starttls_and_login(name: str, start: Start, make_app: MakeApp, certificates: Certificates) -> None:
    certificates.server()
    server = start(name, Limits(tls=certificates.folder / "127.0.0.1-10-False.pem"), relay=False)
    login = {"MAIL_USE_TLS": True, "MAIL_CAFILE": certificates.cafile, "MAIL_USERNAME": "ada"}
    with mail_of(make_app(), server, MAIL_PASSWORD="right", **login) as mail:
        assert all(mail.send_many(letters(20)))
        assert all(job.result(60) == {} for job in mail.send_later_many(letters(20, "queued")))
    wrong = Mail(make_app(MAIL_PORT=server.port, MAIL_PASSWORD="wrong", MAIL_DEFAULT_SENDER="f@example.com", **login))
    with wrong.app.app_context(), pytest.raises(AuthenticationFailed):
        wrong.send(letters(1)[0])
    each_once(server, m=20, queued=20)


@pytest.mark.parametrize("name", SERVERS)
def test_mailbox_given_twice_gets_one_copy(name: str, start: Start, make_app: MakeApp) -> None:
    server = start(name, relay=False)
    with mail_of(make_app(), server) as mail:
        for word, send in (("now", mail.send), ("later", mail.send_later)):
            twice = [f"{word}0@example.com", f"Ada <{word}0@EXAMPLE.com>"]
            message = Message("twice", [*twice, f"{word}1@example.com"], "text", cc=twice, bcc=[f"{word}0@Example.Com"])
            job = send(message)
        assert job.result(60) == {}
    each_once(server, now=2, later=2)
