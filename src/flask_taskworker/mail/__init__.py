"""Mail: Flask-Mail's interface over kept connections, and a durable queue.

Change ``from flask_mail import …`` to ``from flask_taskworker.mail import …`` and nothing else.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from email.header import Header  # Flask-Mail's users import it from there

from ..signals import email_failed, email_queued
from .compose.fields import (
    FlaskMailUnicodeDecodeError,
    force_text,
    sanitize_address,
    sanitize_addresses,
    sanitize_subject,
)
from .envelope import Ending, Envelope, Reply, SendResult
from .errors import (
    AuthenticationFailed,
    BadAddressError,
    BadHeaderError,
    BadTextError,
    CertificateError,
    ConnectError,
    ConnectionRefused,
    ConnectTimeout,
    DataRefused,
    DeliveryUnknown,
    HeloRefused,
    HostNotFound,
    MailError,
    MessageTooLarge,
    MissingRecipients,
    MissingSender,
    NotOffered,
    OutOfStep,
    RecipientsRefused,
    SenderRefused,
    ServerDisconnected,
    ServerTimeout,
)
from .extension import Connection, Mail, _Mail, _MailMixin, install_as_flask_mail
from .message import Attachment, Message
from .message import has_newline as _has_newline
from .queue.delivery import MailHeld
from .queue.queue import MailJob, RecipientState
from .signals import email_dispatched, signals

__all__ = [
    "Attachment",
    "AuthenticationFailed",
    "BadAddressError",
    "BadHeaderError",
    "BadTextError",
    "CertificateError",
    "ConnectError",
    "ConnectTimeout",
    "Connection",
    "ConnectionRefused",
    "DataRefused",
    "DeliveryUnknown",
    "Ending",
    "Envelope",
    "FlaskMailUnicodeDecodeError",
    "Header",
    "HeloRefused",
    "HostNotFound",
    "Mail",
    "MailError",
    "MailHeld",
    "MailJob",
    "Message",
    "MessageTooLarge",
    "MissingRecipients",
    "MissingSender",
    "NotOffered",
    "OutOfStep",
    "RecipientState",
    "RecipientsRefused",
    "Reply",
    "SendResult",
    "SenderRefused",
    "ServerDisconnected",
    "ServerTimeout",
    "_Mail",
    "_MailMixin",
    "_has_newline",
    "email_dispatched",
    "email_failed",
    "email_queued",
    "force_text",
    "install_as_flask_mail",
    "sanitize_address",
    "sanitize_addresses",
    "sanitize_subject",
    "signals",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        warnings.warn(
            "'__version__' is deprecated. Use importlib.metadata.version('Flask-TaskWorker').",
            DeprecationWarning,
            stacklevel=2,
        )
        return importlib.metadata.version("Flask-TaskWorker")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
