"""What a Connection hands its mails to: an SMTP server, the console, a folder or a list.

Each has smtplib's ``sendmail`` and ``quit``, because that is what users put in their place, and look at in tests.
``sendmail`` returns the refused recipients and raises where nobody was accepted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TextIO
from weakref import WeakKeyDictionary

from flask import Flask

from ..compose.fields import parse_mailbox
from ..compose.mime import crlf
from ..envelope import Envelope, Reply
from ..errors import DeliveryUnknown, ServerDisconnected, ServerTimeout
from .connection import Receipt, Server, SMTPConnection
from .pool import pool_for
from .portal import portal

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


class SMTPHost(ABC):
    """A mail server, over one kept connection or a pool's. Usable from any thread, and with ``asend`` from any loop."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def open(self) -> None:
        """Connect. Raises ConnectError and its kinds, NotOffered, HeloRefused or AuthenticationFailed."""
        portal.run(self._open())

    async def aopen(self) -> None:
        """:meth:`open`, without blocking the loop."""
        await portal.arun(self._open())

    def sendmail(
        self,
        from_addr: str,
        to_addrs: Sequence[str],
        msg: bytes,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> Refused:
        """As smtplib's: addresses may have names; returns the refused ones, raises if nobody was accepted."""
        envelope = envelope_of(from_addr, to_addrs, msg, mail_options, rcpt_options)
        return _as_smtplib(portal.run(self._deliver(envelope)))

    async def asend(self, envelope: Envelope) -> Mapping[str, Reply]:
        """Hand a prepared mail over and return the refused recipients."""
        return (await portal.arun(self._deliver(envelope))).refused

    def quit(self) -> None:
        """Say goodbye. Never raises."""
        portal.run(self._quit())

    async def aquit(self) -> None:
        """:meth:`quit`, without blocking the loop."""
        await portal.arun(self._quit())

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _deliver(self, envelope: Envelope) -> Receipt: ...

    @abstractmethod
    async def _quit(self) -> None: ...


class PooledHost(SMTPHost):
    """For single mails: takes any of the pool's connections for each."""

    def __init__(self, server: Server, size: int, max_mails: int | None) -> None:
        super().__init__(server)
        self._size = size
        self._max_mails = max_mails

    def open(self) -> None:
        """Nothing: the pool connects when it must."""

    def quit(self) -> None:
        """Nothing: the connection is kept for the next mail."""

    async def _open(self) -> None:
        pass

    async def _deliver(self, envelope: Envelope) -> Receipt:
        return await pool_for(self._server, self._size, self._max_mails).deliver(envelope)

    async def _quit(self) -> None:
        pass


class KeptHost(SMTPHost):
    """For ``with mail.connect()``: one connection, opened at once, made anew if the server hangs up between mails."""

    _connection: SMTPConnection | None = None

    async def _open(self) -> None:
        self._connection = await SMTPConnection.open(self._server)

    async def _deliver(self, envelope: Envelope) -> Receipt:
        for last in (False, True):
            if self._connection is None or not self._connection.is_usable:
                await self._open()
            assert self._connection is not None
            try:
                return await self._connection.deliver(envelope)
            except (DeliveryUnknown, ServerTimeout):
                raise
            except ServerDisconnected:
                if last:
                    raise
        raise AssertionError("unreachable")

    async def _quit(self) -> None:
        if self._connection is not None:
            await self._connection.quit()


class ConsoleHost:
    """Prints mails, for development."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def sendmail(
        self, from_addr: str, to_addrs: Sequence[str], msg: bytes, mail_options: Any = (), rcpt_options: Any = ()
    ) -> Refused:
        """Print it."""
        envelope = envelope_of(from_addr, to_addrs, msg, mail_options, rcpt_options)
        text = envelope.data.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
        head = f"MAIL FROM <{envelope.sender}> TO {', '.join(envelope.recipients)}"
        stream = self._stream or sys.stdout
        stream.write(f"{head}\n{'-' * 72}\n{text}\n{'-' * 72}\n")
        stream.flush()
        return {}

    def quit(self) -> None:
        """Nothing to end."""


class FileHost:
    """Writes each mail to an .eml file of its own, for development."""

    _numbers = count(1)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sendmail(
        self, from_addr: str, to_addrs: Sequence[str], msg: bytes, mail_options: Any = (), rcpt_options: Any = ()
    ) -> Refused:
        """Write it. Mails hold reset links and the like: the file is for its owner alone."""
        envelope = envelope_of(from_addr, to_addrs, msg, mail_options, rcpt_options)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09}-{next(self._numbers)}.eml"
        file.touch(mode=0o600, exist_ok=False)
        head = f"X-Envelope-From: <{envelope.sender}>\r\nX-Envelope-To: {', '.join(envelope.recipients)}\r\n"
        file.write_bytes(head.encode() + envelope.data)
        return {}

    def quit(self) -> None:
        """Nothing to end."""


class MemoryHost:
    """Puts mails into a list, for tests that want to see the bytes."""

    def __init__(self, outbox: list[Envelope]) -> None:
        self._outbox = outbox

    def sendmail(
        self, from_addr: str, to_addrs: Sequence[str], msg: bytes, mail_options: Any = (), rcpt_options: Any = ()
    ) -> Refused:
        """Keep it."""
        self._outbox.append(envelope_of(from_addr, to_addrs, msg, mail_options, rcpt_options))
        return {}

    def quit(self) -> None:
        """Nothing to end."""


class NullHost:
    """Takes mails and does nothing: for apps that suppress them."""

    def sendmail(
        self, from_addr: str, to_addrs: Sequence[str], msg: bytes, mail_options: Any = (), rcpt_options: Any = ()
    ) -> Refused:
        """Nobody is refused."""
        return {}

    def quit(self) -> None:
        """Nothing to end."""


def local_host(state: Any, app: Flask) -> Host | None:
    """Where mails go instead of a server, as the app's mail settings say; None for a server."""
    if state.suppress:
        return NullHost()
    match state.config.backend:
        case "console":
            return ConsoleHost()
        case "file":
            return FileHost(Path(state.config.file_path or Path(app.instance_path) / "mail"))
        case "memory":
            return MemoryHost(state.outbox)
    return None


_servers: WeakKeyDictionary[Any, tuple[tuple[Any, ...], Server]] = WeakKeyDictionary()


def server_of(state: Any) -> Server:
    """The server as the attributes of *state* say now; they may be changed. The same object while they stay."""
    now = (state.server, state.port, state.use_tls, state.use_ssl, state.username, state.password, state.debug)
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
        trace=bool(state.debug),
    )
    _servers[state] = now, server
    return server


