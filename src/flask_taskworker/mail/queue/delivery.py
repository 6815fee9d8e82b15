"""Sending queued mail: the built-in task, and what it needs on the worker's loop.

:func:`deliver` is the task; its argument is the mail's id. It loads the mail, hands it to the server over the loop's
pool, records what became of each recipient, and steers its own job: done, failed, or again later. A server that
cannot be reached, or refuses our login, parks the whole :class:`Transport` and counts against no mail.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from email import message_from_bytes, policy
from typing import Any
from weakref import WeakKeyDictionary

from flask import Flask, current_app

from ...client import signalling
from ...core.current_job import running_job
from ...core.loggers import Logger, get_logger
from ...core.mail_config import MailConfig
from ...core.tasks import TaskOptions, TaskRegistry
from ...errors import SnoozeJob, StoreError
from ...signals import email_failed
from ...store.sql import Store, to_duration_ms
from ...worker.thread_bridge import TimedTask
from ..envelope import Ending, Envelope, Reply
from ..errors import (
    AuthenticationFailed,
    DeliveryUnknown,
    MailError,
    RecipientsRefused,
    ServerDisconnected,
    ServerTimeout,
)
from ..message import Message
from ..signals import dispatched, email_dispatched
from ..smtp.connection import Receipt, SMTPConnection
from ..smtp.hosts import local_host, server_of
from ..smtp.pool import Pool, close_pools, is_turned_away, pool_for
from ..smtp.portal import portal
from ..smtp.sender import Delivery, SmtpSender
from .queue import DELIVER, QUEUE, MailQueue
from .reading import text_of
from .stored import MailStore, StoredMail, verdicts

log: Logger = get_logger("mail")

FIRST_PARKING_S = 0.25
LONGEST_PARKING_S = 50.0
CROWDED_PARKING_S = 2.0
"""Other processes may have all the connections that the server allows: it is asked again soon, without an alarm…"""
CROWDED_PATIENCE_S = 60.0
"""… for this long."""
LOGIN_PARKING_S = 60.0
"""Retrying a rejected login only risks a lockout: at most one login a minute."""

PATIENCE_S = 1.0
"""When opening a connection takes longer, mails do not wait for it in the slots of other jobs."""
SLOW_PARKING_S = 5.0

_AGAIN_AFTER_STORE_ERROR_S = 1.0
_SPREAD = 0.1
_LONGEST_SPREAD_S = 5.0
_LOADED_PER_CONNECTION = 16
_MOST_LOADED = 96
_MOST_TEXT = 10 * 1024 * 1024
_LAST_WORD_S = 5.0
"""How long a mail that is on its way may hold up the shutdown: its server may have taken it."""


class MailHeld(MailError):
    """The connection broke off after the mail was handed over; whether it arrived is unknown, and it must not go twice.

    Look for it in the log of the mail server; ``job.retry()`` sends it again.
    """

    failure_kind = "unknown"


async def deliver(mail_id: str) -> dict[str, str] | None:
    """Send one queued mail. Returns what the server said to each refused recipient; None, which is cheap, for none.

    Raises RecipientsRefused when no recipient was accepted, MailHeld when that is unknown and must not be tried again.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    if "mail" not in app.extensions:
        log.error("a queued mail waits: the app %r has no Mail. Call Mail(app) where the worker runs too.", app.name)
        raise SnoozeJob(60)
    return await _delivery_of(app).deliver(app, mail_id)


def register_mail(registry: TaskRegistry) -> None:
    """Make the built-in task known to a TaskWorker."""
    registry.register_built_in(deliver, TaskOptions(queue=QUEUE), DELIVER)


# ---------------------------------------------------------------- the transport


