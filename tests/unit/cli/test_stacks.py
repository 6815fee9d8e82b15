"""SIGUSR1: what runs in this process, and where in its code it is."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from flask_taskworker.cli.stacks import stack_of
from tests.support.cli_shop import Shop
from tests.system.cli.test_run import Shop as ProcessShop
from tests.system.cli.test_run import ended, until


def test_stacks_of_running_jobs_begin_in_the_code_of_their_tasks(shop: Shop) -> None:
    go_on = threading.Event()
    began = threading.Semaphore(0)

    async def inner() -> None:
        began.release()
        while not go_on.is_set():
            await asyncio.sleep(0.01)

    @shop.task_worker.task(name="shop.wait_async")
    async def wait_async() -> None:
        await inner()

    @shop.task_worker.task(name="shop.wait_sync")
    def wait_sync() -> None:
        began.release()
        go_on.wait(20)

    wait_async.enqueue()
    wait_sync.enqueue()
    shop.task_worker.start()
    assert began.acquire(timeout=20)
    assert began.acquire(timeout=20)
    (worker,) = shop.task_worker._workers()
    stacks: dict[str, list[str]] = {}

    def both_wait() -> bool:
        # A coroutine that does not wait at this moment shows no more than its own frame.
        stacks.update({job.claim.task: stack_of(task, job) for task, job in worker.running_jobs()})
        return len(stacks["shop.wait_async"]) > 1 and "go_on.wait(20)" in stacks["shop.wait_sync"][0]

    until(both_wait, "they do not wait where they should")
    go_on.set()
    assert "in wait_async" in stacks["shop.wait_async"][0]
    assert "in inner" in stacks["shop.wait_async"][1]
    assert "in wait_sync" in stacks["shop.wait_sync"][0]
    assert "go_on.wait(20)" in stacks["shop.wait_sync"][0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigusr1_writes_the_running_jobs_into_the_log(processes: ProcessShop, workers: str) -> None:
    process = processes.start("tasks", "run", "-w", workers)
    job = processes.enqueue("hold", 60)
    until((processes.folder / "held").exists, "the job did not start")
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    seen = ""
    while "time.sleep(0.01)" not in seen and "in hold" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    assert f"job {job.id} (shop.hold), try 1, sync" in seen
    (processes.folder / "let go").touch()
    assert job.result(timeout=30) == "held"
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0
