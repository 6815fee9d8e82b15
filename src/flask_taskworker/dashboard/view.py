"""What a page function gets: one request's app, rows, visitor and words; and the routes that lead to it."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from flask import Flask, Response, current_app, request, url_for
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from werkzeug.exceptions import BadRequest, Forbidden

from ..core.filters import JobFilter
from ..core.tasks import Task
from ..core.words import number_in
from ..errors import ArgumentsError
from ..ops.access import Visitor
from ..ops.browse import Browser, Names
from ..ops.operations import Operations
from ..ops.views import as_json
from ..state import AppState
from ..store.sql import Store
from . import charts, words
from .redact import covers
from .responses import ASSETS

T = TypeVar("T")

MAX_WORDS = 1_000
"""Characters of an argument in an address or a form."""

MENU = (
    ("overview", "Overview"),
    ("jobs", "Jobs"),
    ("failures", "Failures"),
    ("batches", "Batches"),
    ("queues", "Queues"),
    ("limits", "Limits"),
    ("schedules", "Schedules"),
    ("workers", "Workers"),
    ("mail", "Mail"),
    ("system", "System"),
)

# Of our own, not the app's: its settings, templates, filters and context processors cannot get at these pages.
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals.update(words=words, charts=charts)

_HALVES = re.compile("[\ud800-\udfff]")
_keys: WeakKeyDictionary[Store, bytes] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Route:
    """One address. *function* gets the View and what stands in the address, and returns a response.

    *arguments*: the query arguments that it knows beside ``format``; others are refused.
    """

    rule: str
    endpoint: str
    function: Callable[..., Any]
    methods: tuple[str, ...] = ("GET",)
    permission: str = "view"
    arguments: tuple[str, ...] = ()


class View:
    """One request. Times are epoch milliseconds."""

    def __init__(self, state: AppState, visitor: Visitor, page: str) -> None:
        self.state = state
        self.app: Flask = state.find_app() or current_app._get_current_object()  # type: ignore[attr-defined]
        self.browser: Browser = Browser(state.store)
        self.permissions: frozenset[str] = visitor.permissions
        self.who: str = visitor.who
        self.now: int = state.store.clock()
        self.current = page
        """The endpoint, without the blueprint's name."""
        self.menu: list[tuple[str, str]] = [
            (page, word) for page, word in MENU if f"{request.blueprint}.{page}" in current_app.view_functions
        ]

    # -- asking -----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> Names:
        """The names of a task's parameters, which a filter on arguments needs; None for an unknown task: its arguments
        are covered, and a visitor who may filter by them could guess them."""
        registry = self.state.registry
        return lambda task: None if registry.get(task) is None else registry.parameters_of(task)

    def filter(self, text: str) -> JobFilter:
        """Read a filter, as far as this visitor may ask it: which jobs fit reveals their arguments.

        Raises ArgumentsError; Forbidden without the permission to see arguments.
        """
        chosen = JobFilter.parse(text, self.now)
        if chosen.args and not self.may("payload"):
            raise Forbidden("You may not filter by arguments: it needs the permission 'payload'.")
        named = self.task(chosen.task or "")
        tasks = [named] if named else [None, *self.state.registry]
        for name, _ in chosen.args:
            if covering := [task for task in tasks if covers(name, task)]:
                where = f" in the task {covering[0].name}: name another with task:NAME" if covering[0] else ""
                raise ArgumentsError(f"args.{name} cannot be asked for, since its values are covered{where}.")
        return chosen

    def task(self, name: str) -> Task[..., Any, Any] | None:
        """The task of that name, if this code declares it."""
        return self.state.registry.get(name)

    def may(self, permission: str) -> bool:
        """Whether the visitor has this permission."""
        return permission in self.permissions

    def operations(self, permission: str) -> Operations:
        """What acts on jobs, queues and schedules in the visitor's name. Raises Forbidden without the permission."""
        if not self.may(permission):
            raise Forbidden(f"You may look, but not do this: it needs the permission {permission!r}.")
        return Operations(self.app, self.state.client, self.state.registry, who=self.who)

    def argument(self, name: str, default: str = "") -> str:
        """A query argument, without white space around it. Raises BadRequest where it is too long."""
        return _short(name, request.args.get(name, default))

    def form(self, name: str) -> str:
        """A field of the form that was sent, likewise."""
        return _short(name, request.form.get(name, ""))

    def choice(self, name: str, allowed: Mapping[str, Any] | tuple[str, ...], default: str) -> str:
        """A query argument that has one of these values. Raises BadRequest."""
        value = self.argument(name, default)
        if value not in allowed:
            raise BadRequest(f"{name} is {value!r:.80}. Allowed: {', '.join(allowed)}.")
        return value

    def number(self, name: str, *, most: int = 10**18 - 1) -> int | None:
        """A query argument that is a whole number from 1; None without it. Raises BadRequest."""
        text = self.argument(name)
        if not text:
            return None
        number = number_in(text)
        if number is None or not 1 <= number <= most:
            raise BadRequest(f"{name} is {text!r:.80}. Allowed: a whole number from 1 to {most}.")
        return number

    def part(self, rows: Sequence[T], most: int) -> tuple[Sequence[T], dict[str, int]]:
        """The rows of the page that the argument ``page`` names, and what its template needs to lead to the others."""
        pages = max(1, math.ceil(len(rows) / most))
        page = min(self.number("page") or 1, pages)
        return rows[(page - 1) * most : page * most], {"page": page, "pages": pages, "total": len(rows)}

    # -- answering --------------------------------------------------------------------------------------------------

    def url(self, endpoint: str, **values: Any) -> str:
        """The address of another page; arguments that are None or empty are left out."""
        given: dict[str, Any] = {n: sendable(v) if isinstance(v, str) else v for n, v in values.items()}
        return url_for(f".{endpoint}", **{name: value for name, value in given.items() if value not in (None, "")})

    def here(self, **changes: Any) -> str:
        """The address of this page with some of its arguments changed; None leaves one out."""
        given = {name: value for name, value in request.args.items() if not is_ignored(name)}
        values = {**given, **(request.view_args or {}), **changes}
        return self.url(self.current, **{n: v for n, v in values.items() if n not in ("note", "sign")})

    def filter_of(self, **chosen: Any) -> str | None:
        """The filter that means just these jobs; None where a name in it cannot be written so.

        A task with ``*`` in its name would mean others, too, and a quotation mark ends a value.
        """
        wanted = JobFilter(**chosen)
        try:
            return None if "*" in (wanted.task or "") else wanted.exact()
        except ArgumentsError:
            return None

    def page(self, template: str, data: Mapping[str, Any], *, title: str) -> Response:
        """The page: *template* with *data* in the frame, or the data as JSON."""
        if request.args.get("format") == "json":
            return _json(data, 200)
        return _html(template, 200, **data, view=self, title=title, note=self._note())

    def redirect(self, endpoint: str, *, message: str = "", **values: Any) -> Response:
        """To another page after an act, which shows *message*."""
        if message:
            values |= {"note": message, "sign": self._signature(message)}
        return current_app.response_class(status=303, headers={"Location": self.url(endpoint, **values)})

    def _note(self) -> str:
        """The message of the act before. It is signed: a link cannot make the page say something."""
        message = request.args.get("note", "")
        given = request.args.get("sign", "").encode("utf-8", "replace")
        return message if message and hmac.compare_digest(self._signature(message).encode(), given) else ""

    def _signature(self, message: str) -> str:
        store = self.state.store
        if store not in _keys:
            _keys[store] = store.store_id().encode()
        return hmac.new(_keys[store], message.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:20]

    # -- words for templates -------------------------------------------------------------------------------------------

    def ago(self, moment: int | None) -> Markup:
        """A moment as "3 min ago" or "in 40 s"."""
        return words.ago(moment, self.now)

    def age(self, since: int | None) -> Markup:
        """How long it has lasted until now."""
        return words.age(since, self.now)

    def asset(self, name: str) -> str:
        """The address of the stylesheet or the script."""
        return self.url("asset", digest=ASSETS[name].digest, name=name)


