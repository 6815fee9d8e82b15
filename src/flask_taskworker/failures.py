"""What is kept of an exception: texts of bounded size. Pure.

The size is bounded *before* anything is formatted: a message of 50 MB must not become a traceback of 100 MB.
"""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from .errors import TaskWorkerError
from .jobs import Failure

MAX_TEXT = 64 * 1024
"""Characters of a message, and of a traceback."""

_MAX_CHAIN = 5
_MAX_FRAMES = 40
_GROUPED_TEXT = 500
_VARYING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{16,}\b|\d+", re.IGNORECASE)
"""Numbers, addresses, UUIDs and hashes: they differ between failures of one cause."""
_FRAME = re.compile(r'^ *File "([^"\n]+)", line \d+, in (.+)$', re.MULTILINE)
_CHARS = r'((?:[^"\\]|\\.)*)'
_BEGINNING = re.compile(rf'\{{"type": "{_CHARS}", "message": "{_CHARS}')
_STORED_FRAME = re.compile(r' File \\"((?:[^"\\]|\\[^"n])+)\\", line (\d+), in ((?:[^"\\]|\\[^"n])+)\\n')
_NUMBERED_FRAME = re.compile(r'^ *File "([^"\n]+)", line (\d{1,9}), in (.+)$', re.MULTILINE)
_FOREIGN = re.compile(r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib[/\\]python3|^<")
_OURS = str(Path(__file__).parent)
_BRIDGE = "asgiref"


def failure_of(error: BaseException, kind: str = "exception") -> Failure:
    """The stored form of *error*. Never raises, whatever *error*, its class or the loader of its source code does.

    An exception of ours may name its own kind: a mail of which nobody knows whether it arrived is "unknown".
    """
    try:
        if kind == "exception" and isinstance(error, TaskWorkerError):
            kind = getattr(error, "failure_kind", kind)
        return Failure(kind=kind, type=_type_name(error), message=message_of(error), traceback=_traceback(error))
    except BaseException as second:  # noqa: BLE001 - foreign code
        raised = type.__dict__["__name__"].__get__(type(second))
        name = type.__dict__["__name__"].__get__(type(error))
        message = f"(describing the exception raised {raised})"
        return Failure(kind=kind, type=storable(name), message=storable(message), traceback=_bare_traceback(error))


def group_of(task: str, failure: Failure) -> str:
    """What failures of one cause have in common: task, type, the words without their numbers, and where it was raised.

    A short hash of that. Where it was raised is the last frame of the application's own code, if there is one.
    """
    words = _VARYING.sub("?", failure.message[:_GROUPED_TEXT].split("\n", 1)[0])
    frames = _FRAME.findall(failure.traceback)
    own = [frame for frame in frames if not _FOREIGN.search(frame[0])] or frames
    place = f"{own[-1][0]}:{own[-1][1]}" if own else ""
    cause = "\0".join((task, failure.kind, failure.type, words, place))
    return hashlib.blake2b(cause.encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()


def read_cut(text: str | None, kind: str | None) -> Failure:
    """The failure whose stored form begins with *text*, which may end anywhere: a list holds no more of it."""
    begun = _BEGINNING.match(text or "")
    if begun is None or (text or "").endswith('"}'):
        return Failure.from_text(text, kind)
    return Failure(kind=kind or "exception", type=_unescaped(begun[1]), message=_unescaped(begun[2]))


class Frame(NamedTuple):
    """One frame of a traceback."""

    file: str
    line: int
    function: str
    source: str
    own: bool
    """Whether it is the application's own code."""


def frames_of(text: str) -> list[Frame]:
    """The frames of a traceback, the innermost last."""
    found = list(_NUMBERED_FRAME.finditer(text))
    ends = [match.start() for match in found[1:]]
    return [_frame(match, text[match.end() : end]) for match, end in zip_longest(found, ends)]


def _frame(match: re.Match[str], rest: str) -> Frame:
    source = next((line.strip() for line in rest.split("\n") if line.startswith("    ")), "")
    return Frame(match[1], int(match[2]), match[3], source, not _FOREIGN.search(match[1]))


def place_in(end: str) -> str | None:
    """Where a failure was raised, by the end of its stored form: the last frame of the application's own code.

    For example "/srv/app/reports.py:88 build"; None where that cannot be told.
    """
    # What may have been cut in two is left out: it begins with the next line.
    lines = end if end.startswith("{") else end.partition("\\n")[2]
    frames = _STORED_FRAME.findall(lines)
    own = [frame for frame in frames if not _FOREIGN.search(_unescaped(frame[0]))] or frames
    return f"{_unescaped(own[-1][0])}:{own[-1][1]} {_unescaped(own[-1][2])}" if own else None


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    """What *error* says, of bounded size. Never raises."""
    try:
        text = str(error)
    except BaseException as second:  # noqa: BLE001 - foreign code
        return f"(str() of the exception raised {type(second).__name__})"
    return storable(text[:MAX_TEXT] + " …" if len(text) > MAX_TEXT else text)


def storable(text: str) -> str:
    """*text* without what a database refuses: lone surrogates and NUL."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(reversed([_block(link, words) for link, words in _chain(error)]))
    except BaseException:  # noqa: BLE001 - the loader of a module may raise when it is asked for source lines
        return _bare_traceback(error)
    return storable(text if len(text) <= MAX_TEXT else "…\n" + text[-MAX_TEXT:])


def _bare_traceback(error: BaseException) -> str:
    """Where *error* was raised, without the source lines and without running any code of its class."""
    lines = ["Traceback (most recent call last):\n"]
    tb: TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)
    while tb is not None:
        code = tb.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {tb.tb_lineno}, in {code.co_name}\n'[:2000])
        tb = tb.tb_next
    return storable("".join(lines[:1] + lines[1:][-_MAX_FRAMES:]))


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """The exception, then what it came from, as Python prints them in reverse."""
    words = ""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < _MAX_CHAIN:
        seen.add(id(link))
        yield link, words
        if link.__cause__ is not None:
            link, words = link.__cause__, "\nThe above exception was the direct cause of the following exception:\n\n"
        else:
            link = None if link.__suppress_context__ else link.__context__
            words = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _block(error: BaseException, words: str) -> str:
    message = message_of(error)[: MAX_TEXT // 4]
    lines = ["Traceback (most recent call last):\n", *_frames(error.__traceback__), f"{_type_name(error)}: {message}\n"]
    if isinstance(error, BaseExceptionGroup):
        lines += [f"  + {_type_name(part)}: {message_of(part)[:500]}\n" for part in error.exceptions[:20]]
    return "".join(lines) + words


def _frames(tb: TracebackType | None) -> list[str]:
    """The user's frames: the hops before the task's function say nothing about the failure."""
    while tb is not None and tb.tb_next is not None and _is_hop(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    return [line[:2000] for line in traceback.format_tb(tb, limit=-_MAX_FRAMES)]


def _is_hop(filename: str) -> bool:
    return filename.startswith(_OURS) or _BRIDGE in Path(filename).parts
