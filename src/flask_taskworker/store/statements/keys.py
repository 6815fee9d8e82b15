"""The SQL of keys under which one job stands for several calls, in the manner of ``jobs.py``. Pure."""

from __future__ import annotations

from ..schema import UNFINISHED
from .jobs import RECORD, Dialect

TAKE_KEY = (
    "INSERT INTO taskworker_key (key, job_id, until, first_at, last_at) VALUES (:key, 0, :until, :now, :now) "
    "ON CONFLICT (key) DO UPDATE SET calls = taskworker_key.calls + 1, last_at = excluded.last_at "
    "RETURNING job_id, until, ends_at"
)
"""Lock a key, so that calls with it come one after another, and count this one: the job that has the key, or 0."""

SET_KEY = (
    "UPDATE taskworker_key SET job_id = :id, until = :until, ends_at = :ends_at, calls = 1, first_at = :now, "
    "last_at = :now WHERE key = :key"
)
"""This job has the key from now on."""

STANDS = f"SELECT {RECORD} FROM taskworker_job WHERE id = :id AND (:always = 1 OR {UNFINISHED})"
"""The job, if it is unfinished; with ``:always`` in any state."""

HAS_KEY = f"SELECT id FROM taskworker_job WHERE unique_key = :key AND {UNFINISHED}"
"""An unfinished job that has the key by the unique index."""


def merge(dialect: Dialect) -> str:
    """Let the job ``:id`` stand for one more call, if no try of it has begun and ended badly, and none runs.

    With ``:latest`` it gets the arguments of the call, with ``:debounce`` its due time. A claim that was faster makes
    this match nothing: PostgreSQL looks at the row again when its lock is free.
    """
    least, most = ("min", "max") if dialect.name == "sqlite" else ("least", "greatest")
    due = f"{least}(:now + :debounce, CASE WHEN :at_most > 0 THEN created_at + :at_most ELSE :now + :debounce END)"
    return (
        "UPDATE taskworker_job SET args = CASE WHEN :latest = 1 THEN :args ELSE args END, "
        f"priority = {most}(priority, :priority), "
        f"run_at = CASE WHEN :debounce > 0 THEN {due} ELSE run_at END, "
        f"state = CASE WHEN :debounce > 0 AND {due} > :now THEN 'scheduled' ELSE state END "
        "WHERE id = :id AND state IN ('scheduled', 'held', 'ready') AND failures = 0 AND crashes = 0 "
        f"RETURNING {RECORD}"
    )


GONE = (
    "SELECT count(*) FROM (SELECT 1 FROM taskworker_key AS k WHERE NOT EXISTS "
    "(SELECT 1 FROM taskworker_job AS j WHERE j.id = k.job_id) LIMIT :most) AS counted"
)
"""How many keys belong to a job that is gone, counted up to ``:most``."""
