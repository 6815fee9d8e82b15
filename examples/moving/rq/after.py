"""The same with Flask-TaskWorker: ``flask --app after run``, and ``flask --app after tasks run reports`` beside it."""

from __future__ import annotations

from flask import Flask, abort
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import Mapped, mapped_column

from flask_taskworker import BackgroundTaskWorker, JobNotFound, Retry, current_job

db = SQLAlchemy()
task_worker = BackgroundTaskWorker()


class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    cents: Mapped[int]


class Report(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    text: Mapped[str] = mapped_column(default="")


@task_worker.task(queue="reports", timeout=60, retry=Retry(3, backoff=[10, 60]), keep=86_400)
def write_report(report_id: int) -> str:
    report = db.session.get_one(Report, report_id)  # inside the app's context
    orders = db.session.scalars(select(Order).filter_by(customer=report.customer)).all()
    total = 0
    for number, order in enumerate(orders, 1):
        total += order.cents
        current_job.progress(number, len(orders))
    report.text = f"{len(orders)} orders, {total / 100:.2f}"
    db.session.commit()
    return report.text


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(SQLALCHEMY_DATABASE_URI="sqlite:///shop.db")
    app.config.update(config)
    db.init_app(app)
    task_worker.init_app(app)

    @app.post("/reports/<customer>")
    def request_report(customer: str):
        report = Report(customer=customer)
        db.session.add(report)
        db.session.flush()  # sets report.id
        job = write_report.using(session=db.session).enqueue(report.id)
        db.session.commit()  # the report, and then its job
        return {"job": job.uid}, 202

    @app.get("/jobs/<uid>")
    def show(uid: str):
        try:
            job = task_worker.get_job(uid=uid)
        except JobNotFound:
            abort(404)
        done = job.progress
        return {
            "state": job.state,
            "progress": f"{done.done:g} of {done.total:g}" if done else None,
            "result": job.result() if job.state == "succeeded" else None,
        }

    return app
