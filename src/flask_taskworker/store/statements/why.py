"""The SQL that says why a job waits. Pure."""

from __future__ import annotations

from ...core.rows import JobRecord
from .jobs import RECORD, Dialect
from .workers import WORKERS


def why(dialect: Dialect) -> str:
    """What bears on the waiting of the job ``:id``, in the parts that :meth:`Dialect.together` makes.

    Jobs that go first are counted among the next ``:most`` of its queue, or of those that run alone.
    """

    def its(column: str) -> str:
        # Not a join: only so does PostgreSQL read the others in the order of their index, and stop.
        return f"(SELECT {column} FROM taskworker_job WHERE id = :id)"

    next_jobs = (
        "SELECT priority, id FROM taskworker_job WHERE state = 'ready' AND solo = 0 "
        f"AND queue = {its('queue')} AND kind = {its('kind')} ORDER BY priority DESC, id LIMIT :most"
    )
    ordinary = (
        f"SELECT count(*) FROM ({next_jobs}) AS o WHERE {its('solo')} = 0 "
        f"AND (priority > {its('priority')} OR (priority = {its('priority')} AND id < :id))"
    )
    next_suspects = "SELECT id FROM taskworker_job WHERE state = 'ready' AND solo = 1 AND id < :id LIMIT :most"
    suspects = f"SELECT count(*) FROM ({next_suspects}) AS o WHERE {its('solo')} = 1"
    next_queue = "SELECT min(queue) FROM taskworker_job WHERE state = 'ready' AND solo = 0"
    ready = (
        f"WITH RECURSIVE r(name) AS ({next_queue} UNION ALL SELECT ({next_queue} AND queue > r.name) FROM r "
        "WHERE r.name IS NOT NULL) SELECT name FROM r WHERE name IS NOT NULL"
    )
    paused = f"SELECT paused_at, paused_by FROM taskworker_queue WHERE name = {its('queue')} AND paused = 1"
    return dialect.together(
        {
            "job": (f"SELECT {RECORD}, solo FROM taskworker_job WHERE id = :id", len(JobRecord._fields) + 1),
            "ahead": (f"SELECT ({ordinary}) + ({suspects})", 1),
            "paused": (paused, 2),
            "ready": (ready, 1),
            "workers": (WORKERS, 9),
            "alone": ("SELECT DISTINCT worker_id FROM taskworker_job WHERE state = 'running' AND solo = 1", 1),
        }
    )
