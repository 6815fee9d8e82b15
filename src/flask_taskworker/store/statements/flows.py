"""The SQL of batches and of jobs that wait for others, in the manner of ``jobs.py``. Pure.

How it fits together is in ``store/flows.py``. Rows are locked in this order: jobs by id, edges, waits, members, batches
by id. A job's parents have smaller numbers than the job.
"""

from __future__ import annotations

from ...core.batches import BatchRow
from ...core.rows import FAR_MS, PARENT, WAITS, JobRecord
from ..schema import FINISHED, UNFINISHED
from .jobs import AT_ONCE, RECORD, ColumnType, Dialect

BATCH = ", ".join(BatchRow._fields)
_IDS: dict[str, ColumnType] = {"id": "integer"}


def _in_order(dialect: Dialect, table: str, column: str, columns: dict[str, ColumnType] | None = None) -> str:
    """A condition: *column* is among the ids of a batch, whose rows PostgreSQL locks one after another."""
    ids = f"SELECT id FROM {dialect.batch(columns or _IDS)} AS b"
    if dialect.name == "sqlite":
        return f"{column} IN ({ids})"
    return f"{column} = ANY(ARRAY(SELECT {column} FROM {table} WHERE {column} IN ({ids}) ORDER BY {column} FOR UPDATE))"


def records(dialect: Dialect) -> str:
    """The jobs of a batch."""
    return f"SELECT {RECORD} FROM taskworker_job WHERE id IN (SELECT id FROM {dialect.batch(_IDS)} AS e)"


def callers(dialect: Dialect) -> str:
    """Of the jobs of a batch what says which others they call."""
    ids = f"SELECT id FROM {dialect.batch(_IDS)} AS e"
    return f"SELECT id, claim, state, origin FROM taskworker_job WHERE id IN ({ids}) ORDER BY id"


# -- adding ------------------------------------------------------------------------------------------------------------


def mark_parents(dialect: Dialect) -> str:
    """Note that others wait for the jobs of a batch: how each stands, as long as this transaction goes on."""
    chosen = _in_order(dialect, "taskworker_job", "id")
    return f"UPDATE taskworker_job SET marks = marks | {PARENT} WHERE {chosen} RETURNING id, state"


def lock_batches(dialect: Dialect) -> str:
    """The batches of a batch of ids, which stay as they are until the transaction ends."""
    locked = "" if dialect.name == "sqlite" else " FOR UPDATE"
    return (
        f"SELECT {BATCH} FROM taskworker_batch WHERE id IN (SELECT id FROM {dialect.batch(_IDS)} AS e) "
        f"ORDER BY id{locked}"
    )


def add_totals(dialect: Dialect) -> str:
    """Note that batches have more jobs."""
    columns: dict[str, ColumnType] = {"id": "integer", "number": "integer"}
    return (
        f"UPDATE taskworker_batch SET total = total + e.number FROM {dialect.batch(columns)} AS e "
        "WHERE taskworker_batch.id = e.id"
    )


OPEN_MEMBER = "SELECT batch_id FROM taskworker_member WHERE job_id = :id AND state = 0"
"""The batch of a job, as long as the job is not counted."""

BATCH_OF = (
    "SELECT b.id, b.name FROM taskworker_member AS m JOIN taskworker_batch AS b ON b.id = m.batch_id WHERE job_id = :id"
)
"""The batch of a job."""


def add_members(dialect: Dialect) -> str:
    """Note to which batches new jobs belong."""
    columns: dict[str, ColumnType] = {"job_id": "integer", "batch_id": "integer"}
    return (
        f"INSERT INTO taskworker_member (job_id, batch_id) SELECT job_id, batch_id FROM {dialect.batch(columns)} AS e"
    )


def add_edges(dialect: Dialect) -> str:
    """Note which jobs new jobs wait for."""
    columns: dict[str, ColumnType] = {"parent_id": "integer", "child_id": "integer", "rule": "text"}
    return (
        "INSERT INTO taskworker_edge (parent_id, child_id, rule) SELECT parent_id, child_id, rule "
        f"FROM {dialect.batch(columns)} AS e"
    )


def add_waits(dialect: Dialect) -> str:
    """Note how many parents new jobs wait for."""
    columns: dict[str, ColumnType] = {"job_id": "integer", "needs": "integer", "run_at": "integer"}
    return (
        "INSERT INTO taskworker_wait (job_id, needs, run_at) SELECT job_id, needs, run_at "
        f"FROM {dialect.batch(columns)} AS e"
    )


