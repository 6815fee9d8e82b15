"""Sending signals so that no receiver can harm a job, a worker or another receiver."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction
from blinker import Signal
from flask import Flask

from ..core.loggers import Logger, get_logger

log: Logger = get_logger("signals")


def send(signal: Signal, app: Flask, **values: Any) -> None:
    """Call each receiver here and now; one that raises is logged. Receivers may be coroutine functions.

    SystemExit and KeyboardInterrupt end the thread that calls this, as they should.
    """
    _send(signal, app, values, (Exception, asyncio.CancelledError))


def _send(
    signal: Signal, app: Flask, values: dict[str, Any], harmless: type[BaseException] | tuple[type[BaseException], ...]
) -> None:
    for receiver in signal.receivers_for(app):
        try:
            if iscoroutinefunction(receiver):
                _await(receiver, app, values)
            else:
                receiver(app, **values)
        except harmless:
            log.exception("a receiver of %s raised: %r", signal, receiver)


def _await(receiver: Callable[..., Any], app: Flask, values: dict[str, Any]) -> None:
    """Run a coroutine to its end. Where this thread runs an event loop already, in another thread."""
    call = async_to_sync(receiver)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        call(app, **values)
        return
    with ThreadPoolExecutor(1, "taskworker-receiver") as beside:
        beside.submit(functools.partial(contextvars.copy_context().run, call, app, **values)).result()


class SignalSender:
    """Sends a worker's signals one after the other, in one thread beside the event loop, inside an app context.

    The thread starts with the first signal that has a receiver; without receivers an announcement costs one look.
    """

    def __init__(self) -> None:
        self._pending: queue.SimpleQueue[tuple[Signal, Flask, dict[str, Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def backlog(self) -> int:
        """How many signals wait to be sent."""
        return self._pending.qsize()

    @staticmethod
    def wanted(signal: Signal) -> bool:
        """Whether anybody listens. Look before making the values of an announcement."""
        return bool(signal.receivers)

    def announce(self, signal: Signal, app: Flask | None, **values: Any) -> None:
        """Send *signal* soon. For the worker's loop only."""
        if app is None or not signal.receivers:
            return
        if self._thread is None and not self._start_thread():
            return
        self._pending.put((signal, app, values))

    def _start_thread(self) -> bool:
        """Where no thread can be started the signal is lost; the jobs and their worker go on."""
        thread = threading.Thread(target=self._work, name="taskworker-signals", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("no thread for the receivers of signals, so one is not sent: %s", error)
            return False
        self._thread = thread
        return True

    def _work(self) -> None:
        while (pending := self._pending.get()) is not None:
            signal, app, values = pending
            try:
                with app.app_context():
                    _send(signal, app, values, BaseException)
            except BaseException:  # later signals are sent in any case
                log.exception("the app's context around %s raised", signal)
            del pending, app, values

    def close(self, timeout: float) -> None:
        """Send what is pending, for *timeout* seconds at most."""
        if self._thread is not None:
            self._pending.put(None)
            self._thread.join(timeout)
            if self._thread.is_alive():
                log.warning("a signal receiver did not end within %.3g s; later signals are not sent", timeout)
            else:
                # What is announced after this gets a new one.
                self._thread = None
