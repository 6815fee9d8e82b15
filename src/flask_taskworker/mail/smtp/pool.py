"""A pool of SMTP connections for each event loop, which adapts to how many the server allows."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary, WeakSet

from ...core.loggers import Logger, get_logger
from ..errors import ConnectError, ConnectTimeout, MailError, ServerTimeout
from .connection import SMTPConnection, quit_all
from .portal import portal
from .server import CROWDED_S, Server
from .transaction import CLOSING

log: Logger = get_logger("mail")

IDLE_S = 10.0
"""Seconds that an unused connection is kept. Servers hang up after some minutes at the earliest."""

CROWDED_IDLE_S = 0.2
"""The same where the server has turned connections away: another process may wait for this one."""

POOLED_MAILS = 100
"""Mails in one pooled connection where MAIL_MAX_EMAILS does not say."""

_POOLS_PER_LOOP = 16
_ASK_AGAIN_S = 0.05
_LONGEST_PAUSE_S = 0.5
_STILL_COUNTED_S = 5.0

Opener = Callable[[], Awaitable[SMTPConnection]]


class Pool:
    """Up to *size* kept connections to one server, on one loop. Requests are served in turn.

    A connection that the server refuses while there are others is one too many: the pool makes do with those for a
    while. Where other processes have all that the server allows, it waits for them. An outage is when there are none.
    """

    def __init__(self, server: Server, size: int, max_mails: float) -> None:
        self.server = server
        self.max_mails = max_mails
        self._size = self._allowed = size
        self._crowded_until = 0.0
        self._yield_until = 0.0
        self._lent = self._opening = 0
        self._is_pausing = False
        self._released_at = -_STILL_COUNTED_S
        self._turned_away_at = -math.inf
        self._waiting: deque[asyncio.Future[SMTPConnection | None]] = deque()
        self._idle: deque[SMTPConnection] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        with _lock:
            _all_pools.add(self)

    async def acquire(
        self, opener: Opener | None = None, *, may_wait: Callable[[], bool] = lambda: True
    ) -> SMTPConnection | None:
        """A connection for the caller alone, to be given back with :meth:`release`; a new one comes from ``opener``.

        None where all that the server allows are in use and the caller may not wait. Raises what the opener raises
        where no connection can be had.
        """
        deadline = time.monotonic() + self.server.timeout
        pause = _ASK_AGAIN_S
        while True:
            refusal: MailError | None = None
            if (connection := self._take_idle()) is not None:
                return connection
            if not self._is_pausing and self._lent + self._opening < self._room():
                try:
                    return await self._open(opener)
                except MailError as error:
                    if isinstance(error, ConnectTimeout | ServerTimeout) or not error.of_transport:
                        raise  # not a word about the number of connections
                    refusal = error
                if self._lent:
                    self._allow(self._lent, refusal)
                elif not self._opening and not self._is_pausing:
                    pause = await self._pause(refusal, pause, deadline)
                    continue
            if self._lent and not may_wait():
                return None
            if (connection := await self._next_change()) is not None:
                return connection

    @property
    def is_served(self) -> bool:
        """Whether connections are, or just were, in use, so that a new one that is refused is only one too many."""
        return self._lent > 0 or time.monotonic() - self._released_at < _STILL_COUNTED_S

    @property
    def is_wanted(self) -> bool:
        """Whether others wait for a connection."""
        return bool(self._waiting) or time.monotonic() < self._yield_until

    def release(self, connection: SMTPConnection) -> None:
        """Give *connection* back; one that is worn out or broken is closed."""
        is_good = connection.is_usable and connection.mails < self.max_mails
        if is_good and self._waiting:
            self._hand_over(connection)
            return
        self._lent -= 1
        self._released_at = time.monotonic()
        if is_good and time.monotonic() >= self._yield_until:
            self._idle.append(connection)
            self._watch()
        else:
            self._say_goodbye(connection)
        self._wake(1)

    async def close(self) -> None:
        """Close what is idle."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drop_idle()
        if self._goodbyes:
            await asyncio.wait(self._goodbyes)

    @property
    def is_unused(self) -> bool:
        """Whether nothing is in use or kept."""
        return not (self._lent or self._opening or self._idle or self._waiting)

    # ------------------------------------------------------------ one too many

    def give_up_one(self, farewell: MailError) -> bool:
        """Make do without the caller's connection, which the server ended before its first mail, if it has others."""
        if self._lent < 2 or not is_turned_away(farewell):
            return False
        self._allow(self._lent - 1, farewell)
        return True

    async def _pause(self, refusal: MailError, pause: float, deadline: float) -> float:
        """Wait before asking again, and return the next pause. Raises *refusal* where it would be no use."""
        # It may still count a connection that was just closed, or one of another part of this process.
        if has_others := self.ask_others_to_yield():
            self._released_at = time.monotonic()
        is_passing = has_others or self.is_served or (is_turned_away(refusal) and self._is_patient())
        if not is_passing or time.monotonic() > deadline:
            self._released_at = -_STILL_COUNTED_S
            raise refusal
        if is_turned_away(refusal):
            self._crowded_until = time.monotonic() + CROWDED_S
        self._is_pausing = True  # one caller at a time asks again
        try:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        except asyncio.CancelledError:
            self._wake(1)
            raise
        finally:
            self._is_pausing = False
        return _ASK_AGAIN_S if has_others else min(2 * pause, _LONGEST_PAUSE_S)

    def _is_patient(self) -> bool:
        """Whether to wait for what other processes have: once, until MAIL_TIMEOUT, and not for each mail."""
        now = time.monotonic()
        if now - self._turned_away_at > self.server.timeout + CROWDED_S:
            self._turned_away_at = now
        return now - self._turned_away_at < self.server.timeout

    def _allow(self, count: int, refusal: MailError) -> None:
        if self._allowed > count:
            log.info("%s allows %d connections now: %s", self.server, count, refusal)
        self._allowed = count
        self._crowded_until = time.monotonic() + CROWDED_S

    def _room(self) -> int:
        if self._allowed < self._size and time.monotonic() >= self._crowded_until:
            self._allowed = self._size
        return self._allowed

    def ask_others_to_yield(self) -> bool:
        """Ask this process's other pools for the same server to close a connection; whether they have any."""
        with _lock:
            others = [pool for pool in _all_pools if pool is not self and pool.server == self.server]
        others = [pool for pool in others if (pool._lent or pool._idle) and not pool._loop.is_closed()]
        for pool in others:
            pool._loop.call_soon_threadsafe(pool._yield)
        return bool(others)

    def _yield(self) -> None:
        self._yield_until = time.monotonic() + 4 * _ASK_AGAIN_S
        self._drop_idle()

    # ------------------------------------------------------------ waiting

    async def _open(self, opener: Opener | None) -> SMTPConnection:
        self._opening += 1
        try:
            connection = await (opener() if opener is not None else SMTPConnection.open(self.server))
        except BaseException:
            self._opening -= 1
            self._wake(len(self._waiting))
            raise
        self._opening -= 1
        self._lent += 1
        self._allowed = max(self._allowed, self._lent)
        self._turned_away_at = -math.inf
        self._wake(len(self._waiting))
        return connection

    def _take_idle(self) -> SMTPConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                self._lent += 1
                return connection
            connection.abort()
        return None

    async def _next_change(self) -> SMTPConnection | None:
        """A connection that was handed over, or None when it is worth looking again."""
        turn: asyncio.Future[SMTPConnection | None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled() or not turn.done():
                self._waiting = deque(other for other in self._waiting if other is not turn)
            elif (connection := turn.result()) is not None:
                self.release(connection)
            else:
                self._wake(1)
            raise

    def _hand_over(self, connection: SMTPConnection | None) -> bool:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return True
        return False

    def _wake(self, count: int) -> None:
        for _ in range(count):
            self._hand_over(None)

    # ------------------------------------------------------------ idle ones

    @property
    def _idle_s(self) -> float:
        return CROWDED_IDLE_S if time.monotonic() < self._crowded_until else IDLE_S

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._idle_s, self._close_idle)

    def _close_idle(self) -> None:
        self._timer = None
        now = self._loop.time()
        # The left end was given back longest ago.
        while self._idle and (now - self._idle[0].idle_since() >= self._idle_s or not self._idle[0].is_usable):
            self._say_goodbye(self._idle.popleft())
        if self._idle:
            self._watch()
        else:
            _forget_unused()

    def _drop_idle(self) -> None:
        while self._idle:
            self._say_goodbye(self._idle.pop())

    def _say_goodbye(self, connection: SMTPConnection) -> None:
        if not connection.is_usable:
            connection.abort()
            return
        goodbye = self._loop.create_task(connection.quit())
        self._goodbyes.add(goodbye)
        goodbye.add_done_callback(self._goodbyes.discard)


