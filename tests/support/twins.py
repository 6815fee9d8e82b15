"""Two apps on one database in one process, as two processes would have them."""

from __future__ import annotations

from typing import Any

from flask import Flask

from flask_taskworker import state


def twin_of(app: Flask, **config: Any) -> Flask:
    """An app on the database of *app*, which has a TaskWorker already. Nothing but the database is between them."""
    twin = Flask("twin", instance_path=app.instance_path, root_path=app.root_path)
    twin.config.update({key: value for key, value in app.config.items() if key.startswith("TASKER_")} | config)
    # The guard against two apps on one database within a process looks here.
    state._databases.pop(app.extensions["taskworker"].store.driver.key, None)
    # Task workers hold their apps weakly.
    app.extensions.setdefault("twins", []).append(twin)
    return twin
