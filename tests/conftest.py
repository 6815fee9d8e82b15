"""Fixtures that several test modules share; a fixture for one module lives in that module."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Flask


@pytest.fixture
def make_app(tmp_path: Path) -> Callable[..., Flask]:
    """A factory of Flask apps, each with an instance folder, and so a task database, of its own in tmp_path.

    Keyword arguments are configuration values.
    """
    numbers = count(1)

    def make(**config: Any) -> Flask:
        number = next(numbers)
        app = Flask(f"app{number}", instance_path=str(tmp_path / f"instance{number}"), root_path=str(tmp_path))
        app.config.update(config)
        return app

    return make