def is_turned_away(error: MailError) -> bool:
    """Whether the server is there, and takes no further connection for now."""
    code = getattr(error, "code", -1)
    return code == CLOSING or (isinstance(error, ConnectError) and 400 <= code < 500)


_Key = tuple[Server, int, int]
_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, OrderedDict[_Key, Pool]] = WeakKeyDictionary()
_all_pools: WeakSet[Pool] = WeakSet()
_lock = threading.Lock()


def pool_for(server: Server, size: int, max_mails: int | None) -> Pool:
    """The running loop's pool of *size* connections to *server*, made when it is first asked for.

    Of many servers, as with one account a tenant, those used last keep their connections.
    """
    pools = _pools.setdefault(asyncio.get_running_loop(), OrderedDict())
    key = (server, size, max_mails or POOLED_MAILS)
    if key not in pools:
        pools[key] = Pool(*key)
        if len(pools) > _POOLS_PER_LOOP:
            for pool in list(pools.values())[:-_POOLS_PER_LOOP]:
                pool._drop_idle()
            _forget_unused()
    pools.move_to_end(key)
    return pools[key]


def _forget_unused() -> None:
    pools = _pools.get(asyncio.get_running_loop()) or OrderedDict()
    for key in [key for key, pool in pools.items() if pool.is_unused][:-1]:
        del pools[key]


async def close_pools() -> None:
    """Close the connections of the running loop, those in use too: for when it ends."""
    for pool in list(_pools.pop(asyncio.get_running_loop(), {}).values()):
        await pool.close()
    await quit_all()


portal.at_close(close_pools)
