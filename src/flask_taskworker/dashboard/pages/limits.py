"""Limits: what may run, what runs, and where the lines are; change a limit, or reset it to the code's."""

from __future__ import annotations

from flask import Response, request
from werkzeug.exceptions import BadRequest

from ...core.limits import Limit, Numbers, Rate
from ...core.words import number_in
from ...errors import DeclarationError
from ...ops.limits import LANES, LimitView, limit_view, limit_views
from ..view import Route, View

PER_PAGE = 50
PERMISSION = "limits"


def page(view: View) -> Response:
    """Every limit that code declares or that is stored, with its longest lines."""
    found = limit_views(view.browser, view.state.registry, view.state.config)
    shown, pages = view.part(found, PER_PAGE)
    return view.page("limits.html", {"limits": shown, "lanes": LANES, **pages}, title="Limits")


def change(view: View) -> Response:
    """Set both numbers of a limit; an empty field is no such bound."""
    name, _ = _known(view)
    running, rate = view.form("running"), view.form("rate")
    number = number_in(running)
    if running and number is None:
        raise BadRequest(f"Running is {running!r:.80}. Give a whole number, at least 1, or nothing.")
    try:
        limit = Limit(running=number, rate=Rate.parse(rate) if rate else None) if running or rate else None
        numbers = limit._numbers if limit else Numbers()
        done = view.operations(PERMISSION).set_limit(name, numbers)
    except DeclarationError as error:
        raise BadRequest(str(error)) from error
    return view.redirect("limits", message=f"Limit {name} {'is' if done else 'was already'} {numbers}.")


def reset(view: View) -> Response:
    """Back to what the code declares."""
    name, before = _known(view)
    done = view.operations(PERMISSION).reset_limit(name)
    now = f"is {before.declared} again" if before.declared else "is removed"
    return view.redirect("limits", message=f"Limit {name} {now if done else 'is not changed'}.")


def _known(view: View) -> tuple[str, LimitView]:
    name = request.form.get("name", "")
    return name, limit_view(view.browser, view.state.registry, view.state.config, name)


ROUTES = (
    Route("/limits", "limits", page, arguments=("page",)),
    Route("/limits/change", "change_limit", change, methods=("POST",), permission=PERMISSION),
    Route("/limits/reset", "reset_limit", reset, methods=("POST",), permission=PERMISSION),
)
