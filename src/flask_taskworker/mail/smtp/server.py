"""A mail server: how to reach it, and what it has turned out not to allow."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from ...core.mail_config import MailConfig
from ...errors import ConfigError

K = TypeVar("K")
V = TypeVar("V")

REMEMBERED_S = 600.0
"""Seconds until a server gets another chance to allow what it did not."""

CROWDED_S = 60.0
"""The same for the number of connections, which changes with what other processes do."""

_FEWEST_RECIPIENTS = 10
_CACHED = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How to reach the mail server and who we are there."""

    hostname: str
    port: int
    use_tls: bool = False
    """Require STARTTLS."""

    use_ssl: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    data_timeout: float = 600.0
    verify: bool = True
    cafile: str | None = None
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    local_hostname: str | None = None
    """Our name in EHLO; None for this machine's."""

    pipelining: bool = True
    trace: bool = False

    def __str__(self) -> str:
        return f"{self.hostname} port {self.port}"

    async def tls_context(self) -> ssl.SSLContext | None:
        """The context to connect with; None in clear text. Raises OSError for a MAIL_CAFILE that cannot be read."""
        if not self.use_tls and not self.use_ssl:
            return None
        if self.ssl_context is not None:
            return self.ssl_context
        key = (self.verify, self.cafile)
        if key not in _contexts:
            _cache(_contexts, key, await asyncio.to_thread(make_context, *key))
        return _contexts[key]

    async def own_name(self) -> str:
        """Our name for EHLO."""
        if self.local_hostname is not None:
            return self.local_hostname
        name = await asyncio.to_thread(_fqdn)  # DNS may take its time
        return name if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name) else "[127.0.0.1]"


def make_context(verify: bool, cafile: str | None) -> ssl.SSLContext:
    """A TLS context for clients. Reads the certificates: OSError where *cafile* holds none."""
    context = ssl.create_default_context(cafile=cafile)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def check_tls(config: MailConfig) -> None:
    """Raise ConfigError for a MAIL_CAFILE or MAIL_SSL_CONTEXT that no connection could use."""
    if config.ssl_context is not None and not isinstance(config.ssl_context, ssl.SSLContext):
        raise ConfigError._of("MAIL_SSL_CONTEXT", config.ssl_context, "an ssl.SSLContext")
    if config.cafile is not None:
        try:
            make_context(config.tls_verify, config.cafile)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"MAIL_CAFILE = {config.cafile!r} cannot be used: {error}. Give a file of certificates in PEM."
            ) from error


_contexts: OrderedDict[tuple[bool, str | None], ssl.SSLContext] = OrderedDict()


_fqdn = cache(lambda: socket.getfqdn())


class ServerFacts:
    """What a server does not allow, learnt from its replies, and forgotten after a while. Any thread may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._alone_until = self._lock_step_until = self._few_until = 0.0
        self._most_recipients = 0

    @property
    def may_overlap(self) -> bool:
        """Whether a mail may be begun together with the message before it."""
        return self._clock() >= self._alone_until

    @property
    def may_pipeline(self) -> bool:
        """Whether several commands may be sent at once."""
        return self._clock() >= self._lock_step_until

    @property
    def most_recipients(self) -> int | None:
        """How many recipients it takes in one transaction; None where it has set no limit."""
        return self._most_recipients if self._clock() < self._few_until else None

    def stop_overlapping(self) -> None:
        """It did not take what was sent behind a message."""
        self._alone_until = self._clock() + REMEMBERED_S

    def stop_pipelining(self) -> None:
        """It lost commands that came together."""
        self._lock_step_until = self._clock() + REMEMBERED_S

    def limit_recipients(self, count: int) -> None:
        """It took *count* recipients, and no more."""
        self._most_recipients = max(count, _FEWEST_RECIPIENTS)
        self._few_until = self._clock() + REMEMBERED_S


_facts: OrderedDict[tuple[str, int, str | None], ServerFacts] = OrderedDict()
_lock = threading.Lock()


def facts_of(server: Server) -> ServerFacts:
    """What this process knows of *server*."""
    key = (server.hostname, server.port, server.username)
    known = _facts.get(key)
    return known if known is not None else _cache(_facts, key, ServerFacts())


def _cache(cache: OrderedDict[K, V], key: K, value: V) -> V:
    with _lock:
        cache[key] = value
        while len(cache) > _CACHED:
            cache.popitem(last=False)
    return value
