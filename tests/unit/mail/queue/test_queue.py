"""Queued mail: stored before send_later returns, sent by the worker, to each recipient once."""

from __future__ import annotations

import asyncio
import email
import hashlib
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session as OrmSession

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.core.mail_config import MailConfig
from flask_taskworker.core.rows import JobState
from flask_taskworker.errors import AppError, ArgumentsError, JobFailed, JobNotFound
from flask_taskworker.mail import (
    Attachment,
    BadHeaderError,
    Ending,
    Mail,
    Message,
    MessageTooLarge,
    MissingRecipients,
    email_dispatched,
    email_failed,
    email_queued,
)
from flask_taskworker.mail.queue import delivery
from flask_taskworker.mail.queue.queue import DELIVER
from flask_taskworker.mail.smtp import pool
from tests.support.apps import task_worker_of
from tests.support.postgres import run_sql
from tests.support.smtp_server import Drop, Session, Silence, Slow, SMTPServer, wait_until

pytestmark = pytest.mark.both_databases(slow="postgresql")

Serve = Callable[..., SMTPServer]
MakeQueue = Callable[..., Mail]

FAST = {"MAIL_RETRY_BASE": 0.05, "MAIL_RETRY_CAP": 0.2, "TASKER_LOOP_INTERVAL": 0.5, "TASKER_DURABILITY": "normal"}


@pytest.fixture
def make_queue(make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeQueue]:
    """A Mail of an app with a TaskWorker, its context pushed; ``start=True`` runs the worker."""
    # On a busy machine a server that is there may need more than a second to greet, and mails would be put off.
    monkeypatch.setattr(delivery, "PATIENCE_S", 20.0)
    workers: list[BackgroundTaskWorker] = []
    contexts = []

    def make(server: SMTPServer | None = None, *, start: bool = True, **config: Any) -> Mail:
        defaults = {"MAIL_DEFAULT_SENDER": "from@example.com", "MAIL_PORT": server.port if server else 9, **FAST}
        app = make_app(**{**defaults, **config})
        worker = BackgroundTaskWorker(app)
        workers.append(worker)
        mail = Mail(app)
        context = app.app_context()
        context.push()
        contexts.append(context)
        if start:
            worker.start()
        return mail

    yield make
    for worker in workers:
        worker.stop(5)
    for context in reversed(contexts):
        context.pop()


def letter(*recipients: str, **fields: Any) -> Message:
    return Message(
        **{"subject": "hello", "recipients": list(recipients or ["to@example.com"]), "body": "text", **fields}
    )


def database(mail: Mail) -> Path:
    return Path(mail.app.instance_path) / "taskworker.db"


def rows(mail: Mail, sql: str) -> list[tuple[Any, ...]]:
    url = mail.app.extensions["taskworker"].config.database_uri
    if url.get_backend_name() == "postgresql":
        return run_sql(url.render_as_string(hide_password=False), sql)
    with closing(sqlite3.connect(database(mail))) as connection:
        found = connection.execute(sql).fetchall()
        connection.commit()
        return found


# ---------------------------------------------------------------- putting in


def test_queued_mail_is_stored_when_the_call_returns(make_queue: MakeQueue) -> None:
    mail = make_queue(start=False)
    message = letter("a@x.org", "b@x.org", bcc=["c@x.org"])
    job = mail.send_later(message)
    assert (job.state, job.task, job.queue) == (JobState.READY, DELIVER, "mail")
    ((data, message_id, sender),) = rows(
        mail, "SELECT body, message_id, sender FROM taskworker_mail JOIN taskworker_mail_body ON mail_id = id"
    )
    assert (data, message_id, sender) == (message.as_bytes(), message.msgId, "from@example.com")
    assert [str(state) for state in job.recipients.values()] == ["waiting"] * 3
    assert list(job.recipients) == ["a@x.org", "b@x.org", "c@x.org"]


