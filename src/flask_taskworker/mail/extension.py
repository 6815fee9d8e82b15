"""Mail and Connection: Flask-Mail's interface."""

from __future__ import annotations

import asyncio
import sys
import time
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

from flask import Flask, current_app, has_app_context

from ..client.apps import as_app
from ..client.sessions import CallerTransaction, is_async
from ..commands import add_commands, mail_commands
from ..core.batches import Batch, When
from ..core.clock import as_timedelta
from ..core.jobs import Job
from ..core.loggers import Logger, get_logger
from ..core.mail_config import MailConfig
from ..core.tasks import EnqueueOptions, place_in_flow
from ..errors import AppError
from .compose.fields import sanitize_address, sanitize_addresses
from .compose.prepare import Prepared, not_a_message, prepare
from .envelope import SendResult
from .errors import BadHeaderError, MailError
from .message import Defaults, Message, use_defaults
from .queue.delivery import is_workers_loop, join_loop
from .queue.queue import QUEUE, MailJob, MailQueue, QueueOptions, SuppressedMails
from .signals import dispatched, email_dispatched, foreign_module
from .smtp.bulk import CHUNK, BulkSending, Numbered, aeach, each
from .smtp.connection import Receipt
from .smtp.hosts import (
    Host,
    MailHost,
    MemoryHost,
    SMTPHost,
    foreign_receipt,
    is_suppressed,
    local_host,
    result_of,
    server_of,
)
from .smtp.pool import pool_for
from .smtp.portal import portal
from .smtp.server import check_tls

log: Logger = get_logger("mail")

_NOT_CONFIGURED = "The current application was not configured with Flask-Mail. Call Mail(app) or mail.init_app(app)."
_ASIDE_ABOVE = 256 * 1024
"""Octets of attachments above which a message is written in a thread, not on the caller's loop."""

_FLUSH_AFTER_S = 0.02


