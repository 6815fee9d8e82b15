"""Every page of the dashboard in a real browser: no complaint, readable by all, alive, and it does what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.system.browser.shop import Shop

pytestmark = pytest.mark.browser

PAGES = ("", "jobs", "failures", "queues", "limits", "schedules", "workers", "mail", "system")


def expect(shown: Any) -> Any:
    """Playwright's assertions, which wait until they hold: a click returns before the next page is there."""
    from playwright.sync_api import expect as asserted

    asserted.set_options(timeout=30_000)
    return asserted(shown)


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
    # The newest jobs alone would be those of a schedule, before long.
    page.goto(f"{address}/jobs?filter=state:running")
    page.locator("a", has_text=re.compile(rf"#?{shop.running.id}\b")).first.click()
    page.wait_for_url(re.compile(rf"/jobs/{shop.running.id}$"))
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
    for name in ("Jobs", "Failures", "Queues", "Limits", "Schedules", "Workers", "Mail", "System", "Overview"):
        page.get_by_role("navigation").first.get_by_role("link", name=name, exact=True).click()
        expect(page).to_have_title(re.compile(name))


def test_theme_follows_the_system(page: Any, address: str, theme: str) -> None:
    page.goto(f"{address}/")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert (brightness > 384) == (theme == "light")


# -- what the buttons do ---------------------------------------------------------------------------------------------

one_theme = pytest.mark.parametrize("theme", ["light"], indirect=True)


@one_theme
def test_failed_job_is_retried(page: Any, address: str, shop: Shop) -> None:
    with shop.app.app_context():
        job = shop.charge.enqueue(1)
        shop.wait(lambda: job.refresh().state == "failed")
        first = job.started_at
        page.goto(f"{address}/jobs/{job.id}")
        page.get_by_role("button", name="Retry").click()
        expect(page.locator(".note")).to_be_visible()
        shop.wait(lambda: job.refresh().started_at not in (first, None) and job.state == "failed")
    page.goto(f"{address}/system")
    assert f"job {job.id}" in page.content()
    assert "ana" in page.content()


@one_theme
def test_waiting_job_is_run_now_or_cancelled(page: Any, address: str, shop: Shop) -> None:
    with shop.app.app_context():
        runs, ends = shop.rest.using(delay=3600).enqueue_many([(1,), (2,)])
        page.goto(f"{address}/jobs/{runs.id}")
        page.get_by_role("button", name="Run now").click()
        expect(page.locator(".note")).to_be_visible()
        shop.wait(lambda: runs.refresh().state == "succeeded")
        page.goto(f"{address}/jobs/{ends.id}")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".note")).to_be_visible()
        shop.wait(lambda: ends.refresh().state == "cancelled")


@one_theme
def test_paused_queue_waits_until_it_is_resumed(page: Any, address: str, shop: Shop) -> None:
    page.goto(f"{address}/queues")
    row = page.locator("tr", has_text="default")
    row.locator("button", has_text="Pause").click()
    expect(row.locator("button", has_text="Resume")).to_have_count(1)
    with shop.app.app_context():
        job = shop.add.enqueue(1, 2)
        assert job.refresh().state == "ready"
        row.locator("button", has_text="Resume").click()
        assert job.result(timeout=30) == 3


@one_theme
def test_schedule_runs_now(page: Any, address: str, shop: Shop) -> None:
    found = page.locator("tbody tr", has_text="shop.nightly")
    page.goto(f"{address}/jobs?filter=task:shop.nightly")
    before = found.count()
    page.goto(f"{address}/schedules")
    page.locator("tr", has_text="shop.nightly").locator("button", has_text="Run now").click()
    expect(page.locator(".note")).to_contain_text("runs now")
    page.goto(f"{address}/jobs?filter=task:shop.nightly")
    assert found.count() == before + 1


@one_theme
def test_all_that_fit_a_filter_are_discarded_after_a_question(page: Any, address: str, shop: Shop) -> None:
    with shop.app.app_context():
        jobs = shop.rest.using(delay=3600, queue="dismissed").enqueue_many([(number,) for number in range(12)])
        page.goto(f"{address}/jobs?filter=queue:dismissed")
        page.get_by_label("all that fit the filter").check()
        page.get_by_role("button", name="Discard").click()
        page.wait_for_url(re.compile("/jobs/confirm"))
        expect(page.locator("main")).to_contain_text("12 jobs")
        assert all(job.refresh().state == "scheduled" for job in jobs)
        page.get_by_role("button", name=re.compile("Discard")).click()
        shop.wait(lambda: all(job.refresh().state == "cancelled" for job in jobs))


@one_theme
def test_numbers_move_by_themselves(page: Any, address: str, shop: Shop) -> None:
    page.goto(f"{address}/jobs")
    with shop.app.app_context():
        job = shop.add.enqueue(20, 22)
    page.locator(f"text=#{job.id}").wait_for(timeout=30_000)


def test_everything_can_be_done_without_javascript(chromium: Any, address: str, shop: Shop) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    with shop.app.app_context():
        job = shop.rest.using(delay=3600).enqueue(5)
        page.goto(f"{address}/jobs/{job.id}")
        page.get_by_role("button", name="Run now").click()
        shop.wait(lambda: job.refresh().state == "succeeded")
    context.close()


@one_theme
def test_attackers_words_stay_words(page: Any, address: str, shop: Shop) -> None:
    with shop.app.app_context():
        job = shop.fetch.enqueue("<img src=x onerror=alert(1)>\"'><script>alert(2)</script>{{7*7}}")
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for path in ("jobs", f"jobs/{job.id}", "failures"):
        page.goto(f"{address}/{path}")
        assert page.locator("img").count() == 0
        # It waits for its next try, and so is among no failures.
        assert path == "failures" or "{{7*7}}" in page.locator("main").inner_text()
