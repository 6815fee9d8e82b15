"""The commands that act on jobs and queues, called in this process."""

from __future__ import annotations

import os
import sys

import pytest

from flask_taskworker import JobState
from flask_taskworker.cli import group, operations
from flask_taskworker.ops import browse
from flask_taskworker.ops.browse import Browser
from flask_taskworker.store.work import PRUNE_BATCH
from tests.support.cli_shop import Answer, Shop, fail, rows_of, write
from tests.support.stored import counts_of


def test_cancel_and_retry_print_the_jobs_with_which_it_was_possible(shop: Shop) -> None:
    one, two = (job.id for job in shop.add.enqueue_many([(1,), (2,)]))
    answer = shop("cancel", str(one), str(two), str(one))
    assert (answer.code, answer.out) == (0, f"{one}\n{two}\n")
    answer = shop("retry", str(one), "77")
    assert (answer.code, answer.out) == (1, f"{one}\n")
    assert answer.err.splitlines()[0] == f"Job {one} is ready."
    assert answer.err.splitlines()[1].startswith("Job 77 never existed")
    answer = shop("cancel", str(two))
    assert (answer.code, answer.out) == (3, "")
    assert answer.err == f"Job {two} is cancelled: it has already finished.\n"
    answer = shop("retry", str(one))
    assert (answer.code, answer.err) == (
        3,
        f"Job {one} is ready: only failed and cancelled jobs can be retried.\n",
    )


def test_retry_goes_on_after_a_job_whose_unique_key_is_taken(shop: Shop) -> None:
    first = shop.add.using(unique="k").enqueue(1)
    first.cancel()
    shop.add.using(unique="k").enqueue(2)
    other = shop.add.enqueue(3)
    other.cancel()
    answer = shop("retry", str(first.id), str(other.id))
    assert (answer.code, answer.out) == (1, f"{other.id}\n")
    assert f"Job {first.id} cannot run again: " in answer.err


HOUR = 3_600_000


def test_retry_of_a_group_takes_its_jobs_and_no_others(shop: Shop) -> None:
    jobs = fail(shop, 1, 2)
    write(shop, "UPDATE taskworker_job SET failure_group = 'other' WHERE id = ?", jobs[0].id)
    (row,) = [row for row in rows_of(shop("failures", "--json")) if row["group"] != "other"]
    answer = shop("retry", "--group", str(row["group"]), "--yes")
    assert (answer.code, answer.out) == (0, "1\n")
    assert [job.refresh().state for job in jobs] == [JobState.FAILED, JobState.READY]


def test_act_on_many_needs_yes_without_a_terminal(shop: Shop) -> None:
    jobs = fail(shop, 1, 2)
    for act in ("retry", "discard"):
        answer = shop(act, "--filter", "state:failed")
        assert (answer.code, answer.out) == (2, "")
        assert f"{act.capitalize()} 2 jobs? Cannot prompt (no terminal). Pass --yes to confirm." in answer.err
    assert {job.refresh().state for job in jobs} == {JobState.FAILED}


def test_act_on_many_does_it_and_prints_how_many(shop: Shop) -> None:
    jobs = fail(shop, 1, 2, 3)
    assert shop("retry", "--filter", f"id:{jobs[0].id}", "--yes") == Answer(0, "1\n", "")
    assert shop("retry", "--filter", "task:shop.*", "--yes").out == "2\n"
    assert {job.refresh().state for job in jobs} == {JobState.READY}
    assert shop("cancel", "--filter", "state:ready", "--yes").out == "3\n"
    assert {job.refresh().state for job in jobs} == {JobState.CANCELLED}
    assert shop("discard", "--filter", "task:*", "--yes").out == "3\n"
    assert shop("jobs").out == ""
    assert shop("restore", "--filter", "task:*", "--yes").out == "3\n"
    assert len(rows_of(shop("jobs", "--json"))) == 3


