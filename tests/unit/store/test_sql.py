"""The Store: jobs are stored, found again, cancelled and retried, on each database."""

from __future__ import annotations

import pytest

from flask_taskworker.core.rows import NewJob
from flask_taskworker.errors import JobNotFound, NotAccepted
from flask_taskworker.store.sql import MAX_ID, Store

pytestmark = [pytest.mark.both_databases, pytest.mark.usefixtures("idle_worker")]


def new(uid: str, *, unique_key: str | None = None, run_at: int = 0, task: str = "app.add") -> NewJob:
    return NewJob(
        uid=uid,
        task=task,
        queue="default",
        kind="sync",
        priority=0,
        run_at=run_at,
        args="[[1],{}]",
        max_attempts=1,
        timeout=None,
        created_at=1_000,
        unique_key=unique_key,
    )


def test_jobs_are_stored_in_order_and_found_by_their_numbers(store: Store) -> None:
    one, two, later = store.add([new("a"), new("b"), new("c", run_at=9_000)])
    assert one.id < two.id < later.id
    assert (store.record(one.id).uid, store.record(later.id).state) == ("a", "scheduled")
    assert store.args(two.id) == "[[1],{}]"
    assert store.ending(one.id).state == "ready"


def test_a_repeated_uid_is_the_job_that_has_it(store: Store) -> None:
    (one,) = store.add([new("a")])
    (again,) = store.add([new("a")])
    assert again.id == one.id
    with pytest.raises(NotAccepted):
        store.add([new("a", task="app.other")])


def test_a_taken_unique_key_gives_the_job_that_has_it(store: Store) -> None:
    (one,) = store.add([new("a", unique_key="app.add:k")])
    assert [record.id for record in store.add([new("b", unique_key="app.add:k")])] == [one.id]
    assert store.cancel(one.id) == "cancelled"
    (two,) = store.add([new("c", unique_key="app.add:k")])
    assert two.id != one.id
    with pytest.raises(NotAccepted, match=f"job {two.id} has the same unique key"):
        store.retry(one.id)


def test_a_finished_job_cannot_be_cancelled_and_a_waiting_one_not_retried(store: Store) -> None:
    (one,) = store.add([new("a")])
    assert store.retry(one.id) is False
    assert store.cancel(one.id) == "cancelled"
    assert store.cancel(one.id) is None
    assert store.retry(one.id) is True
    assert store.record(one.id).state == "ready"


def test_a_job_that_does_not_exist_is_named(store: Store) -> None:
    for job_id in [0, -1, 77, MAX_ID, 10**30]:
        for look in (store.record, store.args, store.ending, store.cancel, store.retry):
            with pytest.raises(JobNotFound, match=str(job_id)):
                look(job_id)


def test_a_database_keeps_its_name(store: Store) -> None:
    assert store.store_id() == store.store_id()
