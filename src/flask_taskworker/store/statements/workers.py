"""The SQL of workers' lives and deaths, in the manner of ``jobs.py``. Pure."""

from __future__ import annotations

from typing import Literal

from .jobs import AFTER_TRY, KEEP_ROOM, RECORD, Dialect

SOLO_AFTER = 2
"""A job during which this many processes died runs alone from then on."""

SOLO_CRASHES = 3
"""A job that has killed this many processes while it ran alone fails."""

ADD_WORKER = (
    "INSERT INTO taskworker_worker (id, host, pid, started_at, server_started_at, beat_at, state, info) "
    "VALUES (:id, :host, :pid, :now, :server_started_at, :now, 'alive', :info) ON CONFLICT (id) DO NOTHING"
)
"""Register a worker. May be said twice, where the first answer was lost."""

BEAT = (
    "UPDATE taskworker_worker SET beat = beat + 1, beat_at = :now, info = :info, "
    "server_started_at = :server_started_at "
    "WHERE id = :id AND state IN ('alive', 'draining') RETURNING beat, wish, threads, concurrency"
)
"""One heartbeat, which reads what the worker is asked to do. No row comes back to a worker that was declared dead."""

START_DRAINING = "UPDATE taskworker_worker SET state = 'draining' WHERE id = :id AND state = 'alive'"
"""Say that a worker claims no more."""

ADD_MISSING_WORKERS = (
    "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) "
    "SELECT DISTINCT worker_id, '', 0, CAST(:now AS bigint), CAST(:now AS bigint), 'dead', '{}' "
    "FROM taskworker_job AS j WHERE state = 'running' AND worker_id IS NOT NULL "
    "AND NOT EXISTS (SELECT 1 FROM taskworker_worker AS w WHERE w.id = j.worker_id) "
    "ON CONFLICT (id) DO NOTHING RETURNING id"
)
"""Add a dead worker for each one that holds a job and has no row, so that the job is rescued like others."""

WISH = (
    "UPDATE taskworker_worker SET wish = :wish, state = 'draining' "
    "WHERE id = :id AND state IN ('alive', 'draining') AND (wish IS NULL OR (wish = 'quiet' AND :wish = 'stop')) "
    "RETURNING id"
)
"""Ask a living worker to be quiet or to stop. From now on its claims are refused; it learns why with its next beat."""

SET_SLOTS = (
    "UPDATE taskworker_worker SET threads = COALESCE(CAST(:threads AS integer), threads), "
    "concurrency = COALESCE(CAST(:concurrency AS integer), concurrency) WHERE id = :id AND state = 'alive' RETURNING id"
)
"""Say how many jobs of each kind a living worker runs at once; NULL leaves it. It learns that with its next beat."""

GIVE_UP = "UPDATE taskworker_worker SET state = 'dead' WHERE id = :id AND state IN ('alive', 'draining')"
"""A worker says of itself that it is dead, and so lets others have its jobs."""

REMOVE_WORKER = (
    "DELETE FROM taskworker_worker WHERE id = :id AND NOT EXISTS "
    "(SELECT 1 FROM taskworker_job WHERE worker_id = :id AND state = 'running')"
)
"""Deregister a worker that holds nothing."""


# -- looking ---------------------------------------------------------------------------------------------------------


WORKERS = (
    "SELECT id, host, pid, started_at, beat, beat_at, state, info, (SELECT count(*) FROM taskworker_job "
    "WHERE worker_id = taskworker_worker.id AND state = 'running') FROM taskworker_worker ORDER BY started_at, id"
)
"""Every worker row."""

OTHER_WORKERS = (
    "SELECT id, beat, server_started_at FROM taskworker_worker WHERE id <> :id AND state IN ('alive', 'draining')"
)
"""The other workers that count as living."""


def cancel_requests(dialect: Dialect) -> str:
    """Those of a batch of jobs that were asked to stop.

    By their numbers alone: the index of what a worker holds keeps on PostgreSQL all that it has held beside an old
    transaction.
    """
    ids = f"SELECT id FROM {dialect.batch({'id': 'integer'})} AS e"
    among = f"IN ({ids})" if dialect.name == "sqlite" else f"= ANY(ARRAY({ids}))"
    return f"SELECT id, claim FROM taskworker_job WHERE id {among} AND cancel_requested = 1"


