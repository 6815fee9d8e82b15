"""The SQL of limits, in the manner of ``jobs.py``. Pure. How it fits together is in ``store/admission.py``."""

from __future__ import annotations

from .jobs import ColumnType, Dialect, claim_held

_LOCK_CLASS = 0x6C616E65
"""Lane locks of PostgreSQL are of the form with two integers: a worker's presence is of the other."""

PHASE = (
    "CASE (SELECT state FROM taskworker_job WHERE id = job_id) WHEN 'held' THEN 1 WHEN 'ready' THEN 2 "
    "WHEN 'running' THEN 2 WHEN 'scheduled' THEN 3 ELSE 5 END"
)
"""What phase the state of the job asks for."""


def add_permits(dialect: Dialect) -> str:
    """Give the jobs of a batch, which were just stored, their places."""
    batch = dialect.batch({"job_id": "integer", "lane": "text"})
    return (
        "INSERT INTO taskworker_permit (job_id, lane, queue, priority, phase) SELECT j.id, e.lane, j.queue, "
        "j.priority, CASE WHEN j.state = 'scheduled' THEN 3 ELSE 0 END "
        f"FROM {batch} AS e JOIN taskworker_job AS j ON j.id = e.job_id"
    )


def touch(dialect: Dialect) -> str:
    """Have a worker look at the places of a batch of jobs: in the transaction that changes the jobs."""
    batch = dialect.batch({"id": "integer"})
    return f"UPDATE taskworker_permit SET phase = 0, begun = 0 WHERE job_id IN (SELECT id FROM {batch} AS e)"


def changed(dialect: Dialect) -> str:
    """The next ``:number`` jobs that have changed, with their lanes, and the lanes that are to be looked at again.

    And whether each lane is locked now: where another worker has it, this one does not wait.
    """
    skip = "" if dialect.name == "sqlite" else " FOR UPDATE SKIP LOCKED"
    return (
        f"SELECT job_id, lane, {_try_lane(dialect)} FROM (SELECT * FROM (SELECT job_id, lane FROM taskworker_permit "
        f"WHERE phase = 0 LIMIT :number{skip}) AS c UNION ALL SELECT 0, lane FROM (SELECT lane FROM taskworker_lane "
        "WHERE open_at IS NOT NULL AND open_at <= :now ORDER BY open_at LIMIT :number) AS o) AS f"
    )


def _try_lane(dialect: Dialect) -> str:
    return "1" if dialect.name == "sqlite" else f"pg_try_advisory_xact_lock({_LOCK_CLASS}, hashtext(lane))"


def lock_lanes(dialect: Dialect) -> str:
    """Let one worker at a time count what a lane has; in one order, against deadlocks. PostgreSQL only."""
    names = f"SELECT DISTINCT hashtext(lane) AS k FROM {dialect.batch({'lane': 'text'})} AS e ORDER BY k"
    return f"SELECT pg_advisory_xact_lock({_LOCK_CLASS}, k) FROM ({names}) AS s"


def place(dialect: Dialect) -> str:
    """Give the places of a batch of jobs the phase that fits their states, and their priorities."""
    batch = dialect.batch({"id": "integer"})
    return (
        f"UPDATE taskworker_permit SET phase = {PHASE}, "
        "priority = COALESCE((SELECT priority FROM taskworker_job WHERE id = job_id), priority) "
        f"WHERE job_id IN (SELECT id FROM {batch} AS e)"
    )


def leave(dialect: Dialect) -> str:
    """As :func:`place`, in the transaction that ends executions: their lanes, and whether each is locked now."""
    batch = dialect.batch({"id": "integer"})
    return (
        f"UPDATE taskworker_permit SET phase = {PHASE}, begun = 0 WHERE job_id IN (SELECT id FROM {batch} AS e) "
        f"RETURNING job_id, lane, {_try_lane(dialect)}"
    )


