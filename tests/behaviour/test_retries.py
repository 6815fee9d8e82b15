"""Trying again: policies, the job control exceptions, and what counts as an attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flask_taskworker import (
    BackgroundTaskWorker,
    CancelJob,
    Job,
    JobCancelled,
    JobFailed,
    JobState,
    Retry,
    RetryJob,
    SnoozeJob,
    current_job,
)
from flask_taskworker.core.failures import MAX_TEXT
from flask_taskworker.store.sql import Store
from tests.support.apps import KINDS
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

Rows = Callable[..., list[tuple[Any, ...]]]
SOON = {"base": 0.001, "jitter": 0}
HOUR_MS = 3_600_000


@pytest.fixture(params=KINDS)
def declare(request: pytest.FixtureRequest, task_worker: BackgroundTaskWorker) -> Callable[..., Any]:
    """Make a task, of each kind in turn, that does what a function does."""

    def make(function: Callable[[], Any], **options: Any) -> Any:
        def work() -> Any:
            return function()

        async def work_async() -> Any:
            await asyncio.sleep(0)
            return function()

        return task_worker.task(**options)(work if request.param == "sync" else work_async)

    return make


class Flaky:
    """Raises what it is given, one after the other, then returns the number of calls."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.seen: list[tuple[int, int]] = []

    def __call__(self) -> int:
        self.seen.append((current_job.attempt, current_job.claim))
        if self.errors:
            raise self.errors.pop(0)
        return len(self.seen)


def wait_for_state(job: Job[Any], state: JobState) -> None:
    wait_for(lambda: job.refresh().state is state, f"{state}; it is {job.state}")


# -- policies ----------------------------------------------------------------------------------------------------------


def test_without_a_policy_a_task_that_raises_fails_at_once(declare: Callable[..., Any]) -> None:
    work = Flaky(ValueError("no"))
    with pytest.raises(JobFailed, match="ValueError: no"):
        declare(work).enqueue().result(timeout=20)
    assert work.seen == [(1, 1)]


def test_job_is_tried_again_until_it_succeeds(declare: Callable[..., Any], store: Store, rows: Rows) -> None:
    work = Flaky(ValueError("one"), KeyError("two"))
    job = declare(work, retry=Retry(5, **SOON)).enqueue()
    assert job.max_attempts == 5
    assert job.result(timeout=20) == 3
    assert work.seen == [(1, 1), (2, 2), (3, 3)]
    job.refresh()
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 3)
    assert [(a.attempt, a.claim, a.outcome) for a in store.attempts(job.id)] == [(1, 1, "retrying"), (2, 2, "retrying")]
    assert ["ValueError: one" in (a.error or "") for a in store.attempts(job.id)] == [True, False]
    assert rows("SELECT error, failure_kind FROM taskworker_job") == [(None, None)]


def test_job_that_returns_none_after_a_retry_keeps_no_error(declare: Callable[..., Any], rows: Rows) -> None:
    work = Flaky(ValueError("one"))
    assert declare(lambda: work() and None, retry=Retry(5, **SOON)).enqueue().result(timeout=20) is None
    assert rows("SELECT state, error, failure_kind, failures FROM taskworker_job") == [("succeeded", None, None, 1)]


def test_job_fails_after_its_last_attempt(declare: Callable[..., Any], store: Store) -> None:
    work = Flaky(*(ValueError(str(i)) for i in range(9)))
    job = declare(work, retry=Retry(3, **SOON)).enqueue()
    with pytest.raises(JobFailed, match="ValueError: 2"):
        job.result(timeout=20)
    assert work.seen == [(1, 1), (2, 2), (3, 3)]
    assert job.refresh().attempt == 3
    assert [a.outcome for a in store.attempts(job.id)] == ["retrying", "retrying", "failed"]


@pytest.mark.sqlite_only
def test_number_is_a_policy(declare: Callable[..., Any]) -> None:
    assert declare(Flaky(), retry=4).enqueue().max_attempts == 4


