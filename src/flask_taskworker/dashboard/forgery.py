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
    try:
        source = urlsplit(headers.get("Origin") or headers.get("Referer") or "")
        port = source.port
    except ValueError:
        return False
    if source.scheme not in ("http", "https") or not source.hostname:
        return False
    # As request.host: without the port that the scheme implies.
    implied = port == {"http": 80, "https": 443}[source.scheme]
    named = source.netloc.lower()
    return (named.rpartition(":")[0] if implied else named) == host.lower()
