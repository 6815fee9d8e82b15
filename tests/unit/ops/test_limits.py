"""Limits as pages and commands show them, and as people change them. On both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Limit, Rate, SnoozeJob
from flask_taskworker.core.limits import Numbers
from flask_taskworker.errors import DeclarationError
from flask_taskworker.ops.browse import Browser
from flask_taskworker.ops.limits import LimitView, limit_view, limit_views
from flask_taskworker.ops.operations import Operations
from flask_taskworker.store import sql
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]


class Yard:
    """An app whose jobs wait until they may end."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.task_worker = BackgroundTaskWorker(app)
        self.go = threading.Event()
        self.state = app.extensions["taskworker"]

        @self.task_worker.task(name="sync_stock", limit=Limit("shop", running=1, key="shop_id"))
        def sync_stock(shop_id: int | str) -> None:
            self.go.wait(20)

        @self.task_worker.task(name="label", limit=Limit("carrier", running=5, rate=Rate(1, per=600)))
        def label() -> None: ...

        @self.task_worker.task(name="call", limit=Limit("api", running=9, key="host"))
        def call(host: str) -> None:
            raise SnoozeJob(300, limit=True)

        self.sync_stock, self.label, self.call = sync_stock, label, call

    def view(self, name: str) -> LimitView:
        return limit_view(Browser(self.state.store), self.state.registry, self.state.config, name)

    def operations(self) -> Operations:
        return Operations(self.app, self.state.client, self.state.registry, who="ana")

    def await_line(self, name: str, waiting: int) -> LimitView:
        wait_for(lambda: self.view(name).waiting == waiting)
        return self.view(name)


@pytest.fixture
def yard(make_app: Callable[..., Flask]) -> Iterator[Yard]:
    yard = Yard(make_app(TASKER_QUEUE_LIMITS={"mail": Limit(running=2)}))
    yield yard
    yard.go.set()
    yard.task_worker.stop()


@pytest.fixture
def app(yard: Yard) -> Flask:
    return yard.app


def test_declared_limit_is_shown_before_a_worker_has_stored_it(yard: Yard) -> None:
    assert [view.name for view in limit_views(Browser(yard.state.store), yard.state.registry, yard.state.config)] == [
        *("api", "carrier", "queue:mail", "shop")
    ]
    shop = yard.view("shop")
    assert (shop.is_stored, shop.running, shop.rate, shop.key, shop.tasks) == (
        False,
        1,
        None,
        "shop_id",
        ("sync_stock",),
    )
    assert (shop.state, shop.waiting, shop.source) == ("ok", 0, "code")
    assert yard.view("queue:mail").queue == "mail"
    with pytest.raises(DeclarationError, match="No limit is named 'typo'"):
        yard.view("typo")


def test_longest_lines_come_first_with_the_job_that_has_the_room(yard: Yard) -> None:
    with yard.app.app_context():
        jobs = yard.sync_stock.enqueue_many([(7,), (7,), (7,), (8,), (8,), ("a:b",)])
    yard.task_worker.start()
    shop = yard.await_line("shop", 3)
    assert (shop.state, shop.admitted, shop.is_stored) == ("full", 3, True)
    assert [(lane.key, lane.waiting, lane.running, lane.job) for lane in shop.lanes] == [
        ("7", 2, 1, jobs[0].id),
        ("8", 1, 1, jobs[3].id),
    ]
    assert [f"{reason.text} {reason.ends}" for reason in jobs[2].why()] == [
        f"It is 2nd in line of the limit 'shop', key '7' (1 running: job {jobs[0].id}). That job ends."
    ]
    yard.go.set()
    assert yard.await_line("shop", 0).lanes == ()


def test_a_limit_knows_no_job_of_another_whose_name_begins_alike(yard: Yard, rows: Rows) -> None:
    yard.state.store.driver.prepare()
    for number, lane in enumerate(("shop", "shop:1", "shopper", "shop 2", "shop;", "sho", "SHOP:1", "shop:ä"), 1):
        rows(
            "INSERT INTO taskworker_permit (job_id, lane, queue, priority, phase) VALUES (?, ?, 'default', 0, 1) "
            "RETURNING lane",
            *(number, lane),
        )
    rows(
        "INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) VALUES ('shop', 1, 'code', 1, 1) "
        "RETURNING name"
    )
    shop = yard.view("shop")
    assert shop.waiting == 3
    assert sorted(lane.key for lane in shop.lanes) == ["", "1", "ä"]


def test_rate_says_when_the_next_may_start(yard: Yard) -> None:
    with yard.app.app_context():
        first, second = yard.label.enqueue_many([(), ()])
    yard.task_worker.start()
    first.result(timeout=20)
    carrier = yard.await_line("carrier", 1)
    assert carrier.opens_at is not None
    assert 590_000 < carrier.opens_at - yard.state.store.clock() <= 600_000
    assert (carrier.state, carrier.rate) == ("full", "1/10m")
    assert [(lane.key, lane.opens_at) for lane in carrier.lanes] == [("", carrier.opens_at)]
    (reason,) = second.why()
    assert reason.kind == "rate"
    assert (
        "1st in line of the limit 'carrier', which has a rate of 1/10m. The next may start in "
        in f"{reason.text} {reason.ends}"
    )


