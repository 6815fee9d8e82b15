"""What ``flask tasks run`` does, and what it leaves to others; in this process where that is possible."""

from __future__ import annotations

import json
import re
import signal

import pytest

from flask_taskworker import Every, JobState
from flask_taskworker.client.health import info_of
from tests.support.cli_shop import Shop
from tests.system.cli.test_run import Shop as ProcessShop
from tests.system.cli.test_run import ended, until


def test_excluded_queues_are_left_to_others(shop: Shop) -> None:
    left, done = shop.crawl.enqueue("x"), shop.add.enqueue(1)
    assert shop("run", "--drain", "--exclude", "web").code == 0
    assert (left.refresh().state, done.refresh().state) == (JobState.READY, JobState.SUCCEEDED)
    assert shop("run", "--drain", env={"TASKER_CLI_RUN_EXCLUDE": "default other"}).code == 0
    assert left.refresh().state is JobState.SUCCEEDED


def test_suspect_job_of_an_excluded_queue_is_left_to_others(shop: Shop) -> None:
    job = shop.crawl.enqueue("x")
    shop.state.store.driver.write("UPDATE taskworker_job SET solo = 1", {})
    assert shop("run", "--drain", "-x", "web").code == 0
    assert job.refresh().state is JobState.READY
    assert shop("run", "--drain", "-x", "other").code == 0
    assert job.refresh().state is JobState.SUCCEEDED


def test_worker_without_a_scheduler_fires_nothing_and_stores_nothing(shop: Shop) -> None:
    shop.add.schedule(Every(seconds=1), name="often", args=(1,))
    shop.jump(5000)
    job = shop.add.enqueue(1)
    assert shop("run", "--drain", "--no-scheduler").code == 0
    assert job.refresh().state is JobState.SUCCEEDED
    (often,) = shop.state.store.schedules()
    assert (often.name, often.last_at) == ("often", None)
    assert shop("run", "--drain").code == 0
    assert shop.state.store.schedules()[0].last_at is not None


def test_queue_that_every_worker_excludes_is_unhealthy(shop: Shop) -> None:
    shop.crawl.enqueue("x")
    shop.register_worker()
    assert shop("status").code == 0
    (worker,) = shop.state.store.workers()
    info = info_of(worker) | {"exclude": ["web"]}
    shop.state.store.driver.write("UPDATE taskworker_worker SET info = :info", {"info": json.dumps(info)})
    assert shop("status").code == 4
    assert "Queue 'web' has ready jobs" in shop("status").out


def test_check_shows_what_is_left_to_others(shop: Shop) -> None:
    answer = shop("run", "--check", "-x", "web", "--no-scheduler", "--name", "{host}-{number}-a")
    assert answer.code == 0
    assert re.search(r"^  except +web$", answer.out, re.MULTILINE)
    assert re.search(r"^  schedules +none$", answer.out, re.MULTILINE)
    assert re.search(r"^  name +\S+-1-a$", answer.out, re.MULTILINE)


@pytest.mark.slow
def test_name_is_shown_and_filled_in_for_each_process(processes: ProcessShop) -> None:
    process = processes.start("tasks", "run", "-w", "2", "--name", "w{number}-{pid}", "-x", "mail")
    store = processes.app.extensions["taskworker"].store

    def names() -> list[str]:
        return sorted(info_of(worker).get("name", "") for worker in store.workers())

    until(lambda: len(names()) == 2, "no two workers")
    one, two = names()
    assert re.fullmatch(r"w1-\d+", one)
    assert re.fullmatch(r"w2-\d+", two)
    code, out, _ = processes.run("tasks", "status")
    assert code == 0
    assert one in out
    assert "all except mail" in out
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0