def envelope_of(
    from_addr: Any, to_addrs: Iterable[Any], msg: bytes, mail_options: Iterable[str], rcpt_options: Iterable[str]
) -> Envelope:
    """The five arguments of ``sendmail`` as an envelope. Raises BadAddressError."""
    to_addrs = [to_addrs] if isinstance(to_addrs, str) else to_addrs
    return Envelope(
        sender="" if from_addr in ("", "<>") else parse_mailbox(from_addr, "the sender").address,
        recipients=tuple(dict.fromkeys(parse_mailbox(address, "the recipient").address for address in to_addrs)),
        data=crlf(msg),
        mail_options=tuple(mail_options),
        rcpt_options=tuple(rcpt_options),
    )


def _as_smtplib(receipt: Receipt) -> Refused:
    return {
        address: (reply.code, reply.text.encode("utf-8", "surrogateescape"))
        for address, reply in receipt.refused.items()
    }


def refused_replies(returned: object) -> dict[str, Reply]:
    """The refused recipients out of what any host's ``sendmail`` returned: ours, smtplib's or a test's."""
    if not isinstance(returned, Mapping):
        return {}
    refused = {}
    for address, reply in returned.items():
        code, text = reply
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        refused[parse_mailbox(address).address] = Reply(int(code), text)
    return refused


async def aside(function: Any, *args: Any) -> Any:
    """Call a blocking host without blocking the loop."""
    return await asyncio.to_thread(function, *args)
