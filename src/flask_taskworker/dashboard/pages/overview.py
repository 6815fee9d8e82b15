"""Overview: is it healthy, and what has changed?"""

from __future__ import annotations

from flask import Response

from ...ops.overview_page import WINDOWS, OverviewPage
from ...ops.views import with_more
from ..rows import brief
from ..view import Route, View


def page(view: View) -> Response:
    """The overview."""
    window = view.choice("window", WINDOWS, "1h")
    found = OverviewPage.take(view.state.store, WINDOWS[window])
    data = with_more(
        found,
        window=window,
        windows=list(WINDOWS),
        throughput=[with_more(one) for one in found.throughput],
        failures=[with_more(one, error=one.error and brief(one.error)) for one in found.failures],
    )
    return view.page("overview.html", data, title="Overview")


ROUTES = (Route("/", "overview", page, arguments=("window",)),)
