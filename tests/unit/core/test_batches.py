"""How a batch counts, by itself."""

from __future__ import annotations

from flask_taskworker.core.batches import BatchRow

NEW = BatchRow(7, "import", 0, 0, 0, 3, 0, 0, 0, 1, 0, "{}", 1, None, None)


def test_batch_ends_with_its_last_job_once_it_is_sealed() -> None:
    row, events = NEW.counting({1: 3}, 5, 10)
    assert (row.state, row.ended_at, events) == ("open", None, [])
    row, events = row._replace(sealed=1).counting({}, 6, 10)
    assert (row.state, row.ended_at, row.expires_at, events) == ("succeeded", 6, 16, ["success", "end"])


def test_first_failure_is_told_once_a_round() -> None:
    row, events = NEW._replace(sealed=1, stop_on_failure=1).counting({2: 1}, 5, 10)
    assert (row.state, row.stop, events) == ("running", 1, ["failure"])
    row, events = row.counting({2: 1, 3: 1}, 6, 10)
    assert (row.state, row.stop, events) == ("failed", 0, ["end"])
    again = row.reopened({2: 2, 3: 1})
    assert (again.round, again.state, again.counts) == (2, "running", (3, 0, 0, 0))
    assert again.counting({2: 1}, 7, 10)[1] == ["failure"]


def test_job_that_comes_back_before_the_end_begins_no_round() -> None:
    row, _ = NEW._replace(sealed=1).counting({2: 1}, 5, 10)
    assert (row.reopened({2: 1}).round, row.counts.left) == (1, 2)


def test_cancelled_jobs_are_no_success() -> None:
    row, events = NEW._replace(sealed=1).counting({1: 2, 3: 1}, 5, 10)
    assert (row.state, events) == ("cancelled", ["end"])
