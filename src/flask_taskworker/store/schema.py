"""The tables. Times are epoch milliseconds in integer columns, payloads are JSON text, in both databases.

History never enters a hot index: each index below holds only rows of the states in its WHERE, so a million finished
or future rows do not slow a claim.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.sql.elements import TextClause

from ..core.rows import FAR_MS

VERSION = 1
"""The version of these tables, kept in ``taskworker_meta``."""

metadata: MetaData = MetaData()

# In a STRICT table of SQLite every integer is an INTEGER, and only INTEGER PRIMARY KEY is the rowid.
Big: BigInteger = BigInteger().with_variant(Integer, "sqlite")

# Compared by code points on both databases, so that the lanes of a limit are one range of an index.
Lane: Text = Text().with_variant(Text(collation="C"), "postgresql")

# One comparison; SQLite would fill a table for a list of three words, once a statement. A CHECK ties it to the state.
UNFINISHED = "finished_at IS NULL"
FINISHED = "finished_at IS NOT NULL"

BUCKETS_MS = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
"""Upper bounds of the durations that are counted together; one more bucket holds what is longer."""

ROLLUP_FIGURES = (
    *("succeeded", "failed", "retried", "cancelled", "run_ms", "longest_ms", "wait_ms"),
    *(f"{what}_{i}" for what in ("run", "wait") for i in range(len(BUCKETS_MS) + 1)),
)


WHERE = "where"
"""The key in an index's ``info`` under which its condition stands."""


def _partial(name: str, *columns: str | TextClause, where: str, unique: bool = False) -> Index:
    # Not sqlite_where and postgresql_where: naming them loads both dialects, 3 MB for a database that is not used.
    parts = [text(column) if isinstance(column, str) else column for column in columns]
    return Index(name, *parts, unique=unique, info={WHERE: where})


def _flags(table: str, *columns: str) -> CheckConstraint:
    return CheckConstraint(f"({' | '.join(columns)}) & -2 = 0", name=f"{table}_flags")


def _moments(table: str, *columns: str) -> CheckConstraint:
    within = " AND ".join(f"{c} BETWEEN 0 AND {FAR_MS}" for c in columns)
    return CheckConstraint(within, name=f"{table}_moments")


