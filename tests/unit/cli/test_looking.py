"""``flask tasks list`` and ``flask tasks job``."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.cli.text import safe
from tests.support.cli_shop import Shop, write


def test_list_shows_signature_options_and_schedules(shop: Shop) -> None:
    answer = shop("list")
    lines = answer.out.splitlines()
    assert (answer.code, answer.err) == (0, "")
    assert lines[:4] == [
        "shop.add(x: int, y: int = 2) -> int",
        "    sync, queue default, no retry",
        "shop.crawl(url: str, *, depth: int = 1) -> dict[str, object]",
        "    async, queue web, priority 10, retry: 3 tries, exponential, from 1 min to 1 h, timeout 30 s",
    ]
    assert '    schedule shop.nightly: 0 3 * * * (Europe/Berlin) "At 03:00 every day", next 20' in answer.out
    assert "    schedule shop.nightly#2: every hour, next 20" in answer.out


def test_list_as_json_has_an_object_a_line(shop: Shop) -> None:
    tasks = [json.loads(line) for line in shop("list", "--json").out.splitlines()]
    assert [task["name"] for task in tasks] == ["shop.add", "shop.crawl", "shop.nightly"]
    assert (tasks[1]["kind"], tasks[1]["max_attempts"], tasks[1]["timeout_s"]) == ("async", 3, 30.0)
    following = datetime.fromisoformat(tasks[2]["schedules"][0]["next_at"])
    assert timedelta(0) < following - datetime.now(UTC) <= timedelta(hours=25)


def test_list_of_an_app_without_tasks_says_what_to_do(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    task_worker = BackgroundTaskWorker(app)
    result = app.test_cli_runner().invoke(args=["tasks", "list"])
    assert len(task_worker._registry) == 0
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Declare one with @task_worker.task" in result.stderr


def test_job_shows_state_arguments_and_result(shop: Shop) -> None:
    with shop.app.app_context():
        job = shop.crawl.using(unique="k").enqueue("x", depth=3)
    assert '  arguments   "x", depth=3\n' in shop("job", str(job.id)).out
    shop.work()
    out = shop("job", str(job.id)).out
    assert out.startswith(f"Job {job.id} shop.crawl\n  state       succeeded\n")
    assert f'  result      {{"app": "{shop.app.name}", "at": "2026-01-02T00:00:00+00:00", "pair": ["x", 3]}}\n' in out
    assert "  try         1 of 3, claimed 1 time\n" in out
    assert "  unique key  shop.crawl:k\n" in out


def test_job_shows_each_failed_try_with_its_traceback(shop: Shop) -> None:
    job = shop.crawl.enqueue("bad")
    shop.work()
    answer = shop("job", str(job.id))
    assert r"  error      ValueError: no\nsuch \x1b[31mpage" in answer.out
    assert "\nTry 1: retrying after " in answer.out
    assert "\n  Traceback (most recent call last):\n" in answer.out
    assert "\x1b" not in answer.out


def test_job_as_json_has_all_of_it(shop: Shop) -> None:
    job = shop.crawl.enqueue("bad")
    shop.work()
    answer = shop("job", str(job.id), "--json")
    assert answer.out.count("\n") == 1
    found = answer.json
    assert (found["id"], found["task"], found["state"]) == (job.id, "shop.crawl", "retrying")
    assert (found["args"], found["kwargs"], found["result"]) == (["bad"], {}, None)
    assert found["error"]["message"] == "no\nsuch \x1b[31mpage"
    assert [(one["attempt"], one["outcome"]) for one in found["tries"]] == [(1, "retrying")]
    assert datetime.fromisoformat(found["created_at"]).tzinfo is not None


@pytest.mark.parametrize("stored", ['[[{"$":"shop.Gone","v":1}],{}]', "no JSON \x1b[31m", "[" * 5000])
def test_job_whose_arguments_no_one_can_read_is_still_shown(shop: Shop, stored: str) -> None:
    job = shop.add.enqueue(1)
    write(shop, "UPDATE taskworker_job SET args = ?", stored)
    assert f"  arguments  {safe(stored[:40])}" in shop("job", str(job.id)).out
    assert shop("job", str(job.id), "--json").json["args"]


def test_unknown_job_is_reported_by_the_exit_code(shop: Shop) -> None:
    answer = shop("job", "77")
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith("Error: Job 77 never existed, or it was pruned")
