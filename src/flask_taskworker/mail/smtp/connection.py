"""SMTP: one connection that can deliver mails.

Everything here is a coroutine and stays on the loop on which the connection was opened; :mod:`.portal` is the way
there from threads without one. A mail goes out in two round trips where the server offers PIPELINING (``RSET`` where
needed, ``MAIL``, all ``RCPT``, ``DATA``; then the message), else command by command.

A connection whose replies are not all paired with their commands, after a time-out, a cancellation, an unasked line
or a drop, is closed and never used again.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import aiosmtplib
from aiosmtplib.response import SMTPResponse

from ...errors import ConfigError
from ..compose.mime import to_seven_bit, wire_form
from ..envelope import Envelope, Reply
from ..errors import (
    AuthenticationFailed,
    CertificateError,
    ConnectError,
    ConnectionRefused,
    ConnectTimeout,
    DataRefused,
    DeliveryUnknown,
    HeloRefused,
    HostNotFound,
    MailError,
    NotOffered,
    RecipientsRefused,
    SenderRefused,
    ServerDisconnected,
    ServerTimeout,
)
from . import pipelining
from .pipelining import DialogueBroken, PipeliningProtocol, PipeliningSMTP

log = logging.getLogger("flask_taskworker.mail")

_QUIT_S = 1.0
_RSET_AFTER_S = 1.0
_GO_AHEAD = 354
_CLOSING = 421

E = TypeVar("E", bound=MailError)
BeforeDot = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How to reach the mail server and who we are there."""

    hostname: str
    port: int
    use_tls: bool = False
    """Require STARTTLS."""

    use_ssl: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    data_timeout: float = 600.0
    verify: bool = True
    cafile: str | None = None
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    trace: bool = False

    def __str__(self) -> str:
        return f"{self.hostname} port {self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the server said to a mail that it took for at least one recipient."""

    refused: Mapping[str, Reply]
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A mail whose sender and recipients the server has taken, and whose message it waits for."""

    envelope: Envelope
    data: bytes
    refused: Mapping[str, Reply]


class SMTPConnection:
    """A connection to one server: :meth:`open` it, :meth:`deliver` mails one after the other, :meth:`quit`."""

    def __init__(self, server: Server, client: aiosmtplib.SMTP) -> None:
        self.server = server
        self.mails = 0
        self._client = client
        self._offers: frozenset[str] = frozenset()
        self._reset_first = False
        self._used_at = 0.0

    @classmethod
    async def open(cls, server: Server) -> SMTPConnection:
        """Connect, start TLS and log in as *server* says. Raises ConnectError and its kinds, NotOffered,
        HeloRefused or AuthenticationFailed."""
        self = cls(server, await _client(server))
        try:
            await self._guarded(self._client.connect(), "connect to", _connect_error)
            await self._guarded(self._greet(), "greet", _dialogue_error)
            if server.username and server.password:
                await self._log_in()
        except BaseException as error:
            self.abort()
            if isinstance(error, MailError):
                error.of_transport = True
            raise
        self._offers = frozenset(self._client.esmtp_extensions)
        loop = asyncio.get_running_loop()
        self._used_at = loop.time()
        _connections.setdefault(loop, set()).add(self)
        return self

    @property
    def tls(self) -> str | None:
        """The version of TLS that is spoken, such as "TLSv1.3"; None in clear text."""
        secured = self._client.get_transport_info("ssl_object")
        return None if secured is None else str(secured.version())

    @property
    def is_usable(self) -> bool:
        """Whether it is still there and every reply was paired."""
        return self._client.is_connected

    def idle_since(self) -> float:
        """The loop's time of its last use."""
        return self._used_at

    async def deliver(self, envelope: Envelope, before_dot: BeforeDot | None = None) -> Receipt:
        """Hand *envelope* to the server.

        ``before_dot`` is awaited when recipients were accepted, before the message is sent. Raises SenderRefused,
        RecipientsRefused or DataRefused, after which the connection can be used; ServerDisconnected or ServerTimeout
        where nothing was sent; DeliveryUnknown where the message was sent and the reply did not come.
        """
        opened = await self.begin(envelope)
        if before_dot is not None:
            try:
                await before_dot()
            except BaseException:
                self.abort()  # the server waits for a message that will not come
                raise
        receipt, _ = await self.conclude(opened)
        if isinstance(receipt, MailError):
            raise receipt
        return receipt

    @property
    def can_overlap(self) -> bool:
        """Whether the next mail may be begun together with the message of the one before."""
        return "pipelining" in self._offers and isinstance(self._client.protocol, PipeliningProtocol)

    async def begin(self, envelope: Envelope) -> Opened:
        """MAIL, RCPT and DATA. Raises as :meth:`deliver`, but never DeliveryUnknown."""
        commands, data = self._commands(envelope)
        first = 0
        if self._reset_first or asyncio.get_running_loop().time() - self._used_at > _RSET_AFTER_S:
            commands.insert(0, b"RSET\r\n")
            first = 1
        self._reset_first = True
        replies: list[SMTPResponse] = []
        try:
            replies = await self._converse(commands)
            if first and not _is_ok(replies[0]):
                self.abort()  # the last mail's envelope may still be open
                raise ServerDisconnected(None, replies[0].code, replies[0].message)
            return Opened(envelope=envelope, data=data, refused=await self._judge(envelope, replies[first:]))
        except ServerDisconnected as error:
            raise _with(_refused_before(envelope, (replies or error.replies)[first:]), error) from None

    async def conclude(
        self, opened: Opened, following: Envelope | None = None
    ) -> tuple[Receipt | MailError, Opened | MailError | None]:
        """The message of *opened*, and in the same round trip the beginning of *following*: how both went.

        The errors are returned, since one mail's may come with the other's success. Only the first can be
        DeliveryUnknown: *following* has no message yet. Give one only if :attr:`can_overlap`.
        """
        try:
            commands, data = self._commands(following) if following is not None else ([], b"")
        except MailError as error:
            receipt, _ = await self.conclude(opened)
            return receipt, error
        if not self.is_usable:
            return _with(opened.refused, ServerDisconnected()), ServerDisconnected() if following is not None else None
        replies = await self._send_message(wire_form(opened.data), commands)
        receipt = self._concluded(opened, replies[:1])
        if following is None:
            return receipt, None
        return receipt, await self._begun(following, data, replies[1:], len(commands))

    def _concluded(self, opened: Opened, replies: list[SMTPResponse]) -> Receipt | MailError:
        if not replies:
            return _with(opened.refused, DeliveryUnknown())
        self.mails += 1
        self._used_at = asyncio.get_running_loop().time()
        self._reset_first = not _is_ok(replies[0])
        if self._reset_first:
            return _with(opened.refused, DataRefused(replies[0].code, replies[0].message))
        return Receipt(refused=opened.refused, reply=_reply(replies[0]))

    async def _begun(
        self, envelope: Envelope, data: bytes, replies: list[SMTPResponse], count: int
    ) -> Opened | MailError:
        self._reset_first = True
        try:
            self._check_complete(replies, count)
            return Opened(envelope=envelope, data=data, refused=await self._judge(envelope, replies))
        except ServerDisconnected as error:
            return _with(_refused_before(envelope, replies), error)
        except MailError as error:
            return error

    async def quit(self) -> None:
        """Say goodbye and close; never raises, and takes a second at most."""
        try:
            if self.is_usable:
                await self._client.quit(timeout=_QUIT_S)
        except (aiosmtplib.SMTPException, OSError) as error:
            log.debug("goodbye to %s was not answered: %s", self.server, error)
        finally:
            self._close()

    def abort(self) -> None:
        """Close at once, without goodbye."""
        if isinstance(self._client.protocol, PipeliningProtocol):
            self._client.protocol.abort()
        self._close()

    def _close(self) -> None:
        self._client.close()
        _connections.get(asyncio.get_running_loop(), set()).discard(self)

    # ------------------------------------------------------------ one mail

    def _commands(self, envelope: Envelope) -> tuple[list[bytes], bytes]:
        """MAIL, RCPT…, DATA, each with its line end, and the message as this server can take it."""
        data, options = envelope.data, list(envelope.mail_options)
        utf8 = envelope.needs_smtputf8 or not data[: data.find(b"\r\n\r\n")].isascii()
        if utf8 and "smtputf8" not in self._offers:
            raise NotOffered(f"{self.server} does not offer SMTPUTF8, which an address beyond ASCII needs.")
        if not data.isascii():
            if "8bitmime" in self._offers:
                _add_option(options, "BODY=8BITMIME")
            elif not utf8:
                data = to_seven_bit(data)
        if utf8:
            _add_option(options, "SMTPUTF8")
        if "size" in self._offers:
            _add_option(options, f"SIZE={len(data)}")
        mail = " ".join([f"MAIL FROM:<{envelope.sender}>", *options])
        rcpt_options = "".join(f" {option}" for option in envelope.rcpt_options)
        lines = [mail, *(f"RCPT TO:<{address}>{rcpt_options}" for address in envelope.recipients), "DATA"]
        return [f"{line}\r\n".encode() for line in lines], data

    async def _converse(self, commands: list[bytes]) -> list[SMTPResponse]:
        if self.can_overlap:
            return await self._exchange(b"".join(commands), len(commands))
        return await self._in_lock_step(commands)

    async def _in_lock_step(self, commands: list[bytes]) -> list[SMTPResponse]:
        """One command at a time, and none after one that has made the rest useless."""
        replies: list[SMTPResponse] = []
        accepted = False
        for command in commands:
            if command == b"DATA\r\n" and not accepted:
                replies.append(SMTPResponse(503, "no valid recipients"))
                break
            try:
                replies += await self._exchange(command, 1)
            except ServerDisconnected as error:
                error.replies = [*replies, *error.replies]
                raise
            if command.startswith((b"RSET", b"MAIL")) and not _is_ok(replies[-1]):
                return [*replies, *[SMTPResponse(503, "no sender")] * (len(commands) - len(replies))]
            accepted = accepted or (command.startswith(b"RCPT") and _is_ok(replies[-1]))
        return replies

    async def _judge(self, envelope: Envelope, replies: list[SMTPResponse]) -> dict[str, Reply]:
        """The refused recipients, if at least one was accepted and the server waits for the message."""
        sender, *recipients, data = replies
        refused = _refused(envelope, recipients)
        nobody = not _is_ok(sender) or len(refused) == len(recipients)
        if nobody and data.code == _GO_AHEAD:
            await self._exchange(b".\r\n", 1)  # a pipelined DATA was let through for nobody; RFC 2920, 3.1
        if not _is_ok(sender):
            raise SenderRefused(sender.code, sender.message, envelope.sender)
        if nobody:
            raise RecipientsRefused({address: (reply.code, reply.text) for address, reply in refused.items()})
        if data.code != _GO_AHEAD:
            raise _with(refused, DataRefused(data.code, data.message))
        return refused

    async def _exchange(self, data: bytes, count: int) -> list[SMTPResponse]:
        """Send what is not the message. Raises ServerDisconnected or ServerTimeout: nothing was delivered."""
        timed_out = False
        try:
            replies = await self._talk(data, count, self.server.timeout)
        except DialogueBroken as broken:
            replies, timed_out = broken.certain(count), broken.timed_out
        self._check_complete(replies, count, timed_out=timed_out)
        return replies

    def _check_complete(self, replies: list[SMTPResponse], count: int, *, timed_out: bool = False) -> None:
        farewell = next((reply for reply in replies if reply.code == _CLOSING), None)
        if farewell is None and len(replies) == count:
            return
        self.abort()
        kind = ServerTimeout if timed_out else ServerDisconnected
        error = kind() if farewell is None else ServerDisconnected(None, farewell.code, farewell.message)
        error.replies = replies
        raise error

    async def _send_message(self, data: bytes, commands: list[bytes]) -> list[SMTPResponse]:
        """Send a message, and *commands* behind it; as many replies as came, none if it is unknown how it went."""
        count = 1 + len(commands)
        try:
            return await self._talk(data + b"".join(commands), count, self.server.timeout, self.server.data_timeout)
        except DialogueBroken as broken:
            self.abort()
            return broken.certain(count)

    async def _talk(
        self, data: bytes, count: int, timeout: float, first_timeout: float | None = None
    ) -> list[SMTPResponse]:
        protocol = self._client.protocol
        if isinstance(protocol, PipeliningProtocol):
            return await protocol.exchange(data, count, timeout, first_timeout)
        if protocol is None:
            raise DialogueBroken([])
        try:
            protocol.write(data)
            return [await protocol.read_response(first_timeout or timeout)]
        except aiosmtplib.SMTPTimeoutError:
            raise DialogueBroken([], timed_out=True) from None
        except (aiosmtplib.SMTPException, OSError):
            raise DialogueBroken([]) from None
        except asyncio.CancelledError:
            self.abort()
            raise

    # ------------------------------------------------------------ opening

    async def _greet(self) -> None:
        if self._client.is_ehlo_or_helo_needed:
            try:
                await self._client.ehlo()
            except aiosmtplib.SMTPHeloError:
                await self._client.helo()

    async def _log_in(self) -> None:
        server = self.server
        if self._client.get_transport_info("sslcontext") is None and not _is_loopback(server.hostname):
            log.warning("logging in to %s without TLS: anybody on the way can read the password", server)
        login = self._client.login(server.username or "", server.password or "")
        await self._guarded(login, "log in to", _dialogue_error)

    async def _guarded(
        self, work: Awaitable[object], act: str, translate: Callable[[Exception, Server, str], MailError]
    ) -> None:
        failure = None
        try:
            await work
        except (aiosmtplib.SMTPException, OSError, ssl.SSLError, ValueError) as error:
            failure = translate(error, self.server, act)
        # Raised here, without the cause: the frames of its traceback hold the password.
        if failure is not None:
            raise failure


