"""The mail configuration of one app: the only reader of ``MAIL_*``.

Flask-Mail's keys are read as it reads them: a port or a limit may be a string, a flag is whatever is true in Python.
The others are strict. Every wrong value raises :class:`~flask_taskworker.errors.ConfigError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

from ..errors import ConfigError
from .loggers import get_logger

log = get_logger("mail")

Backend = Literal["smtp", "console", "file", "memory"]
BACKENDS = ("smtp", "console", "file", "memory")

_HOST = re.compile(r"[^\s/@\\\x00-\x1f]{1,255}")
_LOOKS_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MailConfig:
    """What ``MAIL_*`` says, one field a key, lower case and without the prefix."""

    server: str
    """The mail server's name or address. Defaults to "127.0.0.1"."""

    port: int
    """Its port. Defaults to 25, with TLS too."""

    use_tls: bool
    """Begin in clear text and require STARTTLS. Defaults to False."""

    use_ssl: bool
    """Speak TLS from the first byte. Defaults to False."""

    username: str | None
    """Log in, if password is set too. Defaults to None."""

    password: str | None = field(repr=False)
    """Never shown, logged or stored. Defaults to None."""

    default_sender: Any
    """The sender of messages without one: an address or a pair (name, address). Defaults to None."""

    debug: int
    """Log the dialogue with the server, without what proves who we are. Defaults to app.debug."""

    max_emails: int | None
    """Mails in one connection; None or 0: no limit for connect(), 100 in the pool. Defaults to None."""

    suppress: bool
    """Record mails instead of sending them. Defaults to app.testing. The key is MAIL_SUPPRESS_SEND."""

    ascii_attachments: bool
    """Reduce the names of attachments to ASCII. Defaults to False."""

    pool_size: int
    """Connections kept to the server in one process and loop. Defaults to 4."""

    timeout: float
    """Seconds to connect, and for the reply to a command. Defaults to 30."""

    data_timeout: float
    """Seconds for the reply to a whole message: RFC 5321 asks for ten minutes. Defaults to 600."""

    tls_verify: bool
    """Check the server's certificate and name. Defaults to True."""

    cafile: str | None
    """A file of certificates to trust instead of the system's. Defaults to None."""

    ssl_context: Any = field(repr=False)
    """An ssl.SSLContext to use as it is, instead of the two keys before. Defaults to None."""

    local_hostname: str | None
    """Our name in EHLO, such as "web1.example.org" or "[192.0.2.1]". Defaults to this machine's."""

    pipelining: bool
    """Send several commands at once where the server offers it. Defaults to True."""

    redirect_to: tuple[str, ...]
    """Send every mail to these addresses instead of its own, for development. Defaults to None."""

    backend: Backend
    """"smtp", "console", "file" or "memory". Defaults to "smtp"."""

    file_path: str | None
    """The folder of the file backend. Defaults to mail in the instance folder."""

    max_size: int
    """Octets that a message in the queue may have. Defaults to 25 MB."""

    retry_base: float
    """Seconds until a queued mail is tried again, doubled each time. Defaults to 300."""

    retry_cap: float
    """Seconds: the longest of these delays. Defaults to 3600."""

    expires: timedelta
    """How long a queued mail is tried. Defaults to 5 days."""

    keep: timedelta
    """How long a queued mail is kept after its end. Defaults to 7 days."""

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any], *, debug: bool | int = False, testing: bool = False) -> MailConfig:
        """Read the ``MAIL_*`` keys of *config*; *debug* and *testing* are the app's."""
        get = config.get
        if get("MAIL_USE_TLS") and get("MAIL_USE_SSL"):
            raise ConfigError("MAIL_USE_TLS (STARTTLS) and MAIL_USE_SSL exclude each other. Set one of them.")
        return cls(
            server=_host(config, "MAIL_SERVER") or "127.0.0.1",
            port=_number(config, "MAIL_PORT", 25, maximum=65535) or 25,
            use_tls=_truth(config, "MAIL_USE_TLS", False),
            use_ssl=_truth(config, "MAIL_USE_SSL", False),
            username=_secret(config, "MAIL_USERNAME"),
            password=_secret(config, "MAIL_PASSWORD"),
            default_sender=get("MAIL_DEFAULT_SENDER"),
            debug=_number(config, "MAIL_DEBUG", int(debug)) or 0,
            max_emails=_number(config, "MAIL_MAX_EMAILS", None),
            suppress=_truth(config, "MAIL_SUPPRESS_SEND", testing),
            ascii_attachments=_truth(config, "MAIL_ASCII_ATTACHMENTS", False),
            pool_size=_number(config, "MAIL_POOL_SIZE", 4, minimum=1) or 4,
            timeout=_seconds(config, "MAIL_TIMEOUT", 30.0),
            data_timeout=_seconds(config, "MAIL_DATA_TIMEOUT", 600.0),
            tls_verify=_flag(config, "MAIL_TLS_VERIFY", True),
            cafile=_text(config, "MAIL_CAFILE"),
            ssl_context=get("MAIL_SSL_CONTEXT"),
            local_hostname=_host(config, "MAIL_LOCAL_HOSTNAME"),
            pipelining=_flag(config, "MAIL_PIPELINING", True),
            redirect_to=_addresses(config, "MAIL_REDIRECT_TO"),
            backend=_backend(config),
            file_path=_text(config, "MAIL_FILE_PATH"),
            max_size=_number(config, "MAIL_MAX_SIZE", 25 * 1024 * 1024, minimum=1) or 0,
            retry_base=_seconds(config, "MAIL_RETRY_BASE", 300.0),
            retry_cap=_seconds(config, "MAIL_RETRY_CAP", 3600.0),
            expires=timedelta(seconds=_seconds(config, "MAIL_EXPIRES", 5 * 86400.0)),
            keep=timedelta(seconds=_seconds(config, "MAIL_KEEP", 7 * 86400.0, minimum=0.0)),
        )


