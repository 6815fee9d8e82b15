"""The SQL of steps, in the manner of ``jobs.py``. Pure.

Each is fenced by the claim number: an execution that has lost its job stores nothing.
"""

from __future__ import annotations

from ..schema import UNFINISHED

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

RESULTS = "SELECT name, result FROM taskworker_step WHERE job_id = :id"
"""What the steps of a job have returned."""

RESULT = "SELECT result FROM taskworker_step WHERE job_id = :id AND name = :name"
"""What one step has returned."""

LAST_STEPS = (
    "SELECT name, claim, began_at, ended_at, substr(result, 1, CAST(:most AS integer)) AS result FROM taskworker_step "
    "WHERE job_id = :id ORDER BY ended_at DESC, claim DESC, number DESC LIMIT :number"
)
"""The last steps of a job, the newest first, with ``:most`` characters of what each has returned."""

FORGET_STEPS = "DELETE FROM taskworker_step WHERE job_id = :id"
"""Have a job begin from its beginning."""
