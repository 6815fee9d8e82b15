"""The built-in task for bulk actions: what it acts on, in whose name, and in which queue it waits."""

from __future__ import annotations

import pytest

from flask_taskworker.core.filters import JobFilter
from flask_taskworker.errors import ArgumentsError
from flask_taskworker.ops.browse import Browser
from flask_taskworker.ops.bulk import enqueue_bulk
from flask_taskworker.ops.operations import BULK
from tests.support.cli_shop import Shop, shop

__all__ = ["shop"]


def bulk(shop: Shop, action: str, text: str, before: int | None = None) -> int:
    state = shop.state
    end = Browser(state.store).end() if before is None else before
    with shop.app.app_context():
        return enqueue_bulk(state.registry, state.client, action, JobFilter.parse(text, 0), "ana", end).id


def test_it_acts_on_what_fits_and_was_there_when_it_was_asked_for(shop: Shop) -> None:
    old = shop.add.enqueue_many([(1,)] * 3)
    other = shop.crawl.enqueue("x")
    before = Browser(shop.state.store).end()
    new = shop.add.enqueue(1)
    shop("pause", "default", "web")
    job_id = bulk(shop, "cancel", "task:shop.add", before)
    shop.task_worker.start()
    with shop.app.app_context():
        assert shop.state.client.job(job_id).result(timeout=30) == 3
    assert {job.refresh().state for job in old} == {"cancelled"}
    assert (other.refresh().state, new.refresh().state) == ("ready", "ready")
    (note,) = [row for row in Browser(shop.state.store).audit() if row.action == "cancel"]
    assert (note.who, note.target, note.number) == ("ana", "task:shop.add", 3)


def test_it_waits_in_a_queue_that_a_living_worker_serves(shop: Shop) -> None:
    def queue_of(job_id: int) -> str:
        return shop.state.store.record(job_id).queue

    assert queue_of(bulk(shop, "cancel", "state:ready")) == "bulk"
    shop.register_worker(["mail", "web"])
    assert queue_of(bulk(shop, "cancel", "state:ready")) == "mail"
    shop("pause", "mail")
    job_id = bulk(shop, "cancel", "state:ready")
    assert (queue_of(job_id), shop.state.store.record(job_id).task) == ("web", BULK)


def test_a_filter_travels_as_text_that_means_the_same_tomorrow() -> None:
    chosen = JobFilter.parse('task:mail.* args.name:"Ana B" after:2026-01-31T12:00 discarded:yes', 0)
    assert JobFilter.parse(chosen.exact(), 9_999) == chosen
    with pytest.raises(ArgumentsError, match="is read differently"):
        JobFilter(queue='a "b').exact()
