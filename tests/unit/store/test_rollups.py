"""Roll-ups: what is counted, in which minute and hour, and what the buckets say of durations."""

from __future__ import annotations

import pytest

from flask_taskworker.core.rows import OutcomeKind
from flask_taskworker.store.rollups import Tally, percentile
from flask_taskworker.store.schema import BUCKETS_MS, ROLLUP_FIGURES

HOUR = 3_600_000
MINUTE = 60_000


def add(
    tally: Tally,
    ending: OutcomeKind = OutcomeKind.SUCCEEDED,
    *,
    task: str = "a",
    queue: str = "q",
    due_at: int = 0,
    started_at: int = 0,
    ended_at: int = 0,
) -> None:
    tally.add(task, queue, ending, due_at=due_at, started_at=started_at, ended_at=ended_at)


def figures(tally: Tally) -> dict[tuple[int, int, str, str], dict[str, int]]:
    """Those that are not 0."""
    found = {}
    for span, start, task, queue, *counts in tally.rows():
        named = zip(ROLLUP_FIGURES, counts, strict=True)
        found[span, start, task, queue] = {name: number for name, number in named if number}
    return found


def test_a_try_is_counted_in_its_minute_in_its_hour_and_in_all() -> None:
    tally = Tally()
    assert not tally
    add(tally, due_at=HOUR + 5 * MINUTE, started_at=HOUR + 5 * MINUTE + 20, ended_at=HOUR + 6 * MINUTE)
    assert tally
    run = MINUTE - 20
    once = {"succeeded": 1, "run_ms": run, "longest_ms": run, "wait_ms": 20, "run_8": 1, "wait_1": 1}
    assert figures(tally) == {
        (0, 0, "a", "q"): once,
        (60, HOUR + 6 * MINUTE, "a", "q"): once,
        (3600, HOUR, "a", "q"): once,
    }


COUNTED = {
    OutcomeKind.SUCCEEDED: "succeeded",
    OutcomeKind.FAILED: "failed",
    OutcomeKind.RETRYING: "retried",
    OutcomeKind.CANCELLED: "cancelled",
}


@pytest.mark.parametrize("ending", OutcomeKind)
def test_each_ending_has_its_figure(ending: OutcomeKind) -> None:
    tally = Tally()
    add(tally, ending)
    if ending in COUNTED:
        assert figures(tally)[60, 0, "a", "q"][COUNTED[ending]] == 1
    else:
        # Snoozed or handed back: it has not ended, and has not failed.
        assert not tally
        assert tally.rows() == []


def test_tasks_queues_and_minutes_are_told_apart_and_hours_added_up() -> None:
    tally = Tally()
    add(tally, ended_at=10)
    add(tally, ended_at=30, started_at=10)
    add(tally, ended_at=MINUTE)
    add(tally, OutcomeKind.FAILED, ended_at=5, task="b")
    add(tally, ended_at=HOUR, queue="p")
    found = figures(tally)
    assert found[60, 0, "a", "q"]["succeeded"] == 2
    assert found[60, MINUTE, "a", "q"]["succeeded"] == 1
    hour = found[3600, 0, "a", "q"]
    assert (hour["succeeded"], hour["run_ms"], hour["longest_ms"]) == (3, 10 + 20 + MINUTE, MINUTE)
    assert found[3600, 0, "b", "q"]["failed"] == 1
    assert found[3600, HOUR, "a", "p"]["succeeded"] == 1
    assert found[0, 0, "a", "q"] == hour
    assert len(found) == 4 + 3 + 3


def test_rows_are_in_one_order_however_the_tries_came() -> None:
    one, other = Tally(), Tally()
    for tally, tasks in ((one, "abc"), (other, "cab")):
        for task in tasks:
            add(tally, task=task)
    assert one.rows() == other.rows()


def test_the_figures_of_rows_do_not_change_afterwards() -> None:
    tally = Tally()
    add(tally)
    rows = tally.rows()
    add(tally)
    assert rows[0][4] == 1
    assert tally.rows()[0][4] == 2


def test_a_clock_that_is_set_back_makes_no_negative_duration() -> None:
    tally = Tally()
    add(tally, due_at=500, started_at=100, ended_at=50)
    assert figures(tally)[60, 0, "a", "q"] == {"succeeded": 1, "run_0": 1, "wait_0": 1}


@pytest.mark.parametrize(("run", "bucket"), [(0, 0), (10, 0), (11, 1), (300_000, 9), (300_001, 10), (10**9, 10)])
def test_a_bound_belongs_to_its_bucket(run: int, bucket: int) -> None:
    tally = Tally()
    add(tally, ended_at=run)
    found = next(f for key, f in figures(tally).items() if key[0] == 60)
    assert found[f"run_{bucket}"] == 1


# -- percentiles -------------------------------------------------------------------------------------------------------


def counts(**buckets: int) -> list[int]:
    return [buckets.get(f"b{i}", 0) for i in range(len(BUCKETS_MS) + 1)]


def test_without_durations_no_percentile_is_known() -> None:
    assert percentile(counts(), 0.5) is None


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({"b0": 10}, 0.5, 5),
        ({"b0": 10}, 1, 10),
        ({"b2": 4}, 0.5, 65),
        ({"b0": 1, "b4": 1}, 0.5, 10),
        ({"b0": 1, "b4": 1}, 1, 1000),
        ({"b0": 90, "b4": 10}, 0.95, 650),
        ({"b10": 3}, 0.5, 300_000),
        ({"b9": 1, "b10": 99}, 0.99, 300_000),
        ({"b3": 5}, 0, 100),
    ],
)
def test_a_percentile_lies_within_its_bucket(buckets: dict[str, int], share: float, expected: float) -> None:
    found = percentile(counts(**buckets), share)
    assert found is not None
    assert found.ms == pytest.approx(expected)


def test_percentiles_grow_with_the_share() -> None:
    many = counts(b0=3, b2=7, b5=1, b10=2)
    found = [percentile(many, share / 20) for share in range(21)]
    assert found == sorted(found)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("buckets", "is_bound"), [({"b9": 3}, False), ({"b9": 99, "b10": 1}, False), ({"b10": 1}, True)]
)
def test_a_percentile_beyond_the_last_bound_is_a_lower_bound(buckets: dict[str, int], is_bound: bool) -> None:
    assert percentile(counts(**buckets), 0.95).at_least == is_bound  # type: ignore[union-attr]
