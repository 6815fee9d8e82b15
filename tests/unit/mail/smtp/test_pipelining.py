"""Replies are paired with what they answer, and a connection where that fails is closed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from flask_taskworker.mail import Mail, MailError, Message
from flask_taskworker.mail.errors import DeliveryUnknown
from tests.support.smtp_server import EXTENSIONS, Session, Silence, SMTPServer, at

Serve = Callable[..., SMTPServer]
MakeMail = Callable[..., Mail]

BUSY = 1.0


def message(number: int = 0, **fields: Any) -> Message:
    defaults = {"subject": f"m{number}", "recipients": [f"r{number}@example.com"], "sender": "from@example.com"}
    return Message(**{**defaults, "body": "text", **fields})


def subjects(server: SMTPServer) -> list[str]:
    return [mail.data.partition(b"Subject: ")[2].partition(b"\r\n")[0].decode() for mail in server.mails]


@pytest.fixture(params=["pipelining", "one by one"])
def serve_each(request: pytest.FixtureRequest, serve: Serve) -> Serve:
    extensions = EXTENSIONS if request.param == "pipelining" else EXTENSIONS[1:]
    return lambda **options: serve(**{"extensions": extensions, **options})


def test_connection_that_says_something_unasked_is_not_used_again(serve: Serve, make_mail: MakeMail) -> None:
    server = serve(script=at(".", b"250 2.0.0 queued\r\n250 2.0.0 and more\r\n"))
    mail = make_mail(server)
    # The stray line comes with the reply or after it; in neither case is it taken for the next mail's.
    with pytest.raises(DeliveryUnknown):
        mail.send(message())
    assert mail.send(message())
    assert len(server.sessions) == 2


@pytest.mark.parametrize("verb", ["EHLO", "MAIL"])
def test_line_too_many_closes_the_connection(verb: str, serve: Serve, make_mail: MakeMail) -> None:
    extra = b"250-x\r\n250 PIPELINING\r\n250 stray\r\n" if verb == "EHLO" else b"250 ok\r\n250 stray\r\n"
    server = serve(script=at(verb, extra, times=99))
    with pytest.raises(MailError):
        make_mail(server).send(message())
    assert server.mails == []


def test_reply_that_is_none_closes_the_connection(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=at("MAIL", "what?"))
    assert make_mail(server).send(message())
    assert len(server.sessions) == 2


def test_reply_of_several_lines_is_one_reply(serve_each: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> bytes | None:
        if verb == "MAIL":
            session.sender = "from@example.com"
            return b"250-first\r\n250 second\r\n"
        return None

    server = serve_each(script=script)
    assert make_mail(server).send(message())
    assert len(server.sessions) == 1


def test_message_has_a_timeout_of_its_own(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=at(".", Silence()))
    with pytest.raises(DeliveryUnknown):
        make_mail(server, MAIL_DATA_TIMEOUT=0.2).send(message())


def test_timeout_is_for_each_reply_not_for_all(serve: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> None:
        if verb == "RCPT":
            time.sleep(BUSY / 6)

    server = serve(script=script)
    assert make_mail(server, MAIL_TIMEOUT=BUSY).send(message(recipients=[f"r{i}@x.org" for i in range(7)]))


def test_thanks_for_half_a_message_is_not_an_acceptance(serve: Serve, make_mail: MakeMail) -> None:
    class Hasty(SMTPServer):
        async def _take(self, session: Session, reader: Any, writer: Any) -> bool:
            if session.number > 1:
                return await super()._take(session, reader, writer)
            await reader.readline()
            return await self._answer(writer, "250 2.0.0 queued") and await super()._take(session, reader, writer)

    with Hasty() as server:
        letter = message()
        letter.attach("a.bin", "application/octet-stream", bytes(8_000_000))
        assert make_mail(server).send(letter)
        assert [session.mails for session in server.sessions] == [0, 1]


def test_server_that_loses_early_commands_gets_them_one_by_one(make_mail: MakeMail) -> None:
    with SMTPServer(is_deaf=True) as server:
        mail = make_mail(server, MAIL_TIMEOUT=0.5)
        for i in range(3):
            assert mail.send(message(i))
        assert all(mail.send_many([message(i) for i in range(3, 10)]))
        assert Counter(subjects(server)) == Counter(f"m{i}" for i in range(10))


def test_pipelining_can_be_switched_off(serve: Serve, make_mail: MakeMail) -> None:
    with SMTPServer(is_deaf=True) as server:
        assert all(make_mail(server, MAIL_PIPELINING=False).send_many([message(i) for i in range(10)]))
        assert len(server.sessions) <= 4
