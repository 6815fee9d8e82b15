"""What every response of the dashboard gets: headers that keep strangers out, an ETag, compression."""

from __future__ import annotations

import gzip
import hashlib
import re

from flask import Response, request

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex, nofollow",
    "Cache-Control": "no-store",
}
_LEAST = 600
"""Bytes: less is not worth compressing."""
_TIMES = re.compile(rb"(<time [^>]*>)[^<]*")


def finish(response: Response) -> Response:
    """Add the headers, where a page has not set its own; then the ETag and the compression."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if response.direct_passthrough or response.is_streamed:
        return response
    if response.status_code == 200 and request.method in ("GET", "HEAD") and "ETag" not in response.headers:
        response.set_etag(_digest(response.get_data()), weak=True)
        response.make_conditional(request)
    return compress(response)


def _digest(body: bytes) -> str:
    """Of the page without the words in its <time> elements: "3 s ago" becomes "4 s ago", and the script does that."""
    return hashlib.blake2b(_TIMES.sub(rb"\1", body), digest_size=12).hexdigest()


def compress(response: Response) -> Response:
    """Compress the body, if the browser takes that."""
    response.vary.add("Accept-Encoding")
    if response.status_code != 200 or "Content-Encoding" in response.headers:
        return response
    body = response.get_data()
    if len(body) >= _LEAST and takes_gzip():
        response.set_data(gzip.compress(body, 6, mtime=0))
        response.headers["Content-Encoding"] = "gzip"
    return response


def takes_gzip() -> bool:
    """Whether the browser takes compressed bodies."""
    return request.accept_encodings["gzip"] > 0
