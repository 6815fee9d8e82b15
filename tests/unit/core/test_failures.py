"""Failures of one cause are one group, and of another cause another."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace

import pytest

from flask_taskworker.core.failures import deciding, failure_of, frames_of, group_of, place_in
from flask_taskworker.core.rows import Failure
from flask_taskworker.errors import CancelJob, RetryJob, SnoozeJob

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


# -- as Python prints it -----------------------------------------------------------------------------------------------


def noted() -> None:
    try:
        int("x")
    except ValueError as error:
        error.add_note("in row 17 of prices.csv")
        error.add_note("two\nlines")
        raise


def chained() -> None:
    try:
        noted()
    except ValueError as error:
        raise LookupError("no price") from error


def grouped() -> None:
    errors: list[Exception] = []
    for function in (noted, chained, lambda: compile("1 + + * 3", "a formula", "eval")):
        try:
            function()
        except Exception as error:  # noqa: BLE001
            errors.append(error)
    raise ExceptionGroup("several", [errors[0], ExceptionGroup("inner", errors[1:])])


@pytest.mark.parametrize("function", [noted, chained, grouped, lambda: compile("1 + + * 3", "a formula", "eval")])
def test_a_traceback_is_kept_as_python_prints_it(function: Callable[[], object]) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    printed = "".join(traceback.format_exception(caught.value))
    assert failure_of(caught.value).traceback == printed


def test_frames_and_place_are_found_inside_groups() -> None:
    failure = raised(grouped)
    frames = frames_of(failure.traceback)
    assert {("noted", 'int("x")'), ("chained", "noted()")} <= {(frame.function, frame.source) for frame in frames}
    assert (place_in(failure._to_text()) or "").endswith("<lambda>")


class Unreadable(Exception):
    """Nothing about it can be asked."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("no attributes")

    def __str__(self) -> str:
        raise RuntimeError("no words")


class UnreadableNotes(Exception):
    __notes__ = (b"odd",)


def damaged_loader() -> None:
    namespace = {"__name__": "zipped", "__loader__": Loader()}
    exec(compile("def f():\n    1 / 0\n", "/nowhere/zipped.py", "exec"), namespace)
    namespace["f"]()  # type: ignore[operator]


class Loader:
    def get_source(self, name: str) -> str:
        raise EOFError("the archive is cut")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: (_ for _ in ()).throw(Unreadable()), "Unreadable"),
        (lambda: (_ for _ in ()).throw(ExceptionGroup("g", [Unreadable()])), "ExceptionGroup"),
        (lambda: (_ for _ in ()).throw(UnreadableNotes("odd")), "odd"),
        (damaged_loader, 'File "/nowhere/zipped.py", line 2, in f'),
    ],
)
def test_what_cannot_be_described_still_becomes_a_failure(function: Callable[[], object], words: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    assert words in failure_of(caught.value)._to_text().replace('\\"', '"')


def test_a_wide_and_deep_group_has_a_short_traceback() -> None:
    group = ExceptionGroup("one", [ValueError("x" * 500) for _ in range(100)])
    for _ in range(20):
        group = ExceptionGroup("many", [group] * 15)
    failure = failure_of(group)
    assert len(failure.traceback) <= 64 * 1024 + 2
    assert "more exceptions" in failure.traceback


# -- groups of exceptions ----------------------------------------------------------------------------------------------


def group_with(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("unhandled errors in a TaskGroup", errors)


def test_exception_groups_of_one_inner_cause_are_one_failure_group() -> None:
    one, many = group_with(KeyError(3)), group_with(KeyError(4), group_with(KeyError(5)))
    assert group_of("t", failure_of(one)) == group_of("t", failure_of(many))
    assert group_of("t", failure_of(one)) != group_of("t", failure_of(group_with(ValueError(3))))


def test_message_of_an_exception_group_says_what_each_exception_says() -> None:
    failure = failure_of(group_with(KeyError("rate"), ConnectionError("upstream away")))
    assert failure.message == (
        "unhandled errors in a TaskGroup (2 sub-exceptions): ConnectionError: upstream away; KeyError: 'rate'"
    )


RETRY, SNOOZE, CANCEL, ERROR = RetryJob(), SnoozeJob(1), CancelJob(), ValueError()


@pytest.mark.parametrize(
    ("errors", "decides"),
    [
        ((SNOOZE,), SNOOZE),
        ((RETRY,), RETRY),
        ((CANCEL,), CANCEL),
        ((SNOOZE, RETRY), RETRY),
        ((RETRY, SNOOZE, CANCEL), CANCEL),
        ((ERROR, RETRY), RETRY),
    ],
)
def test_job_control_inside_a_group_decides(errors: tuple[Exception, ...], decides: Exception) -> None:
    assert deciding(group_with(group_with(*errors))) is decides


@pytest.mark.parametrize("control", [SNOOZE, CANCEL])
def test_another_error_in_the_group_is_not_hidden_by_job_control(control: Exception) -> None:
    group = group_with(control, ERROR)
    assert deciding(group) is group