# -- endings -----------------------------------------------------------------------------------------------------------


def meet(dialect: Dialect) -> str:
    """The parents of a batch have ended, in these states: the children, and whether it was as they asked."""
    columns: dict[str, ColumnType] = {"id": "integer", "state": "text"}
    return (
        "UPDATE taskworker_edge SET met = CASE WHEN rule = 'ended' OR rule = e.state THEN 1 ELSE 2 END "
        f"FROM {dialect.batch(columns)} AS e WHERE parent_id = e.id AND met = 0 RETURNING child_id, met"
    )


def need_less(dialect: Dialect) -> str:
    """Jobs wait for fewer parents: for how many each still does."""
    columns: dict[str, ColumnType] = {"id": "integer", "number": "integer"}
    chosen = _in_order(dialect, "taskworker_wait", "job_id", columns)
    return (
        f"UPDATE taskworker_wait SET needs = needs - e.number FROM {dialect.batch(columns)} AS e "
        f"WHERE job_id = e.id AND {chosen} RETURNING job_id, needs"
    )


def release(dialect: Dialect) -> str:
    """The jobs of a batch wait for no parent any more."""
    return (
        f"UPDATE taskworker_job SET state = CASE WHEN w.run_at > :now THEN 'scheduled' ELSE {AT_ONCE} END, "
        f"run_at = w.run_at, marks = marks & ~{WAITS} FROM taskworker_wait AS w WHERE w.job_id = taskworker_job.id "
        f"AND {_in_order(dialect, 'taskworker_job', 'id')} AND state = 'scheduled' AND marks & {WAITS} <> 0 "
        "RETURNING id, state, marks, queue, kind"
    )


def broken(dialect: Dialect) -> str:
    """The next ``:number`` jobs whose parents did not end as they asked: which parent, how it ended, what was asked."""
    skip = "" if dialect.name == "sqlite" else " FOR UPDATE SKIP LOCKED"
    return (
        "SELECT e.child_id, e.parent_id, j.state, e.rule FROM (SELECT child_id, parent_id, rule FROM taskworker_edge "
        f"WHERE met = 2 ORDER BY child_id LIMIT :number{skip}) AS e LEFT JOIN taskworker_job AS j ON j.id = e.parent_id"
    )


def cancel_children(dialect: Dialect) -> str:
    """Cancel the jobs of a batch, as far as they wait for others."""
    columns: dict[str, ColumnType] = {"id": "integer", "reason": "text"}
    return (
        "UPDATE taskworker_job SET state = 'cancelled', cancel_requested = 1, finished_at = :now, "
        "expires_at = :expires_at, error = e.reason, failure_kind = 'cancelled' "
        f"FROM {dialect.batch(columns)} AS e WHERE taskworker_job.id = e.id "
        f"AND {_in_order(dialect, 'taskworker_job', 'taskworker_job.id', columns)} "
        f"AND state = 'scheduled' AND marks & {WAITS} <> 0 RETURNING taskworker_job.id, state, marks"
    )


def settle_edges(dialect: Dialect) -> str:
    """The children of a batch were cancelled, or had been."""
    return (
        f"UPDATE taskworker_edge SET met = 3 WHERE met = 2 AND child_id IN (SELECT id FROM {dialect.batch(_IDS)} AS e)"
    )


def count_members(dialect: Dialect) -> str:
    """The jobs of a batch have ended, in these ways: the batches that did not count them before."""
    columns: dict[str, ColumnType] = {"id": "integer", "new_state": "integer"}
    return (
        f"UPDATE taskworker_member SET state = e.new_state FROM {dialect.batch(columns)} AS e "
        "WHERE job_id = e.id AND state = 0 RETURNING batch_id, state"
    )


def set_batches(dialect: Dialect) -> str:
    """Store the counts of batches, which are locked."""
    kept = ("sealed", "stop", "ok", "failed", "cancelled", "round", "alarmed", "ended_at", "expires_at")
    columns: dict[str, ColumnType] = {"id": "integer", **{f"new_{name}": "integer" for name in kept}}
    values = ", ".join(f"{name} = e.new_{name}" for name in kept)
    return f"UPDATE taskworker_batch SET {values} FROM {dialect.batch(columns)} AS e WHERE taskworker_batch.id = e.id"