def facts(dialect: Dialect) -> str:
    """What admission has to know, as rows (what, name, five numbers).

    ``lane``: open, of these not begun, tat, closed_until and turn of the lanes of a batch. ``limit``: the limits.
    ``paused``: the queues that are. ``worker``: what each living worker says of itself.
    """
    batch = dialect.batch({"lane": "text"})
    holding = (
        # CROSS, so that SQLite begins with the lane, here and below.
        "SELECT count(*) FROM taskworker_permit AS p CROSS JOIN taskworker_job AS j "
        "WHERE p.phase = 2 AND p.lane = e.lane AND j.id = p.job_id AND j.finished_at IS NULL"
    )
    return (
        f"SELECT 'lane' AS what, e.lane AS name, ({holding}) AS a, ({holding} AND p.begun = 0) AS b, "
        f"l.tat AS c, l.closed_until AS d, l.turn AS f FROM {batch} AS e "
        "LEFT JOIN taskworker_lane AS l ON l.lane = e.lane "
        "UNION ALL SELECT 'limit', name, running, amount, per_us, burst, fair FROM taskworker_limit "
        "UNION ALL SELECT 'paused', name, 0, 0, 0, 0, 0 FROM taskworker_queue WHERE paused = 1 "
        "UNION ALL SELECT 'worker', info, 0, 0, 0, 0, 0 FROM taskworker_worker WHERE state = 'alive'"
    )


def first_in_line(dialect: Dialect) -> str:
    """The next jobs in line, with what a claim must know: up to ``:room`` of ``:lane``; on PostgreSQL of a batch."""
    first = (
        "SELECT p.lane, p.job_id, p.queue, j.kind, j.solo, p.priority "
        "FROM taskworker_permit AS p CROSS JOIN taskworker_job AS j "
        "WHERE p.lane = {} AND p.phase = 1 AND j.id = p.job_id AND j.state = 'held' "
        "ORDER BY p.priority DESC, p.job_id LIMIT {}"
    )
    if dialect.name == "sqlite":
        return first.format(":lane", ":room")
    batch = dialect.batch({"lane": "text", "room": "integer"})
    return (
        f"SELECT c.lane, c.job_id, c.queue, c.kind, c.solo, c.priority FROM {batch} AS e CROSS JOIN LATERAL "
        f"({first.format('e.lane', 'e.room')} FOR UPDATE SKIP LOCKED) AS c"
    )


def let_in(dialect: Dialect) -> str:
    """Make the jobs of a batch, which are held and locked, ready: now a claim sees them."""
    batch = dialect.batch({"id": "integer"})
    jobs = f"UPDATE taskworker_job SET state = 'ready' WHERE id IN (SELECT id FROM {batch} AS e) AND state = 'held'"
    if dialect.name == "sqlite":
        return jobs
    # One round trip less. SQLite has no such statement, and :func:`set_phase` is the second one there.
    return f"WITH a AS ({jobs} RETURNING id) {_open('SELECT id FROM a', begun=0)}"


def take(dialect: Dialect) -> str:
    """Claim the jobs of a batch, which are held and locked, with their admission."""
    jobs = claim_held(f"id IN (SELECT id FROM {dialect.batch({'id': 'integer'})} AS e)")
    if dialect.name == "sqlite":
        return jobs
    return f"WITH a AS ({jobs}), p AS ({_open('SELECT id FROM a', begun=1)}) SELECT * FROM a"


def _open(ids: str, *, begun: int) -> str:
    return f"UPDATE taskworker_permit SET phase = 2, begun = {begun} WHERE job_id IN ({ids})"


def set_phase(dialect: Dialect, phase: int, *, begun: int = 0) -> str:
    """Give the places of a batch of jobs this phase."""
    batch = dialect.batch({"id": "integer"})
    return (
        f"UPDATE taskworker_permit SET phase = {phase}, begun = {begun} WHERE job_id IN (SELECT id FROM {batch} AS e)"
    )


def keep_lanes(dialect: Dialect) -> tuple[str, str]:
    """Store when to look at lanes again, a batch; not of those that a start or a closing has changed meanwhile."""
    columns: dict[str, ColumnType] = {
        "lane": "text",
        "tat": "integer",
        "open_at": "integer",
        "seen_tat": "integer",
        "seen_closed": "integer",
    }
    batch = dialect.batch(columns)
    return (
        f"UPDATE taskworker_lane SET tat = e.tat, open_at = e.open_at FROM {batch} AS e WHERE taskworker_lane.lane = "
        "e.lane AND taskworker_lane.tat = e.seen_tat AND taskworker_lane.closed_until = e.seen_closed",
        f"INSERT INTO taskworker_lane (lane, tat, open_at) SELECT lane, tat, open_at FROM {batch} AS e "
        "WHERE seen_tat IS NULL ON CONFLICT (lane) DO NOTHING",
    )


