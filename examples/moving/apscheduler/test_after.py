from __future__ import annotations

from datetime import UTC, datetime, timedelta

import after
import pytest
from after import Reminder, create_app, db


@pytest.fixture
def app(tmp_path):
    databases = {"SQLALCHEMY_DATABASE_URI": "reminders.db", "TASKER_DATABASE_URI": "jobs.db"}
    app = create_app(TESTING=True, **{key: f"sqlite:///{tmp_path / name}" for key, name in databases.items()})
    with app.app_context():
        db.create_all()
    return app


def test_reminder_is_sent_at_its_time(app, jobs, task_clock):
    client = app.test_client()
    at = task_clock.now + timedelta(days=2)
    address = f"/reminders/{client.post('/reminders', data={'text': 'Tea', 'at': at.isoformat()}).json['reminder']}"
    assert client.get(address).json == {"sent": False, "next": at.isoformat()}
    task_clock.advance(days=1)
    jobs.assert_not_enqueued(after.remind)
    task_clock.advance(days=1)
    jobs.assert_performed(after.remind, times=1)
    assert client.get(address).json == {"sent": True, "next": None}


def test_removed_reminder_is_not_sent(app, jobs, task_clock):
    client = app.test_client()
    at = task_clock.now + timedelta(hours=1)
    client.post("/reminders", data={"text": "Tea", "at": at.isoformat()})
    assert client.delete("/reminders/1").status_code == 204
    assert client.delete("/reminders/1").status_code == 404
    task_clock.advance(days=2)
    jobs.assert_not_enqueued(after.remind)


def test_old_reminders_are_tidied_each_night_and_on_request(app, jobs, task_clock):
    with app.app_context():
        db.session.add(Reminder(text="Old", sent_at=datetime.now(UTC) - timedelta(days=8)))
        db.session.commit()
        assert app.test_client().post("/tidy").status_code == 202
        assert jobs.drain().succeeded == 1
        assert db.session.query(Reminder).count() == 0
    task_clock.advance(days=3)
    jobs.assert_performed(after.tidy, times=4)


def test_worker_process_sends_it(app, jobs, live_worker):
    at = datetime.now(UTC) + timedelta(seconds=1)
    app.test_client().post("/reminders", data={"text": "Tea", "at": at.isoformat()})
    with app.app_context():
        schedule = after.task_worker.schedules["reminder 1"]
        assert schedule.trigger == after.At(at)
    job = jobs_of(jobs)
    job.result(timeout=20)


def jobs_of(jobs):
    """The job of the reminder, once the worker has fired its schedule."""
    while not (found := jobs.enqueued(after.remind)):
        pass
    return found[0]
