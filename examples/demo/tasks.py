"""Every task of the demo. Declared before any app exists: the factory in ``app.py`` brings the app."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flask_taskworker import BackgroundTaskWorker, Cron, Every, JobFailed, Retry, current_job

from . import index
from .messages import mail, make_batch
from .parsing import FileFacts, examine

task_worker = BackgroundTaskWorker()
log = logging.getLogger(__name__)

BATCH = 25
"""How many files are written into the index at once."""


# --- Indexing -----------------------------------------------------------------------------------------------------


# Before Python 3.13 threads that parse at once may get a SystemError, for no fault of the file: python/cpython#106905.
@task_worker.task(queue="parse", retry=Retry(max_attempts=10, base=0.1, on=SystemError))
def parse_file(name: str, path: str) -> FileFacts:
    """A sync job: it runs in a thread. For a file that is not Python it raises, which is not retried: the job fails."""
    return examine(name, Path(path).read_bytes())


@task_worker.task(queue="gather")
async def gather_package(package: str, jobs: dict[str, int]) -> int:
    """An async job: it waits for the jobs that parse a package's files, and writes what they found into the index.

    A hundred of these may wait at once, and cost no thread. *jobs* is the job's id for each file's name. What is
    written twice changes nothing, so the job may be repeated, as any job may after a crash.
    """
    facts: list[FileFacts] = []
    broken: dict[str, str] = {}
    log.info("waiting for %d files of %s", len(jobs), package)
    for done, (name, job_id) in enumerate(jobs.items(), 1):
        try:
            facts.append(await task_worker.get_job(job_id).aresult())
        except JobFailed as failure:
            broken[name] = f"{failure.exception_type}: {failure.exception_message}"
        if done % BATCH == 0 or done == len(jobs):
            await index.add_files(package, facts, broken)
            log.info("%d of %d files of %s are in the index", done, len(jobs), package)
            facts, broken = [], {}
        current_job.progress(done, len(jobs), name)
    return len(jobs)


@task_worker.task(queue="report", schedule=Every(seconds=1))
async def report_progress() -> None:
    """A schedule makes this job each second; ``fire_at`` is the moment that it stands for."""
    assert current_job.fire_at is not None
    late = datetime.now(UTC) - current_job.fire_at
    await index.add_report(current_job.fire_at.isoformat(), late.total_seconds() * 1000)


@task_worker.task(queue="report", schedule=Cron("30 2 * * *", timezone="Europe/Berlin"))
def forget_reports() -> int:
    """Each night, also in the one in spring that has no half past two. It may be enqueued at any other time, too."""
    return index.forget_reports(datetime.now(UTC) - timedelta(days=1))


# --- Mail ---------------------------------------------------------------------------------------------------------


@task_worker.task(queue="batch")
async def send_batch(number: int) -> dict[str, str]:
    """Sends many mails over a few connections; the recipient of each that was accepted, by its Message-ID.

    The messages come from a generator, and are gone once they are sent: a million would take no more memory.
    """
    functions = await asyncio.to_thread(index.longest_functions, number)
    sent: dict[str, str] = {}
    async for result in mail.asend_many(make_batch(number, functions)):
        for address in result.accepted:
            sent[result.message_id] = address
    return sent


# --- What may go wrong --------------------------------------------------------------------------------------------


@task_worker.task(retry=Retry(max_attempts=5, base=0.1, on=OSError))
def fingerprint(path: str) -> str:
    """Reads from a disk that answers only at the third attempt. Other errors than OSError would not be retried."""
    if current_job.attempt < 3:
        log.info("asking the disk for %s", path)
        raise OSError(f"The disk did not answer at attempt {current_job.attempt}.")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@task_worker.task(timeout=0.3)
async def wait_too_long() -> None:
    """Fails: it takes longer than it may."""
    await asyncio.sleep(60)


@task_worker.task
async def watch() -> None:
    """Never ends by itself. An async job that is cancelled is stopped at its next await."""
    for look in itertools.count(1):
        current_job.progress(look, text=f"looked {look} times")
        await asyncio.sleep(0.05)


@task_worker.task
def watch_in_thread() -> None:
    """Never ends by itself either. No thread can be stopped from outside, so a sync job has to ask."""
    for look in itertools.count(1):
        current_job.progress(look, text=f"looked {look} times")
        current_job.check()
        time.sleep(0.05)


@task_worker.task(queue="fragile")
async def survive() -> int:
    """Runs for a minute the first time, in a process that gets killed meanwhile; the second time it ends at once.

    ``claim`` counts how often the job was begun, for whatever reason.
    """
    if current_job.claim == 1:
        await asyncio.sleep(60)
    return current_job.claim


# --- Speed --------------------------------------------------------------------------------------------------------


@task_worker.task
async def ping() -> float:
    """When it began, on the clock that all threads of a process share."""
    return time.perf_counter()


@task_worker.task
async def no_op(number: int) -> int:
    return number