def next_turns(dialect: Dialect) -> str:
    """The lanes that have waited longest for their turn in the limit ``:name``, and whether each is locked."""
    return (
        f"SELECT lane, {_try_lane(dialect)} FROM (SELECT lane FROM taskworker_lane WHERE waits_in = :name "
        "ORDER BY turn LIMIT :number) AS t"
    )


def open_in(dialect: Dialect) -> str:
    """How many jobs of all lanes of the limit ``:name`` have been admitted and have not ended."""
    # By the index on SQLite; PostgreSQL's order of text is that of the database, and may not be that of bytes.
    lanes = "lane >= :name || ':' AND lane < :name || ';'"
    if dialect.name == "postgresql":
        lanes = "starts_with(lane, :name || ':')"
    return f"SELECT count(*) FROM taskworker_permit WHERE phase = 2 AND {lanes}"


def keep_turns(dialect: Dialect) -> str:
    """Store in which limit each lane of a batch waits for its turn, if it does, and when it last had one."""
    batch = dialect.batch({"lane": "text", "waits_in": "text", "turn": "integer"})
    return (
        f"INSERT INTO taskworker_lane (lane, waits_in, turn) SELECT lane, waits_in, turn FROM {batch} AS e WHERE true "
        "ON CONFLICT (lane) DO UPDATE SET waits_in = excluded.waits_in, turn = excluded.turn"
    )


def begin(dialect: Dialect) -> str:
    """Note that the jobs of a batch begin: the lane of each that had not."""
    batch = dialect.batch({"id": "integer"})
    return (
        f"UPDATE taskworker_permit SET begun = 1 WHERE job_id IN (SELECT id FROM {batch} AS e) "
        "AND phase = 2 AND begun = 0 RETURNING lane"
    )


LIMITS = "SELECT name, running, amount, per_us, burst, fair, source FROM taskworker_limit"
"""Every limit, in numbers, and where they come from."""

SET_LIMIT = (
    "INSERT INTO taskworker_limit (name, running, amount, per_us, burst, fair, source, set_by, set_at, seen_at) "
    "VALUES (:name, :running, :amount, :per_us, :burst, :fair, :source, :set_by, :now, :now) "
    "ON CONFLICT (name) DO UPDATE SET running = excluded.running, amount = excluded.amount, per_us = excluded.per_us, "
    "burst = excluded.burst, source = excluded.source, set_by = excluded.set_by, "
    "set_at = excluded.set_at, seen_at = excluded.seen_at, "
    # Only the code says whether keys are served in turn.
    "fair = CASE WHEN excluded.source = 'code' THEN excluded.fair ELSE taskworker_limit.fair END"
)
"""Store a limit, or change it."""

REMOVE_LIMIT = "DELETE FROM taskworker_limit WHERE name = :name RETURNING name"
"""Delete a limit: its lanes have room for all then."""

REMOVE_UNSEEN_LIMITS = "DELETE FROM taskworker_limit WHERE source = 'code' AND seen_at < :before RETURNING name"
"""Delete limits that no code has declared since ``:before``."""

LOOK_AT_LIMIT = (
    "WITH RECURSIVE l(lane) AS (SELECT min(lane) FROM taskworker_permit WHERE phase = 1 UNION ALL SELECT (SELECT "
    "min(lane) FROM taskworker_permit WHERE phase = 1 AND lane > l.lane) FROM l WHERE l.lane IS NOT NULL) "
    "INSERT INTO taskworker_lane (lane, open_at) SELECT lane, 0 FROM l WHERE (lane = :name "
    "OR substr(lane, 1, length(:name) + 1) = :name || ':') ON CONFLICT (lane) DO UPDATE SET open_at = excluded.open_at"
)
"""Have a worker look at all lanes of a limit in which a job waits. It jumps from lane to lane, as peek does."""


def see_limits(dialect: Dialect) -> str:
    """Note that the limits of ``:names`` are still declared."""
    return f"UPDATE taskworker_limit SET seen_at = :now WHERE name IN {dialect.names('names')}"


def queue_facts(dialect: Dialect) -> str:
    """The limit of ``:queue``, named ``:lane``, how many of its jobs run, and its lane's tat and closed_until."""
    running = "SELECT count(*) FROM taskworker_job WHERE state = 'running' AND queue = :queue"
    return (
        f"SELECT running, amount, per_us, burst, ({running}), l.tat, l.closed_until FROM taskworker_limit "
        "LEFT JOIN taskworker_lane AS l ON l.lane = name WHERE name = :lane"
    )


