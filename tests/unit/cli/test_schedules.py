"""``flask tasks schedule …``, called in this process."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import At, Every
from tests.support.cli_shop import Answer, Shop


def schedule(shop: Shop, name: str = "often") -> None:
    shop.add.schedule(Every(hours=1), name=name, args=(1,))


def row_of(shop: Shop, name: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in shop("schedule", "list", "--json").out.splitlines()]
    (row,) = [row for row in rows if row["name"] == name]
    return row


def test_list_has_stored_and_declared_schedules(shop: Shop) -> None:
    schedule(shop)
    answer = shop("schedule", "list")
    assert (answer.code, answer.err) == (0, "")
    often, nightly, _ = (line.split("  ") for line in answer.out.splitlines()[1:])
    assert [cell.strip() for cell in often if cell][:3] == ["often", "shop.add", "every hour"]
    assert "At 03:00 every day" in [cell.strip() for cell in nightly]
    cells = [cell.strip() for cell in nightly if cell]
    assert cells[-1] == "new"
    assert cells[-2].endswith(", once a worker has started")
    assert row_of(shop, "often")["source"] == "runtime"
    assert row_of(shop, "shop.nightly")["is_stored"] is False


def test_list_without_schedules_says_how_to_declare_one(make_app: Callable[..., Flask]) -> None:
    shop = Shop(make_app())
    shop.task_worker._registry._tasks.pop("shop.nightly")
    answer = shop("schedule", "list")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err.startswith("No schedules yet. Declare one: @task_worker.task(schedule=")
    shop.state.client.close()


def test_next_shows_fire_times_in_both_zones(shop: Shop) -> None:
    answer = shop("schedule", "next", "shop.nightly", "-n", "3")
    assert answer.code == 0
    header, *rows = answer.out.splitlines()
    assert header.split() == ["UTC", "Europe/Berlin", "note"]
    assert len(rows) == 3
    assert all(" 03:00:00 CE" in row for row in rows)
    assert answer.err == "0 3 * * * (Europe/Berlin) At 03:00 every day\n"
    found = [json.loads(line) for line in shop("schedule", "next", "shop.nightly", "--json").out.splitlines()]
    assert len(found) == 10
    assert set(found[0]) == {"at", "local", "notes"}


def test_next_of_a_schedule_that_ends_says_so(shop: Shop) -> None:
    shop.add.schedule(At(datetime(2199, 1, 1, tzinfo=UTC)), name="once", args=(1,))
    answer = shop("schedule", "next", "once")
    assert answer.out.splitlines()[1].split()[:2] == ["2199-01-01", "00:00:00"]
    assert answer.err.endswith("Then never again.\n")


def test_run_enqueues_the_job_beside_its_times(shop: Shop) -> None:
    schedule(shop)
    before = row_of(shop, "often")["next_at"]
    answer = shop("schedule", "run", "often")
    assert answer.code == 0
    job = shop("job", answer.out.strip(), "--json").json
    assert (job["task"], job["args"], job["state"]) == ("shop.add", [1], "ready")
    assert row_of(shop, "often")["next_at"] == before


def test_paused_schedule_fires_no_more_until_it_is_resumed(shop: Shop) -> None:
    schedule(shop)
    assert shop("schedule", "pause", "often") == Answer(0, "", "The schedule 'often' is paused.\n")
    assert shop("schedule", "pause", "often").code == 3
    assert row_of(shop, "often")["paused"] is True
    assert "fires at none of them until you resume it" in shop("schedule", "next", "often").err
    shop.jump(10 * 3_600_000)
    answer = shop("schedule", "resume", "often")
    assert answer.code == 0
    assert answer.err.startswith("The schedule 'often' fires next at ")
    following = datetime.fromisoformat(row_of(shop, "often")["next_at"])
    assert following > datetime.now(UTC) + timedelta(hours=9)
    assert shop("schedule", "resume", "often").code == 3


def test_skip_leaves_out_the_next_time(shop: Shop) -> None:
    schedule(shop)
    first, second = (
        json.loads(line)["at"] for line in shop("schedule", "next", "often", "-n", "2", "--json").out.split("\n")[:2]
    )
    assert shop("schedule", "skip", "often").code == 0
    moved = row_of(shop, "often")["next_at"]
    assert datetime.fromisoformat(moved) == datetime.fromisoformat(second) > datetime.fromisoformat(first)
    assert json.loads(shop("schedule", "next", "often", "-n", "1", "--json").out)["at"] == second


@pytest.mark.parametrize("command", ["run", "pause", "resume", "skip", "next"])
def test_unknown_schedule_ends_with_3(shop: Shop, command: str) -> None:
    answer = shop("schedule", command, "nope")
    assert answer == Answer(3, "", "No schedule is named 'nope'. List them: flask tasks schedule list\n")


@pytest.mark.parametrize("command", ["run", "pause", "resume", "skip"])
def test_schedule_that_no_worker_has_stored_yet_ends_with_3(shop: Shop, command: str) -> None:
    answer = shop("schedule", command, "shop.nightly")
    assert (answer.code, answer.out) == (3, "")
    assert "stored when a worker first starts" in answer.err


def test_schedule_of_another_version_is_still_shown(shop: Shop) -> None:
    schedule(shop)
    with closing(sqlite3.connect(shop.state.config.database_uri.database or "")) as connection:
        connection.execute("""UPDATE taskworker_schedule SET "trigger" = '{"type": "moon"}'""")
        connection.commit()
    assert "cannot be read by this version" in shop("schedule", "list").out
    assert shop("schedule", "next", "often").code == 1
    answer = shop("doctor", "--no-smtp")
    assert answer.code == 4
    assert "ERROR    The schedule 'often' cannot be read by this version, so it never fires." in answer.out


def test_remove_ends_a_schedule_that_was_made_at_run_time_and_no_other(shop: Shop) -> None:
    shop.add.schedule(Every(hours=3), name="rarely", args=(1,))
    answer = shop("schedule", "remove", "rarely")
    assert (answer.code, answer.out) == (0, "")
    assert "is removed" in answer.err
    assert "rarely" not in shop("schedule", "list").out
    assert shop("schedule", "remove", "rarely").code == 3
    shop.add.enqueue(1)
    shop.work()
    answer = shop("schedule", "remove", "shop.nightly")
    assert answer.code == 2
    assert "declared in code" in answer.err
