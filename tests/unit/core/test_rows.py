"""What is stored of a job: states, kinds of outcomes, failures and progress as texts."""

from __future__ import annotations

import pytest

from flask_taskworker import JobState
from flask_taskworker.core.rows import STORED, Failure, OutcomeKind, Progress, shown


def test_pending_is_not_a_stored_state() -> None:
    assert set(JobState) - set(STORED) == {JobState.PENDING}


@pytest.mark.parametrize(
    ("kind", "state", "failures"),
    [
        (OutcomeKind.SUCCEEDED, JobState.SUCCEEDED, 0),
        (OutcomeKind.FAILED, JobState.FAILED, 1),
        (OutcomeKind.CANCELLED, JobState.CANCELLED, 0),
        (OutcomeKind.RETRYING, JobState.SCHEDULED, 1),
        (OutcomeKind.SNOOZED, JobState.SCHEDULED, 0),
        (OutcomeKind.RELEASED, JobState.SCHEDULED, 0),
    ],
)
def test_outcomes_lead_to_states(kind: OutcomeKind, state: JobState, failures: int) -> None:
    assert (kind.state, kind.failures) == (state, failures)


def test_a_failure_comes_back_from_its_text() -> None:
    failure = Failure(kind="timeout", type="TimeoutError", message='too "slow"\n', traceback="…")
    assert Failure._from_text(failure._to_text(), "timeout") == failure


@pytest.mark.parametrize("text", ["no JSON", "[1]", "[" * 100_000])
def test_a_text_of_another_origin_is_the_message(text: str) -> None:
    assert Failure._from_text(text, None) == Failure(kind="exception", type="", message=text)


@pytest.mark.parametrize("progress", [Progress(1), Progress(0.5, 2, "half")])
def test_progress_comes_back_from_its_text(progress: Progress) -> None:
    assert Progress._from_text(progress._to_text()) == progress


@pytest.mark.parametrize("text", [None, "", "[1]", '["a", 2, ""]', "[" * 100_000])
def test_a_damaged_progress_is_none(text: str | None) -> None:
    assert Progress._from_text(text) is None


def test_a_name_in_a_log_is_short_and_on_one_line() -> None:
    assert shown("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert len(shown("x" * 1000)) == 201
