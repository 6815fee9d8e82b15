"""From a message's fields to the bytes on the wire, and the last look at these bytes.

A direct writer: it knows the few shapes that a mail has and writes them without building a tree of objects.
:mod:`email` writes text in charsets other than UTF-8, and is the judge in the tests: what is written here must parse
to the same mail that :mod:`email` would have made.

The writer never fails on odd fields and never lets them out of their header; refusing them is the task of
:mod:`.prepare`.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.mime.text import MIMEText
from email.utils import formatdate
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..errors import BadHeaderError
from .fields import FORBIDDEN, as_list, encoded_words, force_text, sanitize_address, sanitize_addresses
from .headers import HIDDEN, MAX_LINE, clean, header, pairs, parameter
from .html_text import text_of

_UTF8_NAMES = frozenset({"utf-8", "utf8"})
_SHARE_ABOVE = 1024
_LONGEST_NAME = 200
_HEADER_LINE = re.compile(r"([!-9;-~]+):")
_CONTENT_TYPE = re.compile(r"[!#$&^_.+A-Za-z0-9-]+/[!#$&^_.+A-Za-z0-9-]+(?:[ \t]*;[ \t]*[\x20-\x7e]*)?")
_SUBTYPE = re.compile(r"([!#$&^_.+A-Za-z0-9-]+)[ \t]*(?:;[ \t]*([\x20-\x7e]*))?")
_CHARSET = re.compile(r'[ \t]*;[ \t]*charset[ \t]*=[ \t]*"?([^"; \t]*)"?', re.IGNORECASE)
_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^";\s]+))', re.IGNORECASE)
_ENCODING_LINE = re.compile(r"(?is)\A(Content-Transfer-Encoding:).*")
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

    message_id: str

    @property
    def data(self) -> bytes:
        """All of it, with CRLF line ends."""
        return b"".join(self.segments)


def write(
    message: Any,
    *,
    date: float | None,
    ascii_attachments: bool = False,
    mime_text: TextPart | None = None,
    charset_label: str = "utf-8",
) -> Written:
    """Write *message*: ours, or any object with Flask-Mail's attributes.

    ``date`` is a POSIX timestamp; None leaves it to :mod:`email`, which takes the present. ``mime_text`` makes the
    text parts instead of this module where it is given. ``charset_label`` names UTF-8 in the names of attachments.
    """
    charset = (message.charset or "utf-8").lower()
    part = _body(message, charset, mime_text)
    attachments = [a for a in message.attachments or () if getattr(a, "cid", None) is None]
    if attachments or message.alts:
        parts = [part, *(_attachment(a, ascii_attachments, charset_label) for a in attachments)]
        part = _multipart("mixed", 1, message, parts)
    fields = _fields(message, charset, date)
    head = part.head + "".join([header(name, value) for name, value in fields.items()]) + "\r\n"
    segments = (head.encode(), *part.body)
    encoded = {id(_encode(attachment).body) for attachment in message.attachments or ()}
    shared = [i for i, s in enumerate(segments) if id(s) in encoded and len(s) > _SHARE_ABOVE] if encoded else ()
    names = [line.partition(":")[0] for line in part.head.split("\r\n") if line and line[0] not in " \t"]
    return Written(
        segments=segments,
        shared=frozenset(shared),
        header_names=(*names, *fields),
        message_id=fields["Message-ID"],
    )


def _body(message: Any, charset: str, mime_text: TextPart | None) -> _Part:
    """The plain text, with the alternatives around it and the inline pictures beside the HTML."""
    inline = [_attachment(a, False) for a in message.attachments or () if getattr(a, "cid", None) is not None]
    if not message.alts:
        plain = _text(message.body, "plain", charset, mime_text)
        return _multipart("related", 3, message, [plain, *inline]) if inline else plain
    # Never an empty one: some clients would show it instead of the HTML.
    if message.body:
        parts = [_text(message.body, "plain", charset, mime_text)]
    else:
        words = text_of(force_text(message.alts.get("html") or ""))
        # In UTF-8: what the HTML wrote as an entity may not be in its charset.
        parts = [_text(words, "plain", "utf-8", mime_text)] if words else []
    for subtype, content in message.alts.items():
        part = _text(content, subtype, charset, mime_text)
        if subtype == "html" and inline:
            part = _multipart("related", 3, message, [part, *inline])
        parts.append(part)
    return _multipart("alternative", 2, message, parts)


def _multipart(subtype: str, level: int, message: Any, parts: Iterable[_Part]) -> _Part:
    boundary = f"=_{level}_{_token(str(message.msgId))}"
    body: list[bytes] = []
    before = "--"
    for part in parts:
        body.append(f"{before}{boundary}\r\n{part.head}\r\n".encode())
        body.extend(part.body)
        before = "\r\n--"
    body.append(f"\r\n--{boundary}--\r\n".encode())
    return _Part(f'Content-Type: multipart/{subtype}; boundary="{boundary}"\r\nMIME-Version: 1.0\r\n', body)


@lru_cache(maxsize=1)
def _token(message_id: str) -> str:
    """It cannot be guessed, so the content is not searched for it; and as_bytes() gives the same bytes each time."""
    return hashlib.blake2b(message_id.encode("utf-8", "replace"), key=_SECRET, digest_size=12).hexdigest()


# ---------------------------------------------------------------- text


def _text(content: object, kind: str, charset: str, mime_text: TextPart | None) -> _Part:
    """A text part; *kind* is a subtype, with parameters where it has some: ``calendar; method=REQUEST``."""
    text = "" if content is None else force_text(content)
    subtype, more, charset, content_type = _text_type(kind, charset)
    if mime_text is not None or charset not in _UTF8_NAMES:
        part = mime_text(text, subtype) if mime_text is not None else MIMEText(text, subtype, charset)
        return _from_mime_text(part, more)
    encoding, body = _encode_utf8(text)
    return _Part(f"{content_type}MIME-Version: 1.0\r\nContent-Transfer-Encoding: {encoding}\r\n", [body])


@lru_cache(maxsize=64)
def _text_type(kind: str, charset: str) -> tuple[str, str, str, str]:
    """The subtype in *kind*, its parameters but the charset, the charset, and the header for a text in UTF-8."""
    match = _SUBTYPE.fullmatch(clean(kind))
    subtype, parameters = (match[1], match[2] or "") if match else (FORBIDDEN.sub("", kind), "")
    declared = _CHARSET.search(f";{parameters}")
    if declared is not None:
        charset = declared[1].lower()
        parameters = _CHARSET.sub("", f";{parameters}").strip("; \t")
    more = f"; {parameters}" if parameters else ""
    return subtype, more, charset, header("Content-Type", f'text/{subtype}{more}; charset="utf-8"')


def _encode_utf8(text: str) -> tuple[str, bytes]:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    raw = text.encode()
    if 0 in raw or (len(raw) > MAX_LINE and max(map(len, raw.split(b"\n"))) > MAX_LINE):
        # It must not go out as it is: a line is too long for SMTP, or it holds NUL.
        quoted = binascii.b2a_qp(raw, istext=True).replace(b"\n", b"\r\n")
        if len(quoted) < len(raw) * 4 / 3:
            return "quoted-printable", quoted
        return "base64", base64_lines(raw.replace(b"\n", b"\r\n"))
    return ("7bit" if raw.isascii() else "8bit"), raw.replace(b"\n", b"\r\n")


def _from_mime_text(part: MIMEText, parameters: str) -> _Part:
    encoded = part["Content-Transfer-Encoding"] in ("base64", "quoted-printable")
    payload = part.get_payload() if encoded else part.get_payload(decode=True)
    body = crlf(payload if isinstance(payload, bytes) else str(payload).encode("ascii", "surrogateescape"))
    if max(map(len, body.split(b"\r\n"))) > MAX_LINE:
        del part["Content-Transfer-Encoding"]
        part["Content-Transfer-Encoding"] = "base64"
        body = base64_lines(body)
    if parameters:
        part.replace_header("Content-Type", f"{part['Content-Type']}{parameters}")
    return _Part("".join(header(name, str(value)) for name, value in part.items()), [body])


# ---------------------------------------------------------------- attachments


class _Encoded(NamedTuple):
    """The data of an attachment as it is sent, and what its headers must say about it."""

    data: object
    declared: str
    content_type: str
    transfer_encoding: str
    body: bytes


_encoded: WeakKeyDictionary[Any, _Encoded] = WeakKeyDictionary()


def _attachment(attachment: Any, ascii_attachments: bool, charset_label: str = "utf-8") -> _Part:
    encoded = _encode(attachment)
    lines = [
        header("Content-Type", encoded.content_type),
        f"MIME-Version: 1.0\r\nContent-Transfer-Encoding: {encoded.transfer_encoding}\r\n",
    ]
    if attachment.filename is not None:
        name = file_name(attachment.filename, to_ascii=ascii_attachments)
        disposition = f"{clean(attachment.disposition)}; {parameter('filename', name, charset_label)}"
        lines.append(header("Content-Disposition", disposition))
    lines += [header(name, value) for name, value in pairs(attachment.headers)]
    return _Part("".join(lines), [encoded.body])


def _encode(attachment: Any) -> _Encoded:
    """Kept as long as the attachment lives: a newsletter has one for all its messages."""
    data, declared = attachment.data, attachment.content_type
    known = _encoded.get(attachment)
    if known is not None and known.data is data and known.declared == declared:
        return known
    content_type = clean(declared)
    if not _CONTENT_TYPE.fullmatch(content_type):
        content_type = "application/octet-stream"
    raw, content_type = _octets(data, content_type)
    transfer_encoding, body = "base64", b""
    if content_type.lower().startswith(("message/", "multipart/")):
        content_type, transfer_encoding, body = _composite(raw, content_type)
    if transfer_encoding == "base64":
        body = base64_lines(raw)
    encoded = _Encoded(data, declared, content_type, transfer_encoding, body)
    if isinstance(data, str | bytes):  # a bytearray could be changed in place
        _encoded[attachment] = encoded
    return encoded


def _octets(data: Any, content_type: str) -> tuple[bytes, str]:
    """The data in bytes, text in the charset that its type declares; where that cannot hold it, UTF-8 is declared."""
    if not isinstance(data, str):
        return bytes(data), content_type
    declared = _CHARSET.search(content_type)
    if declared is not None:
        try:
            return data.encode(declared[1]), content_type
        except (LookupError, UnicodeEncodeError):
            content_type = _CHARSET.sub("", content_type, count=1) + '; charset="utf-8"'
    elif content_type.startswith("text/") and not data.isascii():
        content_type += '; charset="utf-8"'
    return data.encode(), content_type


def _composite(raw: bytes, content_type: str) -> tuple[str, str, bytes]:
    """A mail, or a multipart, is sent as it is (RFC 2045, 6.4, and RFC 2046, 5.2.1), or else called a mere file."""
    body = crlf(raw)
    may_be_8bit = content_type.lower().startswith(("message/rfc822", "message/global", "multipart/"))
    if 0 in body or max(map(len, body.split(b"\r\n"))) > MAX_LINE or not (body.isascii() or may_be_8bit):
        return "application/octet-stream", "base64", b""
    return content_type, "7bit" if body.isascii() else "8bit", body


def base64_lines(data: bytes) -> bytes:
    """*data* in base64, 76 characters a line."""
    encoded = binascii.b2a_base64(data, newline=False)
    return b"\r\n".join([encoded[i : i + 76] for i in range(0, len(encoded), 76)])


def file_name(name: object, *, to_ascii: bool = False) -> str:
    """The last part of a path of any system, in at most 200 characters; "attachment" for what leaves no name."""
    given = re.split(r"[/\\]", FORBIDDEN.sub("", force_text(name)))[-1].strip()
    if to_ascii and given:
        plain = unicodedata.normalize("NFKD", given).encode("ascii", "ignore").decode("ascii")
        plain = re.sub(r"\s+", " ", plain).strip()
        given = f"attachment{plain.strip()}" if plain.startswith(".") and not given.startswith(".") else plain
        given = given or "attachment"
    if not given.strip(". "):
        return "attachment" if given else given
    stem, dot, extension = given.rpartition(".") if "." in given else (given, "", "")
    if len(given) > _LONGEST_NAME:
        extension = extension[:20]
        stem = stem[: _LONGEST_NAME - 10 - len(extension)]
    return f"{stem}{dot}{extension}"


# ---------------------------------------------------------------- headers


def _fields(message: Any, charset: str, date: float | None) -> dict[str, str]:
    """The header fields in their order; those of ``extra_headers`` replace ours of the same name."""
    fields = dict(_own_fields(message, charset, date))
    if message.extra_headers:
        ours = {name.lower(): name for name in fields}
        for name, value in pairs(message.extra_headers):
            fields[ours.setdefault(name.lower(), name)] = value
    return fields


def _own_fields(message: Any, charset: str, date: float | None) -> Iterator[tuple[str, str]]:
    subject = force_text(message.subject) if message.subject else ""
    if not subject.isascii():
        yield "Subject", encoded_words(clean(subject), charset, "Subject")
    elif subject:
        yield "Subject", subject if is_folded(subject) else clean(subject)
    yield "From", sanitize_address(message.sender or "", charset)
    yield "To", _addresses(message.recipients, charset) or "undisclosed-recipients:;"
    yield "Date", formatdate(date, localtime=True)
    yield "Message-ID", clean(message.msgId)
    if message.cc:
        yield "Cc", _addresses(message.cc, charset)
    if message.reply_to:
        yield "Reply-To", _addresses(as_list(message.reply_to), charset)


def _addresses(addresses: Iterable[Any], charset: str) -> str:
    return ", ".join(dict.fromkeys(sanitize_addresses(addresses, charset)))


def is_folded(text: str) -> bool:
    """Whether *text*, which has line breaks, is one header value in several lines as RFC 5322 folds it."""
    first, *rest = text.split("\r\n")
    lines_end_well = all(line[:1] in (" ", "\t") and line.strip() for line in rest) and first != ""
    return lines_end_well and not any(FORBIDDEN.search(line) for line in (first, *rest))


# ---------------------------------------------------------------- the last look


def crlf(data: bytes) -> bytes:
    """*data* with CRLF for every line end, however it was written."""
    return data if has_only_crlf(data) else _BARE_LINE_END.sub(b"\r\n", data)


def has_only_crlf(data: bytes) -> bool:
    """Whether each line end is CRLF. Replacing single octets is several times as fast as counting the ends."""
    return data == data.replace(b"\r", b"").replace(b"\n", b"\r\n")


def check_written(data: bytes, header_names: Iterable[str] | None = None) -> None:
    """Read the written bytes again: exactly the headers that were meant, only CRLF, no NUL, no overlong line.

    Without *header_names*, for a message that writes itself, it must still be headers, and no Bcc; and its body's
    lines are measured too, which the writer here has done part by part.
    """
    if 0 in data or not has_only_crlf(data):
        raise BadHeaderError("The message holds a bare line end or NUL after it was written.")
    head = data[: data.find(b"\r\n\r\n")] if b"\r\n\r\n" in data else data
    if max(map(len, (head if header_names is not None else data).split(b"\r\n"))) > MAX_LINE:
        raise BadHeaderError(f"The message has a line of more than {MAX_LINE} octets after it was written.")
    found = []
    for line in head.decode("utf-8", "surrogateescape").split("\r\n"):
        match = _HEADER_LINE.match(line)
        if match:
            found.append(match[1])
        elif not line or line[0] not in " \t" or not found or not line.strip():
            raise BadHeaderError(f"The written message has a line {line[:60]!r} among its headers.")
    if HIDDEN.intersection(map(str.lower, found)) if header_names is None else found != list(header_names):
        raise BadHeaderError(f"The written message has the headers {found}, which is not what was asked for.")


def to_seven_bit(data: bytes) -> bytes:
    """The same mail for a server without 8BITMIME: every 8bit part in base64, all other headers as they were."""
    if data.isascii():
        return data
    head, _, body = data.partition(b"\r\n\r\n") if not data.startswith(b"\r\n") else (b"", b"", data[2:])
    lines = [line for line in re.split(r"\r\n(?![ \t])", head.decode("utf-8", "surrogateescape")) if line]
    known = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
    content_type = re.sub(r"\s+", " ", known.get("content-type", "text/plain"))
    encoding = "7bit"
    boundary = _BOUNDARY.search(content_type)
    if content_type.lower().startswith("multipart/") and boundary is not None:
        name = re.sub(r"\\(.)", r"\1", boundary[1]) if boundary[1] is not None else boundary[2]
        body = _seven_bit_parts(body, name.encode())
    elif content_type.lower().startswith("message/rfc822"):
        body = to_seven_bit(body)
    else:
        encoding, body = "base64", base64_lines(body)
    if "content-transfer-encoding" not in known and encoding != "7bit":
        lines.append("Content-Transfer-Encoding: ")
    lines = [_ENCODING_LINE.sub(rf"\1 {encoding}", line) for line in lines]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def _seven_bit_parts(body: bytes, boundary: bytes) -> bytes:
    delimiter = re.compile(rb"((?:\A|\r\n)--" + re.escape(boundary) + rb"(?:--)?[ \t]*(?=\r\n|\Z))")
    pieces = delimiter.split(body)
    for i in range(0, len(pieces), 2):
        if i > 0 and not pieces[i - 1].rstrip().endswith(boundary + b"--"):
            pieces[i] = b"\r\n" + to_seven_bit(pieces[i].removeprefix(b"\r\n"))
        else:  # before the first part or behind the last, where no reader looks
            pieces[i] = pieces[i].decode("utf-8", "replace").encode("ascii", "replace")
    return b"".join(pieces)


def wire_form(data: bytes) -> bytes:
    """What follows DATA: *data* with CRLF only, its leading dots doubled, and the final dot."""
    data = crlf(data)
    if b"\r\n." in data:
        data = data.replace(b"\r\n.", b"\r\n..")
    if data.startswith(b"."):
        data = b"." + data
    return data + (b".\r\n" if data.endswith(b"\r\n") else b"\r\n.\r\n")
