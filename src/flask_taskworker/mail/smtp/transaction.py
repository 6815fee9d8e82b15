"""One mail transaction: which reply answers which command, and what they come to. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from aiosmtplib.response import SMTPResponse

from ..envelope import Envelope, Reply
from ..errors import DataRefused, MailError, OutOfStep, RecipientsRefused, SenderRefused, ServerDisconnected

E = TypeVar("E", bound=MailError)

GO_AHEAD = 354
CLOSING = 421
TOGETHER = 100
"""Recipients that are named before the replies to them are looked at."""

_AUTHENTICATION_REQUIRED = 530
_BAD_SEQUENCE = 503
_TOO_MANY = re.compile(r"[45]\.5\.3\b")
_STATUS = re.compile(r"[45]\.\d{1,3}\.\d{1,3}\b")
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Command(NamedTuple):
    """A line to the server, with its end, and for RCPT whose it is."""

    line: bytes
    verb: str
    address: str = ""


RSET = Command(b"RSET\r\n", "RSET")
DATA = Command(b"DATA\r\n", "DATA")


class NotTried(ServerDisconnected):
    """The server did not look at the mail: it was begun behind another's message, or on a connection at its end.

    It is to be sent alone, and this was none of its tries.
    """


def reply_of(response: SMTPResponse) -> Reply:
    """What the server said, in characters that can be stored and shown whatever its encoding was."""
    text = response.message
    if text.isascii() and text.isprintable():
        return Reply(response.code, text)
    if not text.isascii():
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return Reply(response.code, _UNREADABLE.sub("\ufffd", text))


class Transaction:
    """A mail from MAIL to DATA. Feed it with :meth:`note`; then :meth:`error` says whether the message may follow."""

    def __init__(self, envelope: Envelope, data: bytes) -> None:
        self.envelope = envelope
        self.data = data
        self.accepted: list[str] = []
        self.refused: dict[str, Reply] = {}
        self.sender: SMTPResponse | None = None
        self.go_ahead: SMTPResponse | None = None
        self.is_open: bool = False
        """Whether each command was accepted, and the server waits for the message."""

        self.is_sender_refused: bool = True
        """Whether MAIL was not accepted."""

        self._reset: SMTPResponse | None = None
        self._too_many: list[str] = []
        self._asked = 0

    def note(self, commands: Sequence[Command], responses: Sequence[SMTPResponse]) -> None:
        """Take the replies to *commands*, up to a farewell. Raises OutOfStep for one that cannot be its command's."""
        for command, response in zip(commands, responses, strict=False):
            code = response.code
            if code == CLOSING:
                return
            kind = code // 100
            fits = kind in (4, 5) or (code == GO_AHEAD if command.verb == "DATA" else kind == 2)
            match command.verb:
                case "RCPT":
                    self._asked += 1
                    if kind == 2:
                        fits = not self.is_sender_refused
                        self.accepted.append(command.address)
                    elif self.accepted and _is_too_many(reply_of(response)):
                        self._too_many.append(command.address)
                    else:
                        self.refused[command.address] = reply_of(response)
                case "MAIL":
                    self.sender = response
                    self.is_sender_refused = kind != 2
                case "DATA":
                    self.go_ahead = response
                    are_all_accepted = 0 < len(self.accepted) == len(self.envelope.recipients)
                    self.is_open = code == GO_AHEAD and are_all_accepted and not self._is_reset_refused
                case "RSET":
                    self._reset = response
            if not fits:
                raise OutOfStep(command.line.decode("utf-8", "replace").strip(), code, reply_of(response).text)

    @property
    def is_useless(self) -> bool:
        """Whether no further command makes sense."""
        is_refused = self.sender is not None and self.is_sender_refused
        return is_refused or self._is_reset_refused

    @property
    def _is_reset_refused(self) -> bool:
        return self._reset is not None and self._reset.code >= 400

    @property
    def is_full(self) -> bool:
        """Whether the server has said that it takes no more recipients."""
        return bool(self._too_many)

    @property
    def left(self) -> tuple[str, ...]:
        """Who is to be sent the mail in another transaction."""
        return (*self._too_many, *self.envelope.recipients[self._asked :])

    @property
    def is_left_waiting(self) -> bool:
        """Whether the server waits for a message although it took no recipient.

        An earlier mail's envelope may be open there, so it gets no end of data either: the connection is closed.
        """
        return not self.accepted and self.go_ahead is not None and self.go_ahead.code == GO_AHEAD

    @property
    def _answers(self) -> list[Reply]:
        """The replies, without those that only follow from a refusal before them."""
        if self.is_sender_refused:
            return [reply_of(self.sender)] if self.sender is not None else []
        go_ahead = [reply_of(self.go_ahead)] if self.accepted and self.go_ahead is not None else []
        return [*self.refused.values(), *go_ahead]

    def error(self) -> MailError | None:
        """Why the message is not to be sent; None if the server waits for it."""
        if self.is_open:
            return None
        if self._reset is not None and self._is_reset_refused:
            # The envelope of the mail before may still be open.
            reset = reply_of(self._reset)
            return self.broken_off(ServerDisconnected(None, reset.code, reset.text))
        unordered = next(filter(_is_unordered, self._answers), None)
        if unordered is not None:
            # The server is elsewhere in the dialogue, so no reply of this transaction is about the mail.
            return OutOfStep("MAIL, RCPT, DATA", unordered.code, unordered.text)
        if self.is_sender_refused:
            sender = Reply(-1, "") if self.sender is None else reply_of(self.sender)
            refused = SenderRefused(sender.code, sender.text, self.envelope.sender)
            # "Log in first", "start TLS first": that holds for every mail, and says nothing about this one.
            refused.of_transport = sender.code == _AUTHENTICATION_REQUIRED
            return refused
        if not self.accepted:
            error = RecipientsRefused({address: (reply.code, reply.text) for address, reply in self.refused.items()})
            error.left = self.left
            return error
        if self.go_ahead is not None and self.go_ahead.code != GO_AHEAD:
            refusal = DataRefused(self.go_ahead.code, reply_of(self.go_ahead).text)
            refusal.refused = self.refused
            return refusal
        return None

    def broken_off(self, error: E) -> E:
        """*error*, which ended the transaction, with the recipients that had been refused before."""
        known = {} if self.is_sender_refused else self.refused
        error.refused = {address: reply for address, reply in known.items() if not _is_protocol_error(reply)}
        return error

    @property
    def is_worn(self) -> bool:
        """Whether the server takes no more mails on this connection, and perhaps on another."""
        sender = self.sender
        return sender is not None and (400 <= sender.code < 500 or _is_protocol_error(reply_of(sender)))

    @property
    def is_out_of_turn(self) -> bool:
        """Whether the server objects to when or how it was asked, not to the mail."""
        return any(map(_is_protocol_error, self._answers))

    def was_tried(self) -> bool:
        """Whether the replies to a mail that was begun behind a message are about the mail itself."""
        if self.is_sender_refused or self.is_out_of_turn:
            return False
        return not self.accepted or self.go_ahead is None or self.go_ahead.code == GO_AHEAD


