"""``flask tasks jobs`` and ``flask tasks failures``: lists of jobs."""

from __future__ import annotations

import pytest

from flask_taskworker.ops import browse
from tests.support.cli_shop import Answer, Shop, fail, rows_of, write

HOUR = 3_600_000


def test_jobs_are_listed_the_newest_first(shop: Shop) -> None:
    one, two = shop.add.enqueue(1), shop.crawl.using(delay=3600).enqueue("x")
    answer = shop("jobs")
    assert (answer.code, answer.err) == (0, "")
    header, first, second = answer.out.splitlines()
    assert header.split() == ["job", "task", "state", "queue", "try", "age", "took", "error"]
    assert first.split()[:6] == [str(two.id), "shop.crawl", "scheduled", "in", "59", "min"]
    assert second.split()[:5] == [str(one.id), "shop.add", "ready", "default", "1/1"]


def test_jobs_of_an_empty_store_teach(shop: Shop) -> None:
    assert shop("jobs") == Answer(0, "", "No jobs yet. Enqueue one: flask tasks call NAME\n")


def test_jobs_that_fit_the_filter_are_listed_as_json(shop: Shop) -> None:
    shop.add.enqueue(1)
    job = shop.crawl.enqueue("https://example.org/a b")
    for words in (["queue:web"], ["task:shop.c*", "state:ready"], ['args.url:"https://example.org/a b"']):
        (row,) = rows_of(shop("jobs", "--json", *words))
        assert (row["id"], row["task"], row["state"], row["discarded"]) == (job.id, "shop.crawl", "ready", False)


def test_jobs_that_do_not_fit_end_with_3(shop: Shop) -> None:
    shop.add.enqueue(1)
    assert shop("jobs", "state:failed") == Answer(3, "", "No job matches the filter.\n")
    assert shop("jobs", "state:failed", "--json").code == 3


def test_older_jobs_are_on_the_next_page(shop: Shop) -> None:
    ids = [job.id for job in shop.add.enqueue_many([(n,) for n in range(5)])]
    answer = shop("jobs", "--limit", "2", "--json")
    assert [row["id"] for row in rows_of(answer)] == ids[:2:-1]
    assert answer.err == f"Older jobs: --before {ids[3]}\n"
    answer = shop("jobs", "--before", str(ids[3]), "--json")
    assert [row["id"] for row in rows_of(answer)] == ids[2::-1]
    assert answer.err == ""


def test_first_job_that_fits_is_found_beyond_the_first_page(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "WINDOW", 3)
    first = shop.crawl.enqueue("x")
    shop.add.enqueue_many([(n,) for n in range(10)])
    (row,) = rows_of(shop("jobs", "task:shop.crawl", "--json"))
    assert row["id"] == first.id
    answer = shop("jobs", "task:nope")
    assert answer == Answer(3, "", "No job matches the filter.\n")


@pytest.mark.parametrize(
    "words", [["nope:1"], ["state:odd"], ["after:soon"], ['"open'], ["--limit", "0"], ["x" * 2000]]
)
def test_wrong_filter_is_wrong_usage(shop: Shop, words: list[str]) -> None:
    answer = shop("jobs", *words)
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err


def test_progress_and_error_of_a_job_are_in_the_list(shop: Shop) -> None:
    (job,) = fail(shop, 1)
    assert r"ValueError: \x1b[31mn1 is not a number" in shop("jobs").out
    running = "state = 'running', worker_id = 'w', finished_at = NULL, expires_at = NULL"
    write(shop, f"UPDATE taskworker_job SET {running}, progress = '[1, 4, \"x\"]' WHERE id = ?", job.id)
    assert "running 25 %" in shop("jobs", "state:running").out


def test_failures_are_grouped_by_their_cause(shop: Shop) -> None:
    jobs = fail(shop, 1, 2, 3)
    shop.crawl.enqueue("bad")
    (row,) = rows_of(shop("failures", "--json"))
    assert (row["count"], row["task"], row["newest"]) == (3, "shop.add", jobs[-1].id)
    assert row["error"] == {"kind": "exception", "type": "ValueError", "message": "\x1b[31mn3 is not a number"}
    answer = shop("failures")
    assert answer.code == 0
    assert r"ValueError: \x1b[31mn3 is not a number" in answer.out
    assert "\x1b" not in answer.out


def test_failures_are_those_since_then(shop: Shop) -> None:
    fail(shop, 1)
    shop.jump(2 * HOUR)
    assert shop("failures", "--since", "3h").out != ""
    assert shop("failures", "--since", "1h") == Answer(0, "", "No job failed in the last 1 h.\n")