class Connection:
    """One connection to the mail host, for several mails: ``with mail.connect() as conn``, or ``async with``.

    ``host`` is None until it is entered and where the app suppresses mail; else it has ``sendmail`` and ``quit``.
    Override :meth:`configure_host` to talk to something else.
    """

    def __init__(self, mail: Any) -> None:
        self.mail = mail
        self.host: Any = None
        self.num_emails: int = 0
        """How many mails have gone over it since it was last opened."""
        self._app: Flask | None = None
        self._last_result: SendResult | None = None
        self._is_pooled = False
        self._is_worn = False

    def __enter__(self) -> Self:
        self.host = None if self._is_suppressed else self.configure_host()
        self.num_emails = 0
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.host is not None and not self._is_worn:
            self._quit()

    async def __aenter__(self) -> Self:
        if is_workers_loop(self._find_app()):
            join_loop()
        if self._is_suppressed:
            self.host = None
        else:
            await self._aconfigure()
        self.num_emails = 0
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(self.host, MailHost) and not self._is_worn:
            await self.host.aquit()
        elif self.host is not None and not self._is_worn:
            await asyncio.to_thread(self._quit)

    def configure_host(self) -> Host:
        """Connect to the mail host. Raises what :mod:`smtplib` and the system would: see ``mail.errors``."""
        host = self._make_host()
        if isinstance(host, SMTPHost):
            host.open()
        return host

    def send(self, message: Any, envelope_from: Any = None) -> SendResult:
        """Check *message* and send it. ``envelope_from`` is the address for MAIL FROM, where bounces go.

        Raises AssertionError without recipients or sender, BadHeaderError for a field that would break a header,
        and the kinds of smtplib.SMTPException, which are OSErrors too, where the server does not take it for
        anybody. Where it takes it for some, the others are in the result's ``refused``.
        """
        app = self._find_app()
        prepared = self._prepare(message, envelope_from)
        if self._is_worn:
            self.host, self._is_worn = self.configure_host(), False
        if self.host is None or isinstance(self.host, MailHost):
            receipt = (self.host or MemoryHost()).send(prepared.envelope)
        else:
            receipt = foreign_receipt(prepared.envelope, self.host.sendmail(*_five(prepared, message)))
        return self._sent(app, message, prepared, receipt)

    async def asend(self, message: Any, envelope_from: Any = None) -> SendResult:
        """:meth:`send`, without blocking the event loop."""
        app = self._find_app()
        data = [getattr(attachment, "data", None) for attachment in getattr(message, "attachments", None) or ()]
        if sum(len(content) for content in data if isinstance(content, Sized)) > _ASIDE_ABOVE:
            prepared = await asyncio.to_thread(self._prepare, message, envelope_from)
        else:
            prepared = self._prepare(message, envelope_from)
        if self._is_worn:
            await self._aconfigure()
        if self.host is None or isinstance(self.host, MailHost):
            receipt = await (self.host or MemoryHost()).asend(prepared.envelope)
        else:
            returned = await asyncio.to_thread(self.host.sendmail, *_five(prepared, message))
            receipt = foreign_receipt(prepared.envelope, returned)
        return self._sent(app, message, prepared, receipt)

    def send_message(self, *args: Any, **kwargs: Any) -> SendResult:
        """``send(Message(…))``."""
        return self.send(Message(*args, **kwargs))

    async def _aconfigure(self) -> None:
        if type(self).configure_host is not Connection.configure_host:
            self.host = await asyncio.to_thread(self.configure_host)
        else:
            host = self._make_host()
            await host.aopen()
            self.host = host
        self._is_worn = False

    def _prepare(self, message: Any, envelope_from: Any) -> Prepared:
        state = self.mail
        try:
            return prepare(
                message,
                now=time.time(),
                ascii_attachments=bool(state.ascii_attachments),
                envelope_from=envelope_from,
                redirect_to=state.config.redirect_to,
            )
        except BadHeaderError as error:
            theirs = foreign_module(message)
            if theirs is None:
                raise
            # The same error, which code written for Flask-Mail catches too.
            both = type(type(error).__name__, (type(error), theirs.BadHeaderError), {})
            raise both(str(error)) from error

    def _find_app(self) -> Flask:
        if self._app is not None:
            return self._app
        if not has_app_context():
            raise AppError("Mail is sent for an app, and none is current. Push its context: with app.app_context(): …")
        return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]

    def _sent(self, app: Flask, message: Any, prepared: Prepared, receipt: Receipt) -> SendResult:
        self.num_emails += 1
        if self.num_emails == self.mail.max_emails:
            self.num_emails = 0
            # A new connection is made when another mail follows, not before.
            if self.host is not None and not self._is_pooled:
                self._is_worn = True
                self._quit()
        self._last_result = _announced(app, message, result_of(prepared.envelope, receipt, message))
        return self._last_result

    @property
    def _is_suppressed(self) -> bool:
        return is_suppressed(self.mail, self._app or (current_app if has_app_context() else None))

    def _quit(self) -> None:
        try:
            self.host.quit()
        except (MailError, OSError) as error:
            log.debug("the mail host did not say goodbye: %s", error)

    def _make_host(self) -> MailHost:
        state = self.mail
        pool_size = state.config.pool_size if self._is_pooled else None
        return local_host(state, self._find_app()) or SMTPHost(
            server_of(state), pool_size=pool_size, max_mails=state.max_emails
        )


def _five(prepared: Prepared, message: Any) -> tuple[Any, ...]:
    """The arguments of ``sendmail``, by position, as Flask-Mail gave them."""
    sender = sanitize_address(prepared.sender) if prepared.envelope.sender else "<>"
    recipients = sanitize_addresses(prepared.send_to)
    return sender, recipients, prepared.envelope.data, message.mail_options, message.rcpt_options


def _announced(app: Flask, message: Any, result: SendResult) -> SendResult:
    if result.refused:
        log.warning("mail %s was refused for %s", result.message_id, ", ".join(result.refused))
    dispatched(app, message)
    return result


