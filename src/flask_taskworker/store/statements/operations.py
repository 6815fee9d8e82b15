"""The SQL of what people do to jobs, queues and schedules, in the manner of ``statements.py``. Pure.

A batch statement leaves alone the jobs that are in no state for it, and returns (id, state, marks) of the others.
*fits* is what else must hold of each at that moment, as ``browse_statements.conditions`` says it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...core.rows import WAITS
from ..schema import FINISHED, UNFINISHED
from .jobs import AS_NEW, AT_ONCE, NEEDED, WITHOUT_ROOM, Dialect

_KEY_FREE = (
    "(unique_key IS NULL OR NOT EXISTS (SELECT 1 FROM taskworker_job AS other WHERE other.unique_key = "
    f"taskworker_job.unique_key AND other.unique_key IS NOT NULL AND other.{UNFINISHED}))"
)


def _chosen(dialect: Dialect, fits: str = "true") -> str:
    return f"id IN (SELECT id FROM {dialect.batch({'id': 'integer'})} AS e) AND {fits}"


def retry(dialect: Dialect, fits: str) -> str:
    """Put failed and cancelled jobs back into their queues; not those of :func:`special_retries`, nor acts on many."""
    return (
        f"UPDATE taskworker_job SET state = {AS_NEW}, {WITHOUT_ROOM}, run_at = :now, failures = 0, crashes = 0, "
        "solo = 0, "
        "solo_crashes = 0, cancel_requested = 0, progress = NULL, result = NULL, error = NULL, failure_kind = NULL, "
        "failure_group = NULL, discarded = 0, started_at = NULL, finished_at = NULL, expires_at = NULL "
        f"WHERE {_chosen(dialect, fits)} AND state IN ('failed', 'cancelled') AND unique_key IS NULL "
        "AND task NOT IN ('flask_taskworker.mail.deliver', 'flask_taskworker.bulk') RETURNING id, state, marks"
    )


def special_retries(dialect: Dialect, fits: str) -> str:
    """The failed and cancelled ones that are put back one by one: of two with one unique key only one can come back,
    and with the job of a mail its recipients must be opened again."""
    return (
        f"SELECT id FROM taskworker_job WHERE {_chosen(dialect, fits)} AND state IN ('failed', 'cancelled') "
        "AND (unique_key IS NOT NULL OR task = :mail)"
    )


_DUE = "CAST(:run_at AS bigint)"
CHANGE = (
    "UPDATE taskworker_job SET priority = COALESCE(:priority, priority), queue = COALESCE(:queue, queue), "
    f"args = COALESCE(:args, args), run_at = COALESCE({_DUE}, run_at), "
    f"state = CASE WHEN {_DUE} IS NULL THEN state WHEN {_DUE} > 0 THEN 'scheduled' ELSE {AT_ONCE} END "
    "WHERE id = :id AND claim = 0 AND state IN ('scheduled', 'held', 'ready') "
    f"AND ({_DUE} IS NULL OR marks & {WAITS} = 0) RETURNING id, state, marks, queue, kind"
)
"""Change a job that no worker has taken; not when one is due that waits for others. NULL leaves a value as it is."""

MOVE_PLACE = "UPDATE taskworker_permit SET queue = :queue WHERE job_id = :id"
"""A limited job has another queue now."""


def cancel(dialect: Dialect, fits: str) -> str:
    """Cancel waiting jobs, ask running ones to stop."""
    return (
        "UPDATE taskworker_job SET cancel_requested = 1, "
        "state = CASE WHEN state = 'running' THEN state ELSE 'cancelled' END, "
        "finished_at = CASE WHEN state = 'running' THEN NULL ELSE :now END, "
        "expires_at = CASE WHEN state = 'running' THEN NULL ELSE :expires_at END "
        f"WHERE {_chosen(dialect, fits)} AND {UNFINISHED} RETURNING id, state, marks"
    )


def discard(dialect: Dialect, fits: str) -> str:
    """Discard jobs: hide finished ones, cancel and hide waiting ones. They are pruned when their time comes."""
    return (
        f"UPDATE taskworker_job SET discarded = CASE WHEN {FINISHED} THEN 1 ELSE 2 END, "
        f"finished_at = COALESCE(finished_at, :now), expires_at = COALESCE(expires_at, :expires_at), "
        f"state = CASE WHEN {FINISHED} THEN state ELSE 'cancelled' END "
        f"WHERE {_chosen(dialect, fits)} AND discarded = 0 AND state <> 'running' RETURNING id, "
        "CASE WHEN discarded = 2 THEN 'cancelled' ELSE 'discarded' END, marks"
    )


_WAITED = "discarded = 2 AND state = 'cancelled'"
_RESTORE = (
    f"UPDATE taskworker_job SET state = CASE WHEN {_WAITED} THEN CASE WHEN run_at > :now THEN 'scheduled' "
    f"ELSE {AS_NEW} END ELSE state END, {WITHOUT_ROOM}, "
    f"finished_at = CASE WHEN {_WAITED} THEN NULL ELSE finished_at END, "
    f"expires_at = CASE WHEN {_WAITED} THEN NULL ELSE expires_at END, discarded = 0 WHERE {{}} "
    "RETURNING id, state, marks"
)


def restore(dialect: Dialect, fits: str) -> str:
    """Take discarded jobs back; those that waited wait again, but for those of :func:`special_restores`."""
    return _RESTORE.format(f"{_chosen(dialect, fits)} AND discarded <> 0 AND (discarded = 1 OR unique_key IS NULL)")


def special_restores(dialect: Dialect, fits: str) -> str:
    """The discarded jobs that waited and have unique keys, which may be taken: they come back one by one."""
    return f"SELECT id FROM taskworker_job WHERE {_chosen(dialect, fits)} AND discarded = 2 AND unique_key IS NOT NULL"


def restore_one(fits: str) -> str:
    """Take one discarded job back, ``:job_id``, if its unique key is free."""
    return _RESTORE.format(f"id = :job_id AND {fits} AND discarded <> 0 AND (discarded = 1 OR {_KEY_FREE})")


def lock_fitting(dialect: Dialect, fits: str) -> str:
    """Whether the job ``:job_id`` fits, which then stays so until the transaction ends."""
    locked = "" if dialect.name == "sqlite" else " FOR UPDATE"
    return f"SELECT id FROM taskworker_job WHERE id = :job_id AND {fits}{locked}"


def run(dialect: Dialect, fits: str) -> str:
    """Have scheduled jobs run now, but for those that wait for others."""
    return (
        f"UPDATE taskworker_job SET state = {AT_ONCE}, run_at = :now WHERE {_chosen(dialect, fits)} "
        f"AND state = 'scheduled' AND marks & {WAITS} = 0 RETURNING id, state, marks"
    )


BATCH: Mapping[str, Callable[[Dialect, str], str]] = {
    "retry": retry,
    "cancel": cancel,
    "discard": discard,
    "restore": restore,
    "run": run,
}
SPECIAL: Mapping[str, Callable[[Dialect, str], str]] = {"retry": special_retries, "restore": special_restores}
"""The jobs of a batch with which the act is done one by one."""


DISCARDED_KEY_TAKEN = f"SELECT 1 FROM taskworker_job WHERE id = :id AND discarded = 2 AND NOT {_KEY_FREE}"
"""Whether a discarded job waits for its unique key."""


ENDED_BEFORE = (
    f"SELECT id, CASE WHEN {FINISHED} AND finished_at < :before THEN 1 ELSE 0 END FROM taskworker_job "
    "WHERE id > :after ORDER BY id LIMIT :number"
)
"""The next ``:number`` jobs after ``:after`` by id, and of each whether it ended before ``:before``."""


def purge(dialect: Dialect) -> str:
    """Delete the jobs of a batch that ended before ``:before``, but for those that others need."""
    fits = f"{FINISHED} AND finished_at < :before AND NOT ({NEEDED})"
    return f"DELETE FROM taskworker_job WHERE {_chosen(dialect)} AND {fits} RETURNING id, marks"


PAUSE_QUEUE = (
    "INSERT INTO taskworker_queue (name, paused, paused_at, paused_by, paused_until) "
    "VALUES (:name, 1, :now, :who, :until) "
    "ON CONFLICT (name) DO UPDATE SET paused = 1, paused_until = excluded.paused_until, "
    "paused_at = CASE WHEN taskworker_queue.paused = 1 THEN taskworker_queue.paused_at ELSE excluded.paused_at "
    "END, paused_by = CASE WHEN taskworker_queue.paused = 1 THEN taskworker_queue.paused_by "
    "ELSE excluded.paused_by END RETURNING name"
)
"""Pause a queue, until ``:until`` where that is not NULL; who paused one that is paused already stays the same."""


RESUME_QUEUE = (
    "UPDATE taskworker_queue SET paused = 0, paused_at = NULL, paused_by = NULL, paused_until = NULL "
    "WHERE name = :name AND paused = 1 RETURNING name"
)
"""Resume a queue."""


PAUSE_SCHEDULE = "UPDATE taskworker_schedule SET paused = 1 WHERE name = :name AND paused = 0 RETURNING name"
"""Pause a schedule."""


UNFINISHED_OF_SCHEDULE = f"SELECT 1 FROM taskworker_job WHERE schedule = :name AND {UNFINISHED} LIMIT 1"
"""Whether a job of the schedule is unfinished."""


RESUME_SCHEDULE = (
    "UPDATE taskworker_schedule SET paused = 0, next_at = :next_at WHERE name = :name AND paused = 1 RETURNING name"
)
"""Resume a schedule at its next time."""


MOVE_SCHEDULE = (
    "UPDATE taskworker_schedule SET next_at = :next_at WHERE name = :name AND next_at = :expected RETURNING name"
)
"""Advance a schedule, unless another worker has."""


NOTE = (
    "INSERT INTO taskworker_audit (at, who, action, target, number) VALUES (:at, :who, :action, :target, :number) "
    "RETURNING id"
)
"""Note an act."""


ADD_TO_NOTE = "UPDATE taskworker_audit SET number = number + :number WHERE id = :id"
"""Note that an act has gone on."""


ALERTS = "SELECT value FROM taskworker_meta WHERE name = 'alerts'"
"""The alerts that hold, as JSON."""

CHANGE_ALERTS = (
    "INSERT INTO taskworker_meta (name, value) VALUES ('alerts', :value) "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE taskworker_meta.value = :before RETURNING name"
)
"""Store the alerts that hold, unless another process has changed them since ``:before``: then no row comes back."""

REMOVE_NOTES = "DELETE FROM taskworker_audit WHERE at < :before"
"""Delete the notes of acts before ``:before``."""