def test_only_chosen_exceptions_are_tried_again(declare: Callable[..., Any]) -> None:
    policy = Retry(5, on=OSError, never=FileNotFoundError, **SOON)
    for error, calls in ((ValueError(), 1), (FileNotFoundError(), 1), (ConnectionError(), 2)):
        work = Flaky(error)
        job = declare(work, retry=policy).enqueue()
        wait_for(lambda job=job: job.refresh().state.finished)
        assert len(work.seen) == calls, error


@pytest.mark.sqlite_only
def test_the_first_policy_that_wants_an_exception_decides_and_attempts_are_counted_together(
    declare: Callable[..., Any],
) -> None:
    policies = [Retry(4, on=ConnectionError, **SOON), Retry(3, on=OSError, **SOON), Retry(2, on=ValueError, **SOON)]

    def last_attempt(*errors: BaseException) -> int | str:
        flaky = Flaky(*errors)
        job = declare(flaky, name=f"flaky {len(errors)} {errors[-1]!r}", retry=policies).enqueue()
        try:
            return int(job.result(timeout=10))
        except JobFailed:
            return f"failed after {len(flaky.seen)}"

    assert last_attempt(ConnectionError(), ConnectionError(), ConnectionError()) == 4
    assert last_attempt(ConnectionError(), PermissionError(), PermissionError()) == "failed after 3"
    assert last_attempt(ValueError(), ValueError()) == "failed after 2"
    assert last_attempt(KeyError()) == "failed after 1"


@pytest.mark.sqlite_only
def test_base_exceptions_are_tried_again_only_if_chosen(declare: Callable[..., Any]) -> None:
    for policy, calls in ((Retry(5, **SOON), 1), (Retry(5, on=BaseException, **SOON), 2)):
        work = Flaky(KeyboardInterrupt())
        job = declare(work, retry=policy).enqueue()
        wait_for(lambda job=job: job.refresh().state.finished)
        assert len(work.seen) == calls


def test_result_that_cannot_be_stored_is_not_tried_again(declare: Callable[..., Any]) -> None:
    """The work is done: doing it again would not make its result any better."""
    work = Flaky()
    with pytest.raises(JobFailed, match="NotEncodable"):
        declare(lambda: [work(), object()], retry=Retry(5, **SOON)).enqueue().result(timeout=20)
    assert len(work.seen) == 1


@pytest.mark.sqlite_only
def test_delay_follows_the_policy(declare: Callable[..., Any], store: Store) -> None:
    for name, policy, seconds in (
        ("exponential", Retry(9, base=3600, jitter=0), 3600),
        ("linear", Retry(9, "linear", base=3600, jitter=0), 3600),
        ("callable", Retry(9, lambda attempt: 1000 + attempt, jitter=0), 1001),
        ("callable timedelta", Retry(9, lambda attempt: timedelta(minutes=attempt), jitter=0), 60),
        ("cap", Retry(9, base=7200, cap=5, jitter=0), 5),
    ):
        job = declare(Flaky(ValueError()), name=name, retry=policy).enqueue()
        wait_for_state(job, JobState.SCHEDULED)
        waits = store.record(job.id).run_at - store.attempts(job.id)[0].finished_at
        assert (waits, job.attempt) == (seconds * 1000, 2), name


def test_waiting_job_can_be_cancelled(declare: Callable[..., Any]) -> None:
    job = declare(Flaky(ValueError()), retry=Retry(9, base=3600)).enqueue()
    wait_for_state(job, JobState.SCHEDULED)
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=20)


@pytest.mark.sqlite_only
def test_backoff_that_raises_fails_the_job_with_both_reasons(declare: Callable[..., Any]) -> None:
    def backoff(attempt: int) -> float:
        raise ZeroDivisionError("in the backoff")

    with pytest.raises(JobFailed, match="ZeroDivisionError: in the backoff for attempt 1") as caught:
        declare(Flaky(ValueError("the task's")), retry=Retry(5, backoff)).enqueue().result(timeout=20)
    assert "ValueError: the task's" in caught.value.traceback


