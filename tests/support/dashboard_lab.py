"""An app with a dashboard, for the tests of its pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.dashboard import create_dashboard
from flask_taskworker.mail import Mail
from flask_taskworker.ops.access import PERMISSIONS
from flask_taskworker.ops.browse import Browser
from flask_taskworker.ops.rows import AuditRow
from flask_taskworker.testing import Jobs

OWN = {"Origin": "http://localhost"}

XSS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</title><script>alert(1)</script>",
    "</td></tr></table><svg onload=alert(1)>",
    "<iframe src=javascript:alert(1)>",
    "{{ 7 * 7 }}{% raise %}",
    "javascript:alert(1)",
    "&lt;script&gt;",
    "<!--",
    "]]><b>",
)


class Lab:
    """One app. Give it what the visitor may do."""

    def __init__(self, app: Flask, permissions: Iterable[str] = PERMISSIONS, *, mail: bool = True) -> None:
        self.app = app
        self.permissions: Any = set(permissions)
        self.task_worker = BackgroundTaskWorker(app)
        self.mail = Mail(app) if mail else None
        blueprint = create_dashboard(self.task_worker, access=lambda: self.permissions, who=lambda: "ana")
        app.register_blueprint(blueprint, url_prefix="/tasks")
        self.client = app.test_client()
        self.store = app.extensions["taskworker"].store
        self.browser = Browser(self.store)

    def get(self, path: str, **arguments: str) -> TestResponse:
        return self.client.get(f"/tasks{path}", query_string=arguments or None)

    def page(self, path: str, **arguments: str) -> str:
        """The page's HTML, which must be there."""
        response = self.get(path, **arguments)
        assert response.status_code == 200, response.text
        return response.text

    def data(self, path: str, **arguments: str) -> Any:
        """The page as JSON."""
        response = self.get(path, **arguments, format="json")
        assert response.status_code == 200, response.text
        return response.get_json()

    def post(self, path: str, **form: str) -> TestResponse:
        """A form of the dashboard's own."""
        return self.client.post(f"/tasks{path}", data=form, headers=OWN)

    def act(self, path: str, **form: str) -> str:
        """Send a form; the page to which it leads."""
        response = self.post(path, **form)
        assert response.status_code == 303, response.text
        return self.client.get(response.headers["Location"]).text

    def drain(self) -> None:
        """Run what is ready, here, whatever it raises."""
        jobs = Jobs(self.app)
        jobs.drain(raise_errors=False)

    def audit(self) -> list[AuditRow]:
        """What people did, newest first."""
        return self.browser.audit()

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run SQL behind the package's back."""
        self.store.driver.prepare()
        with closing(sqlite3.connect(self.app.extensions["taskworker"].config.database_uri.database)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            found = connection.execute(sql, parameters).fetchall()
            connection.commit()
            return found

    @contextmanager
    def statements(self) -> Iterator[list[str]]:
        """The statements that go to the database inside the block."""
        driver, seen = self.store.driver, list[str]()
        read, write = driver.read, driver.write

        def watched(run: Any) -> Any:
            return lambda sql, parameters: (seen.append(sql), run(sql, parameters))[1]

        driver.read, driver.write = watched(read), watched(write)
        try:
            yield seen
        finally:
            driver.read, driver.write = read, write


class _Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.comments: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def unknown_decl(self, data: str) -> None:
        self.comments.append(data)


def parsed(html: str) -> _Tags:
    parser = _Tags()
    parser.feed(html)
    parser.close()
    return parser


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    """The tags of a page as a browser sees them, with their attributes."""
    return parsed(html).found


OURS = frozenset(
    (
        *("html", "head", "meta", "title", "link", "script", "body", "header", "nav", "main", "footer", "div", "span"),
        *("a", "p", "h1", "h2", "h3", "ul", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th"),
        *("td", "form", "input", "button", "label", "select", "option", "code", "pre", "small", "bdi", "br", "time"),
        *("svg", "rect", "path", "text", "figure", "details", "summary", "iframe"),
        *("section", "strong", "ol", "fieldset", "legend", "progress"),
    )
)
ADDRESSES = ("/tasks", "#", "data:image/svg+xml,%3Csvg")


def assert_harmless(html: str) -> None:
    """Nothing on the page is anybody else's markup: no foreign tag, comment, handler, style or address."""
    page = parsed(html)
    # A comment would hide from us, too, what comes after it.
    assert page.comments == []
    for tag, attributes in page.found:
        assert tag in OURS, tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert tag != "script" or (attributes.get("src") or "").startswith("/tasks/assets/"), attributes
        for name in ("href", "src", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(ADDRESSES), (tag, name, address)
