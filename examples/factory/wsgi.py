"""The app as servers want it: ``gunicorn examples.factory.wsgi:app``, or ``flask --app examples.factory.wsgi run``."""

from __future__ import annotations

from . import create_app
from .extensions import task_worker

app = create_app()
task_worker.start()  # under `flask` it starts for `flask run` only, so every other command stays harmless
