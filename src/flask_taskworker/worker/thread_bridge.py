"""The hop: sync calls of an event loop in threads, through asgiref, and back.

Hopping there and back through ``sync_to_async`` costs a call some 40 µs, as much as all else about a short job.
So a thread that has hopped stays and takes one call after the other. Each of them still gets what asgiref
gives: a context of its own, and ``async_to_sync`` that finds the loop from which the thread came.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

from asgiref.sync import SyncToAsync, sync_to_async

from ..client.threads import PoolClosed, ThreadPool

T = TypeVar("T")


_GONE = object()


class OwnTask(asyncio.Task[T]):
    """A task of the worker itself: user code that cancels all tasks of the loop does not end it.

    Only ``asyncio.Task.cancel(task)`` does. What runs in it must need no cancellation: no ``asyncio.timeout``.
    """

    def cancel(self, msg: Any = None) -> bool:
        """Refuse."""
        return False


class TimedTask(asyncio.Task[T]):
    """A task of ours that no other task cancels; ``asyncio.timeout`` works in it, and the end of any loop ends it."""

    def cancel(self, msg: Any = None) -> bool:
        """Refuse what another task asks for."""
        return asyncio.current_task(self.get_loop()) in (None, self) and super().cancel(msg)


class _Call(NamedTuple):
    function: Callable[[], Any]
    context: contextvars.Context
    future: asyncio.Future[Any]


class ThreadBridge:
    """Runs sync calls of one event loop in up to *size* threads. For that loop only."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._pool = ThreadPool(size, name, refuse=True)
        self._serve = sync_to_async(self._take_calls, thread_sensitive=False, executor=cast(Any, self._pool))
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Future[Any], None] = {}
        """The calls that have not begun. The thread or loop that takes one out owns it."""
        self._unfinished = 0
        self._closed = False
        self._returned: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_told = False

    def run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a call in a thread, in a copy of the current context. The future raises PoolClosed if none can be had.

        Cancelling the future does not stop the call.
        """
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(PoolClosed())
            return future
        self._unfinished += 1
        self._waiting[future] = None
        self._calls.put(_Call(function, contextvars.copy_context(), future))
        if len(self._threads) < min(self._unfinished, self._size):
            self._grow()
        return future

    def allow(self, size: int) -> None:
        """Use up to *size* threads from now on. Those that are there stay."""
        self._size = self._pool.size = max(size, self._size)

    def withdraw(self, future: asyncio.Future[Any]) -> bool:
        """Take a call back, if it has not begun: True, and then it never will."""
        if self._waiting.pop(future, _GONE) is _GONE:
            return False
        self._unfinished -= 1
        future.cancel()
        return True

    def _grow(self) -> None:
        # In an empty context: the thread outlives the job for which it comes.
        thread: OwnTask[None] = contextvars.Context().run(
            lambda: OwnTask(self._serve(), loop=self._loop, name="taskworker-hop")
        )
        self._threads.add(thread)
        thread.add_done_callback(self._on_thread_end)

    def _on_thread_end(self, thread: asyncio.Task[None]) -> None:
        self._threads.discard(thread)
        error = None if thread.cancelled() else thread.exception()
        if error is not None and not self._threads:
            with suppress(queue.Empty):
                while (call := self._calls.get_nowait()) is not None:
                    if self._waiting.pop(call.future, _GONE) is None:
                        self._returned.append((call.future, None, error))
            self._report()

    # -- in the threads ---------------------------------------------------------------------------------------------

    def _take_calls(self) -> None:
        # A job may leave other values behind, with an async_to_sync in which there is a sync_to_async.
        hopped = SyncToAsync.threadlocal.__dict__
        at_first = hopped.copy()
        while (call := self._calls.get()) is not None:
            if self._waiting.pop(call.future, _GONE) is _GONE:
                continue
            hopped.update(at_first)
            result, error = None, None
            try:
                result = call.context.run(call.function)
            except BaseException as raised:  # noqa: BLE001 - the future carries it
                error = raised
            self._returned.append((call.future, result, error))
            # An idle thread must not keep what a job has used.
            del call, result, error
            if not self._is_told:
                self._is_told = True
                # The loop may have ended: then nothing waits for this.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._report)

    # -- on the loop ------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        # Before the look: what returns from now on tells again.
        self._is_told = False
        while self._returned:
            future, result, error = self._returned.popleft()
            self._unfinished -= 1
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def close(self) -> None:
        """Take no more calls and let idle threads end; a busy one ends with its call or with the process."""
        self._closed = True
        for _ in range(self._size):
            self._calls.put(None)
        if self._threads:
            # One of them may be on its way into its thread.
            self._loop.call_soon(self._pool.shutdown)
        else:
            self._pool.shutdown()
