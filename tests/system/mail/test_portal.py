"""The mail thread in real processes: exit, fork, warnings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.smtp_server import SOURCES, Drop, Session, Silence, SMTPServer, wait_until

Serve = Callable[..., SMTPServer]

BEGIN = """
import os, sys, threading
from flask import Flask
from flask_taskworker.mail import Mail, Message
app = Flask("x")
app.config.update(MAIL_PORT=int(sys.argv[1]), MAIL_DEFAULT_SENDER="a@x.org", MAIL_TIMEOUT=50)
mail = Mail(app)
app.app_context().push()
def letter(subject="hi"):
    return Message(subject, ["to@example.com"], "text")
"""


def run(code: str, server: SMTPServer, *options: str, timeout: float = 45) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", BEGIN + code, str(server.port)],
        check=False,
        timeout=timeout,
        capture_output=True,
        text=True,
        env=SOURCES,
    )


@pytest.mark.slow
def test_process_ends_at_once_and_says_goodbye(serve: Serve) -> None:
    server = serve()
    code = """
import asyncio
assert threading.active_count() == 1
mail.send(letter())
assert threading.active_count() >= 2
assert all(mail.send_many(letter() for _ in range(50)))
asyncio.run(mail.asend(letter()))
mail.connect().__enter__().send(letter())  # and never left
"""
    ended = run(code, server, "-W", "error")
    assert (ended.returncode, ended.stderr) == (0, "")
    wait_until(lambda: server.open_sessions == 0)
    assert all(session.verbs[-1] == "QUIT" for session in server.sessions)
    assert len(server.mails) == 53


@pytest.mark.slow
def test_silent_server_does_not_keep_the_process(serve: Serve) -> None:
    def script(session: Session, verb: str, line: str) -> Silence | None:
        return Silence() if verb == "QUIT" else None

    ended = run("mail.send(letter())", serve(script=script))
    assert ended.returncode == 0


@pytest.mark.slow
def test_failed_connections_leak_nothing(serve: Serve) -> None:
    def script(session: Session, verb: str, line: str) -> Drop | None:
        return Drop() if verb == "EHLO" else None

    code = """
import gc
for _ in range(3):
    try:
        mail.send(letter())
    except OSError:
        pass
gc.collect()
"""
    ended = run(code, serve(script=script), "-W", "error")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
def test_fork_begins_again_and_leaves_the_parent_alone(serve: Serve) -> None:
    server = serve()
    code = """
from flask_taskworker.mail.smtp.portal import portal
def fork(work):
    child = os.fork()
    if child == 0:
        work()
        portal.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
mail.send(letter("parent"))
fork(lambda: (mail.send(letter("child")), mail.send_many(letter("child") for _ in range(4))))
mail.send(letter("parent"))
stop = threading.Event()
def work():
    with app.app_context():
        while not stop.is_set():
            mail.send(letter("thread"))
thread = threading.Thread(target=work)
thread.start()
for _ in range(5):
    fork(lambda: mail.send(letter("child")))
stop.set()
thread.join()
"""
    # Python 3.12 warns of every fork beside threads.
    ended = run(code, server, "-W", "ignore::DeprecationWarning")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sum(b"Subject: child" in mail.data for mail in server.mails) == 10
    assert sum(b"Subject: parent" in mail.data for mail in server.mails) == 2
    assert server.sessions[0].mails >= 2
    assert server.bad_lines == []


@pytest.mark.slow
def test_debug_prints_the_dialogue_to_standard_error(serve: Serve) -> None:
    ended = run("mail.state.debug = True; mail.send(letter())", serve())
    assert "flask_taskworker.mail.wire: send: MAIL FROM:<a@x.org>" in ended.stderr
    assert ended.stdout == ""
