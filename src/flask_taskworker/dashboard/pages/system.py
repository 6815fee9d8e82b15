"""System: what is wrong with the installation, its settings, its versions, and who did what."""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata

from flask import Response, request
from werkzeug.exceptions import Forbidden

from ...ops.doctor import findings, settings
from ...store.schema import VERSION
from ..redact import without_logins
from ..view import Route, View

PAGE = 50
UNKNOWN = 100
"""Tasks that this code does not declare and that are listed."""
ASKING = "run"
"""The permission to have the mail server asked."""
_PACKAGES = (
    *("Flask-TaskWorker", "Flask", "Werkzeug", "Jinja2", "SQLAlchemy", "psycopg", "asgiref", "aiosmtplib", "blinker"),
)


def page(view: View) -> Response:
    """Unknown tasks, settings, versions and the audit log."""
    before = view.number("before")
    audit = view.browser.audit(limit=PAGE + 1, before=before)
    # No worker with this code will ever run them.
    unknown = {task: number for task, number in view.browser.tasks_waiting().items() if view.task(task) is None}
    shown = settings(view.app).items()
    data = {
        "unknown_tasks": dict(list(unknown.items())[:UNKNOWN]),
        "more_unknown": max(0, len(unknown) - UNKNOWN),
        "settings": {key: without_logins(text) for key, text in shown if key.startswith(("TASKER_", "MAIL_"))},
        "versions": {**versions(), "tables": str(VERSION)},
        "audit": [row._asdict() for row in audit[:PAGE]],
        "older": audit[PAGE - 1].id if len(audit) > PAGE else None,
        "is_first": before is None,
    }
    return view.page("system.html", data, title="System")


@cache
def versions() -> Mapping[str, str]:
    """What runs here. Read once: the files of packages do not change under a running process."""
    found = {"Python": platform.python_version(), "System": f"{platform.system()} {platform.release()}"}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "SQLite": sqlite3.sqlite_version, "Implementation": sys.implementation.name}


# -- checks ------------------------------------------------------------------------------------------------------------


def checks(view: View) -> Response:
    """What ``flask tasks doctor`` finds. It asks the mail server only where a person has pressed the button, who may
    act: it connects to another machine, and waits for it."""
    asks_mail = request.method == "POST"
    if asks_mail and not view.may(ASKING):
        raise Forbidden(f"You may look, but you may not check the mail server: it needs the permission {ASKING!r}.")
    found = findings(view.app, smtp=asks_mail)
    has_mail = "mail" in view.app.extensions
    data = {
        "findings": [{"level": one.level, "text": one.text, "fix": one.fix} for one in found],
        "asked_mail_server": asks_mail,
        "may_ask": has_mail and not asks_mail and view.may(ASKING),
    }
    return view.page("checks.html", data, title="Checks")


ROUTES = (
    Route("/system", "system", page, arguments=("before",)),
    Route("/system/checks", "checks", checks, methods=("GET", "POST")),
)