def _add_option(options: list[str], option: str) -> None:
    keyword = option.partition("=")[0].upper()
    if not any(given.upper().partition("=")[0] == keyword for given in options):
        options.append(option)


def _is_ok(reply: SMTPResponse) -> bool:
    return 200 <= reply.code < 300


def _refused(envelope: Envelope, replies: Sequence[SMTPResponse]) -> dict[str, Reply]:
    """The recipients that were refused, as far as there are replies."""
    pairs = zip(envelope.recipients, replies, strict=False)
    return {address: _reply(reply) for address, reply in pairs if not _is_ok(reply)}


def _refused_before(envelope: Envelope, replies: Sequence[SMTPResponse]) -> dict[str, Reply]:
    """The recipients that were refused before the dialogue broke off; without a sender a refusal means nothing."""
    return _refused(envelope, replies[1:]) if replies and _is_ok(replies[0]) else {}


def _with(refused: Mapping[str, Reply], error: E) -> E:
    error.refused = refused
    return error


def _reply(reply: SMTPResponse) -> Reply:
    return Reply(reply.code, reply.message)


def _is_loopback(hostname: str) -> bool:
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return hostname == "localhost"


# ---------------------------------------------------------------- opening: parts and errors

_contexts: dict[Server, ssl.SSLContext] = {}
_own_name: str | None = None


