"""``flask tasks status``: what is healthy, and what is not."""

from __future__ import annotations

from datetime import datetime, timedelta

from flask_taskworker import Every
from flask_taskworker.store.statements import jobs as job_statements
from tests.support.cli_shop import Shop

MINUTE = 60_000


def test_status_of_an_empty_store_is_healthy_and_teaches(shop: Shop) -> None:
    answer = shop("status")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("Healthy.\n")
    assert "No worker runs. Start one: flask tasks run" in answer.out
    assert "No jobs yet. Enqueue one: flask tasks call NAME" in answer.out


def test_status_is_unhealthy_while_jobs_are_ready_and_no_worker_lives(shop: Shop) -> None:
    shop.add.enqueue(1)
    answer = shop("status")
    assert answer.code == 4
    assert answer.out.startswith(
        "Unhealthy.\n  - 1 job is ready and no living worker takes it. Start one: flask tasks run\n"
    )
    shop.register_worker()
    assert shop("status").code == 0


def test_status_is_unhealthy_while_jobs_are_due_and_no_worker_lives(shop: Shop) -> None:
    shop.add.using(delay=60).enqueue(1)
    assert shop("status").code == 0
    shop.jump(5 * MINUTE)
    answer = shop("status")
    assert answer.code == 4
    assert "Jobs have been due for 4 min and no living worker takes them." in answer.out


