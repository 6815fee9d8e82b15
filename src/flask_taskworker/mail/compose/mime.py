"""From a message's fields to the bytes on the wire, and the last look at these bytes.

A direct writer: it knows the few shapes that a mail has and writes them without building a tree of objects.
:mod:`email` writes text in charsets other than UTF-8, turns 8bit into 7bit for old servers, and is the judge in the
tests: what is written here must parse to the same mail that :mod:`email` would have made.

The writer never fails on odd fields and never lets them out of their header; refusing them is the task of
:mod:`flask_taskworker.mail.envelope`.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.generator import BytesGenerator
from email.header import Header
from email.mime.text import MIMEText
from email.utils import encode_rfc2231, formatdate
from io import BytesIO
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..errors import BadHeaderError
from .fields import FORBIDDEN, encoded_words, force_text, sanitize_address, sanitize_addresses

MAX_LINE = 998
"""Octets in a line, without its end, that a server must take (RFC 5321, 4.5.3.1.6)."""

_FOLD_AT = 78
_UTF8_NAMES = frozenset({"utf-8", "utf8"})
_SHARE_ABOVE = 1024
_HEADER_LINE = re.compile(r"([!-9;-~]+):")
_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
_CONTENT_TYPE = re.compile(r"[!#$&^_.+A-Za-z0-9-]+/[!#$&^_.+A-Za-z0-9-]+(?:[ \t]*;[ \t]*[\x20-\x7e]*)?")
_BARE_LINE_END = re.compile(rb"\r\n|\r|\n")
_SECRET = secrets.token_bytes(16)

TextPart = Callable[[str | None, str], MIMEText]


class _Part(NamedTuple):
    """A body part: its header lines, each with its line end, and its content."""

    head: str
    body: list[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A message in bytes, in pieces, so that an attachment of a thousand messages can be stored once."""

    segments: tuple[bytes, ...]
    shared: frozenset[int]
    """Which segments are encoded attachments, by position."""

    header_names: tuple[str, ...]
    """The headers that were meant, in order: what :func:`check_written` must find."""

    @property
    def data(self) -> bytes:
        """All of it, with CRLF line ends."""
        return b"".join(self.segments)


def write(
    message: Any, *, date: float | None, ascii_attachments: bool = False, mime_text: TextPart | None = None
) -> Written:
    """Write *message*: ours, or any object with Flask-Mail's attributes.

    ``date`` is a POSIX timestamp; None leaves it to :mod:`email`, which takes the present. ``mime_text`` makes the
    text parts instead of this module where it is given.
    """
    charset = (message.charset or "utf-8").lower()
    part = _body(message, charset, mime_text)
    attachments = [a for a in message.attachments or () if getattr(a, "cid", None) is None]
    if attachments or message.alts:
        parts = [part, *(_attachment(a, ascii_attachments) for a in attachments)]
        part = _multipart("mixed", 1, message, parts)
    fields = list(_fields(message, charset, date))
    head = part.head + "".join(_header(name, value) for name, value in fields) + "\r\n"
    segments = (head.encode(), *part.body)
    names = (*_names(part.head), *(name for name, _ in fields))
    return Written(segments=segments, shared=_shared(segments, message), header_names=names)


def _names(head: str) -> list[str]:
    return [line.partition(":")[0] for line in head.split("\r\n") if line and line[0] not in " \t"]


def _body(message: Any, charset: str, mime_text: TextPart | None) -> _Part:
    """The plain text, with the alternatives around it and the inline pictures beside the HTML."""
    plain = _text(message.body, "plain", charset, mime_text)
    inline = [_attachment(a, False) for a in message.attachments or () if getattr(a, "cid", None) is not None]
    if not message.alts:
        return _multipart("related", 3, message, [plain, *inline]) if inline else plain
    parts = [plain]
    for subtype, content in message.alts.items():
        part = _text(content, subtype, charset, mime_text)
        if subtype == "html" and inline:
            part = _multipart("related", 3, message, [part, *inline])
        parts.append(part)
    return _multipart("alternative", 2, message, parts)


