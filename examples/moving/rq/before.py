"""Reports, with RQ: ``flask --app before run``, a Redis, and ``rq worker reports`` beside them."""

from __future__ import annotations

import os

from flask import Flask, abort
from flask_sqlalchemy import SQLAlchemy
from redis import Redis
from rq import Queue, Retry, get_current_job
from rq.exceptions import NoSuchJobError
from rq.job import Job
from sqlalchemy import select
from sqlalchemy.orm import Mapped, mapped_column

db = SQLAlchemy()
redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://"))
reports = Queue("reports", connection=redis)


class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    cents: Mapped[int]


class Report(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    text: Mapped[str] = mapped_column(default="")


def write_report(report_id: int) -> str:
    job = get_current_job()
    with create_app().app_context():  # the worker knows no app
        report = db.session.get_one(Report, report_id)
        orders = db.session.scalars(select(Order).filter_by(customer=report.customer)).all()
        total = 0
        for number, order in enumerate(orders, 1):
            total += order.cents
            job.meta["progress"] = f"{number} of {len(orders)}"
            job.save_meta()
        report.text = f"{len(orders)} orders, {total / 100:.2f}"
        db.session.commit()
        return report.text


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(SQLALCHEMY_DATABASE_URI="sqlite:///shop.db")
    app.config.update(config)
    db.init_app(app)

    @app.post("/reports/<customer>")
    def request_report(customer: str):
        report = Report(customer=customer)
        db.session.add(report)
        db.session.commit()  # first: the worker may be quicker than this view
        job = reports.enqueue(
            write_report, report.id, job_timeout=60, retry=Retry(max=2, interval=[10, 60]), result_ttl=86_400
        )
        return {"job": job.id}, 202

    @app.get("/jobs/<job_id>")
    def show(job_id: str):
        try:
            job = Job.fetch(job_id, connection=redis)
        except NoSuchJobError:
            abort(404)
        return {"state": job.get_status(), "progress": job.meta.get("progress"), "result": job.return_value()}

    return app
