"""Reminders, with Flask-APScheduler: ``flask --app before run``, in one process only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from flask import Flask, abort, request
from flask_apscheduler import APScheduler
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import delete
from sqlalchemy.orm import Mapped, mapped_column

db = SQLAlchemy()
scheduler = APScheduler()


class Reminder(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    sent_at: Mapped[datetime | None]


def remind(reminder_id: int) -> None:
    with scheduler.app.app_context():
        reminder = db.session.get_one(Reminder, reminder_id)
        reminder.sent_at = datetime.now(UTC)
        db.session.commit()


@scheduler.task("cron", id="tidy", hour=4, misfire_grace_time=3600, coalesce=True, max_instances=1)
def tidy() -> None:
    with scheduler.app.app_context():
        db.session.execute(delete(Reminder).where(Reminder.sent_at < datetime.now(UTC) - timedelta(days=7)))
        db.session.commit()


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI="sqlite:///reminders.db",
        SCHEDULER_JOBSTORES={"default": SQLAlchemyJobStore(url="sqlite:///schedules.db")},
        SCHEDULER_API_ENABLED=True,
    )
    app.config.update(config)
    db.init_app(app)
    scheduler.init_app(app)
    scheduler.start()

    @app.post("/reminders")
    def add():
        reminder = Reminder(text=request.form["text"])
        db.session.add(reminder)
        db.session.commit()
        scheduler.add_job(
            id=f"reminder {reminder.id}",
            func=remind,
            args=[reminder.id],
            trigger="date",
            run_date=datetime.fromisoformat(request.form["at"]),
        )
        return {"reminder": reminder.id}, 201

    @app.get("/reminders/<int:reminder_id>")
    def show(reminder_id: int):
        reminder = db.get_or_404(Reminder, reminder_id)
        job = scheduler.get_job(f"reminder {reminder_id}")
        return {"sent": reminder.sent_at is not None, "next": job.next_run_time.isoformat() if job else None}

    @app.delete("/reminders/<int:reminder_id>")
    def remove(reminder_id: int):
        try:
            scheduler.remove_job(f"reminder {reminder_id}")
        except JobLookupError:
            abort(404)
        return "", 204

    @app.post("/tidy")
    def tidy_now():
        scheduler.run_job("tidy")  # here, while the browser waits
        return "", 204

    return app
