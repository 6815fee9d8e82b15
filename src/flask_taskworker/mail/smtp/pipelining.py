"""PIPELINING (RFC 2920) on top of aiosmtplib: several commands in one write, their replies counted.

aiosmtplib sends one command and waits for one reply. Its protocol class is extended here to send a group; the class
goes in right after the greeting, with asyncio's own ``transport.set_protocol``, so that connecting, EHLO, STARTTLS,
AUTH and QUIT stay aiosmtplib's. It relies on a few of its internals: importing this module fails without them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, cast

import aiosmtplib
from aiosmtplib.protocol import MAX_RESPONSE_LENGTH, SMTPProtocol
from aiosmtplib.response import SMTPResponse

from ...core.loggers import Logger, get_logger

log: Logger = get_logger("mail")
wire: Logger = get_logger("mail.wire")

_CLOSING = 421
_WRITE_SIZE = 256 * 1024
_METHODS = {
    aiosmtplib.SMTP: ("_create_connection", "_on_connection_lost"),
    SMTPProtocol: ("_read_response_from_buffer", "_drain_helper", "eof_received", "connection_lost", "start_tls"),
}
_ATTRIBUTES = frozenset({"_buffer", "_response_pending", "_response_waiter", "_command_lock"})


_missing = [name for owner, names in _METHODS.items() for name in names if not hasattr(owner, name)]
_missing += sorted(_ATTRIBUTES.difference(SMTPProtocol.__init__.__code__.co_names))
if _missing:
    raise ImportError(f"aiosmtplib {aiosmtplib.__version__} lacks {', '.join(_missing)}. Install aiosmtplib>=5.1.3,<6.")


class DialogueBroken(Exception):
    """The connection ended, or the replies no longer fit the commands. ``replies`` are those that came before."""

    def __init__(self, replies: list[SMTPResponse], *, timed_out: bool = False, is_unsent: bool = False) -> None:
        super().__init__(replies)
        self.replies = replies
        self.timed_out = timed_out
        self.is_unsent = is_unsent
        """Whether the end of the message was never written, so that no server can have accepted it."""

    def certain(self, count: int) -> list[SMTPResponse]:
        """The replies that surely belong to their commands: none where more came than the *count* asked for."""
        return self.replies if len(self.replies) < count else []


class PipeliningProtocol(SMTPProtocol):
    """aiosmtplib's protocol, and :meth:`exchange`."""

    def __init__(self, *args: Any, trace: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trace = trace
        self._secret = False
        self._upgrading = False
        self._group: asyncio.Future[list[SMTPResponse]] | None = None
        self._replies: list[SMTPResponse] = []
        self._missing = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timeout = 0.0
        self._deadline = math.inf

    def take_over(self, old: SMTPProtocol) -> None:
        """Continue the connection of *old*, whose greeting has been read."""
        transport = cast(asyncio.Transport, old.transport)
        self.connection_made(transport)
        self._response_pending = False
        transport.set_protocol(self)
        if old._buffer:
            self._stray(bytes(old._buffer))

    async def exchange(
        self, commands: bytes, count: int, timeout: float, *, message: bytes = b"", message_timeout: float = 0.0
    ) -> list[SMTPResponse]:
        """Write *message* and *commands*, and return the *count* replies, each due *timeout* seconds after the last.

        ``message_timeout`` is for the first reply where it answers a message.

        Raises DialogueBroken when they do not come, or others do; the connection is then closed, as it is when the
        caller is cancelled: a late reply would be taken for the next command's.
        """
        if self._command_lock is None:
            raise DialogueBroken([])
        async with self._command_lock:
            group: asyncio.Future[list[SMTPResponse]] = self._loop.create_future()
            self._group = group
            self._replies, self._missing = [], count
            self._timeout = timeout
            self._expect_within(message_timeout or timeout)
            is_written = False
            try:
                await self._write_all(message, commands, message_timeout)
                is_written = True
                return await group
            except (aiosmtplib.SMTPException, OSError):
                # The server may have refused a large message before all of it was sent, and closed the connection.
                if group.done() and group.exception() is None:
                    return group.result()
                raise DialogueBroken(self._replies, is_unsent=not is_written) from None
            finally:
                self._deadline = math.inf
                self._group = None
                if self._missing:
                    self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            cast(asyncio.Transport, self.transport).abort()

    async def _write_all(self, message: bytes, commands: bytes, message_timeout: float) -> None:
        if self._trace:
            self._log_commands(commands, message)
        if len(message) <= _WRITE_SIZE:
            super().write(message + commands)
            return
        for start in range(0, len(message), _WRITE_SIZE):
            if self._replies and self._replies[0].code < 400:
                self.abort()
                raise DialogueBroken([], is_unsent=True)  # it cannot accept a message whose end is still here
            super().write(message[start : start + _WRITE_SIZE])
            await self._drain_helper()
            self._expect_within(message_timeout)
        super().write(commands)

    def _expect_within(self, timeout: float) -> None:
        """Break off in *timeout* seconds, if nothing comes that moves the deadline."""
        self._deadline = self._loop.time() + timeout
        # Most replies come at once, so the timer is not stopped and started for each: it looks when it rings.
        if self._timer is None or self._timer.when() > self._deadline:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline <= self._loop.time():
            self._break(timed_out=True)
        elif self._deadline < math.inf:
            self._set_timer()

    def data_received(self, data: bytes) -> None:
        """Pair what the server says with what it was asked."""
        if self._trace:
            self._secret = data.startswith(b"334")
            for line in data.splitlines():
                wire.debug("reply: %s", "334 ***" if self._secret else line.decode("utf-8", "backslashreplace"))
        waiter = self._response_waiter
        if self._group is None and (waiter is None or not self._response_pending or waiter.done()):
            self._stray(data)
        elif self._group is None:
            # For one of aiosmtplib's own commands; it would keep what came too much for the next command.
            super().data_received(data)
            if waiter is not None and waiter.done() and self._buffer and not self._upgrading:
                self._stray(bytes(self._buffer))
        elif not self._missing:
            self._stray(data)
        else:
            self._receive_group(data)

    def _receive_group(self, data: bytes) -> None:
        self._buffer.extend(data)
        try:
            while self._missing:
                reply = self._read_response_from_buffer()
                if reply is None:
                    break
                self._replies.append(reply)
                self._missing -= 1
                if self._missing:
                    self._expect_within(self._timeout)
                if reply.code == _CLOSING:
                    break
        except aiosmtplib.SMTPResponseException:
            self._break()
            return
        if self._missing:
            if (self._replies and self._replies[-1].code == _CLOSING) or len(self._buffer) > MAX_RESPONSE_LENGTH:
                self._break()
            return
        is_farewell = self._buffer.startswith(str(_CLOSING).encode())
        if self._buffer and not is_farewell:
            self._break()  # a line too many: it is not known which one answers what
        elif self._group is not None and not self._group.done():
            self._group.set_result(self._replies)
        if is_farewell:
            self.abort()

    def _stray(self, data: bytes) -> None:
        log.debug("the mail server said %r unasked; closing the connection", data[:200])
        self._break()

    def _break(self, *, timed_out: bool = False) -> None:
        group = self._group
        if group is not None and not group.done():
            group.set_exception(DialogueBroken(self._replies, timed_out=timed_out))
        self.abort()

    async def start_tls(self, *args: Any, **kwargs: Any) -> SMTPResponse:
        """aiosmtplib's, which discards what was sent behind the reply to STARTTLS."""
        self._upgrading = True
        try:
            return await super().start_tls(*args, **kwargs)
        finally:
            self._upgrading = False

    def eof_received(self) -> bool:
        """The server has closed its side."""
        self._break()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._break()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    def write(self, data: bytes) -> None:
        """Write a command of aiosmtplib's, and log it without the credentials."""
        if self._trace:
            self._log_commands(data)
        super().write(data)

    def _log_commands(self, data: bytes, message: bytes = b"") -> None:
        if message:  # never its content: it may hold a reset link
            wire.debug("send: a message of %d octets", len(message))
        for line in data.splitlines():
            hidden = self._secret or line[:4].upper() == b"AUTH"
            wire.debug("send: %s", "AUTH ***" if hidden else line.decode("utf-8", "backslashreplace"))


class PipeliningSMTP(aiosmtplib.SMTP):
    """aiosmtplib's client with :class:`PipeliningProtocol` from the greeting on."""

    def __init__(self, *, trace: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trace = trace
        if trace:
            # MAIL_DEBUG shows the dialogue on standard error, as Flask-Mail did, where logging is not set up otherwise.
            wire.setLevel(logging.DEBUG)
            if not wire.hasHandlers():
                handler = logging.StreamHandler()
                handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
                wire.logger.addHandler(handler)

    async def _create_connection(self, timeout: float | None) -> SMTPResponse:
        greeting = await super()._create_connection(timeout)
        old = self.protocol
        if old is not None and old.transport is not None and self.loop is not None:
            new = PipeliningProtocol(self.loop, self._on_connection_lost, trace=self._trace)
            new.take_over(old)
            self.protocol: SMTPProtocol | None = new
        return greeting
