"""Jobs that kill the process they run in: they are found out, and no other job is blamed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from flask_taskworker import JobFailed
from tests.system.processes.parent import BLOCKING, Lab

PILLS = """
    @task_worker.task(name="pill")
    def pill() -> None:
        record("killed")
        os._exit(9)

    @task_worker.task(name="careful", at_most_once=True)
    def careful() -> None:
        record("killed")
        os._exit(9)

    @task_worker.task(name="waiting", at_most_once=True)
    async def waiting() -> None:
        record("start")
        await asyncio.sleep(3600)

    task_worker.start()
"""
IMPORTS = "import asyncio, os"


def declare(lab: Lab) -> None:
    """The tests enqueue by the tasks' names; only the workers run the functions."""
    lab.task_worker.task(name="pill")(_never)
    lab.task_worker.task(name="careful", at_most_once=True)(_never)
    lab.task_worker.task(name="waiting", at_most_once=True)(_never_either)


def _never() -> None:
    raise AssertionError("runs in the worker's process only")


async def _never_either() -> None:
    raise AssertionError("runs in the worker's process only")


def run_until_ended(lab: Lab, jobs: list) -> int:  # type: ignore[type-arg]
    """Start workers one after the other until all jobs have ended. Returns how many died."""
    environment = {
        **os.environ,
        "LAB": str(lab.folder),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    module = lab.write("app", IMPORTS, BLOCKING, "type(task_worker)._timing = Timing(beat=0.1)", PILLS)
    store = lab.task_worker._state().store
    deaths = 0
    process = None
    try:
        while not all(store.record(job.id).state in ("succeeded", "failed") for job in jobs):
            if process is None or process.poll() is not None:
                deaths += process is not None
                assert deaths < 12, "the pill was never found out"
                process = subprocess.Popen([sys.executable, str(module)], env=environment, stderr=subprocess.DEVNULL)
            # The back-off between crashes grows to minutes: what matters here is the counting.
            store.driver.write("UPDATE taskworker_job SET run_at = 1 WHERE state = 'scheduled'", {})
            lab.task_worker._state().client.wake()
            with_deadline(process)
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
    return deaths


def with_deadline(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return


@pytest.mark.slow
def test_pill_is_failed_after_three_deaths_alone_and_its_neighbours_all_succeed(lab: Lab) -> None:
    declare(lab)
    innocents = lab.tasks.add.enqueue_many([(i, i) for i in range(20)])
    pill = lab.task_worker._registry.find("pill").enqueue()
    innocents += lab.tasks.add.enqueue_many([(i, i) for i in range(20)])
    deaths = run_until_ended(lab, [*innocents, pill])
    with pytest.raises(JobFailed) as caught:
        pill.result(timeout=5)
    assert caught.value.kind == "crashed"
    assert [job.result(timeout=5) for job in innocents] == [2 * (i % 20) for i in range(40)]
    print(f"the pill killed {deaths} processes")
    assert deaths == len(lab.evidence("killed")) <= 6


@pytest.mark.slow
def test_job_that_may_run_only_once_is_failed_when_its_process_dies(lab: Lab) -> None:
    declare(lab)
    job = lab.task_worker._registry.find("careful").enqueue()
    run_until_ended(lab, [job])
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=5)
    assert caught.value.kind == "interrupted"
    assert Counter(line["job"] for line in lab.evidence("killed")) == {job.id: 1}


def test_job_that_may_run_only_once_is_failed_when_its_worker_is_asked_to_end(lab: Lab) -> None:
    declare(lab)
    job = lab.task_worker._registry.find("waiting").enqueue()
    child = lab.start("python", str(lab.write("app", IMPORTS, BLOCKING, PILLS)), LAB_TASKER_SHUTDOWN_TIMEOUT="0")
    lab.await_evidence("start")
    child.process.terminate()
    child.wait()
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=5)
    assert caught.value.kind == "interrupted"
