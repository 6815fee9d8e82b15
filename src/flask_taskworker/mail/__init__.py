"""Mail: Flask-Mail's interface over kept connections, and a durable queue."""

from __future__ import annotations

from .addresses import FlaskMailUnicodeDecodeError, force_text, sanitize_address, sanitize_addresses, sanitize_subject
from .envelope import Ending, Envelope, Reply, SendResult
from .errors import BadAddressError, BadHeaderError, MailError
from .message import Attachment, Message
from .message import has_newline as _has_newline

__all__ = [
    "Attachment",
    "BadAddressError",
    "BadHeaderError",
    "Ending",
    "Envelope",
    "FlaskMailUnicodeDecodeError",
    "MailError",
    "Message",
    "Reply",
    "SendResult",
    "_has_newline",
    "force_text",
    "sanitize_address",
    "sanitize_addresses",
    "sanitize_subject",
]