def test_operator_retry_begins_again_but_claims_go_on(declare: Callable[..., Any], store: Store) -> None:
    work = Flaky(*(ValueError(str(i)) for i in range(3)))
    job = declare(work, retry=Retry(2, **SOON)).enqueue()
    with pytest.raises(JobFailed):
        job.result(timeout=20)
    assert job.retry()
    assert job.result(timeout=20) == 4
    assert work.seen == [(1, 1), (2, 2), (1, 3), (2, 4)]
    assert len(store.attempts(job.id)) == 3
    assert not job.retry(), "it has succeeded"


# -- RetryJob ----------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_retry_job_works_without_a_policy(declare: Callable[..., Any], store: Store) -> None:
    work = Flaky(RetryJob("not yet", delay=0), RetryJob(delay=timedelta(milliseconds=1)))
    job = declare(work).enqueue()
    assert job.result(timeout=20) == 3
    assert work.seen == [(1, 1), (2, 2), (3, 3)]
    assert [a.outcome for a in store.attempts(job.id)] == ["retrying", "retrying"]
    assert "not yet" in (store.attempts(job.id)[0].error or "")


@pytest.mark.sqlite_only
def test_retry_job_without_a_policy_ends_after_ten_attempts(declare: Callable[..., Any]) -> None:
    work = Flaky(*(RetryJob(delay=0) for _ in range(20)))
    with pytest.raises(JobFailed, match="RetryJob: The task asked for another try"):
        declare(work).enqueue().result(timeout=20)
    assert len(work.seen) == 10


@pytest.mark.sqlite_only
def test_retry_job_counts_as_an_attempt_of_the_policy(declare: Callable[..., Any]) -> None:
    work = Flaky(RetryJob(delay=0), ValueError(), RetryJob(delay=0))
    with pytest.raises(JobFailed, match="RetryJob"):
        declare(work, retry=Retry(3, **SOON)).enqueue().result(timeout=20)
    assert work.seen == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.sqlite_only
def test_retry_job_takes_the_delay_of_the_policy_or_its_own(declare: Callable[..., Any], store: Store) -> None:
    for error, seconds in ((RetryJob(), 3600), (RetryJob(delay=50), 50), (RetryJob(delay=timedelta(hours=2)), 7200)):
        job = declare(Flaky(error), retry=Retry(5, base=3600, jitter=0)).enqueue()
        wait_for_state(job, JobState.SCHEDULED)
        assert store.record(job.id).run_at - store.attempts(job.id)[0].finished_at == seconds * 1000


@pytest.mark.sqlite_only
def test_retry_job_is_obeyed_whatever_the_policy_wants(declare: Callable[..., Any]) -> None:
    work = Flaky(RetryJob(delay=0))
    assert declare(work, retry=Retry(5, on=OSError)).enqueue().result(timeout=20) == 2


# -- SnoozeJob ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, Retry(2, **SOON)], ids=["no policy", "policy"])
def test_snooze_job_counts_no_attempt(declare: Callable[..., Any], store: Store, policy: Retry | None) -> None:
    work = Flaky(SnoozeJob(0), SnoozeJob(0.001), SnoozeJob(timedelta(milliseconds=1)))
    job = declare(work, retry=policy).enqueue()
    assert job.result(timeout=20) == 4
    assert work.seen == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert store.attempts(job.id) == []
    assert job.refresh().attempt == 1


def test_snoozed_job_waits_and_can_be_cancelled(declare: Callable[..., Any], store: Store) -> None:
    before = store.clock()
    job = declare(Flaky(SnoozeJob(3600))).enqueue()
    wait_for_state(job, JobState.SCHEDULED)
    assert before + HOUR_MS <= store.record(job.id).run_at <= store.clock() + HOUR_MS
    assert job.cancel()
    assert job.refresh().state is JobState.CANCELLED


