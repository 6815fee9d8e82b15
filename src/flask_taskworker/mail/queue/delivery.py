"""Sending queued mail: the built-in task, and what it needs on the worker's loop.

:func:`deliver` is the task; its argument is the mail's id. It loads the mail, hands it to the server over the loop's
pool, records what became of each recipient, and steers its own job: done, failed, or again later. A server that
cannot be reached, or does not let us in, parks the whole :class:`Transport` and counts against no mail.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from email import message_from_bytes, policy
from typing import Any
from weakref import WeakKeyDictionary

from flask import Flask, current_app

from ...client import signalling
from ...core.current_job import running_job
from ...core.mail_config import MailConfig
from ...core.tasks import TaskOptions, TaskRegistry
from ...errors import SnoozeJob, StoreError
from ...signals import email_failed
from ...store.sql import Store, to_duration_ms
from ..envelope import Ending, Envelope
from ..errors import (
    AuthenticationFailed,
    ConnectError,
    DeliveryUnknown,
    HeloRefused,
    MailError,
    RecipientsRefused,
    ServerDisconnected,
    ServerTimeout,
)
from ..message import Message
from ..signals import dispatched, email_dispatched
from ..smtp.connection import Receipt, Server, SMTPConnection
from ..smtp.hosts import Host, local_host, server_of
from ..smtp.lanes import Lanes, Parcel
from ..smtp.pool import Opener, Pool, close_pools, pool_for
from ..smtp.portal import portal
from .queue import DELIVER, QUEUE, MailQueue
from .stored import MailRoom, Settlement, StoredMail, Verdict, verdicts

log = logging.getLogger("flask_taskworker.mail")

FIRST_PARKING_S = 0.25
LONGEST_PARKING_S = 50.0
LOGIN_PARKING_S = 60.0
"""A wrong password does not mend itself, and servers lock accounts out: at most one login a minute."""

PATIENCE_S = 1.0
"""When opening a connection takes longer, mails do not wait for it in the slots of other jobs."""
SLOW_PARKING_S = 5.0

_AGAIN_AFTER_STORE_ERROR_S = 1.0
_SPREAD = 0.1
_LONGEST_SPREAD_S = 5.0
_LOADED_PER_CONNECTION = 16
_MOST_LOADED = 96
_TOO_MANY_RECIPIENTS = 452
_LAST_WORD_S = 5.0
"""How long a mail that is on its way may hold up the shutdown: its server may have taken it."""


class MailHeld(MailError):
    """The connection broke off after the mail was handed over; nobody knows if it arrived, and it must not go twice.

    Look for it in the log of the mail server; ``job.retry()`` sends it again.
    """

    failure_kind = "unknown"


async def deliver(mail_id: str) -> dict[str, str] | None:
    """Send one queued mail. Returns what the server said to each refused recipient; None, which is cheap, for none.

    Raises RecipientsRefused when nobody was accepted, MailHeld when that is unknown and must not be tried again.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    if "mail" not in app.extensions:
        log.error("a queued mail waits: the app %r has no Mail. Call Mail(app) where the worker runs too.", app.name)
        raise SnoozeJob(60)
    return await _postman(app).deliver(app, mail_id)


def register_mail(registry: TaskRegistry) -> None:
    """Make the built-in task known to a TaskWorker."""
    registry.register_built_in(deliver, TaskOptions(queue=QUEUE), DELIVER)


# ---------------------------------------------------------------- the transport


