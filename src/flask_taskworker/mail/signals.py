"""``email_dispatched``, for receivers of both orders.

Flask-Mail's documentation shows ``def receiver(message, app)``, its code since 0.10 sends ``(app, message=message)``.
Both are served: the names of its parameters say which one a receiver wants.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from asgiref.sync import async_to_sync, iscoroutinefunction
from blinker import NamedSignal, Namespace

from ..core.functions import signature_of
from ..core.loggers import Logger, get_logger

log: Logger = get_logger("mail")

Receiver = Callable[..., Any]
Caller = Callable[[Receiver, Any, Any], Any]

_MESSAGE_NAMES = frozenset({"message", "msg"})


class DispatchSignal(NamedSignal):
    """A signal whose receivers take ``(app, message=…)`` or ``(message, app=…)``. One that raises is logged."""

    def send(self, sender: Any = None, /, *_: Any, **kwargs: Any) -> list[tuple[Receiver, Any]]:
        """Call each receiver in the order it wants; *sender* is the app, ``message=`` the message."""
        if self.is_muted:
            return []
        message = kwargs.pop("message", None)
        answers = []
        for receiver in self.receivers_for(sender):
            try:
                answers.append((receiver, _caller(receiver)(receiver, sender, message)))
            except Exception:
                log.exception("a receiver of email_dispatched raised: %r", receiver)
        return answers


_callers: WeakKeyDictionary[Any, Caller] = WeakKeyDictionary()


def _caller(receiver: Receiver) -> Caller:
    # A bound method is a new object each time it is looked at; its function is not.
    function = getattr(receiver, "__func__", receiver)
    if function not in _callers:
        order = _order(receiver)
        is_async = iscoroutinefunction(receiver)
        _callers[function] = (
            (lambda receiver, app, message: _run(receiver, order(receiver, app, message))) if is_async else order
        )
    return _callers[function]


_running: set[asyncio.Task[Any]] = set()


def _run(receiver: Receiver, call: Coroutine[Any, Any, Any]) -> Any:
    """Run an async receiver: to its end where that is possible, as a task where a loop is running."""

    async def guarded() -> Any:
        try:
            return await call
        except Exception:
            log.exception("a receiver of email_dispatched raised: %r", receiver)

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return async_to_sync(guarded)()
    task = loop.create_task(guarded())
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


def _order(receiver: Receiver) -> Caller:
    try:
        parameters = signature_of(receiver).parameters
    except (TypeError, ValueError):
        return lambda receiver, app, message: receiver(app, message=message)
    positional = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    first = positional[0] if positional else ""
    is_old = first in _MESSAGE_NAMES or ("app" in parameters and first != "app" and "message" not in parameters)
    if not is_old:
        return lambda receiver, app, message: receiver(app, message=message)
    if "app" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return lambda receiver, app, message: receiver(message, app=app)
    if len(positional) > 1:
        return lambda receiver, app, message: receiver(message, app)
    return lambda receiver, app, message: receiver(message)


signals: Namespace = Namespace()

email_dispatched: DispatchSignal = DispatchSignal(
    "email-dispatched",
    "A message was sent, or recorded by an app that does not send. The sender is the app. Keyword: message.",
)
signals["email-dispatched"] = email_dispatched


def dispatched(app: Any, message: Any) -> None:
    """Tell everybody, the real Flask-Mail's receivers too if *message* is its own."""
    if email_dispatched.receivers:
        email_dispatched.send(app, message=message)
    theirs = foreign_module(message)
    if theirs is not None and theirs.email_dispatched is not email_dispatched:
        theirs.email_dispatched.send(app, message=message)


def foreign_module(message: Any) -> Any:
    """The real ``flask_mail`` module if *message* is of its class, else None."""
    module = sys.modules.get("flask_mail")
    theirs = getattr(module, "Message", None)
    if theirs is None or not isinstance(message, theirs) or theirs.__module__.startswith("flask_taskworker."):
        return None
    return module
