"""A request that changes something must come from the dashboard's own pages."""

from __future__ import annotations

import pytest

from flask_taskworker.dashboard.forgery import is_own


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://shop.example"}, False),
        ({"Origin": "http://shop.example"}, True),
        ({"Origin": "http://SHOP.example:80"}, True),
        ({"Origin": "https://shop.example:443"}, True),
        ({"Origin": "http://shop.example:8080"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://shop.example:port"}, False),
        ({"Referer": "http://shop.example/tasks/jobs"}, True),
        ({"Referer": "http://shop.example.evil.example/"}, False),
        ({"Referer": "http://shop.example@evil.example/"}, False),
        ({}, False),
    ],
)
def test_browser_tells_where_a_request_comes_from(headers: dict[str, str], own: bool) -> None:
    assert is_own(headers, "shop.example") is own


def test_port_of_the_host_counts() -> None:
    assert is_own({"Origin": "http://localhost:5000"}, "localhost:5000")
    assert not is_own({"Origin": "http://localhost:5001"}, "localhost:5000")
