"""Message and Attachment: Flask-Mail's classes, without Flask in them."""

from __future__ import annotations

import mimetypes
import platform
import re
import secrets
import warnings
from collections.abc import Callable, Iterable
from email import message_from_bytes, policy
from email.charset import Charset
from email.message import Message as EmailMessage
from email.mime.text import MIMEText
from typing import Any, Protocol, cast

from .compose.fields import FORBIDDEN, Address, check_text, force_text, pair_text
from .compose.mime import write
from .compose.prepare import check_characters, writes_itself
from .envelope import SendResult
from .errors import BadHeaderError

_LINK = re.compile(r"(?:https?|mailto):[!-;=?-~]+", re.IGNORECASE)


class Defaults(Protocol):
    """What a message wants to know of the app that it is made for."""

    default_sender: Any
    ascii_attachments: bool


class Sender(Protocol):
    """What :meth:`Message.send` needs of a connection."""

    def send(self, message: Any, /) -> SendResult:
        """Send *message*."""


def _no_defaults(required: bool) -> Defaults | None:
    """Outside Flask there are none. The extension puts its own function here; see :func:`use_defaults`."""
    return None


_defaults: Callable[[bool], Defaults | None] = _no_defaults


def use_defaults(source: Callable[[bool], Defaults | None]) -> None:
    """Say where a message without a sender finds one: *source(required)* gives the current app's settings or None."""
    global _defaults
    _defaults = source


def has_newline(line: str) -> bool:
    """Whether *line* has a line break."""
    return "\n" in line or "\r" in line


