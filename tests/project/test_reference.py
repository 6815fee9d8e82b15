"""The reference is compared with the code when the documentation is built; here: what is compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import reference
from flask_taskworker import BackgroundTaskWorker, Job, Task, Unique
from flask_taskworker.mail import BadHeaderError

ROOT = Path(__file__).parents[2]


def everything() -> set[str]:
    """What a complete reference shows."""
    classes = reference.classes()
    inside = {f"{name}.{one}" for name, cls in classes.items() for one in reference.members(cls)}
    return {*reference.public_objects(), *classes, *inside}


def test_classes_that_public_members_return_belong_to_the_reference() -> None:
    names = {name.rpartition(".")[2] for name in reference.classes()}
    # An attribute, a property, a method, a mapping's values, and what is returned by those.
    assert {"Progress", "Failure", "Call", "QueueControl", "QueueSummary", "BatchBlock", "CurrentJob"} <= names
    assert not {name for name in names if name.startswith("_")} | (
        {"AppState", "TaskRegistry", "Client", "Shown"} & names
    )


def test_each_of_them_has_its_place_in_the_reference() -> None:
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("api.md", "testing.md"))
    modules = set(re.findall(r"automodule:: ([\w.]+)", pages))
    shown = set(re.findall(r"autoclass:: ([\w.]+)", pages))
    missing = {name for name in reference.classes() if name not in shown and name.rpartition(".")[0] not in modules}
    assert not missing, "add .. autoclass:: NAME() to docs/api.md"


@pytest.mark.parametrize(
    ("cls", "internal"),
    [
        (BackgroundTaskWorker, {"registry", "run", "state", "timing"}),
        (Job, {"become"}),
        (Task, {"client", "encode", "lane", "named", "place", "signature"}),
        (Unique, {"for_key"}),
    ],
)
def test_internals_of_public_classes_are_private(cls: type, internal: set[str]) -> None:
    assert not reference.members(cls) & internal


def test_inherited_members_count_and_those_of_python_do_not() -> None:
    assert {"task", "start"} <= reference.members(BackgroundTaskWorker)
    assert "message" in reference.members(BadHeaderError)
    assert "args" not in reference.members(BadHeaderError)


def test_what_is_missing_or_not_public_is_named() -> None:
    assert reference.not_shown(everything()) == []
    shown = everything() - {"flask_taskworker.Job.cancel"} | {"flask_taskworker.Job.become"}
    assert reference.not_shown(shown) == [
        "flask_taskworker.Job.cancel is missing",
        "flask_taskworker.Job.become is not public",
    ]
    assert "flask_taskworker.Limit is missing" in reference.not_shown(
        {name for name in everything() if not name.startswith("flask_taskworker.Limit")}
    )