# -- coming back -------------------------------------------------------------------------------------------------------


def counted_members(dialect: Dialect) -> str:
    """Of the jobs of a batch those that were counted: in which batch, and how."""
    return (
        f"SELECT job_id, batch_id, state FROM taskworker_member "
        f"WHERE job_id IN (SELECT id FROM {dialect.batch(_IDS)} AS e) AND state <> 0"
    )


def uncount_members(dialect: Dialect) -> str:
    """The jobs of a batch run again."""
    return f"UPDATE taskworker_member SET state = 0 WHERE job_id IN (SELECT id FROM {dialect.batch(_IDS)} AS e)"


def lock_parents(dialect: Dialect) -> str:
    """Have the parents of the jobs of a batch stay as they are until the transaction ends. PostgreSQL only."""
    edges = f"SELECT parent_id FROM taskworker_edge WHERE child_id IN (SELECT id FROM {dialect.batch(_IDS)} AS e)"
    return f"SELECT id FROM taskworker_job WHERE id IN ({edges}) ORDER BY id FOR SHARE"


def look_at_edges(dialect: Dialect, *, by_rule: bool) -> str:
    """Have the jobs of a batch wait for those of their parents that have not ended.

    *by_rule*: the others must have ended as it was asked; else how they ended is overruled.
    """
    jobs = "SELECT {} FROM taskworker_job AS p WHERE p.id = parent_id"
    batches = "SELECT {} FROM taskworker_batch AS p WHERE p.id = -parent_id"
    is_open = f"EXISTS ({jobs.format(1)} AND p.{UNFINISHED}) OR EXISTS ({batches.format(1)} AND p.ended_at IS NULL)"
    as_asked = "1 = 1"
    if by_rule:
        batch_state = "CASE WHEN p.failed > 0 THEN 'failed' WHEN p.cancelled > 0 THEN 'cancelled' ELSE 'succeeded' END"
        as_asked = f"rule IN ('ended', ({jobs.format('p.state')}), ({batches.format(batch_state)}))"
    return (
        f"UPDATE taskworker_edge SET met = CASE WHEN {is_open} THEN 0 WHEN {as_asked} THEN 1 ELSE 2 END "
        f"WHERE child_id IN (SELECT id FROM {dialect.batch(_IDS)} AS e)"
    )


def count_needs(dialect: Dialect) -> str:
    """Count again how many parents the jobs of a batch wait for."""
    return (
        "UPDATE taskworker_wait SET needs = (SELECT count(*) FROM taskworker_edge WHERE child_id = job_id "
        f"AND met IN (0, 2)) WHERE job_id IN (SELECT id FROM {dialect.batch(_IDS)} AS e) RETURNING job_id, needs"
    )


def wait_again(dialect: Dialect) -> str:
    """Have the jobs of a batch wait for others, as before they were cancelled."""
    return (
        f"UPDATE taskworker_job SET state = 'scheduled', run_at = {FAR_MS} "
        f"WHERE id IN (SELECT id FROM {dialect.batch(_IDS)} AS e) AND {UNFINISHED}"
    )


def cancelled_with(dialect: Dialect) -> str:
    """The jobs that were cancelled because of the parents of a batch, or of others that were."""
    return (
        "SELECT DISTINCT e.child_id FROM taskworker_edge AS e JOIN taskworker_job AS j ON j.id = e.child_id "
        f"WHERE e.parent_id IN (SELECT id FROM {dialect.batch(_IDS)} AS b) AND e.met = 3 "
        f"AND j.state = 'cancelled' AND j.marks & {WAITS} <> 0 ORDER BY e.child_id"
    )


# -- batches -----------------------------------------------------------------------------------------------------------

ADD_BATCH = (
    "INSERT INTO taskworker_batch (name, stop_on_failure, calls, created_at) "
    "VALUES (:name, :stop_on_failure, :calls, :now) RETURNING id"
)
"""Store a batch."""


def edges_of(dialect: Dialect) -> str:
    """The edges from and to the jobs of a batch, up to 200."""
    ids = f"(SELECT id FROM {dialect.batch(_IDS)} AS e)"
    return (
        f"SELECT parent_id, child_id FROM taskworker_edge WHERE parent_id IN {ids} UNION "
        f"SELECT parent_id, child_id FROM taskworker_edge WHERE child_id IN {ids} LIMIT 200"
    )


