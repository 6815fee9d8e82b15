"""The SQL that says why a job waits. Pure."""

from __future__ import annotations

from ...core.rows import JobRecord
from .jobs import RECORD, Dialect
from .limits import LIMITS
from .workers import WORKERS

_LANE = "(SELECT lane FROM taskworker_permit WHERE job_id = :id)"
_IN_LINE = (
    f"SELECT priority, job_id FROM taskworker_permit WHERE phase = 1 AND lane = {_LANE} "
    "ORDER BY priority DESC, job_id LIMIT :most"
)
_PLACE = (
    f"SELECT p.lane, p.phase, (SELECT count(*) FROM ({_IN_LINE}) AS o WHERE o.priority > p.priority "
    "OR (o.priority = p.priority AND o.job_id < p.job_id)) FROM taskworker_permit AS p WHERE p.job_id = :id"
)
_LET_IN = (
    # CROSS, so that SQLite begins with the lane.
    "SELECT p.job_id FROM taskworker_permit AS p CROSS JOIN taskworker_job AS j "
    f"WHERE p.phase = 2 AND p.lane = {_LANE} AND j.id = p.job_id AND j.finished_at IS NULL LIMIT :most"
)
_IN_LANE = {
    "place": (_PLACE, 3),
    "let_in": (_LET_IN, 1),
    "lane": (f"SELECT tat, closed_until FROM taskworker_lane WHERE lane = {_LANE}", 2),
}
"""What bears on a limited job: its place in line, the jobs of its lane that have room, and how the lane stands."""


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
    paused = (
        f"SELECT paused_at, paused_by, paused_until FROM taskworker_queue WHERE name = {its('queue')} AND paused = 1"
    )
    parents = (
        "SELECT e.parent_id, e.rule, p.state FROM taskworker_edge AS e LEFT JOIN taskworker_job AS p "
        "ON p.id = e.parent_id WHERE e.child_id = :id AND e.met IN (0, 2) ORDER BY e.parent_id LIMIT 4"
    )
    pause = (
        "SELECT kind, name, due_at FROM taskworker_step WHERE job_id = :id AND ended_at IS NULL AND due_at IS NOT NULL "
        "ORDER BY began_at DESC, number DESC LIMIT 1"
    )
    running = f"SELECT count(*) FROM taskworker_job WHERE state = 'running' AND queue = {its('queue')}"
    queue_limit = (
        f"SELECT t.running, t.amount, t.per_us, t.burst, ({running}), COALESCE(l.tat, 0), COALESCE(l.closed_until, 0) "
        "FROM taskworker_limit AS t LEFT JOIN taskworker_lane AS l ON l.lane = t.name "
        f"WHERE t.name = 'queue:' || {its('queue')}"
    )
    return dialect.together(
        {
            "parents": (parents, 3),
            **_IN_LANE,
            "pause": (pause, 3),
            "limits": (LIMITS, 7),
            "queue_limit": (queue_limit, 7),
            "job": (f"SELECT {RECORD}, solo FROM taskworker_job WHERE id = :id", len(JobRecord._fields) + 1),
            "ahead": (f"SELECT ({ordinary}) + ({suspects})", 1),
            "paused": (paused, 3),
            "ready": (ready, 1),
            "workers": (WORKERS, 9),
            "alone": ("SELECT DISTINCT worker_id FROM taskworker_job WHERE state = 'running' AND solo = 1", 1),
        }
    )
