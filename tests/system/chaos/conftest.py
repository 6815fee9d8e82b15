"""Fixtures of the tests that kill, cut and restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.system.chaos.fleet import Fleet, a_fleet


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """A factory of fleets; keyword arguments are configuration values. Whatever is left of them is killed."""
    with ExitStack() as fleets:
        yield lambda url, **config: fleets.enter_context(a_fleet(url, tmp_path / "fleet", **config))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An empty database of each kind in turn."""
    return f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
