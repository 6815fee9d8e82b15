"""Several connections of one pool sending side by side, each the next mail together with the message before."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..envelope import Envelope, Reply, without_rejected
from ..errors import DeliveryUnknown, MailError, RecipientsRefused, ServerDisconnected, ServerTimeout
from .connection import Opened, Receipt, SMTPConnection
from .pool import Opener, Pool

_TRIES = 3


class Parcel(NamedTuple):
    """A mail in a lane, and whose it is."""

    owner: Any
    envelope: Envelope
    tries: int = 1
    refused: Mapping[str, Reply] = MappingProxyType({})
    """Who was rejected in a try that broke off, and is not asked for again."""


class Lanes(ABC):
    """Sends parcels over up to *size* connections. For one loop. A subclass says what becomes of each."""

    def __init__(self, pool: Pool, size: int, opener: Opener | None = None) -> None:
        self.pool = pool
        self._size = size
        self._opener = opener
        self._waiting: deque[Parcel] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.busy = 0
        """How many lanes are open."""

    @abstractmethod
    def on_end(self, parcel: Parcel, outcome: Receipt | MailError) -> None:
        """A parcel was taken by the server, or failed."""

    @abstractmethod
    async def before_message(self, parcel: Parcel) -> None:
        """Hold a parcel's message back until it may be sent."""

    @abstractmethod
    def on_take(self, parcel: Parcel) -> None:
        """A parcel has left the line."""

    @abstractmethod
    def on_lane_end(self, error: BaseException | None) -> None:
        """A lane was closed: there was nothing to do, or *error* should not have happened."""

    def add(self, parcels: Iterable[Parcel]) -> None:
        """Put parcels into the line."""
        self._waiting.extend(parcels)
        for _ in range(min(self._size - self.busy, len(self._waiting))):
            self.busy += 1
            lane = asyncio.get_running_loop().create_task(self._lane(), name="taskworker-mail-lane")
            self._tasks.add(lane)
            lane.add_done_callback(self._forget)

    def _forget(self, lane: asyncio.Task[None]) -> None:
        self._tasks.discard(lane)
        if not lane.cancelled():
            lane.exception()  # looked at, so that asyncio does not complain; on_lane_end has it

    async def _lane(self) -> None:
        crash = None
        try:
            while self._waiting:
                await self._take_turn()
        except BaseException as error:
            crash = error
            raise
        finally:
            # Not in the callback: add() in between would count on a lane that takes no more.
            self.busy -= 1
            self.on_lane_end(crash)

    async def _take_turn(self) -> None:
        """Send over one connection, until it is worn out, breaks, or somebody else waits for it."""
        try:
            connection = await self.pool.acquire(self._opener)
        except MailError as error:
            if self._waiting:
                self.end(self._take(), error)
            return
        try:
            await self._use(connection)
        finally:
            self.pool.release(connection)

    async def _use(self, connection: SMTPConnection) -> None:
        on_its_way: tuple[Parcel, Opened] | None = None
        following: Parcel | None = None
        is_first = True
        try:
            while on_its_way is not None or connection.is_usable:
                following = self._following(connection, on_its_way is not None, is_first)
                is_first = False
                if on_its_way is not None:
                    parcel, opened = on_its_way
                    await self.before_message(parcel)
                    ended, begun = await connection.conclude(opened, following.envelope if following else None)
                    self._settle(parcel, ended)
                elif following is not None:
                    begun = await _begin(connection, following)
                else:
                    return
                on_its_way = self._opened(following, begun)
        except BaseException:
            # Cancelled, or a fault of ours: nobody may be left waiting for what was in hand.
            connection.abort()
            if on_its_way is not None:
                self.end(on_its_way[0], _merged(DeliveryUnknown(), on_its_way[1].refused))
            if following is not None and (on_its_way is None or following is not on_its_way[0]):
                self.end(following, ServerDisconnected())
            raise

    def _following(self, connection: SMTPConnection, is_one_on_its_way: bool, is_first: bool) -> Parcel | None:
        if not self._waiting or connection.mails + is_one_on_its_way >= self.pool.max_mails:
            return None
        if self.pool.is_wanted and not is_first:
            return None  # others wait for a connection: one mail a turn
        return self._take() if connection.can_overlap or not is_one_on_its_way else None

    def _take(self) -> Parcel:
        parcel = self._waiting.popleft()
        self.on_take(parcel)
        return parcel

    def _opened(self, parcel: Parcel | None, begun: Opened | MailError | None) -> tuple[Parcel, Opened] | None:
        if parcel is None or begun is None:
            return None
        if isinstance(begun, Opened):
            return parcel, begun
        self._settle(parcel, begun)
        return None

    def _settle(self, parcel: Parcel, outcome: Receipt | MailError) -> None:
        never_again = isinstance(outcome, DeliveryUnknown | ServerTimeout) or parcel.tries >= _TRIES
        if not isinstance(outcome, ServerDisconnected) or never_again:
            self.end(parcel, outcome)
            return
        try:
            envelope, rejected = without_rejected(parcel.envelope, outcome.refused)
        except RecipientsRefused as error:
            self.end(parcel, error)
        else:
            refused = {**parcel.refused, **rejected}
            self._waiting.appendleft(parcel._replace(envelope=envelope, refused=refused, tries=parcel.tries + 1))

    def end(self, parcel: Parcel, outcome: Receipt | MailError) -> None:
        """A parcel has come to its end, with those who were rejected in an earlier try of it."""
        self.on_end(parcel, _merged(outcome, parcel.refused) if parcel.refused else outcome)


def _merged(outcome: Receipt | MailError, refused: Mapping[str, Reply]) -> Receipt | MailError:
    """*outcome* with those who were rejected in an earlier try."""
    if isinstance(outcome, Receipt):
        return Receipt(refused={**refused, **outcome.refused}, reply=outcome.reply)
    outcome.refused = {**refused, **outcome.refused}
    return outcome


async def _begin(connection: SMTPConnection, parcel: Parcel) -> Opened | MailError:
    try:
        return await connection.begin(parcel.envelope)
    except MailError as error:
        return error
