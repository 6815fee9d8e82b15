"""A queued mail's bytes as people look at them: its header lines, its texts and what is attached.

Reading never fails on odd bytes: what cannot be decoded is shown with replacement characters. It takes a bounded time,
whatever a stranger has put into the mail: of header lines, encoded words and nested parts the first are read.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesFeedParser
from email.policy import Policy, compat32
from itertools import islice
from typing import Any, cast

from ...store.sql import Store
from ...store.statements import mails as mail_statements
from .queue import blobs_in, joined

MAX_SHOWN = 500_000
"""Characters of a text that are shown."""
MAX_HTML = 4_000_000
"""Characters of HTML with the pictures in it."""

MAX_PARTS = 200
"""Parts that are read."""
_MAX_NESTED = 10
"""Parts that may hold others."""
_MAX_HEAD = 200_000
"""Octets of header lines that are read at the beginning of a mail."""
_MAX_HEADERS = 3_000
"""Header lines that are read in all its parts."""
_MAX_HEADER = 10_000
"""Characters of a header that are read; of one that describes a part, a tenth."""
_MAX_PARAMETERS = 20

_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters, and those that turn the direction of what follows."""
_PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclosed:
    """Something that is attached to a mail."""

    name: str
    content_type: str
    size: int
    """Octets, decoded."""
    is_inline: bool
    """Whether the HTML part shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A mail that was read."""

    headers: tuple[tuple[str, str], ...]
    text: str | None
    html: str | None
    """With the pictures that it shows as ``data:`` URLs."""
    attachments: tuple[Enclosed, ...]

    @classmethod
    def of(cls, data: bytes, *, most: int = MAX_SHOWN) -> Letter:
        """Read the bytes of a mail; of each of its texts the first *most* characters."""
        parts = list(islice(_leaves(_parsed(data)), MAX_PARTS))
        bodies = {part.get_content_subtype(): part for part in reversed(parts) if _is_body(part)}
        html = text_of(bodies["html"], most) if "html" in bodies else None
        attached = [part for part in parts if part not in bodies.values()]
        return cls(
            headers=headers_of(data),
            text=text_of(bodies["plain"], most) if "plain" in bodies else None,
            html=html and _with_pictures(html, attached),
            attachments=tuple(_enclosed(part) for part in attached),
        )


def mail_bytes(store: Store, mail_id: str) -> bytes | None:
    """The bytes of a queued mail; None where they are not there any more.

    Raises StoreError; NotDecodable where what is stored cannot be read.
    """
    store.driver.prepare()
    rows = store.driver.read(mail_statements.MAIL_BYTES, {"id": mail_id})
    if not rows:
        return None
    layout, body = rows[0]
    hashes = json.dumps(list(blobs_in([layout])))
    blobs = store.driver.read(mail_statements.blobs(store.driver.dialect), {"hashes": hashes}) if layout else []
    return joined(layout, body, dict(blobs))


def headers_of(head: bytes) -> tuple[tuple[str, str], ...]:
    """The header lines of a mail, decoded, by its beginning; a line that was cut in two is left out."""
    lines = head.replace(b"\r\n", b"\n").partition(b"\n\n")
    whole = lines[0] if lines[1] and len(lines[0]) <= _MAX_HEAD else lines[0][:_MAX_HEAD].rpartition(b"\n")[0]
    return tuple((name, decoded(str(value))) for name, value in _parsed(whole + b"\n\n").items())


def header_in(headers: Sequence[tuple[str, str]], wanted: str) -> str | None:
    """The first header of that name."""
    return next((value for name, value in headers if name.lower() == wanted.lower()), None)


def decoded(value: str) -> str:
    """A header's value as one line of text, in which nothing steers what shows it."""
    line = " ".join(value[:_MAX_HEADER].split())
    if "=?" not in line:
        return plain(line)
    # What cannot be decoded stays as it was written.
    with suppress(HeaderParseError, LookupError, ValueError):
        line = str(make_header(decode_header(line)))
    return plain(line)


def plain(text: str) -> str:
    """*text* with a mark in the place of each character that would steer what shows it."""
    return _STEERING.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))


class _TooMuch(Exception):
    pass