class Parked(MailError):
    """The mail server is left alone for a while. ``delay`` is in seconds."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay


class Withdrawn(asyncio.CancelledError):
    """The job was cancelled while its mail was on its way, and the mail went as ``outcome`` says."""

    def __init__(self, outcome: Receipt | Exception) -> None:
        super().__init__()
        self.outcome = outcome


class Transport:
    """The way to the server: who opens a connection, and when that is pointless. On the loop's clock."""

    def __init__(self, on_slow: Callable[[], None] = lambda: None) -> None:
        self._opening = asyncio.Lock()
        self._pause = 0.0
        self._parked_until = self._since = 0.0
        self._is_alarmed = False
        self._slow = False
        self._on_slow = on_slow

    def check(self) -> None:
        """Raise Parked while the server is left alone, or lets us wait. No mail's tries are counted."""
        left = self._parked_until - _loop_time()
        if left > 0:
            raise Parked(left + random.uniform(0, min(self._pause, _LONGEST_SPREAD_S)))
        if self._slow:
            raise put_off()

    async def open(self, pool: Pool) -> SMTPConnection:
        """Open a connection, one at a time: after a failure the others need not find out for themselves.

        Raises Parked where the server cannot be reached, or refuses our login; what it said where it only refused
        one connection more than it allows.
        """
        async with self._opening:
            self.check()
            # During an outage it is not likely that it takes but a moment.
            patience = PATIENCE_S / 10 if self._pause else PATIENCE_S
            slow = asyncio.get_running_loop().call_later(patience, self._note_slow)
            try:
                return await self._open(pool)
            finally:
                slow.cancel()
                self._slow = False

    async def _open(self, pool: Pool) -> SMTPConnection:
        for last in (False, False, True):
            try:
                return await SMTPConnection.open(pool.server)
            except MailError as error:
                if pool.is_served or pool.ask_others_to_yield():
                    raise
                # A server that took the connection and dropped it is there, and may be luckier at once.
                if last or not isinstance(error, ServerDisconnected) or isinstance(error, ServerTimeout):
                    self.park(error)
                    self.check()
                    raise
        raise AssertionError("unreachable")

    def _note_slow(self) -> None:
        self._slow = True
        self._on_slow()

    def park(self, error: MailError) -> None:
        """Leave the server alone for a while, which grows from time to time."""
        if self._parked_until > _loop_time():
            return
        is_crowded = is_turned_away(error)
        if not self._pause:
            self._since = _loop_time()
        if not self._is_alarmed and not (is_crowded and _loop_time() - self._since < CROWDED_PATIENCE_S):
            # The one alarm of this outage.
            log.error("queued mail waits, and none is lost: %s", error)
            self._is_alarmed = True
        self._pause = min(max(FIRST_PARKING_S, self._pause * 3), CROWDED_PARKING_S if is_crowded else LONGEST_PARKING_S)
        if isinstance(error, AuthenticationFailed):
            self._pause = LOGIN_PARKING_S
        self._parked_until = _loop_time() + self._pause
        log.info("the mail server is tried again in %.0f s", self._pause)

    def note_success(self) -> None:
        """It has looked at a mail."""
        if self._is_alarmed:
            log.warning("the mail server is back; queued mail goes out again")
        self._pause = self._parked_until = 0.0
        self._is_alarmed = False


def put_off() -> Parked:
    """For mails that wait while a connection is opened slowly: they come again."""
    return Parked(SLOW_PARKING_S + random.uniform(0, _LONGEST_SPREAD_S))


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


# ---------------------------------------------------------------- one app's mails


