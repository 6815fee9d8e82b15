"""``flask tasks call``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flask_taskworker import Job, JobState
from tests.support.cli_shop import Shop
from tests.support.stored import counts_of


def enqueued(shop: Shop, *words: str) -> tuple[Job[Any], Any]:
    """The job that ``flask tasks call`` with these words makes, and its arguments."""
    answer = shop("call", *words)
    assert (answer.code, answer.err) == (0, "")
    job = shop.task_worker.get_job(int(answer.out))
    return job, shop.task_worker._registry.codec.decode_call(shop.state.store.args(job.id))


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["x=1", "y=-2.5"], ((), {"x": 1, "y": -2.5})),
        (["x=ana", 'y="1"'], ((), {"x": "ana", "y": "1"})),
        (['x=["a", null]', "y="], ((), {"x": ["a", None], "y": ""})),
        (["x=NaN", "y=a=b"], ((), {"x": "NaN", "y": "a=b"})),
        (["--kwargs", '{"x": {"a": 1}}', "y=3"], ((), {"x": {"a": 1}, "y": 3})),
        (["--args", '[1, "b"]'], ((1, "b"), {})),
        (["--args", "[1]", "y=3"], ((1,), {"y": 3})),
    ],
)
def test_call_reads_values_as_json_if_they_are_else_as_text(shop: Shop, words: list[str], args: Any) -> None:
    assert enqueued(shop, "shop.add", *words)[1] == args


def test_call_passes_queue_priority_and_time_on(shop: Shop) -> None:
    job, _ = enqueued(shop, "shop.crawl", "url=x", "--queue", "slow", "--priority", "-3", "--in", "2h")
    assert (job.queue, job.priority, job.state) == ("slow", -3, JobState.SCHEDULED)
    assert job.run_at is not None
    assert job.created_at is not None
    assert job.run_at - job.created_at == timedelta(hours=2)
    at, _ = enqueued(shop, "shop.crawl", "url=x", "--at", "2199-05-01T12:00:00+02:00")
    assert at.run_at == datetime(2199, 5, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["z=1"], ": missing a required argument: 'x'"),
        (["x"], "'x' is not KEY=VALUE. Positional arguments go into --args '[…]'."),
        (["=1"], "'=1' is not KEY=VALUE"),
        (["x=1", "x=2"], "The argument 'x' is given twice."),
        (["--kwargs", "[1]"], "--kwargs is '[1]'. Give an object"),
        (["--kwargs", "{"], "--kwargs is not JSON: "),
        (["--args", "{}"], "--args is '{}'. Give an array"),
        (["--args", "[1]", "--kwargs", '{"x": 2}'], "multiple values for argument 'x'"),
        (["x=1", "--in", "soon"], "'soon' is not a period. Give seconds, or for example 30s"),
        (["z=1", "--now"], ": missing a required argument: 'x'"),
        (["x=1", "--in", "99999w"], "'99999w' is out of range"),
        (["x=1", "--in", "1s", "--at", "2199-01-01T00:00:00Z"], "Give either --in or --at, not both."),
        (["x=1", "--at", "2199-01-01"], "has no offset from UTC. Add one, such as 2199-01-01T00:00:00Z."),
        (["x=1", "--at", "noon"], "'noon' is not a moment. Give one such as"),
        (["x=1", "--queue", ""], "queue = '' is not allowed"),
        (["x=1", "--priority", "3000000000"], "priority = 3000000000 is not allowed"),
        (["x=1", "--now", "--in", "5"], "--now creates no job. Leave out --in"),
        (["x=1", "--wait", "y=2"], "To wait without a limit put --wait last."),
    ],
)
def test_call_refuses_what_does_not_fit_and_stores_nothing(shop: Shop, words: list[str], message: str) -> None:
    answer = shop("call", "shop.add", *words)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert not counts_of(shop.state.store)


def test_call_of_an_unknown_task_names_those_that_exist(shop: Shop) -> None:
    answer = shop("call", "shop.nope")
    assert (answer.code, answer.out) == (3, "")
    known = "shop.add, shop.crawl, shop.nightly"
    assert answer.err == f"Error: No task is registered as 'shop.nope'. Registered: {known}.\n"


def test_call_now_runs_in_an_app_context_without_a_job(shop: Shop) -> None:
    answer = shop("call", "shop.crawl", "url=x", "--now")
    assert answer.json == {"app": shop.app.name, "at": "2026-01-02T00:00:00+00:00", "pair": ["x", 1]}
    assert shop("call", "shop.add", "x=4", "--now").out == "6\n"
    assert shop.ran == [(4, 2)]
    assert shop("status", "--json").json["counts"]["ready"] == 0


def test_call_now_shows_the_exception_of_the_task(shop: Shop) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        shop("call", "shop.add", "x=a", "--now")


def test_call_wait_prints_the_result(shop: Shop) -> None:
    shop.task_worker.start()
    answer = shop("call", "shop.crawl", "url=x", "--wait", "20")
    assert answer.code == 0
    assert answer.json["pair"] == ["x", 1]
    assert answer.err.startswith("Waiting for job 1.")
    assert shop("call", "shop.nightly", "--wait").out == "null\n"


def test_call_wait_fails_with_the_job_in_one_line(shop: Shop) -> None:
    shop.task_worker.start()
    answer = shop("call", "shop.add", "x=a", "--wait", "20")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.splitlines()[-1] == r"Error: Job 1 failed: ValueError: \x1b[31ma is not a number"


def test_call_wait_says_when_no_worker_is_there(shop: Shop) -> None:
    answer = shop("call", "shop.add", "x=1", "--wait", "0")
    assert answer.code == 1
    assert "No worker runs, so nothing will happen until you start one: flask tasks run" in answer.err
    assert "Error: Job 1 had no result within the timeout." in answer.err
