"""A thousand queued mails against a server that fails in a third of all commands."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.mail import Mail, Message
from tests.support.apps import task_worker_of
from tests.support.smtp_server import Delivered, Drop, Session, Slow, SMTPServer

MAILS = 1_000
PAIRS = 400
"""Mails with two recipients: 1,400 recipients in all."""
NOBODIES = 30
FAILING = 0.3
FAULTY = {"MAIL", "RCPT", "DATA", "RSET", "."}


class Chaos:
    """A script that answers a part of the commands with 4xx, drops, half replies and slow dots."""

    def __init__(self) -> None:
        self.chooser = random.Random(17)
        self.rejections: Counter[str] = Counter()
        self.begun: set[int] = set()
        """The sessions whose last MAIL was accepted. Where a RSET failed it may be refused beside an older one's."""

    def __call__(self, session: Session, verb: str, line: str) -> Any:
        if verb == "RCPT" and "absent" in line and session.sender is not None:
            if session.number in self.begun:
                self.rejections[line.partition("<")[2].partition(">")[0]] += 1
            return "550 5.1.1 no such user"
        fault = None
        if verb in FAULTY and self.chooser.random() <= FAILING:
            fault = self.chooser.choice(self._faults(verb))
        if verb == "MAIL":
            is_refused = fault is not None or session.sender is not None
            (self.begun.discard if is_refused else self.begun.add)(session.number)
        return fault

    @staticmethod
    def _faults(verb: str) -> list[Any]:
        faults: list[Any] = ["451 4.3.0 try again", "450 4.2.0 busy", Drop(), Drop("4"), Drop("421 4.3.2 closing\r\n")]
        # "2" is the beginning of an acceptance whose end is lost: the mail was taken.
        return [*faults, Drop("2"), Drop("250 2.0.0 que"), Slow(0.02), Slow(0.05)] if verb == "." else faults


@pytest.fixture
def queue(make_app: Callable[..., Flask]) -> Iterator[Callable[[SMTPServer], Mail]]:
    workers: list[BackgroundTaskWorker] = []

    def make(server: SMTPServer) -> Mail:
        app = make_app(
            MAIL_DEFAULT_SENDER="from@example.com",
            MAIL_PORT=server.port,
            MAIL_POOL_SIZE=8,
            MAIL_RETRY_BASE=0.05,
            MAIL_RETRY_CAP=0.4,
            TASKER_DURABILITY="normal",
        )
        workers.append(BackgroundTaskWorker(app))
        return Mail(app)

    yield make
    for worker in workers:
        worker.stop(5)


def messages() -> list[Message]:
    made = []
    for number in range(MAILS):
        recipients = [f"r{number}@x.org"] + ([f"second{number}@x.org"] if number < PAIRS else [])
        if number < NOBODIES:
            recipients[-1] = f"absent{number}@x.org"
        made.append(Message(f"letter {number}", list(recipients), f"text of {number}"))
    return made


@pytest.mark.slow
@pytest.mark.timeout(300)  # ten seconds where nothing else runs
def test_every_recipient_is_reached_once(serve: Callable[..., SMTPServer], queue: Callable[..., Mail]) -> None:
    chaos = Chaos()
    server = serve(script=chaos)
    mail = queue(server)
    with mail.app.app_context():
        letters = messages()
        jobs = mail.send_later_many(letters)
        expected = {letter.msgId: letter.as_bytes() + b"\r\n" for letter in letters}
        task_worker_of(mail.app).start()
        results = [job.result(240) for job in jobs]
    refused = {address for result in results for address in result}
    assert refused == {f"absent{number}@x.org" for number in range(NOBODIES)}
    assert dict(chaos.rejections) == dict.fromkeys(refused, 1)
    deliveries: dict[str, list[Delivered]] = defaultdict(list)
    for delivered in server.mails:
        for address in delivered.recipients:
            deliveries[address].append(delivered)
    assert len(deliveries) == MAILS + PAIRS - NOBODIES
    for address, found in deliveries.items():
        assert [one.reply_lost for one in found] == [True] * (len(found) - 1) + [False], address
    assert {expected[_message_id(delivered)] for delivered in server.mails} == {one.data for one in server.mails}
    assert server.bad_lines == []


def _message_id(delivered: Delivered) -> str:
    return delivered.data.partition(b"Message-ID: ")[2].partition(b"\r\n")[0].decode()
