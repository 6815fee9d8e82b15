"""Who waits for which job in this process."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


class Finished:
    """Set when a job of this process's worker has ended; for one waiter, in a thread or on an event loop."""

    __slots__ = ("_event", "_loop", "_wake")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None

    def set(self) -> None:
        """From any thread."""
        self._event.set()
        if self._loop is not None and self._wake is not None:
            # The caller that waited may have gone, and its loop too.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    def wait(self, seconds: float) -> None:
        """In a thread."""
        self._event.wait(seconds)
        self._event.clear()

    async def async_wait(self, seconds: float) -> None:
        """On an event loop."""
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if not self._event.is_set():
            handle = self._loop.call_later(seconds, self._wake.set)
            await self._wake.wait()
            handle.cancel()
        self._event.clear()


class Waiting:
    """Who waits for which job in this process. Safe from any thread; cheap when no caller waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: defaultdict[int, list[Finished]] = defaultdict(list)

    @contextmanager
    def for_job(self, job_id: int) -> Iterator[Finished]:
        """A with block whose value is set when the job ends."""
        finished = Finished()
        with self._lock:
            self._waiters[job_id].append(finished)
        try:
            yield finished
        finally:
            with self._lock:
                self._waiters[job_id].remove(finished)
                if not self._waiters[job_id]:
                    del self._waiters[job_id]

    def end(self, job_ids: Iterable[int]) -> None:
        """These jobs have ended."""
        if self._waiters:
            with self._lock:
                for job_id in job_ids:
                    for finished in self._waiters.get(job_id, ()):
                        finished.set()
