"""Who may see the dashboard, and do what: private by default, the application decides who gets access."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Callable, Set
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from weakref import WeakSet

from flask import Flask, current_app, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from ..core.config import TaskWorkerConfig
from ..core.failures import storable
from ..core.loggers import Logger, get_logger
from ..core.rows import shown
from ..errors import ArgumentsError
from ..store.sql import Store

log: Logger = get_logger("dashboard")

PERMISSIONS = (
    "view",
    "payload",
    "mail_body",
    "retry",
    "cancel",
    "discard",
    "run",
    "pause",
    "limits",
    "tell",
    "workers",
)
"""``view``: the pages. ``payload``: arguments, results and log lines. ``mail_body``: the text of mails, which may hold
links that log a user in. The others: the actions of that name; ``discard`` includes restoring, ``run`` is to run a
scheduled job or a schedule now, and to have the mail server asked, ``pause`` is to pause and resume queues and
schedules, ``limits`` to change limits, ``tell`` to give jobs the notices that they wait for,
``workers`` to stop workers and to make them quiet."""

EVERYTHING = frozenset(PERMISSIONS)
_VIEW = frozenset({"view"})
_NOTHING: frozenset[str] = frozenset()

_FORWARDED = ("X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "Cf-Connecting-Ip", "True-Client-Ip", "Via")
_COOKIE = "taskworker_debug"
_CLOSED = (
    "The dashboard is closed: a request from %s was refused. Open it with create_dashboard(task_worker, access=…), or "
    "set TASKER_DASHBOARD_USER and TASKER_DASHBOARD_PASSWORD. Without either it answers only on this machine, in debug "
    "mode, and not behind a proxy.%s"
)
_LINK = " On this machine this link opens it while debug mode is on: %s?token=%s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who sends the request, and what they may do."""

    permissions: frozenset[str]
    who: str
    """As it stands in the audit log."""


class Gate:
    """Decides about each request. *access* and *who* are the callbacks given to ``create_dashboard``, or None.

    Raises ArgumentsError for one that cannot be called.
    """

    def __init__(
        self, access: Callable[[], Any] | None, who: Callable[[], Any] | None, *, closed: str = _CLOSED
    ) -> None:
        """*closed* is logged, with the peer's address and what else to do: once an app, later at DEBUG."""
        for name, callback in (("access", access), ("who", who)):
            if callback is not None and not callable(callback):
                raise ArgumentsError(
                    f"{name} is {callback!r:.100}. Give a function that is called in each request, such as "
                    f"{name}=lambda: {callback!r:.40}."
                )
        self._access = access
        self._who = who
        self._closed = closed
        self._told: WeakSet[Flask] = WeakSet()

    def admit(self, config: TaskWorkerConfig, store: Store) -> Visitor | BaseResponse:
        """The visitor, who may have no permission at all; or what to answer instead.

        A callback that raises opens nothing; but ``abort(…)`` in it answers, as in any view.
        """
        try:
            return self._decide(config, store)
        except HTTPException:
            raise
        except Exception:
            log.exception("The access or who callback of the dashboard raised, so nothing is shown. Repair it.")
            return Visitor(permissions=_NOTHING, who="unknown")

    def _decide(self, config: TaskWorkerConfig, store: Store) -> Visitor | BaseResponse:
        if self._access is not None:
            answer = current_app.ensure_sync(self._access)()
            if isinstance(answer, BaseResponse):
                return answer
            return self._visitor(_granted(answer))
        if config.dashboard_user is not None:
            return self._by_password(config.dashboard_user, config.dashboard_password or "")
        if not (current_app.debug and _is_local()):
            return self._refuse()
        return self._visitor(EVERYTHING) if _is_development_server() else self._by_token(store)

    def _by_token(self, store: Store) -> Visitor | BaseResponse:
        """Other servers may stand behind a proxy that hides itself, so a link from the log opens the dashboard."""
        token = hmac.new(store.store_id().encode(), b"debug mode", hashlib.sha256).hexdigest()[:32]
        if hmac.compare_digest(request.cookies.get(_COOKIE, "").encode(), token.encode()):
            return self._visitor(EVERYTHING)
        if not hmac.compare_digest(request.args.get("token", "").encode(), token.encode()):
            return self._refuse(_LINK % (request.base_url, token))
        response = current_app.response_class(status=303, headers={"Location": request.base_url})
        response.set_cookie(_COOKIE, token, httponly=True, samesite="Strict", path=request.root_path or "/")
        return response

    def _refuse(self, link: str = "") -> Visitor:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        # Strangers can send any number of requests: they must not fill the log.
        log.log(logging.DEBUG if app in self._told else logging.WARNING, self._closed, shown(request.remote_addr), link)
        self._told.add(app)
        return self._visitor(_NOTHING)

    def _by_password(self, user: str, password: str) -> Visitor | BaseResponse:
        given = request.authorization
        if given is not None and given.type == "basic":
            # Both are compared, so that the time does not tell which was wrong.
            right_user = hmac.compare_digest((given.username or "").encode(), user.encode())
            right_password = hmac.compare_digest((given.password or "").encode(), password.encode())
            if right_user and right_password:
                return self._visitor(_usual(), user)
        challenge = {"WWW-Authenticate": 'Basic realm="TaskWorker", charset="UTF-8"'}
        return current_app.response_class("Log in to see the dashboard.\n", 401, challenge, "text/plain")

    def _visitor(self, permissions: frozenset[str], user: str | None = None) -> Visitor:
        if self._who is not None and permissions:
            named = current_app.ensure_sync(self._who)()
            # A name that the database refused would leave an act without its note.
            user = storable(str(named)[:200]) if named is not None else user
        return Visitor(permissions=permissions, who=user or request.remote_addr or "unknown")