class Attachment:
    """A file that goes with a message.

    ``content_type`` defaults to the one of the file name, else text/plain for text and application/octet-stream for
    bytes. Text is sent in UTF-8. Raises ValueError without ``data``; an empty one is fine.
    """

    cid: str | None = None
    """The Content-ID of a picture inside the HTML, without its angle brackets; None for a file of its own."""

    def __init__(
        self,
        filename: str | None = None,
        content_type: str | None = None,
        data: str | bytes | None = None,
        disposition: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        if data is None:
            raise ValueError("The 'data' argument is required.")
        self.filename = filename
        self.data: str | bytes = data
        guessed = mimetypes.guess_type(filename)[0] if filename is not None else None
        by_data = "text/plain" if isinstance(data, str) else "application/octet-stream"
        self.content_type: str = content_type or guessed or by_data
        self.disposition: str = disposition or "attachment"
        self.headers: dict[str, str] = headers if headers is not None else {}


class Message:
    """One mail.

    ``recipients``, ``cc`` and ``bcc`` are lists of ``"ada@example.org"``, ``"Ada <ada@example.org>"`` or
    ``("Ada", "ada@example.org")``; ``sender`` is one of these, ``reply_to`` one or a list. Without ``sender`` the app's
    ``MAIL_DEFAULT_SENDER`` is taken, which needs an app context. ``alts`` maps subtypes of text to contents, and
    ``html`` is the one for ``"html"``. ``date`` is a POSIX timestamp, set when the message is sent. ``charset``
    defaults to UTF-8. ``extra_headers`` replace the headers of the same name. ``envelope_from`` is the address for
    MAIL FROM, to which bounces go, "<>" for none; the sender's where it is not given. The bcc recipients are never
    written into the message.

    Nothing is checked before the message is sent; then every wrong field raises
    :class:`~flask_taskworker.mail.BadHeaderError` or one of its kind, before any connection is made.
    """

    def __init__(
        self,
        subject: str = "",
        recipients: list[Address] | None = None,
        body: str | None = None,
        html: str | None = None,
        alts: dict[str, str] | Iterable[tuple[str, str]] | None = None,
        sender: Address | None = None,
        cc: list[Address] | None = None,
        bcc: list[Address] | None = None,
        attachments: list[Attachment] | None = None,
        reply_to: Address | list[Address] | None = None,
        date: float | None = None,
        charset: str | None = None,
        extra_headers: dict[str, str] | None = None,
        mail_options: list[str] | None = None,
        rcpt_options: list[str] | None = None,
        envelope_from: Address | None = None,
    ) -> None:
        if not sender:
            defaults = _defaults(True)
            sender = defaults.default_sender if defaults is not None else None
        if isinstance(sender, tuple | list) and len(sender) == 2:
            sender = pair_text(*sender)
        self.recipients: list[Address] = recipients or []
        self.subject = subject
        self.sender: Any = sender
        self.reply_to = reply_to
        self.cc: list[Address] = cc or []
        self.bcc: list[Address] = bcc or []
        self.body = body
        self.alts: dict[str, str] = dict(alts or {})
        if html is not None:
            self.html = html
        self.date = date
        self.msgId: str = make_message_id(sender)
        self.charset = charset
        self.extra_headers = extra_headers
        self.envelope_from = envelope_from
        self.mail_options: list[str] = mail_options or []
        self.rcpt_options: list[str] = rcpt_options or []
        self.attachments: list[Attachment] = attachments or []

    @property
    def send_to(self) -> set[Address]:
        """Everybody who is to get the message: recipients, cc and bcc."""
        everybody = (*self.recipients, *(self.bcc or ()), *(self.cc or ()))
        return {cast(Address, tuple(item)) if isinstance(item, list) else item for item in everybody}

    @property
    def html(self) -> str | None:
        """The HTML alternative; setting None removes it."""
        return self.alts.get("html")

    @html.setter
    def html(self, value: str | None) -> None:
        if value is None:
            self.alts.pop("html", None)
        else:
            self.alts["html"] = value

    def send(self, connection: Sender) -> SendResult:
        """Send the message through *connection*."""
        return connection.send(self)

    def add_recipient(self, recipient: Address) -> None:
        """Add one recipient."""
        self.recipients.append(recipient)

    def attach(
        self,
        filename: str | None = None,
        content_type: str | None = None,
        data: str | bytes | None = None,
        disposition: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Add an :class:`Attachment`."""
        self.attachments.append(Attachment(filename, content_type, data, disposition, headers))

    def attach_inline(self, filename: str, content_type: str | None = None, data: bytes | None = None) -> str:
        """Add a picture for the HTML and return its Content-ID: ``f'<img src="cid:{cid}">'``."""
        cid = make_message_id(self.sender)[1:-1]
        picture = Attachment(filename, content_type, data, "inline", {"Content-ID": f"<{cid}>"})
        picture.cid = cid
        self.attachments.append(picture)
        return cid

    def unsubscribe(self, url: str, *, one_click: bool = False) -> None:
        """Let mail programs show an unsubscribe button: List-Unsubscribe, and RFC 8058 where ``one_click``.

        ``url`` is an https, http or mailto link; with ``one_click`` it must be https and answer POST.
        """
        check_text("the unsubscribe URL", url)
        if not _LINK.fullmatch(url) or (one_click and not url.lower().startswith("https://")):
            allowed = "an https link" if one_click else "an https, http or mailto link without blanks"
            raise BadHeaderError(f"The unsubscribe URL {url!r} is not allowed. Allowed: {allowed}.")
        self.extra_headers = {**(self.extra_headers or {}), "List-Unsubscribe": f"<{url}>"}
        if one_click:
            self.extra_headers["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"

    def has_bad_headers(self) -> bool:
        """Whether a field holds a character that would break a header; a subject folded by RFC 5322 is fine."""
        try:
            check_characters(self)
        except BadHeaderError:
            return True
        return False

    def is_bad_headers(self) -> bool:
        """The old name of :meth:`has_bad_headers`."""
        warnings.warn(
            "'is_bad_headers' is renamed to 'has_bad_headers'. The old name is deprecated.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.has_bad_headers()

    def as_bytes(self) -> bytes:
        """The message as it is sent, the same bytes each time. Bad characters are left out, not refused."""
        if type(self)._message is not Message._message:
            return self._message().as_bytes()
        return self._written()

    def as_string(self) -> str:
        """:meth:`as_bytes` as text, in which the names of attachments are labelled as Flask-Mail did: ``UTF8''``."""
        if writes_itself(self):
            return self.as_bytes().decode("utf-8", "surrogateescape")
        return self._written("UTF8").decode("utf-8", "surrogateescape")

    def _written(self, charset_label: str = "utf-8") -> bytes:
        defaults = _defaults(False)
        return write(
            self,
            date=self.date,
            ascii_attachments=defaults is not None and bool(defaults.ascii_attachments),
            mime_text=self._mimetext if type(self)._mimetext is not Message._mimetext else None,
            charset_label=charset_label,
        ).data

    def _message(self) -> EmailMessage:
        """The message as an :mod:`email` object. A subclass may override it; it is then what is sent."""
        parsed = message_from_bytes(self._written())
        parsed.policy = policy.SMTP
        return parsed

    def _mimetext(self, text: str | None, subtype: str = "plain") -> MIMEText:
        """One text part as an :mod:`email` object. A subclass may override it; it is then what is sent."""
        content = force_text(text or "")
        charset = Charset(self.charset or "utf-8")
        if charset.input_charset == "utf-8":
            # In this object, not with email.charset.add_charset, which would change the whole process.
            charset.body_encoding = None  # type: ignore[assignment]
        return MIMEText(content, subtype, charset)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.as_string()

    def __bytes__(self) -> bytes:
        return self.as_bytes()


def make_message_id(sender: object) -> str:
    """A new Message-ID in the sender's domain: unique without asking the network for this machine's name."""
    domain = str(sender).rpartition("@")[2].rstrip("> ")
    if not re.fullmatch(r"[A-Za-z0-9.-]+", domain):
        domain = re.sub(r"[^A-Za-z0-9.-]", "", platform.node()) or "localhost"
    return f"<{secrets.token_hex(16)}@{FORBIDDEN.sub('', domain)}>"
