"""What a mail server may do against expectation, and what must come of each mail then: sent once, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from flask_taskworker.mail import Mail, Message
from flask_taskworker.mail.errors import DeliveryUnknown, OutOfStep, SenderRefused
from tests.support.smtp_server import EXTENSIONS, Drop, Session, SMTPServer, wait_until

Serve = Callable[..., SMTPServer]
MakeMail = Callable[..., Mail]


def message(number: int = 0, **fields: Any) -> Message:
    defaults = {"subject": f"m{number}", "recipients": [f"r{number}@example.com"], "sender": "from@example.com"}
    return Message(**{**defaults, "body": "text", **fields})


def subjects(server: SMTPServer) -> list[str]:
    return [mail.data.partition(b"Subject: ")[2].partition(b"\r\n")[0].decode() for mail in server.mails]


@pytest.fixture(params=["pipelining", "one by one"])
def serve_each(request: pytest.FixtureRequest, serve: Serve) -> Serve:
    extensions = EXTENSIONS if request.param == "pipelining" else EXTENSIONS[1:]
    return lambda **options: serve(**{"extensions": extensions, **options})


# ---------------------------------------------------------------- replies that belong to another command

STRAY = ["250 2.0.0 stray", "354 stray", "220 stray", "334 stray"]


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_stray_reply_never_makes_an_unsent_mail_accepted(
    verb: str, stray: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    left = [1]

    def script(session: Session, seen: str, line: str) -> bytes | None:
        if seen != verb or not left[0]:
            return None
        left[0] = 0
        right = {"MAIL": server._begin, "RCPT": server._add_recipient}.get(seen)
        reply = right(session, line) if right else "354 go ahead"
        return f"{stray}\r\n{reply}\r\n".encode()

    server = serve_each(script=script)
    mail = make_mail(server)
    assert mail.send(message())
    assert all(mail.send_many([message(i) for i in range(1, 5)]))
    assert Counter(subjects(server)) == Counter(f"m{i}" for i in range(5))


@pytest.mark.parametrize("reply", ["250 ok", "220 hello", "334 go on", "354-no\r\n250 ok"])
def test_data_needs_354_or_the_connection_is_closed(reply: str, serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=lambda session, verb, line: f"{reply}\r\n".encode() if verb == "DATA" else None)
    with pytest.raises(OutOfStep):
        make_mail(server).send(message())
    assert server.mails == []
    wait_until(lambda: all(session.ended for session in server.sessions))


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_bad_sequence_is_about_the_dialogue_and_not_about_the_mail(
    verb: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    left = [1]

    def script(session: Session, seen: str, line: str) -> str | None:
        if seen != verb or not left[0]:
            return None
        left[0] = 0
        return "503 5.5.1 bad sequence of commands"

    server = serve_each(script=script)
    assert make_mail(server).send(message())
    assert [session.mails for session in server.sessions] == [0, 1]


def test_final_dot_that_is_answered_by_another_command_is_unknown(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=lambda session, verb, line: "354 go ahead" if verb == "." else None)
    with pytest.raises(DeliveryUnknown):
        make_mail(server).send(message())


# ---------------------------------------------------------------- behind a message

STRICT_BEHIND = {
    "503": lambda count: b"503 5.5.1 pipelined after the end of data\r\n" * count,
    "554": lambda count: b"554 5.5.0 improper pipelining\r\n" * count,
    "421": lambda count: b"421 4.7.0 too many errors\r\n",
    "silence": lambda count: b"",
}


@pytest.mark.parametrize("how", STRICT_BEHIND)
def test_mail_behind_a_message_does_not_pay_for_what_the_server_minds(how: str, make_mail: MakeMail) -> None:
    with SMTPServer(behind=STRICT_BEHIND[how]) as server:
        mail = make_mail(server, MAIL_POOL_SIZE=2, MAIL_TIMEOUT=0.5)
        assert all(mail.send_many([message(i) for i in range(60)]))
        assert Counter(subjects(server)) == Counter(f"m{i}" for i in range(60))
        assert server.behind_seen
        if how != "421":
            seen = server.behind_seen
            assert all(mail.send_many([message(i) for i in range(20)]))
            assert server.behind_seen == seen  # it is asked no more


def test_refused_sender_is_refused_alone_too(serve: Serve, make_mail: MakeMail) -> None:
    server = serve(script=lambda session, verb, line: "553 5.1.8 no" if "bad@" in line and verb == "MAIL" else None)
    mails = [message(i, sender=f"{'bad' if i % 3 == 0 else 'good'}@example.com") for i in range(12)]
    results = make_mail(server, MAIL_POOL_SIZE=1).send_many(mails)
    assert [bool(result) for result in results] == [i % 3 != 0 for i in range(12)]
    assert all(isinstance(result.error, SenderRefused) for result in results if not result)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("farewell", ["", "421 4.4.2 session over\r\n"])
def test_server_that_ends_every_session_after_one_mail_loses_none(
    verb: str, farewell: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    server = serve_each(script=lambda session, seen, line: Drop(farewell) if session.mails and seen == verb else None)
    mail = make_mail(server)
    for i in range(3):
        assert mail.send(message(i))
    assert all(mail.send_many([message(i) for i in range(3, 12)]))
    assert Counter(subjects(server)) == Counter(f"m{i}" for i in range(12))


def test_no_more_mails_on_this_connection_means_another_one(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(
        script=lambda session, verb, line: "450 4.7.1 too many" if session.mails == 3 and verb == "MAIL" else None
    )
    assert all(make_mail(server).send_many([message(i) for i in range(30)]))
    assert len(server.mails) == 30


# ---------------------------------------------------------------- many recipients

FULL = ["452 4.5.3 too many recipients", "452 too many recipients", "552 too many recipients", "550 5.5.3 too many"]


@pytest.mark.parametrize("reply", FULL)
def test_recipients_beyond_the_limit_go_in_further_transactions(
    reply: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    def script(session: Session, verb: str, line: str) -> str | None:
        return reply if verb == "RCPT" and len(session.recipients) >= 30 else None

    server = serve_each(script=script)
    mail = make_mail(server)
    everyone = [f"r{i}@x.org" for i in range(250)]
    result = mail.send(message(recipients=everyone))
    assert result.accepted == tuple(everyone)
    assert Counter(r for sent in server.mails for r in sent.recipients) == Counter(everyone)
    before = sum(len(session.commands) for session in server.sessions)
    assert mail.send(message(recipients=everyone[:60]))
    assert sum(len(session.commands) for session in server.sessions) - before < 60 + 10  # the limit is remembered


def test_server_that_hangs_up_on_too_many_recipients_gets_fewer(serve_each: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> Any:
        if verb == "RCPT" and len(session.recipients) >= 120:
            return Drop("421 4.7.0 too many errors\r\n")
        return None

    server = serve_each(script=script)
    everyone = [f"r{i}@x.org" for i in range(300)]
    assert make_mail(server).send(message(recipients=everyone)).accepted == tuple(everyone)
    assert Counter(r for sent in server.mails for r in sent.recipients) == Counter(everyone)


def test_full_mailboxes_among_others_are_deferred_and_the_others_served(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(
        script=lambda session, verb, line: "452 4.2.2 mailbox full" if verb == "RCPT" and "full" in line else None
    )
    everyone = [f"{'full' if i % 10 == 5 else 'r'}{i}@x.org" for i in range(50)]
    result = make_mail(server).send(message(recipients=everyone))
    assert set(result.refused) == {address for address in everyone if address.startswith("full")}
    assert len(server.mails) == 1


def test_what_was_accepted_stays_accepted_where_a_later_transaction_fails(
    serve_each: Serve, make_mail: MakeMail
) -> None:
    def script(session: Session, verb: str, line: str) -> Any:
        if verb == "RCPT" and len(session.recipients) >= 10:
            return "452 4.5.3 too many recipients"
        return Drop() if verb == "." and session.mails == 1 else None

    server = serve_each(script=script)
    result = make_mail(server).send(message(recipients=[f"r{i}@x.org" for i in range(25)]))
    assert result.accepted == tuple(f"r{i}@x.org" for i in range(10))
    assert {str(reply.ending) for reply in result.refused.values()} == {"unknown"}


# ---------------------------------------------------------------- what is not a mail's own fault


@pytest.mark.parametrize("text", [b"550 5.1.1 bo\xeete pleine", b"550 \xc7\xeb", b"550 a\0b \x1b[31m", b"550"])
def test_reply_in_any_encoding_is_kept_readable(text: bytes, serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(script=lambda session, verb, line: text + b"\r\n" if "bad" in line else None)
    result = make_mail(server).send(message(recipients=["good@x.org", "bad@x.org"]))
    reply = result.refused["bad@x.org"]
    assert reply.code == 550
    assert (reply.text.replace("\ufffd", "?") + "x").isprintable()
    assert isinstance(reply.text.encode(), bytes)
