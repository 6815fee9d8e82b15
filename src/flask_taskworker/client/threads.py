"""Daemon threads behind ``concurrent.futures``' interface, and the end of a process that waits for none of them."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NoReturn, ParamSpec, TypeVar

from ..core.loggers import Logger, get_logger

P = ParamSpec("P")
T = TypeVar("T")
log: Logger = get_logger("worker")


class PoolClosed(RuntimeError):
    """The thread pool takes no more work."""

    def __init__(self, message: str = "the pool is at its shutdown, or no thread can be started") -> None:
        super().__init__(message)


class ThreadPool(Executor):
    """Daemon threads for sync jobs.

    The pools of ``concurrent.futures`` join their threads at exit, so one hanging job would keep the process alive,
    and they refuse work before ``atexit`` runs. Threads start when needed and stay.
    """

    def __init__(self, size: int, name: str, *, refuse: bool = False) -> None:
        """*refuse*: a call for which there should be a further thread, and none can be started, is refused."""
        self.size: int = size
        """The most threads. It may grow."""
        self._name = name
        self._refuse = refuse
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread. From one thread at a time. Raises PoolClosed."""
        if self._closed:
            raise PoolClosed
        # Before it stands in line: a thread that can be started later must not run what was refused.
        if not self._idle.acquire(blocking=False) and len(self._threads) < self.size:
            self._grow()
        future: Future[T] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def _grow(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads: interpreter shutdown, or the system's limit
            if self._threads:
                log.warning("no further thread for sync jobs: %s", error)
            if self._refuse or not self._threads:
                raise PoolClosed from error
            return
        self._threads.append(thread)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, run = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run())
                except BaseException as error:  # noqa: BLE001 - the future carries it
                    future.set_exception(error)
            del call, future, run
            self._idle.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work and let idle threads end. Never waits: a hanging job must not hold anybody up."""
        self._closed = True
        for _ in self._threads:
            self._calls.put(None)


class LoopThreads(ThreadPoolExecutor):
    """The threads behind ``asyncio.to_thread`` on our event loop: daemons too. asyncio insists on this base class."""

    def __init__(self, name: str) -> None:
        self._daemons = ThreadPool(min(32, (os.cpu_count() or 1) + 4), name)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread."""
        return self._daemons.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work and let idle threads end. Never waits."""
        self._daemons.shutdown()


give_way: list[Callable[[], None]] = []
"""How to end loops of ours that run in threads of their own. Green threads share one thread of the system, in which one
event loop can run: it is the worker's."""


def flush_output() -> None:
    """What was logged and written goes out; the handlers of logging are closed."""
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()


def end_process(code: int) -> NoReturn:
    """End this process at once, whatever its threads do. What was written goes out; exit handlers do not run."""
    flush_output()
    os._exit(code)
