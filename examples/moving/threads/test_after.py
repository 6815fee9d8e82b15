from __future__ import annotations

import smtplib

import after
import pytest
from after import create_app


@pytest.fixture
def app(tmp_path):
    return create_app(TESTING=True, TASKER_DATABASE_URI=f"sqlite:///{tmp_path / 'jobs.db'}")


def test_mail_is_sent_after_the_request(app, jobs, outbox):
    app.test_client().post("/signup", data={"email": "ana@example.org"})
    assert not outbox
    jobs.drain()
    assert outbox.find(to="ana@example.org").subject == "Welcome"


def test_mail_survives_a_server_that_is_away(app, jobs, outbox):
    outbox.fail(smtplib.SMTPServerDisconnected, times=2)
    app.test_client().post("/signup", data={"email": "ana@example.org"})
    assert jobs.drain(scheduled=True).snoozed == 2
    assert outbox.find(to="ana@example.org")


def test_export_shows_how_far_it_is_and_its_result(app, jobs):
    client = app.test_client()
    address = f"/exports/{client.post('/exports', data={'rows': 3}).json['export']}"
    assert client.get(address).json == {"progress": None, "result": None}
    jobs.drain()
    assert client.get(address).json == {"progress": "3 of 3", "result": "0,0\n1,1\n2,4"}
    assert client.get("/exports/nothing").status_code == 404


def test_export_outlives_its_process(app, jobs):
    with app.app_context():
        after.export.enqueue(3)
    jobs.crash(at="before_finish")
    assert jobs.drain().crashed == 1
    jobs.recover()
    assert jobs.drain().succeeded == 1


def test_worker_process_exports(app, jobs, live_worker):
    with app.app_context():
        assert after.export.enqueue(2).result(timeout=20) == "0,0\n1,1"
