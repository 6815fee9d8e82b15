"""Failures of one cause are one group, and of another cause another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from flask_taskworker.failures import failure_of, group_of
from flask_taskworker.jobs import Failure

OURS = 'Traceback (most recent call last):\n  File "/srv/app/reports.py", line 88, in build\n    rows[0]\n'
DEEPER = '  File "/srv/venv/lib/python3.11/site-packages/sqlalchemy/engine.py", line 5, in execute\n    x()\n'
FAILURE = Failure(kind="exception", type="KeyError", message="no row 7", traceback=OURS + "KeyError: 7\n")


def group(**changes: str) -> str:
    task = changes.pop("task", "report.build")
    return group_of(task, replace(FAILURE, **changes))  # type: ignore[arg-type]


SAME = {
    "another number": {"message": "no row 1234567"},
    "another line": {"traceback": OURS.replace("88", "91")},
    "another second line of the message": {"message": "no row 7\nPARAMETERS: {'x': 'y'}"},
    "another place in a library": {"traceback": OURS + DEEPER},
    "much of a message": {"message": "no row 7\n" + "x" * 100_000},
}
OTHER = {
    "another task": {"task": "report.send"},
    "another type": {"type": "ValueError"},
    "another kind": {"kind": "timeout"},
    "other words": {"message": "no column 7"},
    "another function": {"traceback": OURS.replace("build", "load")},
    "another file": {"traceback": OURS.replace("reports.py", "mails.py")},
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_one_cause_is_one_group(changes: dict[str, str]) -> None:
    assert group(**changes) == group()


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_another_cause_is_another_group(changes: dict[str, str]) -> None:
    assert group(**changes) != group()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("user 019f6f2e-1c2b-7000-8000-0123456789ab", "user 019f6f2e-1c2b-7000-8000-ba9876543210"),
        ("object at 0x7f33aa", "object at 0x7F99BB12"),
        ("key d41d8cd98f00b204e9800998ecf8427e", "key 900150983cd24fb0d6963f7d28e17f72"),
        ("after 1.5 s", "after 30.25 s"),
    ],
)
def test_what_varies_in_a_message_is_left_out(one: str, other: str) -> None:
    assert group(message=one) == group(message=other)


def test_words_that_look_like_hashes_are_kept() -> None:
    assert group(message="feed is dead") != group(message="feed is bad")


def test_a_group_is_a_short_word_whatever_the_texts_hold() -> None:
    for message in ("", "\0", "\ud800", "ü" * 10_000, '"; DROP TABLE x'):
        assert group(message=message).isalnum()
        assert len(group(message=message)) == 12
    assert group(traceback="no traceback") != group()


def raised(function: Callable[[], object]) -> Failure:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return failure_of(caught.value)


def test_the_place_is_the_application_s_own_last_frame() -> None:
    def parse() -> None:
        int("x")

    def convert() -> None:
        int("x")

    assert group_of("t", raised(parse)) == group_of("t", raised(parse))
    assert group_of("t", raised(parse)) != group_of("t", raised(convert))
