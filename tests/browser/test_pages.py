"""Every page of the dashboard in a real browser: no complaint, readable by everybody, alive, and it does what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.browser.shop import Shop

pytestmark = pytest.mark.browser

PAGES = ("", "jobs", "failures", "queues", "schedules", "workers", "mail", "system")


def axe(page: Any) -> list[str]:
    """What axe-core finds, a line a finding."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['help']}: {[n['html'][:200] for n in v['nodes']][:3]}" for v in found]


@pytest.mark.parametrize("path", PAGES)
def test_page_is_quiet_and_accessible(page: Any, address: str, path: str) -> None:
    response = page.goto(f"{address}/{path}")
    assert response.status == 200
    assert page.locator("h1").count() == 1
    assert axe(page) == []


def test_job_page_is_quiet_and_accessible(page: Any, address: str, shop: Shop) -> None:
    page.goto(f"{address}/jobs")
    page.locator("a", has_text=re.compile(rf"#?{shop.running.id}\b")).first.click()
    page.wait_for_selector("h1")
    assert axe(page) == []
    assert "tok_secret" not in page.content()


@pytest.mark.parametrize("theme", ["light"], indirect=True)
@pytest.mark.parametrize("path", PAGES)
def test_page_fits_a_small_telephone(page: Any, address: str, path: str) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    page.goto(f"{address}/{path}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("theme", ["light"], indirect=True)
def test_all_pages_are_reached_by_their_links(page: Any, address: str) -> None:
    page.goto(f"{address}/")
    for name in ("Jobs", "Failures", "Queues", "Schedules", "Workers", "Mail", "System", "Overview"):
        page.get_by_role("navigation").first.get_by_role("link", name=name, exact=True).click()
        page.wait_for_load_state()
        assert name in page.title()


def test_theme_follows_the_system(page: Any, address: str, theme: str) -> None:
    page.goto(f"{address}/")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert (brightness > 384) == (theme == "light")
