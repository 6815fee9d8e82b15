"""The web application of row 28, for gunicorn: ``tests.system.chaos.web:app``. Its processes work in the background."""

from __future__ import annotations

import json
import os

from flask_taskworker import BackgroundTaskWorker
from tests.system.chaos.worker import Place, Shop

shop = Shop(Place(*json.loads(os.environ["CHAOS_PLACE"])), BackgroundTaskWorker)
app = shop.app


@app.get("/")
def enqueue() -> str:
    return str(shop.pulse.enqueue(0.01).uid)


shop.task_worker.start()