def is_ignored(argument: str) -> bool:
    """Whether a query argument is one of those that others hang on links, and that mean nothing here.

    In a link of ours it must not come back: to Flask some that begin with "_" say how the link is to be made.
    """
    return argument.startswith(("_", "utm_")) or argument in ("fbclid", "gclid", "msclkid")


def error_page(status: int, title: str, message: str, view: View | None = None) -> Response:
    """What went wrong, in words: in the frame for those who may see it, bare for others, or as JSON."""
    if request.args.get("format") == "json":
        return _json({"error": message}, status)
    template = "closed.html" if view is None else "error.html"
    return _html(template, status, view=view, title=title, message=message, note="")


def sendable(text: str) -> str:
    """*text* as it can be sent: JSON in the database may hold halves of characters, which UTF-8 has not."""
    return _HALVES.sub("\ufffd", text)


def _html(template: str, status: int, **data: Any) -> Response:
    html = _templates.get_template(f"taskworker/{template}").render(data)
    return current_app.response_class(sendable(html), status, mimetype="text/html")


def _json(data: Mapping[str, Any], status: int) -> Response:
    text = current_app.json.dumps(as_json(data))
    return current_app.response_class(sendable(text) + "\n", status, mimetype="application/json")


def _short(name: str, value: str) -> str:
    if len(value) > MAX_WORDS:
        raise BadRequest(f"{name} has {len(value):,} characters. Allowed: at most {MAX_WORDS:,}.")
    return value.strip()