class _Part(Message):
    """A part of a mail, with headers of bounded length. An attached mail is not taken apart."""

    def __init__(self, policy: Policy[Any], siblings: _Parts) -> None:
        super().__init__(policy)
        self._siblings = siblings
        self.holds_mail: bool = False

    def set_raw(self, name: str, value: Any) -> None:
        """Called by the parser with each header."""
        self._siblings.headers += 1
        if self._siblings.headers > _MAX_HEADERS:
            raise _TooMuch
        text = str(value)[:_MAX_HEADER]
        if name.lower().startswith("content-"):
            text = ";".join(text[: _MAX_HEADER // 10].split(";", _MAX_PARAMETERS)[:_MAX_PARAMETERS])
        if name.lower() == "content-type":
            kind = text.lstrip().lower()
            self.holds_mail = self.holds_mail or kind.startswith("message/")
            self._siblings.nested += kind.startswith("multipart/")
            if self.holds_mail or self._siblings.nested > _MAX_NESTED:
                text = "application/octet-stream;" + text.partition(";")[2]
        super().set_raw(name, text)


class _Parts:
    """Makes the parts of one mail for the parser."""

    def __init__(self) -> None:
        self.made: list[_Part] = []
        self.nested = self.headers = 0

    def __call__(self, policy: Policy[Any] = compat32) -> _Part:
        self.made.append(_Part(policy, self))
        # The first is the parser's trial.
        if len(self.made) > MAX_PARTS + _MAX_NESTED:
            raise _TooMuch
        return self.made[-1]


def _parsed(data: bytes) -> _Part:
    parts = _Parts()
    parser = BytesFeedParser(_factory=parts)
    with suppress(_TooMuch):
        parser.feed(data)
        parser.close()
    return parts.made[1]


def _leaves(part: _Part) -> Iterator[_Part]:
    """The parts that hold no others; a mail that is attached counts as one, whatever is in it."""
    if part.is_multipart():
        for inner in part.get_payload():
            yield from _leaves(cast(_Part, inner))
    else:
        yield part


def _is_body(part: _Part) -> bool:
    is_attached = part.get_content_disposition() == "attachment" or part.get_filename() is not None
    return part.get_content_type() in ("text/plain", "text/html") and not is_attached


def _octets(part: _Part) -> bytes:
    try:
        found = part.get_payload(decode=True)
    except ValueError:
        # Of a charset that takes not everything, such as idna, and of one with NUL in its name.
        part.set_param("charset", "utf-8")
        found = part.get_payload(decode=True)
    return found if isinstance(found, bytes) else b""


def text_of(part: _Part, most: int) -> str:
    """The first *most* characters of a part, whatever charset it claims."""
    octets = _octets(part)[: most * 4]
    try:
        text = octets.decode(part.get_content_charset("utf-8"), "replace")
    except (LookupError, ValueError):
        text = octets.decode("utf-8", "replace")
    # Half a surrogate pair, which some charsets know, could not be sent on.
    return text[:most].encode("utf-8", "replace").decode("utf-8")


def _enclosed(part: _Part) -> Enclosed:
    octets = _octets(part)
    subject = header_in(headers_of(octets), "Subject") if part.holds_mail else None
    return Enclosed(
        name=decoded(part.get_filename() or subject or "(no name)")[:200],
        content_type="message/rfc822" if part.holds_mail else plain(part.get_content_type())[:100],
        size=len(octets),
        is_inline="content-id" in part,
    )


def _with_pictures(html: str, parts: Sequence[_Part]) -> str:
    named = [(str(part.get("content-id", "")).strip(" <>"), part) for part in parts]
    # The longest first: "logo" is the beginning of "logo2".
    for cid, part in sorted(named, key=lambda pair: -len(pair[0])):
        kind = part.get_content_type()
        picture = _octets(part) if cid and kind in _PICTURES else b""
        url = f"data:{kind};base64,{base64.b64encode(picture).decode()}"
        # A mail may show one picture a million times.
        if picture and len(html) + html.count(f"cid:{cid}") * len(url) <= MAX_HTML:
            html = html.replace(f"cid:{cid}", url)
    return html
