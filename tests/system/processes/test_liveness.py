"""Workers that are killed, frozen or asked to stop from afar: what another process makes of it."""

from __future__ import annotations

import signal
import time

import pytest

from tests.system.processes.parent import BACKGROUND, BLOCKING, Child, Lab

SOON = 20.0
"""Seconds: a death is noticed within a beat of 1 s, without the lock in 30; what it took is printed."""

FAST = "type(task_worker)._timing = Timing(beat=0.1)"


def worker(lab: Lab, name: str = "app", *body: str) -> Child:
    """A blocking worker that has registered."""
    child = lab.start("python", str(lab.write(name, BLOCKING, *body, "task_worker.start()")))
    lab.await_state(lambda: any(row.pid == child.pid for row in lab.workers()))
    return child


def rows(lab: Lab, *jobs: object) -> list[tuple[str, int, int, int]]:
    found = [lab.row(job) for job in jobs]
    return [(row.state, row.claim, row.failures, row.crashes) for row in found]


@pytest.mark.slow
def test_living_worker_rescues_the_jobs_of_a_killed_one(lab: Lab) -> None:
    first = worker(lab)
    jobs = [lab.tasks.hold.enqueue("g"), lab.tasks.ahold.enqueue("g")]
    lab.await_evidence("start", 2)
    second = worker(lab)
    first.send(signal.SIGKILL)
    killed = time.time()
    again = lab.await_evidence("start", 4)[2:]
    print(f"run again {max(line['at'] for line in again) - killed:.2f} s after the kill")
    assert max(line["at"] for line in again) - killed < SOON
    assert [(line["pid"], line["claim"], line["attempt"]) for line in again] == [(second.pid, 2, 1)] * 2
    lab.open_gate("g")
    assert [job.result(timeout=30) for job in jobs] == ["g", "g"]
    assert rows(lab, *jobs) == [("succeeded", 2, 0, 1)] * 2
    assert [row.pid for row in lab.workers()] == [second.pid]


def test_restart_after_all_were_killed_rescues_at_its_boot(lab: Lab) -> None:
    running_jobs = [worker(lab), worker(lab)]
    jobs = [lab.tasks.hold.enqueue("g") for _ in range(4)]
    lab.await_evidence("start", 4)
    for child in running_jobs:
        child.send(signal.SIGKILL)
        child.process.wait()
    # With a beat an hour it can only be the boot that rescues.
    worker(lab, "next", "type(task_worker)._timing = Timing(beat=3600)")
    again = lab.await_evidence("start", 8)[4:]
    lab.open_gate("g")
    assert [job.result(timeout=30) for job in jobs] == ["g"] * 4
    assert {(line["claim"], line["attempt"]) for line in again} == {(2, 1)}
    assert rows(lab, *jobs) == [("succeeded", 2, 0, 1)] * 4


def test_background_worker_of_a_killed_web_process_is_rescued_too(lab: Lab) -> None:
    web = lab.start("python", str(lab.write("web", BACKGROUND, "task_worker.start()\nthreading.Event().wait()")))
    job = lab.tasks.hold.enqueue("g")
    lab.await_evidence("start")
    web.send(signal.SIGKILL)
    second = worker(lab)
    lab.open_gate("g")
    assert job.result(timeout=30) == "g"
    assert lab.evidence("end")[0]["pid"] == second.pid
    assert rows(lab, job) == [("succeeded", 2, 0, 1)]


def test_job_that_was_cancelled_meanwhile_is_not_run_again(lab: Lab) -> None:
    first = worker(lab)
    job = lab.tasks.hold.enqueue("never")
    lab.await_evidence("start")
    first.send(signal.SIGSTOP)
    assert job.cancel()
    first.send(signal.SIGKILL)
    first.process.wait()
    worker(lab)
    lab.await_state(lambda: lab.row(job).state == "cancelled")
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    assert len([line for line in lab.evidence("start") if line["job"] == job.id]) == 1


