"""The built-in task for bulk actions: a page enqueues it, and a worker acts on the jobs batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

from flask import current_app

from ..client.client import Client
from ..client.health import SILENT_MS, info_of, takes
from ..core.current_job import current_job
from ..core.filters import JobFilter
from ..core.jobs import Job
from ..core.tasks import EnqueueOptions, TaskOptions, TaskRegistry
from .browse import Browser
from .operations import BULK, Operations

QUEUE = "bulk"
AT_ONCE = 1_000
"""Jobs that are acted on in the request itself."""
_PRIORITY = 1_000


def act_on_all(action: str, filter: str, who: str, before: int) -> int:
    """Do *action* to every job with a number below *before* that fits, in the name of *who*; returns to how many."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    state = app.extensions["taskworker"]
    registry: TaskRegistry = state.registry
    operations = Operations(app, state.client, registry, who=who)
    chosen = JobFilter.parse(filter, state.store.clock())
    known, asked = registry.parameters_of, {name.lower() for name, _ in chosen.args}

    def names(task_name: str) -> Sequence[str] | None:
        """None of these arguments may be asked of a task that is not known, or covers one of them.

        How many jobs it acts on tells whether a value is the one, and the process that asks may know fewer tasks.
        """
        task = registry.get(task_name)
        covers = task is None or not asked.isdisjoint(name.lower() for name in task.options.sensitive)
        return None if covers else known(task_name)

    batches = operations.act_on_all(action, chosen, before=before, names=names)
    total = 0
    try:
        for changed in batches:
            total += changed
            current_job.progress(total, text=f"{action}: {total:,} jobs")
            current_job.check()
    finally:
        # Stopped half way, what was done is noted at once.
        batches.close()
    return total


def register_bulk(registry: TaskRegistry) -> None:
    """Make the built-in task known to a TaskWorker."""
    registry.register_built_in(act_on_all, TaskOptions(queue=QUEUE), BULK)


def enqueue_bulk(
    registry: TaskRegistry, client: Client, action: str, chosen: JobFilter, who: str, before: int
) -> Job[int]:
    """Have a worker do *action* to every job with a number below *before* that fits.

    Raises ArgumentsError, NotAccepted, OutcomeUnknown.
    """
    task = registry.find(BULK)
    call = task._encode((action, chosen.exact(), who, before), {})
    return client.enqueue(task, (call,), EnqueueOptions(queue=_queue(client), priority=_PRIORITY))[0]


def _queue(client: Client) -> str:
    """A queue that a living worker takes jobs from and that is not paused, as the queue of the jobs may be."""
    browser = Browser(client.store)
    now = client.store.clock()
    queues = browser.queues()
    paused = {queue.name for queue in queues if queue.paused}
    for worker in client.store.workers():
        if worker.state != "alive" or now - worker.beat_at > SILENT_MS:
            continue
        info = info_of(worker)
        names = info.get("queues")
        # One without a list works on all but those that it excludes.
        open_queues = names if isinstance(names, list) else [QUEUE, "default", *(queue.name for queue in queues)]
        for name in map(str, open_queues):
            if name not in paused and takes(info, name):
                return name
    return QUEUE
