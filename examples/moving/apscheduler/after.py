"""The same with Flask-TaskWorker: ``flask --app after run``, in any number of processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from flask import Flask, abort, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import delete
from sqlalchemy.orm import Mapped, mapped_column

from flask_taskworker import At, BackgroundTaskWorker, Cron

db = SQLAlchemy()
task_worker = BackgroundTaskWorker()


class Reminder(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    sent_at: Mapped[datetime | None]


@task_worker.task
def remind(reminder_id: int) -> None:
    reminder = db.session.get_one(Reminder, reminder_id)
    reminder.sent_at = datetime.now(UTC)
    db.session.commit()


@task_worker.task(name="tidy", schedule=Cron("0 4 * * *"))
def tidy() -> None:
    db.session.execute(delete(Reminder).where(Reminder.sent_at < datetime.now(UTC) - timedelta(days=7)))
    db.session.commit()


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(SQLALCHEMY_DATABASE_URI="sqlite:///reminders.db", TASKER_DASHBOARD_URL="/tasks")
    app.config.update(config)
    db.init_app(app)
    task_worker.init_app(app)

    @app.post("/reminders")
    def add():
        reminder = Reminder(text=request.form["text"])
        db.session.add(reminder)
        db.session.commit()
        at = datetime.fromisoformat(request.form["at"])
        remind.schedule(At(at), name=f"reminder {reminder.id}", args=(reminder.id,))
        return {"reminder": reminder.id}, 201

    @app.get("/reminders/<int:reminder_id>")
    def show(reminder_id: int):
        reminder = db.get_or_404(Reminder, reminder_id)
        schedule = task_worker.schedules.get(f"reminder {reminder_id}")
        next_at = schedule.next_at if schedule else None
        return {"sent": reminder.sent_at is not None, "next": next_at.isoformat() if next_at else None}

    @app.delete("/reminders/<int:reminder_id>")
    def remove(reminder_id: int):
        if not task_worker.unschedule(f"reminder {reminder_id}"):
            abort(404)
        return "", 204

    @app.post("/tidy")
    def tidy_now():
        task_worker.schedules["tidy"].run()  # in a worker, at once
        return "", 202

    return app