# -- CancelJob ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, Retry(5, **SOON)], ids=["no policy", "policy"])
def test_cancel_job_ends_the_job_and_keeps_the_reason(declare: Callable[..., Any], policy: Retry | None) -> None:
    work = Flaky(CancelJob("nothing to do"))
    job = declare(work, retry=policy).enqueue()
    with pytest.raises(JobCancelled, match=f"Job {job.id} was cancelled. nothing to do"):
        job.result(timeout=20)
    assert job.refresh().state is JobState.CANCELLED
    assert len(work.seen) == 1


@pytest.mark.sqlite_only
def test_cancel_job_without_a_reason_is_said_in_plain_words(declare: Callable[..., Any]) -> None:
    with pytest.raises(JobCancelled, match=r"was cancelled. The task cancelled its own job\.$"):
        declare(Flaky(CancelJob())).enqueue().result(timeout=20)


def test_reason_is_bounded_and_storable(declare: Callable[..., Any], rows: Rows) -> None:
    with pytest.raises(JobCancelled, match=r"\\ud800"):
        declare(Flaky(CancelJob("\ud800\0" + "x" * 5_000_000))).enqueue().result(timeout=20)
    assert rows("SELECT length(error) FROM taskworker_job")[0][0] < MAX_TEXT + 1000


# -- in a task group ---------------------------------------------------------------------------------------------------


async def in_task_group(*errors: Exception) -> None:
    """Raise each error in an asyncio task of its own."""

    async def fail(error: Exception) -> None:
        raise error

    async with asyncio.TaskGroup() as group:
        for error in errors:
            group.create_task(fail(error))


@pytest.mark.sqlite_only
def test_snooze_job_inside_a_task_group_counts_no_attempt(task_worker: BackgroundTaskWorker) -> None:
    seen = []

    @task_worker.task
    async def work() -> int:
        seen.append(current_job.attempt)
        if len(seen) < 3:
            await in_task_group(SnoozeJob(0.01), SnoozeJob(0.01))
        return len(seen)

    assert work.enqueue().result(timeout=20) == 3
    assert seen == [1, 1, 1]


@pytest.mark.sqlite_only
def test_retry_job_inside_a_task_group_is_tried_again(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def work() -> int:
        if current_job.attempt < 3:
            await in_task_group(RetryJob(delay=0.01))
        return current_job.attempt

    assert work.enqueue().result(timeout=20) == 3


@pytest.mark.sqlite_only
def test_cancel_job_inside_a_task_group_cancels(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def work() -> None:
        await in_task_group(CancelJob("not wanted any more"))

    with pytest.raises(JobCancelled, match="not wanted any more"):
        work.enqueue().result(timeout=20)


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        (Retry(3, base=0, on=ConnectionError), 3),
        (Retry(3, base=0, on=ValueError), 1),
        (Retry(3, base=0, never=ConnectionError), 1),
        (Retry(3, base=0, on=ExceptionGroup), 3),
    ],
)
@pytest.mark.sqlite_only
def test_policy_looks_into_a_task_group(task_worker: BackgroundTaskWorker, policy: Retry, attempts: int) -> None:
    seen = []

    @task_worker.task(retry=policy)
    async def work() -> None:
        seen.append(current_job.attempt)
        await in_task_group(ConnectionError("upstream away"))

    with pytest.raises(JobFailed, match="ExceptionGroup: .*ConnectionError: upstream away"):
        work.enqueue().result(timeout=20)
    assert len(seen) == attempts


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_bad_delay_fails_the_job_with_the_value(declare: Callable[..., Any]) -> None:
    for delay in (-1, "soon", float("nan"), 1e300, True):
        for control in (SnoozeJob(delay), RetryJob(delay=delay)):
            with pytest.raises(JobFailed, match="DeclarationError: delay is .*Give a"):
                declare(Flaky(control), name=f"{control!r} {delay}", retry=5).enqueue().result(timeout=20)
