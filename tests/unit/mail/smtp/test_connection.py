"""Sending one mail: what comes back, what the server saw, and what happens where it says no or goes away."""

from __future__ import annotations

import asyncio
import gc
import re
import smtplib
import socket
import time
from collections.abc import Callable
from typing import Any

import aiosmtplib
import pytest

from flask_taskworker.errors import ArgumentsError
from flask_taskworker.mail import Mail, MailError, Message, Reply
from flask_taskworker.mail.errors import (
    ConnectError,
    ConnectTimeout,
    DataRefused,
    DeliveryUnknown,
    NotOffered,
    RecipientsRefused,
    SenderRefused,
    ServerDisconnected,
    ServerTimeout,
)
from flask_taskworker.mail.smtp import connection
from flask_taskworker.mail.smtp.server import Server
from tests.support.mail_fixtures import Certificates
from tests.support.smtp_server import EXTENSIONS, Drop, Session, Silence, SMTPServer, at, wait_until

Serve = Callable[..., SMTPServer]
MakeMail = Callable[..., Mail]

DIALOGUES = ["pipelining", "one by one"]


@pytest.fixture(params=DIALOGUES)
def serve_each(request: pytest.FixtureRequest, serve: Serve) -> Serve:
    """A server for each of the ways in which we talk to one."""
    extensions = EXTENSIONS if request.param == "pipelining" else EXTENSIONS[1:]
    return lambda **options: serve(**{"extensions": extensions, **options})


def message(**fields: Any) -> Message:
    return Message(**{"subject": "hello", "recipients": ["to@example.com"], "body": "text", **fields})


def refusing(**refusals: str) -> Callable[[Session, str, str], Any]:
    """A script: refuse the recipients whose name is given."""
    return lambda session, verb, line: next(
        (r for name, r in refusals.items() if verb == "RCPT" and name in line), None
    )


# ---------------------------------------------------------------- what arrives


