"""An application factory whose blueprints bring their own tasks.

Read ``extensions.py``, ``config.py``, ``orders.py`` and ``reports.py``, then the factory below. To run it::

    flask --app examples.factory.wsgi run --debug # one shop, its jobs at /tasks; the worker is a thread in the process
    flask --app examples.factory.wsgi tasks run   # a worker in a process of its own
    python -m examples.factory.two_shops          # two apps in one process, each with its own jobs
"""

from __future__ import annotations

from flask import Flask

from . import orders, reports
from .config import Config
from .extensions import task_worker


def create_app(config: type[Config] = Config) -> Flask:
    """One shop. Starting the worker is up to the process that runs the app: see ``wsgi.py``."""
    app = Flask(__name__)
    app.config.from_object(config)
    app.config.from_prefixed_env()  # FLASK_TASKER_THREADS=4 and the like
    task_worker.init_app(app)
    app.register_blueprint(orders.blueprint)
    app.register_blueprint(reports.blueprint)
    return app
