"""SMTP: one connection that can deliver mails.

Everything here is a coroutine and stays on the loop on which the connection was opened; :mod:`.portal` is the way
there from threads without one. A mail goes out in two round trips where the server offers PIPELINING (``RSET`` where
needed, ``MAIL``, all ``RCPT``, ``DATA``; then the message), else command by command.

A mail counts as accepted by the reply to its final dot alone. A connection whose replies are not all paired with their
commands, after a time-out, a cancellation, an unasked line, a drop or a reply of the wrong class, is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import aiosmtplib
from aiosmtplib.response import SMTPResponse

from ...core.loggers import Logger, get_logger
from ..compose.mime import to_seven_bit, wire_form
from ..envelope import Envelope, Reply
from ..errors import DataRefused, DeliveryUnknown, MailError, NotOffered, OutOfStep, ServerDisconnected, ServerTimeout
from .opening import abort, connect
from .pipelining import DialogueBroken, PipeliningProtocol, PipeliningSMTP
from .server import Server, ServerFacts, facts_of
from .transaction import (
    CLOSING,
    DATA,
    RSET,
    TOGETHER,
    Command,
    NotTried,
    Transaction,
    flights,
    reply_of,
)

log: Logger = get_logger("mail")

_QUIT_S = 1.0
_RSET_AFTER_S = 1.0

BeforeDot = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the server said to a mail that it took for at least one recipient."""

    accepted: Sequence[str]
    refused: Mapping[str, Reply]
    reply: Reply
    left: Sequence[str] = ()
    """Who is to be sent the mail in another transaction: the server took no more recipients in this one."""


