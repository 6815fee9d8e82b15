"""The same with Flask-TaskWorker: ``flask --app after run --debug``, or ``gunicorn 'after:serve()'``."""

from __future__ import annotations

from flask import Flask, abort, request

from flask_taskworker import BackgroundTaskWorker, JobNotFound, current_job
from flask_taskworker.mail import Mail, Message

task_worker = BackgroundTaskWorker()
mail = Mail()


@task_worker.task(timeout=600)
def export(rows: int) -> str:
    lines = []
    for row in range(rows):
        current_job.check()  # ends here when the job was cancelled
        lines.append(f"{row},{row * row}")
        current_job.progress(row + 1, rows)
    return "\n".join(lines)


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(MAIL_DEFAULT_SENDER="shop@example.org")
    app.config.update(config)
    mail.init_app(app)
    task_worker.init_app(app)

    @app.post("/signup")
    def signup():
        message = Message("Welcome", recipients=[request.form["email"]], body="Thank you for signing up.")
        mail.send_later(message)  # stored, and sent again where the server does not answer
        return "", 204

    @app.post("/exports")
    def start():
        return {"export": export.enqueue(request.form.get("rows", 3, type=int)).uid}, 202

    @app.get("/exports/<uid>")
    def show(uid: str):
        try:
            job = task_worker.get_job(uid=uid)
        except JobNotFound:
            abort(404)
        done = job.progress
        return {
            "progress": f"{done.done:g} of {done.total:g}" if done else None,
            "result": job.result() if job.state == "succeeded" else None,
        }

    return app


def serve(**config: object) -> Flask:
    """The application with a worker in a thread of each web process, where the threads were."""
    app = create_app(**config)
    task_worker.start()
    return app
