"""The SQL of steps, in the manner of ``jobs.py``. Pure.

Each is fenced by the claim number: an execution that has lost its job stores nothing.
"""

from __future__ import annotations

from ...core.rows import FAR_MS, NOTICE
from ..schema import UNFINISHED
from .jobs import AT_ONCE, ColumnType, Dialect

_STORE = (
    "INSERT INTO taskworker_step (job_id, name, result, number, claim, began_at, ended_at) "
    "SELECT id, :name, :result, :number, claim, :began_at, :ended_at FROM taskworker_job "
    f"WHERE id = :id AND claim = :claim AND {UNFINISHED} "
)

ADD_STEP = f"{_STORE}ON CONFLICT DO NOTHING RETURNING claim"
"""Store what a step has returned, unless another execution was faster."""

MOVE_CURSOR = (
    f"{_STORE}ON CONFLICT (job_id, name) DO UPDATE SET result = excluded.result, claim = excluded.claim, "
    "ended_at = excluded.ended_at WHERE taskworker_step.claim <= excluded.claim RETURNING claim"
)
"""Store how far a loop is."""

RESULTS = "SELECT name, result FROM taskworker_step WHERE job_id = :id AND kind <> 'sleep' AND ended_at IS NOT NULL"
"""What the steps of a job have returned."""

RESULT = "SELECT result FROM taskworker_step WHERE job_id = :id AND name = :name"
"""What one step has returned."""

LAST_STEPS = (
    f"SELECT name, claim, began_at, ended_at, kind, CASE WHEN s.due_at < {FAR_MS} THEN s.due_at END AS due_at, "
    "substr(result, 1, CAST(:most AS integer)) AS result FROM taskworker_step AS s WHERE job_id = :id "
    "ORDER BY COALESCE(s.ended_at, s.due_at) DESC, claim DESC, number DESC LIMIT :number"
)
"""The last steps of a job, the newest first, with ``:most`` characters of what each has returned."""

BEGIN_SLEEP = (
    "INSERT INTO taskworker_step (job_id, name, number, claim, began_at, due_at, kind) "
    "SELECT id, :name, :number, claim, :began_at, :due_at, 'sleep' FROM taskworker_job "
    f"WHERE id = :id AND claim = :claim AND {UNFINISHED} ON CONFLICT DO NOTHING RETURNING due_at"
)
"""Store when a sleep ends, once."""

DUE_AT = "SELECT due_at FROM taskworker_step WHERE job_id = :id AND name = :name"
"""When a sleep ends."""

SKIP = "UPDATE taskworker_step SET due_at = :now WHERE job_id = :id AND due_at > :now AND ended_at IS NULL RETURNING 1"
"""Have a sleep, or the time of a wait, be over."""

SET_DUE = "UPDATE taskworker_job SET run_at = :now WHERE id = :id AND state = 'scheduled'"
"""Have a job that sleeps or waits go on."""

LOCK_JOB = (
    f"UPDATE taskworker_job SET marks = marks & ~{NOTICE} WHERE id = :id AND claim = :claim AND {UNFINISHED} "
    "RETURNING id"
)
"""Have the job of a wait stay as it is until the transaction ends, and wait no longer."""

BEGIN_WAIT = (
    "INSERT INTO taskworker_step (job_id, name, number, claim, began_at, due_at, kind) "
    "VALUES (:id, :name, :number, :claim, :began_at, :due_at, 'wait') ON CONFLICT DO NOTHING"
)
"""Store that a job waits, and how long."""

WAIT = "SELECT due_at, ended_at, result FROM taskworker_step WHERE job_id = :id AND name = :name"
"""How a wait stands."""

OLDEST_NOTICE = "SELECT id, value FROM taskworker_notice WHERE job_id = :id AND name = :name ORDER BY id LIMIT 1"
"""The next notice for a wait."""

TAKE_NOTICE = "DELETE FROM taskworker_notice WHERE id = :notice"
"""A wait has taken a notice."""

END_WAIT = (
    "UPDATE taskworker_step SET ended_at = :now, result = :result, claim = :claim WHERE job_id = :id AND name = :name"
)
"""A wait has ended with that value."""

MARK_WAITING = f"UPDATE taskworker_job SET marks = marks | {NOTICE} WHERE id = :id"
"""The job is about to wait."""

LOCK_TOLD = "UPDATE taskworker_job SET marks = marks WHERE uid = :uid RETURNING id, finished_at, state"
"""Have a job that gets a notice stay as it is until the transaction ends."""

ADD_NOTICE = (
    "INSERT INTO taskworker_notice (job_id, name, created_at, value) VALUES (:id, :name, :now, :value) RETURNING id"
)
"""Keep a notice for a job."""


def wake(dialect: Dialect) -> str:
    """Of the jobs of a batch, have those run that are scheduled and wait for a notice that is there.

    In a statement of its own, after the job's row was locked: so it sees what was committed until then.
    """
    columns: dict[str, ColumnType] = {"id": "integer"}
    return (
        f"UPDATE taskworker_job SET state = {AT_ONCE}, run_at = 0, marks = marks & ~{NOTICE} "
        f"WHERE id IN (SELECT id FROM {dialect.batch(columns)} AS e) AND state = 'scheduled' AND marks & {NOTICE} <> 0 "
        "AND EXISTS (SELECT 1 FROM taskworker_step AS s JOIN taskworker_notice AS n ON n.job_id = s.job_id "
        "AND n.name = s.name WHERE s.job_id = taskworker_job.id AND s.kind = 'wait' AND s.ended_at IS NULL) "
        "RETURNING id, state, marks, queue, kind"
    )


FORGET_STEPS = "DELETE FROM taskworker_step WHERE job_id = :id"
"""Have a job begin from its beginning."""
