"""What applications and extensions written for Flask-Mail do with Mail, Connection and the signal."""

from __future__ import annotations

import asyncio
import copy
import smtplib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

import pytest
from flask import Flask

import flask_taskworker.mail as package
from flask_taskworker.mail import (
    BadHeaderError,
    Connection,
    Mail,
    MailError,
    Message,
    SendResult,
    email_dispatched,
    install_as_flask_mail,
)
from tests.support.smtp_server import SOURCES, SMTPServer

Serve = Callable[..., SMTPServer]
MakeMail = Callable[..., Mail]


class RecordingHost:
    """What a test puts in the place of ``Connection.host``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.ended = 0

    def sendmail(self, *args: Any, **kwargs: Any) -> None:
        assert not kwargs
        self.calls.append(args)

    def quit(self) -> None:
        self.ended += 1


@pytest.fixture
def mail(make_mail: MakeMail) -> Mail:
    """A Mail that records instead of sending."""
    return make_mail(TESTING=True, MAIL_DEFAULT_SENDER="support@example.com")


def message(**fields: Any) -> Message:
    return Message(**{"subject": "testing", "recipients": ["to@example.com"], "body": "test", **fields})


@contextmanager
def connected(receiver: Callable[..., Any], **options: Any) -> Iterator[None]:
    email_dispatched.connect(receiver, **options)
    try:
        yield
    finally:
        email_dispatched.disconnect(receiver)


# ---------------------------------------------------------------- the module


def test_module_has_every_name_of_flask_mail(flask_mail: ModuleType) -> None:
    names = {name for name in vars(flask_mail) if not name.startswith("__")}
    imported = {
        "annotations",
        "c",
        "re",
        "smtplib",
        "time",
        "t",
        "unicodedata",
        "warnings",
        "contextmanager",
        "charset",
    }
    imported |= {"policy", "encode_base64", "MIMEBase", "MIMEMultipart", "MIMEText", "formataddr", "formatdate"}
    imported |= {"make_msgid", "parseaddr", "guess_type", "TracebackType", "blinker", "current_app", "Flask", "te"}
    assert {name for name in names - imported if not hasattr(package, name)} == set()


def test_version_is_there_and_deprecated() -> None:
    with suppress(PackageNotFoundError), pytest.warns(DeprecationWarning, match=r"importlib\.metadata"):
        assert package.__version__
    with pytest.raises(AttributeError):
        _ = package.nothing


def test_signal_is_in_the_namespace() -> None:
    assert package.signals.signal("email-dispatched") is email_dispatched


# ---------------------------------------------------------------- Mail and its state


def test_bound_mail_has_app_and_state(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    mail = Mail(app)
    assert mail.app is app
    assert mail.state is app.extensions["mail"]


def test_deferred_mail_stays_unbound(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    mail = Mail()
    assert mail.init_app(app) is app.extensions["mail"]
    assert (mail.app, mail.state) == (None, None)


def test_two_states_of_one_configuration_are_equal(mail: Mail) -> None:
    again = mail.init_mail(mail.app.config, mail.app.debug, mail.app.testing)
    assert again.__dict__ == mail.state.__dict__


def test_unknown_attribute_is_none_and_known_ones_are_the_states(mail: Mail) -> None:
    assert mail.default_sender == "support@example.com"
    assert mail.suppress is True
    assert mail.nothing is None
    assert copy.copy(mail).app is mail.app


def test_defaults_are_those_of_flask_mail(make_app: Callable[..., Flask], flask_mail: ModuleType) -> None:
    ours, theirs = Mail(make_app()).state, flask_mail.Mail(make_app()).state
    assert {name: getattr(ours, name) for name in vars(theirs)} == vars(theirs)


def test_without_context_or_extension_it_is_a_runtime_error(make_app: Callable[..., Flask]) -> None:
    with pytest.raises(RuntimeError, match="Push its context"):
        Mail().connect()
    with make_app().app_context():
        with pytest.raises(RuntimeError, match="was not configured with Flask-Mail"):
            Mail().connect()
        with pytest.raises(RuntimeError, match="was not configured"):
            Message()
    with pytest.raises(RuntimeError, match="MAIL_DEFAULT_SENDER"):
        Message()


def test_unbound_mail_uses_the_current_app(make_app: Callable[..., Flask]) -> None:
    mail = Mail()
    first, second = make_app(MAIL_DEFAULT_SENDER="first@x.org"), make_app(MAIL_DEFAULT_SENDER="second@x.org")
    for app in (first, second):
        mail.init_app(app)
    for app in (first, second):
        with app.app_context():
            assert mail.connect().mail is app.extensions["mail"]
            assert Message().sender == app.config["MAIL_DEFAULT_SENDER"]


def test_bound_mail_needs_no_context(serve: Serve, make_app: Callable[..., Flask]) -> None:
    server = serve()
    seen: list[Any] = []

    def receiver(app: Flask, message: Message) -> None:
        seen.append(app)

    app = make_app(MAIL_PORT=server.port)
    with connected(receiver):
        assert Mail(app).send(message(sender="from@example.com"))
    assert seen == [app]


def test_default_sender_may_be_a_pair(mail: Mail) -> None:
    mail.state.default_sender = ("tester", "tester@example.com")
    assert Message().sender == "tester <tester@example.com>"


def test_state_sends_as_mail_does(mail: Mail) -> None:
    state = mail.app.extensions["mail"]
    with state.record_messages() as outbox:
        state.send(message())
        state.send_message("testing", ["to@example.com"])
        with state.connect() as connection:
            connection.send(message())
    assert len(outbox) == 3


def test_ascii_attachments_are_read_from_the_current_state(mail: Mail) -> None:
    mail.state.ascii_attachments = True
    letter = message()
    letter.attach("\u00fcnic\u00f6de\u00df \u2190.\u2192 \u2713.txt", "text/plain", b"x")
    assert 'Content-Disposition: attachment; filename="unicode . .txt"' in letter.as_string()
    mail.send(letter)


def test_real_flask_mail_on_the_same_app_is_warned_of(make_app: Callable[..., Flask], flask_mail: ModuleType) -> None:
    app = make_app()
    flask_mail.Mail(app)
    with pytest.warns(UserWarning, match="has a flask_mail Mail already"):
        mail = Mail(app)
    flask_mail.Mail(app)
    with pytest.raises(RuntimeError, match="remove the other one"):
        mail.send(message(sender="a@x.org"))


# ---------------------------------------------------------------- suppressing and recording


def test_testing_app_records_and_sends_nothing(make_mail: MakeMail) -> None:
    mail = make_mail(TESTING=True)
    with mail.record_messages() as outbox:
        letter = message()
        result = mail.send(letter)
    assert outbox == [letter]
    assert letter.date is not None
    assert result.accepted == ("to@example.com",)


def test_suppress_false_overrides_testing(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    make_mail(server, TESTING=True, MAIL_SUPPRESS_SEND=False).send(message())
    assert len(server.mails) == 1


def test_suppress_can_be_changed_at_run_time(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server)
    mail.state.suppress = True
    mail.send(message())
    with mail.connect() as connection:
        assert connection.host is None
    assert server.sessions == []


@pytest.mark.parametrize("key", ["TESTING", "MAIL_SUPPRESS_SEND"])
def test_app_that_is_set_to_testing_after_the_start_sends_nothing(key: str, serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server)
    mail.app.config[key] = True
    with mail.record_messages() as outbox:
        mail.send(message())
        mail.send_many([message()])
        with mail.connect() as connection:
            connection.send(message())
    assert (server.sessions, len(outbox)) == ([], 3)


def test_app_that_asks_for_mail_gets_it_although_it_is_set_to_testing(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_SUPPRESS_SEND=False)
    mail.app.testing = True
    mail.send(message())
    assert len(server.mails) == 1


def test_suppressed_connection_still_checks(mail: Mail) -> None:
    with mail.connect() as connection, mail.record_messages() as outbox:
        with pytest.raises(AssertionError):
            connection.send(message(recipients=[]))
        with pytest.raises(BadHeaderError):
            connection.send(message(subject="a\nb"))
    assert outbox == []


def test_recordings_nest_and_see_other_apps(mail: Mail, make_mail: MakeMail) -> None:
    other = make_mail(TESTING=True)
    with mail.record_messages() as outer:
        with other.record_messages() as inner:
            mail.send(message())
        other.send(message())
    assert (len(inner), len(outer)) == (1, 2)


# ---------------------------------------------------------------- the signal


def test_receivers_of_both_orders_get_what_they_expect(mail: Mail) -> None:
    seen: dict[str, tuple[Any, Any]] = {}

    def old(message: Message, app: Flask) -> None:
        seen["old"] = (app, message)

    def short(msg: Message, **extra: Any) -> None:
        seen["short"] = (extra["app"], msg)

    def alone(message: Message) -> None:
        seen["alone"] = (mail.app, message)

    def positional(message: Message, application: Flask) -> None:
        seen["positional"] = (application, message)

    def nameless(m: Message, app: Flask) -> None:
        seen["nameless"] = (app, m)

    def new(app: Flask, message: Message) -> None:
        seen["new"] = (app, message)

    def sender(sender: Flask, message: Message, **extra: Any) -> None:
        seen["sender"] = (sender, message)

    def anything(sender: Flask, **extra: Any) -> None:
        seen["anything"] = (sender, extra["message"])

    class Listener:
        def heard(self, message: Message, app: Flask) -> None:
            seen["method"] = (app, message)

    listener = Listener()
    receivers = [old, short, alone, positional, nameless, new, sender, anything, listener.heard]
    for receiver in receivers:
        email_dispatched.connect(receiver)
    letter = message()
    mail.send(letter)
    for receiver in receivers:
        email_dispatched.disconnect(receiver)
    assert set(seen) == {"old", "short", "alone", "positional", "nameless", "new", "sender", "anything", "method"}
    assert all(pair == (mail.app, letter) for pair in seen.values())


def test_receiver_may_listen_to_one_app(mail: Mail, make_mail: MakeMail) -> None:
    other = make_mail(TESTING=True)
    heard: list[Message] = []

    def receiver(message: Message, app: Flask) -> None:
        heard.append(message)

    with connected(receiver, sender=mail.app):
        letter = message()
        mail.send(letter)
        other.send(message())
    assert heard == [letter]


def test_muted_signal_is_not_sent(mail: Mail) -> None:
    with mail.record_messages() as outbox, email_dispatched.muted():
        mail.send(message())
    assert outbox == []


def test_receiver_that_raises_is_logged_and_harms_nothing_else(mail: Mail, caplog: pytest.LogCaptureFixture) -> None:
    def receiver(app: Flask, message: Message) -> None:
        raise ZeroDivisionError

    with connected(receiver), mail.record_messages() as outbox:
        assert mail.send(message())
    assert len(outbox) == 1
    assert "ZeroDivisionError" in caplog.text


def test_coroutine_function_may_receive(mail: Mail) -> None:
    heard: list[Message] = []

    async def receiver(message: Message, app: Flask) -> None:
        heard.append(message)

    async def send() -> None:
        await mail.asend(message())
        await asyncio.sleep(0)

    with connected(receiver):
        mail.send(message())
        asyncio.run(send())
    assert len(heard) == 2


def test_failed_mail_sends_no_signal_and_does_not_count(serve: Serve, make_mail: MakeMail) -> None:
    server = serve(script=lambda session, verb, line: "550 5.1.1 no" if "bad@" in line else None)
    mail = make_mail(server)
    with mail.record_messages() as outbox, mail.connect() as connection:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            connection.send(message(recipients=["bad@example.com"]))
        assert connection.num_emails == 0
        connection.send(message())
        assert connection.num_emails == 1
    assert len(outbox) == 1


# ---------------------------------------------------------------- Connection


def test_connection_keeps_one_connection_and_says_goodbye(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    connection = make_mail(server).connect()
    assert (connection.host, connection.num_emails) == (None, 0)
    with connection as entered:
        assert entered is connection
        assert server.sessions[0].verbs == ["EHLO"]
        for _ in range(3):
            connection.send(message())
        connection.send_message("testing", ["to@example.com"], "body")
    assert [session.mails for session in server.sessions] == [4]
    assert server.sessions[0].verbs[-1] == "QUIT"


def test_host_in_the_place_of_ours_gets_the_five_arguments(mail: Mail) -> None:
    with mail.connect() as connection:
        host = connection.host = RecordingHost()
        letter = message(
            sender="from@example.com",
            recipients=["\u00c4\u00dc\u00d6 \u2192 \u2713 <to@example.com>", ("Ada", "ada@example.com")],
            body="\u00d6\u00f6",
            mail_options=["BODY=8BITMIME"],
            rcpt_options=["NOTIFY=NEVER"],
        )
        connection.send(letter)
        assert host.calls == [
            (
                "from@example.com",
                ["=?utf-8?b?w4TDnMOWIOKGkiDinJM=?= <to@example.com>", "=?utf-8?q?Ada?= <ada@example.com>"],
                letter.as_bytes(),
                letter.mail_options,
                letter.rcpt_options,
            )
        ]
    assert host.ended == 1


def test_multipart_message_is_handed_over_as_as_bytes_gives_it(mail: Mail) -> None:
    with mail.connect() as connection:
        host = connection.host = RecordingHost()
        letter = message(html="<b>\u00fc</b>")
        letter.attach("a.txt", "text/plain", b"x")
        connection.send(letter)
    assert host.calls[0][2] == letter.as_bytes()


def test_envelope_from_is_the_first_argument(mail: Mail) -> None:
    with mail.connect() as connection:
        host = connection.host = RecordingHost()
        connection.send(message(), envelope_from=("B", "bounce@example.com"))
    assert host.calls[0][0] == "=?utf-8?q?B?= <bounce@example.com>"


def test_error_of_goodbye_does_not_hide_the_first(mail: Mail) -> None:
    class Rude(RecordingHost):
        def quit(self) -> None:
            raise smtplib.SMTPServerDisconnected("gone")

    def fail() -> None:
        with mail.connect() as connection:
            connection.host = Rude()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with mail.connect() as connection:
        connection.host = Rude()


def test_configure_host_may_be_overridden_with_smtplib(serve: Serve, make_app: Callable[..., Flask]) -> None:
    server = serve(script=lambda session, verb, line: "550 5.1.1 no" if "bad@" in line else None)

    class WithTimeout(Connection):
        def configure_host(self) -> smtplib.SMTP:
            return smtplib.SMTP(self.mail.server, self.mail.port, timeout=5)

    class OurMail(Mail):
        def connect(self) -> Connection:
            return WithTimeout(self.state)

    app = make_app(MAIL_PORT=server.port)
    mail = OurMail(app)
    with app.app_context():
        letters = [message(sender="a@x.org", recipients=["Ada <to@x.org>", "bad@x.org"]) for _ in range(5)]
        results = [mail.send(letters[0]), asyncio.run(mail.asend(letters[1])), *mail.send_many(letters[2:4])]
        with mail.connect() as connection:
            results.append(connection.send(letters[4]))
    assert [result.refused["bad@x.org"].code for result in results] == [550] * 5
    assert all(result.accepted == ("to@x.org",) for result in results)
    assert len(server.mails) == 5


def test_connection_is_renewed_when_another_mail_follows(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_MAX_EMAILS=2)
    with mail.connect() as connection:
        for expected in (1, 0, 1, 0):
            connection.send(message())
            assert connection.num_emails == expected
        assert len(server.sessions) == 2
        connection.send(message())
    assert [session.mails for session in server.sessions] == [2, 2, 1]
    assert all(session.verbs[-1] == "QUIT" for session in server.sessions)


def test_connection_survives_a_server_that_hangs_up_between_mails(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    with make_mail(server).connect() as connection:
        for _ in range(3):
            connection.send(message())
            session = server.sessions[-1]
            server.hang_up(session)
    assert [session.mails for session in server.sessions] == [1, 1, 1]


def test_async_connection_keeps_one_connection(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_MAX_EMAILS=3)

    async def send() -> list[SendResult]:
        async with mail.connect() as connection:
            return [await connection.asend(message(), envelope_from="bounce@x.org") for _ in range(4)]

    assert all(asyncio.run(send()))
    assert [session.mails for session in server.sessions] == [3, 1]
    assert server.mails[0].sender == "bounce@x.org"
    assert all(session.verbs[-1] == "QUIT" for session in server.sessions)


# ---------------------------------------------------------------- foreign messages


def their_message(flask_mail: ModuleType, **fields: Any) -> Any:
    defaults = {"subject": "theirs", "recipients": ["to@example.com"], "body": "\u00fc", "html": "<b>\u00fc</b>"}
    return flask_mail.Message(**{**defaults, **fields})


def test_messages_of_the_real_flask_mail_are_taken_everywhere(
    flask_mail: ModuleType, serve: Serve, make_mail: MakeMail
) -> None:
    server = serve()
    mail = make_mail(server)

    async def send_async() -> None:
        await mail.asend(their_message(flask_mail))
        assert [result async for result in mail.asend_many([their_message(flask_mail)])]

    assert mail.send(their_message(flask_mail)).accepted == ("to@example.com",)
    with mail.connect() as connection:
        assert connection.send(their_message(flask_mail))
        their_message(flask_mail).send(connection)
    assert all(mail.send_many([their_message(flask_mail), message()]))
    asyncio.run(send_async())
    assert len(server.mails) == 7
    assert all(b"multipart/alternative" in sent.data for sent in server.mails if b"Subject: theirs" in sent.data)


def test_their_bad_header_error_is_raised_for_their_messages(flask_mail: ModuleType, mail: Mail) -> None:
    with pytest.raises(flask_mail.BadHeaderError) as caught:
        mail.send(their_message(flask_mail, subject="a\nb"))
    assert isinstance(caught.value, BadHeaderError)
    assert "subject" in str(caught.value)
    with pytest.raises(flask_mail.BadHeaderError):
        mail.send(their_message(flask_mail, extra_headers={"X": "a\r\nBcc: b@x.org"}))
    with pytest.raises(AssertionError):
        mail.send(their_message(flask_mail, recipients=[]))


def test_their_signal_is_sent_once_for_their_messages(flask_mail: ModuleType, mail: Mail) -> None:
    heard: list[Any] = []

    def receiver(app: Flask, message: Any) -> None:
        heard.append((app, message))

    flask_mail.email_dispatched.connect(receiver)
    letter = their_message(flask_mail)
    mail.send(letter)
    mail.send(message())
    assert heard == [(mail.app, letter)]


def test_their_subclass_that_writes_itself_is_asked(flask_mail: ModuleType, serve: Serve, make_mail: MakeMail) -> None:
    class Signed(flask_mail.Message):  # type: ignore[name-defined,misc]
        def as_bytes(self) -> bytes:
            return b"X-Signed: yes\n" + super().as_bytes()

    server = serve()
    make_mail(server).send(Signed("signed", ["to@example.com"], "x"))
    assert server.mails[0].data.startswith(b"X-Signed: yes\r\n")
    assert server.bad_lines == []


def test_message_that_smuggles_a_header_into_its_own_bytes_is_refused(mail: Mail) -> None:
    class Evil(Message):
        def as_bytes(self) -> bytes:
            return b"Bcc: evil@evil.org\r\n" + super().as_bytes()

    with pytest.raises(BadHeaderError):
        mail.send(Evil("x", ["to@example.com"], "x"))


@pytest.mark.slow
def test_code_that_imports_flask_mail_runs_when_asked(serve: Serve) -> None:
    server = serve()
    code = f"""
