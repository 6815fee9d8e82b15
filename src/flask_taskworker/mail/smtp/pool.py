"""A pool of SMTP connections for each event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

from ..envelope import Envelope, Reply, without_rejected
from ..errors import DeliveryUnknown, MailError, ServerDisconnected, ServerTimeout
from .connection import BeforeDot, Receipt, Server, SMTPConnection, quit_all
from .portal import portal

log = logging.getLogger("flask_taskworker.mail")

IDLE_S = 30.0
"""Seconds that an unused connection is kept. Servers hang up after some minutes at the earliest."""

POOLED_MAILS = 100
"""Mails in one pooled connection where MAIL_MAX_EMAILS does not say."""

Opener = Callable[[], Awaitable[SMTPConnection]]


class Pool:
    """Up to *size* kept connections to one server, on one loop. Who waits for one is served in turn."""

    def __init__(self, server: Server, size: int, max_mails: int) -> None:
        self.server = server
        self.max_mails = max_mails
        self._waiters = 0
        self._free = asyncio.Semaphore(size)
        self._idle: deque[SMTPConnection] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._goodbyes: set[asyncio.Task[None]] = set()

    async def deliver(
        self, envelope: Envelope, before_dot: BeforeDot | None = None, opener: Opener | None = None
    ) -> Receipt:
        """Deliver through any connection, through another one where it broke before the message was sent.

        A new connection is made with ``opener`` where it is given. Raises what :meth:`SMTPConnection.open` and
        :meth:`SMTPConnection.deliver` raise.
        """
        known: dict[str, Reply] = {}
        for last in (False, False, True):
            connection = await self._acquire_again(known, opener)
            try:
                receipt = await connection.deliver(envelope, before_dot)
                return replace(receipt, refused={**known, **receipt.refused}) if known else receipt
            except MailError as error:
                may_go_on = isinstance(error, ServerDisconnected) and not isinstance(
                    error, DeliveryUnknown | ServerTimeout
                )
                if last or not may_go_on:
                    error.refused = {**known, **error.refused}
                    raise
                log.debug("%s closed the connection before the message (%s); trying another", self.server, error)
                envelope, rejected = without_rejected(envelope, error.refused)
                known |= rejected
            finally:
                self.release(connection)
        raise AssertionError("unreachable")

    async def _acquire_again(self, known: Mapping[str, Reply], opener: Opener | None) -> SMTPConnection:
        try:
            return await self.acquire(opener)
        except MailError as error:
            error.refused = {**known, **error.refused}
            raise

    async def acquire(self, opener: Opener | None = None) -> SMTPConnection:
        """A connection for the caller alone, to be given back with :meth:`release`; a new one comes from ``opener``."""
        self._waiters += 1
        try:
            await self._free.acquire()
        finally:
            self._waiters -= 1
        try:
            while self._idle:
                connection = self._idle.pop()
                if connection.is_usable:
                    return connection
                connection.abort()
            return await (opener() if opener is not None else SMTPConnection.open(self.server))
        except BaseException:
            self._free.release()
            raise

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a connection."""
        return self._waiters > 0

    def release(self, connection: SMTPConnection) -> None:
        """Give *connection* back; one that is worn out or broken is closed."""
        if connection.is_usable and connection.mails < self.max_mails:
            self._idle.append(connection)
            self._watch()
        else:
            self._say_goodbye(connection)
        self._free.release()

    async def close(self) -> None:
        """Close what is idle."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            self._say_goodbye(self._idle.pop())
        if self._goodbyes:
            await asyncio.wait(self._goodbyes)

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        # The left end was given back longest ago.
        while self._idle and (now - self._idle[0].idle_since() >= IDLE_S or not self._idle[0].is_usable):
            self._say_goodbye(self._idle.popleft())
        if self._idle:
            self._watch()

    def _say_goodbye(self, connection: SMTPConnection) -> None:
        if not connection.is_usable:
            connection.abort()
            return
        goodbye = asyncio.get_running_loop().create_task(connection.quit())
        self._goodbyes.add(goodbye)
        goodbye.add_done_callback(self._goodbyes.discard)


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Server, int, int], Pool]] = WeakKeyDictionary()


def pool_for(server: Server, size: int, max_mails: int | None) -> Pool:
    """The running loop's pool of *size* connections to *server*, made when it is first asked for."""
    pools = _pools.setdefault(asyncio.get_running_loop(), {})
    key = (server, size, max_mails or POOLED_MAILS)
    if key not in pools:
        pools[key] = Pool(*key)
    return pools[key]


async def close_pools() -> None:
    """Close the connections of the running loop, those in use too: for when it ends."""
    loop = asyncio.get_running_loop()
    for pool in _pools.pop(loop, {}).values():
        await pool.close()
    await quit_all()


portal.at_close(close_pools)
