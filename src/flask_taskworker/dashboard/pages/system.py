"""System: what is wrong with the installation, its settings, its versions, and who did what."""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from flask import Response, request
from werkzeug.exceptions import Forbidden

from ...core.filters import JobFilter
from ...ops.doctor import findings, settings
from ...store.schema import VERSION
from .. import words
from ..filtering import filter_text
from ..redact import without_logins
from ..routes import Route
from ..view import View

PAGE = 50
ASKING = "run"
"""The permission to have the mail server asked."""
_LEVELS = {"ok": ("ok", "ok"), "warning": ("warn", "warning"), "error": ("failed", "error")}
_PACKAGES = (
    *("Flask-TaskWorker", "Flask", "Werkzeug", "Jinja2", "SQLAlchemy", "psycopg", "asgiref", "aiosmtplib"),
    *("blinker", "cronsim"),
)


def page(view: View) -> Response:
    """Unknown tasks, settings, versions and the audit log."""
    before = view.number("before")
    audit = view.browser.audit(limit=PAGE + 1, before=before)
    data = {
        "unknown_tasks": _unknown_tasks(view),
        "settings": _settings(view),
        "versions": {**versions(), "tables": str(VERSION)},
        "audit": [row._asdict() for row in audit[:PAGE]],
        "older": audit[PAGE - 1].id if len(audit) > PAGE else None,
        "is_first": before is None,
    }
    return view.page("system.html", data, title="System")


def _unknown_tasks(view: View) -> list[dict[str, Any]]:
    """The tasks of waiting jobs that this code does not declare: no worker with the same code will ever run them."""
    registry = view.state.registry
    waiting = view.browser.tasks_waiting()
    return [
        {
            "task": task,
            "waiting": number,
            "filter": filter_text(JobFilter(states=("scheduled", "ready"), task=task)),
        }
        for task, number in waiting.items()
        if registry.get(task) is None
    ]


def _settings(view: View) -> dict[str, str]:
    """Every setting by its key, with what is secret covered."""
    return {
        key: without_logins(value) for key, value in settings(view.app).items() if key.startswith(("TASKER_", "MAIL_"))
    }


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
        raise Forbidden(f"You may look, but not have the mail server asked: it needs the permission {ASKING!r}.")
    rows = [
        {"level": f.level, "badge": words.state(*_LEVELS[f.level]), "text": f.text, "fix": f.fix}
        for f in findings(view.app, smtp=asks_mail)
    ]
    has_mail = "mail" in view.app.extensions
    data = {
        "findings": rows,
        "asked_mail_server": asks_mail,
        "may_ask": has_mail and not asks_mail and view.may(ASKING),
    }
    return view.page("checks.html", data, title="Checks")


ROUTES = (
    Route("/system", "system", page, arguments=("before",)),
    Route("/system/checks", "checks", checks, methods=("GET", "POST")),
)
