"""One event loop in a daemon thread, for callers that have no loop of their own, or one that soon ends.

A view runs in a thread without a loop, an async view in a loop that lives for one request; connections that outlive
the call need a loop that does too. It is made with the first mail and, after a fork, again in the child.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar
from weakref import WeakSet

from ...client.threads import give_way
from ...core.loggers import Logger, get_logger
from ...errors import AppError

log: Logger = get_logger("mail")

T = TypeVar("T")


class Portal:
    """A way onto the loop's thread and back. All methods can be called from any thread."""

    def __init__(self) -> None:
        self._closers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._abandoned: list[object] = []
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._adopted: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* on the loop and wait for its end; blocks the calling thread, whatever loop runs in it."""
        future = self._submit(work)
        try:
            return future.result()
        finally:
            future.cancel()  # where the wait was interrupted; nothing happens to a future that has ended

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* on the loop and await its end; on an adopted loop it runs right here."""
        if asyncio.get_running_loop() in self._adopted:
            return await work
        return await asyncio.wrap_future(self._submit(work))

    def adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let what is awaited on *loop* run on it: it lives as long as its connections, as the worker's does."""
        self._adopted.add(loop)

    def at_close(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await *closer* on the loop before it ends."""
        self._closers.append(closer)

    def close(self, timeout: float = 2.0) -> None:
        """End the loop and its thread; the next call starts new ones. Done at exit."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or not thread.is_alive():
            return
        try:
            for closer in self._closers:
                asyncio.run_coroutine_threadsafe(closer(), loop).result(timeout)
        except TimeoutError:
            log.warning("the mail connections did not close within %g s", timeout)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout)

    def give_way(self) -> None:
        """End the loop when the mails that are on their way have come to their end."""
        with self._lock:
            loop = self._loop
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_end_of_others(), loop).result()
            self.close()

    def forget(self) -> None:
        """After a fork: the thread stayed in the parent, and the loop's descriptors are shared with it."""
        # Kept, not closed: closing them here would disturb the parent's.
        self._abandoned.append(self._loop)
        self._reset()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            loop = self._running_loop()
        except AppError:
            work.close()
            raise
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("Mail cannot be sent synchronously from the mail thread itself. Use the async methods.")
        # An empty context: the caller's would keep its app and request alive as long as a connection.
        return contextvars.Context().run(asyncio.run_coroutine_threadsafe, work, loop)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                loop = asyncio.new_event_loop()
                runs: Future[None] = Future()
                thread = threading.Thread(target=_serve, args=(loop, runs), name="flask-taskworker-mail", daemon=True)
                thread.start()
                runs.result()
                self._loop, self._thread = loop, thread
            return self._loop


async def _end_of_others() -> None:
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


def _serve(loop: asyncio.AbstractEventLoop, runs: Future[None]) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(runs.set_result, None)
    try:
        loop.run_forever()
    except RuntimeError as error:
        # Green threads share one thread of the system, in which the worker's loop runs.
        runs.set_exception(
            AppError(
                f"Mail cannot be sent here: {error}. Beside a BackgroundTaskWorker, gevent and eventlet leave no "
                "thread for it. Run the worker in a process of its own (flask tasks run), or use threads."
            )
        )
        return
    finally:
        if runs.done() and runs.exception() is None:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(asyncio.sleep(0))  # closed transports let go of their sockets
        loop.close()


portal: Portal = Portal()
"""The one of this process."""

atexit.register(portal.close)
give_way.append(portal.give_way)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=portal.forget)