def charge(dialect: Dialect) -> str:
    """Charge starts to the rate of ``:lane``: ``:cost`` for all of them, to a tat between ``:least`` and ``:most``."""
    least, most = ("min", "max") if dialect.name == "sqlite" else ("least", "greatest")
    tat = f"{most}({least}(taskworker_lane.tat, :most), :least) + :cost"
    return (
        "INSERT INTO taskworker_lane (lane, tat, open_at) VALUES (:lane, :least + :cost, "
        "(:least + :cost - :early + 999) / 1000) "
        f"ON CONFLICT (lane) DO UPDATE SET tat = {tat}, open_at = ({tat} - :early + 999) / 1000 RETURNING open_at"
    )


LANE_OF = "SELECT lane FROM taskworker_permit WHERE job_id = :id"
"""The lane in which a job waits, or waited."""

CLOSE_LANE = (
    "INSERT INTO taskworker_lane (lane, closed_until, open_at) VALUES (:lane, :until, :until) ON CONFLICT (lane) "
    "DO UPDATE SET open_at = CASE WHEN taskworker_lane.closed_until < excluded.closed_until THEN excluded.open_at "
    "ELSE taskworker_lane.open_at END, "
    "closed_until = CASE WHEN taskworker_lane.closed_until < excluded.closed_until THEN excluded.closed_until "
    "ELSE taskworker_lane.closed_until END"
)
"""Let nothing more into a lane until ``:until``."""

COUNT_CLOSING = "UPDATE taskworker_limit SET closings = closings + 1 WHERE name = :limit"
"""A job has closed a lane of that limit."""


def take_back(dialect: Dialect, which: str) -> str:
    """Put up to ``:number`` jobs that were admitted, and have not begun, back in line. *which*: a condition on p."""
    chosen = (
        "SELECT p.job_id FROM taskworker_permit AS p CROSS JOIN taskworker_job AS j "
        f"WHERE p.phase = 2 AND {which} AND j.id = p.job_id AND j.state = 'ready' LIMIT :number"
    )
    return (
        f"UPDATE taskworker_job SET state = 'held' WHERE {dialect.among('id', chosen)} AND state = 'ready' "
        "RETURNING id, state, marks"
    )


LOOK_AGAIN = "UPDATE taskworker_lane SET open_at = 0 WHERE open_at IS NOT NULL AND open_at > 0"
"""The clock was set back: what was to be looked at later is looked at now."""

REMOVE_LANES = (
    "DELETE FROM taskworker_lane WHERE open_at IS NULL AND tat < :now_us AND closed_until < :now "
    "AND waits_in IS NULL AND turn < :now_us - 3600000000"
)
"""Delete the lanes that are as good as those without a row."""


def unpark(dialect: Dialect) -> str:
    """Have a worker look at the places that were put aside in these queues."""
    return f"UPDATE taskworker_permit SET phase = 0 WHERE phase = 4 AND queue IN {dialect.names('queues')}"


PAUSES_OVER = "SELECT name FROM taskworker_queue WHERE paused = 1 AND paused_until <= :now"
"""The queues that were paused until now."""


def queues_in(phase: int) -> str:
    """The queues of the places in that phase."""
    return f"SELECT DISTINCT queue FROM taskworker_permit WHERE phase = {phase}"


def heal(dialect: Dialect) -> str:
    """Of the next ``:number`` places after ``:after`` those that contradict their jobs: a bug, if there is any."""
    held = "(p.phase IN (1, 4) AND j.state = 'held')"
    wait = "(p.phase = 3 AND j.state = 'scheduled')"
    has_room = "(p.phase = 2 AND j.state IN ('ready', 'running', 'scheduled'))"
    fits = f"(p.phase = 0 OR {held} OR {wait} OR {has_room} OR (p.phase = 5 AND j.finished_at IS NOT NULL))"
    return (
        "SELECT p.job_id, CASE WHEN j.id IS NOT NULL AND "
        f"{fits} THEN 1 ELSE 0 END FROM (SELECT * FROM taskworker_permit WHERE job_id > :after ORDER BY job_id "
        "LIMIT :number) AS p LEFT JOIN taskworker_job AS j ON j.id = p.job_id ORDER BY p.job_id"
    )