def _is_protocol_error(reply: Reply) -> bool:
    text = reply.text.lower()
    return reply.code in (500, 502, 503) or text.startswith("5.5.1") or "pipelin" in text or "synchroni" in text


def _is_unordered(reply: Reply) -> bool:
    """Bad sequence of commands, by code or by the status of RFC 3463; but "log in first" often has that status, too."""
    is_status = reply.text.startswith("5.5.1") and reply.code != _AUTHENTICATION_REQUIRED
    return reply.code == _BAD_SEQUENCE or is_status


def _is_too_many(reply: Reply) -> bool:
    """RFC 5321, 4.5.3.1.10: 452, and 552 from old servers; with a status it must be that of RFC 3463 for it."""
    if _STATUS.match(reply.text):
        return _TOO_MANY.match(reply.text) is not None
    return reply.code in (452, 552)


def flights(envelope: Envelope, mail: Command, recipients: Sequence[Command], *, together: bool) -> list[list[Command]]:
    """The commands of a transaction in groups; the replies to each group are read before the next."""
    if not together:
        return [[command] for command in (mail, *recipients, DATA)]
    groups = [list(recipients[i : i + TOGETHER]) for i in range(0, len(recipients), TOGETHER)] or [[]]
    groups[0].insert(0, mail)
    groups[-1].append(DATA)
    return groups
