"""The mail configuration of one app: the only reader of ``MAIL_*``.

Flask-Mail's keys are read as it reads them: a port or a limit may be a string, a flag is whatever is true in Python.
The others are strict. Every wrong value raises :class:`~flask_taskworker.errors.ConfigError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from ..errors import ConfigError
from .config import close_key
from .loggers import Logger, get_logger
from .settings import Reader, choice, flag, period, read_fields, seconds, setting

log: Logger = get_logger("mail")

Backend = Literal["smtp", "console", "file", "memory"]
BACKENDS = ("smtp", "console", "file", "memory")

_HOST = re.compile(r"[^\s/@\\\x00-\x1f]{1,255}")
_SHORTEST = 0.001
_LOOKS_FALSE = frozenset({"false", "no", "off", "0"})


def _truth(key: str, value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in _LOOKS_FALSE:
        log.warning(
            "%s = %r is a string that is not empty, and so means True, as in Flask-Mail. Write False.", key, value
        )
    return bool(value)


def _number(default: int | None, *, minimum: int = 0, maximum: int | None = None) -> Reader:
    """A whole number, or its text; *default* stands for an empty one and for None."""

    def read(key: str, value: Any) -> int | None:
        if value is None or value == "":
            return default
        number = int(value) if isinstance(value, int | str) and str(value).strip().lstrip("-").isdecimal() else None
        if isinstance(value, bool):
            number = int(value)
        if number is None or number < minimum or (maximum is not None and number > maximum):
            upper = f" and at most {maximum}" if maximum is not None else ""
            raise ConfigError._of(key, value, f"a whole number, at least {minimum}{upper}")
        return number

    return read


def _text(key: str, value: Any) -> str | None:
    return None if value is None else str(value)


def _anything(key: str, value: Any) -> Any:
    return value


def _host(key: str, value: Any) -> str | None:
    """A host's name or address. Resolving it is left to the moment when it is needed."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and _HOST.fullmatch(value):
        labels = value.rstrip(".").split(".")
        if ":" in value or all(0 < len(label.encode("utf-8", "replace")) < 64 for label in labels):
            return value
    raise ConfigError._of(key, value, "a host's name or address, without scheme, port and blanks")


def _secret(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        # The value is not shown: it may be the password.
        raise ConfigError(f"{key} is of type {type(value).__name__}. Give a string, or None.")
    return value


def _addresses(key: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    addresses = (value,) if isinstance(value, str) else value
    if not isinstance(addresses, Sequence) or not all(isinstance(item, str) and "@" in item for item in addresses):
        raise ConfigError._of(key, value, "an address, or a list of addresses")
    return tuple(addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailConfig:
    """What ``MAIL_*`` says, one field a key, lower case and without the prefix."""

    server: str = setting(_host, "127.0.0.1")
    """The mail server's name or address. Defaults to "127.0.0.1"."""

    port: int = setting(_number(25, maximum=65535))
    """Its port. Defaults to 25, with TLS too."""

    use_tls: bool = setting(_truth)
    """Begin in clear text and require STARTTLS. Defaults to False."""

    use_ssl: bool = setting(_truth)
    """Speak TLS from the first byte. Defaults to False."""

    username: str | None = setting(_secret)
    """Log in, if password is set too. Defaults to None."""

    password: str | None = setting(_secret, repr=False)
    """Never shown, logged or stored. Defaults to None."""

    default_sender: Any = setting(_anything)
    """The sender of messages without one: an address or a pair (name, address). Defaults to None."""

    debug: int
    """Log the dialogue with the server, without what proves who we are. Defaults to app.debug."""

    max_emails: int | None = setting(_number(None))
    """Mails in one connection; None or 0: no limit for connect(), 100 in the pool. Defaults to None."""

    suppress: bool
    """Record mails instead of sending them. Defaults to app.testing. The key is MAIL_SUPPRESS_SEND."""

    ascii_attachments: bool = setting(_truth)
    """Reduce the names of attachments to ASCII. Defaults to False."""

    pool_size: int = setting(_number(4, minimum=1))
    """Connections kept to the server in one process and loop. Defaults to 4."""

    timeout: float = setting(seconds(_SHORTEST), 30.0)
    """Seconds to connect, and for the reply to a command. Defaults to 30."""

    data_timeout: float = setting(seconds(_SHORTEST), 600.0)
    """Seconds for the reply to a whole message: RFC 5321 asks for ten minutes. Defaults to 600."""

    tls_verify: bool = setting(flag, True)
    """Check the server's certificate and name. Defaults to True."""

    cafile: str | None = setting(_text)
    """A file of certificates to trust instead of the system's. Defaults to None."""

    ssl_context: Any = setting(_anything, repr=False)
    """An ssl.SSLContext to use as it is, instead of the two keys before. Defaults to None."""

    local_hostname: str | None = setting(_host)
    """Our name in EHLO, such as "web1.example.org" or "[192.0.2.1]". Defaults to this machine's."""

    pipelining: bool = setting(flag, True)
    """Send several commands at once where the server offers it. Defaults to True."""

    redirect_to: tuple[str, ...] = setting(_addresses)
    """Send every mail to these addresses instead of its own, for development. Defaults to None."""

    backend: Backend = setting(choice(*BACKENDS), "smtp")
    """"smtp", "console", "file" or "memory". Defaults to "smtp"."""

    file_path: str | None = setting(_text)
    """The folder of the file backend. Defaults to mail in the instance folder."""

    max_size: int = setting(_number(25 * 1024 * 1024, minimum=1))
    """Octets that a message in the queue may have. Defaults to 25 MB."""

    retry_base: float = setting(seconds(_SHORTEST), 300.0)
    """Seconds until a queued mail is tried again, doubled each time. Defaults to 300."""

    retry_cap: float = setting(seconds(_SHORTEST), 3600.0)
    """Seconds: the longest of these delays. Defaults to 3600."""

    expires: timedelta = setting(period(_SHORTEST), timedelta(days=5))
    """How long a queued mail is tried. Defaults to 5 days."""

    keep: timedelta = setting(period(), timedelta(days=7))
    """How long a queued mail is kept after its end. Defaults to 7 days."""

    @classmethod
    def misspelled_keys(cls, config: Mapping[str, Any]) -> dict[str, str]:
        """The keys of *config* that are almost one of ours, each with that one. Other packages have ``MAIL_*`` keys."""
        known = {f"MAIL_{name.upper()}" for name in (*cls.__dataclass_fields__, "suppress_send")}
        meant = {key: close_key(key, known, 0.9) for key in config if key.startswith("MAIL_") and key not in known}
        return {key: other for key, other in meant.items() if other is not None and other not in config}

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any], *, debug: bool | int = False, testing: bool = False) -> MailConfig:
        """Read the ``MAIL_*`` keys of *config*; *debug* and *testing* are the app's."""
        if config.get("MAIL_USE_TLS") and config.get("MAIL_USE_SSL"):
            raise ConfigError("MAIL_USE_TLS (STARTTLS) and MAIL_USE_SSL exclude each other. Set one of them.")
        log_dialogue = _number(int(debug))("MAIL_DEBUG", config.get("MAIL_DEBUG"))
        suppress = config.get("MAIL_SUPPRESS_SEND")
        return cls(
            debug=log_dialogue or 0,
            suppress=_truth("MAIL_SUPPRESS_SEND", testing if suppress is None else suppress),
            **read_fields(cls, "MAIL_", config),
        )
