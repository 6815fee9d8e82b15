"""``flask tasks job ID --follow``."""

from __future__ import annotations

import json
import threading

from flask_taskworker.cli.follow import Followed
from flask_taskworker.ops.browse import Browser
from tests.support.cli_shop import Answer, Shop, fail, write


def test_follow_goes_on_until_the_job_has_ended(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    answers: list[Answer] = []
    follower = threading.Thread(target=lambda: answers.append(shop("job", str(job.id), "--follow", "--json")))
    follower.start()
    shop.task_worker.start()
    follower.join(20)
    (answer,) = answers
    assert answer.code == 0, answer.err
    events = [json.loads(line) for line in answer.out.splitlines()]
    assert (events[-1]["event"], events[-1]["state"]) == ("state", "succeeded")


def test_follow_shows_what_is_new_and_nothing_twice(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    followed, browser = Followed(), Browser(shop.state.store)

    def news() -> list[tuple[str, str]]:
        return [(event["event"], words) for event, words in followed.news(browser.job(job.id), 0)]

    assert news() == [("state", "ready")]
    assert news() == []
    lines = [[1, "INFO", "shop", "one"]]
    write(shop, "INSERT INTO taskworker_log (job_id, claim, lines) VALUES (?, 1, ?)", job.id, json.dumps(lines))
    write(shop, "UPDATE taskworker_job SET state = 'running', worker_id = 'w', progress = '[1, 4, \"x\"]'")
    assert news() == [("log", "INFO shop: one"), ("progress", "1 of 4 (25 %) x"), ("state", "running, try 1 of 1")]
    lines.append([2, "INFO", "shop", "two"])
    write(shop, "UPDATE taskworker_log SET lines = ?", json.dumps(lines))
    assert news() == [("log", "INFO shop: two")]


def test_follow_of_a_failed_job_ends_with_1(shop: Shop) -> None:
    (job,) = fail(shop, 1)
    answer = shop("job", str(job.id), "--follow")
    assert answer.code == 1
    assert answer.out.splitlines()[-1].endswith(r" failed: ValueError: \x1b[31mn1 is not a number")
    other = shop.add.enqueue(1)
    other.cancel()
    answer = shop("job", str(other.id), "--follow")
    assert (answer.code, answer.out.splitlines()[-1][9:]) == (1, "cancelled")
    assert shop("job", "99", "--follow").code == 3


def test_job_shows_what_its_tries_have_logged_and_where_it_comes_from(shop: Shop) -> None:
    (job,) = fail(shop, 1)
    lines = [[1_700_000_000_000, "WARNING", "shop", "no \x1b[31mrows"], [1_700_000_001_000, "INFO", "shop", "done"]]
    write(shop, "INSERT INTO taskworker_log (job_id, claim, lines) VALUES (?, 1, ?)", job.id, json.dumps(lines))
    write(shop, "UPDATE taskworker_job SET origin = ? WHERE id = ?", '{"request": "POST /x\\n"}', job.id)
    out = shop("job", str(job.id)).out
    assert "  22:13:20 WARNING shop: no \\x1b[31mrows\n  22:13:21 INFO shop: done\n" in out
    assert "  by         request POST /x\\n\n" in out
    found = shop("job", str(job.id), "--json").json
    assert [(one["claim"], line["level"], line["text"]) for one in found["tries"] for line in one["lines"]] == [
        (1, "WARNING", "no \x1b[31mrows"),
        (1, "INFO", "done"),
    ]
    assert found["origin"] == {"request": "POST /x\n"}
    followed = [json.loads(line) for line in shop("job", str(job.id), "--follow", "--json").out.splitlines()]
    assert [event["text"] for event in followed if event["event"] == "log"] == ["no \x1b[31mrows", "done"]
