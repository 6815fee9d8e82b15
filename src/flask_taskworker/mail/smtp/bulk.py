"""Many mails at once, now, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ...errors import ArgumentsError
from ..envelope import Envelope, SendResult, failed_result
from ..errors import MailError
from .connection import Receipt
from .hosts import result_of
from .pool import Pool
from .sender import Delivery, SmtpSender

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


class BulkSending:
    """One bulk sending, on the pool's loop: feed it with :meth:`step`, end it with :meth:`finish`.

    A mail that cannot be sent ends with a result that holds its error. Where the server cannot be reached for the
    first mail, :meth:`step` raises: nothing was sent. After three failed connects in a row the rest is not tried.
    """

    def __init__(self, pool: Pool, size: int) -> None:
        self._sender = SmtpSender(pool, size, on_take=self._on_take, on_idle=self._on_idle)
        self._ended: list[Numbered] = []
        self._crash: BaseException | None = None
        self._changed = asyncio.Event()
        self._failed_connects = 0
        self._any_sent = False
        self._broken: MailError | None = None

    async def step(self, mails: Sequence[Numbered]) -> list[Numbered]:
        """Take *mails*, wait until there is room for as many again, and return what ended in the meantime."""
        deliveries = [
            Delivery(mail.envelope, owner=mail, on_end=self._on_end) for mail in mails if mail.envelope is not None
        ]
        if self._broken is not None and self._any_sent:
            self._fail(deliveries, self._broken)
        else:
            self._sender.add(deliveries)
        await self._until(lambda: len(self._sender.line) <= CHUNK // 2)
        return self._take_ended()

    async def finish(self) -> list[Numbered]:
        """Wait for the rest and return it."""
        await self._until(lambda: not self._sender.lanes)
        return self._take_ended()

    async def stop(self) -> list[Numbered]:
        """Forget what has not begun, let what has begun come to its end, and return it. Never raises."""
        self._sender.line.clear()
        await self._until(lambda: not self._sender.lanes)
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
            self._sender.line.clear()
            raise self._broken
        ended, self._ended = self._ended, []
        return ended

    def _on_take(self) -> None:
        if len(self._sender.line) == CHUNK // 2:
            self._changed.set()

    def _on_idle(self, error: BaseException | None) -> None:
        self._crash = self._crash or error
        self._changed.set()

    def _on_end(self, delivery: Delivery) -> None:
        outcome, mail = delivery.outcome, delivery.owner
        if isinstance(outcome, Receipt):
            self._failed_connects, self._any_sent = 0, True
            result = result_of(mail.envelope, outcome, mail.message)
            self._ended.append(Numbered(mail.number, mail.message, None, result))
            return
        assert isinstance(outcome, MailError)
        self._fail([delivery], outcome)
        if not outcome.of_transport:
            self._any_sent = True
            return
        self._failed_connects += 1
        if not self._any_sent or self._failed_connects >= _GIVE_UP_AFTER:
            # The server is away: the mails that wait, and those that follow, end with its error.
            self._broken = outcome
            if self._any_sent:
                self._fail(self._sender.line, outcome)
                self._sender.line.clear()
            self._changed.set()

    def _fail(self, deliveries: Iterable[Delivery], error: MailError) -> None:
        for delivery in deliveries:
            mail = delivery.owner
            self._ended.append(mail._replace(envelope=None, result=failed_result(mail.envelope, error, mail.message)))
