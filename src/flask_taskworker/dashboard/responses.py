"""What the dashboard sends: its own files, and what every response gets: headers, an ETag, compression."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from flask import Response, current_app, request

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """The stylesheet or the script. Its address names its content, so browsers keep it."""

    kind: str
    body: bytes
    packed: bytes
    """The same, compressed."""
    digest: str

    @classmethod
    def of(cls, name: str, kind: str) -> Asset:
        """Read it."""
        body = (Path(__file__).parent / "static" / name).read_bytes()
        packed = gzip.compress(body, 9, mtime=0)
        return cls(kind=kind, body=body, packed=packed, digest=hashlib.sha256(body).hexdigest()[:16])

    def response(self) -> Response:
        """The file."""
        packed = takes_gzip()
        response = current_app.response_class(self.packed if packed else self.body, content_type=self.kind)
        if packed:
            response.headers["Content-Encoding"] = "gzip"
        response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
        return response


ASSETS = {
    "style.css": Asset.of("style.css", "text/css; charset=utf-8"),
    "live.js": Asset.of("live.js", "text/javascript; charset=utf-8"),
}


def finish(response: Response) -> Response:
    """Add the headers that a page has not set; then the ETag and the compression."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if response.direct_passthrough or response.is_streamed:
        return response
    if response.status_code == 200 and request.method in ("GET", "HEAD") and "ETag" not in response.headers:
        # Without the words in <time>: "3 s ago" becomes "4 s ago", and the script does that.
        text = _TIMES.sub(rb"\1", response.get_data())
        response.set_etag(hashlib.blake2b(text, digest_size=12).hexdigest(), weak=True)
        response.make_conditional(request)
    response.vary.add("Accept-Encoding")
    if response.status_code == 200 and "Content-Encoding" not in response.headers:
        body = response.get_data()
        if len(body) >= _LEAST and takes_gzip():
            response.set_data(gzip.compress(body, 6, mtime=0))
            response.headers["Content-Encoding"] = "gzip"
    return response


def takes_gzip() -> bool:
    """Whether the browser takes compressed bodies."""
    return request.accept_encodings["gzip"] > 0
