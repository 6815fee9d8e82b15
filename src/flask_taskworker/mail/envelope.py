"""From a message to what goes over the wire, and from the server's replies to a result. No I/O.

:func:`prepare` is the gate: whatever is wrong with a message is found here, before any connection.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.header import Header
from enum import StrEnum
from functools import lru_cache
from typing import Any, cast

from ..errors import ArgumentsError
from .compose.fields import FORBIDDEN, Mailbox, check_list, check_text, force_text, parse_mailbox, parse_mailboxes
from .compose.mime import Written, check_written, crlf, is_folded, write
from .errors import (
    BadAddressError,
    BadHeaderError,
    DeliveryUnknown,
    MailError,
    MessageTooLarge,
    MissingRecipients,
    MissingSender,
    RecipientsRefused,
    ReplyError,
    ServerDisconnected,
)

MAX_RECIPIENTS = 10_000
"""More in one mail are refused."""

_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
_TOKEN = re.compile(r"[!#$&^_.+A-Za-z0-9-]+")
_CONTENT_TYPE = re.compile(r"[!#$&^_.+A-Za-z0-9-]+/[!#$&^_.+A-Za-z0-9-]+(?:[ \t]*;[\x20-\x7e\t]*)?")
_OPTION = re.compile(r"[!-~]+")
_MESSAGE_ID = re.compile(r"<[^<>\s]+>")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked and written message."""

    envelope: Envelope
    sender: Any
    """The sender as it was given, for the host's ``sendmail``."""

    send_to: tuple[Any, ...]
    """The recipients as they were given, each once."""

    written: Written | None
    """The pieces; None for a message that writes itself."""


def prepare(
    message: Any,
    *,
    now: float,
    ascii_attachments: bool = False,
    envelope_from: Any = None,
    redirect_to: Sequence[str] = (),
) -> Prepared:
    """Check *message* and write it; a message without ``date`` gets *now*, a POSIX timestamp.

    Raises MissingRecipients or MissingSender (both AssertionErrors), BadHeaderError or BadAddressError.
    """
    check_presence(message)
    check_characters(message)
    if _overrides(message, "has_bad_headers") and message.has_bad_headers():
        raise BadHeaderError
    boxes, send_to = _recipients(message)
    sender = parse_mailbox(message.sender, "sender")
    if getattr(message, "reply_to", None):
        parse_mailbox(message.reply_to, "reply_to")
    if redirect_to:
        boxes, send_to = parse_mailboxes(list(redirect_to), "MAIL_REDIRECT_TO"), tuple(redirect_to)
    if message.date is None:
        message.date = now
    if not isinstance(message.date, int | float):
        raise BadHeaderError(
            f"date is {message.date!r:.100}. Give seconds since 1970; of a datetime take its timestamp()."
        )
    written, data = _write(message, ascii_attachments)
    envelope = Envelope(
        sender=_reverse_path(envelope_from, sender),
        recipients=tuple(dict.fromkeys(box.address for box in boxes)),
        data=data,
        message_id=str(getattr(message, "msgId", "")),
        mail_options=tuple(message.mail_options or ()),
        rcpt_options=tuple(message.rcpt_options or ()),
    )
    return Prepared(envelope=envelope, sender=envelope_from or message.sender, send_to=send_to, written=written)


def check_presence(message: Any) -> None:
    """Raise where there is nobody to send to, or nobody who sends."""
    for name in ("recipients", "cc", "bcc"):
        check_list(name, getattr(message, name, None))
    if not hasattr(message, "send_to"):
        raise not_a_message(message)
    if not message.send_to:
        raise MissingRecipients
    if not message.sender:
        raise MissingSender


def not_a_message(given: object) -> ArgumentsError:
    """What to raise where a message belongs."""
    return ArgumentsError(f"{given!r:.100} is not a message. Give a Message(subject, recipients=[…], body=…).")


def check_characters(message: Any) -> None:
    """Raise BadHeaderError if any field holds what a header must not hold. Takes foreign messages too."""
    _check_subject(message.subject)
    for name in ("sender", "reply_to"):
        _check_address(name, getattr(message, name, None))
    for name in ("recipients", "cc", "bcc"):
        for address in getattr(message, name, None) or ():
            _check_address(name, address)
    if getattr(message, "extra_headers", None):
        _check_headers("extra_headers", message.extra_headers)
    for attachment in getattr(message, "attachments", None) or ():
        _check_attachment(attachment)
    for subtype in getattr(message, "alts", None) or ():
        _check_match(_TOKEN, "the key of alts", subtype, "a subtype of text, like 'html'")
    for name in ("mail_options", "rcpt_options"):
        options = getattr(message, name, None) or ()
        if isinstance(options, str):
            raise BadHeaderError(f"{name} must be a list, not {options!r:.100}. Write {name}=[{options!r:.100}].")
        for option in options:
            _check_match(_OPTION, name, option, "printable ASCII without blanks")
    if getattr(message, "charset", None):
        _check_charset(message.charset)
    _check_match(_MESSAGE_ID, "msgId", getattr(message, "msgId", "<a@b>"), "<something@somewhere>")


def _check_subject(subject: Any) -> None:
    text = force_text(subject) if subject else ""
    if FORBIDDEN.search(text) and not is_folded(text):
        check_text("subject", text)


