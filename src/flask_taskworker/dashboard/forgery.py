"""Whether a request that changes something comes from the dashboard's own pages. Pure.

It needs no session, no cookie and no token, so there is nothing that could expire or be missing.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit


class Headers(Protocol):
    """The headers of a request, whatever the case of their names."""

    def get(self, key: str, /) -> str | None:
        """One of them."""


def is_own(headers: Headers, host: str) -> bool:
    """Whether a browser says that the request was made by a page of this *host* (with the port, if it has one).

    Browsers of today send ``Sec-Fetch-Site``, but not over plain HTTP to another machine: then ``Origin`` decides, or
    ``Referer``. A request with none of the three is refused.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    source = headers.get("Origin") or headers.get("Referer")
    return bool(source) and _host_of(source or "") == host.lower()


def _host_of(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    # As request.host: without the port that the scheme implies.
    implied = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    return parts.netloc.lower().rpartition(":")[0] if implied and port is not None else parts.netloc.lower()