class Parked(MailError):
    """The mail server is left alone for a while. ``delay`` is in seconds."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay


class Ticket:
    """Who waits for a queued mail that is in the lanes."""

    __slots__ = ("answer", "closed", "counted", "outcome")

    def __init__(self) -> None:
        self.answer: asyncio.Future[Receipt | MailError] = asyncio.get_running_loop().create_future()
        self.outcome: Receipt | MailError | None = None
        self.counted = self.closed = False
        """Whether it counts among the unrecorded, and whether nobody waits for it any more."""

    def tell(self, outcome: Receipt | MailError) -> None:
        """The mail has come to its end."""
        self.outcome = outcome
        if not self.answer.done():
            self.answer.set_result(outcome)


class Dispatch(Lanes):
    """Sends queued mails over the pool's connections, and says how each went.

    A mail that the server has taken, and of which that is not recorded, would be sent again if the process died now.
    So there are never more of them than connections: further messages wait, also where the database is slow.
    """

    def __init__(self, pool: Pool, size: int, opener: Opener) -> None:
        super().__init__(pool, size, opener)
        self._room = asyncio.Semaphore(size)

    @property
    def is_held_up(self) -> bool:
        """Whether there is room for no other message until something is recorded."""
        return self._room.locked()

    @asynccontextmanager
    async def sending(self, envelope: Envelope) -> AsyncIterator[Receipt | MailError]:
        """One mail: how it went, which is to be recorded within the block."""
        ticket = Ticket()
        try:
            yield await self._send(Parcel(ticket, envelope))
        finally:
            ticket.closed = True
            self._uncount(ticket)

    async def before_message(self, parcel: Parcel) -> None:
        """Wait until it may be sent without a record of those before it."""
        ticket: Ticket = parcel.owner
        if not ticket.counted:
            await self._room.acquire()
            ticket.counted = True
            if ticket.closed:
                self._uncount(ticket)

    def _uncount(self, ticket: Ticket) -> None:
        if ticket.counted:
            ticket.counted = False
            self._room.release()

    async def _send(self, parcel: Parcel) -> Receipt | MailError:
        """Cancelled while it is on its way, it first waits a little for the server's word."""
        ticket: Ticket = parcel.owner
        self.add((parcel,))
        try:
            return await ticket.answer
        except asyncio.CancelledError:
            if parcel in self._waiting:
                self._waiting.remove(parcel)
                raise
            raise Withdrawn(await self._last_word(ticket)) from None

    def dismiss(self) -> None:
        """Send the mails away that wait for a connection: they come again."""
        while self._waiting:
            self.end(self._waiting.popleft(), _put_off())

    async def _last_word(self, ticket: Ticket) -> Receipt | MailError:
        if ticket.outcome is None:
            # The first future was cancelled with the job.
            ticket.answer = asyncio.get_running_loop().create_future()
            await asyncio.wait({ticket.answer}, timeout=_LAST_WORD_S)
        return ticket.outcome if ticket.outcome is not None else DeliveryUnknown()

    def on_take(self, parcel: Parcel) -> None:
        """Nothing."""

    def on_lane_end(self, error: BaseException | None) -> None:
        """A fault of ours has been told to who waits for the mail; here it is told to us."""
        if error is not None and not isinstance(error, asyncio.CancelledError):
            log.error("this should not happen; please report it", exc_info=error)

    def on_end(self, parcel: Parcel, outcome: Receipt | MailError) -> None:
        """Answer."""
        ticket: Ticket = parcel.owner
        ticket.tell(outcome)


def _tried(parked: Parked) -> ServerDisconnected:
    """What became of a mail that was parked after a try had broken off in which recipients were rejected: that is to
    be recorded, or they would be asked for again. Raises *parked* where nothing was learnt."""
    if not parked.refused:
        raise parked
    error = ServerDisconnected()
    error.refused = parked.refused
    return error


def _put_off() -> Parked:
    return Parked(SLOW_PARKING_S + random.uniform(0, _LONGEST_SPREAD_S))


class Withdrawn(asyncio.CancelledError):
    """The job was cancelled while its mail was on its way, and the mail went as ``outcome`` says."""

    def __init__(self, outcome: Receipt | MailError) -> None:
        super().__init__()
        self.outcome = outcome