job: Table = Table(
    "taskworker_job",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("uid", Text, nullable=False, unique=True),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default=text("0")),
    Column("state", Text, nullable=False),
    Column("run_at", Big, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False, server_default=text("1")),
    Column("claim", Big, nullable=False, server_default=text("0")),
    Column("worker_id", Text),
    Column("at_most_once", Integer, nullable=False, server_default=text("0")),
    # Where it was enqueued (JSON), which failures it is counted among, and whether it is discarded (1: it had ended;
    # 2: it waited).
    Column("origin", Text),
    # What a transition must see to besides this row, in bits: see core/rows.py.
    Column("marks", Integer, nullable=False, server_default=text("0")),
    Column("failure_group", Text),
    Column("discarded", Integer, nullable=False, server_default=text("0")),
    Column("solo", Integer, nullable=False, server_default=text("0")),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("solo_crashes", Integer, nullable=False, server_default=text("0")),
    Column("timeout", Big),
    Column("schedule", Text),
    Column("fire_at", Big),
    Column("unique_key", Text),
    Column("cancel_requested", Integer, nullable=False, server_default=text("0")),
    Column("failure_kind", Text),
    Column("created_at", Big, nullable=False),
    Column("started_at", Big),
    Column("finished_at", Big),
    Column("expires_at", Big),
    # What may be long comes last: SQLite reads through it to find the columns behind it.
    Column("progress", Text),
    Column("args", Text, nullable=False),
    Column("result", Text),
    Column("error", Text),
    # Each is evaluated for each new row, and for each row of which it names a changed column. Short: PostgreSQL reads
    # their text for each statement, which took a tenth of an enqueue. SQLite makes a table for a list of three.
    CheckConstraint(
        "CASE WHEN finished_at IS NOT NULL "
        "THEN worker_id IS NULL AND (state = 'succeeded' OR state IN ('failed', 'cancelled')) "
        "WHEN worker_id IS NULL THEN state = 'ready' OR state IN ('scheduled', 'held') ELSE state = 'running' END",
        name="taskworker_job_life",
    ),
    CheckConstraint("kind IN ('sync', 'async')", name="taskworker_job_kind"),
    _flags("taskworker_job", "at_most_once", "solo", "cancel_requested"),
    CheckConstraint("discarded BETWEEN 0 AND 2", name="taskworker_job_discarded"),
    _partial("taskworker_job_ready", "queue", "kind", "priority DESC", "id", where="state = 'ready' AND solo = 0"),
    _partial("taskworker_job_suspect", "id", where="state = 'ready' AND solo = 1"),
    _partial("taskworker_job_due", "run_at", where="state = 'scheduled'"),
    _partial("taskworker_job_held", "worker_id", where="state = 'running'"),
    _partial("taskworker_job_gone", "expires_at", where=FINISHED),
    _partial("taskworker_job_fire", "schedule", "fire_at", where="schedule IS NOT NULL", unique=True),
    _partial("taskworker_job_unique", "unique_key", where=f"unique_key IS NOT NULL AND {UNFINISHED}", unique=True),
    _partial("taskworker_job_ended", "state", "id", where="state IN ('failed', 'cancelled') AND discarded = 0"),
    _partial("taskworker_job_discarded", "id", where="discarded <> 0"),
    _partial("taskworker_job_failure", "failure_group", "id", where="state = 'failed' AND discarded = 0"),
    _partial("taskworker_job_overlap", "schedule", where=f"schedule IS NOT NULL AND {UNFINISHED}"),
    sqlite_autoincrement=True,
)

schedule: Table = Table(
    "taskworker_schedule",
    metadata,
    Column("name", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("args", Text, nullable=False),
    Column("next_at", Big),
    Column("last_at", Big),
    Column("paused", Integer, nullable=False, server_default=text("0")),
    Column("source", Text, nullable=False),
    Column("seen_at", Big, nullable=False),
    CheckConstraint("source IN ('code', 'runtime')", name="taskworker_schedule_source"),
    _flags("taskworker_schedule", "paused"),
    _moments("taskworker_schedule", "next_at", "last_at", "seen_at"),
    _partial("taskworker_schedule_next", "next_at", where="paused = 0 AND next_at IS NOT NULL"),
)

worker: Table = Table(
    "taskworker_worker",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Big, nullable=False),
    Column("started_at", Big, nullable=False),
    Column("server_started_at", Big),
    Column("beat", Big, nullable=False, server_default=text("0")),
    Column("beat_at", Big, nullable=False),
    Column("state", Text, nullable=False),
    Column("info", Text, nullable=False),
    Column("wish", Text),
    # How many jobs of each kind it runs at once, where that was set while it runs.
    Column("threads", Integer),
    Column("concurrency", Integer),
    CheckConstraint("state IN ('alive', 'draining', 'dead', 'left')", name="taskworker_worker_state"),
    CheckConstraint("wish IN ('quiet', 'stop')", name="taskworker_worker_wish"),
    CheckConstraint("threads >= 1 AND concurrency >= 1", name="taskworker_worker_slots"),
    _moments("taskworker_worker", "started_at", "beat_at"),
)

queue: Table = Table(
    "taskworker_queue",
    metadata,
    Column("name", Text, primary_key=True),
    Column("paused", Integer, nullable=False, server_default=text("0")),
    Column("paused_at", Big),
    Column("paused_by", Text),
    Column("paused_until", Big),
    _flags("taskworker_queue", "paused"),
    _moments("taskworker_queue", "paused_at", "paused_until"),
)

