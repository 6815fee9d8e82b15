"""A mail on its way: its envelope, the server's replies, and the result. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .errors import DeliveryUnknown, MailError, RecipientsRefused, ReplyError, ServerDisconnected


class Ending(StrEnum):
    """What became of one recipient."""

    ACCEPTED = "accepted"
    DEFERRED = "deferred"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server said about one recipient or message."""

    code: int
    """Three digits, or -1 where the server said nothing."""

    text: str
    decided: Ending | None = field(default=None, repr=False)
    """What became of the recipient, where the code does not say it."""

    @property
    def ending(self) -> Ending:
        """What became of the recipient."""
        if self.decided is not None:
            return self.decided
        if 200 <= self.code < 300:
            return Ending.ACCEPTED
        return Ending.REJECTED if 500 <= self.code < 600 else Ending.DEFERRED

    def __str__(self) -> str:
        return f"{self.code} {self.text}" if self.code > 0 else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A mail ready to go."""

    sender: str
    """The bare address for MAIL FROM; "" is the null sender."""

    recipients: tuple[str, ...]
    """The bare addresses for RCPT TO."""

    data: bytes = field(repr=False)
    """The message, with CRLF only."""

    message_id: str = ""
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()

    @property
    def needs_smtputf8(self) -> bool:
        """Whether an address is not ASCII."""
        return not (self.sender.isascii() and all(map(str.isascii, self.recipients)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """How sending one message ended. True if every recipient was accepted."""

    message_id: str
    """The Message-ID header."""

    accepted: tuple[str, ...] = ()
    """The bare addresses that the server took."""

    refused: Mapping[str, Reply] = field(default_factory=dict)
    """The bare addresses that it did not take, with its reply."""

    error: MailError | None = None
    """In bulk: why this message was not sent. Where one message is sent, the error is raised instead."""

    message: Any = field(default=None, repr=False, compare=False)
    """The message itself."""

    def __bool__(self) -> bool:
        return self.error is None and not self.refused


def reply_to(error: MailError) -> Reply:
    """What *error* means for each recipient that it says nothing else about."""
    match error:
        case DeliveryUnknown():
            return Reply(-1, str(error), Ending.UNKNOWN)
        case ReplyError() if not error.of_transport:
            return Reply(error.smtp_code, error.text)
        case ServerDisconnected():
            return Reply(error.code, error.text or str(error), Ending.DEFERRED)
        case RecipientsRefused():
            return Reply(-1, str(error))
    return Reply(-1, str(error), Ending.DEFERRED if error.of_transport else Ending.REJECTED)


def replies_in(error: MailError) -> dict[str, Reply]:
    """What the server said to each recipient before or with *error*."""
    replies = dict(error.refused)
    if isinstance(error, RecipientsRefused):
        for address, (code, text) in error.recipients.items():
            replies[address] = Reply(code, text.decode("utf-8", "replace"))
    return replies


def failed_result(envelope: Envelope, error: MailError, message: Any = None) -> SendResult:
    """The result of a mail that *error* kept from being sent."""
    refused = replies_in(error)
    if isinstance(error, ReplyError) and not error.of_transport:
        refused = {**dict.fromkeys(envelope.recipients, reply_to(error)), **refused}
    return SendResult(message_id=envelope.message_id, refused=refused, error=error, message=message)
