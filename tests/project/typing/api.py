"""What a type checker must make of the public API. Checked by ``mypy --strict``; never run.

``assert_type`` says what a name must be; a ``type: ignore`` with its code says what must be an error, for mypy
complains about one that is not needed.
"""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from flask import Flask

from flask_taskworker import At, BackgroundTaskWorker, BlockingTaskWorker, Bound, Cron, Every, Job, Retry, current_job
from flask_taskworker.testing import Drained, EnqueuedJob, Jobs

app = Flask(__name__)
task_worker = BackgroundTaskWorker(app)
blocking = BlockingTaskWorker()


@task_worker.task
def add(x: int, y: int = 0) -> int:
    return x + y


@task_worker.task(queue="web", priority=1, retry=Retry(max_attempts=5), timeout=30, keep=timedelta(days=1))
async def crawl(url: str, *, depth: int) -> list[str]:
    current_job.progress(1, 2, url)
    return [url] * depth


@blocking.task(schedule=[Cron("0 3 * * *"), Every(minutes=5), At(datetime(2030, 1, 1, tzinfo=UTC))])
def nightly() -> None: ...


# A plain call is a plain call.
assert_type(add(1, 2), int)
coroutine = crawl("u", depth=1)
typed: Coroutine[Any, Any, list[str]] = coroutine

# A job knows what its result is.
assert_type(add.enqueue(1), Job[int])
assert_type(add.enqueue(1, y=2).result(timeout=5), int)
assert_type(crawl.enqueue("u", depth=2).result(), list[str])
assert_type(nightly.enqueue(), Job[None])
assert_type(add.using(delay=60, unique="k").enqueue(1), Job[int])
assert_type(add.using(unique=("k", 1), until="started", latest=True).enqueue(1).merged, bool)
assert_type(add.using(unique=7, debounce=timedelta(seconds=3), at_most=9).enqueue(1), Job[int])
add.using(unique="k", until="never")  # type: ignore[arg-type]
task_worker.task(unique="key")(add.function)  # type: ignore[call-overload]
assert_type(crawl.using(run_at=datetime.now(UTC)).enqueue("u", depth=1), Job[list[str]])
assert_type(add.enqueue_many([(1, 2), {"x": 3}]), list[Job[int]])

# A bound call is checked as one that is enqueued.
assert_type(add.bind(1, y=2), Bound[int])
assert_type(crawl.using(priority=1).bind("u", depth=2).using(delay=5, queue="web"), Bound[list[str]])
assert_type(task_worker.enqueue_all([add.bind(1), nightly.bind()], session=None), list[Job[Any]])
add.bind("1")  # type: ignore[arg-type]
add.bind()  # type: ignore[call-arg]
add.bind(1, z=2)  # type: ignore[call-arg]
crawl.bind("u")  # type: ignore[call-arg]
add.bind(1).using(delay="soon")  # type: ignore[arg-type]
add.bind(1).using(later=True)  # type: ignore[call-arg]
task_worker.enqueue_all([add])  # type: ignore[list-item]


async def view() -> None:
    job = await crawl.aenqueue("u", depth=2)
    assert_type(job, Job[list[str]])
    assert_type(await job.aresult(timeout=1), list[str])
    assert_type(await add.using(priority=3).aenqueue(1), Job[int])
    assert_type(await add.aenqueue_many([(1,)]), list[Job[int]])
    assert_type(await task_worker.aenqueue_all([add.bind(1)]), list[Job[Any]])
    await add.aenqueue("1")  # type: ignore[arg-type]


# Wrong arguments are errors.
add.enqueue("1")  # type: ignore[arg-type]
add.enqueue()  # type: ignore[call-arg]
add.enqueue(1, 2, 3)  # type: ignore[call-arg]
add.enqueue(1, z=2)  # type: ignore[call-arg]
crawl.enqueue("u")  # type: ignore[call-arg]
crawl.using(delay=1).enqueue(1, depth=1)  # type: ignore[arg-type]
add.using(delay="soon")  # type: ignore[arg-type]
task_worker.task(retry="always")(add.function)  # type: ignore[arg-type]

# Jobs as they are found.
assert_type(task_worker.get_job(1), Job[Any])
assert_type(add.enqueue(1).cancel(), bool)
assert_type(current_job.attempt, int)

# The helpers for tests know the task's signature, too.
jobs = Jobs(app)
assert_type(jobs.perform(add, 1, y=2), int)
assert_type(jobs.drain(), Drained)
assert_type(jobs.assert_enqueued(add, y=2), EnqueuedJob)
jobs.perform(add, "one")  # type: ignore[arg-type]
