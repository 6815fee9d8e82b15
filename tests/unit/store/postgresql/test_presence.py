"""What the processes of one PostgreSQL database tell each other, and what they do not believe."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy.engine import make_url

from flask_taskworker.store.driver import Ready
from flask_taskworker.store.postgresql.driver import Notifier, PostgresqlDriver
from flask_taskworker.store.postgresql.presence import CHANNEL, LONGEST_PAYLOAD, payload_of, ready_in
from tests.support.postgres import connect

READY = {("default", "sync"), ("m'ail \\ \u2028 ü", "async")}


def test_what_is_ready_comes_back_from_a_payload() -> None:
    assert ready_in(payload_of(READY)) == READY
    assert payload_of(READY).isascii()


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "x",
        "1",
        "[1]",
        "{}",
        "[[]]",
        '[["q"]]',
        '[["q","other"]]',
        '[[1,"sync"]]',
        '[[["q"],"sync"]]',
        "[" * 9000,
        '[["\\ud800","sync"]]',
    ],
)
def test_payload_that_is_not_ours_means_look(payload: str) -> None:
    assert not ready_in(payload)


def test_too_much_to_say_means_look() -> None:
    assert payload_of({(f"queue {n}", "sync") for n in range(LONGEST_PAYLOAD // 10)}) == ""


def bursts_of(*news: Ready) -> list[Ready]:
    """What becomes of a burst of news that comes while the first one is being sent."""
    said: list[Ready] = []
    busy, go_on = threading.Event(), threading.Event()

    def notify(ready: Ready) -> None:
        said.append(ready)
        busy.set()
        go_on.wait(20)

    notifier = Notifier(notify)
    notifier.news({("first", "sync")})
    assert busy.wait(20)
    for ready in news:
        notifier.news(ready)
    go_on.set()
    notifier.close()
    return said[1:]


def test_burst_becomes_one_notification_with_all_that_is_ready() -> None:
    assert bursts_of({("a", "sync")}, {("b", "async")}, {("a", "sync")}) == [{("a", "sync"), ("b", "async")}]


def test_news_that_say_nothing_make_everybody_look() -> None:
    assert bursts_of({("a", "sync")}, (), {("b", "async")}) == [()]


def test_without_a_thread_the_caller_notifies(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Ready] = []
    notifier = Notifier(said.append)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        notifier.news({("a", "sync")})
    assert said == [{("a", "sync")}]
    notifier.news({("b", "sync")})
    notifier.close()
    assert said[1:] == [{("b", "sync")}]


@pytest.mark.parametrize("listen", [True, False], ids=["direct", "behind a pooler"])
def test_notification_names_what_is_ready(postgres_url: str, listen: bool) -> None:
    driver = PostgresqlDriver(make_url(postgres_url), listen=listen)
    with connect(postgres_url) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        driver.wake_others(READY)
        driver.close()
        (heard,) = listener.notifies(timeout=20, stop_after=1)
    assert ready_in(heard.payload) == READY
