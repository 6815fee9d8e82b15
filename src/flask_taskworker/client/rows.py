"""The rows of jobs to be stored."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.batches import Batch, Event
from ..core.clock import to_ms
from ..core.current_job import running_job
from ..core.rows import CALLS, CHILD, EXPIRES, FAR_MS, MEMBER, THEN, WAITS, After, Member, NewJob, read_origin
from ..core.tasks import EnqueueOptions, Task
from ..core.unique import PLAIN, Key, key_text
from ..store.sql import to_duration_ms


def new_jobs(
    task: Task[..., Any, Any], calls: Sequence[str], options: EnqueueOptions, now: int, origin: str | None
) -> list[NewJob]:
    """The rows for encoded calls of *task*: alike but for arguments and uid."""
    limit = task.options.limit
    if len(calls) < 2 or task.options.unique is not None or (limit is not None and limit.key is not None):
        return [new_job(task, args, options, now, origin) for args in calls]
    pattern = new_job(task, "", options, now, origin)
    before, after = pattern[1:_ARGS], pattern[_ARGS + 1 :]
    return [
        NewJob._make((uid, *before, args, *after)) for uid, args in zip(new_uids(now, len(calls)), calls, strict=True)
    ]


_ARGS = NewJob._fields.index("args")


def new_job(
    task: Task[..., Any, Any], args: str, options: EnqueueOptions, now: int, origin: str | None = None
) -> NewJob:
    """The row for one encoded call of *task*."""
    timeout = task.options.timeout
    # 0, not now, for a job that is due: a clock that is set back must not hide it.
    run_at = 0 if options.run_at is None else to_ms(options.run_at)
    if options.delay:
        run_at = now + to_duration_ms(options.delay)
    key = None
    if options.unique is not None or task.options.unique is not None:
        key = _key(task, args, options)
        if key.debounce:
            run_at = now + min(key.debounce, key.at_most or key.debounce)
    marks, lane = task._lane(args, options.limit_key)
    calls, origin = with_callbacks(task, now, origin)
    marks |= calls
    run_at = run_at if run_at > now else 0
    expires = options.expires or task.options.expires
    if expires is not None:
        origin = json.dumps({**read_origin(origin), EXPIRES: to_duration_ms(expires)})
    member = after = None
    if options.batch is not None:
        marks |= MEMBER
        job = running_job()
        member = Member(options.batch.id, job.claim.id if job is not None else 0)
    if options.after:
        marks |= WAITS | CHILD
        parents = {-one.id if isinstance(one, Batch) else one.id for one in options.after}
        run_at, after = FAR_MS, After(tuple(sorted(parents)), options.when or "succeeded", run_at)
    return NewJob(
        uid=options.uid or new_uid(now),
        task=task.name,
        queue=options.queue or task.options.queue,
        kind=task.kind,
        priority=task.options.priority if options.priority is None else options.priority,
        run_at=run_at,
        args=args,
        max_attempts=task.max_attempts,
        timeout=None if timeout is None else to_duration_ms(timeout),
        created_at=now,
        unique_key=key.name if key is not None and key.is_plain else None,
        at_most_once=int(task.options.at_most_once),
        origin=origin,
        marks=marks,
        lane=lane,
        key=None if key is None or key.is_plain else key,
        member=member,
        after=after,
    )


def with_callbacks(task: Task[..., Any, Any], now: int, origin: str | None) -> tuple[int, str | None]:
    """The mark of a new job that calls others at its end, and its origin together with these."""
    if not (calls := task.options.callbacks):
        return 0, origin
    jobs = {event: new_job(call.task, call.args, call.options, now) for event, call in calls.items()}
    return CALLS, json.dumps({**read_origin(origin), THEN: calls_of(jobs)})


def calls_of(jobs: Mapping[Event, NewJob]) -> dict[Event, tuple[object, ...]]:
    """Callbacks as a batch, or a job, keeps them."""
    return {event: job[:-2] for event, job in jobs.items()}


def _key(task: Task[..., Any, Any], args: str, options: EnqueueOptions) -> Key:
    """The key of a call: the one that it was given, or the one that the task makes of its arguments."""
    own, name = task.options.unique, options.unique
    if name is None and own is not None and own.key is not None:
        name = key_text(task._key_value(own.key, args))
    return (options._merging or own or PLAIN)._for_key(unique_key(task.name, name or ""), named=options.uid is not None)


def unique_key(task: str, key: str) -> str:
    """What is unique among unfinished jobs: the task and the key, which stay apart where the task has a colon too."""
    escaped = task.replace("\\", "\\\\").replace(":", "\\:")
    return f"{escaped}:{key}"


def new_uid(now: int) -> str:
    """A random name that begins with the time, so that an index of them grows at its end (as UUIDv7, RFC 9562)."""
    return f"{now:012x}{os.urandom(10).hex()}"


def new_uids(now: int, number: int) -> list[str]:
    """As :func:`new_uid`, many at once."""
    time, chance = f"{now:012x}", os.urandom(10 * number).hex()
    return [time + chance[i : i + 20] for i in range(0, 20 * number, 20)]
