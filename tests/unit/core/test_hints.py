"""What type hints name, and under which name another process imports a module."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest

from flask_taskworker.core.hints import hints_of, importable_name, is_registrable, named_types, type_name

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


class Color(enum.Enum):
    RED = 1


@dataclass
class Point:
    x: int


def paint(at: dict[str, list[Point | None]], color: Annotated[Color, "any"], other: Missing) -> Literal[Color.RED]:
    raise NotImplementedError


def test_hints_that_cannot_be_resolved_are_named_and_hide_no_others() -> None:
    hints, unresolved = hints_of(paint)
    assert unresolved == ["other"]
    assert set(named_types(hints)) == {Point, Color}


@pytest.mark.parametrize(("cls", "expected"), [(Color, True), (Point, True), (Point(1), False), (int, False)])
def test_dataclasses_and_enums_can_be_registered(cls: Any, expected: bool) -> None:
    assert is_registrable(cls) is expected


def test_a_class_is_named_by_its_module() -> None:
    assert type_name(Point) == f"{__name__}.Point"


@pytest.mark.parametrize("module", ["uwsgi_file_shop", "_mod_wsgi_0b8e4b5a7f", "__mp_main__", "__main__"])
def test_a_file_is_named_by_the_packages_above_it(tmp_path: Path, module: str) -> None:
    folder = tmp_path / "src" / "market" / "stalls"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder / "fruit.py").touch()
    assert importable_name(module, {"__file__": str(folder / "fruit.py")}) == "market.stalls.fruit"


def test_a_module_that_an_import_finds_keeps_its_name() -> None:
    assert importable_name("json") == "json"
    assert importable_name(__name__) == __name__
    assert importable_name("not_loaded_at_all") == "not_loaded_at_all"
