"""Mail in a test: what would have been sent, and servers that fail."""

from __future__ import annotations

import html
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self, overload

from flask import Flask

from ..client.apps import as_app
from ..errors import AppError
from ..mail import errors as mail_errors
from ..mail.envelope import Envelope
from ..mail.errors import AuthenticationFailed, ConnectError, RecipientsRefused, ReplyError, SenderRefused
from ..mail.extension import _Mail
from ..mail.signals import email_dispatched

_URL = re.compile(r"https?://[^\s<>\"']+")
_TRAILING = ".,;:!?)]}"
_ADDRESS = re.compile(r"<([^<>]*)>\s*$")

Failure = BaseException | type[BaseException]


class SentMail:
    """One mail of an :class:`Outbox`. It has the attributes of its message, such as ``subject`` and ``html``."""

    def __init__(self, message: Any) -> None:
        self.message = message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.message, name)

    def __repr__(self) -> str:
        return f"<SentMail to {', '.join(self.to)}: {self.subject!r}>"

    @property
    def to(self) -> list[str]:
        """The addresses of all recipients, those in Cc and Bcc included."""
        return sorted(_address(recipient) for recipient in self.message.send_to)

    @property
    def links(self) -> list[str]:
        """The web addresses in the text and in the HTML, each once."""
        texts = [self.message.body or "", html.unescape(self.message.html or "")]
        found = [url.rstrip(_TRAILING) for text in texts for url in _URL.findall(str(text))]
        return list(dict.fromkeys(found))

    def link(self, part: str = "") -> str:
        """The first link with *part* in it. Fails the test where there is none."""
        __tracebackhide__ = True
        for url in self.links:
            if part in url:
                return url
        shown = "\n  ".join(self.links) or "none"
        raise AssertionError(f"No link of {self!r} has {part!r} in it. Its links:\n  {shown}")


class Outbox(Sequence[SentMail]):
    """The mails that *app* would have sent from ``with Outbox(app) as outbox`` on, oldest first. None leaves it.

    ``mail.send`` puts a mail here at once. ``mail.send_later`` stores a job, also where the app suppresses mail; its
    mail is here when the job has run, after :meth:`Jobs.drain` for example. ``record_messages`` and
    ``email_dispatched`` report the same mails.
    """

    def __init__(self, app: Flask) -> None:
        app = as_app(app)
        state = app.extensions.get("mail")
        if not isinstance(state, _Mail):
            raise AppError(f"The app {app.import_name!r} has no Mail of this package. Call mail.init_app(app) first.")
        self._app = app
        self._state = state
        self._mails: list[SentMail] = []
        self._failures: deque[Callable[[Envelope], BaseException]] = deque()

    def __enter__(self) -> Self:
        state = self._state
        self._before = state.suppress, state.config, state.outbox
        state.suppress, state.config = False, replace(state.config, backend="memory")
        state.outbox = _Server(self._failures)
        email_dispatched.connect(self._on_mail, sender=self._app)
        return self

    def __exit__(self, *exc: object) -> None:
        email_dispatched.disconnect(self._on_mail, sender=self._app)
        self._state.suppress, self._state.config, self._state.outbox = self._before

    def _on_mail(self, app: Flask, message: Any) -> None:
        self._mails.append(SentMail(message))

    def __len__(self) -> int:
        return len(self._mails)

    def __iter__(self) -> Iterator[SentMail]:
        return iter(list(self._mails))

    @overload
    def __getitem__(self, index: int) -> SentMail: ...
    @overload
    def __getitem__(self, index: slice) -> list[SentMail]: ...
    def __getitem__(self, index: int | slice) -> SentMail | list[SentMail]:
        return self._mails[index]

    def __repr__(self) -> str:
        return f"<Outbox: {self._mails!r}>"

    def clear(self) -> None:
        """Forget the mails."""
        self._mails.clear()

    def find(self, *, to: str | None = None, subject: str | None = None, text: str | None = None) -> SentMail:
        """The newest mail to that address, with these words in its subject, and with these in its text or HTML.

        Fails the test where there is none.
        """
        __tracebackhide__ = True
        found = self.find_all(to=to, subject=subject, text=text)
        if found:
            return found[-1]
        asked = {"to": to, "subject": subject, "text": text}
        wanted = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None)
        shown = "\n  ".join(map(repr, self._mails)) or "none. Were the jobs of send_later run, by jobs.drain()?"
        raise AssertionError(f"No mail has {wanted}. Mails sent:\n  {shown}")

    def find_all(self, *, to: str | None = None, subject: str | None = None, text: str | None = None) -> list[SentMail]:
        """All such mails, oldest first."""
        return [
            mail
            for mail in self._mails
            if (to is None or to.lower() in (address.lower() for address in mail.to))
            and (subject is None or subject in str(mail.subject or ""))
            and (text is None or text in f"{mail.message.body or ''}\n{mail.message.html or ''}")
        ]

    def fail(self, error: Failure, times: int = 1) -> None:
        """Let the server fail at the next *times* mails.

        ``error``: an exception, or a class: one of ``flask_taskworker.mail`` or of :mod:`smtplib`. ``mail.send``
        raises it; a queued mail is tried again later, or given up, as after the same event at a real server.
        """
        self._failures.extend([_maker(error)] * times)


class _Server(list[Any]):
    """What a server would have been given; the memory backend appends to it."""

    def __init__(self, failures: deque[Callable[[Envelope], BaseException]]) -> None:
        super().__init__()
        self._failures = failures

    def append(self, envelope: Any, /) -> None:
        if self._failures:
            raise self._failures.popleft()(envelope)
        super().append(envelope)


def _address(recipient: Any) -> str:
    if isinstance(recipient, tuple):
        return str(recipient[1])
    bracketed = _ADDRESS.search(str(recipient))
    return bracketed[1] if bracketed else str(recipient)


# -- failures ----------------------------------------------------------------------------------------------------------

_OURS = {
    base: kind
    for kind in vars(mail_errors).values()
    if isinstance(kind, type) and issubclass(kind, mail_errors.MailError)
    for base in kind.__bases__
    if base.__module__ == "smtplib"
}
"""Which of our errors stands for which of :mod:`smtplib`'s."""


def _maker(error: object) -> Callable[[Envelope], BaseException]:
    """What makes the exception for one mail. Raises TypeError for what is none, or cannot be made without more."""
    if isinstance(error, BaseException):
        return lambda envelope: error
    if not (isinstance(error, type) and issubclass(error, BaseException)):
        raise TypeError(f"outbox.fail({error!r:.100}): give an exception, or the class of one.")
    kind = _OURS.get(error, error)
    _make(kind, Envelope(sender="", recipients=("someone@example.org",), data=b""))
    return lambda envelope: _make(kind, envelope)


def _make(kind: type[BaseException], envelope: Envelope) -> BaseException:
    text = "4.3.0 Try again later"
    if issubclass(kind, RecipientsRefused):
        return kind(dict.fromkeys(envelope.recipients, (550, "5.1.1 No such mailbox")))
    if issubclass(kind, SenderRefused):
        return kind(451, text, envelope.sender)
    if issubclass(kind, ReplyError) and not issubclass(kind, ConnectError):
        code = 535 if issubclass(kind, AuthenticationFailed) else 451
        return kind(code, text)
    try:
        return kind()
    except TypeError as error:
        raise TypeError(
            f"outbox.fail({kind.__name__}): the class needs arguments; give an exception. {error}"
        ) from None
