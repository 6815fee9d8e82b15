"""``flask tasks batches`` and ``flask tasks batch``, and what other commands say of batches and graphs."""

from __future__ import annotations

from flask_taskworker import Batch, JobState
from tests.support.cli_shop import Answer, Shop, rows_of


def a_batch(shop: Shop, *numbers: int | str) -> Batch:
    with shop.task_worker.batch("import 7") as batch:
        shop.add.using(batch=batch).enqueue_many([(number,) for number in numbers])
    return batch


def test_batches_are_listed_the_newest_first(shop: Shop) -> None:
    with shop.app.app_context():
        first, second = a_batch(shop, 1, 2), a_batch(shop)
    header, *lines = shop("batches").out.splitlines()
    assert header.split()[:4] == ["batch", "name", "state", "jobs"]
    assert lines[0].split()[:5] == [str(second.id), "import", "7", "succeeded", "0"]
    assert lines[1].split()[:5] == [str(first.id), "import", "7", "running", "2"]
    assert [row["left"] for row in rows_of(shop("batches", "--json"))] == [0, 2]
    assert shop("batches", "--limit", "1").err == f"Older batches: --before {second.id}\n"


def test_store_without_batches_teaches(shop: Shop) -> None:
    assert "No batches yet" in shop("batches").err
    assert shop("batch", "7").code == 1


def test_batch_is_shown_followed_and_retried(shop: Shop) -> None:
    with shop.app.app_context():
        batch = a_batch(shop, 1, "no number")
        assert "0 % of 2: 0 succeeded, 0 failed, 0 cancelled, 2 left" in shop("batch", str(batch.id)).out
        shop.work()
        assert shop("batch", str(batch.id), "--follow") == Answer(
            1, "100 % of 2: 1 succeeded, 1 failed, 0 cancelled, 0 left\n", ""
        )
        assert shop("batch", str(batch.id), "--retry").out == "1\n"
        assert batch.state == "running"
        assert shop("batch", str(batch.id), "--cancel").out == f"{batch.id}\n"
        assert rows_of(shop("batch", str(batch.id), "--json"))[0]["state"] == "cancelled"
        assert shop("batch", str(batch.id), "--cancel").code == 3


def test_open_batch_is_sealed(shop: Shop) -> None:
    with shop.app.app_context():
        with shop.task_worker.batch("open") as batch:
            assert shop("batch", str(batch.id), "--seal").code == 0
        assert batch.state == "succeeded"


def test_filters_find_the_jobs_of_a_batch_and_those_that_wait(shop: Shop) -> None:
    with shop.app.app_context():
        batch = a_batch(shop, 1)
        (first,) = batch.jobs()
        child = shop.add.using(after=first).enqueue(2)
    for words, job in ((f"batch:{batch.id}", first), (f"follows:{first.id}", child), ("state:waiting", child)):
        assert [row["id"] for row in rows_of(shop("jobs", "--json", words))] == [job.id]
    assert rows_of(shop("jobs", "--json", "state:waiting"))[0]["state"] == "waiting"
    assert f"job {first.id} to succeed" in shop("why", str(child.id)).out


def test_retry_brings_the_tail_back_on_request(shop: Shop) -> None:
    with shop.app.app_context():
        first = shop.add.enqueue("no number")
        child = shop.add.using(after=first).enqueue(2)
        shop.work()
        assert child.refresh().state is JobState.CANCELLED
        assert shop("retry", "--following", str(first.id)).code == 0
        assert child.refresh().waits
    assert shop("retry", "--following", "--filter", "state:failed").code == 2


def test_running_batch_says_its_pace_and_when_it_will_be_done(shop: Shop) -> None:
    with shop.app.app_context():
        with shop.task_worker.batch("import 7") as batch:
            shop.add.using(batch=batch).enqueue_many([(1,), (2,), (3,)])
            shop.add.using(batch=batch, delay=3600).enqueue(4)
        assert "minute" not in shop("batch", str(batch.id)).out
        shop.work()
        shop.jump(3 * 60_000)
        shown = shop("batch", str(batch.id), "--json").json
        assert shown["per_minute"] == 1.0
        assert "in about 1 min" in shop("batch", str(batch.id)).out
        batch.cancel()
        assert shop("batch", str(batch.id), "--json").json["per_minute"] is None
