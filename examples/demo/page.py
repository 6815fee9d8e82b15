"""The web page, with the index and the state of the queues once a second, and the dashboard of the jobs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Blueprint, Flask, render_template, request
from werkzeug.serving import make_server

from flask_taskworker.dashboard import create_dashboard

from . import index
from .stage import Stage
from .tasks import task_worker

HOST = "127.0.0.1"
DEFAULT_PORT = 5000
DASHBOARD = "/tasks/"
VISITORS = {"view", "payload", "mail_body", "retry", "cancel", "discard", "run", "pause"}
"""What they may do: everything, down to reading the mails. An application asks who is logged in."""


def create_page(stage: Stage) -> Blueprint:
    """The page and the same as JSON. A request reads; whatever takes time was done by a job before."""
    blueprint = Blueprint("page", __name__)

    @blueprint.get("/")
    def show() -> str:
        return render_template("index.html", stage=stage, index=index)

    @blueprint.get("/status.json")
    def status() -> dict[str, Any]:
        return {
            "seconds": round(stage.seconds, 1),
            "index": index.totals()._asdict(),
            "jobs": {task: dict(counts) for task, counts in stage.tally.by_task().items()},
        }

    return blueprint


def mount(app: Flask) -> None:
    """The dashboard, open to the user of this machine."""
    app.register_blueprint(create_dashboard(task_worker, access=is_from_here), url_prefix=DASHBOARD.rstrip("/"))


def is_from_here() -> set[str]:
    """The name counts, too: a foreign page could have its own lead to this machine."""
    is_local = request.remote_addr == HOST and request.host.partition(":")[0] in (HOST, "localhost")
    return VISITORS if is_local else set()


def listen(port: int | None) -> socket.socket:
    """A socket on *port*, or, without one, on the default port if that is free, else on any."""
    try:
        return socket.create_server((HOST, DEFAULT_PORT if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server((HOST, 0))
        raise SystemExit(f"demo: port {port} cannot be used: {error.strerror}. Give another --port.") from error


@contextmanager
def serving(app: Flask, listener: socket.socket | None) -> Iterator[str | None]:
    """Serve *app* in a thread meanwhile; the value is the address. Without a listener there is none."""
    if listener is None:
        yield None
        return
    server = make_server(HOST, 0, app, threaded=True, fd=listener.fileno())
    thread = threading.Thread(target=server.serve_forever, name="page")
    thread.start()
    try:
        yield f"http://{HOST}:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
