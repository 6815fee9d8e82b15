"""What single pages ask for: one mail, the first recipients of many, the last runs of each schedule."""

from __future__ import annotations

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.mail import Mail, Message
from flask_taskworker.mail.queue.reading import mail_bytes
from flask_taskworker.ops.browse import Browser
from flask_taskworker.store.sql import Store
from flask_taskworker.store.statements import browse as browse_statements

pytestmark = pytest.mark.both_databases


@pytest.fixture
def mail(app: Flask, idle_worker: BackgroundTaskWorker) -> Mail:
    app.config["MAIL_DEFAULT_SENDER"] = "from@example.com"
    return Mail(app)


def test_one_mail_is_found_with_its_first_recipients_and_its_bytes(app: Flask, mail: Mail, store: Store) -> None:
    browser = Browser(store)
    with app.app_context():
        message = Message("Grüße", recipients=[f"u{n}@x.org" for n in range(9)], body="Hi")
        long, short = mail.send_later(message), mail.send_later(Message("Two", recipients=["one@x.org"], body="Hi"))
    found = browser.mail(long.uid)
    assert found is not None
    assert (found.id, found.sender, found.job_id, found.state) == (long.uid, "from@example.com", long.id, "ready")
    assert browser.mail("gone") is None
    recipients = browser.first_recipients([long.uid, short.uid, "gone"], 3)
    assert {uid: [r.address for r in each] for uid, each in recipients.items()} == {
        long.uid: ["u0@x.org", "u1@x.org", "u2@x.org"],
        short.uid: ["one@x.org"],
    }
    assert recipients[short.uid][0].ending == "waiting"
    assert browser.first_recipients([], 3) == {}
    assert mail_bytes(store, long.uid) == message.as_bytes()
    assert mail_bytes(store, "gone") is None


@pytest.mark.sqlite_only
def test_last_runs_are_looked_for_schedule_by_schedule(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    store.driver.prepare()
    sql = f"EXPLAIN QUERY PLAN {browse_statements.schedule_runs(store.driver.dialect)}"
    plan = store.driver.read(sql, {"limit": 30, "names": '["a"]'})
    # Not the other way round: that would look at all jobs of all schedules.
    assert str(plan[0][3]).startswith("SEARCH s ")
    assert any("SEARCH j USING INDEX taskworker_job_fire (schedule=? AND fire_at=?)" in str(row[3]) for row in plan)