class SentPlace:
    """A mail's place among those that were sent and are not recorded yet. It is given up at the end of the block."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._is_taken = self._is_over = False

    def __enter__(self) -> SentPlace:
        return self

    async def take(self) -> None:
        """Wait for one; a mail that is sent in several transactions has one for all."""
        if not self._is_taken:
            await self._places.acquire()
            self._is_taken = True
            if self._is_over:
                self._places.release()

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        if self._is_taken:
            self._places.release()


class MailDelivery:
    """Delivers the queued mails of one app, on one loop."""

    def __init__(self, app: Flask) -> None:
        config = app.extensions["mail"].config
        self._store: Store = app.extensions["taskworker"].client.store
        self.mails: MailStore = MailStore(self._store, self._expects_company)
        self._transport = Transport(self._dismiss)
        self._sender: SmtpSender | None = None
        self._under_way = 0
        # A mail that the server has taken, without a record of that, would be sent again if the process died
        # now. So there are never more of them than connections: further messages wait, also where the database is slow.
        self._unrecorded = asyncio.Semaphore(config.pool_size)
        # A loaded mail holds its bytes: so no more of them than can soon be sent.
        self._loaded = asyncio.Semaphore(min(config.pool_size * _LOADED_PER_CONNECTION, _MOST_LOADED))

    def _expects_company(self) -> bool:
        return self._under_way > 1 and not self._unrecorded.locked()

    def _dismiss(self) -> None:
        line = self._sender.line if self._sender is not None else ()
        while line:
            delivery = line.popleft()
            delivery.fail(put_off())
            delivery.end()

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
        mail = await self._load(mail_id)
        go_on = mail.finished_at is None
        while go_on:
            before = mail
            try:
                with SentPlace(self._unrecorded) as place:
                    news = await self._try(app, mail, place)
                    mail = await self._note(app, mail, news)
            except Withdrawn as withdrawn:
                await self._note(app, mail, verdicts(_left(mail), withdrawn.outcome))
                raise
            await _announce(app, before, mail)
            # Whether the server took some recipients, and wants the others in another mail.
            is_unfinished = mail.finished_at is None and len(news) < len(before.open)
            go_on = is_unfinished and any(reply.ending is Ending.ACCEPTED for reply in news.values())
        return mail

    async def _note(self, app: Flask, mail: StoredMail, news: Mapping[str, Reply]) -> StoredMail:
        """Record what a try came to; until the database takes it: what was sent would be sent again."""
        now = self._store.clock()
        config = app.extensions["mail"].config
        mail = mail.after(news, now, _again_at(config, mail.tries, now))
        pause = 0.1
        while True:
            try:
                await self.mails.settle(mail.settlement(news, to_duration_ms(config.keep)))
                return mail
            except StoreError as error:
                log.warning("a sent mail could not be recorded; next try in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _load(self, mail_id: str) -> StoredMail:
        try:
            return await self.mails.load(mail_id)
        except StoreError as error:
            log.warning("a queued mail waits: %s", error)
            raise SnoozeJob(_AGAIN_AFTER_STORE_ERROR_S) from error

    async def _try(self, app: Flask, mail: StoredMail, place: SentPlace) -> dict[str, Reply]:
        """What became of one try, which is to be recorded before *place* is given up."""
        envelope = _left(mail)
        state = app.extensions["mail"]
        if not envelope.recipients:
            return {}  # the process ended before the end of the mail was noted
        if mail.phase == "dot":
            return verdicts(envelope, DeliveryUnknown(f"{DeliveryUnknown.__doc__} The process then ended."))
        if (host := local_host(state, app)) is not None:
            try:
                outcome: Receipt | MailError = await host.asend(envelope)
            except MailError as error:
                outcome = error
            return verdicts(envelope, outcome)
        # Since this mail was admitted, the server may have fallen silent.
        self._transport.check()
        return verdicts(envelope, self._tried(await self._send(state, mail, envelope, place)))

    def _tried(self, outcome: Receipt | Exception) -> Receipt | MailError:
        """What is to be recorded of a try. Raises Parked where the server was not reached and nothing was learnt."""
        if isinstance(outcome, MailError) and (outcome.of_transport or isinstance(outcome, Parked)):
            if not isinstance(outcome, Parked):
                self._transport.park(outcome)
            if outcome.refused:
                # Recipients who were rejected before would be asked for again.
                error = ServerDisconnected(str(outcome))
                error.refused = outcome.refused
                return error
            if isinstance(outcome, Parked):
                raise outcome
            self._transport.check()
            raise put_off()
        if not isinstance(outcome, Receipt | MailError):
            raise outcome
        if isinstance(outcome, Receipt) or not isinstance(outcome, ServerDisconnected):
            self._transport.note_success()
        return outcome

    async def _send(self, state: Any, mail: StoredMail, envelope: Envelope, place: SentPlace) -> Receipt | Exception:
        """One transaction, and how it went."""

        async def before_dot() -> None:
            await place.take()
            if mail.once:
                await self._enter_dot(mail.id)

        def on_end(delivery: Delivery) -> None:
            if not ended.done():
                ended.set_result(None)

        sender = self._sender_for(state)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        delivery = Delivery(envelope, before_dot=before_dot, on_end=on_end, is_stepwise=True)
        sender.add((delivery,))
        try:
            await ended
        except asyncio.CancelledError:
            if delivery in sender.line:
                sender.line.remove(delivery)
                raise
            # It is on its way: the server's word is worth a moment.
            if delivery.outcome is None:
                ended = asyncio.get_running_loop().create_future()
                await asyncio.wait({ended}, timeout=_LAST_WORD_S)
            raise Withdrawn(delivery.outcome or DeliveryUnknown()) from None
        assert delivery.outcome is not None
        return delivery.outcome

    def _sender_for(self, state: Any) -> SmtpSender:
        """The connections to the server that the settings name; new ones when they were changed."""
        server = server_of(state)
        if self._sender is None or self._sender.pool.server is not server:
            pool = pool_for(server, state.config.pool_size, state.max_emails)
            self._sender = SmtpSender(
                pool, state.config.pool_size, lambda: self._transport.open(pool), on_idle=_log_crash
            )
        return self._sender

    async def _enter_dot(self, mail_id: str) -> None:
        """Before the message of a mail that must not go out twice. Raises SnoozeJob where it may have gone already."""
        try:
            entered = await self.mails.enter_dot(mail_id)
        except StoreError as error:
            raise SnoozeJob(_AGAIN_AFTER_STORE_ERROR_S) from error
        if not entered:
            raise SnoozeJob(_AGAIN_AFTER_STORE_ERROR_S)


def _log_crash(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, asyncio.CancelledError):
        log.error("this should not happen; please report it", exc_info=error)


def _left(mail: StoredMail) -> Envelope:
    """What is still to be sent of *mail*."""
    left = mail.open
    return mail.envelope if left == mail.envelope.recipients else replace(mail.envelope, recipients=left)


def _again_at(config: MailConfig, tries: int, now: int) -> int:
    """When the mail is tried again, in epoch milliseconds."""
    delay = min(config.retry_base * 2 ** min(tries, 30), config.retry_cap) * random.uniform(1 - _SPREAD, 1 + _SPREAD)
    return now + int(delay * 1000)


def _ended(mail: StoredMail) -> dict[str, str] | None:
    """The result of the job of a mail that is decided. Raises MailHeld or RecipientsRefused."""
    if all(state.ending is Ending.ACCEPTED for state in mail.recipients):
        return None
    if any(state.ending is Ending.UNKNOWN for state in mail.recipients):
        raise MailHeld
    if not mail.is_accepted_by_anybody:
        raise RecipientsRefused({state.address: (state.code or -1, state.text) for state in mail.recipients})
    return mail.refused


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
        self.msgId: str = envelope.message_id
        self._data = envelope.data

    def as_bytes(self) -> bytes:
        """What was sent."""
        return self._data


def _content(part: Any) -> str | None:
    return None if part is None else text_of(part, _MOST_TEXT)


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
                try:
                    message = SentMessage(after.envelope)
                except Exception:
                    log.exception("mail %s was sent; receivers of email_dispatched get none of it", after.id)
                else:
                    dispatched(app, message)
            if failed and job is not None:
                queued = MailQueue(app, app.extensions["mail"].config).job(job.claim.id)
                recipients = {s.address: s for s in after.recipients if s.ending is not Ending.ACCEPTED}
                signalling.send(email_failed, app, job=queued, recipients=recipients)

    await asyncio.to_thread(tell)


# ---------------------------------------------------------------- the worker's loop

_deliveries: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakKeyDictionary[Flask, MailDelivery]] = WeakKeyDictionary()


def _delivery_of(app: Flask) -> MailDelivery:
    loop = asyncio.get_running_loop()
    join_loop()
    deliveries = _deliveries[loop]
    if app not in deliveries:
        deliveries[app] = MailDelivery(app)
    return deliveries[app]


def join_loop() -> None:
    """Let mail that is sent on the running loop, a worker's, use connections of its own, closed when it ends."""
    loop = asyncio.get_running_loop()
    if loop in _deliveries:
        return
    _deliveries[loop] = WeakKeyDictionary()
    portal.adopt(loop)
    # The name tells the worker that no job has left this task behind.
    keeper = TimedTask(_keep_house(), loop=loop, name="taskworker-mail")
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
        for delivery in _deliveries.pop(loop, {}).values():
            delivery.mails.close()
        await close_pools()