def _multipart(subtype: str, level: int, message: Any, parts: Iterable[_Part]) -> _Part:
    boundary = _boundary(message, level)
    body: list[bytes] = []
    before = "--"
    for part in parts:
        body.append(f"{before}{boundary}\r\n{part.head}\r\n".encode())
        body.extend(part.body)
        before = "\r\n--"
    body.append(f"\r\n--{boundary}--\r\n".encode())
    return _Part(f'Content-Type: multipart/{subtype}; boundary="{boundary}"\r\nMIME-Version: 1.0\r\n', body)


def _boundary(message: Any, level: int) -> str:
    # Nobody can guess it, so the content need not be searched for it; and as_bytes() gives the same bytes each time.
    token = hashlib.blake2b(str(message.msgId).encode("utf-8", "replace"), key=_SECRET, digest_size=12).hexdigest()
    return f"=_{level}_{token}"


# ---------------------------------------------------------------- text


def _text(content: object, subtype: str, charset: str, mime_text: TextPart | None) -> _Part:
    text = "" if content is None else force_text(content)
    if mime_text is not None:
        return _from_mime_text(mime_text(text, subtype))
    if charset not in _UTF8_NAMES:
        return _from_mime_text(MIMEText(text, subtype, charset))
    encoding, body = _encode_utf8(text)
    subtype = FORBIDDEN.sub("", subtype)
    content_type = f'Content-Type: text/{subtype}; charset="utf-8"\r\n'
    return _Part(f"{content_type}MIME-Version: 1.0\r\nContent-Transfer-Encoding: {encoding}\r\n", [body])


def _encode_utf8(text: str) -> tuple[str, bytes]:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    raw = text.encode()
    if 0 in raw or (len(raw) > MAX_LINE and max(map(len, raw.split(b"\n"))) > MAX_LINE):
        return _encode_long(raw)
    return ("7bit" if raw.isascii() else "8bit"), raw.replace(b"\n", b"\r\n")


def _encode_long(raw: bytes) -> tuple[str, bytes]:
    """Text that must not go out as it is: a line is too long for SMTP, or it holds NUL."""
    quoted = binascii.b2a_qp(raw, istext=True).replace(b"\n", b"\r\n")
    if len(quoted) < len(raw) * 4 / 3:
        return "quoted-printable", quoted
    return "base64", base64_lines(raw.replace(b"\n", b"\r\n"))


def _from_mime_text(part: MIMEText) -> _Part:
    encoded = part["Content-Transfer-Encoding"] in ("base64", "quoted-printable")
    payload = part.get_payload() if encoded else part.get_payload(decode=True)
    body = crlf(payload if isinstance(payload, bytes) else str(payload).encode("ascii", "surrogateescape"))
    if max(map(len, body.split(b"\r\n"))) > MAX_LINE:
        del part["Content-Transfer-Encoding"]
        part["Content-Transfer-Encoding"] = "base64"
        body = base64_lines(body)
    return _Part("".join(_header(name, str(value)) for name, value in part.items()), [body])


# ---------------------------------------------------------------- attachments

_encoded: WeakKeyDictionary[Any, tuple[Any, bytes]] = WeakKeyDictionary()


def _attachment(attachment: Any, ascii_attachments: bool) -> _Part:
    content_type = _clean(attachment.content_type)
    if not _CONTENT_TYPE.fullmatch(content_type):
        content_type = "application/octet-stream"
    text = isinstance(attachment.data, str) and not attachment.data.isascii()
    if text and content_type.startswith("text/") and "charset" not in content_type.lower():
        content_type += '; charset="utf-8"'
    lines = [
        _header("Content-Type", content_type),
        "MIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n",
    ]
    if attachment.filename is not None:
        disposition = f"{_clean(attachment.disposition)}; {_filename(attachment.filename, ascii_attachments)}"
        lines.append(_header("Content-Disposition", disposition))
    lines += [_header(name, value) for name, value in _pairs(attachment.headers)]
    return _Part("".join(lines), [_payload(attachment)])


