"""What a Connection hands its mails to: an SMTP server, the console, a folder, a list, or nothing.

Ours take a whole envelope. They have smtplib's ``sendmail`` and ``quit`` too, because that is what users put in their
place, and look at in tests.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TextIO
from weakref import WeakKeyDictionary

from flask import Flask

from ..compose.fields import parse_mailbox, same_mailbox
from ..compose.mime import crlf
from ..envelope import Envelope, Reply, SendResult
from .connection import Receipt
from .pool import Pool, pool_for
from .portal import portal
from .sender import Delivery, deliver
from .server import Server

Refused = Mapping[str, tuple[int, bytes]]


class Host(Protocol):
    """What a Connection needs: smtplib.SMTP has it too."""

    def sendmail(
        self,
        from_addr: str,
        to_addrs: Sequence[str],
        msg: bytes,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        /,
    ) -> Any:
        """Hand a message over."""

    def quit(self) -> Any:
        """End."""


class MailHost(ABC):
    """One of our own hosts. Usable from any thread, and with the methods that begin with "a" from any loop."""

    @abstractmethod
    def send(self, envelope: Envelope) -> Receipt:
        """Hand a mail over. Raises MailError where no recipient was accepted."""

    async def asend(self, envelope: Envelope) -> Receipt:
        """:meth:`send`, without blocking the loop."""
        return await asyncio.to_thread(self.send, envelope)

    def sendmail(
        self,
        from_addr: str,
        to_addrs: Sequence[str],
        msg: bytes,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> Refused:
        """As smtplib's: addresses may have names; returns the refused ones, raises if none was accepted."""
        receipt = self.send(envelope_of(from_addr, to_addrs, msg, mail_options, rcpt_options))
        return {address: (reply.code, reply.text.encode()) for address, reply in receipt.refused.items()}

    async def aopen(self) -> None:
        """Connect, where there is something to connect to."""
        return

    def quit(self) -> None:
        """End. Never raises."""
        return

    async def aquit(self) -> None:
        """:meth:`quit`, without blocking the loop."""
        self.quit()


class SMTPHost(MailHost):
    """A mail server: over the loop's shared pool for single mails, or over one connection that is kept until quit."""

    def __init__(self, server: Server, *, pool_size: int | None = None, max_mails: int | None = None) -> None:
        self._server = server
        self._pool_size = pool_size
        self._max_mails = max_mails
        self._kept: Pool | None = None

    def open(self) -> None:
        """Connect, unless the pool does so when it must. Raises ConnectError and its kinds, NotOffered, HeloRefused or
        AuthenticationFailed."""
        if self._pool_size is None:
            portal.run(self._open())

    async def aopen(self) -> None:
        """:meth:`open`, without blocking the loop."""
        if self._pool_size is None:
            await portal.arun(self._open())

    def send(self, envelope: Envelope) -> Receipt:
        """Hand a mail over."""
        return portal.run(self._send(envelope))

    async def asend(self, envelope: Envelope) -> Receipt:
        """:meth:`send`, without blocking the loop."""
        return await portal.arun(self._send(envelope))

    def quit(self) -> None:
        """Say goodbye, unless the pool keeps the connection for the next mail."""
        if self._kept is not None:
            portal.run(self._kept.close())

    async def aquit(self) -> None:
        """:meth:`quit`, without blocking the loop."""
        if self._kept is not None:
            await portal.arun(self._kept.close())

    async def _open(self) -> None:
        pool = self._pool()
        connection = await pool.acquire()
        assert connection is not None
        pool.release(connection)

    async def _send(self, envelope: Envelope) -> Receipt:
        return await deliver(self._pool(), Delivery(envelope))

    def _pool(self) -> Pool:
        if self._pool_size is not None:
            return pool_for(self._server, self._pool_size, self._max_mails)
        if self._kept is None:
            self._kept = Pool(self._server, 1, math.inf)
        return self._kept


class ConsoleHost(MailHost):
    """Prints mails, for development."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def send(self, envelope: Envelope) -> Receipt:
        """Print it."""
        text = envelope.data.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
        head = f"MAIL FROM <{envelope.sender}> TO {', '.join(envelope.recipients)}"
        stream = self._stream or sys.stdout
        stream.write(f"{head}\n{'-' * 72}\n{text}\n{'-' * 72}\n")
        stream.flush()
        return receipt_of(envelope)


class FileHost(MailHost):
    """Writes each mail to an .eml file of its own, for development."""

    _numbers = count(1)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def send(self, envelope: Envelope) -> Receipt:
        """Write it. Mails hold reset links and the like: the file is for its owner alone."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09}-{next(self._numbers)}.eml"
        file.touch(mode=0o600, exist_ok=False)
        head = f"X-Envelope-From: <{envelope.sender}>\r\nX-Envelope-To: {', '.join(envelope.recipients)}\r\n"
        file.write_bytes(head.encode() + envelope.data)
        return receipt_of(envelope)


