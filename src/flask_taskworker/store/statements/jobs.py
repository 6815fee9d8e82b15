"""The SQL, one constant or function a statement, named after the act. Pure: text in, text out.

Parameters are written ``:name``; a driver that wants another style translates. A batch travels as one JSON text, so
that a statement's text never depends on how many rows it moves. States are literals, never parameters: only so can
both planners see that a partial index fits. A transition is one conditional UPDATE; its WHERE decides every race and
its RETURNING says who won.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, TypeVar

from ...core.rows import FAR_MS, HOLDS, KEEPS, LIMITED, NEW_COLUMNS, PARENT, Claim, JobRecord, NewJob
from ..schema import FINISHED, ROLLUP_FIGURES, UNFINISHED

T = TypeVar("T")
ColumnType = Literal["integer", "text"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where the two databases differ in words."""

    name: Literal["sqlite", "postgresql"]

    def batch(self, columns: Mapping[str, ColumnType]) -> str:
        """A table expression over ``:batch``, a JSON array of arrays with these columns in this order."""
        if self.name == "sqlite":
            picked = ", ".join(f"json_extract(value, '$[{i}]') AS {name}" for i, name in enumerate(columns))
            return f"(SELECT {picked} FROM json_each(:batch))"
        cast = {"integer": "bigint", "text": "text"}
        picked = ", ".join(f"(value->>{i})::{cast[kind]} AS {name}" for i, (name, kind) in enumerate(columns.items()))
        return f"(SELECT {picked} FROM jsonb_array_elements(CAST(:batch AS jsonb)))"

    def pairs(self, key: str, value: str) -> str:
        """A table expression over ``:batch``, a JSON object of integers: quicker to read than arrays in an array."""
        if self.name == "sqlite":
            return f"(SELECT CAST(key AS integer) AS {key}, value AS {value} FROM json_each(:batch))"
        return f"(SELECT key::bigint AS {key}, value::bigint AS {value} FROM jsonb_each_text(CAST(:batch AS jsonb)))"

    def names(self, parameter: str) -> str:
        """A table expression over a JSON array of strings."""
        if self.name == "sqlite":
            return f"(SELECT value FROM json_each(:{parameter}))"
        return f"(SELECT jsonb_array_elements_text(CAST(:{parameter} AS jsonb)))"

    def among(self, column: str, select: str) -> str:
        """*column* is among the ids of *select*, which are locked where the database locks rows.

        PostgreSQL: a join or a CTE was planned as a sequential scan; an array is not. SQLite has one writer at a
        time and needs no row locks.
        """
        if self.name == "sqlite":
            return f"{column} IN ({select})"
        return f"{column} = ANY(ARRAY({select} FOR UPDATE SKIP LOCKED))"

    def together(self, parts: Mapping[str, tuple[str, int]]) -> str:
        """Several SELECTs, each with its number of columns, in one: a row for each, its name and its rows as JSON."""
        selects = []
        for name, (sql, columns) in parts.items():
            picked = ", ".join(f"c{i}" for i in range(columns))
            rows = f"json_group_array(json_array({picked}))"
            if self.name == "postgresql":
                rows = f"CAST(json_agg(json_build_array({picked})) AS text)"
            selects.append(f"SELECT '{name}', (WITH q({picked}) AS ({sql}) SELECT {rows} FROM q)")
        return " UNION ALL ".join(selects)

    def unlocked(self, ids: str) -> str:
        """A condition: of the jobs whose ids are selected by *ids*, those that no other session has locked."""
        if self.name == "sqlite":
            return "true"
        chosen = f"SELECT id FROM taskworker_job WHERE id = ANY(ARRAY({ids})) ORDER BY id FOR UPDATE SKIP LOCKED"
        return f"taskworker_job.id = ANY(ARRAY({chosen}))"


PIECE_CHARACTERS = 2_000_000
"""A statement for many rows is cut in pieces of about this size: both databases refuse a text that is far larger."""