@pytest.mark.slow
def test_frozen_worker_is_given_up_and_its_late_endings_are_fenced(lab: Lab) -> None:
    first = worker(lab, "first", FAST)
    sync, coroutine = lab.tasks.hold_claim.enqueue("g"), lab.tasks.ahold.enqueue("g")
    lab.await_evidence("start", 2)
    first.send(signal.SIGSTOP)
    second = worker(lab, "second", FAST)
    lab.await_evidence("start", 4)
    held = [("running", 2, 0, 1)] * 2
    assert rows(lab, sync, coroutine) == held
    # The sync job of the frozen worker ends while the other runs it again; the coroutine is cancelled.
    lab.open_gate("g-1")
    first.send(signal.SIGCONT)
    lab.await_state(lambda: "fenced" in first.output and "is back under this new id" in first.output)
    assert rows(lab, sync, coroutine) == held
    lab.open_gate("g-2")
    lab.open_gate("g")
    assert (sync.result(timeout=30), coroutine.result(timeout=30)) == (2, "g")
    assert rows(lab, sync, coroutine) == [("succeeded", 2, 0, 1)] * 2
    # Under its new id it goes on working.
    lab.await_workers(2)
    second.send(signal.SIGTERM)
    second.wait()
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    assert lab.evidence("end")[-1]["pid"] == first.pid
    assert [row.pid for row in lab.workers()] == [first.pid]


@pytest.mark.slow
def test_thawed_worker_tells_its_jobs_that_they_are_lost(lab: Lab) -> None:
    first = worker(
        lab, "first", """
        from flask_taskworker import LeaseLost

        @task_worker.task(name="lab.watchful")
        def watchful():
            record("start")
            try:
                until(lambda: current_job.check())
            except LeaseLost:
                record("lost")
                raise
        """ + FAST,
    )  # fmt: skip
    watchful = lab.task_worker.task(name="lab.watchful")(lambda: None)
    job = watchful.enqueue()
    lab.await_evidence("start")
    first.send(signal.SIGSTOP)
    worker(lab, "second", FAST)
    lab.await_state(lambda: lab.row(job).state != "running" or lab.row(job).claim > 1)
    first.send(signal.SIGCONT)
    assert lab.await_evidence("lost")[0]["pid"] == first.pid


@pytest.mark.slow
def test_all_workers_frozen_together_declare_no_one_dead(lab: Lab) -> None:
    running_jobs = [worker(lab, "one", FAST), worker(lab, "two", FAST)]
    job = lab.tasks.hold.enqueue("g")
    lab.await_evidence("start")
    ids = {row.id for row in lab.workers()}
    for child in running_jobs:
        child.send(signal.SIGSTOP)
    frozen = time.monotonic()
    while time.monotonic() - frozen < 3.5:  # longer than the lease of 30 fast beats
        time.sleep(0.1)
    for child in running_jobs:
        child.send(signal.SIGCONT)
    lab.open_gate("g")
    assert job.result(timeout=30) == "g"
    assert {row.id for row in lab.workers()} == ids
    assert rows(lab, job) == [("succeeded", 1, 0, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_cancel_from_another_process_reaches_a_running_job(lab: Lab, kind: str) -> None:
    worker(
        lab, "app", """
        @task_worker.task(name="lab.sync")
        def sync():
            record("start")
            until(lambda: current_job.cancelled)
            record("seen")
            current_job.check()

        @task_worker.task(name="lab.async")
        async def coroutine():
            record("start")
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                record("seen")
                raise
        """,
    )  # fmt: skip
    if kind == "sync":
        job = lab.task_worker.task(name="lab.sync")(lambda: None).enqueue()
    else:

        async def nothing() -> None: ...

        job = lab.task_worker.task(name="lab.async")(nothing).enqueue()
    lab.await_evidence("start")
    asked = time.time()
    assert job.cancel()
    seen = lab.await_evidence("seen")[0]["at"] - asked
    print(f"the {kind} job learned of it {seen:.2f} s later")
    lab.await_state(lambda: lab.row(job).state == "cancelled")
    assert seen < SOON