def _payload(attachment: Any) -> bytes:
    """The data in base64, kept as long as the attachment lives: a newsletter has one for all its messages."""
    data = attachment.data
    known = _encoded.get(attachment)
    if known is not None and known[0] is data:
        return known[1]
    encoded = base64_lines(data.encode() if isinstance(data, str) else bytes(data))
    if isinstance(data, str | bytes):  # a bytearray could be changed in place
        _encoded[attachment] = (data, encoded)
    return encoded


def _shared(segments: tuple[bytes, ...], message: Any) -> frozenset[int]:
    if not message.attachments:
        return frozenset()
    encoded = {id(_payload(attachment)) for attachment in message.attachments}
    return frozenset(i for i, segment in enumerate(segments) if id(segment) in encoded and len(segment) > _SHARE_ABOVE)


def base64_lines(data: bytes) -> bytes:
    """*data* in base64, 76 characters a line."""
    encoded = binascii.b2a_base64(data, newline=False)
    return b"\r\n".join([encoded[i : i + 76] for i in range(0, len(encoded), 76)])


def _filename(name: str, to_ascii: bool) -> str:
    name = base_name(FORBIDDEN.sub("", force_text(name)))
    if to_ascii:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
        name = re.sub(r"\s+", " ", plain).strip()
    if name.isascii():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'filename="{escaped}"'
    return f"filename*={encode_rfc2231(name, 'UTF8')}"


def base_name(name: str) -> str:
    """The last part of a path of any system, in at most 200 characters; "attachment" where nothing is left."""
    name = re.split(r"[/\\]", name)[-1].strip()
    if name.strip(". ") == "":
        return "attachment" if name else name
    stem, dot, extension = name.rpartition(".")
    return name if len(name) <= 200 else (stem or name)[: 190 - len(extension[:20])] + dot + extension[:20]


# ---------------------------------------------------------------- headers


def _fields(message: Any, charset: str, date: float | None) -> Iterable[tuple[str, str]]:
    subject = _subject(message.subject, charset)
    if subject:
        yield "Subject", subject
    yield "From", sanitize_address(message.sender or "", charset)
    yield "To", _addresses(message.recipients, charset) or "undisclosed-recipients:;"
    yield "Date", formatdate(date, localtime=True)
    yield "Message-ID", _clean(message.msgId)
    if message.cc:
        yield "Cc", _addresses(message.cc, charset)
    if message.reply_to:
        yield "Reply-To", sanitize_address(message.reply_to, charset)
    yield from _pairs(message.extra_headers)


def _addresses(addresses: Iterable[Any], charset: str) -> str:
    return ", ".join(dict.fromkeys(sanitize_addresses(addresses, charset)))


def _subject(subject: Any, charset: str) -> str:
    text = force_text(subject) if subject else ""
    if not text.isascii():
        return encoded_words(_clean(text), charset, "Subject")
    if FORBIDDEN.search(text) and not is_folded(text):
        return _clean(text)
    return text


def is_folded(text: str) -> bool:
    """Whether *text*, which has line breaks, is one header value in several lines as RFC 5322 folds it."""
    first, *rest = text.split("\r\n")
    lines_end_well = all(line[:1] in (" ", "\t") and line.strip() for line in rest) and first != ""
    return lines_end_well and not any(FORBIDDEN.search(line) for line in (first, *rest))


def _pairs(headers: Any) -> Iterable[tuple[str, str]]:
    """Extra headers: names by allow-list, values cleaned and encoded. Bcc is never written, whoever asks."""
    for name, value in dict(headers or {}).items():
        if _HEADER_NAME.fullmatch(str(name)) and str(name).lower() not in ("bcc", "resent-bcc"):
            text = _clean(value.encode() if isinstance(value, Header) else value)
            yield str(name), text if text.isascii() else encoded_words(text, "utf-8", str(name))


