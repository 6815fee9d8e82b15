"""The filter language: what it reads, what it writes, and what it says to words that it does not know."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flask_taskworker.core.clock import to_ms
from flask_taskworker.core.filters import EVERYTHING, HELP, STATES, JobFilter
from flask_taskworker.errors import ArgumentsError

NOW = to_ms(datetime(2026, 1, 31, 12, 0, tzinfo=UTC))
HOUR = 3_600_000


def parse(text: str) -> JobFilter:
    return JobFilter.parse(text, NOW)


WORDS = {
    "": EVERYTHING,
    "   ": EVERYTHING,
    "state:failed": JobFilter(states=("failed",)),
    "state:failed,cancelled": JobFilter(states=("failed", "cancelled")),
    "state:failed state:cancelled": JobFilter(states=("failed", "cancelled")),
    "state:ready state:ready": JobFilter(states=("ready",)),
    "state:retrying": JobFilter(states=("retrying",)),
    "task:mail.send": JobFilter(task="mail.send"),
    "mail.*": JobFilter(task="mail.*"),
    "42": JobFilter(id=42),
    "#42": JobFilter(id=42),
    "id:42": JobFilter(id=42),
    "queue:slow": JobFilter(queue="slow"),
    "schedule:nightly": JobFilter(schedule="nightly"),
    "worker:ab12": JobFilter(worker="ab12"),
    "group:crashed:app.add": JobFilter(group="crashed:app.add"),
    "lane:shop:7/eu": JobFilter(lane="shop:7/eu"),
    'lane:"shop:Ana B"': JobFilter(lane="shop:Ana B"),
    "unique:user-7": JobFilter(unique="user-7"),
    "uid:019f": JobFilter(uid="019f"),
    "attempts:3": JobFilter(attempts=3),
    "discarded:yes": JobFilter(discarded=True),
    "discarded:no": EVERYTHING,
    "args.user_id:42": JobFilter(args=(("user_id", "42"),)),
    "args.url:http://x/?a=b:c": JobFilter(args=(("url", "http://x/?a=b:c"),)),
    'args.name:"Ana Maria"': JobFilter(args=(("name", "Ana Maria"),)),
    "args.a:1 args.b:2": JobFilter(args=(("a", "1"), ("b", "2"))),
    'task:"my task"': JobFilter(task="my task"),
    '"my task"': JobFilter(task="my task"),
    "it's": JobFilter(task="it's"),
    "a\\b": JobFilter(task="a\\b"),
    "task:#not-a-comment": JobFilter(task="#not-a-comment"),
    "after:-1h": JobFilter(after=NOW - HOUR),
    "after:1h": JobFilter(after=NOW - HOUR),
    "after:-90s": JobFilter(after=NOW - 90_000),
    "after:-1.5m": JobFilter(after=NOW - 90_000),
    "after:-250ms": JobFilter(after=NOW - 250),
    "before:-7d": JobFilter(before=NOW - 7 * 24 * HOUR),
    "before:-2w": JobFilter(before=NOW - 14 * 24 * HOUR),
    "after:2026-01-31": JobFilter(after=NOW - 12 * HOUR),
    "after:2026-01-31T11:00": JobFilter(after=NOW - HOUR),
    "after:2026-01-31T12:00+01:00": JobFilter(after=NOW - HOUR),
    "after:2026-01-31T11:00:00Z": JobFilter(after=NOW - HOUR),
    "after:-999999w": JobFilter(after=0),
    "after:0001-01-01T00:00+14:00": JobFilter(after=0),
    "state:failed task:mail.* queue:mail after:-1h attempts:2 args.to:x": JobFilter(
        states=("failed",), task="mail.*", queue="mail", after=NOW - HOUR, attempts=2, args=(("to", "x"),)
    ),
}


@pytest.mark.parametrize(("text", "chosen"), WORDS.items(), ids=list(WORDS))
def test_each_word_is_read(text: str, chosen: JobFilter) -> None:
    assert parse(text) == chosen


@pytest.mark.parametrize("text", WORDS)
def test_a_filter_is_written_so_that_it_reads_the_same(text: str) -> None:
    chosen = parse(text)
    assert JobFilter.parse(str(chosen), NOW + 5 * HOUR) == chosen


def test_the_last_moment_that_there_is_can_be_written() -> None:
    assert str(parse("before:9999-12-31T23:59-14:00")) == "before:9999-12-31T23:59:59.999000Z"


def test_every_state_is_known() -> None:
    assert parse(" ".join(f"state:{state}" for state in STATES)).states == STATES


def test_only_a_filter_with_words_is_true() -> None:
    assert not parse("")
    assert parse("42")


REFUSED = {
    "colour:blue": "The filter word 'colour:blue' is not known",
    "args.:1": "The filter word 'args.:1' is not known",
    "state:done": "Unknown state 'done'. States: scheduled, held, ready, running",
    "state:failed,": "Unknown state ''",
    "task:": "The filter word 'task:' has no value",
    ":x": "The filter word ':x' is not known",
    "task:a task:b": "The filter has task: twice",
    "task:a b": "The filter has task: twice",
    "id:x": "id: takes a whole number, not 'x'",
    "id:-1": "id: takes a whole number, not '-1'",
    "id:1e3": "id: takes a whole number, not '1e3'",
    "id:99999999999999999999": "id: takes a whole number, not '99999999999999999999'",
    "٣": "id: takes a whole number, not '٣'",
    "attempts:many": "attempts: takes a whole number, not 'many'",
    "after:yesterday": "after: takes a span like -90s, -15m, -1h, -7d or a moment like 2026-01-31T12:00, not 'yester",
    "before:2026-02-30": "before: takes a span",
    "before:+1h": "before: takes a span",
    "discarded:maybe": "discarded: takes yes or no, not 'maybe'",
    'task:"a': "The filter 'task:\"a' has a quotation mark without its partner",
    "task:a\0b": "The filter word 'task:a\\\\x00b' contains a character that cannot be stored",
    "args.x:\0": "contains a character that cannot be stored",
    "x\ud800": "The filter word 'x\\\\ud800' contains a character that cannot be stored",
    "x" * 1001: "A filter has at most 1000 characters; this one has 1001.",
}


@pytest.mark.parametrize(("text", "words"), REFUSED.items(), ids=[ascii(text[:20]) for text in REFUSED])
def test_an_error_names_the_word(text: str, words: str) -> None:
    with pytest.raises(ArgumentsError, match=words):
        parse(text)


def test_the_longest_filter_is_read() -> None:
    assert parse("x" * 1000).task == "x" * 1000


def test_help_names_every_key() -> None:
    for key in ("state", "task", "queue", "schedule", "worker", "group", "unique", "uid", "id", "attempts"):
        assert f"{key}:" in HELP
    for key in ("args.NAME", "after", "before", "discarded"):
        assert f"{key}:" in HELP


PATTERNS = {"mail.*": "mail.%", "a_b%c": "a\\_b\\%c", "a\\b": "a\\\\b", "*": "%"}


@pytest.mark.parametrize(("task", "pattern"), PATTERNS.items())
def test_only_the_star_is_a_pattern(task: str, pattern: str) -> None:
    assert JobFilter(task=task).task_pattern() == pattern


GLOBS = {"mail.*": "mail.*", "a?b": "a[?]b", "a[b]": "a[[]b]", "*": "*"}


@pytest.mark.parametrize(("task", "glob"), GLOBS.items())
def test_only_the_star_is_a_pattern_of_glob(task: str, glob: str) -> None:
    assert JobFilter(task=task).task_glob() == glob


def test_without_a_task_no_pattern_is_known() -> None:
    assert EVERYTHING.task_pattern() is None
