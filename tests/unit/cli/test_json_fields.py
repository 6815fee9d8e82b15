"""The fields that the page of commands promises are those that ``--json`` gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.cli_shop import Shop

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_json_has_the_fields_that_the_page_promises(shop: Shop) -> None:
    section = PAGE.read_text().partition("### JSON fields")[2].partition("\n## ")[0]
    promised = {
        command: set(re.findall(r"`(\w+)`", names))
        for command, names in re.findall(r"^\| `(.+?)` \| (.+) \|$", section, re.M)
    }
    shop.add.enqueue("x")
    shop.work()
    shop.crawl.enqueue("x")
    shop.register_worker()
    for command, fields in promised.items():
        first = shop(*command.split(), "--json").out.splitlines()[0]
        assert set(json.loads(first)) == fields, command
    assert promised.keys() == {"jobs", "failures", "workers", "queues", "schedule list", "status"}
