"""The application factory."""

from __future__ import annotations

import logging
from pathlib import Path

from flask import Flask

from . import index
from .messages import mail
from .tasks import task_worker


def create_app(data: str | Path, mail_port: int = 25) -> Flask:
    """The demo's application, with everything it writes in the directory *data*, and mail sent to *mail_port*.

    Another process that calls it with the same directory works on the same jobs.
    """
    directory = Path(data).resolve()
    app = Flask(__name__, instance_path=str(directory))
    app.config["INDEX"] = directory / "index.db"
    # Parsing keeps the interpreter busy: more threads would only make each other, and the event loop, wait longer.
    app.config["TASKER_THREADS"] = 2
    app.config["MAIL_PORT"] = mail_port  # of this machine, unless MAIL_SERVER says otherwise
    app.config["MAIL_DEFAULT_SENDER"] = ("The demo", "demo@example.org")
    if not app.config["INDEX"].exists():
        index.create(app.config["INDEX"])
    task_worker.init_app(app)  # its database is taskworker.db in the instance folder, unless configured
    mail.init_app(app)
    return app


def log_to(file: Path) -> None:
    """Send the whole log to *file*: the worker logs each failed try with its traceback, and the screen shows more."""
    handler = logging.FileHandler(file, encoding="utf-8")
    words = "%(asctime)s %(levelname)-7s %(name)s [job %(taskworker_job)s] %(message)s"
    # The worker gives every record its job, or None; the default is for what is logged before it starts.
    handler.setFormatter(logging.Formatter(words, defaults={"taskworker_job": None}))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
