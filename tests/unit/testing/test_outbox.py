"""``flask_taskworker.testing.Outbox``: mail that would have been sent, and servers that fail."""

from __future__ import annotations

import smtplib
from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker import JobFailed, JobState, Mail, Message
from flask_taskworker.errors import AppError
from flask_taskworker.mail import DataRefused, RecipientsRefused
from flask_taskworker.testing import Jobs, Outbox, TaskClock


@pytest.fixture
def mail() -> Mail:
    return Mail()


def message(to: str = "ana@example.org", subject: str = "Welcome", html: str | None = None) -> Message:
    return Message(subject, recipients=[("Ana", to)], body="Go to https://example.org/confirm?a=1&b=2.", html=html)


@pytest.mark.sqlite_only
def test_sent_mail_is_found_with_its_links(app: Flask, outbox: Outbox, mail: Mail) -> None:
    with app.app_context():
        mail.send(message(html='<a href="https://example.org/logo?x=1&amp;y=2">x</a>'))
        mail.send(message(to="bob@example.org", subject="Second"))
    assert len(outbox) == 2
    found = outbox.find(to="Ana@example.org", subject="come", text="confirm")
    assert found == outbox[0] or found.message is outbox[0].message
    assert (found.subject, found.to) == ("Welcome", ["ana@example.org"])
    assert found.link("confirm") == found.link() == "https://example.org/confirm?a=1&b=2"
    assert found.link("logo") == "https://example.org/logo?x=1&y=2"
    assert [mail.subject for mail in outbox] == [mail.subject for mail in outbox.find_all()] == ["Welcome", "Second"]
    outbox.clear()
    assert not outbox


@pytest.mark.sqlite_only
def test_what_is_not_there_is_said_with_what_is(app: Flask, outbox: Outbox, mail: Mail) -> None:
    with pytest.raises(AssertionError, match=r"No mail has subject='x'. Mails sent:\n  none. Were the jobs"):
        outbox.find(subject="x")
    with app.app_context():
        mail.send(message())
    with pytest.raises(AssertionError, match="<SentMail to ana@example.org: 'Welcome'>"):
        outbox.find(to="eve@example.org")
    with pytest.raises(AssertionError, match=r"has 'nope' in it. Its links:\n  https://example.org/confirm"):
        outbox[0].link("nope")


def test_queued_mail_is_sent_when_its_job_runs(app: Flask, jobs: Jobs, outbox: Outbox, mail: Mail) -> None:
    with app.app_context():
        job = mail.send_later(message())
        mail.send_later(message(to="bob@example.org"), delay=3600)
    assert len(outbox) == 0
    assert [job.queue for job in jobs.enqueued()] == ["mail", "mail"]
    with mail.record_messages() as recorded:
        assert jobs.drain().succeeded == 1
    assert [m.subject for m in recorded] == ["Welcome"]
    assert outbox.find(to="ana@example.org").link("confirm") == "https://example.org/confirm?a=1&b=2"
    assert job.refresh().state is JobState.SUCCEEDED
    jobs.drain(scheduled=True)
    assert outbox.find(to="bob@example.org")


@pytest.mark.sqlite_only
def test_failing_server_raises_what_smtplib_would_and_then_recovers(app: Flask, outbox: Outbox, mail: Mail) -> None:
    outbox.fail(smtplib.SMTPServerDisconnected)
    outbox.fail(RecipientsRefused)
    outbox.fail(DataRefused(552, "too much"))
    outbox.fail(ConnectionResetError("wire"))
    with app.app_context():
        for expected in (
            smtplib.SMTPServerDisconnected,
            smtplib.SMTPRecipientsRefused,
            smtplib.SMTPDataError,
            ConnectionResetError,
        ):
            with pytest.raises(expected):
                mail.send(message())
        mail.send(message())
    assert len(outbox) == 1


@pytest.mark.parametrize("error", [smtplib.SMTPServerDisconnected, smtplib.SMTPConnectError, DataRefused])
@pytest.mark.sqlite_only
def test_queued_mail_outlives_a_server_that_fails_twice(
    error: type[BaseException], app: Flask, jobs: Jobs, outbox: Outbox, task_clock: TaskClock, mail: Mail
) -> None:
    outbox.fail(error, times=2)
    with app.app_context():
        job = mail.send_later(message())
    assert jobs.drain().snoozed == 1
    assert len(outbox) == 0
    drained = task_clock.advance(days=1)
    assert (drained.snoozed, drained.succeeded, len(outbox)) == (1, 1, 1)
    assert job.recipients["ana@example.org"].ending == "accepted"


@pytest.mark.sqlite_only
def test_queued_mail_to_no_one_who_exists_fails(app: Flask, jobs: Jobs, outbox: Outbox, mail: Mail) -> None:
    outbox.fail(smtplib.SMTPRecipientsRefused)
    with app.app_context():
        job = mail.send_later(message())
    with pytest.raises(RecipientsRefused, match="No such mailbox"):
        jobs.drain()
    with pytest.raises(JobFailed):
        job.result(timeout=0)


@pytest.mark.sqlite_only
def test_failure_must_be_an_exception_that_can_be_made(outbox: Outbox) -> None:
    with pytest.raises(TypeError, match="give an exception"):
        outbox.fail("no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs arguments"):
        outbox.fail(UnicodeDecodeError)


@pytest.mark.sqlite_only
def test_settings_are_given_back(app: Flask) -> None:
    state = app.extensions["mail"]
    before = state.suppress, state.config, state.outbox
    assert state.suppress
    with Outbox(app):
        assert not state.suppress
    assert (state.suppress, state.config, state.outbox) == before


def test_app_without_mail_is_refused(make_app: Callable[..., Flask]) -> None:
    with pytest.raises(AppError, match="has no Mail of this package"):
        Outbox(make_app())
    with pytest.raises(AppError, match="has no TaskWorker"):
        Jobs(make_app())
