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

from ..errors import CancelJob, JobCancelled, LeaseLost, RetryJob, SnoozeJob, TaskWorkerError
from .retry import leaves_of
from .rows import Failure
from .steps import HandedOver, Suspended

MAX_TEXT = 64 * 1024
"""Characters of a message, and of a traceback."""

_MAX_CHAIN = 5
_MAX_DESCRIBED = 60
"""Exceptions of one failure: those of groups, and those that they came from."""
_MAX_FRAMES = 40
_MAX_NOTES = 20
_GROUPED_TEXT = 500
_VARYING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{16,}\b|\d+", re.IGNORECASE)
"""Numbers, addresses, UUIDs and hashes: they differ between failures of one cause."""
_FRAME = re.compile(r'^[ |]*File "([^"\n]+)", line (\d{1,9}), in (.+)$', re.MULTILINE)
_PART = re.compile(r"^ *\+[+-]-+ \d+ -+$", re.MULTILINE)
"""Where one of the exceptions of a group begins."""
_CHARS = r'((?:[^"\\]|\\.)*)'
_BEGINNING = re.compile(rf'\{{"type": "{_CHARS}", "message": "{_CHARS}')
_STORED_FRAME = re.compile(r' File \\"((?:[^"\\]|\\[^"n])+)\\", line (\d+), in ((?:[^"\\]|\\[^"n])+)\\n')
_SOURCE = re.compile(r"^(?: *\| )?    (.*)$", re.MULTILINE)
_FOREIGN = re.compile(r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib[/\\]python3|^<")
_OURS = str(Path(__file__).parents[1])
_BRIDGE = "asgiref"


def failure_of(error: BaseException, kind: str = "exception") -> Failure:
    """The stored form of *error*. Never raises, whatever *error*, its class or the loader of its source code does.

    An exception of ours may name its own kind: a mail that may or may not have arrived is "unknown".
    """
    try:
        if kind == "exception" and issubclass(type(error), TaskWorkerError):
            kind = getattr(error, "failure_kind", kind)
        text = "".join(_described(error, 0, set()))
        text = text if len(text) <= MAX_TEXT else "…\n" + text[-MAX_TEXT:]
        return Failure(kind=kind, type=_type_name(error), message=message_of(error), traceback=storable(text))
    except BaseException as second:  # noqa: BLE001 - foreign code
        raised = type.__dict__["__name__"].__get__(type(second))
        name = type.__dict__["__name__"].__get__(type(error))
        message = f"(describing the exception raised {raised})"
        frames = _bare_frames(vars(BaseException)["__traceback__"].__get__(error))
        text = "".join(["Traceback (most recent call last):\n", *frames])
        return Failure(kind=kind, type=storable(name), message=storable(message), traceback=storable(text))


def deciding(error: BaseException) -> BaseException:
    """The exception that decides what becomes of the job: of a group, the job control inside it, or the group itself.

    A group that holds other errors too is a failure; only a RetryJob beside them still asks for another try.
    """
    leaves = leaves_of(error)
    if leaves[0] is error:
        return error
    controls = [
        leaf for wanted in (CancelJob, RetryJob, SnoozeJob) for leaf in leaves if issubclass(type(leaf), wanted)
    ]
    stops = [leaf for leaf in leaves if issubclass(type(leaf), JobCancelled | LeaseLost | HandedOver | Suspended)]
    if len(controls) + len(stops) == len(leaves):
        return (stops + controls)[0]
    return next((leaf for leaf in controls if issubclass(type(leaf), RetryJob)), error)


def group_of(task: str, failure: Failure) -> str:
    """What failures of one cause have in common: task, type, the words without their numbers, and where it was raised.

    A short hash of that. Where it was raised is the last frame of the application's own code, if there is one; of an
    exception group, that of each exception in it.
    """
    words = _VARYING.sub("?", failure.message[:_GROUPED_TEXT].split("\n", 1)[0]).replace(
        " sub-exceptions)", " sub-exception)"
    )
    places = set()
    for part in _PART.split(failure.traceback):
        if frames := _FRAME.findall(part):
            last = ([frame for frame in frames if not _FOREIGN.search(frame[0])] or frames)[-1]
            places.add(f"{last[0]}:{last[2]}")
    cause = "\0".join((task, failure.kind, failure.type, words, *sorted(places)))
    return hashlib.blake2b(cause.encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()


def read_cut(text: str | None, kind: str | None) -> Failure:
    """The failure whose stored form begins with *text*, which may end anywhere: a list holds no more of it."""
    begun = _BEGINNING.match(text or "")
    if begun is None or (text or "").endswith('"}'):
        return Failure._from_text(text, kind)
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
    frames = []
    found = list(_FRAME.finditer(text))
    for match, end in zip_longest(found, [following.start() for following in found[1:]]):
        source = _SOURCE.search(text, match.end(), len(text) if end is None else end)
        words = source[1].strip() if source else ""
        frames.append(Frame(match[1], int(match[2]), match[3], words, not _FOREIGN.search(match[1])))
    return frames


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
    """What *error* says, of bounded size; of an exception group, what each exception in it says. Never raises."""
    leaves = leaves_of(error)
    if leaves[0] is error:
        return _words_of(error)
    # Of errors that differ in numbers alone one is enough: how many there are says nothing about the cause.
    said: dict[str, str] = {}
    for leaf in leaves:
        words = f"{_type_name(leaf)}: {_words_of(leaf)[:200]}".split("\n", 1)[0]
        said.setdefault(_VARYING.sub("?", words), words)
    return f"{_words_of(error)}: {'; '.join(said[key] for key in sorted(said))}"[:MAX_TEXT]


def _words_of(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException as second:  # noqa: BLE001 - foreign code
        return f"(str() of the exception raised {type(second).__name__})"
    return storable(text[:MAX_TEXT] + " …" if len(text) > MAX_TEXT else text)


def storable(text: str) -> str:
    """*text* without what a database refuses: lone surrogates and NUL."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")


def _described(error: BaseException, indent: int, seen: set[int]) -> Iterator[str]:
    """The lines that Python prints of *error* and of what it came from, the exceptions of groups indented in them."""
    for link, words in reversed(list(_chain(error, seen))):
        is_group = isinstance(link, BaseExceptionGroup)
        at = indent or 2 * is_group
        margin = " " * at + "| " if at else ""
        if frames := _frames(link.__traceback__):
            begin = (
                " " * at + "+ Exception Group " if is_group and not indent else margin + "Exception Group " * is_group
            )
            yield f"{begin}Traceback (most recent call last):\n"
        yield from (f"{margin}{line}\n" for line in [*frames, *_last_lines(link)])
        if isinstance(link, BaseExceptionGroup):
            for number, part in enumerate(link.exceptions, 1):
                if len(seen) >= _MAX_DESCRIBED:
                    yield f"{margin}  and {len(link.exceptions) - number + 1} more exceptions\n"
                    break
                corner = "+-+" if number == 1 else "  +"
                yield f"{' ' * at}{corner}---------------- {number} ----------------\n"
                yield from _described(part, at + 2, seen)
            if not isinstance(link.exceptions[-1], BaseExceptionGroup):
                yield f"{' ' * at}  +------------------------------------\n"
        yield from (f"{margin}{line}\n" for line in words)


def _chain(error: BaseException, seen: set[int]) -> Iterator[tuple[BaseException, list[str]]]:
    """The exception, then what it came from, each with the lines that Python prints below it."""
    words: list[str] = []
    link: BaseException | None = error
    length = 0
    while link is not None and id(link) not in seen and length < _MAX_CHAIN:
        seen.add(id(link))
        length += 1
        yield link, words
        if link.__cause__ is not None:
            link, said = link.__cause__, "The above exception was the direct cause of the following exception:"
        else:
            link = None if link.__suppress_context__ else link.__context__
            said = "During handling of the above exception, another exception occurred:"
        words = ["", said, ""]


def _last_lines(error: BaseException) -> list[str]:
    """What Python prints below the frames: type and message, a SyntaxError's place, the notes."""
    if isinstance(error, SyntaxError) and len(error.text or "") < _GROUPED_TEXT:
        return "".join(traceback.format_exception_only(error))[: MAX_TEXT // 4].splitlines()
    message = _words_of(error)
    said = f"{_type_name(error)}: {message[: MAX_TEXT // 4]}" if message else _type_name(error)
    notes = getattr(error, "__notes__", None)
    lines = [str(note)[:_GROUPED_TEXT] for note in notes[:_MAX_NOTES]] if isinstance(notes, list | tuple) else []
    return "\n".join([said, *lines]).split("\n")


def _frames(tb: TracebackType | None) -> list[str]:
    """The lines of the user's frames: those before the task's function say nothing about the failure."""
    while tb is not None and tb.tb_next is not None:
        file = tb.tb_frame.f_code.co_filename
        if not file.startswith(_OURS) and _BRIDGE not in Path(file).parts:
            break
        tb = tb.tb_next
    try:
        frames = [frame[:2000] for frame in traceback.format_tb(tb, limit=-_MAX_FRAMES)]
    except Exception:  # noqa: BLE001 - the loader of a source file, a damaged archive for example
        frames = _bare_frames(tb)
    return "".join(frames).splitlines()


def _bare_frames(tb: TracebackType | None) -> list[str]:
    """The frames without their source lines: nothing foreign runs for it."""
    walked = [(frame.f_code, line) for frame, line in traceback.walk_tb(tb)][-_MAX_FRAMES:]
    return [f'  File "{code.co_filename}", line {line}, in {code.co_name}\n'[:2000] for code, line in walked]