def _granted(answer: object) -> frozenset[str]:
    """What the access callback means. Anything that it may not return opens nothing."""
    if answer is True:
        return _usual()
    if answer is False or answer is None:
        return _NOTHING
    if answer == "read":
        return _VIEW
    if isinstance(answer, Set | list | tuple) and all(isinstance(name, str) and name in PERMISSIONS for name in answer):
        return frozenset(answer)
    log.error(
        'The access callback of the dashboard returned %.200r, so nothing is shown. Allowed: True, False, "read", a '
        "response, or a set of %s.",
        answer,
        ", ".join(PERMISSIONS),
    )
    return _NOTHING


def _usual() -> frozenset[str]:
    """Mails hold what logs people in: in production their text wants a permission that is named."""
    return EVERYTHING if current_app.debug else EVERYTHING - {"mail_body"}


def _is_local() -> bool:
    """Whether the request comes from this machine, by a name of this machine, and through no proxy that can be seen.

    The name matters: a foreign page may have its own resolved to 127.0.0.1. So does HTTP/1.0, which no browser speaks
    and nginx does: its plain ``proxy_pass`` adds no header, and makes everybody local.
    """
    forwarded = any(name == "Forwarded" or name.startswith("X-Forwarded") for name, _ in request.headers)
    if forwarded or any(name in request.headers for name in _FORWARDED):
        return False
    if request.environ.get("SERVER_PROTOCOL") in ("HTTP/1.0", "HTTP/0.9"):
        return False
    host, _, port = request.host.rpartition(":")
    name = host if port.isdecimal() else request.host
    is_named_local = name == "localhost" or name.endswith(".localhost") or _is_loopback(name.strip("[]"))
    return is_named_local and _is_loopback(request.remote_addr or "")


def _is_development_server() -> bool:
    """Whether ``flask run`` or ``app.run()`` answers, or a test client: other servers may stand behind a proxy."""
    environ = request.environ
    is_test = isinstance(environ["wsgi.input"], BytesIO) and not environ["wsgi.multithread"]
    return "werkzeug.socket" in environ or (is_test and "SERVER_SOFTWARE" not in environ)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
