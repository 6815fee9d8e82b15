"""``flask tasks limits`` and ``flask tasks limit``, called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import Limit, Rate
from flask_taskworker.ops.browse import Browser
from tests.support.cli_shop import Shop, completed


@pytest.fixture
def shop(shop: Shop) -> Shop:
    @shop.task_worker.task(name="shop.label", limit=Limit("carrier", running=5, rate=Rate(100, per=60, burst=5)))
    def label() -> None: ...

    @shop.task_worker.task(name="shop.sync", limit=Limit("shop", running=1, key="shop_id", hold=True))
    def sync(shop_id: int) -> None: ...

    return shop


def limit(shop: Shop, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shop("limit", name, "--json").out)
    return found


def test_limits_are_listed_with_their_numbers(shop: Shop) -> None:
    answer = shop("limits")
    assert (answer.code, answer.err) == (0, "")
    header, carrier, per_shop = (line.split() for line in answer.out.splitlines())
    assert header == ["limit", "key", "running", "rate", "admitted", "waiting", "state", "opens", "set", "by"]
    assert carrier[:6] == ["carrier", "5", "100/m:5", "0", "0", "ok"]
    assert per_shop[:3] == ["shop", "shop_id", "1"]
    assert carrier[6:] == ["code,", "once", "a", "worker", "has", "started"]
    rows = [json.loads(line) for line in shop("limits", "--json").out.splitlines()]
    assert [(row["name"], row["rate"], row["is_stored"]) for row in rows] == [
        ("carrier", "100/m:5", False),
        ("shop", None, False),
    ]


def test_list_without_limits_says_how_to_declare_one(shop: Shop) -> None:
    shop.task_worker._registry.limits.clear()
    answer = shop("limits")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err.startswith("No limits yet. Declare one: ")


def test_one_limit_is_shown_with_the_tasks_that_it_holds_for(shop: Shop) -> None:
    answer = shop("limit", "shop")
    assert answer.code == 0
    facts = dict(line.strip().split("  ", 1) for line in answer.out.splitlines()[1:])
    assert {name: words.strip() for name, words in facts.items()} == {
        "running": "1 at once",
        "key": "shop_id",
        "hold": "yes",
        "tasks": "shop.sync",
        "state": "ok",
        "admitted": "0",
        "waiting": "0",
    }


def test_change_keeps_what_is_not_given_and_is_reset_to_the_code(shop: Shop) -> None:
    answer = shop("limit", "carrier", "--running", "2")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == ("The limit 'carrier' is running 2, rate 100/m:5; it was running 5, rate 100/m:5.\n")
    answer = shop("limit", "carrier", "--rate", "20/s", "--json")
    assert json.loads(answer.out)["rate"] == "20/s"
    assert limit(shop, "carrier")["running"] == 2
    assert limit(shop, "carrier")["source"] == "runtime"
    assert " (flask tasks) at 2" in shop("limit", "carrier").out
    assert shop("limit", "carrier", "--rate", "none").code == 0
    assert limit(shop, "carrier")["rate"] is None
    assert shop("limit", "carrier", "--reset").err.startswith("The limit 'carrier' is running 5, rate 100/m:5; it was")
    again = shop("limit", "carrier", "--reset")
    assert (again.code, again.err) == (3, "The limit 'carrier' was running 5, rate 100/m:5 already.\n")
    actions = [note.action for note in Browser(shop.state.store).audit()]
    assert actions == ["reset", "limit", "limit", "limit"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("typo",), 3, "No limit is named 'typo'. List them: flask tasks limits"),
        (("carrier", "--running", "0"), 2, "at least 1"),
        (("carrier", "--running", "many"), 2, "--running is 'many'. Give a whole number"),
        (("carrier", "--rate", "fast"), 2, "'fast' is not a rate. Give N/PERIOD"),
        (("carrier", "--running", "none", "--rate", "none"), 2, "would limit nothing"),
        (("carrier", "--running", "1", "--reset"), 2, "Give either --reset, or --running and --rate."),
    ],
)
def test_what_cannot_be_set_is_refused(shop: Shop, words: tuple[str, ...], code: int, says: str) -> None:
    answer = shop("limit", *words)
    assert answer.code == code
    assert says in answer.err
    assert limit(shop, "carrier")["source"] == "code"


def test_names_of_limits_complete(shop: Shop) -> None:
    assert completed(shop, ["limit"], "c") == ["carrier"]


def test_name_of_a_queue_alone_is_answered_with_the_name_of_its_limit(make_app: Callable[..., Flask]) -> None:
    shop = Shop(make_app(TASKER_QUEUE_LIMITS={"mail": Limit(running=1)}))
    answer = shop("limit", "mail")
    assert (answer.code, answer.err) == (3, "No limit is named 'mail'. That of the queue is called queue:mail.\n")
    shop.state.client.close()