BATCHES = f"SELECT {BATCH} FROM taskworker_batch WHERE id < :before ORDER BY id DESC LIMIT :limit"
"""The newest batches before ``:before``."""

BATCH_ROW = f"SELECT {BATCH} FROM taskworker_batch WHERE id = :id"
"""One batch."""

STOPPING = "SELECT id FROM taskworker_batch WHERE stop = 1 AND ended_at IS NULL ORDER BY id LIMIT :number"
"""Batches of which what waits is to be cancelled."""

TO_STOP = (
    "SELECT m.job_id FROM taskworker_member AS m JOIN taskworker_job AS j ON j.id = m.job_id "
    "WHERE m.batch_id = :id AND m.state = 0 AND j.cancel_requested = 0 ORDER BY m.job_id LIMIT :number"
)
"""The next jobs of a batch that have not ended and were not asked to stop."""

MEMBERS = (
    f"SELECT {', '.join(f'j.{name}' for name in JobRecord._fields)} FROM taskworker_member AS m "
    "JOIN taskworker_job AS j ON j.id = m.job_id WHERE m.batch_id = :id AND m.job_id > :after{} "
    "ORDER BY m.job_id LIMIT :number"
)
"""The next jobs of a batch, in one state or in all."""


def members(state: str | None, code: int) -> str:
    """The next ``:number`` jobs of the batch ``:id`` after ``:after``, of those in *state*, which *code* stands for."""
    return MEMBERS.format("" if state is None else f" AND m.state = {code} AND j.state = '{state}'")


PARENTS = (
    f"SELECT {', '.join(f'j.{name}' for name in JobRecord._fields)} FROM taskworker_edge AS e "
    "JOIN taskworker_job AS j ON j.id = e.parent_id WHERE e.child_id = :id ORDER BY e.parent_id"
)
"""The jobs that a job waits for, or has waited for."""

# -- from time to time -------------------------------------------------------------------------------------------------

REMOVE_BATCHES = (
    "DELETE FROM taskworker_batch WHERE id IN (SELECT id FROM taskworker_batch AS b WHERE expires_at <= :now "
    "AND NOT EXISTS (SELECT 1 FROM taskworker_member AS m WHERE m.batch_id = b.id) "
    "AND NOT EXISTS (SELECT 1 FROM taskworker_edge AS e WHERE e.parent_id = -b.id AND e.met = 0) "
    "ORDER BY expires_at LIMIT :number)"
)
"""Delete batches whose time is over and that have no jobs left."""

UNCOUNTED = (
    f"SELECT m.job_id, CASE WHEN m.state = 0 AND j.{FINISHED} THEN 1 ELSE 0 END, j.state, j.marks FROM (SELECT job_id, "
    "state FROM taskworker_member WHERE job_id > :after ORDER BY job_id LIMIT :number) AS m "
    "LEFT JOIN taskworker_job AS j ON j.id = m.job_id ORDER BY m.job_id"
)
"""The next members, and of each whether it has ended and was not counted: a bug, if there is any."""

UNMET = (
    f"SELECT e.parent_id, CASE WHEN j.{FINISHED} AND EXISTS (SELECT 1 FROM taskworker_edge AS o "
    "WHERE o.parent_id = e.parent_id AND o.met = 0) THEN 1 ELSE 0 END, j.state, j.marks "
    "FROM (SELECT DISTINCT parent_id FROM taskworker_edge WHERE parent_id > :after ORDER BY parent_id "
    "LIMIT :number) AS e "
    "LEFT JOIN taskworker_job AS j ON j.id = e.parent_id ORDER BY e.parent_id"
)
"""The next parents, and of each whether it has ended and a child does not know: a bug, if there is any."""


def locked_members(dialect: Dialect) -> str:
    """Of the jobs of a batch those whose batches another session has locked. PostgreSQL only."""
    mine = f"SELECT batch_id FROM taskworker_member WHERE job_id IN (SELECT id FROM {dialect.batch(_IDS)} AS e)"
    free = f"SELECT id FROM taskworker_batch WHERE id IN ({mine}) ORDER BY id FOR UPDATE SKIP LOCKED"
    return (
        f"WITH free AS MATERIALIZED ({free}) SELECT job_id FROM taskworker_member WHERE job_id IN "
        f"(SELECT id FROM {dialect.batch(_IDS)} AS m) AND batch_id NOT IN (SELECT id FROM free)"
    )
