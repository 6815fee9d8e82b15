"""Two apps in one process: one event loop serves both, each with its own configuration, database and jobs."""

from __future__ import annotations

import os

from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import run_simple

from . import create_app
from .config import North, South
from .extensions import task_worker

north, south = create_app(North), create_app(South)
application = DispatcherMiddleware(NotFound(), {"/north": north, "/south": south})

if __name__ == "__main__":
    task_worker.start()
    run_simple("127.0.0.1", int(os.environ.get("FLASK_RUN_PORT", "5000")), application)