def test_server_gets_the_bytes_and_the_caller_a_result(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    mail = make_mail(server)
    letter = message(body="Gr\u00fc\u00dfe\n.\nend", cc=["cc@example.com"], bcc=["bcc@example.com"])
    result = mail.send(letter)
    assert result
    assert result.accepted == ("to@example.com", "cc@example.com", "bcc@example.com")
    assert (result.refused, result.error, result.message_id) == ({}, None, letter.msgId)
    assert server.mails[0].data == letter.as_bytes() + b"\r\n"
    assert (server.mails[0].sender, server.mails[0].recipients) == ("from@example.com", [*result.accepted])
    assert server.bad_lines == []


def test_next_mail_takes_the_same_connection(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    mail = make_mail(server)
    for _ in range(3):
        mail.send(message())
    assert [session.mails for session in server.sessions] == [3]


def test_envelope_goes_in_two_round_trips_where_pipelining_is_offered(serve: Serve, make_mail: MakeMail) -> None:
    groups: list[str] = []
    server = serve(script=lambda session, verb, line: groups.append(verb))
    make_mail(server).send(message(recipients=[f"r{i}@example.com" for i in range(5)]))
    assert groups == ["EHLO", "MAIL", *["RCPT"] * 5, "DATA", "."]


def test_return_path_may_differ_from_the_sender(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    with make_mail(server).connect() as connection:
        connection.send(message(), envelope_from="Bounces <bounce@example.com>")
        connection.send(message(), envelope_from="<>")
    assert [mail.sender for mail in server.mails] == ["bounce@example.com", ""]


def test_options_are_passed_on(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    make_mail(server).send(message(mail_options=["BODY=8BITMIME"], rcpt_options=["NOTIFY=FAILURE,DELAY"]))
    commands = server.sessions[0].commands
    assert any(re.fullmatch(r"MAIL FROM:<from@example.com> BODY=8BITMIME SIZE=\d+", line) for line in commands)
    assert "RCPT TO:<to@example.com> NOTIFY=FAILURE,DELAY" in commands


def test_eight_bit_mail_is_announced(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    make_mail(server).send(message(body="\u00fc"))
    assert "BODY=8BITMIME" in server.mails[0].options
    assert "\u00fc".encode() in server.mails[0].data


def test_eight_bit_mail_becomes_seven_bit_where_the_server_needs_it(serve: Serve, make_mail: MakeMail) -> None:
    server = serve(extensions=("PIPELINING",))
    make_mail(server).send(message(body="\u00fc", html="<b>\u00fc</b>"))
    assert server.mails[0].data.isascii()
    assert b"Content-Transfer-Encoding: base64" in server.mails[0].data


def test_address_beyond_ascii_needs_a_server_that_takes_it(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    make_mail(server).send(message(recipients=["\u00fcser@example.com"]))
    assert server.mails[0].recipients == ["\u00fcser@example.com"]
    assert "SMTPUTF8" in server.mails[0].options
    plain = serve(extensions=("PIPELINING", "8BITMIME"))
    with pytest.raises(smtplib.SMTPNotSupportedError, match="SMTPUTF8"):
        make_mail(plain).send(message(recipients=["\u00fcser@example.com"]))
    assert "MAIL" not in plain.sessions[0].verbs


END_OF_DATA = [
    "\n.\n",
    "\n.\r\n",
    "\r\n.\n",
    "\r.\r",
    "\r.\r\n",
    "\r\n.\r",
    "\n\n.\r\n",
    "\r\r\n.\r\r\n",
    "\r\n.\r\n",
    "\0\r\n.\r\n",
]


@pytest.mark.parametrize("end", END_OF_DATA, ids=repr)
def test_no_end_of_data_in_a_body_smuggles_a_mail(end: str, serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    evil = f"a{end}MAIL FROM:<evil@evil.org>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nevil{end}"
    mail = make_mail(server)
    mail.send(message(body=evil))
    mail.send(message(body="next"))
    assert len(server.mails) == 2
    assert server.bad_lines == []
    assert all(mail.sender == "from@example.com" for mail in server.mails)


def test_large_message_arrives(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    mail = make_mail(server)
    letter = message()
    letter.attach("a.bin", "application/octet-stream", bytes(range(256)) * 8192)
    mail.send(letter)
    assert server.mails[0].data == letter.as_bytes()


# ---------------------------------------------------------------- refusals


def test_partial_refusal_is_reported_and_raises_nothing(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=refusing(bad="550 5.1.1 no such user", later="450 4.2.0 busy"))
    result = make_mail(server).send(message(recipients=["bad@x.org", "good@x.org", "later@x.org"]))
    assert not result
    assert result.accepted == ("good@x.org",)
    assert result.refused == {"bad@x.org": Reply(550, "5.1.1 no such user"), "later@x.org": Reply(450, "4.2.0 busy")}
    assert result.refused["bad@x.org"].code == 550
    assert server.mails[0].recipients == ["good@x.org"]


def test_refusal_of_everybody_raises_and_leaves_the_connection_usable(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=refusing(bad="550 5.1.1 no such user"))
    mail = make_mail(server)
    with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
        mail.send(message(recipients=["bad1@x.org", "bad2@x.org"]))
    assert caught.value.recipients == {
        "bad1@x.org": (550, b"5.1.1 no such user"),
        "bad2@x.org": (550, b"5.1.1 no such user"),
    }
    assert isinstance(caught.value, RecipientsRefused | MailError | aiosmtplib.SMTPRecipientsRefused | OSError)
    assert mail.send(message())
    assert len(server.sessions) == 1
    assert "RSET" in server.sessions[0].verbs


REFUSALS = {
    "MAIL": (SenderRefused, smtplib.SMTPSenderRefused, aiosmtplib.SMTPSenderRefused),
    "DATA": (DataRefused, smtplib.SMTPDataError, aiosmtplib.SMTPDataError),
    ".": (DataRefused, smtplib.SMTPDataError, aiosmtplib.SMTPDataError),
}


@pytest.mark.parametrize("reply", ["451 4.3.0 later", "552 5.3.4 too big"])
@pytest.mark.parametrize("verb", REFUSALS)
def test_refusal_raises_the_error_of_both_families(
    verb: str, reply: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    server = serve_each(script=at(verb, reply))
    mail = make_mail(server)
    with pytest.raises(MailError) as caught:
        mail.send(message())
    error: Any = caught.value
    assert all(isinstance(error, family) for family in REFUSALS[verb])
    assert (error.smtp_code, error.smtp_error) == (int(reply[:3]), reply[4:].encode())
    assert mail.send(message())
    assert len(server.sessions) == 1
    assert len(server.mails) == 1


def test_go_ahead_for_no_recipient_gets_no_message(serve: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> str | None:
        if "bad" in line:
            return "550 5.1.1 no"
        return "354 go ahead" if verb == "DATA" else None

    server = serve(script=script)
    mail = make_mail(server)
    with pytest.raises(RecipientsRefused):
        mail.send(message(recipients=["bad@x.org"]))
    assert mail.send(message())
    assert ([session.mails for session in server.sessions], server.bad_lines) == ([0, 1], [])


def test_envelope_that_a_failed_reset_left_open_gets_no_empty_message(serve: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> str | None:
        if "bad@" in line:
            return "550 5.1.1 no"
        if verb == "DATA" and "RSET" not in session.verbs:
            return "452 4.3.1 later"
        return "451 4.3.0 no" if verb == "RSET" else None

    server = serve(script=script)
    mail = make_mail(server, MAIL_POOL_SIZE=1)
    with pytest.raises(DataRefused):
        mail.send(message(recipients=["first@x.org"]))
    with pytest.raises(RecipientsRefused):
        mail.send(message(recipients=["bad@x.org"]))
    assert server.mails == []


# ---------------------------------------------------------------- drops


@pytest.mark.parametrize("farewell", ["", "421 4.3.2 shutting down\r\n", "42"])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_mail_goes_over_another_connection_if_the_first_broke_before_it_was_sent(
    verb: str, farewell: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    server = serve_each(script=at(verb, Drop(farewell)))
    assert make_mail(server).send(message())
    assert len(server.sessions) == 2
    assert len(server.mails) == 1


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_server_that_always_drops_raises_what_it_said(verb: str, serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=at(verb, Drop("421 4.3.2 shutting down\r\n"), times=99))
    with pytest.raises(smtplib.SMTPServerDisconnected) as caught:
        make_mail(server).send(message())
    assert isinstance(caught.value, ServerDisconnected)
    assert not isinstance(caught.value, DeliveryUnknown)
    assert (caught.value.code, caught.value.text) == (421, "4.3.2 shutting down")
    assert len(server.sessions) == 3
    assert server.mails == []


@pytest.mark.parametrize("farewell", ["", "25", "250 2.0.0 queued"])
def test_drop_after_the_final_dot_is_unknown_and_never_repeated(
    farewell: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    server = serve_each(script=at(".", Drop(farewell)))
    with pytest.raises(DeliveryUnknown):
        make_mail(server).send(message())
    assert len(server.sessions) == 1


def test_421_after_the_final_dot_is_a_refusal(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=at(".", Drop("421 4.4.2 timeout\r\n")))
    with pytest.raises(DataRefused) as caught:
        make_mail(server).send(message())
    assert caught.value.smtp_code == 421


@pytest.mark.parametrize("farewell", ["", "421 4.4.2 idle too long\r\n"])
def test_connection_that_was_closed_while_idle_is_not_used(
    farewell: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    def script(session: Session, verb: str, line: str) -> Any:
        return Drop("250 2.0.0 queued\r\n" + farewell) if verb == "." else None

    server = serve_each(script=script)
    mail = make_mail(server)
    mail.send(message())
    wait_until(lambda: server.sessions[0].ended)
    assert mail.send(message())
    assert len(server.sessions) == 2
    assert len(server.mails) == 2


# ---------------------------------------------------------------- time


BUSY = 1.0
"""Seconds within which a server that answers has answered, on a machine that has much else to do."""


@pytest.mark.parametrize("verb", ["MAIL", "DATA"])
def test_silent_server_raises_within_the_timeout(verb: str, serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=at(verb, Silence()))
    mail = make_mail(server, MAIL_TIMEOUT=BUSY)
    with pytest.raises(TimeoutError) as caught:
        mail.send(message())
    assert isinstance(caught.value, ServerTimeout | smtplib.SMTPServerDisconnected)
    assert not isinstance(caught.value, DeliveryUnknown)
    assert len(server.sessions) == 1
    assert mail.send(message())
    assert len(server.sessions) == 2


def test_server_that_does_not_greet_raises_within_the_timeout(make_mail: MakeMail, serve: Serve) -> None:
    with pytest.raises(TimeoutError) as caught, make_mail(serve(greeting=Silence()), MAIL_TIMEOUT=0.2).connect():
        pass
    assert isinstance(caught.value, ConnectTimeout)


def test_cancelled_mail_closes_its_connection(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=at("MAIL", Silence()))
    mail = make_mail(server)

    async def cancel_and_go_on() -> None:
        first = asyncio.create_task(mail.asend(message(subject="first")))
        await asyncio.to_thread(wait_until, lambda: server.sessions and "MAIL" in server.sessions[0].verbs)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await mail.asend(message(subject="second"))

    asyncio.run(cancel_and_go_on())
    assert len(server.sessions) == 2
    assert b"Subject: second" in server.mails[0].data


# ---------------------------------------------------------------- connecting


def test_no_server_listening_raises_what_the_system_says(make_mail: MakeMail) -> None:
    # Bound and not listening: no other process can listen there meanwhile.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        mail = make_mail(MAIL_PORT=deaf.getsockname()[1])
        with pytest.raises(ConnectionRefusedError) as caught, mail.connect():
            pass
        with pytest.raises(ConnectionRefusedError):
            mail.send(message())
    error = caught.value
    assert isinstance(error, MailError)
    assert isinstance(error, smtplib.SMTPConnectError)
    assert error.errno is not None


def test_localhost_is_tried_on_all_its_addresses(serve: Serve, make_mail: MakeMail) -> None:
    assert make_mail(serve(), MAIL_SERVER="localhost").send(message())


def test_unknown_server_name_raises_gaierror(make_mail: MakeMail) -> None:
    with pytest.raises(socket.gaierror) as caught, make_mail(MAIL_SERVER="mail.invalid").connect():
        pass
    assert isinstance(caught.value, MailError)


def test_refusing_greeting_raises_its_code(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(greeting="554 5.7.1 go away")
    with pytest.raises(smtplib.SMTPConnectError) as caught, make_mail(server).connect():
        pass
    assert isinstance(caught.value, ConnectError)
    assert caught.value.smtp_code == 554


@pytest.mark.parametrize("verb", ["greeting", "EHLO"])
def test_drop_while_connecting_raises(verb: str, serve_each: Serve, make_mail: MakeMail) -> None:
    options = {"greeting": Drop()} if verb == "greeting" else {"script": at(verb, Drop())}
    with pytest.raises(MailError), make_mail(serve_each(**options)).connect():
        pass


def test_old_server_is_greeted_with_helo(serve: Serve, make_mail: MakeMail) -> None:
    server = serve(script=at("EHLO", "502 5.5.1 what?", times=9))
    assert make_mail(server).send(message())
    assert server.sessions[0].verbs[:3] == ["EHLO", "HELO", "MAIL"]


# ---------------------------------------------------------------- the pool


def test_connection_is_reset_before_it_is_used_after_a_pause(
    serve_each: Serve, make_mail: MakeMail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_RSET_AFTER_S", 0.0)
    server = serve_each()
    mail = make_mail(server)
    for _ in range(2):
        mail.send(message())
    assert "RSET" in server.sessions[0].verbs
    assert len(server.mails) == 2


def test_connection_that_cannot_be_reset_is_not_used(
    serve_each: Serve, make_mail: MakeMail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_RSET_AFTER_S", 0.0)
    server = serve_each(script=lambda session, verb, line: "451 4.3.0 no" if verb == "RSET" and session.mails else None)
    mail = make_mail(server, MAIL_POOL_SIZE=1)
    for _ in range(3):
        assert mail.send(message())
    assert [session.mails for session in server.sessions] == [1, 1, 1]


def test_rejection_before_a_drop_is_not_asked_for_again(serve_each: Serve, make_mail: MakeMail) -> None:
    drop = at("DATA", Drop())

    def script(session: Session, verb: str, line: str) -> Any:
        return "550 5.1.1 no such user" if "bad@" in line else drop(session, verb, line)

    server = serve_each(script=script)
    result = make_mail(server).send(message(recipients=["bad@x.org", "good@x.org"]))
    assert (result.accepted, result.refused["bad@x.org"].code) == (("good@x.org",), 550)
    assert times_asked(server, "bad@") == 1


def test_rejection_before_the_connection_ends_behind_the_go_ahead_is_not_asked_for_again(
    serve: Serve, make_mail: MakeMail
) -> None:
    drop = at("DATA", Drop("354 go ahead\r\n421 4.3.2 closing\r\n"))

    def script(session: Session, verb: str, line: str) -> Any:
        return "550 5.1.1 no such user" if "bad@" in line else drop(session, verb, line)

    server = serve(script=script)
    result = make_mail(server).send(message(recipients=["bad@x.org", "good@x.org"]))
    assert (result.accepted, result.refused["bad@x.org"].code) == (("good@x.org",), 550)
    assert times_asked(server, "bad@") == 1


def test_rejection_beside_a_reset_that_failed_is_not_asked_for_again(
    serve_each: Serve, make_mail: MakeMail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_RSET_AFTER_S", 0.0)

    def script(session: Session, verb: str, line: str) -> str | None:
        if "bad@" in line:
            return "550 5.1.1 no such user"
        return "451 4.3.0 no" if verb == "RSET" and session.mails else None

    server = serve_each(script=script)
    mail = make_mail(server, MAIL_POOL_SIZE=1)
    assert mail.send(message())
    result = mail.send(message(recipients=["bad@x.org", "good@x.org"]))
    assert (result.accepted, result.refused["bad@x.org"].code) == (("good@x.org",), 550)
    assert times_asked(server, "bad@") == 1


@pytest.mark.parametrize(
    "end", [Drop(), Drop("421 4.3.2 closing\r\n"), Drop("354 go ahead\r\n421 bye\r\n"), "451 later"]
)
def test_rejection_behind_a_message_is_not_asked_for_again(end: Any, serve: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> Any:
        if "bad" in line:
            return "550 5.1.1 no such user"
        return end if verb == "DATA" and "second@x.org" in session.recipients and session.mails else None

    server = serve(script=script)
    mail = make_mail(server, MAIL_POOL_SIZE=1)
    recipients = [["first@x.org"], ["bad@x.org", "second@x.org"], ["bad2@x.org"]]
    results = mail.send_many([message(recipients=some) for some in recipients])
    assert [set(result.refused) - {"second@x.org"} for result in results] == [set(), {"bad@x.org"}, {"bad2@x.org"}]
    assert (times_asked(server, "bad@"), times_asked(server, "bad2@")) == (1, 1)


def times_asked(server: SMTPServer, address: str) -> int:
    return sum(address in command for session in server.sessions for command in session.commands)


def test_changed_settings_are_followed(serve: Serve, make_mail: MakeMail) -> None:
    first, second = serve(), serve()
    mail = make_mail(first)
    mail.send(message())
    mail.state.port = str(second.port)
    mail.send(message())
    assert (len(first.mails), len(second.mails)) == (1, 1)


def test_both_tls_keys_at_once_are_refused(make_mail: MakeMail) -> None:
    with pytest.raises(ValueError, match="MAIL_USE_TLS .* and MAIL_USE_SSL exclude each other"):
        make_mail(MAIL_USE_TLS=True, MAIL_USE_SSL=True).send(message())


def test_missing_extension_is_not_a_connect_error() -> None:
    assert not issubclass(NotOffered, ConnectError)


@pytest.mark.parametrize("given", ["Hello", None, [Message("a", ["a@x.org"], sender="b@x.org")]])
def test_what_is_not_a_message_is_refused_before_any_connection(serve: Serve, make_mail: MakeMail, given: Any) -> None:
    mail = make_mail(server := serve())
    for send in (mail.send, lambda message: asyncio.run(mail.asend(message)), mail.send_later):
        with pytest.raises(ArgumentsError, match=r"is not a message\. Give a Message\("):
            send(given)
    assert server.sessions == []


def test_goodbye_over_tls_closes_the_socket_before_the_loop_ends(certificates: Certificates) -> None:
    class Slow(SMTPServer):
        async def _answer(self, writer: Any, reply: Any) -> bool:
            goes_on = await super()._answer(writer, reply)
            if reply == "221 bye":
                time.sleep(0.3)  # its whole thread: it does not see that the client closes TLS
            return goes_on

    async def open_and_quit() -> None:
        await (await connection.SMTPConnection.open(address)).quit()

    with Slow(starttls=certificates.server()) as server:
        address = Server(hostname="127.0.0.1", port=server.port, use_tls=True, cafile=certificates.cafile)
        asyncio.run(open_and_quit())
        gc.collect()  # a socket that is left open warns here, and that fails the test
