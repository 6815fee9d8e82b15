"""The filter language of the commands and the pages: ``state:failed task:mail.* args.user_id:42 after:-1h``. Pure.

Words are separated by spaces; a value with a space stands in double quotes, and none has a double quote in it. Each
word is ``key:value``; a word without a colon is a task, or, if it is a number, a job. All words must fit; of several
``state:`` words one must.
"""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from ..errors import ArgumentsError
from .clock import from_ms, to_ms
from .rows import STORED
from .words import number_in

STATES = (*(state.value for state in STORED), "retrying", "waiting")
"""What ``state:`` takes: ``retrying`` are the scheduled jobs that have failed before, ``waiting`` those that wait for
others."""

_RELATIVE = re.compile(r"-?(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = 1_000
"""Characters of a filter."""
_LAST = to_ms(datetime.max.replace(tzinfo=UTC))
"""The last moment that can be written."""
HELP = (
    "state:failed (also held, retrying, waiting), task:mail.* (* stands for anything), queue:NAME, schedule:NAME, "
    "worker:ID, "
    "lane:shop:7 (the limit shop, key 7; without a key, all of its keys), group:ID, unique:KEY, uid:UID, id:42, "
    "parent:42 (enqueued inside job 42), batch:7, follows:42 (enqueued with after=job 42), "
    "attempts:3 (tries that failed, at least), args.NAME:VALUE, after:-1h and "
    "before:2026-01-31T12:00 (enqueued then, UTC), discarded:yes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs. Times are epoch milliseconds. An empty one fits every job that is not discarded."""

    states: tuple[str, ...] = ()
    task: str | None = None
    """A name, in which ``*`` stands for anything."""
    queue: str | None = None
    schedule: str | None = None
    worker: str | None = None
    group: str | None = None
    """The failure group."""
    lane: str | None = None
    """A lane, such as ``shop:7``; a limit without a key means all of its lanes."""
    unique: str | None = None
    uid: str | None = None
    id: int | None = None
    parent: int | None = None
    """Those that were enqueued inside this job."""
    batch: int | None = None
    follows: int | None = None
    """Those that wait, or have waited, for this job."""
    attempts: int | None = None
    """At least this many attempts failed."""
    after: int | None = None
    before: int | None = None
    args: tuple[tuple[str, str], ...] = ()
    """Names of arguments, and their values, written as text or JSON."""
    discarded: bool = False
    """The discarded jobs, rather than the others."""

    def __bool__(self) -> bool:
        return self != EVERYTHING

    @classmethod
    def parse(cls, text: str, now: int) -> JobFilter:
        """Read a filter. *now*: epoch milliseconds. Raises ArgumentsError that names the word."""
        if len(text) > _LONGEST:
            raise ArgumentsError(f"A filter has at most {_LONGEST} characters; this one has {len(text)}.")
        for word in text.split():
            # No database takes NUL, or half a surrogate pair; neither can be in anything that is stored.
            if "\0" in word or word.encode("utf-8", "replace") != word.encode("utf-8", "surrogatepass"):
                raise ArgumentsError(f"The filter word {word!r} contains a character that cannot be stored.")
        found: dict[str, object] = {}
        args: list[tuple[str, str]] = []
        states: list[str] = []
        for word in _words(text):
            key, colon, value = word.partition(":")
            if not colon:
                number = word.removeprefix("#")
                key, value = ("id", number) if number.isdecimal() else ("task", word)
            if not value:
                raise ArgumentsError(f"The filter word {word!r} has no value.")
            if key.startswith("args.") and len(key) > 5:
                args.append((key[5:], value))
            elif key == "state":
                states += _states(value)
            elif key in _READERS:
                if key in found:
                    raise ArgumentsError(f"The filter has {key}: twice.")
                found[key] = _READERS[key](key, value, now)
            else:
                raise ArgumentsError(f"The filter word {word!r} is not known. Known: {HELP}.")
        return cls(states=tuple(dict.fromkeys(states)), args=tuple(args), **found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The text that :meth:`parse` reads, with times as ISO 8601."""
        words = [f"state:{state}" for state in self.states]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("states", "args") or value is None or value is False:
                continue
            words.append(_quoted(f.name, _text(f.name, value)))
        return " ".join([*words, *(_quoted(f"args.{name}", value) for name, value in self.args)])

    def exact(self) -> str:
        """The filter as text that means the same tomorrow. Raises ArgumentsError where text cannot say it."""
        text = str(self)
        with suppress(ArgumentsError):
            if JobFilter.parse(text, 0) == self:
                return text
        raise ArgumentsError(f"The filter {text!r} is read differently when it is read again. Write it more simply.")

    def changeable(self) -> JobFilter:
        """What of it a job may fit at one moment and not at the next: the rest of a job never changes."""
        kept = {name: getattr(self, name) for name in ("states", "queue", "worker", "group", "attempts", "discarded")}
        return JobFilter(**kept)

    def task_pattern(self) -> str | None:
        """The task as an SQL LIKE pattern with ``\\`` as its escape; None without one."""
        if self.task is None:
            return None
        return re.sub(r"([\\%_])", r"\\\1", self.task).replace("*", "%")

    def task_glob(self) -> str | None:
        """The task as a pattern of SQLite's GLOB; None without one."""
        return None if self.task is None else re.sub(r"([?\[])", r"[\1]", self.task)


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.quotes, lexer.commenters, lexer.escape = True, '"', "", ""
    try:
        return list(lexer)
    except ValueError:
        raise ArgumentsError(f"The filter {text!r} has a quotation mark without its partner.") from None


def _states(value: str) -> list[str]:
    names = value.split(",")
    for name in names:
        if name not in STATES:
            raise ArgumentsError(f"Unknown state {name!r}. States: {', '.join(STATES)}.")
    return names


def _number(key: str, value: str, now: int) -> int:
    number = number_in(value)
    if number is None:
        raise ArgumentsError(f"{key}: takes a whole number, not {value!r}.")
    return number


def _moment(key: str, value: str, now: int) -> int:
    """``-1h`` (ago), or a date with or without a time; without a zone it is UTC."""
    if match := _RELATIVE.fullmatch(value):
        seconds = float(match[1]) * _UNITS[match[2]]
        return max(0, now - round(min(seconds, 1e10) * 1000))
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ArgumentsError(
            f"{key}: takes a span like -90s, -15m, -1h, -7d or a moment like 2026-01-31T12:00, not {value!r}."
        ) from None
    return min(max(0, to_ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))), _LAST)


def _yes(key: str, value: str, now: int) -> bool:
    if value not in ("yes", "no"):
        raise ArgumentsError(f"{key}: takes yes or no, not {value!r}.")
    return value == "yes"


_READERS = {
    **dict.fromkeys(
        ("task", "queue", "schedule", "worker", "group", "lane", "unique", "uid"), lambda key, value, now: value
    ),
    **dict.fromkeys(("id", "parent", "batch", "follows", "attempts"), _number),
    **dict.fromkeys(("after", "before"), _moment),
    "discarded": _yes,
}


def _text(name: str, value: object) -> str:
    if name in ("after", "before"):
        assert isinstance(value, int)
        return from_ms(value).isoformat().replace("+00:00", "Z")
    return "yes" if value is True else str(value)


def _quoted(key: str, value: str) -> str:
    return f'{key}:"{value}"' if re.search(r"\s", value) else f"{key}:{value}"


EVERYTHING = JobFilter()