async def _client(server: Server) -> aiosmtplib.SMTP:
    if server.use_tls and server.use_ssl:
        raise ConfigError("MAIL_USE_TLS (STARTTLS) and MAIL_USE_SSL exclude each other. Set one of them.")
    options: dict[str, Any] = {
        "hostname": server.hostname,
        "port": server.port,
        "timeout": server.timeout,
        "use_tls": server.use_ssl,
        # Never None: aiosmtplib would then start TLS by itself, and fail for a self-signed server nobody asked about.
        "start_tls": server.use_tls,
        "local_hostname": await _local_hostname(),
        "tls_context": await _tls_context(server) if server.use_tls or server.use_ssl else None,
    }
    return PipeliningSMTP(trace=server.trace, **options) if pipelining.POSSIBLE else aiosmtplib.SMTP(**options)


async def _tls_context(server: Server) -> ssl.SSLContext:
    if server.ssl_context is not None:
        return server.ssl_context
    if server not in _contexts:
        _contexts[server] = await asyncio.to_thread(_make_context, server)  # reads the system's certificates
    return _contexts[server]


def _make_context(server: Server) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=server.cafile)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if not server.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _local_hostname() -> str:
    """This machine's name for EHLO; asked for once, since DNS may take its time."""
    global _own_name
    if _own_name is None:
        name = await asyncio.to_thread(socket.getfqdn)
        _own_name = name if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name) else "[127.0.0.1]"
    return _own_name


