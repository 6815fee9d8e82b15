"""Overview: is it healthy, and what has changed?"""

from __future__ import annotations

from flask import Response

from ..health import Snapshot
from .routes import Route
from .view import View


def page(view: View) -> Response:
    """The overview."""
    snapshot = Snapshot.take(view.state.store)
    data = {"healthy": not snapshot.problems(), "problems": snapshot.problems()}
    return view.page("overview.html", data, title="Overview")


ROUTES = (Route("/", "overview", page, arguments=("window",)),)