def test_dry_run_prints_the_jobs_and_changes_nothing(shop: Shop) -> None:
    jobs = fail(shop, 1, 2)
    ready = shop.add.enqueue(1)
    answer = shop("retry", "--filter", "task:*", "--dry-run")
    assert (answer.code, answer.out.split()) == (0, [str(job.id) for job in reversed(jobs)])
    assert answer.err == "Retry would change 2 jobs. Nothing was changed.\n"
    answer = shop("cancel", str(ready.id), str(jobs[0].id), "--dry-run")
    assert (answer.code, answer.out) == (1, f"{ready.id}\n")
    assert ready.refresh().state is JobState.READY
    assert shop("status", "--json").json["counts"]["failed"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say which jobs: give their numbers, or --filter, or --group"),
        (["1", "--filter", "state:failed"], "only one of these"),
        (["--group", "x", "--filter", "state:failed"], "only one of these"),
        (["--filter", ""], "The filter is empty. If you mean every job, say so: --filter 'task:*'"),
        (["--filter", "odd:1"], "The filter word 'odd:1' is not known."),
        (["one"], "'one' is not a valid integer"),
    ],
)
def test_act_on_no_clear_set_of_jobs_is_wrong_usage(shop: Shop, words: list[str], message: str) -> None:
    job = shop.add.enqueue(1)
    job.cancel()
    answer = shop("retry", "--yes", *words)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert job.refresh().state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("act", "text"),
    [("retry", "state:ready"), ("cancel", "state:failed"), ("retry", "task:nope"), ("restore", "task:*")],
)
def test_act_that_is_possible_with_no_job_ends_with_3(shop: Shop, act: str, text: str) -> None:
    shop.add.enqueue(1)
    answer = shop(act, "--filter", text, "--yes")
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith("No job matches in a state that allows this: ")


