"""A shop with jobs of every kind, served by a real server with a worker in it, and a real Chromium."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.serving import make_server

from tests.system.browser.shop import Shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The shop, seeded, its worker running; shared by all tests of a page."""
    place = Shop(tmp_path_factory.mktemp("shop"))
    place.seed()
    yield place
    place.close()


def serve(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def address(shop: Shop) -> Iterator[str]:
    """Where the shop's dashboard is."""
    for base in serve(shop.app):
        yield f"{base}/tasks"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("TASKER_TEST_BROWSER", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(chromium: Any, theme: str, tmp_path: Path) -> Iterator[Any]:
    """A page in one of the themes. A console error, a CSP violation or a failed request fails the test."""
    context = chromium.new_context(color_scheme=theme, viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("requestfailed", lambda asked: complaints.append(f"{asked.url} {asked.failure}"))
    yield tab
    # A context that is closed in the middle of a navigation may never say that it is.
    tab.goto("about:blank")
    context.close()
    # A poll that the closing page cuts short has not failed.
    assert [line for line in complaints if "ERR_ABORTED" not in line] == []
