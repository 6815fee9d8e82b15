"""Many mails at once over the connections of one pool, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from .envelope import Envelope, Reply, SendResult, failed_result, result_of, without_rejected
from .errors import DeliveryUnknown, MailError, RecipientsRefused, ServerDisconnected, ServerTimeout
from .pool import Pool
from .smtp import Opened, Receipt, SMTPConnection

CHUNK = 64
"""Mails handed over at once."""

_GIVE_UP_AFTER = 3
_TRIES = 3


class Numbered(NamedTuple):
    """A mail, or how it ended, with its place in the caller's order."""

    number: int
    message: Any
    envelope: Envelope | None
    result: SendResult | None = None
    tries: int = 1
    refused: Mapping[str, Reply] = MappingProxyType({})


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
                await self._take_turn()
        except BaseException as error:
            self._crash = error
            raise
        finally:
            # Not in the callback: a step in between would count on a lane that takes no more mails.
            self._busy -= 1
            self._changed.set()

    async def _take_turn(self) -> None:
        """Send mails over one connection, until it is worn out, breaks, or somebody else waits for it."""
        if self._broken is not None:
            self._end(self._next(), self._broken)
            return
        try:
            connection = await self._pool.acquire()
        except MailError as error:
            if self._waiting:
                self._end(self._next(), error)
            return
        try:
            await self._use(connection)
        finally:
            self._pool.release(connection)

    async def _use(self, connection: SMTPConnection) -> None:
        on_its_way: tuple[Numbered, Opened] | None = None
        is_first = True
        while on_its_way is not None or connection.is_usable:
            following = self._following(connection, on_its_way is not None, is_first)
            is_first = False
            if on_its_way is not None:
                mail, opened = on_its_way
                ended, begun = await connection.conclude(opened, following.envelope if following else None)
                self._settle(mail, ended)
            elif following is not None:
                begun = await _begin(connection, following)
            else:
                return
            on_its_way = self._opened(following, begun)

    def _following(self, connection: SMTPConnection, is_one_on_its_way: bool, is_first: bool) -> Numbered | None:
        if not self._waiting or connection.mails + is_one_on_its_way >= self._pool.max_mails:
            return None
        if self._pool.is_wanted and not is_first:
            return None  # others wait for a connection: one mail a turn
        return self._next() if connection.can_overlap or not is_one_on_its_way else None

    def _opened(self, mail: Numbered | None, begun: Opened | MailError | None) -> tuple[Numbered, Opened] | None:
        if mail is None or begun is None:
            return None
        if isinstance(begun, Opened):
            return mail, begun
        self._settle(mail, begun)
        return None

    def _settle(self, mail: Numbered, ended: Receipt | MailError) -> None:
        never_again = isinstance(ended, DeliveryUnknown | ServerTimeout) or mail.tries >= _TRIES
        if not isinstance(ended, ServerDisconnected) or never_again:
            self._end(mail, ended)
            return
        assert mail.envelope is not None
        try:
            envelope, rejected = without_rejected(mail.envelope, ended.refused)
        except RecipientsRefused as error:
            self._end(mail, error)
        else:
            refused = {**mail.refused, **rejected}
            self._waiting.appendleft(mail._replace(envelope=envelope, refused=refused, tries=mail.tries + 1))

    def _next(self) -> Numbered:
        mail = self._waiting.popleft()
        if len(self._waiting) == CHUNK // 2:
            self._changed.set()
        return mail

    def _end(self, mail: Numbered, ended: Receipt | MailError) -> None:
        assert mail.envelope is not None
        if isinstance(ended, Receipt):
            self._failed_connects, self._any_sent = 0, True
            result = result_of(mail.envelope, {**mail.refused, **ended.refused}, mail.message)
        else:
            self._count(ended)
            result = failed_result(mail.envelope, ended, mail.message)
        self._ended.append(mail._replace(envelope=None, result=result))

    def _count(self, error: MailError) -> None:
        if not error.of_transport:
            self._any_sent = True
            return
        self._failed_connects += 1
        if not self._any_sent or self._failed_connects >= _GIVE_UP_AFTER:
            self._broken = error


async def _begin(connection: SMTPConnection, mail: Numbered) -> Opened | MailError:
    assert mail.envelope is not None
    try:
        return await connection.begin(mail.envelope)
    except MailError as error:
        return error
