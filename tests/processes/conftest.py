"""The fixture of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from parent import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    place = Lab(tmp_path)
    yield place
    place.close()
