"""The tree of errors is as its docstring draws it, and each error explains itself."""

from __future__ import annotations

import inspect
import re

import pytest

from flask_taskworker import errors

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]


def drawn() -> dict[str, str]:
    """Each name in the drawing with the one above it."""
    above: list[tuple[int, str]] = []
    found = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)", line)
        if match and (match["indent"] or not found) and ("─" in match["indent"] or match["name"] == "TaskWorkerError"):
            depth = len(match["indent"])
            while above and above[-1][0] >= depth:
                above.pop()
            found[match["name"]] = above[-1][1] if above else ""
            above.append((depth, match["name"]))
    return found


def test_drawing_has_each_class_under_its_base() -> None:
    tree = drawn()
    for cls in CLASSES:
        if tree.get(cls.__name__):
            assert issubclass(cls, getattr(errors, tree[cls.__name__])), cls
    assert {cls.__name__ for cls in CLASSES if not cls.__name__.startswith("_")} - set(tree) == set()


@pytest.mark.parametrize("cls", [errors.AppError, errors.TaskExists, errors.ArgumentsError], ids=lambda c: c.__name__)
def test_first_paragraph_of_the_docstring_is_the_message(cls: type[errors.TaskWorkerError]) -> None:
    assert str(cls()) == inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    assert str(cls("other words")) == "other words"


def test_wrong_value_is_named_with_what_is_allowed() -> None:
    error = errors.ConfigError._of("TASKER_THREADS", 0, "a number from 1")
    assert str(error) == "TASKER_THREADS = 0 is not allowed. Allowed: a number from 1."
    assert isinstance(error, ValueError)
