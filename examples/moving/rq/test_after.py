from __future__ import annotations

import after
import pytest
from after import Order, create_app, db
from sqlalchemy import select


@pytest.fixture
def app(tmp_path):
    databases = {"SQLALCHEMY_DATABASE_URI": "shop.db", "TASKER_DATABASE_URI": "jobs.db"}
    app = create_app(TESTING=True, **{key: f"sqlite:///{tmp_path / name}" for key, name in databases.items()})
    with app.app_context():
        db.create_all()
        db.session.add_all([Order(customer="Ana", cents=1250), Order(customer="Ana", cents=750)])
        db.session.commit()
    return app


def test_report_is_written(app, jobs):
    client = app.test_client()
    answer = client.post("/reports/Ana")
    assert answer.status_code == 202
    address = f"/jobs/{answer.json['job']}"
    assert client.get(address).json == {"state": "ready", "progress": None, "result": None}
    assert jobs.drain().succeeded == 1
    assert client.get(address).json == {
        "state": "succeeded",
        "progress": "2 of 2",
        "result": "2 orders, 20.00",
    }
    with app.app_context():
        assert db.session.scalars(select(after.Report.text)).all() == ["2 orders, 20.00"]


def test_report_that_is_not_committed_leaves_no_job(app, jobs, monkeypatch):
    def refuse():
        raise RuntimeError("the database is away")

    monkeypatch.setattr(db.session, "commit", refuse)
    with pytest.raises(RuntimeError, match="away"):
        app.test_client().post("/reports/Ana")
    jobs.assert_not_enqueued(after.write_report)


def test_failed_report_is_tried_three_times(app, jobs):
    with app.app_context():
        after.write_report.enqueue(4711)  # there is no such report
    drained = jobs.drain(scheduled=True, raise_errors=False)
    assert (drained.retrying, drained.failed) == (2, 1)


def test_unknown_job_is_not_found(app):
    assert app.test_client().get("/jobs/nothing").status_code == 404


def test_worker_process_writes_the_report(app, jobs, live_worker):
    client = app.test_client()
    client.post("/reports/Ana")
    [job] = jobs.enqueued(after.write_report)
    assert job.result(timeout=20) == "2 orders, 20.00"