class SMTPConnection:
    """A connection to one server: :meth:`open` it, :meth:`begin` and :meth:`conclude` mails, :meth:`quit`."""

    def __init__(self, server: Server, client: PipeliningSMTP, protocol: PipeliningProtocol) -> None:
        self.server = server
        self.facts: ServerFacts = facts_of(server)
        self.mails: int = 0
        self._client = client
        self._protocol = protocol
        self._offers = frozenset(client.esmtp_extensions)
        self._reset_first = False
        self._used_at = 0.0

    @classmethod
    async def open(cls, server: Server) -> SMTPConnection:
        """Connect, start TLS and log in. Raises as :func:`.opening.connect`."""
        client = await connect(server)
        if not isinstance(client.protocol, PipeliningProtocol):
            raise ServerDisconnected
        self = cls(server, client, client.protocol)
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
        """Hand *envelope* to the server, in one transaction.

        ``before_dot`` is awaited when recipients were accepted, before the message is sent. Raises SenderRefused,
        RecipientsRefused or DataRefused, after which the connection can be used; ServerDisconnected and its kinds
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

    def can_overlap(self, envelope: Envelope | None = None) -> bool:
        """Whether that mail may be begun together with the message of the one before; without one, any."""
        most = min(TOGETHER, self.facts.most_recipients or TOGETHER)
        fits = envelope is None or len(envelope.recipients) <= most
        return self._pipelines and fits and self.facts.may_overlap

    @property
    def _pipelines(self) -> bool:
        return self.server.pipelining and "pipelining" in self._offers and self.facts.may_pipeline

    async def begin(self, envelope: Envelope) -> Transaction:
        """MAIL, RCPT and DATA. Raises as :meth:`deliver`, but never DeliveryUnknown."""
        transaction, groups = self._plan(envelope, together=self._pipelines)
        if self._reset_first or asyncio.get_running_loop().time() - self._used_at > _RSET_AFTER_S:
            groups = [[RSET, *groups[0]], *groups[1:]] if self._pipelines else [[RSET], *groups]
        self._reset_first = True
        try:
            await self._ask_all(transaction, groups)
            error = transaction.error()
        except ServerDisconnected as broken:
            error = transaction.broken_off(broken)
        if error is None:
            return transaction
        is_used_up = isinstance(error, ServerDisconnected) or (self.mails > 0 and transaction.is_worn)
        if is_used_up or transaction.is_left_waiting:
            self.abort()
        if self.mails and is_used_up and not isinstance(error, ServerTimeout):
            # The server has had enough of the connection, not of this mail.
            raise transaction.broken_off(NotTried(str(error)))
        raise error

    async def _ask_all(self, transaction: Transaction, groups: Sequence[list[Command]]) -> None:
        """Send the groups, as long as it makes sense. Raises ServerDisconnected and its kinds."""
        try:
            for group in groups:
                if transaction.is_useless or (group == [DATA] and not transaction.accepted):
                    break
                if not transaction.is_full:
                    await self._ask(transaction, group)
                elif group[-1] is DATA:
                    await self._ask(transaction, [DATA])
        except ServerDisconnected:
            if transaction.go_ahead is None and len(transaction.accepted) >= TOGETHER:
                self.facts.limit_recipients(len(transaction.accepted))  # it may have had enough of them
            raise
        if transaction.is_full:
            self.facts.limit_recipients(len(transaction.accepted))

    async def conclude(
        self, opened: Transaction, following: Envelope | None = None
    ) -> tuple[Receipt | MailError, Transaction | MailError | None]:
        """The message of *opened*, and in the same round trip the beginning of *following*: how both went.

        The errors are returned, since one mail's may come with the other's success. Only the first can be
        DeliveryUnknown: *following* has no message yet. It ends with NotTried where what came back may not be meant
        for it. Give one only if :meth:`can_overlap`.
        """
        begun: Transaction | None = None
        commands: list[Command] = []
        if following is not None:
            try:
                begun, (commands,) = self._plan(following, together=True)
            except MailError as error:
                receipt, _ = await self.conclude(opened)
                return receipt, error
        if not self.is_usable:
            return opened.broken_off(ServerDisconnected()), None if begun is None else NotTried()
        is_unsent = False
        try:
            replies = await self._protocol.exchange(
                b"".join(command.line for command in commands),
                1 + len(commands),
                self.server.timeout,
                message=wire_form(opened.data),
                message_timeout=self.server.data_timeout,
            )
        except DialogueBroken as broken:
            self.abort()
            replies, is_unsent = broken.certain(1 + len(commands)), broken.is_unsent
            if broken.timed_out and len(replies) == 1 and commands:
                self.facts.stop_overlapping()
        outcome = None if begun is None else self._ridden(begun, commands, replies[1:])
        if isinstance(outcome, OutOfStep):
            return opened.broken_off(DeliveryUnknown()), NotTried()  # which of them the first reply was is unknown
        if not replies and is_unsent:
            return opened.broken_off(ServerDisconnected()), outcome
        return self._concluded(opened, replies), outcome

    def _concluded(self, opened: Transaction, replies: Sequence[SMTPResponse]) -> Receipt | MailError:
        reply = reply_of(replies[0]) if replies else None
        if reply is None or reply.code // 100 not in (2, 4, 5):
            self.abort()
            return opened.broken_off(DeliveryUnknown())
        self.mails += 1
        self._used_at = asyncio.get_running_loop().time()
        if reply.code >= 400:
            self._reset_first = True
            return opened.broken_off(DataRefused(reply.code, reply.text))
        self._reset_first = False
        return Receipt(accepted=tuple(opened.accepted), refused=opened.refused, reply=reply, left=opened.left)

    def _ridden(
        self, begun: Transaction, commands: Sequence[Command], replies: Sequence[SMTPResponse]
    ) -> Transaction | MailError:
        """What became of a mail that was begun behind a message; NotTried unless the replies are about itself."""
        self._reset_first = True
        try:
            begun.note(commands, replies)
        except OutOfStep as error:
            self.abort()
            return error
        if begun.is_open:
            return begun
        is_over = any(reply.code == CLOSING for reply in replies) or len(replies) < len(commands)
        if not is_over and begun.was_tried() and not begun.is_left_waiting:
            return begun.error() or begun
        if not is_over and begun.is_out_of_turn:
            self.facts.stop_overlapping()
        if is_over or (begun.go_ahead is not None and begun.go_ahead.code < 400):
            self.abort()  # gone, or waiting for a message
        return begun.broken_off(NotTried())

    async def quit(self) -> None:
        """Say goodbye and close; never raises, and takes a second at most."""
        try:
            if self.is_usable:
                await self._client.quit(timeout=_QUIT_S)
        except (aiosmtplib.SMTPException, OSError) as error:
            log.debug("goodbye to %s was not answered: %s", self.server, error)
        finally:
            self.abort()  # over TLS, aiosmtplib leaves the socket open until the server has closed its side

    def abort(self) -> None:
        """Close at once, without goodbye."""
        self._protocol.abort()
        abort(self._client)
        _connections.get(asyncio.get_running_loop(), set()).discard(self)

    # ------------------------------------------------------------ one mail

    def _plan(self, envelope: Envelope, *, together: bool) -> tuple[Transaction, list[list[Command]]]:
        """The message as this server can take it, and MAIL, RCPT… and DATA in groups."""
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
        line = " ".join([f"MAIL FROM:<{envelope.sender}>", *options])
        mail = Command(f"{line}\r\n".encode(), "MAIL")
        end = "".join([f" {option}" for option in envelope.rcpt_options]) + "\r\n"
        recipients = [
            Command(f"RCPT TO:<{address}>{end}".encode(), "RCPT", address)
            for address in envelope.recipients[: self.facts.most_recipients]
        ]
        return Transaction(envelope, data), flights(envelope, mail, recipients, together=together)

    async def _ask(self, transaction: Transaction, group: Sequence[Command]) -> None:
        try:
            replies = await self._exchange(b"".join(command.line for command in group), len(group))
        except _Incomplete as incomplete:
            # What was said before the end is worth keeping, as far as it fits.
            with contextlib.suppress(OutOfStep):
                transaction.note(group, incomplete.replies)
            raise incomplete.error from None
        try:
            transaction.note(group, replies)
        except OutOfStep:
            self.abort()
            raise

    async def _exchange(self, data: bytes, count: int) -> list[SMTPResponse]:
        """Send commands. Raises _Incomplete: nothing was delivered."""
        is_lost = timed_out = False
        try:
            replies = await self._protocol.exchange(data, count, self.server.timeout)
        except DialogueBroken as broken:
            replies, timed_out = broken.certain(count), broken.timed_out
            is_lost = timed_out and len(replies) == 1 < count
        # Nothing is read behind a farewell.
        farewell = reply_of(replies[-1]) if replies and replies[-1].code == CLOSING else None
        if farewell is None and len(replies) == count:
            return replies
        self.abort()
        if is_lost:
            self.facts.stop_pipelining()
            log.warning("%s lost commands that were sent together; it gets them one by one for a while", self.server)
        error = ServerTimeout() if timed_out and not is_lost else ServerDisconnected()
        if farewell is not None:
            error = ServerDisconnected(None, farewell.code, farewell.text)
        raise _Incomplete(error, replies)


class _Incomplete(Exception):
    """The dialogue ended before every command was answered; ``replies`` came before."""

    def __init__(self, error: ServerDisconnected, replies: Sequence[SMTPResponse]) -> None:
        super().__init__()
        self.error = error
        self.replies = replies


def _add_option(options: list[str], option: str) -> None:
    keyword = option.partition("=")[0].upper()
    if keyword not in [given.upper().partition("=")[0] for given in options]:
        options.append(option)


# ---------------------------------------------------------------- the end

_connections: WeakKeyDictionary[asyncio.AbstractEventLoop, set[SMTPConnection]] = WeakKeyDictionary()


async def quit_all() -> None:
    """Say goodbye on every connection of the running loop, those in use too."""
    await asyncio.gather(*(c.quit() for c in _connections.pop(asyncio.get_running_loop(), ())))
