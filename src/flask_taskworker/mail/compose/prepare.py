"""The gate: whatever is wrong with a message is found here, before any connection. No I/O."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from ...errors import ArgumentsError
from ..envelope import Envelope
from ..errors import BadHeaderError, BadTextError, MessageTooLarge, MissingRecipients, MissingSender
from .fields import (
    FORBIDDEN,
    Mailbox,
    as_list,
    check_list,
    check_text,
    force_text,
    parse_mailbox,
    parse_mailboxes,
    same_mailbox,
)
from .headers import check_header
from .mime import Written, check_written, crlf, is_folded, write

MAX_RECIPIENTS = 10_000
"""More in one mail are refused."""

_TOKEN = re.compile(r"[!#$&^_.+A-Za-z0-9-]+")
_PARAMETERS = r"(?:[ \t]*;[\x20-\x7e\t]*)?"
_SUBTYPE = re.compile(rf"{_TOKEN.pattern}{_PARAMETERS}")
_CONTENT_TYPE = re.compile(rf"{_TOKEN.pattern}/{_TOKEN.pattern}{_PARAMETERS}")
_OPTION = re.compile(r"[!-~]+")
_MESSAGE_ID = re.compile(r"<[^<>\s]+>")
_LATEST = 253_402_300_799 - 86_400
"""The last day of the year 9999."""

_KNOWN_MODULES = frozenset({"flask_taskworker.mail.message", "flask_mail"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked and written message."""

    envelope: Envelope
    sender: Any
    """The sender as it was given, for a foreign host's ``sendmail``."""

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

    Raises MissingRecipients or MissingSender (both AssertionErrors), BadHeaderError, BadAddressError or BadTextError.
    """
    try:
        check_presence(message)
        check_characters(message)
        if _overrides(message, "has_bad_headers") and message.has_bad_headers():
            raise BadHeaderError
        boxes, send_to = _recipients(message)
        sender = parse_mailbox(message.sender, "sender")
        if reply_to := getattr(message, "reply_to", None):
            for address in as_list(reply_to):
                parse_mailbox(address, "reply_to")
        if redirect_to:
            boxes, send_to = parse_mailboxes(list(redirect_to), "MAIL_REDIRECT_TO"), tuple(redirect_to)
        if message.date is None:
            message.date = now
        is_number = isinstance(message.date, int | float) and math.isfinite(message.date)
        if not is_number or abs(message.date) > _LATEST:
            shown = f"{message.date!r:.100}"
            raise BadHeaderError(f"date is {shown}. Give seconds since 1970; of a datetime take its timestamp().")
        written, data = _write(message, ascii_attachments)
    except UnicodeError as error:
        raise BadTextError(f"A text of the message cannot be encoded: {error}.") from error
    envelope_from = envelope_from or getattr(message, "envelope_from", None)
    reverse_path = parse_mailbox(envelope_from, "envelope_from") if envelope_from not in (None, "", "<>") else sender
    envelope = Envelope(
        sender="" if envelope_from == "<>" else reverse_path.address,
        recipients=tuple(box.address for box in boxes),
        data=data,
        message_id=written.message_id if written is not None else str(getattr(message, "msgId", "")),
        mail_options=tuple(message.mail_options or ()),
        rcpt_options=tuple(message.rcpt_options or ()),
    )
    return Prepared(envelope=envelope, sender=envelope_from or message.sender, send_to=send_to, written=written)


def check_presence(message: Any) -> None:
    """Raise MissingRecipients or MissingSender if the message lacks one."""
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
    subject = force_text(message.subject) if message.subject else ""
    if FORBIDDEN.search(subject) and not is_folded(subject):
        check_text("subject", subject)
    _check_address("sender", getattr(message, "sender", None))
    for name in ("recipients", "cc", "bcc", "reply_to"):
        if given := getattr(message, name, None):
            for address in as_list(given):
                _check_address(name, address)
    _check_headers("extra_headers", getattr(message, "extra_headers", None) or {})
    for attachment in getattr(message, "attachments", None) or ():
        _check_attachment(attachment)
    for subtype in getattr(message, "alts", None) or ():
        _check_match(
            _SUBTYPE, "the key of alts", subtype, "a subtype of text, like 'html' or 'calendar; method=REQUEST'"
        )
    for name in ("mail_options", "rcpt_options"):
        options = getattr(message, name, None) or ()
        if isinstance(options, str):
            raise BadHeaderError(f"{name} must be a list, not {options!r:.100}. Write {name}=[{options!r:.100}].")
        for option in options:
            _check_match(_OPTION, name, option, "printable ASCII without blanks")
    charset = getattr(message, "charset", None)
    if charset:
        _check_match(_TOKEN, "charset", charset, "the name of a character set, like 'iso-8859-1'")
        try:
            codecs.lookup(charset)
        except LookupError:
            raise BadHeaderError(f"charset {charset!r} is not known to Python. Leave it out for UTF-8.") from None
    _check_match(_MESSAGE_ID, "msgId", getattr(message, "msgId", "<a@b>"), "<something@somewhere>")


def _check_address(name: str, address: Any) -> None:
    for part in address if isinstance(address, tuple | list) else (address,):
        check_text(name, force_text(part or ""))


def _check_headers(field_name: str, headers: Any, *, in_part: bool = False) -> None:
    try:
        given = dict(headers)
    except (TypeError, ValueError):
        raise BadHeaderError(f"{field_name} is {headers!r:.100}. Give a dict of names and values.") from None
    for name, value in given.items():
        check_header(name, value, field_name, in_part=in_part)


def _check_attachment(attachment: Any) -> None:
    if not hasattr(attachment, "filename"):
        raise ArgumentsError(
            f"attachments holds {attachment!r:.100}, which is not an Attachment. "
            "Give Attachment(filename, content_type, data), or use message.attach(…)."
        )
    data: Any = getattr(attachment, "data", None)
    if not isinstance(data, str) and not hasattr(data, "__bytes__"):
        try:
            memoryview(data)
        except TypeError:
            raise ArgumentsError(
                f"the data of an attachment is {data!r:.100}. Give bytes or text: file.read()."
            ) from None
    if attachment.filename is not None:
        check_text("the attachment's filename", force_text(attachment.filename))
        if any(str(name).lower() == "content-disposition" for name in attachment.headers or ()):
            raise BadHeaderError(
                "the attachment has a filename, which makes its Content-Disposition. Use disposition=…."
            )
    _check_match(_CONTENT_TYPE, "the attachment's content_type", attachment.content_type, "type/subtype; name=value")
    _check_match(_TOKEN, "the attachment's disposition", attachment.disposition, "'attachment' or 'inline'")
    _check_headers("the attachment's headers", attachment.headers or {}, in_part=True)


def _check_match(pattern: re.Pattern[str], name: str, value: Any, allowed: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadHeaderError(f"{name} {value!r} is not allowed. Allowed: {allowed}.")


def _recipients(message: Any) -> tuple[list[Mailbox], tuple[Any, ...]]:
    """All, in the order written, each mailbox once; as addresses and as they were given."""
    names = ("recipients", "cc", "bcc")
    given = [(address, name) for name in names for address in check_list(name, getattr(message, name, None))]
    given = given or [(address, "send_to") for address in message.send_to]
    seen: dict[str, tuple[Mailbox, Any]] = {}
    for address, name in given:
        box = parse_mailbox(address, name)
        seen.setdefault(same_mailbox(box.address), (box, address))
    if len(seen) > MAX_RECIPIENTS:
        raise MessageTooLarge(f"The message has {len(seen)} recipients; {MAX_RECIPIENTS} are allowed. Send several.")
    return [box for box, _ in seen.values()], tuple(address for _, address in seen.values())


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
