"""System: what is wrong with the installation, its settings, its versions, and who did what."""

from __future__ import annotations

import platform
import re
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from functools import cache
from importlib import metadata
from typing import Any

from flask import Response
from sqlalchemy.engine import URL

from ..config import TaskWorkerConfig
from ..filters import JobFilter
from ..mail_config import MailConfig
from ..store.schema import VERSION
from .filtering import filter_text
from .redact import COVER, without_logins
from .routes import Route
from .view import View

PAGE = 50
_SECRET = re.compile(r"pass|secret|token|key|auth|cookie|credential", re.IGNORECASE)
_PACKAGES = (
    *("Flask-TaskWorker", "Flask", "Werkzeug", "Jinja2", "SQLAlchemy", "aiosqlite", "psycopg", "asgiref", "aiosmtplib"),
    *("blinker", "cronsim"),
)


def page(view: View) -> Response:
    """Unknown tasks, settings, versions and the audit log."""
    before = view.number("before")
    audit = view.browser.audit(limit=PAGE + 1, before=before)
    config = getattr(view.app.extensions.get("mail"), "config", None)
    data = {
        "unknown_tasks": _unknown_tasks(view),
        "settings": settings(view.state.config, "TASKER_"),
        "mail_settings": settings(config, "MAIL_") if isinstance(config, MailConfig) else None,
        "versions": {**versions(), "tables": str(VERSION)},
        "audit": [row._asdict() for row in audit[:PAGE]],
        "older": audit[PAGE - 1].id if len(audit) > PAGE else None,
        "is_first": before is None,
    }
    return view.page("system.html", data, title="System")


def _unknown_tasks(view: View) -> list[dict[str, Any]]:
    """The tasks of waiting jobs that this code does not declare: no worker with the same code will ever run them."""
    registry = view.state.task_worker.registry
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


# -- settings ----------------------------------------------------------------------------------------------------------


def settings(config: TaskWorkerConfig | MailConfig, prefix: str) -> dict[str, str]:
    """Every setting by its key, as text, with what is secret masked."""
    found: dict[str, str] = {}
    for field in fields(config):
        key = "MAIL_SUPPRESS_SEND" if (prefix, field.name) == ("MAIL_", "suppress") else prefix + field.name.upper()
        value = getattr(config, field.name)
        is_secret = value is not None and (not field.repr or _SECRET.search(field.name) is not None)
        found[key] = COVER if is_secret else _shown(value)
    return found


def _shown(value: object) -> str:
    match value:
        case None:
            return "–"
        case URL():
            secret = [name for name in value.query if _SECRET.search(name)]
            return value.difference_update_query(secret).render_as_string(hide_password=True)
        case timedelta():
            return f"{value.total_seconds():,.0f} s"
        case tuple() | list():
            return ", ".join(map(str, value))
        case _:
            return without_logins(str(value))[:500]


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


ROUTES = (Route("/system", "system", page, arguments=("before",)),)