class Transport:
    """The way to the server: who opens a connection, and when there is no point in it. On the loop's clock."""

    def __init__(self, on_slow: Callable[[], None] = lambda: None) -> None:
        self._opening = asyncio.Lock()
        self._pause = 0.0
        self._parked_until = 0.0
        self._slow = False
        self._on_slow = on_slow

    def check(self) -> None:
        """Raise Parked while the server is left alone, or lets us wait. No mail's tries are counted."""
        left = self._parked_until - _loop_time()
        if left > 0:
            raise Parked(left + random.uniform(0, min(self._pause, _LONGEST_SPREAD_S)))
        if self._slow:
            raise _put_off()

    async def open(self, server: Server) -> SMTPConnection:
        """Open a connection, one at a time: after a failure the others need not find out for themselves.

        Raises Parked where the server cannot be reached, or does not let us in.
        """
        async with self._opening:
            self.check()
            # During an outage it is not likely that it takes but a moment.
            patience = PATIENCE_S / 10 if self._pause else PATIENCE_S
            slow = asyncio.get_running_loop().call_later(patience, self._note_slow)
            try:
                return await self._open(server)
            finally:
                slow.cancel()
                self._slow = False

    async def _open(self, server: Server) -> SMTPConnection:
        for last in (False, False, True):
            try:
                connection = await SMTPConnection.open(server)
            except MailError as error:
                # A server that took the connection and dropped it is there, and may be luckier at once.
                if last or not isinstance(error, ServerDisconnected) or isinstance(error, ServerTimeout):
                    self._park(error)
                    self.check()
                    raise
            else:
                self._is_back()
                return connection
        raise AssertionError("unreachable")

    def _note_slow(self) -> None:
        self._slow = True
        self._on_slow()

    def _park(self, error: MailError) -> None:
        if not self._pause:
            # The one alarm of this outage.
            log.error("queued mail waits, and none is lost: %s", error)
        self._pause = min(max(FIRST_PARKING_S, self._pause * 3), LONGEST_PARKING_S)
        if isinstance(error, AuthenticationFailed):
            self._pause = LOGIN_PARKING_S
        self._parked_until = _loop_time() + self._pause
        log.info("the mail server is tried again in %.0f s", self._pause)

    def _is_back(self) -> None:
        if self._pause:
            log.warning("the mail server is back; queued mail goes out again")
        self._pause = self._parked_until = 0.0


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


# ---------------------------------------------------------------- the postman


