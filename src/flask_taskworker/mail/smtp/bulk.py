"""Many mails at once, now, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ...errors import ArgumentsError
from ..envelope import Envelope, SendResult, failed_result, result_of
from ..errors import MailError
from .connection import Receipt
from .lanes import Lanes, Parcel
from .pool import Pool

CHUNK = 64
"""Mails handed over at once."""

_GIVE_UP_AFTER = 3


class Numbered(NamedTuple):
    """A mail, or how it ended, with its place in the caller's order."""

    number: int
    message: Any
    envelope: Envelope | None
    result: SendResult | None = None


def each(messages: Iterable[Any]) -> Iterator[Any]:
    """What *messages* holds. Raises ArgumentsError for one message where many belong, and for what holds none."""
    try:
        return iter(messages)
    except TypeError as error:
        remedy = "An async generator is for asend_many" if isinstance(messages, AsyncIterable) else "Write [message]"
        raise ArgumentsError(
            f"messages is {messages!r:.100}. Give a list, or anything else that yields messages. {remedy}."
        ) from error


async def aeach(messages: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    """As :func:`each`, on an event loop."""
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in each(messages):
            yield message


class BulkRun(Lanes):
    """One bulk sending, on the pool's loop: feed it with :meth:`step`, end it with :meth:`finish`.

    A mail that cannot be sent ends with a result that holds its error. Where the server cannot be reached for the
    first mail, :meth:`step` raises: nothing was sent. After three failed connects in a row the rest is not tried.
    """

    def __init__(self, pool: Pool, size: int) -> None:
        super().__init__(pool, size)
        self._ended: list[Numbered] = []
        self._crash: BaseException | None = None
        self._changed = asyncio.Event()
        self._failed_connects = 0
        self._any_sent = False
        self._broken: MailError | None = None

    async def step(self, mails: Sequence[Numbered]) -> list[Numbered]:
        """Take *mails*, wait until there is room for as many again, and return what ended in the meantime."""
        if self._broken is not None and self._any_sent:
            for mail in mails:
                self._fail(mail, self._broken)
        else:
            self.add([Parcel(mail, mail.envelope) for mail in mails if mail.envelope is not None])
        await self._until(lambda: len(self._waiting) <= CHUNK // 2)
        return self._take_ended()

    async def finish(self) -> list[Numbered]:
        """Wait for the rest and return it."""
        await self._until(lambda: not self.busy)
        return self._take_ended()

    async def stop(self) -> list[Numbered]:
        """Forget what has not begun, let what has begun come to its end, and return it. Never raises."""
        self._waiting.clear()
        await self._until(lambda: not self.busy)
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

    async def before_message(self, parcel: Parcel) -> None:
        """Nothing is recorded, so nothing is waited for."""

    def on_take(self, parcel: Parcel) -> None:
        """Tell the feeder when there is room again."""
        if len(self._waiting) == CHUNK // 2:
            self._changed.set()

    def on_lane_end(self, error: BaseException | None) -> None:
        """Tell the feeder."""
        self._crash = self._crash or error
        self._changed.set()

    def on_end(self, parcel: Parcel, outcome: Receipt | MailError) -> None:
        """Note the result."""
        mail: Numbered = parcel.owner
        if isinstance(outcome, MailError):
            self._fail(mail, outcome)
            self._count(outcome)
            return
        assert mail.envelope is not None
        self._failed_connects, self._any_sent = 0, True
        result = result_of(mail.envelope, outcome.refused, mail.message)
        self._ended.append(mail._replace(envelope=None, result=result))

    def _fail(self, mail: Numbered, error: MailError) -> None:
        assert mail.envelope is not None
        self._ended.append(mail._replace(envelope=None, result=failed_result(mail.envelope, error, mail.message)))

    def _count(self, error: MailError) -> None:
        if not error.of_transport:
            self._any_sent = True
            return
        self._failed_connects += 1
        if not self._any_sent or self._failed_connects >= _GIVE_UP_AFTER:
            self._break_off(error)

    def _break_off(self, error: MailError) -> None:
        """The server is away: the mails that wait, and those that follow, end with its error."""
        self._broken = error
        while self._waiting and self._any_sent:
            self._fail(self._waiting.popleft().owner, error)
        self._changed.set()