def test_running_job_cannot_be_discarded(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    write(shop, "UPDATE taskworker_job SET state = 'running', worker_id = 'w'")
    answer = shop("discard", str(job.id))
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith(f"Job {job.id} is running: a job that runs or is discarded already")
    assert shop("cancel", str(job.id)).err == f"Job {job.id} is asked to stop.\n"


def test_discarded_job_that_waited_waits_again_when_restored(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    assert shop("discard", str(job.id)).err == f"Job {job.id} is cancelled, discarded.\n"
    assert shop("jobs").out == ""
    assert "state      cancelled, discarded" in shop("job", str(job.id)).out
    assert shop("restore", str(job.id)).err == f"Job {job.id} is ready.\n"
    assert shop("restore", str(job.id)).code == 3


def test_acts_are_noted_with_the_user(shop: Shop) -> None:
    fail(shop, 1)
    shop("retry", "--filter", "state:failed", "--yes")
    (note,) = Browser(shop.state.store).audit()
    assert (note.action, note.target, note.number) == ("retry", "state:failed", 1)
    assert note.who.endswith(" (flask tasks)")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal of its own")
@pytest.mark.parametrize(("reply", "goes_on"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_terminal_is_asked(reply: bytes, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with (
        open(ours, "r+b", buffering=0) as terminal,
        open(theirs, closefd=False) as stdin,
        open(theirs, "w") as err,
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", err)
        terminal.write(reply)
        if goes_on:
            group.confirm("Retry 2 jobs?", yes=False)
        else:
            with pytest.raises(SystemExit) as ended:
                group.confirm("Retry 2 jobs?", yes=False)
            assert ended.value.code == 1
        seen = b""
        while b"Retry 2 jobs? [y/N]" not in seen:
            seen += terminal.read(1000)


@pytest.mark.parametrize("text", ["state:ready", "shop.add", "queue:default args.x:1"])
def test_act_on_many_is_confirmed_with_the_exact_number(shop: Shop, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for bound in ("WINDOW", "FEW", "ARGS_WINDOW", "MOST"):
        monkeypatch.setattr(browse, bound, 100)
    shop.add.enqueue_many([(1,)] * 1_203)
    asked = shop("cancel", "--filter", text)
    assert asked.code == 2
    assert "Cancel 1,203 jobs?" in asked.err

    def enqueue_more(question: str, *, yes: bool) -> None:
        assert question == "Cancel 1,203 jobs?"
        shop.add.enqueue(1)

    monkeypatch.setattr(operations, "confirm", enqueue_more)
    assert shop("cancel", "--filter", text).out == "1203\n"
    assert counts_of(shop.state.store)["ready"] == 1


def test_purge_is_confirmed_with_the_exact_number(shop: Shop) -> None:
    shop.add.enqueue_many([(1,)] * 3)
    assert shop("cancel", "--yes", "--filter", "state:ready").out == "3\n"
    shop.jump(60_000)
    assert "Delete 3 jobs that ended before " in shop("purge", "--done-before", "1s").err


def test_paused_queue_gives_no_jobs_until_it_is_resumed(shop: Shop) -> None:
    job = shop.crawl.enqueue("x")
    assert shop("pause", "web") == Answer(0, "", "Queue 'web' is paused.\n")
    other = shop.add.enqueue(1)
    shop.task_worker.start()
    other.result(timeout=20)
    assert job.refresh().state is JobState.READY
    assert shop("resume", "web") == Answer(0, "", "Queue 'web' is resumed.\n")
    job.result(timeout=20)


def test_resume_of_what_is_not_paused_ends_with_3(shop: Shop) -> None:
    assert shop("resume", "web") == Answer(3, "", "Queue 'web' is not paused.\n")
    shop("pause", "web")
    assert shop("resume", "web", "default").code == 1


def test_pause_of_a_queue_that_no_task_names_says_so(shop: Shop) -> None:
    assert shop("pause", "typo").err == "Note: no task uses the queue 'typo'.\nQueue 'typo' is paused.\n"
    assert shop("pause", "").code == 2
    assert shop("pause").code == 2


def test_purge_deletes_what_ended_before_and_nothing_else(shop: Shop) -> None:
    old = fail(shop, *range(30))
    shop.jump(2 * HOUR)
    new = fail(shop, 7)
    waiting = shop.add.enqueue(1)
    answer = shop("purge", "--done-before", "1h", "--dry-run")
    assert answer == Answer(0, "30\n", "Nothing was changed.\n")
    answer = shop("purge", "--done-before", "1h")
    assert answer.code == 2
    assert "Pass --yes" in answer.err
    assert shop("purge", "--done-before", "1h", "--yes") == Answer(0, "30\n", "")
    assert [row["id"] for row in rows_of(shop("jobs", "task:shop.add", "--json"))] == [waiting.id, new[0].id]
    assert shop.state.store.attempts(old[0].id) == []
    assert shop("purge", "--done-before", "1h", "--yes").code == 3


def test_job_that_is_put_back_while_others_are_purged_stays(shop: Shop) -> None:
    jobs = fail(shop, *range(PRUNE_BATCH + 1))
    with shop.app.app_context():
        batches = group.operations().purge(shop.state.store.clock() + 1)
        assert next(batches) == PRUNE_BATCH
        assert jobs[-1].retry()
        assert list(batches) == [0]
    assert jobs[-1].refresh().state is JobState.READY


def test_purge_needs_a_period(shop: Shop) -> None:
    assert shop("purge", "--yes").code == 2
    assert shop("purge", "--yes", "--done-before", "long").code == 2


def test_scheduled_job_runs_now(shop: Shop) -> None:
    later, ready = shop.add.using(delay=3600).enqueue(1), shop.add.enqueue(2)
    answer = shop("run-now", str(later.id), str(ready.id))
    assert (answer.code, answer.out) == (1, f"{later.id}\n")
    assert f"Job {ready.id} is ready: only a job that is scheduled" in answer.err
    shop.work()
    assert sorted(shop.ran) == [(1, 2), (2, 2)]
    shop.add.using(delay=3600).enqueue_many([(3,), (4,)])
    assert shop("run-now", "--filter", "task:shop.add", "-y").out == "2\n"
