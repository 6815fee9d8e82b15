"""What the mail half raises: one branch of the tree in :mod:`flask_taskworker.errors`.

::

    MailError (TaskWorkerError, smtplib.SMTPException, so an OSError too)
    ├── MissingRecipients (AssertionError)      no recipients
    ├── MissingSender (AssertionError)          no sender and no MAIL_DEFAULT_SENDER
    ├── BadHeaderError (ValueError)             a field would break the header or the dialogue
    │   └── BadAddressError                     an address, or a list of them, is malformed
    ├── BadTextError (UnicodeError)             a text that its charset cannot hold, or bytes that are none
    ├── MessageTooLarge (ValueError)            over MAIL_MAX_SIZE, or too many recipients
    ├── ConnectError                            no connection: smtplib.SMTPConnectError and a ConnectionError
    │   ├── ConnectionRefused                   … and a ConnectionRefusedError
    │   ├── HostNotFound                        … and a socket.gaierror
    │   ├── ConnectTimeout                      … and a TimeoutError
    │   └── CertificateError                    … and an ssl.SSLCertVerificationError
    ├── HeloRefused                             smtplib.SMTPHeloError
    ├── AuthenticationFailed                    smtplib.SMTPAuthenticationError
    ├── NotOffered                              smtplib.SMTPNotSupportedError: STARTTLS, AUTH or SMTPUTF8 is missing
    ├── SenderRefused                           smtplib.SMTPSenderRefused
    ├── RecipientsRefused                       smtplib.SMTPRecipientsRefused: no recipient was accepted
    ├── DataRefused                             smtplib.SMTPDataError
    └── ServerDisconnected                      smtplib.SMTPServerDisconnected: the dialogue broke off
        ├── ServerTimeout (TimeoutError)        no reply in MAIL_TIMEOUT
        ├── OutOfStep                           a reply that cannot be that to its command
        └── DeliveryUnknown                     it broke off between the final dot and its reply

Each class that stands for an SMTP event is also the class of the same event in :mod:`smtplib` and in aiosmtplib, so
that ``except smtplib.SMTPRecipientsRefused`` written for Flask-Mail goes on working. All can be pickled.
"""

from __future__ import annotations

import inspect
import smtplib
import socket
import ssl
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import aiosmtplib

from ..errors import TaskWorkerError