def _truth(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    if isinstance(value, str) and value.strip().lower() in _LOOKS_FALSE:
        log.warning(
            "%s = %r is a string that is not empty, and so means True, as in Flask-Mail. Write False.", key, value
        )
    return default if value is None else bool(value)


def _number(
    config: Mapping[str, Any], key: str, default: int | None, *, minimum: int = 0, maximum: int | None = None
) -> int | None:
    value = config.get(key)
    if value is None or value == "":
        return default
    number = int(value) if isinstance(value, int | str) and str(value).strip().lstrip("-").isdecimal() else None
    if isinstance(value, bool):
        number = int(value)
    if number is None or number < minimum or (maximum is not None and number > maximum):
        upper = f" and at most {maximum}" if maximum is not None else ""
        raise ConfigError.of(key, value, f"a whole number, at least {minimum}{upper}")
    return number


def _seconds(config: Mapping[str, Any], key: str, default: float, *, minimum: float = 0.001) -> float:
    value = config.get(key, default)
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < minimum:
        raise ConfigError.of(key, value, f"a number of seconds or a timedelta, at least {minimum:g} s")
    return float(value)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError.of(key, value, "True or False")
    return value


def _text(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    return None if value is None else str(value)


def _host(config: Mapping[str, Any], key: str) -> str | None:
    """A host's name or address. Resolving it is left to the moment when it is needed."""
    value = config.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, str) and _HOST.fullmatch(value):
        labels = value.rstrip(".").split(".")
        if ":" in value or all(0 < len(label.encode("utf-8", "replace")) < 64 for label in labels):
            return value
    raise ConfigError.of(key, value, "a host's name or address, without scheme, port and blanks")


def _secret(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        # The value is not shown: it may be the password.
        raise ConfigError(f"{key} is of type {type(value).__name__}. Give a string, or None.")
    return value


def _addresses(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key)
    if value is None:
        return ()
    addresses = (value,) if isinstance(value, str) else value
    if not isinstance(addresses, Sequence) or not all(isinstance(item, str) and "@" in item for item in addresses):
        raise ConfigError.of(key, value, "an address, or a list of addresses")
    return tuple(addresses)


def _backend(config: Mapping[str, Any]) -> Backend:
    value = config.get("MAIL_BACKEND", "smtp")
    if value not in BACKENDS:
        raise ConfigError.of("MAIL_BACKEND", value, ", ".join(map(repr, BACKENDS)))
    return cast(Backend, value)
