"""What operators do, in a real browser: pause, run now, retry a cause, look at a mail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from flask_taskworker.mail import Message
from flask_taskworker.ops.browse import Browser
from flask_taskworker.store.sql import Store
from tests.system.browser.shop import Shop
from tests.system.browser.test_pages import axe, expect

pytestmark = pytest.mark.browser

READER = {"view", "payload", "mail_body", "retry", "cancel", "discard", "run", "pause"}


@pytest.fixture(params=["light"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reader(shop: Shop) -> Iterator[None]:
    shop.permissions = READER
    yield
    shop.permissions = True


def store_of(shop: Shop) -> Store:
    store: Store = shop.app.extensions["taskworker"].store
    return store


def browser_of(shop: Shop) -> Browser:
    return Browser(store_of(shop))


def test_queue_is_paused_and_resumed_by_its_button(page: Any, address: str, shop: Shop) -> None:
    page.goto(f"{address}/queues")
    page.get_by_role("button", name="Pause the queue later").click()
    expect(page.locator(".note")).to_contain_text("Queue later is paused")
    assert [queue.paused_by for queue in browser_of(shop).queues() if queue.paused] == ["ana"]
    page.get_by_role("button", name="Resume the queue later").click()
    expect(page.locator(".note")).to_contain_text("Queue later goes on")
    assert not any(queue.paused for queue in browser_of(shop).queues())


def test_limit_is_changed_and_reset_by_its_buttons(page: Any, address: str, shop: Shop) -> None:
    page.goto(f"{address}/limits")
    page.get_by_label("How many jobs of carrier may run at once").fill("3")
    page.get_by_label("How often jobs of carrier may start").fill("50/m:5")
    page.get_by_role("button", name="Change the limit carrier").click()
    expect(page.locator(".note")).to_contain_text("Limit carrier is running 3, rate 50/m:5.")
    page.get_by_role("button", name="Reset the limit carrier").click()
    expect(page.locator(".note")).to_contain_text("Limit carrier is running 5, rate 100/m again.")


def test_schedule_runs_now_and_is_skipped_by_its_buttons(page: Any, address: str, shop: Shop) -> None:
    name = next(s.name for s in store_of(shop).schedules() if "nightly" in s.name)
    page.goto(f"{address}/schedules")
    page.get_by_role("button", name=f"Run {name} now").click()
    expect(page.locator(".note")).to_contain_text("runs now, as job")
    before = next(s.next_at for s in store_of(shop).schedules() if s.name == name)
    page.get_by_role("button", name=f"Skip the next time of {name}").click()
    expect(page.locator(".note")).to_contain_text("leaves its next time out")
    assert (next(s.next_at for s in store_of(shop).schedules() if s.name == name) or 0) > (before or 0)


@pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)
def test_page_of_a_schedule_is_quiet_and_accessible(page: Any, address: str, shop: Shop) -> None:
    name = next(s.name for s in store_of(shop).schedules() if "nightly" in s.name)
    assert page.goto(f"{address}/schedule?name={quote(name)}").status == 200
    expect(page.locator("#fires ~ .scroll tbody tr").first).to_be_visible()
    assert axe(page) == []


def test_failures_of_one_cause_are_retried_by_one_button(page: Any, address: str, shop: Shop) -> None:
    page.goto(f"{address}/failures")
    page.get_by_role("button", name="Retry 14 failed with KeyError").click()
    expect(page.locator("tbody tr")).to_have_count(10)
    with shop.app.app_context():
        page.locator("main button", has_text="Retry").click()
    expect(page.locator(".note")).to_contain_text("14")
    shop.wait(lambda: browser_of(shop).state_counts().failed == 14)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)
def test_html_of_a_mail_is_shown_and_runs_nothing(page: Any, address: str, shop: Shop) -> None:
    html = "<h1>Hello</h1><p style='color:green'>you</p><form action='/tasks/queues/pause' method=post></form>"
    with shop.app.app_context():
        job = shop.mail.send_later(Message("Hello", ["zoe@example.org"], "Hello", html=html))
        job.result(timeout=30)
    assert page.goto(f"{address}/mail/message?id={job.uid}").status == 200
    frame = page.frame_locator("iframe")
    expect(frame.locator("h1")).to_have_text("Hello")
    assert frame.locator("p").evaluate("e => getComputedStyle(e).color") == "rgb(0, 128, 0)"
    assert axe(page) == []


@pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)
def test_checks_are_quiet_and_accessible(page: Any, address: str) -> None:
    page.goto(f"{address}/system")
    page.get_by_role("link", name="Check the installation").click()
    expect(page.locator("h1")).to_have_text("Checks")
    assert axe(page) == []