def test_status_is_unhealthy_while_schedules_are_due_and_no_worker_lives(shop: Shop) -> None:
    shop.add.schedule(Every(seconds=1), name="often", args=(1,))
    assert shop("status").code == 0
    shop.jump(5 * MINUTE + MINUTE // 2)
    answer = shop("status")
    assert answer.code == 4
    assert "Schedule 'often' is late by 5 min: no living worker fires it. Start one with this code" in answer.out
    assert [line.split()[-4:] for line in answer.out.splitlines() if line.startswith("  often")] == [
        ["by", "5", "min", "late"]
    ]
    # Workers live, but with other code or without the scheduler.
    shop.register_worker()
    answer = shop("status", "--json")
    assert answer.code == 4
    assert answer.json["healthy"] is False
    assert [problem.partition(":")[0] for problem in answer.json["problems"]] == ["Schedule 'often' is late by 5 min"]


def test_status_names_the_latest_of_many_schedules(shop: Shop) -> None:
    shop.add.schedule(Every(minutes=1), name="often", args=(1,))
    shop.add.schedule(Every(hours=1), name="paused", args=(1,))
    shop.add.schedule(Every(hours=2), name="rarely", args=(1,))
    shop("schedule", "pause", "paused")
    shop.jump(2 * 60 * MINUTE + 2 * MINUTE)
    assert "2 schedules are late, 'often' by 2 h 1 min: no living worker fires them." in shop("status").out


def test_status_is_unhealthy_when_a_worker_has_not_checked_in(shop: Shop) -> None:
    shop.register_worker(silent_for=10_000)
    assert shop("status").code == 0
    shop.jump(4 * MINUTE)
    answer = shop("status")
    assert answer.code == 4
    assert "Worker web1:4312 has not checked in for 4 min: frozen, cut off or dead." in answer.out


def test_status_is_unhealthy_when_no_living_worker_works_on_a_queue(shop: Shop) -> None:
    shop.register_worker(["default", "mail"])
    shop.add.enqueue(1)
    assert shop("status").code == 0
    shop.crawl.enqueue("x")
    answer = shop("status")
    assert answer.code == 4
    assert "Queue 'web' has ready jobs (1) and no living worker takes them." in answer.out
    assert "Start one: flask tasks run web" in answer.out


def test_status_is_unhealthy_when_a_job_has_been_ready_for_too_long(shop: Shop) -> None:
    shop.add.enqueue(1)
    shop.jump(4 * MINUTE)
    shop.register_worker()
    assert shop("status").code == 0
    shop.jump(6 * MINUTE)
    answer = shop("status")
    assert answer.code == 4
    assert "A job in queue 'default' has been ready for 6 min." in answer.out


def test_retried_job_has_waited_since_it_was_retried(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    job.cancel()
    shop.jump(60 * MINUTE)
    job.retry()
    status = shop("status", "--json").json
    assert datetime.fromisoformat(status["at"]) - datetime.fromisoformat(status["queues"][0]["oldest_at"]) < timedelta(
        seconds=60
    )


def test_long_queue_hides_no_other(shop: Shop) -> None:
    shop.add.enqueue_many([(1,), (2,), (3,)])
    shop.crawl.enqueue("x")
    rows = shop.state.store.driver.read(job_statements.waiting_by_queue(), {"most": 2})
    assert [(name, ready) for name, ready, _ in rows] == [("default", 2), ("web", 1)]


def test_status_shows_workers_queues_counts_and_schedules(shop: Shop) -> None:
    shop.register_worker()
    shop.add.enqueue(1)
    shop.add.schedule(Every(hours=3), name="rarely", args=(1,))
    lines = shop("status").out.splitlines()
    worker = next(line.split() for line in lines if "web1:4312" in line)
    assert (worker[1], worker[-6:]) == ("up", ["1/100", "2/6", "99", "MB", "all", "0123456789ab"])
    assert any(line.split()[:4] == ["default", "ok", "1", "0/106"] for line in lines)
    assert any(line.split() == ["0", "0", "1", *["0"] * 6] for line in lines)
    assert any(line.split()[:5] == ["rarely", "every", "3", "hours", "never"] for line in lines)


def test_status_as_json_is_one_line_with_all_of_it(shop: Shop) -> None:
    shop.register_worker(["web"])
    shop.crawl.enqueue("x")
    shop.add.schedule(Every(hours=3), name="rarely", args=(1,))
    answer = shop("status", "--json")
    assert answer.out.count("\n") == 1
    status = answer.json
    assert (status["healthy"], status["problems"]) == (True, [])
    assert (status["workers"][0]["host"], status["workers"][0]["queues"]) == ("web1", ["web"])
    assert (status["queues"][0]["name"], status["counts"]["ready"]) == ("web", 1)
    assert status["schedules"][0]["when"] == "every 3 hours"


HOUR = 3_600_000


def test_status_shows_paused_queues_and_lets_their_jobs_wait(shop: Shop) -> None:
    shop.crawl.enqueue("x")
    assert shop("status").code == 4
    shop("pause", "web", "default")
    shop.jump(HOUR)
    answer = shop("status")
    assert answer.code == 0
    assert [line.split() for line in answer.out.splitlines() if "paused" in line] == [
        ["default", "paused", "0", "0/0"],
        ["web", "paused", "1", "0/0", "1", "h"],
    ]
    assert {q["name"]: q["state"] for q in shop("status", "--json").json["queues"]} == {
        "default": "paused",
        "web": "paused",
    }
    shop("resume", "web")
    assert shop("status").code == 4


def test_the_slots_of_one_worker_or_of_all_are_set(shop: Shop) -> None:
    shop.register_worker()
    assert "1 worker changed" in shop("workers", "set", "--threads", "4").err
    assert "1 worker changed" in shop("workers", "set", "web1:4312", "--concurrency", "9").err
    empty, unknown, useless, alone = (
        shop("workers", "set"),
        shop("workers", "set", "other", "--threads", "4"),
        shop("workers", "set", "--threads", "0"),
        shop("workers", "--threads", "4"),
    )
    assert (empty.code, unknown.code, useless.code, alone.code) == (3, 3, 2, 2)
    assert "go with set" in alone.err


def test_one_worker_is_asked_to_stop_by_name_or_id(shop: Shop) -> None:
    shop.register_worker()
    assert "asked to be quiet" in shop("workers", "quiet", "web1:4312").err
    assert "draining" in shop("workers").out
    assert "asked to stop" in shop("workers", "stop", "0123456789ab").err
    again, unknown, unnamed = (
        shop("workers", "stop", "web1:4312"),
        shop("workers", "stop", "other"),
        shop("workers", "stop"),
    )
    assert (again.code, unknown.code, unnamed.code) == (3, 3, 2)
    assert again.err.strip() == "Worker web1:4312 was asked to stop before."
    assert "No living worker" in unknown.err


def test_workers_and_queues_are_lists_of_their_own_with_the_facts_of_the_status(shop: Shop) -> None:
    assert shop("workers").out.strip() == "No worker runs. Start one: flask tasks run"
    assert (shop("queues").out.strip(), shop("queues", "--json").out.strip()) == ("No queue has jobs.", "")
    shop.register_worker(["web"])
    shop.crawl.enqueue("x")
    status = shop("status", "--json").json
    assert "web1:4312" in shop("workers").out
    assert "web" in shop("queues").out
    workers, queues = shop("workers", "--json").json, shop("queues", "--json").json
    assert {**workers, "beat_at": 0} == {**status["workers"][0], "beat_at": 0}
    assert {name: queues[name] for name in ("name", "state", "ready")} == {"name": "web", "state": "ok", "ready": 1}
    assert queues.keys() == status["queues"][0].keys()