class _MailMixin:
    """What ``Mail`` and the state in ``app.extensions["mail"]`` have in common."""

    @contextmanager
    def record_messages(self) -> Iterator[list[Any]]:
        """Record the messages that are sent, or would be, in the whole process.

        For example::

            with mail.record_messages() as outbox:
                mail.send(message)
            assert outbox[0].subject == "testing"
        """
        outbox: list[Any] = []

        def record(app: Flask, message: Any) -> None:
            outbox.append(message)

        with email_dispatched.connected_to(record):
            yield outbox

    def send(self, message: Any) -> SendResult:
        """Send *message* now, over a kept connection. Raises as :meth:`Connection.send` and when it cannot connect."""
        connection = self._connect_for_one()
        if not hasattr(message, "send"):
            raise not_a_message(message)
        with connection:
            result = message.send(connection)
        # Flask-Mail's own messages, and overriding ones, return nothing.
        result = result if isinstance(result, SendResult) else connection._last_result
        return result if result is not None else SendResult(message_id=str(message.msgId), message=message)

    async def asend(self, message: Any) -> SendResult:
        """:meth:`send`, from any event loop, without blocking it."""
        async with self._connect_for_one() as connection:
            return await connection.asend(message)

    def send_message(self, *args: Any, **kwargs: Any) -> SendResult:
        """``send(Message(…))``."""
        return self.send(Message(*args, **kwargs))

    def connect(self) -> Connection:
        """One connection for several mails. Raises RuntimeError where the app has no Mail, or no app is current."""
        app = getattr(self, "app", None)
        if app is None and not has_app_context():
            raise AppError("Mail without an app needs the current one. Push its context: with app.app_context(): …")
        app = app or current_app._get_current_object()  # type: ignore[attr-defined]
        connection = Connection(self._settings(app))
        connection._app = app
        return connection

    def _settings(self, app: Flask) -> Any:
        state = app.extensions.get("mail")
        if isinstance(state, _Mail):
            return state
        if state is None:
            raise AppError(_NOT_CONFIGURED)
        raise AppError(
            f"app.extensions['mail'] of the app {app.name!r} is {type(state).__module__}'s. Two Mail extensions cannot "
            "share an app: remove the other one; its messages are taken here, too."
        )

    def send_many(self, messages: Iterable[Any]) -> list[SendResult]:
        """Send many messages now, over MAIL_POOL_SIZE connections at once; results in the order given.

        A message that cannot be sent has its error in its result. Raises only if the server cannot be reached for
        the first one.
        """
        batch = _Batch(self._connect_for_one())
        if not batch.is_bulk:
            return [result for message in each(messages) for result in batch.send_one(message)]
        run = portal.run(batch.begin())
        try:
            for message in each(messages):
                if batch.add(message):
                    batch.settle(portal.run(run.step(batch.take())))
            batch.settle(portal.run(run.step(batch.take())))
            batch.settle(portal.run(run.finish()))
        finally:
            batch.settle(portal.run(run.stop()))
        return batch.in_order()

    async def asend_many(self, messages: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[SendResult]:
        """Send many messages over MAIL_POOL_SIZE connections at once; results as they come.

        ``messages`` may be a generator of a million: only some hundred are held at a time. Leaving the loop stops
        after the mails that are on their way.
        """
        batch = _Batch(self._connect_for_one())
        if not batch.is_bulk:
            async for message in aeach(messages):
                for result in await asyncio.to_thread(batch.send_one, message):
                    yield result
            return
        if is_workers_loop(batch.app):
            join_loop()
        run = await portal.arun(batch.begin())
        try:
            async for message in aeach(messages):
                if batch.add(message):
                    batch.settle(await portal.arun(run.step(batch.take())))
                for result in batch.take_results():
                    yield result
            batch.settle(await portal.arun(run.step(batch.take())))
            batch.settle(await portal.arun(run.finish()))
        finally:
            batch.settle(await portal.arun(run.stop()))
        for result in batch.take_results():
            yield result

    def send_later(
        self,
        message: Any,
        *,
        delay: float | timedelta | None = None,
        queue: str = QUEUE,
        priority: int = 0,
        session: Any = None,
        once: bool = False,
        uid: str | None = None,
        batch: Batch | None = None,
        after: Job[Any] | Batch | Sequence[Job[Any] | Batch] | None = None,
        when: When | None = None,
    ) -> MailJob:
        """Store *message* as a job, which the app's worker sends; durable when it returns.

        The message is checked and written now, so that errors come here and every try sends the same bytes.
        ``delay``: seconds or a timedelta. ``priority``: higher goes first. ``session``: an SQLAlchemy session, whose
        commit decides. ``once``: never hand it over a second time; where it is unknown whether it arrived, hold it.
        ``uid``: the job's own name, so that a repeat never doubles the mail. ``batch``, ``after``, ``when``: as in
        ``task.using(…)``.

        Raises what :meth:`send` raises for a message that is wrong; AppError without a TaskWorker on the app;
        MessageTooLarge, NotAccepted, or OutcomeUnknown when the commit got no answer.
        """
        flow = {"when": when, **place_in_flow(batch, after)}
        options = _queue_options(delay, queue, priority, session, once, uid, **flow)
        return self._put([message], options)[0]

    async def asend_later(self, message: Any, **options: Any) -> MailJob:
        """:meth:`send_later`, without blocking the event loop. ``session`` may be an AsyncSession."""
        session = options.get("session") or getattr(options.get("batch"), "session", None)
        if session is None:
            return cast(MailJob, await asyncio.to_thread(partial(self.send_later, message, **options)))
        if is_async(session):
            return cast(
                MailJob, await session.run_sync(lambda inner: self.send_later(message, **{**options, "session": inner}))
            )
        return self.send_later(message, **options)

    def send_later_many(
        self,
        messages: Iterable[Any],
        *,
        delay: float | timedelta | None = None,
        queue: str = QUEUE,
        priority: int = 0,
        session: Any = None,
        once: bool = False,
        batch: Batch | None = None,
        after: Job[Any] | Batch | Sequence[Job[Any] | Batch] | None = None,
        when: When | None = None,
    ) -> list[MailJob]:
        """Store many messages in one transaction: all or none. An attachment that they share is stored once.

        Options and errors as for :meth:`send_later`.
        """
        flow = {"when": when, **place_in_flow(batch, after)}
        return self._put(messages, _queue_options(delay, queue, priority, session, once, None, **flow))

    def get_job(self, job_id: int) -> MailJob:
        """The job of a queued mail by its number. Raises JobNotFound, also for the jobs of other tasks."""
        connection = self.connect()
        return MailQueue(connection._find_app(), connection.mail.config).job(job_id)

    def _put(self, messages: Iterable[Any], options: QueueOptions) -> list[MailJob]:
        connection = self.connect()
        app, state = connection._find_app(), connection.mail
        mails = [(message, connection._prepare(message, None)) for message in each(messages)]
        if is_suppressed(state, app):
            return _recorded(app, mails, options.enqueue)
        return MailQueue(app, state.config).put(mails, options) if mails else []

    def _connect_for_one(self) -> Connection:
        connection = self.connect()
        connection._is_pooled = True
        return connection


def _queue_options(
    delay: float | timedelta | None, queue: str, priority: int, session: Any, once: bool, uid: str | None, **flow: Any
) -> QueueOptions:
    period = None if delay is None else as_timedelta(delay, "delay")
    enqueue = EnqueueOptions(delay=period, queue=queue, priority=priority, session=session, uid=uid, **flow)
    return QueueOptions(enqueue=enqueue, once=bool(once))


def _recorded(app: Flask, mails: list[tuple[Any, Prepared]], options: EnqueueOptions) -> list[MailJob]:
    """An app that suppresses mail records it: at once, or when the session commits. It needs no database."""

    def record() -> None:
        for message, _ in mails:
            dispatched(app, message)

    if options.session is None:
        record()
    else:
        CallerTransaction(options.session).after_commit(record)
    now = int(time.time() * 1000)
    return [SuppressedMails(prepared.envelope.recipients, now, options).job() for _, prepared in mails]


class _Batch:
    """The caller's side of a bulk run: prepares messages in chunks, and keeps whose result is whose."""

    def __init__(self, connection: Connection) -> None:
        state = connection.mail
        self._connection = connection
        self.app = connection._find_app()
        self._chunk: list[Numbered] = []
        self._results: dict[int, SendResult] = {}
        self._count = 0
        self._flushed_at = time.monotonic()
        self._chunk_size = 1
        own_host = type(connection).configure_host is Connection.configure_host
        self.is_bulk = own_host and state.config.backend == "smtp" and not connection._is_suppressed

    async def begin(self) -> BulkSending:
        """Make the run, on the loop that it will stay on."""
        state = self._connection.mail
        pool = pool_for(server_of(state), state.config.pool_size, state.max_emails)
        return BulkSending(pool, state.config.pool_size)

    def add(self, message: Any) -> bool:
        """Prepare *message*; whether it is time to hand the chunk over."""
        number = self._count
        self._count += 1
        try:
            prepared = self._connection._prepare(message, None)
        except Exception as error:  # noqa: BLE001 — a subclass of Message may raise anything
            self._results[number] = _unsendable(message, error)
            return False
        self._chunk.append(Numbered(number, message, prepared.envelope))
        # The first goes alone, so that a server that is away is noticed; a slow generator's wait for no full chunk.
        return len(self._chunk) >= self._chunk_size or time.monotonic() - self._flushed_at > _FLUSH_AFTER_S

    def take(self) -> list[Numbered]:
        """The chunk, which starts again."""
        chunk, self._chunk = self._chunk, []
        self._chunk_size = min(2 * self._chunk_size, CHUNK)
        return chunk

    def settle(self, ended: list[Numbered]) -> None:
        """Note how mails ended, and announce those that were sent."""
        self._flushed_at = time.monotonic()
        for number, message, _, result in ended:
            assert result is not None
            self._results[number] = result
            if result.error is None:
                _announced(self.app, message, result)

    def take_results(self) -> list[SendResult]:
        """What is known by now, in no order."""
        results, self._results = self._results, {}
        return list(results.values())

    def in_order(self) -> list[SendResult]:
        """Everything, in the order given."""
        return [self._results[number] for number in range(self._count)]

    def send_one(self, message: Any) -> list[SendResult]:
        """Without a bulk: suppressed, another backend, or a host of the user's own."""
        try:
            with self._connection as connection:
                return [connection.send(message)]
        except (OSError, UnicodeError) as error:  # MailError is an OSError, as smtplib's are
            return [_unsendable(message, error)]


def _unsendable(message: Any, error: Exception) -> SendResult:
    known = error if isinstance(error, MailError) else MailError(str(error))
    return SendResult(message_id=str(getattr(message, "msgId", "")), error=known, message=message)


class _Mail(_MailMixin):
    """One app's mail settings, in ``app.extensions["mail"]``.

    The attributes may be changed at any time; the next connection and message follow them.
    """

    def __init__(self, config: MailConfig) -> None:
        self.server: str = config.server
        self.username: str | None = config.username
        self.password: str | None = config.password
        self.port: int = config.port
        self.use_tls: bool = config.use_tls
        self.use_ssl: bool = config.use_ssl
        self.default_sender: Any = config.default_sender
        self.debug: int = config.debug
        self.max_emails: int | None = config.max_emails
        self.suppress: bool = config.suppress
        self.ascii_attachments: bool = config.ascii_attachments
        self.config = config
        self.outbox: list[Any] = []

    def __repr__(self) -> str:
        return f"<mail settings for {self.server} port {self.port}>"


class Mail(_MailMixin):
    """The extension: ``Mail(app)``, or ``mail = Mail()`` and ``mail.init_app(app)``."""

    def __init__(self, app: Flask | None = None) -> None:
        self.app: Flask | None = None if app is None else as_app(app)
        self.state: _Mail | None = None if self.app is None else self.init_app(self.app)
        """The settings, as in ``app.extensions["mail"]``, of the app given to the constructor."""

    def init_mail(self, config: Any, debug: bool | int = False, testing: bool = False) -> _Mail:
        """The settings that *config*, a mapping with ``MAIL_*`` keys, gives. Raises ConfigError."""
        settings = MailConfig.from_mapping(config, debug=debug, testing=testing)
        check_tls(settings)
        return _Mail(settings)

    def init_app(self, app: Flask) -> _Mail:
        """Read the app's ``MAIL_*`` configuration and register the settings, which are returned, with it.

        Raises ConfigError for a wrong value, ArgumentsError for anything but a Flask app.
        """
        app = as_app(app)
        state = self.init_mail(app.config, app.debug, app.testing)
        earlier = app.extensions.get("mail")
        if earlier is not None and not isinstance(earlier, _Mail):
            warnings.warn(
                f"The app {app.name!r} has a {type(earlier).__module__} Mail already; both want "
                "app.extensions['mail']. Remove one: the later takes over.",
                stacklevel=3,
            )
        for key, meant in MailConfig.misspelled_keys(app.config).items():
            log.warning("The configuration of the app %r has %s. Did you mean %s?", app.import_name, key, meant)
        app.extensions["mail"] = state
        add_commands(app, mail_commands, "mail", "Give the app's own group another name.")
        return state

    def __getattr__(self, name: str) -> Any:
        # As in Flask-Mail: the state's attributes, and None for any other name. Dunders are for Python, not for us.
        if name.startswith("__") or name in ("state", "app"):
            raise AttributeError(name)
        return getattr(self.state, name, None)


def _defaults(required: bool) -> Defaults | None:
    try:
        app: Flask | None = current_app._get_current_object()  # type: ignore[attr-defined]
    except RuntimeError:
        app = None
    state: Defaults | None = app.extensions.get("mail") if app is not None else None
    if state is not None or not required:
        return state
    if app is not None:
        raise AppError(_NOT_CONFIGURED)
    raise AppError(
        "A message without a sender takes MAIL_DEFAULT_SENDER of the current app, and none is current. "
        "Give sender=…, or push a context: with app.app_context(): …"
    )


use_defaults(_defaults)


def install_as_flask_mail() -> None:
    """Let ``import flask_mail`` give this package, for code that cannot be changed. Call it before that import.

    Raises AppError if the real Flask-Mail is imported already: then two kinds of messages would be about.
    """
    ours = sys.modules["flask_taskworker.mail"]
    if sys.modules.get("flask_mail", ours) is not ours:
        raise AppError("flask_mail is imported already. Call install_as_flask_mail() before anything imports it.")
    sys.modules["flask_mail"] = ours


__all__ = ["Connection", "Mail", "_Mail", "_MailMixin", "install_as_flask_mail"]
