"""The stylesheet and the script: read once, named by their content, so that browsers may cache them forever."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file."""

    name: str
    kind: str
    body: bytes
    packed: bytes
    """The same, compressed."""
    digest: str


def _load(name: str, kind: str) -> Asset:
    body = (HERE / name).read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:16]
    return Asset(name=name, kind=kind, body=body, packed=gzip.compress(body, 9, mtime=0), digest=digest)


ASSETS = {
    asset.name: asset
    for asset in (_load("style.css", "text/css; charset=utf-8"), _load("live.js", "text/javascript; charset=utf-8"))
}