def test_openings_are_right_by_a_clock_that_is_not_the_servers(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    with yard.app.app_context():
        first, second = yard.label.enqueue_many([(), ()])
    yard.task_worker.start()
    first.result(timeout=20)
    yard.await_line("carrier", 1)
    yard.task_worker.stop()
    right = sql.epoch_ms
    monkeypatch.setattr(sql, "epoch_ms", lambda: right() + 3_600_000)
    monkeypatch.setattr(yard.state.store, "clock", sql.epoch_ms)
    has_server = yard.state.store.driver.dialect.name == "postgresql"
    opens_at = yard.view("carrier").opens_at
    left = 0 if opens_at is None else opens_at - yard.state.store.clock()
    assert (500_000 < left <= 600_000) == has_server
    assert ("rate" in [reason.kind for reason in second.why()]) == has_server, second.why()


def test_closed_lanes_are_counted_and_so_are_the_closings(yard: Yard) -> None:
    with yard.app.app_context():
        yard.call.enqueue_many([("a",), ("b",)])
    yard.task_worker.start()
    wait_for(lambda: yard.view("api").closings == 2)
    api = yard.view("api")
    assert (api.state, api.closed) == ("closed", 2)
    with yard.app.app_context():
        job = yard.call.enqueue("a")
    wait_for(lambda: yard.view("api").waiting == 1)
    assert [reason.kind for reason in job.why()] == ["closed"]


def test_jobs_of_a_paused_queue_stand_aside(yard: Yard) -> None:
    yard.operations().pause_queue("default")
    with yard.app.app_context():
        yard.sync_stock.enqueue_many([(7,), (7,)])
    yard.task_worker.start()
    wait_for(lambda: yard.view("shop").aside == 2)
    assert yard.view("shop").waiting == 0


def test_limit_of_a_queue_counts_its_running_and_its_ready_jobs(yard: Yard) -> None:
    yard.operations().set_limit("queue:mail", Numbers(running=1))
    with yard.app.app_context():
        mails = yard.task_worker.task(name="send", queue="mail")(lambda: yard.go.wait(20)).enqueue_many([()] * 3)
    yard.task_worker.start()
    mail = yard.await_line("queue:mail", 2)
    assert (mail.admitted, mail.state, mail.tasks) == (1, "full", ("send",))
    assert [reason.kind for reason in mails[2].why()] == ["queue limit"]
    yard.go.set()
    for job in mails:
        job.result(timeout=20)


def test_change_of_a_limit_lets_more_run_and_is_noted(yard: Yard) -> None:
    with yard.app.app_context():
        yard.sync_stock.enqueue_many([(7,)] * 3)
    yard.task_worker.start()
    yard.await_line("shop", 2)
    operations = yard.operations()
    assert operations.set_limit("shop", Numbers(running=2, amount=100, per_us=60_000_000, burst=5))
    shop = yard.await_line("shop", 1)
    assert (shop.running, shop.rate, shop.source, shop.set_by) == (2, "100/m:5", "runtime", "ana")
    assert shop.declared == "running 1"
    assert not operations.set_limit("shop", shop.numbers)
    assert operations.reset_limit("shop")
    shop = yard.view("shop")
    assert (shop.running, shop.rate, shop.source, shop.set_by) == (1, None, "code", None)
    assert not operations.reset_limit("shop")
    notes = [(note.who, note.action, note.target) for note in Browser(yard.state.store).audit()]
    assert notes == [
        ("ana", "reset", "limit shop: running 1, was running 2, rate 100/m:5"),
        ("ana", "limit", "limit shop: running 2, rate 100/m:5, was running 1"),
    ]


def test_limit_that_the_code_no_longer_declares_is_said_to_be_so_and_can_be_removed(yard: Yard, rows: Rows) -> None:
    yard.state.store.driver.prepare()
    rows(
        "INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) VALUES ('old', 1, 'code', 1, 1) "
        "RETURNING name"
    )
    assert (yard.view("old").is_declared, yard.view("old").declared) == (False, None)
    assert yard.operations().reset_limit("old")
    with pytest.raises(DeclarationError, match="No limit is named 'old'"):
        yard.operations().reset_limit("old")


def test_change_to_nothing_and_of_an_unknown_limit_is_refused(yard: Yard) -> None:
    with pytest.raises(DeclarationError, match="would limit nothing"):
        yard.operations().set_limit("shop", Numbers())
    with pytest.raises(DeclarationError, match="No limit is named 'typo'"):
        yard.operations().set_limit("typo", Numbers(running=1))