class MemoryHost(MailHost):
    """Puts mails into a list, for tests that want to see the bytes; without a list it suppresses them."""

    def __init__(self, outbox: list[Envelope] | None = None) -> None:
        self._outbox = outbox

    def send(self, envelope: Envelope) -> Receipt:
        """Keep it."""
        if self._outbox is not None:
            self._outbox.append(envelope)
        return receipt_of(envelope)


def receipt_of(envelope: Envelope, refused: Mapping[str, Reply] | None = None) -> Receipt:
    """The receipt of a mail that was accepted for everyone but *refused*."""
    refused = refused or {}
    accepted = tuple(address for address in envelope.recipients if address not in refused)
    return Receipt(accepted=accepted, refused=refused, reply=Reply(250, ""))


def result_of(envelope: Envelope, receipt: Receipt, message: Any = None) -> SendResult:
    """The result of a mail that was accepted for at least one recipient."""
    return SendResult(
        message_id=envelope.message_id,
        accepted=tuple(address for address in envelope.recipients if address not in receipt.refused),
        refused=dict(receipt.refused),
        message=message,
    )


def local_host(state: Any, app: Flask) -> MailHost | None:
    """Where mails go instead of a server, as the app's mail settings say; None for a server."""
    if is_suppressed(state, app):
        return MemoryHost()
    match state.config.backend:
        case "console":
            return ConsoleHost()
        case "file":
            return FileHost(Path(state.config.file_path or Path(app.instance_path) / "mail"))
        case "memory":
            return MemoryHost(state.outbox)
    return None


def is_suppressed(state: Any, app: Flask | None) -> bool:
    """Whether mail is recorded instead of sent: as the state says, or TESTING or MAIL_SUPPRESS_SEND since the start."""
    if state.suppress or app is None:
        return bool(state.suppress)
    asked = app.config.get("MAIL_SUPPRESS_SEND")
    wanted_now = app.testing if asked is None else bool(asked)
    return wanted_now and not state.config.suppress


_servers: WeakKeyDictionary[Any, tuple[tuple[Any, ...], Server]] = WeakKeyDictionary()


def server_of(state: Any) -> Server:
    """The server as the attributes of *state* say now; they may be changed. The same object while they stay."""
    account = (state.server, state.port, state.username, state.password)
    now = (*account, state.use_tls, state.use_ssl, state.debug, id(state.config))
    known = _servers.get(state)
    if known is not None and known[0] == now:
        return known[1]
    config = state.config
    server = Server(
        hostname=state.server or "127.0.0.1",
        port=int(state.port or 25),
        use_tls=bool(state.use_tls),
        use_ssl=bool(state.use_ssl),
        username=state.username,
        password=state.password,
        timeout=config.timeout,
        data_timeout=config.data_timeout,
        verify=config.tls_verify,
        cafile=config.cafile,
        ssl_context=config.ssl_context,
        local_hostname=config.local_hostname,
        pipelining=config.pipelining,
        trace=bool(state.debug),
    )
    _servers[state] = now, server
    return server


def envelope_of(
    from_addr: Any, to_addrs: Iterable[Any], msg: bytes, mail_options: Iterable[str], rcpt_options: Iterable[str]
) -> Envelope:
    """The five arguments of ``sendmail`` as an envelope. Raises BadAddressError."""
    to_addrs = [to_addrs] if isinstance(to_addrs, str) else to_addrs
    addresses = [parse_mailbox(address, "the recipient").address for address in to_addrs]
    return Envelope(
        sender="" if from_addr in ("", "<>") else parse_mailbox(from_addr, "the sender").address,
        recipients=tuple({same_mailbox(address): address for address in reversed(addresses)}.values())[::-1],
        data=crlf(msg),
        mail_options=tuple(mail_options),
        rcpt_options=tuple(rcpt_options),
    )


def foreign_receipt(envelope: Envelope, returned: object) -> Receipt:
    """What any other host's ``sendmail`` returned: smtplib's refused recipients, or a test's."""
    refused = {}
    for address, (code, text) in returned.items() if isinstance(returned, Mapping) else ():
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        refused[parse_mailbox(address).address] = Reply(int(code), text)
    return receipt_of(envelope, refused)
