"""What a mail server may do against expectation, and what must come of each mail then: sent once, or refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_taskworker.mail import Mail, Message
from flask_taskworker.mail.errors import ConnectError, DeliveryUnknown, OutOfStep, SenderRefused
from tests.support.smtp_server import EXTENSIONS, SOURCES, Drop, Session, Slow, SMTPServer, wait_until

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


# ---------------------------------------------------------------- fewer connections than the pool has


@pytest.mark.parametrize("refusal", [Drop("421 4.7.0 too many\r\n"), Drop(), "554 5.7.1 no more"], ids=str)
def test_one_connection_too_many_is_not_an_outage(refusal: Any, make_mail: MakeMail) -> None:
    with SMTPServer(most=2, refusal=refusal) as server:
        mail = make_mail(server, MAIL_POOL_SIZE=6)
        assert all(mail.send_many([message(i) for i in range(300)]))
        assert Counter(subjects(server)) == Counter(f"m{i}" for i in range(300))
        assert server.turned_away < 20


def test_threads_wait_for_the_connections_that_the_server_allows(make_mail: MakeMail) -> None:
    with SMTPServer(most=2) as server:
        mail = make_mail(server, MAIL_POOL_SIZE=6)
        results = []

        def work() -> None:
            with mail.app.app_context():
                results.append(mail.send(message()))

        threads = [threading.Thread(target=work) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(server.mails) == len(list(filter(None, results))) == 24


def test_own_connection_makes_room_for_that_of_another_part_of_the_process(make_mail: MakeMail) -> None:
    with SMTPServer(most=1) as server:
        mail = make_mail(server)
        mail.send(message(0))  # the pool keeps its connection
        with mail.connect() as connection:
            connection.send(message(1))
            mail.send(message(2))
            connection.send(message(3))
        assert subjects(server) == ["m0", "m1", "m2", "m3"]


def test_connection_counts_until_the_server_has_taken_leave_of_it(make_mail: MakeMail) -> None:
    with SMTPServer(most=1, script=lambda session, verb, line: Slow(0.5) if verb == "QUIT" else None) as server:
        mail = make_mail(server)
        mail.send(message(0))  # the pool keeps its connection, and closes it when another part needs one
        with mail.connect() as connection:
            connection.send(message(1))
        assert subjects(server) == ["m0", "m1"]


def test_no_connection_at_all_raises_what_the_server_said(make_mail: MakeMail) -> None:
    with SMTPServer(most=0) as server, pytest.raises(ConnectError, match="421 4.7.0 too many connections"):
        make_mail(server, MAIL_TIMEOUT=0.5).send_many([message()])


# ---------------------------------------------------------------- several processes share what the server allows

SENDER = """
import sys
from flask import Flask
from flask_taskworker import BackgroundTaskWorker, Mail, Message
how, port, name, instance = sys.argv[1:]
app = Flask("shop", instance_path=instance)
app.config.update(MAIL_PORT=int(port), MAIL_DEFAULT_SENDER="shop@example.org", MAIL_POOL_SIZE=4)
task_worker, mail = BackgroundTaskWorker(app), Mail(app)
with app.app_context():
    letters = [Message(f"{name}-{i}", [f"{name}-{i}@x.org"], "text") for i in range(100)]
    if how == "send":
        assert all(mail.send(letter) for letter in letters)
    elif how == "send_many":
        assert all(mail.send_many(letters))
    else:
        jobs = mail.send_later_many(letters)
        task_worker.start()
        assert not any(job.result(60) for job in jobs)
        task_worker.stop(5)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_processes_share_the_connections_that_the_server_allows(tmp_path: Path) -> None:
    with SMTPServer(most=2) as server:
        senders = [
            subprocess.Popen(
                [sys.executable, "-c", SENDER, how, str(server.port), f"{how}{i}", str(tmp_path / f"{how}{i}")],
                stderr=subprocess.PIPE,
                text=True,
                env=SOURCES,
            )
            for i in range(2)
            for how in ("send", "send_many", "send_later")
        ]
        said = [sender.communicate(timeout=120)[1] for sender in senders]
    assert [sender.returncode for sender in senders] == [0] * 6, said
    assert not any("queued mail waits" in text for text in said)
    assert Counter(subjects(server)) == Counter(
        f"{how}{i}-{n}" for how in ("send", "send_many", "send_later") for i in range(2) for n in range(100)
    )


def test_server_that_has_no_room_for_the_moment_is_asked_again(make_mail: MakeMail) -> None:
    with SMTPServer(most=0) as server:
        make_room = threading.Timer(0.3, setattr, (server, "most", 1))
        make_room.start()
        assert make_mail(server).send(message())
        make_room.join()
        assert server.turned_away < 8


@pytest.mark.parametrize("verb", ["EHLO", "MAIL"])
def test_connection_that_is_turned_away_late_is_one_too_many(verb: str, make_mail: MakeMail) -> None:
    def script(session: Session, seen: str, line: str) -> Any:
        return Drop("421 4.3.2 too many\r\n") if seen == verb and server.open_sessions > 2 else None

    with SMTPServer(script=script) as server:
        assert all(make_mail(server, MAIL_POOL_SIZE=6).send_many([message(i) for i in range(200)]))
        assert Counter(subjects(server)) == Counter(f"m{i}" for i in range(200))


def test_crowded_server_gets_unused_connections_back_at_once(make_mail: MakeMail) -> None:
    with SMTPServer(most=1) as server:
        assert all(make_mail(server, MAIL_POOL_SIZE=2).send_many([message(i) for i in range(50)]))
        wait_until(lambda: not server.open_sessions, 5)


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
    for i in range(4):
        assert mail.send(message(i))
    assert all(mail.send_many([message(i) for i in range(4, 30)]))
    assert Counter(subjects(server)) == Counter(f"m{i}" for i in range(30))


def test_no_more_mails_on_this_connection_means_another_one(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each(
        script=lambda session, verb, line: "450 4.7.1 too many" if session.mails == 3 and verb == "MAIL" else None
    )
    assert all(make_mail(server).send_many([message(i) for i in range(30)]))
    assert len(server.mails) == 30


# ---------------------------------------------------------------- pipelining


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


def test_more_mailers_than_servers_leave_few_connections(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server)
    for tenant in range(60):
        mail.state.username = f"tenant{tenant}"
        mail.send(message())
    wait_until(lambda: server.open_sessions <= 20)
