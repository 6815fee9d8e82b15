"""The overview page's figures in one object."""

from __future__ import annotations

import pytest

from flask_taskworker import BackgroundTaskWorker, Every
from flask_taskworker.ops.overview_page import WINDOWS, OverviewPage
from flask_taskworker.store.sql import Store
from flask_taskworker.testing import Jobs

pytestmark = pytest.mark.both_databases


def test_an_overview_gathers_what_ended_failed_and_comes_next(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    @idle_worker.task(name="add")
    def add() -> None: ...

    @idle_worker.task(name="boom")
    def boom() -> None:
        raise ValueError("no")

    store.driver.prepare()
    assert OverviewPage.take(store, WINDOWS["1h"]).is_new
    add.schedule(Every(hours=1), name="hourly")
    for task in (add, boom, add):
        task.enqueue()
    app = idle_worker._state().find_app()
    assert app is not None
    Jobs(app).drain(raise_errors=False)
    page = OverviewPage.take(store, WINDOWS["24h"])
    assert (page.health.healthy, page.health.failed_in_hour, page.is_new) == (True, 1, False)
    assert (page.throughput[-1].succeeded, page.throughput[-1].failed, len(page.throughput)) == (2, 1, 24)
    assert {slow.task: slow.tries for slow in page.slowest} == {"add": 2, "boom": 1}
    assert [(one.task, one.count, one.is_new) for one in page.failures] == [("boom", 1, True)]
    assert [schedule.name for schedule in page.schedules] == ["hourly"]
    assert {tile.label: tile.text for tile in page.tiles}["Failed in an hour"] == "1"
