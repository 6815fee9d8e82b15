"""The verdict of the benchmark that guards the speed."""

from __future__ import annotations

import pytest

from benchmarks.guard import is_slower


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.93, 0.97, 0.96, 0.99, 0.95], True),
        ([0.90, 0.92, 0.91, 0.93, 1.40], True),  # one lucky round
        ([0.70, 1.02, 0.95, 1.05, 0.96], False),  # a noisy machine
        ([1.00, 1.02, 0.99, 1.00, 0.97], False),
        ([0.99, 0.985, 0.99, 0.995, 0.99], False),  # a hundredth
        ([1.10, 1.20, 0.40, 1.15, 1.12], False),
    ],
)
def test_what_all_rounds_but_one_show_is_slower_and_noise_is_not(ratios, expected):
    assert is_slower(ratios) is expected
