"""Sending mails over the connections of a pool: one at a time, or many side by side, each with the message before."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

from ...core.loggers import Logger, get_logger
from ...worker.thread_bridge import TimedTask
from ..envelope import Ending, Envelope, Reply, replies_in, reply_to
from ..errors import (
    ConnectTimeout,
    DeliveryUnknown,
    MailError,
    RecipientsRefused,
    ServerDisconnected,
    ServerTimeout,
)
from .connection import BeforeDot, Receipt, SMTPConnection
from .pool import Opener, Pool
from .transaction import NotTried, Transaction

log: Logger = get_logger("mail")

_TRIES = 3


class Delivery:
    """One mail on its way: what is left to send of it, and what is decided. Ends with a Receipt or an error."""

    __slots__ = (
        *("envelope", "before_dot", "owner", "may_ride", "outcome"),
        *("_on_end", "_is_stepwise", "_tries", "_accepted", "_refused"),
    )

    def __init__(
        self,
        envelope: Envelope,
        *,
        before_dot: BeforeDot | None = None,
        on_end: Callable[[Delivery], object] | None = None,
        is_stepwise: bool = False,
        owner: Any = None,
    ) -> None:
        self.envelope: Envelope = envelope
        self.before_dot = before_dot
        """Awaited before the message is sent, also before that of a further transaction."""

        self.owner = owner
        self.may_ride: bool = True
        self.outcome: Receipt | Exception | None = None
        self._on_end = on_end
        self._is_stepwise = is_stepwise
        self._tries = 0
        self._accepted: list[str] = []
        self._refused: dict[str, Reply] = {}

    def note(self, outcome: Receipt | MailError) -> bool:
        """Take what a try came to; whether the mail is to be sent again, to those who are left."""
        match outcome:
            case NotTried():
                self.may_ride = False
                return self._try_again(outcome, counts=False)
            case Receipt():
                if outcome.left and not self._is_stepwise:
                    self._accepted += outcome.accepted
                    self._refused |= outcome.refused
                    return self._go_on(outcome.left)
                if self._accepted or self._refused:
                    accepted = (*self._accepted, *outcome.accepted)
                    outcome = replace(outcome, accepted=accepted, refused={**self._refused, **outcome.refused})
                self.outcome = outcome
                return False
            case RecipientsRefused(left=left) if left:
                self._refused |= replies_in(outcome)
                return self._go_on(left)
            case ServerDisconnected() if not isinstance(outcome, DeliveryUnknown | ServerTimeout):
                return self._try_again(outcome)
        self.fail(outcome)
        return False

    def _go_on(self, left: Iterable[str]) -> bool:
        self.envelope = replace(self.envelope, recipients=tuple(left))
        self._tries = 0
        return True

    def _try_again(self, error: ServerDisconnected, *, counts: bool = True) -> bool:
        """After a drop before the message: who was rejected is not asked for again."""
        rejected = {address: reply for address, reply in error.refused.items() if reply.ending is Ending.REJECTED}
        self._refused |= rejected
        left = tuple(address for address in self.envelope.recipients if address not in rejected)
        self._tries += counts
        if not left:
            self.fail(RecipientsRefused({address: (reply.code, reply.text) for address, reply in rejected.items()}))
        elif counts and self._tries == _TRIES:
            self.fail(error)
        else:
            self.envelope = replace(self.envelope, recipients=left)
            return True
        return False

    def fail(self, error: Exception) -> None:
        """End with *error*; for those who are left only, where others were accepted before."""
        if not isinstance(error, MailError):
            self.outcome = error
        elif self._accepted:
            known = replies_in(error)
            rest = {address: known.get(address, reply_to(error)) for address in self.envelope.recipients}
            reply = Reply(250, "")
            self.outcome = Receipt(accepted=tuple(self._accepted), refused={**self._refused, **rest}, reply=reply)
        else:
            error.refused = {**self._refused, **error.refused}
            self.outcome = error

    def end(self) -> None:
        """Say that there is an outcome."""
        if self._on_end is not None:
            self._on_end(self)


async def deliver(pool: Pool, delivery: Delivery, opener: Opener | None = None) -> Receipt:
    """Send one mail, over any connection of *pool*. Raises what became of it where it reached no recipient."""
    is_over = False
    while not is_over:
        try:
            connection = await pool.acquire(opener)
        except MailError as error:
            delivery.fail(error)
            break
        assert connection is not None
        try:
            is_over = not delivery.note(await connection.deliver(delivery.envelope, delivery.before_dot))
        except MailError as error:
            is_over = not delivery.note(_charged(error, connection, pool))
        finally:
            pool.release(connection)
    if isinstance(delivery.outcome, Receipt):
        return delivery.outcome
    assert delivery.outcome is not None
    raise delivery.outcome


class SmtpSender:
    """Sends deliveries over up to *size* connections of a pool, each begun with the message of the one before."""

    def __init__(
        self,
        pool: Pool,
        size: int,
        opener: Callable[[], Coroutine[Any, Any, SMTPConnection]] | None = None,
        *,
        on_take: Callable[[], None] = lambda: None,
        on_idle: Callable[[BaseException | None], None] = lambda error: None,
    ) -> None:
        self.pool = pool
        self.line: deque[Delivery] = deque()
        """What has not been begun."""

        self.lanes: int = 0
        """How many connections are in use or being opened."""

        self._size = size
        self._opener = opener or (lambda: SMTPConnection.open(pool.server))
        self._on_take = on_take
        self._on_idle = on_idle
        self._serving = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries into the line."""
        self.line.extend(deliveries)
        for _ in range(min(self._size - self.lanes, len(self.line))):
            self.lanes += 1
            lane = TimedTask(self._lane(), loop=asyncio.get_running_loop(), name="taskworker-mail-lane")
            self._tasks.add(lane)
            lane.add_done_callback(self._tasks.discard)

    async def _lane(self) -> None:
        crash: BaseException | None = None
        try:
            while self.line and await self._take_turn():
                pass
        except asyncio.CancelledError as error:
            crash = error
            raise
        except Exception as error:  # noqa: BLE001 - on_idle has it
            crash = error
        finally:
            # Not in a callback: add() in between would count on a lane that takes no more.
            self.lanes -= 1
            self._on_idle(crash)

    async def _take_turn(self) -> bool:
        """Send over one connection, until it is worn out, breaks, or is wanted elsewhere; False to close the lane."""
        try:
            connection = await self.pool.acquire(self._open, may_wait=lambda: not self._serving)
        except MailError as error:
            if self.line:
                delivery = self._take()
                delivery.fail(error)
                delivery.end()
            return True
        if connection is None:
            return False  # the other lanes have all that the server allows
        self._serving += 1
        try:
            await self._use(connection)
        finally:
            self._serving -= 1
            self.pool.release(connection)
        return True

    async def _open(self) -> SMTPConnection:
        """Open a connection. What that runs in tasks of its own, user code can cancel: it ends the try, no more."""
        try:
            return await self._opener()
        except asyncio.CancelledError:
            lane = asyncio.current_task()
            if lane is None or lane.cancelling():
                raise
        error = ConnectTimeout(f"User code has cancelled the task that was connecting to {self.pool.server}.")
        error.of_transport = True
        raise error

    async def _use(self, connection: SMTPConnection) -> None:
        on_its_way: tuple[Delivery, Transaction] | None = None
        following: Delivery | None = None
        is_first = True
        try:
            while on_its_way is not None or connection.is_usable:
                following = self._following(connection, on_its_way is not None, is_first)
                is_first = False
                if on_its_way is not None:
                    delivery, opened = on_its_way
                    if delivery.before_dot is not None and not await _is_let_through(delivery, delivery.before_dot):
                        connection.abort()  # the server waits for a message that will not come
                        self._put_back(following)
                        return
                    ended, begun = await connection.conclude(opened, following.envelope if following else None)
                    self._settle(delivery, ended)
                elif following is not None:
                    try:
                        begun = await connection.begin(following.envelope)
                    except MailError as error:
                        begun = _charged(error, connection, self.pool)
                else:
                    return
                on_its_way = None
                if isinstance(begun, Transaction):
                    assert following is not None
                    on_its_way = following, begun
                elif begun is not None and following is not None:
                    self._settle(following, begun)
        except BaseException:
            # Cancelled, or a fault of ours: what was in hand must come to an end.
            connection.abort()
            self._put_back(following if on_its_way is None or following is not on_its_way[0] else None)
            if on_its_way is not None:
                on_its_way[0].fail(on_its_way[1].broken_off(DeliveryUnknown()))
                on_its_way[0].end()
            raise

    def _following(self, connection: SMTPConnection, is_one_on_its_way: bool, is_first: bool) -> Delivery | None:
        if not self.line or connection.mails + is_one_on_its_way >= self.pool.max_mails:
            return None
        if self.pool.is_wanted and not is_first:
            return None  # others wait for a connection: one mail a turn
        following = self.line[0]
        if is_one_on_its_way and not (following.may_ride and connection.can_overlap(following.envelope)):
            return None
        return self._take()

    def _take(self) -> Delivery:
        delivery = self.line.popleft()
        self._on_take()
        return delivery

    def _put_back(self, delivery: Delivery | None) -> None:
        if delivery is not None:
            self.line.appendleft(delivery)

    def _settle(self, delivery: Delivery, outcome: Receipt | MailError) -> None:
        if delivery.note(outcome):
            self._put_back(delivery)
        else:
            delivery.end()


def _charged(error: MailError, connection: SMTPConnection, pool: Pool) -> MailError:
    """*error*, unless the server took the connection for one too many only when its first mail came."""
    if isinstance(error, ServerDisconnected) and not connection.mails and pool.give_up_one(error):
        not_tried = NotTried(str(error))
        not_tried.refused = error.refused
        return not_tried
    return error


async def _is_let_through(delivery: Delivery, before_dot: BeforeDot) -> bool:
    """Wait until the message may be sent. False, and the delivery has ended, where that failed."""
    try:
        await before_dot()
    except Exception as error:  # noqa: BLE001 — the delivery's owner gets it
        delivery.fail(error)
        delivery.end()
        return False
    return True
