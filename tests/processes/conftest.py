"""The fixture of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from parent import Lab

QUICK = {"test_death.py", "test_background_process.py", "test_poison.py"}
"""What stands for the others in ``dev.py test``; the rest runs with ``dev.py slow`` and ``check``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    place = Lab(tmp_path)
    yield place
    place.close()