# How much of what may run at once, and how often it may start: as code declares it, or as it was set at run time.
# `closings`: how often a job has closed a lane of it.
limit: Table = Table(
    "taskworker_limit",
    metadata,
    Column("name", Text, primary_key=True),
    Column("running", Integer),
    Column("amount", Integer),
    Column("per_us", Big),
    Column("burst", Integer),
    Column("fair", Integer, nullable=False, server_default=text("0")),
    Column("source", Text, nullable=False),
    Column("set_by", Text),
    Column("set_at", Big, nullable=False),
    Column("seen_at", Big, nullable=False),
    Column("closings", Big, nullable=False, server_default=text("0")),
    CheckConstraint("source IN ('code', 'runtime')", name="taskworker_limit_source"),
    CheckConstraint("running >= 1 AND amount >= 1 AND per_us >= 1 AND burst >= 1", name="taskworker_limit_numbers"),
    _moments("taskworker_limit", "set_at", "seen_at"),
)

# Where a limited job stands: one row for the whole life of the job. `phase`: 0 the job has changed, and a worker is to
# look at it; 1 in line; 2 admitted; 3 scheduled; 4 its queue is paused, or no worker serves it; 5 the job has ended.
# `begun`: its start was charged to the rate of its lane.
permit: Table = Table(
    "taskworker_permit",
    metadata,
    Column("job_id", Big, primary_key=True, autoincrement=False),
    Column("lane", Lane, nullable=False),
    Column("queue", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("phase", Integer, nullable=False, server_default=text("0")),
    Column("begun", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("phase BETWEEN 0 AND 5", name="taskworker_permit_phase"),
    _flags("taskworker_permit", "begun"),
    _partial("taskworker_permit_changed", "job_id", where="phase = 0"),
    _partial("taskworker_permit_line", "lane", "priority DESC", "job_id", where="phase = 1"),
    _partial("taskworker_permit_open", "lane", "job_id", where="phase = 2"),
    _partial("taskworker_permit_parked", "queue", "job_id", where="phase = 4"),
)

# A lane whose rate has been used, or that is closed; the others have no row. `tat`: when its rate is used up no more
# ("theoretical arrival time" of GCRA), in microseconds; `closed_until` and `open_at`, when to look at it again, in
# milliseconds. `waits_in`: the fair limit in which it waits for its turn; `turn`: when it had one, in microseconds.
lane: Table = Table(
    "taskworker_lane",
    metadata,
    Column("lane", Lane, primary_key=True),
    Column("tat", Big, nullable=False, server_default=text("0")),
    Column("closed_until", Big, nullable=False, server_default=text("0")),
    Column("open_at", Big),
    Column("waits_in", Text),
    Column("turn", Big, nullable=False, server_default=text("0")),
    _partial("taskworker_lane_open", "open_at", where="open_at IS NOT NULL"),
    _partial("taskworker_lane_turns", "waits_in", "turn", where="waits_in IS NOT NULL"),
)

# The job that stands for the calls with a key: until it has finished or `started`, and in any case until `ends_at`;
# how many calls, and when the first and the last came.
key: Table = Table(
    "taskworker_key",
    metadata,
    Column("key", Text, primary_key=True),
    Column("job_id", Big, nullable=False),
    Column("until", Text, nullable=False),
    Column("ends_at", Big),
    Column("calls", Big, nullable=False, server_default=text("1")),
    Column("first_at", Big, nullable=False),
    Column("last_at", Big, nullable=False),
    CheckConstraint("until IN ('finished', 'started')", name="taskworker_key_until"),
    _moments("taskworker_key", "ends_at", "first_at", "last_at"),
    Index("taskworker_key_job", "job_id"),
)

# What belongs together: how many jobs, and how many of them have ended how. `sealed`: only its own jobs may add others.
# `stop`: what waits of it is to be cancelled. `alarmed`: the last round in which a job failed. `calls`: the jobs that
# are stored when it ends, as JSON.
batch: Table = Table(
    "taskworker_batch",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("sealed", Integer, nullable=False, server_default=text("0")),
    Column("stop", Integer, nullable=False, server_default=text("0")),
    Column("stop_on_failure", Integer, nullable=False, server_default=text("0")),
    Column("total", Big, nullable=False, server_default=text("0")),
    Column("ok", Big, nullable=False, server_default=text("0")),
    Column("failed", Big, nullable=False, server_default=text("0")),
    Column("cancelled", Big, nullable=False, server_default=text("0")),
    Column("round", Integer, nullable=False, server_default=text("1")),
    Column("alarmed", Integer, nullable=False, server_default=text("0")),
    Column("calls", Text, nullable=False),
    Column("created_at", Big, nullable=False),
    Column("ended_at", Big),
    Column("expires_at", Big),
    CheckConstraint(
        "ok >= 0 AND failed >= 0 AND cancelled >= 0 AND ok + failed + cancelled <= total AND alarmed <= round",
        name="taskworker_batch_counts",
    ),
    CheckConstraint(
        "ended_at IS NULL OR (sealed = 1 AND ok + failed + cancelled = total)", name="taskworker_batch_ended"
    ),
    _flags("taskworker_batch", "sealed", "stop", "stop_on_failure"),
    _moments("taskworker_batch", "created_at", "ended_at", "expires_at"),
    _partial("taskworker_batch_stop", "id", where="stop = 1 AND ended_at IS NULL"),
    _partial("taskworker_batch_gone", "expires_at", where="expires_at IS NOT NULL"),
    sqlite_autoincrement=True,
)

# Which batch a job belongs to. `state`: 0 until the batch has counted it, then as it ended: 1 succeeded, 2 failed,
# 3 cancelled.
member: Table = Table(
    "taskworker_member",
    metadata,
    Column("job_id", Big, primary_key=True, autoincrement=False),
    Column("batch_id", Big, nullable=False),
    Column("state", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("state BETWEEN 0 AND 3", name="taskworker_member_state"),
    Index("taskworker_member_batch", "batch_id", "state", "job_id"),
)

# Which jobs wait for which: a parent below zero is a batch. `met`: 0 the parent has not ended; 1 it has, as `rule`
# asks; 2 otherwise, and the child is to be cancelled; 3 that was done.
edge: Table = Table(
    "taskworker_edge",
    metadata,
    Column("parent_id", Big, primary_key=True, autoincrement=False),
    Column("child_id", Big, primary_key=True, autoincrement=False),
    Column("rule", Text, nullable=False),
    Column("met", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("rule IN ('succeeded', 'ended', 'failed')", name="taskworker_edge_rule"),
    CheckConstraint("met BETWEEN 0 AND 3", name="taskworker_edge_met"),
    Index("taskworker_edge_child", "child_id"),
    _partial("taskworker_edge_broken", "child_id", where="met = 2"),
)

# How many of its parents a job waits for, and when it is due of itself, or 0.
wait: Table = Table(
    "taskworker_wait",
    metadata,
    Column("job_id", Big, primary_key=True, autoincrement=False),
    Column("needs", Integer, nullable=False),
    Column("run_at", Big, nullable=False, server_default=text("0")),
    CheckConstraint("needs >= 0", name="taskworker_wait_needs"),
    _moments("taskworker_wait", "run_at"),
)

# What a job need not do again: what a step has returned, or how far a cursor is, as JSON. `claim`: the execution that
# stored it; `number`: how many names that had used by then. `due_at`: when a sleep ends, or a wait for a notice at the
# latest. A wait that has not ended has no `ended_at`; a sleep never has.
step: Table = Table(
    "taskworker_step",
    metadata,
    Column("job_id", Big, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("claim", Big, nullable=False),
    Column("began_at", Big, nullable=False),
    Column("ended_at", Big),
    Column("due_at", Big),
    Column("kind", Text, nullable=False, server_default=text("'step'")),
    Column("result", Text),
    CheckConstraint("kind IN ('step', 'sleep', 'wait')", name="taskworker_step_kind"),
    _moments("taskworker_step", "began_at", "ended_at", "due_at"),
    # A step is one page to write then, not two.
    sqlite_with_rowid=False,
)

# Notices for jobs that have not taken them yet.
notice: Table = Table(
    "taskworker_notice",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("job_id", Big, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Big, nullable=False),
    Column("value", Text),
    _moments("taskworker_notice", "created_at"),
    Index("taskworker_notice_job", "job_id", "name", "id"),
    sqlite_autoincrement=True,
)

attempt: Table = Table(
    "taskworker_attempt",
    metadata,
    Column("job_id", Big, primary_key=True, autoincrement=False),
    Column("claim", Big, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("worker_id", Text),
    Column("started_at", Big),
    Column("finished_at", Big, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error", Text),
)

# A queued mail. Its id is the uid of its job. `phase` is "dot" from just before the message of a mail that must never
# go out twice. Its bytes are in a table of their own, so that a list of mails, and noting a try, need not move them:
# those of `body`, with shared blobs between them as `layout` says, a JSON list of lengths and hashes, or NULL.
mail: Table = Table(
    "taskworker_mail",
    metadata,
    Column("id", Text, primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("sender", Text, nullable=False),
    Column("options", Text, nullable=False),
    Column("once", Integer, nullable=False, server_default=text("0")),
    Column("phase", Text),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("size", Integer, nullable=False),
    Column("layout", Text),
    Column("created_at", Big, nullable=False),
    Column("give_up_at", Big, nullable=False),
    Column("finished_at", Big),
    Column("expires_at", Big, nullable=False),
    _flags("taskworker_mail", "once"),
    _moments("taskworker_mail", "created_at", "give_up_at", "finished_at", "expires_at"),
    Index("taskworker_mail_gone", "expires_at"),
)

mail_body: Table = Table(
    "taskworker_mail_body",
    metadata,
    Column("mail_id", Text, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

recipient: Table = Table(
    "taskworker_recipient",
    metadata,
    Column("mail_id", Text, primary_key=True),
    Column("address", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("ending", Text, nullable=False),
    Column("code", Integer),
    Column("text", Text),
    Column("next_try", Big),
    _moments("taskworker_recipient", "next_try"),
    CheckConstraint(
        "ending IN ('waiting', 'accepted', 'deferred', 'rejected', 'unknown')", name="taskworker_recipient_ending"
    ),
)

blob: Table = Table(
    "taskworker_blob",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("uses", Big, nullable=False),
    Column("bytes", LargeBinary, nullable=False),
)

# What ended in each minute and each hour (`span`: 60 or 3600 seconds, from `start` on) and in all
# (both are 0), by task and queue: how often, and how long the tries ran and waited, as sums and as counts by
# BUCKETS_MS.
rollup: Table = Table(
    "taskworker_rollup",
    metadata,
    Column("span", Integer, primary_key=True, autoincrement=False),
    Column("start", Big, primary_key=True, autoincrement=False),
    Column("task", Text, primary_key=True),
    Column("queue", Text, primary_key=True),
    *(Column(name, Big, nullable=False) for name in ROLLUP_FIGURES),
)

# The last lines that each try of a job has logged, a JSON list of [epoch ms, level, logger, text].
job_log: Table = Table(
    "taskworker_log",
    metadata,
    Column("job_id", Big, primary_key=True, autoincrement=False),
    Column("claim", Big, primary_key=True, autoincrement=False),
    Column("lines", Text, nullable=False),
)

# What people did to jobs, queues and schedules.
audit: Table = Table(
    "taskworker_audit",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("at", Big, nullable=False),
    Column("who", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("number", Big, nullable=False),
    Index("taskworker_audit_at", "at"),
    sqlite_autoincrement=True,
)

meta: Table = Table(
    "taskworker_meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