class Postman:
    """Delivers the queued mails of one app, on one loop."""

    def __init__(self, app: Flask) -> None:
        config = app.extensions["mail"].config
        self._store: Store = app.extensions["taskworker"].client.store
        self.room = MailRoom(self._store, self._expects_company)
        self._transport = Transport(self._dismiss)
        self._dispatch: Dispatch | None = None
        self._under_way = 0
        # Whoever has loaded a mail holds its bytes: so no more of them than can soon be sent.
        self._loaded = asyncio.Semaphore(min(config.pool_size * _LOADED_PER_CONNECTION, _MOST_LOADED))

    def _expects_company(self) -> bool:
        return self._under_way > 1 and not (self._dispatch is not None and self._dispatch.is_held_up)

    async def deliver(self, app: Flask, mail_id: str) -> dict[str, str] | None:
        """One try of one mail, and what follows from it."""
        try:
            self._transport.check()
            async with self._loaded:
                self._under_way += 1
                try:
                    mail = await self._see_through(app, mail_id)
                finally:
                    self._under_way -= 1
        except Parked as parked:
            raise SnoozeJob(parked.delay) from None
        if mail.finished_at is None:
            raise SnoozeJob(max(0.0, (mail.next_try_ms - self._store.clock()) / 1000))
        return _ended(mail)

    async def _see_through(self, app: Flask, mail_id: str) -> StoredMail:
        mail = await self._load(app, mail_id)
        go_on = mail.finished_at is None
        while go_on:
            before = mail
            try:
                async with self._try(app, mail) as news:
                    mail = await self._note(app, mail, news)
            except Withdrawn as withdrawn:
                await self._note(app, mail, verdicts(_left(mail), withdrawn.outcome))
                raise
            await _announce(app, before, mail)
            go_on = mail.finished_at is None and _may_go_on_at_once(news)
        return mail

    async def _note(self, app: Flask, mail: StoredMail, news: Mapping[str, Verdict]) -> StoredMail:
        now = self._store.clock()
        config = app.extensions["mail"].config
        mail = mail.after(news, now, lambda: _again_at(config, mail.tries, now))
        await self._record(mail.settlement(news, to_duration_ms(config.keep)))
        return mail

    async def _load(self, app: Flask, mail_id: str) -> StoredMail:
        try:
            mail = await self.room.load(mail_id)
            if not _is_asked_for_again(mail):
                return mail
            now, config = self._store.clock(), app.extensions["mail"].config
            give_up_at = now + to_duration_ms(config.expires)
            await self.room.reopen(mail_id, give_up_at, give_up_at + to_duration_ms(config.keep))
            return await self.room.load(mail_id)
        except StoreError as error:
            log.warning("a queued mail waits: %s", error)
            raise SnoozeJob(_AGAIN_AFTER_STORE_ERROR_S) from error

    @asynccontextmanager
    async def _try(self, app: Flask, mail: StoredMail) -> AsyncIterator[dict[str, Verdict]]:
        """What became of one try, which is to be recorded within the block."""
        envelope = _left(mail)
        state = app.extensions["mail"]
        if not envelope.recipients:
            yield {}  # the process ended before the end of the mail was noted
        elif mail.phase == "dot":
            yield verdicts(envelope, DeliveryUnknown(f"{DeliveryUnknown.__doc__} The process then ended."))
        elif (host := local_host(state, app)) is not None:
            yield await _give_to(host, envelope)
        else:
            # Since this mail was let in, the server may have fallen silent.
            self._transport.check()
            dispatch = self._dispatch_for(state)
            once = self._sending_once(dispatch.pool, mail.id, envelope) if mail.once else None
            async with once or dispatch.sending(envelope) as outcome:
                yield verdicts(envelope, _tried(outcome) if isinstance(outcome, Parked) else outcome)

    @asynccontextmanager
    async def _sending_once(self, pool: Pool, mail_id: str, envelope: Envelope) -> AsyncIterator[Receipt | MailError]:
        try:
            outcome: Receipt | MailError = await pool.deliver(
                envelope, lambda: self._enter_dot(mail_id), lambda: self._transport.open(pool.server)
            )
        except MailError as error:
            outcome = error
        yield outcome

    def _dispatch_for(self, state: Any) -> Dispatch:
        """The lanes to the server that the settings name; new ones when they were changed."""
        server = server_of(state)
        if self._dispatch is None or self._dispatch.pool.server is not server:
            pool = pool_for(server, state.config.pool_size, state.max_emails)
            self._dispatch = Dispatch(pool, state.config.pool_size, lambda: self._transport.open(server))
        return self._dispatch

    def _dismiss(self) -> None:
        if self._dispatch is not None:
            self._dispatch.dismiss()

    async def _enter_dot(self, mail_id: str) -> None:
        """Before the message of a mail that must not go out twice. Raises SnoozeJob where it may have gone already."""
        try:
            entered = await self.room.enter_dot(mail_id)
        except StoreError as error:
            raise SnoozeJob(_AGAIN_AFTER_STORE_ERROR_S) from error
        if not entered:
            raise SnoozeJob(_AGAIN_AFTER_STORE_ERROR_S)

    async def _record(self, settlement: Settlement) -> None:
        """What was sent must be known, or it would be sent again: so until the database takes it."""
        pause = 0.1
        while True:
            try:
                return await self.room.settle(settlement)
            except StoreError as error:
                log.warning("a sent mail could not be recorded; next try in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)


def _left(mail: StoredMail) -> Envelope:
    """What is still to be sent of *mail*."""
    open_recipients = mail.open
    return (
        mail.envelope
        if open_recipients == mail.envelope.recipients
        else replace(mail.envelope, recipients=open_recipients)
    )


def _again_at(config: MailConfig, tries: int, now: int) -> int:
    """When the mail is tried again, in epoch milliseconds."""
    delay = min(config.retry_base * 2 ** min(tries, 30), config.retry_cap) * random.uniform(1 - _SPREAD, 1 + _SPREAD)
    return now + int(delay * 1000)


def _may_go_on_at_once(news: Mapping[str, Verdict]) -> bool:
    """The server took some recipients, and wants the others in another mail."""
    accepted = any(verdict.ending is Ending.ACCEPTED for verdict in news.values())
    return accepted and any(verdict.code == _TOO_MANY_RECIPIENTS for verdict in news.values())


def _is_asked_for_again(mail: StoredMail) -> bool:
    """Whether the job of a mail that ended in vain was put back into its queue by a person, not by a crash.

    Never for a mail that must not go out twice: there only MailJob.retry() says so clearly enough.
    """
    job = running_job()
    in_vain = mail.finished_at is not None and not mail.once and not mail.is_accepted_by_anybody
    return in_vain and job is not None and not job.claim.crashes and not job.claim.failures


def _ended(mail: StoredMail) -> dict[str, str] | None:
    """The result of the job of a mail that is decided. Raises MailHeld or RecipientsRefused."""
    if all(state.ending is Ending.ACCEPTED for state in mail.recipients):
        return None
    if any(state.ending is Ending.UNKNOWN for state in mail.recipients):
        raise MailHeld
    if not mail.is_accepted_by_anybody:
        raise RecipientsRefused({state.address: (state.code or -1, state.text) for state in mail.recipients})
    return mail.refused


async def _give_to(host: Host, envelope: Envelope) -> dict[str, Verdict]:
    arguments = (
        envelope.sender or "<>",
        list(envelope.recipients),
        envelope.data,
        envelope.mail_options,
        envelope.rcpt_options,
    )
    try:
        await asyncio.to_thread(host.sendmail, *arguments)
    except (ConnectError, HeloRefused, AuthenticationFailed) as error:
        raise Parked(FIRST_PARKING_S) from error
    except MailError as error:
        return verdicts(envelope, error)
    return dict.fromkeys(envelope.recipients, Verdict(Ending.ACCEPTED, 250, ""))


# ---------------------------------------------------------------- signals


class SentMessage(Message):
    """A queued mail as the receivers of ``email_dispatched`` see it: read from the bytes that were sent."""

    def __init__(self, envelope: Envelope) -> None:
        parsed = message_from_bytes(envelope.data, policy=policy.default)
        texts = {kind: part for kind in ("plain", "html") if (part := parsed.get_body((kind,))) is not None}
        super().__init__(
            subject=str(parsed["Subject"] or ""),
            recipients=list(envelope.recipients),
            body=_content(texts.get("plain")),
            html=_content(texts.get("html")),
            sender=str(parsed["From"] or envelope.sender),
            mail_options=list(envelope.mail_options),
            rcpt_options=list(envelope.rcpt_options),
        )
        self.msgId = envelope.message_id
        self._data = envelope.data

    def as_bytes(self) -> bytes:
        """What was sent."""
        return self._data


def _content(part: Any) -> str | None:
    return None if part is None else str(part.get_content())


async def _announce(app: Flask, before: StoredMail, after: StoredMail) -> None:
    """Tell the listeners, in a thread: the first acceptance, and the end of those who were given up."""
    if not email_dispatched.receivers and not email_failed.receivers:
        return
    sent = after.is_accepted_by_anybody and not before.is_accepted_by_anybody and email_dispatched.receivers
    failed = after.finished_at is not None and after.refused and email_failed.receivers
    job = running_job()
    if not sent and not failed:
        return

    def tell() -> None:
        with app.app_context():
            if sent:
                dispatched(app, SentMessage(after.envelope))
            if failed and job is not None:
                queued = MailQueue(app, app.extensions["mail"].config).job(job.claim.id)
                recipients = {s.address: s for s in after.recipients if s.ending is not Ending.ACCEPTED}
                signalling.send(email_failed, app, job=queued, recipients=recipients)

    await asyncio.to_thread(tell)


# ---------------------------------------------------------------- the worker's loop

_postmen: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakKeyDictionary[Flask, Postman]] = WeakKeyDictionary()


def _postman(app: Flask) -> Postman:
    loop = asyncio.get_running_loop()
    join_loop()
    postmen = _postmen[loop]
    if app not in postmen:
        postmen[app] = Postman(app)
    return postmen[app]


def join_loop() -> None:
    """Let mail that is sent on the running loop, a worker's, use connections of its own, closed when it ends."""
    loop = asyncio.get_running_loop()
    if loop in _postmen:
        return
    _postmen[loop] = WeakKeyDictionary()
    portal.adopt(loop)
    # The name tells the worker that no job has left this task behind.
    keeper = loop.create_task(_keep_house(), name="taskworker-mail")
    _keepers.add(keeper)
    keeper.add_done_callback(_keepers.discard)


def is_workers_loop(app: Flask) -> bool:
    """Whether the running loop is that of the app's worker."""
    state = app.extensions.get("taskworker")
    return state is not None and state.client.worker_thread is threading.current_thread()


_keepers: set[asyncio.Task[None]] = set()


async def _keep_house() -> None:
    loop = asyncio.get_running_loop()
    try:
        await asyncio.Event().wait()
    finally:
        for postman in _postmen.pop(loop, {}).values():
            postman.room.close()
        await close_pools()
