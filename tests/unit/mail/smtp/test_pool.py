"""Connections are shared, kept and let go, and no more are asked for than the server allows."""

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
from flask_taskworker.mail.errors import ConnectError
from flask_taskworker.mail.smtp import pool
from tests.support.smtp_server import SOURCES, Drop, Session, Slow, SMTPServer, wait_until

Serve = Callable[..., SMTPServer]
MakeMail = Callable[..., Mail]


def message(number: int = 0, **fields: Any) -> Message:
    defaults = {"subject": f"m{number}", "recipients": [f"r{number}@example.com"], "sender": "from@example.com"}
    return Message(**{**defaults, "body": "text", **fields})


def subjects(server: SMTPServer) -> list[str]:
    return [mail.data.partition(b"Subject: ")[2].partition(b"\r\n")[0].decode() for mail in server.mails]


def test_threads_share_the_pool(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_POOL_SIZE=3)
    app = mail.app
    results = []

    def work() -> None:
        with app.app_context():
            results.append(mail.send(message()))

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == len(server.mails) == 20
    assert len(server.sessions) <= 3


def test_pooled_connection_is_renewed_after_its_mails(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_MAX_EMAILS=2, MAIL_POOL_SIZE=1)
    for _ in range(5):
        mail.send(message())
    assert [session.mails for session in server.sessions] == [2, 2, 1]
    wait_until(lambda: server.sessions[0].verbs[-1] == "QUIT")


def test_idle_connection_is_closed(serve: Serve, make_mail: MakeMail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_S", 0.05)
    server = serve()
    mail = make_mail(server)
    mail.send(message())
    wait_until(lambda: server.sessions[0].ended)
    assert server.sessions[0].verbs[-1] == "QUIT"
    assert mail.send(message())


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


def test_more_mailers_than_servers_leave_few_connections(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server)
    for tenant in range(60):
        mail.state.username = f"tenant{tenant}"
        mail.send(message())
    wait_until(lambda: server.open_sessions <= 20)