from flask_taskworker.mail import install_as_flask_mail
install_as_flask_mail()
import flask_mail
from flask import Flask
from flask_mail import Mail, Message
app = Flask("x")
app.config.update(MAIL_PORT={server.port}, MAIL_DEFAULT_SENDER="a@x.org")
mail = Mail(app)
with app.app_context():
    assert mail.send(Message("hi", ["b@x.org"]))
assert flask_mail.Message.__module__ == "flask_taskworker.mail.message"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=SOURCES)
    assert len(server.mails) == 1


def test_install_after_the_real_one_is_refused(flask_mail: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="Call install_as_flask_mail"):
        install_as_flask_mail()


# ---------------------------------------------------------------- loops and threads


def test_mail_is_sent_from_an_async_view(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server)

    @mail.app.route("/")
    async def index() -> str:
        await mail.asend(message())
        mail.send(message())
        return "ok"

    client = mail.app.test_client()
    assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    assert [session.mails for session in server.sessions] == [6]


def test_many_awaits_at_once_share_the_pool(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_POOL_SIZE=2)

    async def send() -> list[SendResult]:
        return await asyncio.gather(*(mail.asend(message(subject=str(i))) for i in range(20)))

    assert all(asyncio.run(send()))
    assert len(server.mails) == 20
    assert len(server.sessions) == 2


def test_large_message_does_not_block_the_loop(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server)

    async def send() -> bool:
        letter = message()
        letter.attach("a.bin", data=bytes(1_000_000))
        return bool(await mail.asend(letter))

    assert asyncio.run(send())
    assert len(server.mails[0].data) > 1_300_000


def test_every_error_is_one_of_ours(make_mail: MakeMail) -> None:
    mail = make_mail(MAIL_PORT=1)
    with pytest.raises(MailError):
        asyncio.run(mail.asend(message()))