def _rebuild(cls: type[MailError], args: tuple[object, ...], state: dict[str, object]) -> MailError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class MailError(TaskWorkerError, smtplib.SMTPException):
    """A mail could not be sent."""

    failure_kind: str = "exception"
    """The ``kind`` of the JobFailed of a queued mail that ends with this error."""

    of_transport: bool = False
    """Whether it is about the way to the server, not about one mail: no other mail would have fared better."""

    refused: Mapping[str, Any] = MappingProxyType({})
    """The recipients that the server had refused before the error, with its replies: they need not be tried again."""

    def __init__(self, message: str | None = None) -> None:
        # The bases' initialisers want different arguments; none of them does more than to keep them.
        self.message: str = message or inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[0]
        self.args: tuple[Any, ...] = (self.message,)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Callable[..., MailError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class MissingRecipients(MailError, AssertionError):
    """No recipients have been added"""


class MissingSender(MailError, AssertionError):
    """The message does not specify a sender and a default sender has not been configured"""


class BadHeaderError(MailError, ValueError):
    """A field of the message holds a line break or another character that a mail header must not have."""


class BadAddressError(BadHeaderError):
    """An address is malformed."""


class BadTextError(MailError, UnicodeError):
    """A text of the message cannot be encoded."""


class MessageTooLarge(MailError, ValueError):
    """The message is larger than MAIL_MAX_SIZE allows."""


class ReplyError(MailError, aiosmtplib.SMTPResponseException, smtplib.SMTPResponseException):
    """The server refused.

    ``smtp_code`` and ``smtp_error`` (bytes) are as in :mod:`smtplib`, ``code`` as in aiosmtplib.
    """

    def __init__(self, code: int, text: str, message: str | None = None) -> None:
        super().__init__(message or f"The mail server said {code} {text}.")
        self.code = code
        self.smtp_code: int = code
        self.smtp_error: Any = text.encode("utf-8", "surrogateescape")
        self.args: tuple[Any, ...] = (code, self.smtp_error)

    @property
    def text(self) -> str:
        """The server's text, without the code."""
        raw = self.smtp_error
        return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")


class ConnectError(ReplyError, aiosmtplib.SMTPConnectError, smtplib.SMTPConnectError):
    """The mail server cannot be reached. ``smtp_code`` is -1 unless the server's greeting refused us."""

    def __init__(self, message: str | None = None, code: int = -1, text: str = "") -> None:
        super().__init__(code, text, message or inspect.cleandoc(type(self).__doc__ or ""))


class ConnectionRefused(ConnectError, ConnectionRefusedError):
    """The mail server's machine refused the connection. Is the server running, and is MAIL_PORT right?"""


class HostNotFound(ConnectError, socket.gaierror):
    """The name in MAIL_SERVER could not be resolved."""


class ConnectTimeout(ConnectError, aiosmtplib.SMTPConnectTimeoutError):
    """The mail server did not answer within MAIL_TIMEOUT."""


class CertificateError(ConnectError, ssl.SSLCertVerificationError):
    """The mail server's certificate is not trusted. Set MAIL_CAFILE, or MAIL_TLS_VERIFY = False to trust anybody."""


class HeloRefused(ReplyError, aiosmtplib.SMTPHeloError, smtplib.SMTPHeloError):
    """The mail server refused EHLO and HELO."""


class AuthenticationFailed(ReplyError, aiosmtplib.SMTPAuthenticationError, smtplib.SMTPAuthenticationError):
    """The mail server refused MAIL_USERNAME and MAIL_PASSWORD."""


class NotOffered(MailError, aiosmtplib.SMTPNotSupported, smtplib.SMTPNotSupportedError):
    """The mail server does not offer what this message or configuration needs."""


class SenderRefused(ReplyError, aiosmtplib.SMTPSenderRefused, smtplib.SMTPSenderRefused):
    """The mail server refused the sender."""

    def __init__(self, code: int, text: str, sender: str) -> None:
        super().__init__(code, text, f"The mail server refused the sender {sender!r}: {code} {text}.")
        self.sender = sender
        self.args: tuple[Any, ...] = (code, self.smtp_error, sender)


class RecipientsRefused(MailError, aiosmtplib.SMTPRecipientsRefused, smtplib.SMTPRecipientsRefused):
    """The mail server refused every recipient. ``recipients`` is smtplib's dict: address to (code, text as bytes)."""

    def __init__(self, refused: Mapping[str, tuple[int, str]]) -> None:
        shown = "; ".join(f"{address}: {code} {text}" for address, (code, text) in list(refused.items())[:5])
        super().__init__(f"The mail server refused every recipient. {shown}")
        self.recipients: Any = {
            address: (code, text.encode("utf-8", "surrogateescape")) for address, (code, text) in refused.items()
        }
        self.left: tuple[str, ...] = ()
        """Recipients that were not asked for, since the server takes no more in one mail."""
        self.args: tuple[Any, ...] = (self.recipients,)


class DataRefused(ReplyError, aiosmtplib.SMTPDataError, smtplib.SMTPDataError):
    """The mail server refused the message itself."""


class ServerDisconnected(MailError, aiosmtplib.SMTPServerDisconnected, smtplib.SMTPServerDisconnected):
    """The mail server closed the connection before it had taken the message, so it was not sent.

    ``code`` and ``text`` are those of the server's farewell (421), or -1 and "".
    """

    def __init__(self, message: str | None = None, code: int = -1, text: str = "") -> None:
        farewell = f"The mail server said {code} {text} and closed the connection." if text else None
        super().__init__(message or farewell)
        self.code: int = code
        self.text: str = text


class ServerTimeout(ServerDisconnected, aiosmtplib.SMTPReadTimeoutError):
    """The mail server did not answer within MAIL_TIMEOUT, so the message was not sent."""


class OutOfStep(ServerDisconnected):
    """The mail server's replies no longer fit the commands, so the connection was closed and the message not sent."""

    def __init__(self, command: str = "", code: int = -1, text: str = "") -> None:
        shown = f" It said {code} {text} to {command!r:.100}." if command else ""
        super().__init__(f"{inspect.cleandoc(type(self).__doc__ or '')}{shown}", code, text)


class DeliveryUnknown(ServerDisconnected):
    """The connection broke off after the message was handed over and before the server said that it has it.

    The message may or may not arrive; sending it again may deliver it twice.
    """
