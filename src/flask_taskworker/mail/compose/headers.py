"""How header fields are written: each by its grammar, so that an address, an id or a parameter stays readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.header import Header
from email.utils import parsedate_tz
from typing import Any
from urllib.parse import quote

from ..errors import BadHeaderError
from .fields import FORBIDDEN, encoded_words, force_text, parse_mailbox, sanitize_addresses, utf8

MAX_LINE = 998
"""Octets in a line, without its end, that a server must take (RFC 5321, 4.5.3.1.6)."""

FOLD_AT = 78

ADDRESSES = frozenset(
    {
        *("from", "to", "cc", "reply-to", "sender", "resent-from", "resent-to", "resent-cc", "resent-sender"),
        *("resent-reply-to", "disposition-notification-to", "return-receipt-to", "errors-to", "mail-reply-to"),
        *("mail-followup-to", "x-errors-to", "x-confirm-reading-to", "apparently-to", "delivered-to", "x-original-to"),
    }
)
"""Headers that hold a list of addresses (RFC 5322, 3.6; RFC 8098, 2.1; and customary ones)."""

ASCII_ONLY = frozenset(
    {
        *("in-reply-to", "references", "resent-message-id", "content-id", "list-help", "list-unsubscribe"),
        *("list-subscribe", "list-post", "list-owner", "list-archive", "list-unsubscribe-post", "archived-at"),
        *("date", "resent-date", "message-id", "return-path", "autocrypt", "dkim-signature"),
    }
)
"""Headers that hold ids, links and dates, which cannot hold encoded words."""

MIME_HEADERS = frozenset({"content-type", "content-transfer-encoding", "mime-version"})
HIDDEN = frozenset({"bcc", "resent-bcc"})

_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
_MESSAGE_ID = re.compile(r"<[^<>\s]+>")
_ANGLE = re.compile(r"(<[^<>]*>)")
_SEPARATOR = re.compile(r'((?:"(?:[^"\\]|\\.)*"|[^",])+)')


def check_header(name: object, value: Any, field: str, *, in_part: bool = False) -> None:
    """Raise BadHeaderError, naming *field*, for a header that cannot be written as it is meant."""
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise BadHeaderError(
            f"the header name in {field} {name!r} is not allowed. Use ASCII without blanks and colons."
        )
    known = name.lower()
    if known in HIDDEN:
        raise BadHeaderError(f"{field} holds {name}, which all recipients would see. Use bcc=[…].")
    if known in MIME_HEADERS:
        remedy = "content_type=…" if in_part else "charset=…, alts=… or attachments"
        raise BadHeaderError(f"{field} holds {name}, which describes how the mail is written. Use {remedy}.")
    if value is None or isinstance(value, Header):  # a Header folds itself; its line breaks are its own
        return
    text = force_text(value)
    found = FORBIDDEN.search(text)
    if found:
        raise BadHeaderError(
            f"{field}[{name!r}] holds the character {found[0]!r} at position {found.start()}, which a mail header must "
            "not have. Remove line breaks and control characters before you build the message."
        )
    if known in ADDRESSES and (known in ("from", "to", "cc", "reply-to") or not text.isascii()):
        for part in split_addresses(text):
            parse_mailbox(part, f"{field}[{name!r}]")
    elif known in ASCII_ONLY and not text.isascii():
        raise BadHeaderError(f"{field}[{name!r}] is {text!r:.100}, and must be ASCII. Percent-encode a link.")
    elif known == "message-id" and not _MESSAGE_ID.fullmatch(text.strip()):
        raise BadHeaderError(f"{field}[{name!r}] {text!r:.100} is not allowed. Allowed: <something@somewhere>.")
    elif known == "date" and parsedate_tz(text) is None:
        raise BadHeaderError(f"{field}[{name!r}] {text!r:.100} is not a date. Use email.utils.format_datetime(…).")


def split_addresses(text: str) -> Iterator[str]:
    """The addresses of a header's value, at the commas that are in no quotes; a group such as "x:;" holds none."""
    if text.rstrip().endswith(";"):
        text = text.rstrip(" ;").partition(":")[2]
    for part in _SEPARATOR.findall(text):
        if part.strip():
            yield part.strip()


def pairs(headers: Any) -> Iterator[tuple[str, str]]:
    """Extra headers, written: names by allow-list, values cleaned and encoded. Bcc is never written."""
    for name, value in dict(headers or {}).items():
        known = str(name).lower()
        if value is not None and _HEADER_NAME.fullmatch(str(name)) and known not in HIDDEN | MIME_HEADERS:
            yield str(name), header_value(str(name), clean(value.encode() if isinstance(value, Header) else value))


def header_value(name: str, text: str) -> str:
    """*text* in ASCII: encoded words where the grammar of that header has a place for them."""
    if text.isascii():
        return text
    if name.lower() in ADDRESSES:
        return ", ".join(sanitize_addresses(split_addresses(text)))
    pieces = _ANGLE.split(text)
    if len(pieces) > 1 and all(piece.isascii() for piece in pieces[1::2]):
        # What stands in brackets stays as it is; blanks around the words do, too.
        for i in range(0, len(pieces), 2):
            words = pieces[i].strip()
            if not words.isascii():
                pieces[i] = pieces[i].replace(words, encoded_words(words, "utf-8", name))
        return "".join(pieces)
    return encoded_words(text, "utf-8", name)


def clean(value: object) -> str:
    """*value* as one line, without what a header must not hold."""
    text = force_text(value)
    if not FORBIDDEN.search(text):
        return text
    return FORBIDDEN.sub("", re.sub(r"[\r\n]+[ \t]*", " ", text)).strip()


def header(name: str, value: str) -> str:
    """One field with its line ends, folded before blanks, where a fold changes nothing."""
    line = f"{name}: {value}"
    if len(line) <= FOLD_AT and "\n" not in line:
        return line + "\r\n"
    lines: list[str] = []
    for part in re.split(r"\r?\n", line):
        first, *pieces = re.findall(r"[ \t]*[^ \t]+", part) if len(part) > FOLD_AT else (part,)
        lines.append(first + "".join(pieces[:1]))
        for piece in pieces[1:]:
            if len(lines[-1]) + len(piece) > FOLD_AT:
                lines.append(piece)
            else:
                lines[-1] += piece
    folded = "\r\n".join(lines)
    if max(map(len, folded.encode().split(b"\r\n"))) > MAX_LINE:
        folded = f"{name}: " + Header(value, utf8(), header_name=name).encode(linesep="\r\n")
    return folded + "\r\n"


def parameter(name: str, value: str, charset_label: str = "utf-8") -> str:
    """One parameter of a MIME header: quoted, or in the sections of RFC 2231 where it is not ASCII."""
    if value.isascii():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{name}="{escaped}"'
    encoded = f"{charset_label}''{quote(value, safe='')}"
    if len(name) + len(encoded) + 2 <= FOLD_AT - 2:
        return f"{name}*={encoded}"
    sections = [""]
    for piece in re.findall(r"%..|[^%]", encoded):  # an octet is not cut
        if len(sections[-1]) + len(piece) > FOLD_AT - len(name) - 8:
            sections.append("")
        sections[-1] += piece
    return "; ".join(f"{name}*{i}*={section}" for i, section in enumerate(sections))
