"""How a worker shows that it lives, and what others do where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.core.rows import JobRecord
from flask_taskworker.store.sql import Store
from flask_taskworker.worker import liveness
from flask_taskworker.worker.liveness import Heartbeat, News
from flask_taskworker.worker.timing import Timing

pytestmark = pytest.mark.both_databases
Rows = Callable[..., list[tuple[Any, ...]]]


class Watch:
    """Heartbeats whose threads are not started, and what they had to say."""

    def __init__(self, store: Store) -> None:
        store.driver.prepare()
        self._store = store
        self._presences: list[Any] = []
        self.heard: list[str] = []
        self.running: list[int] = []
        self.rescued: list[JobRecord] = []

    def heartbeat(self, worker_id: str) -> Heartbeat:
        presence = self._store.driver.presence(worker_id)
        self._presences.append(presence)
        news = News(
            lost=lambda: self.heard.append("lost"),
            running=lambda: self.running,
            cancel=lambda jobs: self.heard.append(f"cancel {jobs}"),
            rescued=self.rescued.extend,
            wished=lambda wish: None,
            sized=lambda kind, size: None,
            reached=lambda: self.heard.append("reached"),
        )
        made = Heartbeat(self._store, presence, worker_id, news=news, info=dict, timing=Timing(beat=3600))
        made.start()
        return made

    def close(self) -> None:
        for presence in self._presences:
            presence.close()


@pytest.fixture
def watch(idle_worker: BackgroundTaskWorker, store: Store) -> Iterator[Watch]:
    made = Watch(store)
    yield made
    made.close()


def states(rows: Rows) -> dict[str, str]:
    return dict(rows("SELECT id, state FROM taskworker_worker"))  # type: ignore[arg-type]


def test_beat_counts_and_tells_a_worker_that_was_declared_dead(watch: Watch, rows: Rows) -> None:
    heartbeat = watch.heartbeat("0a")
    assert heartbeat.beat()
    assert rows("SELECT beat, state FROM taskworker_worker") == [(1, "alive")]
    rows("UPDATE taskworker_worker SET state = 'dead'")
    assert not heartbeat.beat()
    heartbeat.stop(holding=False)


def test_worker_that_stops_in_order_leaves_no_row(watch: Watch, rows: Rows) -> None:
    watch.heartbeat("0a").stop(holding=False)
    assert states(rows) == {}


def test_worker_that_still_holds_jobs_keeps_its_row(watch: Watch, rows: Rows) -> None:
    watch.heartbeat("0a").stop(holding=True)
    assert states(rows) == {"0a": "alive"}


@pytest.mark.parametrize(("declare", "state"), [(True, "dead"), (False, "alive")])
def test_worker_that_gives_up_lets_others_have_its_jobs_at_once_or_after_the_lease(
    watch: Watch, rows: Rows, declare: bool, state: str
) -> None:
    heartbeat = watch.heartbeat("0a")
    heartbeat.give_up(declare=declare)
    assert states(rows) == {"0a": state}
    heartbeat.stop(holding=True)


def test_silent_worker_is_dead_after_a_lease_of_the_observers_own_beats(watch: Watch, rows: Rows) -> None:
    columns = "(id, host, pid, started_at, beat, beat_at, state, info)"
    rows(f"INSERT INTO taskworker_worker {columns} VALUES ('0f0e', 'h', 1, 1, 7, 1, 'alive', '{{}}')")
    heartbeat = watch.heartbeat("0a")
    for _ in range(Timing().lease_beats - 1):
        heartbeat.observe()
    assert states(rows)["0f0e"] == "alive"
    rows("UPDATE taskworker_worker SET beat = 8 WHERE id = '0f0e'")
    for _ in range(Timing().lease_beats):
        heartbeat.observe()
    assert states(rows)["0f0e"] == "alive", "it has beaten meanwhile"
    heartbeat.observe()
    assert states(rows)["0f0e"] == "dead"
    heartbeat.stop(holding=False)


def test_job_that_its_worker_lost_for_good_is_an_error_in_the_log(
    app: Flask, idle_worker: BackgroundTaskWorker, watch: Watch, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    once = idle_worker.task(name="once", at_most_once=True)(lambda: None).enqueue()
    again = idle_worker.task(name="again")(lambda: None).enqueue()
    rows("UPDATE taskworker_job SET state = 'running', claim = 1, worker_id = '0f0e'")
    columns = "(id, host, pid, started_at, beat_at, state, info)"
    rows(f"INSERT INTO taskworker_worker {columns} VALUES ('0f0e', 'h', 1, 1, 1, 'dead', '{{}}')")
    heartbeat = watch.heartbeat("0a")
    assert {record.id: record.state for record in watch.rescued} == {once.id: "failed", again.id: "ready"}
    levels = {record.getMessage(): record.levelno for record in caplog.records if "its worker died" in record.message}
    assert levels == {
        f"job {once.id} (once) is failed: its worker died; crashes: 1": logging.ERROR,
        f"job {again.id} (again) is ready: its worker died; crashes: 1": logging.WARNING,
    }
    heartbeat.stop(holding=False)


def test_clock_that_is_set_back_is_said_and_makes_the_worker_look(
    watch: Watch, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heartbeat = watch.heartbeat("0a")
    now = store.clock()
    monkeypatch.setattr(store, "clock", lambda: now - 3_600_000)
    assert heartbeat.beat()
    assert watch.heard == ["reached"]
    assert "the clock went back by 3600 s" in caplog.text
    assert heartbeat.beat()
    assert watch.heard == ["reached"], "once"
    heartbeat.stop(holding=False)


def test_worker_is_not_current_after_a_gap_of_a_lease(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was frozen: other workers may have its jobs by now."""
    heartbeat = watch.heartbeat("0a")
    assert heartbeat.is_current
    later = liveness._now() + 30 * 3600 + 1
    monkeypatch.setattr(liveness, "_now", lambda: later)
    assert not heartbeat.is_current
    heartbeat.stop(holding=False)