def in_pieces(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """*items* in order, in pieces of about :data:`PIECE_CHARACTERS`; *size* says how many characters one takes."""
    piece: list[T] = []
    total = 0
    for item in items:
        if total > PIECE_CHARACTERS:
            yield piece
            piece, total = [], 0
        piece.append(item)
        total += size(item)
    if piece:
        yield piece


def alike_pieces(jobs: Sequence[NewJob]) -> Iterator[list[NewJob]]:
    """Jobs in order, in pieces of those that differ in uid and arguments only, and of no more than a few megabytes."""
    for _, alike in itertools.groupby(jobs, key=_COMMON_VALUES):
        yield from in_pieces(alike, lambda job: len(job.uid) + len(job.args))


_COMMON_VALUES = itemgetter(*(NewJob._fields.index(name) for name in NEW_COLUMNS if name not in ("uid", "args")))


def batch_of(rows: Sequence[Sequence[Any]] | Mapping[int, int]) -> str:
    """Rows, or pairs, as the JSON text in which a batch travels."""
    return json.dumps(rows, separators=(",", ":"))


SQLITE = Dialect("sqlite")
POSTGRESQL = Dialect("postgresql")

SERVER_CLOCK = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""What time it is on the server, in epoch milliseconds. PostgreSQL only."""

RECORD = ", ".join(JobRecord._fields)
CLAIM = ", ".join(Claim._fields)

_INTEGERS = frozenset(
    {"priority", "run_at", "max_attempts", "timeout", "created_at", "fire_at", "at_most_once", "marks"}
)
_NEW = (*NEW_COLUMNS, "state")
_GIVEN_TYPES: dict[str, ColumnType] = {name: "integer" if name in _INTEGERS else "text" for name in _NEW}
_NEW_COLUMNS = ", ".join(_NEW)
_NEW_VALUES = ", ".join(f":{name}" for name in _NEW)


AT_ONCE = f"CASE WHEN marks & {LIMITED | HOLDS} = {LIMITED} THEN 'held' ELSE 'ready' END"
"""The state of a job that becomes due: it asks for room if it belongs to a limit and has kept none there."""

AFTER_TRY = f"CASE WHEN marks & {LIMITED | KEEPS} = {LIMITED} THEN 'held' ELSE 'ready' END"
KEEP_ROOM = f"marks = CASE WHEN marks & {KEEPS} <> 0 THEN marks | {HOLDS} ELSE marks END"
"""What becomes of a running job that goes back to its queue."""

AS_NEW = f"CASE WHEN marks & {LIMITED} = {LIMITED} THEN 'held' ELSE 'ready' END"
WITHOUT_ROOM = f"marks = marks & ~{HOLDS}"
"""What becomes of a job that comes back after it had ended."""


# -- enqueueing ------------------------------------------------------------------------------------------------------


ADD_JOB = f"INSERT INTO taskworker_job ({_NEW_COLUMNS}) VALUES ({_NEW_VALUES}) ON CONFLICT DO NOTHING RETURNING id"
"""Store one job, unless its uid, its unique key or its (schedule, fire_at) is taken: then no row comes back."""


def last_number() -> str:
    """The highest number that a job has or had, or 0. SQLite only."""
    had = "SELECT seq FROM sqlite_sequence WHERE name = 'taskworker_job'"
    return f"SELECT max(COALESCE(({had}), 0), COALESCE((SELECT max(id) FROM taskworker_job), 0))"


def add_alike(dialect: Dialect) -> str:
    """Store jobs that differ in uid and arguments only, which are the batch.

    On SQLite they are numbered from ``:first`` on. OR ROLLBACK, since it would otherwise keep what a part of the
    statement has changed, in a temporary file if it is much (sqlite.org/tempfiles.html, "Statement Journal Files");
    this caller wants all or nothing anyway. PostgreSQL leaves out those whose uid is taken, and returns the others.
    """
    common = [name for name in _NEW if name not in ("uid", "args")]
    columns, values = ", ".join(common), ", ".join(f":{name}" for name in common)
    if dialect.name == "sqlite":
        return (
            f"INSERT OR ROLLBACK INTO taskworker_job (id, uid, args, {columns}) "
            f"SELECT :first + key, json_extract(value, '$[0]'), json_extract(value, '$[1]'), {values} "
            "FROM json_each(:batch)"
        )
    return (
        f"INSERT INTO taskworker_job (uid, args, {columns}) SELECT uid, args, {values} "
        f"FROM {dialect.batch({'uid': 'text', 'args': 'text'})} AS e ON CONFLICT DO NOTHING RETURNING id, uid"
    )


def add_jobs(dialect: Dialect) -> str:
    """Store the jobs of a batch, but for those whose uid is taken."""
    return (
        f"INSERT INTO taskworker_job ({_NEW_COLUMNS}) SELECT {_NEW_COLUMNS} FROM {dialect.batch(_GIVEN_TYPES)} AS e "
        "WHERE true ON CONFLICT DO NOTHING RETURNING id, uid"
    )


def jobs_by_uid(dialect: Dialect) -> str:
    """The ids of the jobs with the uids of a batch."""
    return f"SELECT id, uid FROM taskworker_job WHERE uid IN (SELECT uid FROM {dialect.batch({'uid': 'text'})} AS e)"


EXISTING_JOB = (
    f"SELECT {RECORD} FROM taskworker_job WHERE uid = :uid UNION ALL "
    f"SELECT {RECORD} FROM taskworker_job WHERE unique_key = :unique_key AND {UNFINISHED} LIMIT 1"
)
"""The job that stood in the way of :data:`ADD_JOB`."""


# -- looking ---------------------------------------------------------------------------------------------------------


JOB_RECORD = f"SELECT {RECORD} FROM taskworker_job WHERE id = :id"
"""One job without its payloads."""


def job_records(dialect: Dialect) -> str:
    """The jobs with the uids in ``:uids``, a JSON array, without their payloads."""
    return f"SELECT {RECORD} FROM taskworker_job WHERE uid IN {dialect.names('uids')}"


HAS_JOB = "SELECT 1 FROM taskworker_job WHERE id = :id AND uid = :uid"
"""Whether a job is there, by its number and its uid."""

JOB_ENDING = "SELECT state, result, error, failure_kind FROM taskworker_job WHERE id = :id"
"""What someone who waits for a job needs."""

JOB_ARGS = "SELECT args FROM taskworker_job WHERE id = :id"
"""The encoded arguments of one job."""

NEWEST_JOB = "SELECT COALESCE(max(id), 0) FROM taskworker_job"
"""The highest number that a job has, or 0."""

JOBS_AFTER = (
    f"SELECT {RECORD}, args, origin, (SELECT lane FROM taskworker_permit WHERE job_id = taskworker_job.id) "
    "FROM taskworker_job WHERE id > :number ORDER BY id"
)
"""The jobs with numbers above ``:number``, with arguments, origin and lane, oldest first. For tests: it reads all."""

UNFINISHED_BEFORE = (
    f"SELECT {RECORD} FROM taskworker_job WHERE {UNFINISHED} AND created_at < :moment ORDER BY id LIMIT 5"
)
"""A few unfinished jobs that were enqueued before ``:moment``."""

ATTEMPTS = (
    "SELECT claim, attempt, worker_id, started_at, finished_at, outcome, error FROM taskworker_attempt "
    "WHERE job_id = :id ORDER BY claim DESC LIMIT 100"
)
"""The last 100 tries of one job that did not succeed, newest first."""


def held_ids(most: str) -> str:
    """The ids of the jobs that wait to be admitted, up to *most* of each kind: no index of jobs has them."""
    part = "SELECT job_id AS id FROM (SELECT job_id FROM taskworker_permit WHERE phase = {} LIMIT {}) AS p{}"
    changed = (
        "SELECT job_id AS id FROM (SELECT p.job_id FROM taskworker_permit AS p CROSS JOIN taskworker_job AS j "
        f"WHERE p.phase = 0 AND j.id = p.job_id AND j.state = 'held' LIMIT {most}) AS p0"
    )
    return " UNION ALL ".join([*(part.format(phase, most, phase) for phase in (1, 4)), changed])


def waiting_by_queue() -> str:
    """Ready jobs of each queue, counted up to ``:most``, and since when the oldest of those is due.

    As :func:`peek` it jumps from queue to queue, so that a long queue hides no other.
    """
    next_queue = "SELECT min(queue) FROM taskworker_job WHERE state = 'ready' AND solo = 0"
    since = "CASE WHEN j.run_at > 0 THEN j.run_at ELSE j.created_at END"
    ready = "FROM taskworker_job AS j WHERE j.state = 'ready' AND j.solo = 0 AND j.queue = q.name LIMIT :most"
    return (
        f"WITH RECURSIVE q(name) AS ({next_queue} UNION ALL SELECT ({next_queue} AND queue > q.name) FROM q "
        f"WHERE q.name IS NOT NULL) SELECT name, (SELECT count(*) FROM (SELECT 1 {ready}) AS counted), "
        f"(SELECT min(since) FROM (SELECT {since} AS since {ready}) AS dated) FROM q WHERE name IS NOT NULL"
    )


NEXT_DUE = f"SELECT min(run_at) FROM taskworker_job WHERE state = 'scheduled' AND run_at < {FAR_MS}"
"""When the next scheduled job is due."""

SCHEDULES = "SELECT name, task, trigger, args, next_at, last_at, paused, source FROM taskworker_schedule ORDER BY name"
"""Every schedule."""

STORE_ID = "SELECT value FROM taskworker_meta WHERE name = 'store_id'"
"""The random name of this store."""


# -- steering --------------------------------------------------------------------------------------------------------


CANCEL = (
    "UPDATE taskworker_job SET cancel_requested = 1, "
    "state = CASE WHEN state = 'running' THEN state ELSE 'cancelled' END, "
    "finished_at = CASE WHEN state = 'running' THEN NULL ELSE :now END, "
    "expires_at = CASE WHEN state = 'running' THEN NULL ELSE :expires_at END "
    f"WHERE id = :id AND {UNFINISHED} RETURNING state, marks"
)
"""Cancel a waiting job, or ask the running one to stop."""

RETRY = (
    f"UPDATE taskworker_job SET state = {AS_NEW}, {WITHOUT_ROOM}, run_at = :now, "
    "failures = 0, crashes = 0, solo = 0, solo_crashes = 0, cancel_requested = 0, "
    "progress = NULL, result = NULL, error = NULL, failure_kind = NULL, failure_group = NULL, "
    "discarded = 0, started_at = NULL, finished_at = NULL, expires_at = NULL "
    "WHERE id = :id AND state IN ('failed', 'cancelled') AND NOT EXISTS "
    "(SELECT 1 FROM taskworker_job AS other WHERE other.unique_key = taskworker_job.unique_key "
    f"AND other.{UNFINISHED}) RETURNING id, state, marks, task, uid"
)
"""Put a failed or cancelled job back into its queue. Its claim number goes on, so that old outcomes stay fenced.

It is due from now, not since it was first enqueued, which may be long ago. Its unique key must be free.
"""


# -- the worker's loop -----------------------------------------------------------------------------------------------


_PAUSED = "SELECT name FROM taskworker_queue WHERE paused = 1"


def peek(dialect: Dialect) -> str:
    """What there is to do: rows of (what, queue, number).

    ``due``: when the next scheduled job is due. ``fire``: when the next schedule of ``:may_fire`` fires.
    ``resume``: when the next pause of a queue is over. ``changed``: 1 where limited jobs have changed. ``open``: when
    to look at the next lane again. ``limit``: a limit, and whether it has a rate. ``clock``: what PostgreSQL's says.
    ``async`` and ``sync``: a queue that has ready jobs of that kind. The recursive part jumps from queue to queue in
    the index (SQLite wiki, "loose index scan"), so its cost is one look a queue, however long the queues are.
    """
    next_queue = "SELECT min(queue) FROM taskworker_job WHERE state = 'ready' AND solo = 0"
    some = "SELECT 1 FROM taskworker_job AS j WHERE j.state = 'ready' AND j.solo = 0 AND j.queue = q.name"
    has = f"EXISTS ({some} AND j.kind = '{{}}')"
    clock = ""
    if dialect.name == "postgresql":
        clock = f"UNION ALL SELECT 'clock', NULL, ({SERVER_CLOCK}) "
    return (
        f"WITH RECURSIVE q(name) AS ({next_queue} UNION ALL SELECT ({next_queue} AND queue > q.name) FROM q "
        "WHERE q.name IS NOT NULL) "
        "SELECT 'due' AS what, NULL AS queue, "
        "(SELECT min(run_at) FROM taskworker_job WHERE state = 'scheduled') AS number "
        "UNION ALL SELECT 'fire', NULL, (SELECT min(next_at) FROM taskworker_schedule WHERE paused = 0 "
        f"AND next_at IS NOT NULL AND {_may_fire(dialect)}) "
        "UNION ALL SELECT 'resume', NULL, (SELECT min(paused_until) FROM taskworker_queue WHERE paused = 1) "
        "UNION ALL SELECT 'changed', NULL, (SELECT 1 FROM taskworker_permit WHERE phase = 0 LIMIT 1) "
        "UNION ALL SELECT 'open', NULL, (SELECT min(open_at) FROM taskworker_lane WHERE open_at IS NOT NULL) "
        f"{clock}"
        "UNION ALL SELECT 'limit', name, CASE WHEN amount IS NULL THEN 0 ELSE 1 END FROM taskworker_limit "
        "UNION ALL SELECT DISTINCT 'suspect', queue, 0 FROM taskworker_job WHERE state = 'ready' AND solo = 1 "
        f"AND queue NOT IN ({_PAUSED}) "
        f"UNION ALL SELECT 'async', name, 0 FROM q WHERE name NOT IN ({_PAUSED}) AND {has.format('async')} "
        f"UNION ALL SELECT 'sync', name, 0 FROM q WHERE name NOT IN ({_PAUSED}) AND {has.format('sync')}"
    )


def claim(dialect: Dialect, kind: str) -> str:
    """Take up to ``:number`` ready jobs of ``:queue``, highest priority and oldest first."""
    return _claim(dialect.among("id", f"{_waiting(kind)} ORDER BY priority DESC, id LIMIT :number"), _NOT_PAUSED)


def claim_behind(kind: str) -> str:
    """As :func:`claim`, but of the jobs of ``:priority`` only those behind the job ``:behind``. PostgreSQL only.

    Its index keeps what was claimed until a vacuum, and beside an old transaction for longer: a claim from the
    beginning steps over all of that.
    """
    locked = "LIMIT :number FOR UPDATE SKIP LOCKED"
    parts = (
        f"{_waiting(kind)} AND priority > :priority ORDER BY priority DESC, id {locked}",
        f"{_waiting(kind)} AND priority = :priority AND id > :behind ORDER BY id {locked}",
        f"{_waiting(kind)} AND priority < :priority ORDER BY priority DESC, id {locked}",
    )
    chosen = " UNION ALL ".join(f"SELECT id FROM ({part}) AS p{i}" for i, part in enumerate(parts))
    return _claim(f"id = ANY(ARRAY({chosen} LIMIT :number))", _NOT_PAUSED)


_NOT_PAUSED = f"NOT EXISTS ({_PAUSED} AND name = :queue)"


def _waiting(kind: str) -> str:
    return f"SELECT id FROM taskworker_job WHERE state = 'ready' AND solo = 0 AND queue = :queue AND kind = '{kind}'"


def claim_suspect(dialect: Dialect) -> str:
    """Take the oldest ready job of ``:queues`` (NULL: of all queues) that must run alone."""
    served = f"(CAST(:queues AS text) IS NULL OR queue IN {dialect.names('queues')}) AND queue NOT IN ({_PAUSED})"
    chosen = f"SELECT id FROM taskworker_job WHERE state = 'ready' AND solo = 1 AND {served} ORDER BY id LIMIT 1"
    return _claim(dialect.among("id", chosen))


def claim_held(chosen: str) -> str:
    """Take jobs that are held, with their admission."""
    return _claim(chosen, state="held")


def _claim(chosen: str, condition: str = "true", state: str = "ready") -> str:
    # Nothing goes to a worker that was declared dead: it must not own jobs that no worker would rescue.
    return (
        "UPDATE taskworker_job SET state = 'running', claim = claim + 1, worker_id = :worker_id, started_at = :now "
        f"WHERE {chosen} AND state = '{state}' "
        "AND EXISTS (SELECT 1 FROM taskworker_worker WHERE id = :worker_id AND state = 'alive') "
        f"AND {condition} RETURNING {CLAIM}"
    )


def confirm_claims(dialect: Dialect) -> str:
    """Write again what a claim has written: on a durable connection, so that the claim reaches the disk."""
    return (
        "UPDATE taskworker_job SET started_at = :now WHERE state = 'running' AND id IN "
        f"(SELECT id FROM {dialect.batch({'id': 'integer'})} AS e)"
    )


def promote(dialect: Dialect) -> str:
    """Make due jobs ready."""
    chosen = "SELECT id FROM taskworker_job WHERE state = 'scheduled' AND run_at <= :now ORDER BY run_at LIMIT :number"
    due = dialect.among("id", chosen)
    return (
        f"UPDATE taskworker_job SET state = {AT_ONCE} WHERE {due} AND state = 'scheduled' "
        "RETURNING id, state, marks, queue, kind"
    )


_UNMARKED = " AND taskworker_job.marks = 0"


def finish_succeeded(dialect: Dialect, *, marked: bool = False, skip_locked: bool = False) -> str:
    """Record the commonest ending: jobs that returned None at their first try.

    Without *marked* those of which a transition must see to more than the row are left out: a job may be marked while
    it runs. *skip_locked*: rows that another session has locked are left out. It costs time, so it is the second try.
    """
    batch = dialect.pairs("id", "claim")
    past_locks = f" AND {dialect.unlocked(f'SELECT id FROM {batch} AS b')}" if skip_locked else ""
    return (
        "UPDATE taskworker_job SET state = 'succeeded', worker_id = NULL, finished_at = :now, expires_at = :expires_at "
        f"FROM {batch} AS e WHERE taskworker_job.id = e.id "
        f"AND taskworker_job.claim = e.claim AND {UNFINISHED}{'' if marked else _UNMARKED}{past_locks} "
        f"RETURNING taskworker_job.id{', state, marks' if marked else ''}"
    )


FINISH_COLUMNS: dict[str, ColumnType] = {
    "id": "integer",
    "claim": "integer",
    "new_state": "text",
    "again": "integer",
    "new_run_at": "integer",
    "failed": "integer",
    "survived": "integer",
    "new_result": "text",
    "new_error": "text",
    "new_kind": "text",
    "new_group": "text",
    "ended_at": "integer",
    "new_expires_at": "integer",
    "new_progress": "text",
}


def finish(dialect: Dialect, *, marked: bool = False, skip_locked: bool = False) -> str:
    """Record endings, fenced by the claim number. A job that is to run again but was asked to stop is cancelled.

    A late ending of a claim that was rescued, but not claimed since, still counts: it saves a duplicate. A job that
    had to run alone and has survived a try need not any more; its next crash makes it a suspect again.
    *marked*, *skip_locked*: as in :func:`finish_succeeded`.
    """
    batch = dialect.batch(FINISH_COLUMNS)
    past_locks = f" AND {dialect.unlocked(f'SELECT id FROM {batch} AS b')}" if skip_locked else ""
    return (
        "UPDATE taskworker_job SET "
        "solo = solo * (1 - e.survived), solo_crashes = solo_crashes * (1 - e.survived), "
        "state = CASE WHEN e.again = 1 AND cancel_requested = 1 THEN 'cancelled' "
        f"WHEN e.new_state = 'ready' THEN {AFTER_TRY} ELSE e.new_state END, {KEEP_ROOM}, "
        "worker_id = NULL, run_at = e.new_run_at, failures = failures + e.failed, result = e.new_result, "
        "error = e.new_error, failure_kind = e.new_kind, failure_group = e.new_group, "
        "progress = COALESCE(e.new_progress, progress), "
        "finished_at = CASE WHEN e.again = 1 AND cancel_requested = 0 THEN NULL ELSE e.ended_at END, "
        "expires_at = CASE WHEN e.again = 1 AND cancel_requested = 0 THEN NULL ELSE e.new_expires_at END "
        f"FROM {batch} AS e WHERE taskworker_job.id = e.id "
        # Said twice, where the first answer was lost, it counts one failure.
        "AND (e.failed = 0 OR NOT EXISTS (SELECT 1 FROM taskworker_attempt AS a WHERE a.job_id = e.id "
        "AND a.claim = e.claim)) "
        f"AND taskworker_job.claim = e.claim AND {UNFINISHED}{'' if marked else _UNMARKED}{past_locks} "
        "RETURNING taskworker_job.id, taskworker_job.state, taskworker_job.marks"
    )


def unrecorded(dialect: Dialect) -> str:
    """Which endings of a batch can still be recorded: their claims are neither fenced nor ended."""
    batch = dialect.batch({"id": "integer", "claim": "integer"})
    return (
        f"SELECT e.id FROM {batch} AS e JOIN taskworker_job AS j ON j.id = e.id AND j.claim = e.claim "
        f"AND j.{UNFINISHED}"
    )


def recorded(dialect: Dialect) -> str:
    """Which endings are stored already, where the answer to :func:`finish` was lost."""
    columns: dict[str, ColumnType] = {"id": "integer", "claim": "integer", "new_state": "text"}
    return (
        f"SELECT e.id, e.new_state FROM {dialect.batch(columns)} AS e WHERE EXISTS (SELECT 1 FROM taskworker_attempt "
        "AS a WHERE a.job_id = e.id AND a.claim = e.claim AND a.outcome <> 'released') OR EXISTS (SELECT 1 FROM "
        "taskworker_job AS j WHERE j.id = e.id AND j.claim = e.claim AND j.state = e.new_state "
        "AND j.finished_at IS NOT NULL)"
    )


FINISH_ONE = (
    "UPDATE taskworker_job SET state = 'succeeded', worker_id = NULL, result = :result, error = NULL, "
    "failure_kind = NULL, finished_at = :now, expires_at = :expires_at "
    f"WHERE id = :id AND claim = :claim AND {UNFINISHED} RETURNING id, state, marks"
)
"""Record the success of one job, inside the transaction of its own writes; fenced by the claim number."""


ATTEMPT_COLUMNS: dict[str, ColumnType] = {
    "job_id": "integer",
    "claim": "integer",
    "attempt": "integer",
    "worker_id": "text",
    "started_at": "integer",
    "finished_at": "integer",
    "outcome": "text",
    "error": "text",
}


def add_attempts(dialect: Dialect) -> str:
    """Record tries that did not simply succeed."""
    names = ", ".join(ATTEMPT_COLUMNS)
    # SQLite cannot tell an upsert after a SELECT from a join without a WHERE (sqlite.org/lang_upsert.html).
    return (
        f"INSERT INTO taskworker_attempt ({names}) SELECT {names} FROM {dialect.batch(ATTEMPT_COLUMNS)} AS e "
        "WHERE true ON CONFLICT DO NOTHING"
    )


def report_progress(dialect: Dialect) -> str:
    """Write the progress that jobs report, fenced by the claim number; not of rows that another session has locked.

    An atomic job may have succeeded meanwhile, in a transaction of its own, and this is its last report.
    """
    batch = dialect.batch({"id": "integer", "claim": "integer", "new_progress": "text"})
    return (
        f"UPDATE taskworker_job SET progress = e.new_progress FROM {batch} AS e WHERE taskworker_job.id = e.id "
        f"AND taskworker_job.claim = e.claim AND state IN ('running', 'succeeded') "
        f"AND {dialect.unlocked(f'SELECT id FROM {batch} AS b')}"
    )


NEEDED = (
    f"marks & {PARENT} <> 0 AND EXISTS (SELECT 1 FROM taskworker_edge AS e JOIN taskworker_job AS c "
    f"ON c.id = e.child_id WHERE e.parent_id = taskworker_job.id AND c.{UNFINISHED})"
)
"""A condition: the job has children that have not ended, which may ask for its result."""


def expired_jobs(dialect: Dialect) -> str:
    """Delete a small batch of finished jobs whose time is over, but for those that others need."""
    chosen = (
        f"SELECT id FROM taskworker_job WHERE {FINISHED} AND expires_at <= :now AND NOT ({NEEDED}) "
        "ORDER BY expires_at LIMIT :number"
    )
    return f"DELETE FROM taskworker_job WHERE {dialect.among('id', chosen)} RETURNING id, marks"


PARTS = tuple((f"taskworker_{name}", "job_id") for name in ("attempt", "log", "permit", "key", "step", "notice"))
MARKED_PARTS = (("taskworker_member", "job_id"), ("taskworker_wait", "job_id"), ("taskworker_edge", "child_id"))
"""The tables that have more of a job, and of a marked job, and the column that says of which."""


def expired_attempts(dialect: Dialect, table: str, column: str) -> str:
    """Delete what *table* has of deleted jobs."""
    return f"DELETE FROM {table} WHERE {column} IN (SELECT id FROM {dialect.batch({'id': 'integer'})} AS e)"


# -- figures and lines -------------------------------------------------------------------------------------------------

ROLLUP_COLUMNS: dict[str, ColumnType] = {
    "span": "integer",
    "start": "integer",
    "task": "text",
    "queue": "text",
    **dict.fromkeys(ROLLUP_FIGURES, "integer"),
}


def add_rollups(dialect: Dialect) -> str:
    """Add figures to those of their minutes and hours."""
    names = ", ".join(ROLLUP_COLUMNS)
    largest = "max" if dialect.name == "sqlite" else "greatest"
    sums = [f"{f} = taskworker_rollup.{f} + excluded.{f}" for f in ROLLUP_FIGURES if f != "longest_ms"]
    return (
        f"INSERT INTO taskworker_rollup ({names}) SELECT {names} FROM {dialect.batch(ROLLUP_COLUMNS)} AS e WHERE true "
        f"ON CONFLICT (span, start, task, queue) DO UPDATE SET {', '.join(sums)}, "
        f"longest_ms = {largest}(taskworker_rollup.longest_ms, excluded.longest_ms)"
    )


REMOVE_ROLLUPS = (
    "DELETE FROM taskworker_rollup WHERE (span = 60 AND start < :minutes_before) "
    "OR (span = 3600 AND start < :hours_before)"
)
"""Delete the roll-ups of minutes before ``:minutes_before`` and those of hours before ``:hours_before``."""


def add_lines(dialect: Dialect) -> str:
    """Store the log lines of tries, instead of those that a try has stored before; not of jobs that are gone."""
    columns: dict[str, ColumnType] = {"job_id": "integer", "claim": "integer", "lines": "text"}
    return (
        f"INSERT INTO taskworker_log (job_id, claim, lines) SELECT job_id, claim, lines FROM {dialect.batch(columns)} "
        "AS e WHERE EXISTS (SELECT 1 FROM taskworker_job WHERE id = e.job_id) "
        "ON CONFLICT (job_id, claim) DO UPDATE SET lines = excluded.lines"
    )


def remove_lines(dialect: Dialect) -> str:
    """Delete the log lines of the tries of a job up to a claim."""
    columns: dict[str, ColumnType] = {"id": "integer", "last": "integer"}
    return (
        "DELETE FROM taskworker_log WHERE (job_id, claim) IN (SELECT l.job_id, l.claim FROM "
        f"{dialect.batch(columns)} AS e JOIN taskworker_log AS l ON l.job_id = e.id AND l.claim <= e.last)"
    )


# -- schedules -------------------------------------------------------------------------------------------------------


DECLARE_SCHEDULE = (
    "INSERT INTO taskworker_schedule (name, task, trigger, args, next_at, source, seen_at) "
    "VALUES (:name, :task, :trigger, :args, :next_at, :source, :now) "
    "ON CONFLICT (name) DO UPDATE SET task = excluded.task, args = excluded.args, seen_at = excluded.seen_at, "
    "next_at = CASE WHEN :same_times = 1 THEN taskworker_schedule.next_at "
    "ELSE excluded.next_at END, trigger = excluded.trigger "
    "WHERE taskworker_schedule.source = excluded.source RETURNING name"
)
"""Store a schedule as declared, or change the one of that name from the same source.

With ``:same_times`` its next fire time stays, so that a restart misses nothing.
"""

STORED_TRIGGER = "SELECT trigger FROM taskworker_schedule WHERE name = :name"
"""The trigger of the schedule of that name."""


def _may_fire(dialect: Dialect) -> str:
    """Of the schedules in code those whose names are in ``:may_fire``, of those made at run time those whose tasks are.

    So a schedule that was removed from the code does not go on firing because its task is still there.
    """
    return f"source || ':' || CASE WHEN source = 'code' THEN name ELSE task END IN {dialect.names('may_fire')}"


def _in_order(dialect: Dialect, names: str) -> str:
    """A condition under which PostgreSQL locks the schedules that *names* selects, in the order of their names.

    What another session has locked is left out. SQLite has one writer at a time.
    """
    if dialect.name == "sqlite":
        return ""
    return (
        f" AND name = ANY(ARRAY(SELECT name FROM taskworker_schedule WHERE name = ANY(ARRAY({names})) "
        'ORDER BY name COLLATE "C" FOR UPDATE SKIP LOCKED))'
    )


def due_schedules(dialect: Dialect) -> str:
    """The schedules of ``:may_fire`` that are due, most overdue first."""
    return (
        "SELECT name, task, trigger, args, next_at FROM taskworker_schedule WHERE paused = 0 AND next_at <= :now "
        f"AND {_may_fire(dialect)} ORDER BY next_at LIMIT :number"
    )


def schedules_of_the_future(dialect: Dialect) -> str:
    """Schedules that have fired at a time later than ``:after``: the clock must have been wrong then."""
    return (
        "SELECT name, task, trigger, args, next_at FROM taskworker_schedule WHERE paused = 0 AND last_at > :after "
        f"AND next_at IS NOT NULL AND {_may_fire(dialect)} ORDER BY name LIMIT :number"
    )


def advance_schedules(dialect: Dialect) -> str:
    """Advance schedules, unless another worker has: a returned row says to make its jobs, in the same transaction."""
    batch = dialect.batch({"schedule": "text", "expected": "integer", "next_at": "integer", "last_at": "integer"})
    return (
        "UPDATE taskworker_schedule SET next_at = e.next_at, "
        f"last_at = COALESCE(e.last_at, taskworker_schedule.last_at) FROM {batch} AS e "
        "WHERE name = e.schedule AND taskworker_schedule.next_at = e.expected AND paused = 0"
        f"{_in_order(dialect, f'SELECT schedule FROM {batch} AS n')} RETURNING name"
    )


def add_scheduled_jobs(dialect: Dialect) -> str:
    """Store the jobs of schedules: none twice for one fire time.

    Of a schedule without ``overlap`` only the oldest of the batch, and none while an earlier job is unfinished.
    """
    batch = dialect.batch({**_GIVEN_TYPES, "overlap": "integer"})
    mine = "SELECT 1 FROM taskworker_job AS j WHERE j.schedule = e.schedule AND"
    return (
        f"INSERT INTO taskworker_job ({_NEW_COLUMNS}) SELECT {_NEW_COLUMNS} FROM "
        f"(SELECT e.*, row_number() OVER (PARTITION BY schedule ORDER BY fire_at) AS place FROM {batch} AS e "
        f"WHERE overlap = 1 OR NOT (EXISTS ({mine} {UNFINISHED}) OR EXISTS ({mine} j.fire_at = e.fire_at))) AS c "
        "WHERE overlap = 1 OR place = 1 ON CONFLICT DO NOTHING RETURNING id, uid"
    )


def remove_ended_schedules(dialect: Dialect) -> str:
    """Delete those of ``:names`` that were made at run time and have no fire time left."""
    return (
        "DELETE FROM taskworker_schedule WHERE source = 'runtime' AND next_at IS NULL "
        f"AND name IN {dialect.names('names')}"
    )


REMOVE_ENDED_SCHEDULE = "DELETE FROM taskworker_schedule WHERE name = :name AND source = 'runtime' AND next_at IS NULL"
"""Delete a schedule that was made at run time and has no fire time left."""

REMOVE_SCHEDULE = "DELETE FROM taskworker_schedule WHERE name = :name AND source = 'runtime' RETURNING name"
"""Delete a schedule that was made at run time."""

SCHEDULE_SOURCE = "SELECT source FROM taskworker_schedule WHERE name = :name"
"""Where the schedule of that name comes from."""

REMOVE_UNSEEN_SCHEDULES = "DELETE FROM taskworker_schedule WHERE source = 'code' AND seen_at < :before RETURNING name"
"""Delete schedules that no code has declared since ``:before``."""


def see_schedules(dialect: Dialect) -> str:
    """Note that these schedules are still declared."""
    names = f"SELECT name FROM {dialect.batch({'name': 'text'})} AS e"
    return (
        "UPDATE taskworker_schedule SET seen_at = :now WHERE source = 'code' "
        f"AND name IN ({names}){_in_order(dialect, names)}"
    )
