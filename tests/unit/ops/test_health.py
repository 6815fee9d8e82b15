"""The health of one store at one moment."""

from __future__ import annotations

from flask_taskworker.ops.overview import Overview
from tests.support.cli_shop import Shop


def test_snapshot_of_health_counts_a_worker_by_its_queues(shop: Shop) -> None:
    shop.crawl.enqueue("x")
    shop.register_worker(["default"])
    assert any("no living worker takes them" in problem for problem in Overview.take(shop.state.store).problems())