def _clean(value: object) -> str:
    text = force_text(value)
    if not FORBIDDEN.search(text):
        return text
    return FORBIDDEN.sub("", re.sub(r"[\r\n]+[ \t]*", " ", text)).strip()


def _header(name: str, value: str) -> str:
    line = f"{name}: {value}"
    if len(line) <= _FOLD_AT and "\n" not in line:
        return line + "\r\n"
    folded = "\r\n".join(_fold(part) for part in re.split(r"\r?\n", line))
    if max(map(len, folded.encode().split(b"\r\n"))) > MAX_LINE:
        folded = f"{name}: " + Header(value, "utf-8", header_name=name).encode(linesep="\r\n")
    return folded + "\r\n"


def _fold(line: str) -> str:
    """Break *line* before blanks, which is the only place where a fold changes nothing."""
    if len(line) <= _FOLD_AT:
        return line
    pieces = re.findall(r"[ \t]*[^ \t]+", line)
    lines = ["".join(pieces[:2])]
    for piece in pieces[2:]:
        if len(lines[-1]) + len(piece) > _FOLD_AT:
            lines.append(piece)
        else:
            lines[-1] += piece
    return "\r\n".join(lines)


# ---------------------------------------------------------------- the last look


def crlf(data: bytes) -> bytes:
    """*data* with CRLF for every line end, however it was written."""
    ends = data.count(b"\r\n")
    if ends == data.count(b"\n") == data.count(b"\r"):
        return data
    return _BARE_LINE_END.sub(b"\r\n", data)


def check_written(data: bytes, header_names: Iterable[str] | None = None) -> None:
    """Read the written bytes again: exactly the headers that were meant, only CRLF, no NUL, no overlong line.

    Without *header_names*, for a message that writes itself, it must be headers all the same, and no Bcc; and its
    body's lines are measured too, which the writer here has done part by part.
    """
    ends = data.count(b"\r\n")
    if not ends == data.count(b"\n") == data.count(b"\r") or 0 in data:
        raise BadHeaderError("The message holds a bare line end or NUL after it was written.")
    head = data[: data.find(b"\r\n\r\n")] if b"\r\n\r\n" in data else data
    if max(map(len, (head if header_names is not None else data).split(b"\r\n"))) > MAX_LINE:
        raise BadHeaderError(f"The message has a line of more than {MAX_LINE} octets after it was written.")
    found = _header_names(head)
    wrong = "bcc" in map(str.lower, found) if header_names is None else found != list(header_names)
    if wrong:
        raise BadHeaderError(f"The written message has the headers {found}, which is not what was asked for.")


def _header_names(head: bytes) -> list[str]:
    found = []
    for line in head.decode("utf-8", "surrogateescape").split("\r\n"):
        match = _HEADER_LINE.match(line)
        if match:
            found.append(match[1])
        elif not line or line[0] not in " \t" or not found or not line.strip():
            raise BadHeaderError(f"The written message has a line {line[:60]!r} among its headers.")
    return found


def to_seven_bit(data: bytes) -> bytes:
    """The same mail for a server without 8BITMIME: every 8bit part in base64, all headers as they were."""
    out = BytesIO()
    # max_line_length=0 leaves each header as it is written; refolding is where the standard library let headers in.
    seven_bit = policy.compat32.clone(cte_type="7bit", linesep="\r\n", max_line_length=0)
    BytesGenerator(out, mangle_from_=False, policy=seven_bit).flatten(message_from_bytes(data))
    return crlf(out.getvalue())


def wire_form(data: bytes) -> bytes:
    """What follows DATA: *data* with CRLF only, its leading dots doubled, and the final dot."""
    data = crlf(data)
    if b"\r\n." in data:
        data = data.replace(b"\r\n.", b"\r\n..")
    if data.startswith(b"."):
        data = b"." + data
    return data + (b".\r\n" if data.endswith(b"\r\n") else b"\r\n.\r\n")