def test_worker_sends_the_bytes_that_were_queued(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve()
    mail = make_queue(server)
    message = letter("a@x.org", "b@x.org", html="<b>\u00fc</b>")
    job = mail.send_later(message)
    data = message.as_bytes()
    message.subject = "changed afterwards"
    assert job.result(30) == {}
    assert server.mails[0].data == data
    assert server.mails[0].recipients == ["a@x.org", "b@x.org"]
    assert [state.ending for state in job.recipients.values()] == [Ending.ACCEPTED] * 2
    assert str(job.recipients["a@x.org"]) == 'accepted 250 "2.0.0 queued"'
    assert job.refresh().state is JobState.SUCCEEDED


def test_job_arguments_are_the_mails_id_alone(make_queue: MakeQueue) -> None:
    mail = make_queue(start=False)
    job = mail.send_later(letter(body="https://example.org/reset/secret"))
    ((args,),) = rows(mail, "SELECT args FROM taskworker_job")
    assert job.uid in args
    assert len(args) < 100


def test_delay_priority_and_queue_are_the_jobs(make_queue: MakeQueue) -> None:
    mail = make_queue(start=False)
    job = mail.send_later(letter(), delay=60, queue="slow", priority=7)
    assert (job.state, job.queue, job.priority) == (JobState.SCHEDULED, "slow", 7)
    assert job.run_at is not None


@pytest.mark.sqlite_only
def test_without_task_worker_the_error_says_what_to_do(make_app: Callable[..., Flask]) -> None:
    app = make_app(MAIL_DEFAULT_SENDER="a@x.org")
    mail = Mail(app)
    with app.app_context(), pytest.raises(AppError, match=r"task_worker = BackgroundTaskWorker\(app\)"):
        mail.send_later(letter())


@pytest.mark.sqlite_only
def test_wrong_message_is_refused_at_the_call_and_nothing_is_stored(make_queue: MakeQueue) -> None:
    mail = make_queue(start=False, MAIL_MAX_SIZE=2000)
    with pytest.raises(BadHeaderError):
        mail.send_later(letter(subject="a\nb"))
    with pytest.raises(MissingRecipients):
        mail.send_later(letter(recipients=[]))
    with pytest.raises(MessageTooLarge, match="MAIL_MAX_SIZE allows 2000"):
        mail.send_later(letter(body="x" * 3000))
    with pytest.raises(BadHeaderError):
        mail.send_later_many([letter(), letter(subject="a\nb")])
    mail.send_later(letter())
    assert rows(mail, "SELECT count(*) FROM taskworker_mail") == [(1,)]


def test_repeated_uid_never_doubles_the_mail(make_queue: MakeQueue) -> None:
    mail = make_queue(start=False)
    first = mail.send_later(letter(), uid="order-17")
    again = mail.send_later(letter(), uid="order-17")
    assert (again.id, again.uid) == (first.id, "order-17")
    assert rows(mail, "SELECT count(*) FROM taskworker_mail") == [(1,)]


def test_many_are_stored_in_one_transaction_and_their_attachment_once(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve()
    mail = make_queue(server)
    shared = Attachment("a.bin", "application/octet-stream", bytes(range(256)) * 40)
    messages = [letter(f"r{i}@x.org", attachments=[shared, Attachment("own.txt", data=str(i))]) for i in range(20)]
    jobs = mail.send_later_many(messages)
    assert [job.result(30) for job in jobs] == [{}] * 20
    assert sorted(sent.data for sent in server.mails) == sorted(message.as_bytes() for message in messages)
    ((digest, uses, size),) = rows(mail, "SELECT sha256, uses, length(bytes) FROM taskworker_blob")
    assert uses == 20
    assert digest in str(rows(mail, "SELECT layout FROM taskworker_mail LIMIT 1"))
    assert all(body < size for (body,) in rows(mail, "SELECT length(body) FROM taskworker_mail_body"))
    assert len(digest) == hashlib.sha256().digest_size * 2


@pytest.mark.sqlite_only
def test_nothing_to_queue_is_fine(make_queue: MakeQueue) -> None:
    assert make_queue(start=False).send_later_many([]) == []


@pytest.mark.sqlite_only
@pytest.mark.parametrize("same_database", [True, False])
@pytest.mark.parametrize("commits", [True, False])
def test_session_decides(
    same_database: bool, commits: bool, serve: Serve, make_queue: MakeQueue, tmp_path: Path
) -> None:
    server = serve()
    mail = make_queue(server, start=False)
    heard: list[Any] = []

    def receiver(app: Flask, message: Message, job: Any) -> None:
        heard.append(message)

    email_queued.connect(receiver)
    mail.send_later(letter("before@x.org"))
    engine = create_engine(f"sqlite:///{database(mail) if same_database else tmp_path / 'app.db'}")
    with OrmSession(engine) as session:
        job = mail.send_later(letter("within@x.org"), session=session)
        assert job.state is JobState.PENDING
        assert len(heard) == 1
        if commits:
            session.commit()
        else:
            session.rollback()
    engine.dispose()
    assert len(heard) == 1 + commits
    assert rows(mail, "SELECT count(*) FROM taskworker_mail") == [(1 + commits,)]
    if commits:
        assert job.state is JobState.READY
        assert list(job.recipients) == ["within@x.org"]


@pytest.mark.sqlite_only
def test_async_call_stores_too(make_queue: MakeQueue) -> None:
    mail = make_queue(start=False)
    job = asyncio.run(mail.asend_later(letter(), delay=5))
    assert job.state is JobState.SCHEDULED


@pytest.mark.sqlite_only
@pytest.mark.no_tables_yet
def test_suppressed_mail_is_recorded_and_touches_no_database(make_queue: MakeQueue) -> None:
    mail = make_queue(start=False, TESTING=True)
    with mail.record_messages() as outbox:
        job = mail.send_later(letter("a@x.org"))
        jobs = mail.send_later_many([letter(), letter()])
        engine = create_engine("sqlite://")
        with OrmSession(engine) as session:
            mail.send_later(letter(subject="at commit"), session=session)
            assert len(outbox) == 3
            session.commit()
        engine.dispose()
    assert [message.subject for message in outbox] == ["hello", "hello", "hello", "at commit"]
    assert job.refresh().state is JobState.SUCCEEDED
    assert job.result() == asyncio.run(job.aresult()) == {}
    assert str(job.recipients["a@x.org"]) == "accepted"
    assert (job.cancel(), job.retry(), len(jobs)) == (False, False, 2)
    assert not database(mail).exists()


# ---------------------------------------------------------------- endings


def test_only_recipients_not_yet_accepted_are_tried_again(serve: Serve, make_queue: MakeQueue) -> None:
    tries: dict[str, int] = {}

    def script(session: Session, verb: str, line: str) -> str | None:
        if verb != "RCPT":
            return None
        address = line.partition("<")[2].partition(">")[0]
        tries[address] = tries.get(address, 0) + 1
        if address == "absent@x.org":
            return "550 5.1.1 no such user"
        return "450 4.2.0 busy" if address == "later@x.org" and tries[address] < 4 else None

    server = serve(script=script)
    mail = make_queue(server)
    message = letter("now@x.org", "absent@x.org", "later@x.org")
    job = mail.send_later(message)
    assert job.result(30) == {"absent@x.org": 'rejected 550 "5.1.1 no such user"'}
    assert tries == {"now@x.org": 1, "absent@x.org": 1, "later@x.org": 4}
    assert [sent.recipients for sent in server.mails] == [["now@x.org"], ["later@x.org"]]
    assert {sent.data for sent in server.mails} == {message.as_bytes() + b"\r\n"}
    assert job.refresh().attempt == 1


def test_deferred_recipient_says_when_it_is_tried_again(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve(script=lambda session, verb, line: "451 4.3.0 not now" if verb == "MAIL" else None)
    mail = make_queue(server, MAIL_RETRY_BASE=300.0, MAIL_RETRY_CAP=3600.0)
    begun = time.time()
    job = mail.send_later(letter())
    wait_until(lambda: job.refresh().state is JobState.SCHEDULED)
    state = job.recipients["to@example.com"]
    assert (state.ending, state.code, state.text) == (Ending.DEFERRED, 451, "4.3.0 not now")
    assert state.next_try is not None
    assert begun + 269 < state.next_try.timestamp() < time.time() + 331
    assert "next try" in str(state)


def test_delays_double_up_to_the_cap() -> None:
    config = MailConfig.from_mapping({"MAIL_RETRY_BASE": 300, "MAIL_RETRY_CAP": 3600})
    delays = [delivery._again_at(config, tries, 0) / 1000 for tries in range(8)]
    for delay, expected in zip(delays, [300, 600, 1200, 2400, 3600, 3600, 3600, 3600], strict=True):
        assert expected * 0.89 < delay < expected * 1.11


def test_mail_refused_for_everybody_fails_and_tells_the_listeners(serve: Serve, make_queue: MakeQueue) -> None:
    heard: list[Any] = []

    def receiver(app: Flask, job: Any, recipients: Any) -> None:
        heard.append((app, job, recipients))

    server = serve(script=lambda session, verb, line: "550 5.1.1 no such user" if verb == "RCPT" else None)
    mail = make_queue(server)
    email_failed.connect(receiver)
    job = mail.send_later(letter("a@x.org", "b@x.org"))
    with pytest.raises(JobFailed, match="refused every recipient") as caught:
        job.result(30)
    email_failed.disconnect(receiver)
    assert caught.value.kind == "exception"
    ((app, failed, recipients),) = heard
    assert (app, failed) == (mail.app, job)
    assert [str(state) for state in recipients.values()] == ['rejected 550 "5.1.1 no such user"'] * 2
    assert len(server.sessions) == 1


def test_mail_is_given_up_when_it_expires(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve(script=lambda session, verb, line: "450 4.2.0 busy" if "never@" in line else None)
    mail = make_queue(server, MAIL_EXPIRES=0.4)
    partly, wholly = mail.send_later(letter("now@x.org", "never@x.org")), mail.send_later(letter("never@x.org"))
    assert "given up after MAIL_EXPIRES" in partly.result(30)["never@x.org"]
    with pytest.raises(JobFailed, match=r"450 given up.*4\.2\.0 busy"):
        wholly.result(30)
    assert len(server.mails) == 1


def losing_replies(number: int) -> Callable[[Session, str, str], Drop | None]:
    """What a server says that takes that number of messages, and hangs up before it says so."""
    left = [number]

    def script(session: Session, verb: str, line: str) -> Drop | None:
        if verb == "." and left[0]:
            left[0] -= 1
            return Drop("2")
        return None

    return script


def test_lost_reply_is_tried_again_with_the_same_bytes(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve(script=losing_replies(2))
    mail = make_queue(server)
    job = mail.send_later(letter())
    assert job.result(30) == {}
    assert len({sent.data for sent in server.mails}) == 1
    assert len(server.mails) == 3


def test_once_holds_a_mail_whose_delivery_is_unknown(serve: Serve, make_queue: MakeQueue) -> None:
    left = [1]

    def script(session: Session, verb: str, line: str) -> Any:
        if "absent@" in line:
            return "550 5.1.1 no such user"
        if verb == "." and left[0]:
            left[0] -= 1
            return Drop("2")
        return None

    server = serve(script=script)
    mail = make_queue(server)
    job = mail.send_later(letter("a@x.org", "absent@x.org"), once=True)
    with pytest.raises(JobFailed) as caught:
        job.result(30)
    assert caught.value.kind == "unknown"
    assert [state.ending for state in job.recipients.values()] == [Ending.UNKNOWN, Ending.REJECTED]
    assert len(server.mails) == 1
    assert job.retry()
    assert list(job.result(30)) == ["absent@x.org"]
    assert len(server.mails) == 2


def test_once_is_held_after_a_crash_at_the_dot(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve()
    mail = make_queue(server, start=False)
    job = mail.send_later(letter(), once=True)
    # What a process leaves behind that dies between the dot and its reply.
    rows(mail, "UPDATE taskworker_mail SET phase = 'dot'")
    task_worker_of(mail.app).start()
    with pytest.raises(JobFailed, match="whether it arrived is unknown") as caught:
        job.result(30)
    assert caught.value.kind == "unknown"
    assert server.sessions == []


def test_dot_of_a_once_mail_is_in_the_store_before_the_message_is_sent(serve: Serve, make_queue: MakeQueue) -> None:
    seen: list[Any] = []
    mails: list[Mail] = []

    def script(session: Session, verb: str, line: str) -> None:
        if verb == ".":
            seen.extend(rows(mails[0], "SELECT phase FROM taskworker_mail"))

    mails.append(make_queue(serve(script=script)))
    assert mails[0].send_later(letter(), once=True).result(30) == {}
    assert mails[0].send_later(letter()).result(30) == {}
    assert seen == [("dot",), (None,), (None,)]


def test_failed_mail_that_is_put_back_is_sent_again(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve(script=lambda session, verb, line: "550 5.1.1 no" if verb == "RCPT" else None)
    mail = make_queue(server)
    job = mail.send_later(letter())
    with pytest.raises(JobFailed):
        job.result(30)
    server.script = None
    # As the command line does it, which knows nothing of mails.
    assert mail.app.extensions["taskworker"].client.job(job.id).retry()
    assert job.result(30) == {}


def test_failed_mail_is_put_back_by_a_process_without_mail_too(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve(script=lambda session, verb, line: "550 5.1.1 no" if verb == "RCPT" else None)
    mail = make_queue(server)
    job = mail.send_later(letter())
    with pytest.raises(JobFailed):
        job.result(30)
    server.script = None
    worker = task_worker_of(mail.app)
    worker.stop()
    state = mail.app.extensions.pop("mail")
    assert worker.get_job(job.id).retry()
    mail.app.extensions["mail"] = state
    worker.start()
    assert job.result(30) == {}


def test_batch_counts_its_mails_and_sends_those_again_that_failed(serve: Serve, make_queue: MakeQueue) -> None:
    broken = ["absent@"]

    def script(session: Session, verb: str, line: str) -> Any:
        if any(word in line for word in broken):
            return "550 5.1.1 no such user"
        return None

    server = serve(script=script)
    mail = make_queue(server)
    task_worker = task_worker_of(mail.app)
    with task_worker.batch("newsletter") as batch:
        for address in ("a@x.org", "absent@x.org", "b@x.org"):
            mail.send_later(letter(address), batch=batch)
    assert batch.wait(timeout=30) == (3, 2, 1, 0)
    broken.clear()
    assert batch.retry() == 1
    assert batch.wait(timeout=30) == (3, 3, 0, 0)
    assert sorted(address for sent in server.mails for address in sent.recipients) == [
        "a@x.org",
        "absent@x.org",
        "b@x.org",
    ]


def test_mail_of_unknown_delivery_that_a_batch_retries_is_sent_again(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve(script=losing_replies(1))
    mail = make_queue(server)
    with task_worker_of(mail.app).batch("once") as batch:
        mail.send_later(letter(), once=True, batch=batch)
    assert batch.wait(timeout=30) == (1, 0, 1, 0)
    assert batch.retry() == 1
    assert batch.wait(timeout=30) == (1, 1, 0, 0)
    assert len(server.mails) == 2


def test_finished_mail_whose_job_runs_again_is_not_sent_again(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve()
    mail = make_queue(server)
    job = mail.send_later(letter())
    job.result(30)
    # As after a crash between the record of the mail and that of the job.
    rows(
        mail,
        "UPDATE taskworker_job SET state = 'ready', crashes = 1, finished_at = NULL, expires_at = NULL, result = NULL",
    )
    mail.app.extensions["taskworker"].client.wake()
    assert job.result(30) == {}
    assert len(server.mails) == 1


def test_mail_whose_end_was_not_noted_is_not_sent_again(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve()
    mail = make_queue(server, start=False)
    job = mail.send_later(letter("a@x.org", "absent@x.org"))
    # What a process leaves behind that dies between the record of the recipients and that of the mail.
    rows(mail, "UPDATE taskworker_recipient SET ending = 'accepted' WHERE address = 'a@x.org'")
    rows(mail, "UPDATE taskworker_recipient SET ending = 'rejected', code = 550 WHERE address = 'absent@x.org'")
    task_worker_of(mail.app).start()
    assert job.result(30) == {"absent@x.org": "rejected 550"}
    assert server.sessions == []
    assert rows(mail, "SELECT finished_at IS NULL FROM taskworker_mail") == [(0,)]


def test_too_many_recipients_for_one_mail_go_in_the_next(serve: Serve, make_queue: MakeQueue) -> None:
    def script(session: Session, verb: str, line: str) -> str | None:
        return "452 4.5.3 too many recipients" if verb == "RCPT" and len(session.recipients) >= 3 else None

    server = serve(script=script)
    mail = make_queue(server, MAIL_RETRY_BASE=300.0)
    assert mail.send_later(letter(*(f"r{i}@x.org" for i in range(8)))).result(30) == {}
    assert [len(sent.recipients) for sent in server.mails] == [3, 3, 2]


# ---------------------------------------------------------------- the transport


def test_outage_parks_the_transport_and_counts_against_no_mail(
    make_queue: MakeQueue, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "FIRST_PARKING_S", 0.2)
    monkeypatch.setattr(delivery, "LONGEST_PARKING_S", 0.2)
    monkeypatch.setattr(delivery, "_LONGEST_SPREAD_S", 0.1)
    # Bound and not listening: no other process can listen there meanwhile.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        mail = make_queue(MAIL_PORT=deaf.getsockname()[1])
        jobs = mail.send_later_many([letter(f"r{i}@x.org") for i in range(30)])
        wait_until(lambda: all(job.refresh().state is JobState.SCHEDULED for job in jobs))
    assert all(str(job.recipients[f"r{i}@x.org"]) == "waiting" for i, job in enumerate(jobs))
    assert rows(mail, "SELECT max(tries), max(failures) FROM taskworker_mail, taskworker_job") == [(0, 0)]
    server = serve()
    mail.state.port = server.port
    assert all(job.result(30) == {} for job in jobs)
    assert len(server.mails) == 30
    alarms = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(alarms) == 1
    assert "none is lost" in alarms[0].message


@pytest.mark.sqlite_only
def test_wrong_password_makes_one_login_and_one_alarm(
    serve: Serve, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(users={"ada": "right"})
    mail = make_queue(server, MAIL_USERNAME="ada", MAIL_PASSWORD="wrong")
    begun = time.time()
    jobs = mail.send_later_many([letter() for _ in range(20)])
    wait_until(lambda: all(job.refresh().state is JobState.SCHEDULED for job in jobs))
    assert sum(session.verbs.count("AUTH") for session in server.sessions) == 1
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert "wrong" not in caplog.text.replace("wrong password", "")
    assert all(job.run_at is not None and job.run_at.timestamp() > begun + 50 for job in jobs)


@pytest.mark.sqlite_only
def test_server_that_says_nothing_holds_up_no_other_job(
    serve: Serve, make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mails that wait for a connection would keep every slot until MAIL_TIMEOUT is over."""
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.2)
    monkeypatch.setattr(delivery, "SLOW_PARKING_S", 0.2)
    monkeypatch.setattr(delivery, "_LONGEST_SPREAD_S", 0.1)
    server = serve(greeting=Silence())
    mail = make_queue(server, start=False, MAIL_TIMEOUT=30, TASKER_CONCURRENCY=4)
    task_worker = task_worker_of(mail.app)

    @task_worker.task(name="other")
    async def other() -> int:
        return 1

    jobs = mail.send_later_many([letter(f"r{i}@x.org") for i in range(12)])
    task_worker.start()
    wait_until(lambda: server.sessions)
    assert other.enqueue().result(30) == 1
    server.greeting = "220 ready"
    server.hang_up(server.sessions[0])
    assert all(job.result(30) == {} for job in jobs)
    assert len(server.mails) == 12


@pytest.mark.parametrize("once", [False, True])
def test_rejection_before_an_outage_is_not_asked_for_again(
    once: bool, serve: Serve, make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_LONGEST_SPREAD_S", 0.1)
    monkeypatch.setattr(pool, "_STILL_COUNTED_S", 0.1)
    server = serve(script=lambda session, verb, line: turning(server, Drop("421 4.3.2 bye\r\n"), session, verb, line))
    mail = make_queue(server)
    job = mail.send_later(letter("bad@x.org", "good@x.org"), once=once)
    wait_until(lambda: job.recipients["bad@x.org"].ending is Ending.REJECTED)
    server.greeting = "220 ready"
    assert job.result(30) == {"bad@x.org": 'rejected 550 "5.1.1 no such user"'}
    assert times_asked(server, "bad@") == 1


@pytest.mark.sqlite_only
def test_rejection_before_the_server_falls_silent_is_not_asked_for_again(
    serve: Serve, make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.2)
    monkeypatch.setattr(delivery, "SLOW_PARKING_S", 0.2)
    monkeypatch.setattr(delivery, "_LONGEST_SPREAD_S", 0.1)
    server = serve(script=lambda session, verb, line: turning(server, Silence(), session, verb, line))
    mail = make_queue(server)
    job = mail.send_later(letter("bad@x.org", "good@x.org"))
    wait_until(lambda: job.recipients["bad@x.org"].ending is Ending.REJECTED)
    server.greeting = "220 ready"
    server.hang_up(server.sessions[1])
    assert job.result(30) == {"bad@x.org": 'rejected 550 "5.1.1 no such user"'}
    assert times_asked(server, "bad@") == 1


def turning(server: SMTPServer, greeting: Any, session: Session, verb: str, line: str) -> Any:
    """Reject who is bad; hang up before the first message, and greet with *greeting* from then on."""
    if "bad@" in line:
        return "550 5.1.1 no such user"
    if verb != "DATA" or session.number > 1:
        return None
    server.greeting = greeting
    return Drop()


def times_asked(server: SMTPServer, address: str) -> int:
    return sum(address in command for session in server.sessions for command in session.commands)


def test_parking_grows_to_its_limit() -> None:
    async def pauses() -> list[float]:
        transport, seen = delivery.Transport(), []
        for _ in range(6):
            transport._parked_until = 0.0
            transport.park(ConnectionRefusedForTest())
            seen.append(transport._pause)
        return seen

    assert asyncio.run(pauses()) == [0.25, 0.75, 2.25, 6.75, 20.25, 50]


class ConnectionRefusedForTest(delivery.MailError):
    """The server is away."""


@pytest.mark.sqlite_only
def test_worker_uses_connections_of_its_own_loop_for_tasks_too(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve()
    mail = make_queue(server, start=False, MAIL_POOL_SIZE=1)
    task_worker = task_worker_of(mail.app)

    @task_worker.task(name="direct")
    async def direct() -> int:
        return len((await mail.asend(letter())).accepted)

    task_worker.start()
    assert direct.enqueue().result(30) == 1
    assert mail.send_later(letter()).result(30) == {}
    assert [session.mails for session in server.sessions] == [2]
    task_worker.stop(5)
    wait_until(lambda: server.open_sessions == 0)
    assert server.sessions[0].verbs[-1] == "QUIT"


# ---------------------------------------------------------------- signals, backends, upkeep


@pytest.mark.sqlite_only
def test_dispatched_is_sent_where_the_mail_is_sent(serve: Serve, make_queue: MakeQueue) -> None:
    heard: list[Message] = []

    def receiver(message: Message, app: Flask) -> None:
        assert app.extensions["mail"]
        heard.append(message)

    mail = make_queue(serve(), start=False)
    email_dispatched.connect(receiver)
    message = letter("a@x.org", subject="Gr\u00fc\u00dfe", body="t\u00e4xt", html="<b>\u00fc</b>")
    job = mail.send_later(message)
    assert heard == []
    task_worker_of(mail.app).start()
    job.result(30)
    email_dispatched.disconnect(receiver)
    (told,) = heard
    assert (told.subject, told.body, told.html) == ("Gr\u00fc\u00dfe", "t\u00e4xt", "<b>\u00fc</b>")
    assert (told.msgId, told.as_bytes(), told.recipients) == (message.msgId, message.as_bytes(), ["a@x.org"])


@pytest.mark.sqlite_only
def test_other_backends_take_queued_mail(make_queue: MakeQueue) -> None:
    mail = make_queue(MAIL_BACKEND="memory")
    assert mail.send_later(letter("a@x.org")).result(30) == {}
    assert mail.outbox[0].recipients == ("a@x.org",)
    assert email.message_from_bytes(mail.outbox[0].data)["Subject"] == "hello"


@pytest.mark.sqlite_only
def test_app_without_mail_keeps_the_mail(make_queue: MakeQueue, caplog: pytest.LogCaptureFixture) -> None:
    mail = make_queue(start=False)
    job = mail.send_later(letter())
    del mail.app.extensions["mail"]
    task_worker_of(mail.app).start()
    wait_until(lambda: job.refresh().state is JobState.SCHEDULED)
    assert "Call Mail(app) where the worker runs too" in caplog.text


def test_job_of_a_mail_is_found_by_its_number(make_queue: MakeQueue) -> None:
    mail = make_queue(start=False)
    job = mail.send_later(letter())
    assert mail.get_job(job.id) == job
    with pytest.raises(ArgumentsError, match="A job's id is a whole number"):
        mail.get_job(str(job.id))  # type: ignore[arg-type]
    assert list(mail.get_job(job.id).recipients) == ["to@example.com"]

    @task_worker_of(mail.app).task(name="other")
    def other() -> None: ...

    with pytest.raises(JobNotFound, match="not of a mail"):
        mail.get_job(other.enqueue().id)


def test_mail_that_is_on_its_way_at_the_end_of_the_worker_is_not_sent_again(
    serve: Serve, make_queue: MakeQueue
) -> None:
    server = serve(script=lambda session, verb, line: Slow(0.3) if verb == "." else None)
    mail = make_queue(server)
    task_worker = task_worker_of(mail.app)
    job = mail.send_later(letter())
    wait_until(lambda: any("DATA" in session.verbs for session in server.sessions))
    task_worker.stop(0)
    assert job.recipients["to@example.com"].ending is Ending.ACCEPTED
    task_worker.start()
    assert job.result(30) == {}
    assert len(server.mails) == 1


@pytest.mark.sqlite_only
def test_messages_wait_while_those_before_them_cannot_be_recorded(serve: Serve, make_queue: MakeQueue) -> None:
    """If the process died now, what the server has taken would be sent again: one mail a connection at most."""
    server = serve()
    mail = make_queue(server, start=False, MAIL_POOL_SIZE=2)
    jobs = list(mail.send_later_many(letter(f"r{number}@x.org") for number in range(10)))
    with closing(sqlite3.connect(database(mail), isolation_level=None, check_same_thread=False)) as lock:

        def lock_at_the_first_message(session: Session, verb: str, text: str) -> None:
            if verb == "." and not server.mails:
                lock.execute("BEGIN IMMEDIATE")

        server.script = lock_at_the_first_message
        task_worker_of(mail.app).start()
        # Two are taken, and the next two are begun.
        wait_until(lambda: sum(session.verbs.count("DATA") for session in server.sessions) == 4)
        mail.send(letter("meanwhile@x.org"))
        taken = [sent.recipients[0] for sent in server.mails]
        assert len(taken) == 3
        assert "meanwhile@x.org" in taken
        lock.execute("ROLLBACK")
    assert [job.result(60) for job in jobs] == [{}] * 10
    assert sorted(sent.recipients[0] for sent in server.mails if sent.recipients != ["meanwhile@x.org"]) == sorted(
        f"r{number}@x.org" for number in range(10)
    )


def test_mail_that_no_one_waits_for_any_more_holds_up_no_other(
    serve: Serve, make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_LAST_WORD_S", 0.01)
    go_on = threading.Event()
    server = serve()
    server.script = lambda session, verb, text: go_on.wait(30) and None if verb == "DATA" else None
    mail = make_queue(server, MAIL_POOL_SIZE=1)
    job = mail.send_later(letter("withdrawn@x.org"))
    wait_until(lambda: any("DATA" in session.verbs for session in server.sessions))
    job.cancel()
    wait_until(lambda: job.refresh().state.finished)
    go_on.set()
    assert mail.send_later(letter()).result(30) == {}
    assert server.mails[-1].recipients == ["to@example.com"]


def test_cancelled_mail_is_not_sent(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve()
    mail = make_queue(server)
    job = mail.send_later(letter("late@x.org"), delay=60)
    assert job.cancel()
    assert mail.send_later(letter()).result(30) == {}
    assert [sent.recipients for sent in server.mails] == [["to@example.com"]]


def test_ended_mail_is_pruned_with_its_blobs_and_waiting_mail_is_not(serve: Serve, make_queue: MakeQueue) -> None:
    from flask_taskworker.store.work import WorkerStore

    server = serve()
    mail = make_queue(server, MAIL_KEEP=0)
    shared = Attachment("a.bin", data=bytes(5000))
    ended = mail.send_later(letter(attachments=[shared]))
    waiting = mail.send_later(letter(attachments=[shared]), delay=600)
    ended.result(30)
    store = mail.app.extensions["taskworker"].store
    rows(mail, "UPDATE taskworker_mail SET expires_at = 0")

    async def prune() -> None:
        work = await WorkerStore.open(store)
        await work.prune()
        await work.close()

    asyncio.run(prune())
    assert rows(mail, "SELECT id FROM taskworker_mail") == [(waiting.uid,)]
    assert rows(mail, "SELECT mail_id FROM taskworker_recipient") == [(waiting.uid,)]
    assert rows(mail, "SELECT mail_id FROM taskworker_mail_body") == [(waiting.uid,)]
    assert rows(mail, "SELECT uses FROM taskworker_blob") == [(1,)]
    with pytest.raises(JobNotFound, match="MAIL_KEEP"):
        _ = ended.recipients
    waiting.cancel()
    asyncio.run(prune())
    assert rows(mail, "SELECT count(*) FROM taskworker_blob") == [(0,)]


# ---------------------------------------------------------------- what is not the mail's own fault


@pytest.fixture
def quickly_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PARKING_S", "LONGEST_PARKING_S", "_LONGEST_SPREAD_S", "SLOW_PARKING_S"):
        monkeypatch.setattr(delivery, name, 0.1)


@pytest.mark.usefixtures("quickly_parked")
@pytest.mark.sqlite_only
def test_server_that_wants_a_login_first_parks_the_queue_and_rejects_no_mail(
    serve: Serve, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    locked = [True]
    server = serve(
        script=lambda session, seen, line: "530 5.7.0 log in first" if seen == "MAIL" and locked[0] else None
    )
    mail = make_queue(server)
    jobs = mail.send_later_many([letter(f"r{i}@x.org") for i in range(3)])
    wait_until(lambda: any("log in first" in record.message for record in caplog.records))
    locked[0] = False
    assert all(job.result(30) == {} for job in jobs)
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


BROKEN = {
    "server": "two..dots",
    "server, too long": "a" * 70 + ".example",
    "password": 12345,
    "use_ssl": True,
}


@pytest.mark.usefixtures("quickly_parked")
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("setting", BROKEN)
@pytest.mark.sqlite_only
def test_setting_that_was_broken_later_parks_the_queue_with_one_alarm(
    setting: str, once: bool, serve: Serve, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(users={"ada": "right"})
    mail = make_queue(server, MAIL_USERNAME="ada", MAIL_PASSWORD="right")
    name = setting.partition(",")[0]
    before = getattr(mail.state, name)
    setattr(mail.state, name, BROKEN[setting])
    job = mail.send_later(letter(), once=once)
    wait_until(lambda: any("queued mail waits" in record.message for record in caplog.records))
    setattr(mail.state, name, before)
    assert job.result(30) == {}
    assert len(server.mails) == 1


def test_reply_that_is_not_utf8_is_recorded(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve(script=lambda session, verb, line: b"550 bo\xeete \0 pleine\r\n" if "bad" in line else None)
    job = make_queue(server).send_later(letter("good@x.org", "bad@x.org"))
    assert list(job.result(30)) == ["bad@x.org"]
    assert "pleine" in job.recipients["bad@x.org"].text
    assert len(server.mails) == 1


@pytest.mark.sqlite_only
def test_mail_that_cannot_be_shown_to_receivers_has_been_sent_and_recorded(serve: Serve, make_queue: MakeQueue) -> None:
    class Odd(Message):
        def as_bytes(self) -> bytes:
            return b"Subject: x\r\nContent-Type: text/plain; charset=nonsense\r\n\r\n\xff\xfe\r\n"

    server = serve()
    mail = make_queue(server)
    with mail.record_messages() as outbox:
        job = mail.send_later(Odd("x", ["a@x.org"], "text"))
        assert job.result(30) == {}
    assert len(server.mails) == len(outbox) == 1


def test_recipients_beyond_the_servers_limit_get_the_queued_mail_once(serve: Serve, make_queue: MakeQueue) -> None:
    server = serve(
        script=lambda session, verb, line: (
            "452 4.5.3 too many recipients" if verb == "RCPT" and len(session.recipients) >= 40 else None
        )
    )
    everyone = [f"r{i}@x.org" for i in range(130)]
    assert make_queue(server).send_later(letter(*everyone)).result(30) == {}
    assert sorted(r for sent in server.mails for r in sent.recipients) == sorted(everyone)


@pytest.mark.sqlite_only
def test_user_code_that_cancels_all_tasks_costs_and_doubles_no_mail(make_queue: MakeQueue, serve: Serve) -> None:
    server = serve(script=lambda session, verb, line: Slow(0.01) if verb == "." else None)
    mail = make_queue(server, start=False, MAIL_POOL_SIZE=2)
    task_worker = task_worker_of(mail.app)

    @task_worker.task
    async def cancel_all() -> None:
        for _ in range(30):
            for task in asyncio.all_tasks():
                # Jobs are the user's own: one that user code cancels is cancelled.
                if not task.get_name().startswith("taskworker-job"):
                    task.cancel()
            await asyncio.sleep(0.01)

    jobs = [*mail.send_later_many([letter(f"r{n}@x.org") for n in range(30)])]
    jobs += [mail.send_later(letter(f"once{n}@x.org"), once=True) for n in range(5)]
    cancelling = cancel_all.enqueue()
    task_worker.start()
    assert [job.result(30) for job in jobs] == [{}] * 35
    cancelling.result(30)
    assert len(server.mails) == len({mail.recipients[0] for mail in server.mails}) == 35
