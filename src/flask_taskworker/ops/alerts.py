"""Alerts: what ``TASKER_ALERTS`` asks for is said when it begins and when it is over, once, by one process of all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Flask

from .. import signals
from ..client.signalling import send
from ..core.clock import from_ms
from ..core.config import AlertRules
from ..core.loggers import Logger, get_logger
from ..core.words import spoken
from ..errors import StoreError
from ..state import AppState
from ..store.sql import Store, to_duration_ms
from ..store.statements import operations as statements
from .overview import Overview, ended

log: Logger = get_logger("worker")

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A problem that has begun, or is over."""

    name: str
    """What it is about, such as "no worker", "failed_per_hour" or "latency of default"."""
    text: str
    """What is wrong, or was, in a sentence or two."""
    since: datetime
    """When it was noticed (UTC)."""
    is_over: bool


class AlertWatch:
    """Looks for one app when it is called, in a thread of its own. Safe from any thread."""

    def __init__(self, find_app: Callable[[], Flask | None]) -> None:
        self._find_app = find_app
        self._thread: threading.Thread | None = None

    def __call__(self) -> None:
        """Begin a look, unless the last one has not ended."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, name="taskworker-alerts", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        if (app := self._find_app()) is None:
            return
        try:
            look(app)
        except StoreError as error:
            log.warning("alerts: the database cannot be read: %s", error)
        except Exception:
            log.exception("alerts: this should not happen; please report it")


def look(app: Flask) -> list[Alert]:
    """Compare how it stands with what was said last, and say what has changed. Raises StoreError."""
    state: AppState = app.extensions["taskworker"]
    rules, store = state.config.alerts, state.store
    if rules is None:
        return []
    found = problems(store, rules)
    stored = next((row[0] for row in store.driver.read(statements.ALERTS, {})), "{}")
    known: dict[str, tuple[int, str]] = json.loads(stored)
    if found.keys() == known.keys():
        return []
    now = store.clock()
    holding = {name: known.get(name, (now, text)) for name, text in found.items()}
    if not store.driver.write(statements.CHANGE_ALERTS, {"value": json.dumps(holding), "before": stored}):
        # Another process has seen it at the same moment.
        return []
    changes = [
        Alert(name=name, text=text, since=from_ms(since), is_over=name in known)
        for name, (since, text) in (known | holding).items()
        if (name in known) is not (name in holding)
    ]
    with app.app_context():
        for alert in changes:
            if alert.is_over:
                log.info("alert is over: %s", alert.text)
            else:
                log.error("alert: %s", alert.text)
            send(signals.alert_changed, app, alert=alert)
        if rules.mail:
            _mail(app, rules.mail, changes)
    return changes


def problems(store: Store, rules: AlertRules) -> dict[str, str]:
    """What is wrong now, by the names of the alerts. Raises StoreError."""
    overview, found = Overview.take(store), {}
    if unserved := " ".join(overview.unserved()):
        found["no worker"] = unserved
    if rules.latency is not None:
        most = to_duration_ms(rules.latency)
        for queue in overview.queues:
            if (waits := overview.now - queue.oldest_at) > most and queue.name not in overview.paused:
                found[f"latency of {queue.name}"] = (
                    f"A job in queue {queue.name!r} has been ready for {spoken(waits)}; {spoken(most)} is allowed."
                )
    if rules.failed_per_hour is not None:
        failed = sum(one.failed for one in ended(store, overview.now - HOUR_MS, step=HOUR_MS, span=60))
        if failed > rules.failed_per_hour:
            found["failed_per_hour"] = f"{failed:,} jobs failed within an hour; {rules.failed_per_hour:,} are allowed."
    return found


def _mail(app: Flask, addresses: tuple[str, ...], changes: list[Alert]) -> None:
    """Not queued: it may be the workers that are in trouble."""
    mail: Any = app.extensions.get("mail")
    if mail is None:
        log.error("TASKER_ALERTS names addresses for mail, and the app %r has no Mail. Add Mail(app).", app.import_name)
        return
    lines = [f"{'Over' if alert.is_over else 'Problem'}: {alert.text}" for alert in changes]
    begun = sum(not alert.is_over for alert in changes)
    what = f"{begun} new problem{'s' if begun > 1 else ''}" if begun else "problems are over"
    try:
        mail.send_message(f"[{app.name}] Tasks: {what}", recipients=list(addresses), body="\n".join(lines))
    except Exception:
        log.exception("alerts: the mail could not be sent")