def _check_address(name: str, address: Any) -> None:
    if isinstance(address, str):
        check_text(name, address)
    elif isinstance(address, tuple | list):
        for part in address:
            check_text(name, force_text(part or ""))


def _check_headers(field_name: str, headers: Any) -> None:
    try:
        pairs = dict(headers or {})
    except (TypeError, ValueError):
        raise BadHeaderError(f"{field_name} is {headers!r:.100}. Give a dict of names and values.") from None
    for name, value in pairs.items():
        _check_match(_HEADER_NAME, f"the header name in {field_name}", name, "ASCII without blanks and colons")
        if name.lower() in ("bcc", "resent-bcc"):
            raise BadHeaderError(f"{field_name} holds {name}, which everybody would see. Use bcc=[…].")
        # A Header object folds itself; its line breaks are its own.
        check_text(f"{field_name}[{name!r}]", str(value) if isinstance(value, Header) else force_text(value))


def _check_attachment(attachment: Any) -> None:
    if not hasattr(attachment, "filename"):
        raise ArgumentsError(
            f"attachments holds {attachment!r:.100}, which is not an Attachment. "
            "Give Attachment(filename, content_type, data), or use message.attach(…)."
        )
    if not _is_content(getattr(attachment, "data", None)):
        raise ArgumentsError(f"the data of an attachment is {attachment.data!r:.100}. Give bytes or text: file.read().")
    if attachment.filename is not None:
        check_text("the attachment's filename", force_text(attachment.filename))
    _check_match(_CONTENT_TYPE, "the attachment's content_type", attachment.content_type, "type/subtype; name=value")
    _check_match(_TOKEN, "the attachment's disposition", attachment.disposition, "'attachment' or 'inline'")
    _check_headers("the attachment's headers", attachment.headers)


def _is_content(data: Any) -> bool:
    if isinstance(data, str | bytes | bytearray) or hasattr(data, "__bytes__"):
        return True
    try:
        memoryview(data)
    except TypeError:
        return False
    return True


def _check_charset(charset: Any) -> None:
    _check_match(_TOKEN, "charset", charset, "the name of a character set, like 'iso-8859-1'")
    try:
        codecs.lookup(charset)
    except LookupError:
        raise BadHeaderError(f"charset {charset!r} is not known to Python. Leave it out for UTF-8.") from None


def _check_match(pattern: re.Pattern[str], name: str, value: Any, allowed: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadHeaderError(f"{name} {value!r} is not allowed. Allowed: {allowed}.")


def _recipients(message: Any) -> tuple[list[Mailbox], tuple[Any, ...]]:
    """Everybody, in the order written, each address once; as addresses and as they were given."""
    seen: dict[str, tuple[Mailbox, Any]] = {}
    for name in ("recipients", "cc", "bcc"):
        for given in check_list(name, getattr(message, name, None)):
            box = parse_mailbox(given, name)
            seen.setdefault(box.address, (box, given))
    if not seen:
        seen = {box.address: (box, given) for given in message.send_to for box in [parse_mailbox(given, "send_to")]}
    if len(seen) > MAX_RECIPIENTS:
        raise MessageTooLarge(f"The message has {len(seen)} recipients; {MAX_RECIPIENTS} are allowed. Send several.")
    return [box for box, _ in seen.values()], tuple(given for _, given in seen.values())


def _reverse_path(envelope_from: Any, sender: Mailbox) -> str:
    if not envelope_from:
        return sender.address
    return "" if envelope_from == "<>" else parse_mailbox(envelope_from, "envelope_from").address


def _write(message: Any, ascii_attachments: bool) -> tuple[Written | None, bytes]:
    if writes_itself(message):
        data = crlf(message.as_bytes())
        check_written(data)
        return None, data
    mime_text = message._mimetext if _overrides(message, "_mimetext") else None
    written = write(message, date=message.date, ascii_attachments=ascii_attachments, mime_text=mime_text)
    data = written.data
    check_written(data, written.header_names)
    return written, data


def writes_itself(message: Any) -> bool:
    """Whether the class of *message* overrides how it is written; ours and Flask-Mail's plain one do not."""
    return _overrides(message, "as_bytes") or _overrides(message, "_message")


def _overrides(message: Any, method: str) -> bool:
    return _class_overrides(cast(Hashable, type(message)), method)


@lru_cache(maxsize=256)
def _class_overrides(cls: Hashable, method: str) -> bool:
    for base in cast(type, cls).__mro__:
        if method in vars(base):
            return not (base.__name__ == "Message" and base.__module__ in _KNOWN_MODULES)
    return True


_KNOWN_MODULES = frozenset({"flask_taskworker.mail.message", "flask_mail"})


def reply_to(error: MailError) -> Reply:
    """What *error* means for each recipient of whom it says nothing else."""
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


def checked_addresses(addresses: Iterable[Any], field_name: str) -> tuple[str, ...]:
    """Bare addresses out of a list in any of the forms that users write."""
    return tuple(parse_mailbox(address, field_name).address for address in addresses)


__all__ = [
    "MAX_RECIPIENTS",
    "BadAddressError",
    "Ending",
    "Envelope",
    "Prepared",
    "Reply",
    "SendResult",
    "check_characters",
    "check_presence",
    "checked_addresses",
    "failed_result",
    "prepare",
    "replies_in",
    "reply_to",
    "writes_itself",
]
