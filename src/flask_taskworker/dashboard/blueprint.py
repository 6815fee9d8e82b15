"""The dashboard as a Blueprint: every request goes through the gate, then to the page, then gets its headers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from flask import Blueprint, Response, request
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from ..core.loggers import Logger, get_logger
from ..core.tasks import registry_of
from ..errors import (
    ArgumentsError,
    DeclarationError,
    JobNotFound,
    NotAccepted,
    NotDecodable,
    StoreError,
    TaskNotFound,
)
from ..ops.access import Gate
from ..state import HasState
from .forgery import is_own
from .pages import acts, batches, failures, job, jobs, limits, mail, overview, queues, schedules, system, workers
from .responses import ASSETS, finish
from .view import Route, View, error_page, is_ignored

log: Logger = get_logger("dashboard")

PAGES = (overview, acts, jobs, job, failures, batches, queues, limits, schedules, workers, mail, system)
"""The modules with pages."""
ROUTES: tuple[Route, ...] = tuple(route for module in PAGES for route in module.ROUTES)
_COMMON = {"format", "note", "sign"}
_FOREIGN = (
    "This request does not come from a page of this dashboard, so nothing was done. If it does, a proxy hides the "
    "address: let it pass the Host header on."
)
_TITLES = {
    400: "Bad request",
    403: "Not allowed",
    404: "Not found",
    409: "Not possible now",
    500: "A row of the task database cannot be read",
    503: "The task database does not answer",
}
_STATUS: dict[type[Exception], int] = {
    ArgumentsError: 400,
    JobNotFound: 404,
    TaskNotFound: 404,
    DeclarationError: 404,
    NotAccepted: 409,
    NotDecodable: 500,
    StoreError: 503,
}
"""The first that fits counts."""


def create_dashboard(
    task_worker: HasState,
    access: Callable[[], Any] | None = None,
    *,
    who: Callable[[], Any] | None = None,
    name: str = "taskworker",
) -> Blueprint:
    """Make the dashboard of *task_worker*, to be given to ``app.register_blueprint`` with a ``url_prefix``.

    *access* is called in each request and returns True, False, ``"read"`` (look, and nothing else), a set of
    permissions, or a response, such as a redirect to the login. Without it ``TASKER_DASHBOARD_USER`` and
    ``TASKER_DASHBOARD_PASSWORD`` count; without those it answers only on this machine, in debug mode. *who* returns the
    name that stands in the audit log. *name* is the blueprint's: a second dashboard needs another. Raises
    ArgumentsError for a *task_worker* that is none, and for an *access* or *who* that cannot be called.
    """
    registry_of(task_worker)
    blueprint = Blueprint(name, __name__)
    gate = Gate(access, who)

    def handler(route: Route) -> Callable[..., BaseResponse]:
        def handle(**values: Any) -> BaseResponse:
            state = task_worker._state()
            visitor = gate.admit(state.config, state.store)
            if isinstance(visitor, BaseResponse):
                return visitor
            problem = _refusal(route, visitor.permissions)
            return (
                error_page(403, _TITLES[403], problem)
                if problem
                else _run(route, values, View(state, visitor, route.endpoint))
            )

        return handle

    for route in (*ROUTES, _ASSET, _NOWHERE):
        blueprint.add_url_rule(
            route.rule,
            route.endpoint,
            handler(route),
            methods=list(route.methods),
            # Flask would answer them past the gate.
            provide_automatic_options=False,
        )
    blueprint.after_request(finish)
    blueprint.record(_exempt_from_csrf_tokens)
    blueprint.record(lambda setup: setattr(registry_of(task_worker), "job_page", f"{_full_name(setup)}.job"))
    return blueprint


def _refusal(route: Route, permissions: Collection[str]) -> str | None:
    """Why this visitor may not have the answer."""
    if not permissions:
        return "This dashboard is not open to you. The log of the application says how to open it."
    if request.method not in ("GET", "HEAD", "OPTIONS") and not is_own(request.headers, request.host):
        log.warning("refused a %s from another site: %.200r", request.method, request.headers.get("Origin"))
        return _FOREIGN
    if route.permission not in permissions:
        return f"You may not do this: it needs the permission {route.permission!r}."
    return None


def _run(route: Route, values: Mapping[str, Any], view: View) -> BaseResponse:
    framed = view if view.may("view") else None
    try:
        if problem := _bad_arguments(route, values):
            return error_page(400, _TITLES[400], problem, framed)
        response: BaseResponse = route.function(view, **values)
        return response
    except tuple(_STATUS) as error:
        status = next(number for kind, number in _STATUS.items() if isinstance(error, kind))
        if status >= 500:
            log.exception("the dashboard cannot be shown")
        return error_page(status, _TITLES[status], str(error), framed)
    except HTTPException as error:
        status = error.code or 500
        return error_page(status, _TITLES.get(status, error.name), error.description or error.name, framed)


def _bad_arguments(route: Route, values: Mapping[str, Any]) -> str | None:
    """What is wrong with the request, whatever the page. Only GET has arguments in its address."""
    given = [*values.values(), *request.args.values(), *request.form.values()]
    if any("\0" in str(value) for value in given):
        return "The request holds a NUL character, which is not allowed."
    known = {*_COMMON, *route.arguments}
    unknown = sorted(name for name in set(request.args) - known if not is_ignored(name))
    if unknown:
        allowed = ", ".join(sorted({"format", *route.arguments}))
        return f"Unknown argument {unknown[0]!r:.80}. Allowed: {allowed}."
    if request.args.get("format", "json") not in ("json", "html"):
        return f"format is {request.args['format']!r:.80}. Allowed: json, html."
    return None


def asset(view: View, digest: str, name: str) -> Response:
    """The stylesheet or the script."""
    found = ASSETS.get(name)
    if found is None or found.digest != digest:
        return error_page(404, _TITLES[404], "There is no such file in this version of the dashboard.")
    return found.response()


def nowhere(view: View, rest: str) -> Response:
    """Any other address below the dashboard's."""
    return error_page(404, _TITLES[404], "There is no such page.", view)


_ASSET = Route("/assets/<digest>/<name>", "asset", asset)
_NOWHERE = Route("/<path:rest>", "nowhere", nowhere, methods=("GET", "POST", "PUT", "PATCH", "DELETE"))


def _full_name(setup: BlueprintSetupState) -> str:
    """Of the blueprint, which may lie in another."""
    return ".".join(part for part in (setup.name_prefix, setup.name) if part)


def _exempt_from_csrf_tokens(setup: BlueprintSetupState) -> None:
    """Beside Flask-WTF's CSRFProtect: its token needs a session, and our own rule is at work here."""

    def exempt() -> None:
        protection = setup.app.extensions.get("csrf")
        if protection is not None and request.endpoint in own:
            protection.exempt(setup.blueprint)

    own = {f"{_full_name(setup)}.{endpoint}" for endpoint in (route.endpoint for route in (*ROUTES, _NOWHERE))}
    # First of all, since CSRFProtect may have been set up before, and may be set up later.
    setup.app.before_request_funcs.setdefault(None, []).insert(0, exempt)
