"""A queued mail's bytes as people look at them: its header lines, its texts and what is attached.

Reading never fails on odd bytes: what cannot be decoded is shown with replacement characters.
"""

from __future__ import annotations

import base64
import email
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message as Part
from typing import cast

from ..store import mail_statements
from ..store.sql import Store
from .queue import blobs_in, joined

MAX_SHOWN = 500_000
"""Characters of a text that are shown."""
MAX_HTML = 4_000_000
"""Characters of HTML with the pictures in it."""

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
        parts = list(_leaves(email.message_from_bytes(data)))
        bodies = {part.get_content_subtype(): part for part in reversed(parts) if _is_body(part)}
        html = _text(bodies["html"], most) if "html" in bodies else None
        attached = [part for part in parts if part not in bodies.values()]
        return cls(
            headers=headers_of(data),
            text=_text(bodies["plain"], most) if "plain" in bodies else None,
            html=html and _with_pictures(html, attached),
            attachments=tuple(_enclosed(part) for part in attached),
        )


def mail_bytes(store: Store, mail_id: str) -> bytes | None:
    """The bytes of a queued mail; None where they are not there any more.

    Raises StoreError; NotDecodable where what is stored cannot be read.
    """
    store.driver.prepare()
    rows = store.driver.read(mail_statements.mail_bytes(), {"id": mail_id})
    if not rows:
        return None
    layout, body = rows[0]
    hashes = json.dumps(list(blobs_in([layout])))
    blobs = store.driver.read(mail_statements.blobs(store.driver.dialect), {"hashes": hashes}) if layout else []
    return joined(layout, body, dict(blobs))


def headers_of(head: bytes) -> tuple[tuple[str, str], ...]:
    """The header lines of a mail, decoded, by its beginning; a line that was cut in two is left out."""
    lines = head.replace(b"\r\n", b"\n").partition(b"\n\n")
    whole = lines[0] if lines[1] else lines[0].rpartition(b"\n")[0]
    return tuple((name, decoded(str(value))) for name, value in email.message_from_bytes(whole + b"\n\n").items())


def header_in(headers: Sequence[tuple[str, str]], wanted: str) -> str | None:
    """The first header of that name."""
    return next((value for name, value in headers if name.lower() == wanted.lower()), None)


def decoded(value: str) -> str:
    """A header's value as one line of text, in which nothing steers what shows it."""
    line = " ".join(value.split())
    if "=?" not in line:
        return plain(line)
    # What cannot be decoded stays as it was written.
    with suppress(HeaderParseError, LookupError, ValueError):
        line = str(make_header(decode_header(line)))
    return plain(line)


def plain(text: str) -> str:
    """*text* with a mark in the place of each character that would steer what shows it."""
    return _STEERING.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))


def _leaves(part: Part) -> Iterator[Part]:
    """The parts that hold no others; a mail that is attached counts as one, whatever is in it."""
    if part.is_multipart() and part.get_content_maintype() != "message":
        for inner in part.get_payload():
            yield from _leaves(cast(Part, inner))
    else:
        yield part


def _is_body(part: Part) -> bool:
    is_attached = part.get_content_disposition() == "attachment" or part.get_filename() is not None
    return part.get_content_type() in ("text/plain", "text/html") and not is_attached


def _octets(part: Part) -> bytes:
    try:
        found = part.get_payload(decode=True)
    except ValueError:
        # Of a charset that takes not everything, such as idna, and of one with NUL in its name.
        part.set_param("charset", "utf-8")
        found = part.get_payload(decode=True)
    return found if isinstance(found, bytes) else b""


def _text(part: Part, most: int) -> str:
    octets = _octets(part)[: most * 4]
    try:
        text = octets.decode(part.get_content_charset("utf-8"), "replace")
    except (LookupError, ValueError):
        text = octets.decode("utf-8", "replace")
    # Half a surrogate pair, which some charsets know, could not be sent on.
    return text[:most].encode("utf-8", "replace").decode("utf-8")


def _enclosed(part: Part) -> Enclosed:
    octets = _mail_in(part) if part.is_multipart() else _octets(part)
    subject = header_in(headers_of(octets), "Subject") if part.get_content_maintype() == "message" else None
    return Enclosed(
        name=decoded(part.get_filename() or subject or "(no name)")[:200],
        content_type=plain(part.get_content_type())[:100],
        size=len(octets),
        is_inline="content-id" in part,
    )


def _mail_in(part: Part) -> bytes:
    """The bytes of an attached mail, or about these: its headers are written anew.

    It may stand there in base64, although RFC 2046 (5.2.1) forbids that: then its code was read as the mail.
    """
    inner = cast(Part, next(iter(part.get_payload()), Part()))
    text = inner.get_payload()
    if str(part.get("content-transfer-encoding", "")).strip().lower() == "base64" and isinstance(text, str):
        with suppress(ValueError):
            return base64.b64decode(text.encode("ascii", "replace"))
    head = "".join(f"{name}: {value}\r\n" for name, value in inner.items())
    body = b"".join(_octets(leaf) for leaf in _leaves(inner))
    return f"{head}\r\n".encode("utf-8", "replace") + body


def _with_pictures(html: str, parts: Sequence[Part]) -> str:
    # The longest first: "logo" is the beginning of "logo2".
    for cid, part in sorted(((_cid(part), part) for part in parts), key=lambda named: -len(named[0])):
        kind = part.get_content_type()
        picture = _octets(part) if cid and kind in _PICTURES else b""
        url = f"data:{kind};base64,{base64.b64encode(picture).decode()}"
        # A mail may show one picture a million times.
        if picture and len(html) + html.count(f"cid:{cid}") * len(url) <= MAX_HTML:
            html = html.replace(f"cid:{cid}", url)
    return html


def _cid(part: Part) -> str:
    return str(part.get("content-id", "")).strip(" <>")
