"""Keys: how a call finds the job that stands for it already.

A key has one row, which names its job. Each call with the key writes that row first, so such calls come one after
another. Whether the job may stand for one more is decided by the UPDATE that makes it so, never before it: the job
starts after the call was accepted, or another one is stored.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.rows import JobRecord, NewJob
from ..core.unique import Key
from ..errors import NotAccepted
from .admission import touch
from .driver import Run
from .statements import keys as statements
from .statements.jobs import Dialect


def add_under_key(dialect: Dialect, run: Run, job: NewJob, key: Key, add: Callable[[NewJob], JobRecord]) -> JobRecord:
    """The job that stands for the call: the one that has the key, or *job*, which *add* stores.

    Inside a transaction. Raises NotAccepted where the job that has the key has it on other terms.
    """
    now = job.created_at
    ((job_id, until, ends_at),) = run(statements.TAKE_KEY, {"key": key.name, "until": key.until, "now": now})
    if job_id:
        if until != key.until:
            _refuse(key, until, run(statements.STANDS, {"id": job_id, "always": 0}))
        elif found := _standing(dialect, run, job, key, job_id, is_within=bool(key.within) and (ends_at or 0) > now):
            return found
    _refuse(key, "finished", run(statements.HAS_KEY, {"key": key.name}))
    record = add(job)
    ends_at = now + key.within if key.within else None
    run(statements.SET_KEY, {"key": key.name, "id": record.id, "until": key.until, "ends_at": ends_at, "now": now})
    return record


def _standing(dialect: Dialect, run: Run, job: NewJob, key: Key, job_id: int, *, is_within: bool) -> JobRecord | None:
    """The job *job_id*, if it stands for this call, too."""
    if key.until == "started":
        periods = {"debounce": key.debounce, "at_most": key.at_most}
        call = {"id": job_id, "now": job.created_at, "args": job.args, "priority": job.priority, "latest": key.latest}
        for row in run(statements.merge(dialect), call | periods):
            record = JobRecord._make(row)
            touch(dialect, run, [(record.id, record.state, record.marks)])
            return record
    if key.until == "finished" or is_within:
        for row in run(statements.STANDS, {"id": job_id, "always": int(is_within)}):
            return JobRecord._make(row)
    return None


def _refuse(key: Key, until: str, rows: list[tuple[object, ...]]) -> None:
    for row in rows:
        raise NotAccepted(
            f"Job {row[0]} has the key {key.name!r} until it has {until}, and this call wants it until it has "
            f"{key.until}. Use one until=… for all calls with that key."
        )
