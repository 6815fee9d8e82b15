"""The plain text of a mail that was given HTML alone."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_NAME = re.compile(r"/?[a-z][a-z0-9]*|[!?/]", re.IGNORECASE)
_HREF = re.compile(r"""\bhref\s*=\s*["']?([^"'\s]+)""", re.IGNORECASE)
_HIDDEN = frozenset({"script", "style", "title"})
_BLOCK = re.compile("/?(?:article|br|div|footer|h[1-6]|header|hr|li|ol|p|section|table|tr|ul)")


def text_of(source: str) -> str:
    """The words of *source*, a line for each block, and each link's address behind its words.

    Takes time in proportion to its length, whatever it holds.
    """
    lines = (" ".join(html.unescape(line).split()) for line in "".join(_words(source)).split("\0"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _words(source: str) -> Iterator[str]:
    """What stands outside the tags, with a NUL at the border of each block."""
    before, *commented = source.replace("\0", "").split("<!--")
    first, *pieces = (before + "".join(piece.partition("-->")[2] for piece in commented)).split("<")
    yield first
    hidden = address = ""
    for piece in pieces:
        match = _NAME.match(piece)
        name = match[0].lower() if match is not None else ""
        tag, _, words = piece.partition(">")
        if hidden:
            hidden = "" if name == f"/{hidden}" else hidden
        elif not name:
            words = f"<{piece}"  # "a < b"
        elif name in _HIDDEN:
            hidden = name
        elif name == "a":
            link = _HREF.search(tag)
            address = link[1] if link is not None and not link[1].startswith("#") else ""
        elif name == "/a" and address:
            yield f" ({address})"
            address = ""
        elif _BLOCK.fullmatch(name):
            yield "\0"
        elif name in ("td", "th"):
            yield " "
        if not hidden:
            yield words