HELD_JOBS = "SELECT id, claim, marks FROM taskworker_job WHERE worker_id = :id AND state = 'running'"
"""The jobs that one worker holds according to the store."""


# -- deaths ----------------------------------------------------------------------------------------------------------


DECLARE_DEAD = (
    "UPDATE taskworker_worker SET state = CASE WHEN state = 'draining' THEN 'left' ELSE 'dead' END "
    "WHERE id = :id AND beat = :beat AND state IN ('alive', 'draining') RETURNING state, host, pid, info"
)
"""Declare a worker dead, if it has not beaten since it was looked at. One that was draining has merely left.

Tells which of the two, and where to find it.
"""

HELD_BY_THE_DEAD = (
    "SELECT 1 FROM taskworker_worker WHERE state IN ('dead', 'left') AND EXISTS "
    "(SELECT 1 FROM taskworker_job WHERE worker_id = taskworker_worker.id AND state = 'running') LIMIT 1"
)
"""Whether a dead worker still holds a job: for a claim and a death may race, and a rescuer may die, too."""


def sweep(dialect: Dialect, state: Literal["dead", "left"]) -> str:
    """End the claims of all workers in that state. Of a worker that left in order no crash is counted.

    A job that was asked to stop is cancelled. One that must not run twice is failed, and so is one that has killed
    its process three times while it ran alone. The others go back: after the first crash at once, later after 2^n
    times 2 s, an hour at most, spread by 20 %. From the second crash on a job runs alone.
    """
    crash = 1 if state == "dead" else 0
    ends = f"cancel_requested = 1 OR at_most_once = 1 OR (solo = 1 AND solo_crashes + {crash} >= {SOLO_CRASHES})"
    kept = "CASE WHEN cancel_requested = 1 THEN :expires_at ELSE :failed_expires_at END"
    failure = "CASE WHEN cancel_requested = 1 THEN NULL WHEN at_most_once = 1 THEN {} WHEN {} THEN {} ELSE {} END"
    seconds = "CASE WHEN crashes = 0 THEN 0 WHEN crashes > 9 THEN 3600000 ELSE (2000 << (crashes + 1)) END"
    kinds = ("'interrupted'", ends, "'crashed'", "failure_kind")
    waits = "crashes > 0" if crash else "1 = 0"
    dead = f"SELECT id FROM taskworker_worker WHERE state = '{state}'"
    held = f"SELECT id FROM taskworker_job WHERE state = 'running' AND worker_id IN ({dead})"
    return (
        "UPDATE taskworker_job SET worker_id = NULL, "
        f"state = CASE WHEN cancel_requested = 1 THEN 'cancelled' WHEN {ends} THEN 'failed' "
        f"WHEN {waits} THEN 'scheduled' ELSE {AFTER_TRY} END, {KEEP_ROOM}, "
        f"run_at = CASE WHEN {waits} AND NOT ({ends}) THEN :now + {seconds} * (80 + id % 41) / 100 ELSE 0 END, "
        f"error = {failure.format(':interrupted', ends, ':crashed', 'error')}, "
        f"failure_kind = {failure.format(*kinds)}, "
        "failure_group = CASE WHEN cancel_requested = 1 THEN NULL WHEN at_most_once = 1 THEN 'interrupted:' || task "
        f"WHEN {ends} THEN 'crashed:' || task ELSE NULL END, "
        f"finished_at = CASE WHEN {ends} THEN :now ELSE NULL END, "
        f"expires_at = CASE WHEN {ends} THEN {kept} ELSE NULL END, "
        f"crashes = crashes + {crash}, solo_crashes = solo_crashes + {crash} * solo, "
        f"solo = CASE WHEN crashes + {crash} >= {SOLO_AFTER} THEN 1 ELSE solo END "
        f"WHERE {dialect.among('id', held)} RETURNING {RECORD}"
    )


REMOVE_DEAD_WORKERS = (
    "DELETE FROM taskworker_worker WHERE state IN ('dead', 'left') AND beat_at < :before AND NOT EXISTS "
    "(SELECT 1 FROM taskworker_job WHERE worker_id = taskworker_worker.id AND state = 'running')"
)
"""Delete the rows of dead workers that hold nothing and died before ``:before``."""
