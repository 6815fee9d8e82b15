"""Charts say in words what they show, and show even one failure among thousands."""

from __future__ import annotations

import re

from flask_taskworker.dashboard.charts import meter, sparkline, throughput

MINUTE = 60_000


def test_chart_has_its_sums_in_words_and_a_table_of_the_same() -> None:
    bars = [{"start": at * MINUTE, "succeeded": at * 1000, "failed": at % 2, "cancelled": 0} for at in range(4)]
    svg = throughput(bars, name="hour", title="Jobs <in> each minute", days=False)
    assert 'aria-label="Jobs &lt;in&gt; each minute. At most 3,001 in one bar."' in svg
    assert "ok 6,000</li>" in svg
    assert "failed 2</li>" in svg
    assert svg.count('<th scope="row">') == 3, "a minute without jobs has no row"


def test_one_failure_among_thousands_is_two_units_high() -> None:
    bars = [{"start": 0, "succeeded": 9_999, "failed": 1, "cancelled": 0}]
    svg = throughput(bars, name="hour", title="Jobs", days=False)
    (path,) = re.findall('<path class="failed" d="([^"]+)"', svg)
    assert "v2.0h" in path


def test_chart_of_nothing_has_no_bars() -> None:
    assert "<path class=" not in throughput([], name="hour", title="Jobs", days=True).replace('class="grid"', "")


def test_sparkline_and_meter_say_their_values() -> None:
    assert "last runs: 1.5, 0, 2" in sparkline([1.5, 0, 2], "last runs")
    assert 'width="100"' in meter(12, 8, "threads")
    assert 'width="0"' in meter(0, 0, "threads")