def _connect_error(error: Exception, server: Server, act: str) -> MailError:
    cause = error.__cause__ or error
    shown = f"Cannot {act} {server}: {cause}."
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return ConnectError(
            f"{server} refused the connection: {error.code} {error.message}.", error.code, error.message
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return CertificateError(f"{shown} {CertificateError.__doc__}")
    if isinstance(error, TimeoutError):
        return ConnectTimeout(f"{server} did not answer within {server.timeout:g} s (MAIL_TIMEOUT).")
    if isinstance(cause, socket.gaierror):
        return _with_errno(HostNotFound(shown), cause)
    if isinstance(cause, OSError) and _is_refused(cause):
        return _with_errno(ConnectionRefused(f"{shown} {ConnectionRefused.__doc__}"), cause)
    if isinstance(error, aiosmtplib.SMTPConnectError | OSError):
        return ConnectError(shown)
    return _dialogue_error(error, server, act)


def _is_refused(error: OSError) -> bool:
    # asyncio joins the errors of several addresses into one without a number.
    return error.errno == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in str(error)


def _with_errno(error: ConnectError, cause: OSError) -> ConnectError:
    error.errno, error.strerror = cause.errno or errno.ECONNREFUSED, cause.strerror
    return error


def _dialogue_error(error: Exception, server: Server, act: str) -> MailError:
    match error:
        case aiosmtplib.SMTPAuthenticationError():
            return AuthenticationFailed(
                error.code, error.message, f"{server} refused to log us in: {error.code} {error.message}."
            )
        case aiosmtplib.SMTPHeloError():
            return HeloRefused(error.code, error.message)
        case aiosmtplib.SMTPResponseException():
            return ConnectError(f"Cannot {act} {server}: {error.code} {error.message}.", error.code, error.message)
        case aiosmtplib.SMTPTimeoutError():
            return ServerTimeout(f"{server} did not answer within {server.timeout:g} s (MAIL_TIMEOUT).")
        case aiosmtplib.SMTPServerDisconnected() | OSError():
            return ServerDisconnected(f"{server} closed the connection before it let us in.")
    return NotOffered(f"Cannot {act} {server}: {error}")


# ---------------------------------------------------------------- the end

_connections: WeakKeyDictionary[asyncio.AbstractEventLoop, set[SMTPConnection]] = WeakKeyDictionary()


async def quit_all() -> None:
    """Say goodbye on every connection of the running loop, those in use too."""
    await asyncio.gather(*(c.quit() for c in _connections.pop(asyncio.get_running_loop(), ())))
