"""Many mails at once over the connections of one pool, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .envelope import Envelope, SendResult, failed_result, result_of
from .errors import MailError
from .smtp import Pool

CHUNK = 64
"""Mails handed over at once."""

_GIVE_UP_AFTER = 3


class Numbered(NamedTuple):
    """A mail, or how it ended, with its place in the caller's order."""

    number: int
    message: Any
    envelope: Envelope | None
    result: SendResult | None


class BulkRun:
    """One bulk sending, on the pool's loop: feed it with :meth:`step`, end it with :meth:`finish`.

    A mail that cannot be sent ends with a result that holds its error. Where the server cannot be reached for the
    first mail, :meth:`step` raises: nothing was sent. After three failed connects in a row the rest is not tried.
    """

    def __init__(self, pool: Pool, lanes: int) -> None:
        self._pool = pool
        self._waiting: deque[Numbered] = deque()
        self._ended: list[Numbered] = []
        self._lanes: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._crash: BaseException | None = None
        self._size = lanes
        self._changed = asyncio.Event()
        self._failed_connects = 0
        self._any_sent = False
        self._broken: MailError | None = None

    async def step(self, mails: Sequence[Numbered]) -> list[Numbered]:
        """Take *mails*, wait until there is room for as many again, and return what ended in the meantime."""
        self._waiting.extend(mails)
        for _ in range(min(self._size - self._busy, len(self._waiting))):
            self._open_lane()
        await self._until(lambda: len(self._waiting) <= CHUNK // 2)
        return self._take_ended()

    async def finish(self) -> list[Numbered]:
        """Wait for the rest and return it."""
        await self._until(lambda: not self._busy)
        return self._take_ended()

    async def stop(self) -> list[Numbered]:
        """Forget what has not begun, let what has begun come to its end, and return it. Never raises."""
        self._waiting.clear()
        await self._until(lambda: not self._busy)
        ended, self._ended = self._ended, []
        return ended

    async def _until(self, is_met: Callable[[], bool]) -> None:
        while not is_met() and self._crash is None:
            self._changed.clear()
            await self._changed.wait()

    def _take_ended(self) -> list[Numbered]:
        if self._crash is not None:
            raise self._crash
        if self._broken is not None and not self._any_sent:
            self._waiting.clear()
            raise self._broken
        ended, self._ended = self._ended, []
        return ended

    def _open_lane(self) -> None:
        self._busy += 1
        lane = asyncio.get_running_loop().create_task(self._lane())
        self._lanes.add(lane)
        lane.add_done_callback(self._lane_ended)

    def _lane_ended(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        if not lane.cancelled():
            lane.exception()  # looked at, so that asyncio does not complain; the caller gets it

    async def _lane(self) -> None:
        try:
            while self._waiting:
                mail = self._waiting.popleft()
                if len(self._waiting) == CHUNK // 2:
                    self._changed.set()
                result = await self._send(mail)
                self._ended.append(Numbered(mail.number, mail.message, None, result))
        except BaseException as error:
            self._crash = error
            raise
        finally:
            # Not in the callback: a step in between would count on a lane that takes no more mails.
            self._busy -= 1
            self._changed.set()

    async def _send(self, mail: Numbered) -> SendResult:
        assert mail.envelope is not None
        if self._broken is not None:
            return failed_result(mail.envelope, self._broken, mail.message)
        try:
            receipt = await self._pool.deliver(mail.envelope)
        except MailError as error:
            self._count(error)
            return failed_result(mail.envelope, error, mail.message)
        self._failed_connects, self._any_sent = 0, True
        return result_of(mail.envelope, receipt.refused, mail.message)

    def _count(self, error: MailError) -> None:
        if not error.of_transport:
            self._any_sent = True
            return
        self._failed_connects += 1
        if not self._any_sent or self._failed_connects >= _GIVE_UP_AFTER:
            self._broken = error
