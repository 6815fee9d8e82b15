"""The SQL behind pages and commands, one function a statement, in the manner of ``statements.py``. Pure.

Each statement is bounded: it looks at no more than ``:window`` rows of an index, whatever lies in the table.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from ...core.filters import JobFilter
from ...core.rows import FAR_MS, NOTICE, WAITS
from ..schema import BUCKETS_MS, FINISHED, ROLLUP_FIGURES
from .jobs import RECORD, SQLITE, Dialect, held_ids

SHOWN = 2_000
"""Characters of arguments and errors that a list needs."""
SEARCHED = 20_000
"""Characters of arguments in which a filter looks; longer ones fit none."""

_ALIVE = "discarded = 0"
ROW = f"{RECORD}, discarded, failure_group, substr(args, 1, {SHOWN}) AS args, substr(error, 1, {SHOWN}) AS error"
ARGS_ROW = f"id, task, substr(args, 1, {SEARCHED})"


# -- jobs --------------------------------------------------------------------------------------------------------------


def _base(dialect: Dialect, chosen: JobFilter, *, everywhere: bool = False) -> str:
    """What an index knows of the filter: there the looking begins."""
    if chosen.id is not None:
        return "id = :id"
    if chosen.uid is not None:
        return "uid = :uid"
    if chosen.discarded:
        return "discarded <> 0"
    if chosen.group is not None:
        return f"state = 'failed' AND {_ALIVE} AND failure_group = :group"
    if chosen.worker is not None:
        return "state = 'running' AND worker_id = :worker"
    few = None if everywhere else _few(chosen)
    if few is not None:
        return f"id IN ({few})" if dialect.name == "sqlite" else f"id = ANY(ARRAY({few}))"
    match chosen.states:
        case ("failed",) | ("cancelled",):
            return _ended(dialect, chosen.states[0])
    return "true"


def _ended(dialect: Dialect, state: str) -> str:
    # SQLite does not see that the first implies the second; PostgreSQL does, and takes it for rarer if told.
    known = " AND state IN ('failed', 'cancelled')" if dialect.name == "sqlite" else ""
    return f"state = '{state}'{known} AND {_ALIVE}"


def _few(chosen: JobFilter) -> str | None:
    """The first ``:few`` ids that an index offers, where it has them in another order than that of the list."""
    part = "SELECT id FROM (SELECT id FROM taskworker_job WHERE {} LIMIT :few) AS {}"
    if chosen.schedule is not None:
        # Newest first by fire time is newest first by id.
        return part.format("schedule IS NOT NULL AND schedule = :schedule ORDER BY fire_at DESC", "f")
    if chosen.batch is not None:
        return "SELECT job_id FROM (SELECT job_id FROM taskworker_member WHERE batch_id = :batch LIMIT :few) AS m"
    if chosen.follows is not None:
        return "SELECT child_id FROM (SELECT child_id FROM taskworker_edge WHERE parent_id = :follows LIMIT :few) AS c"
    match chosen.states:
        case ("ready",):
            kinds = (("state = 'ready' AND solo = 0", "r"), ("state = 'ready' AND solo = 1", "s"))
            return " UNION ALL ".join(part.format(*kind) for kind in kinds)
        case ("scheduled",) | ("retrying",):
            return part.format("state = 'scheduled' ORDER BY run_at", "d")
        case ("held",) if chosen.lane is not None:
            line = f"SELECT p.job_id AS id FROM taskworker_permit AS p WHERE p.phase = 1 AND {_in_lane(chosen.lane)}"
            return f"SELECT id FROM ({line} LIMIT :few) AS l UNION ALL {held_ids(':few')}"
        case ("waiting",):
            return part.format(f"state = 'scheduled' AND run_at >= {FAR_MS} AND {_WAITING}", "w")
        case ("held",):
            return held_ids(":few")
        case ("running",):
            return part.format("state = 'running'", "h")
    return None


def few_ids(chosen: JobFilter) -> str | None:
    """How many ids :func:`jobs` begins with, where these may not be all; None where it begins with all."""
    few = _few(chosen) if "IN (SELECT" in _base(SQLITE, chosen) else None
    return None if few is None else f"SELECT count(*) FROM ({few}) AS few"


def conditions(dialect: Dialect, chosen: JobFilter) -> str:
    """What must hold of a row that fits, but for its arguments."""
    parts = ["discarded <> 0" if chosen.discarded else _ALIVE]
    if chosen.states:
        retrying = "(state = 'scheduled' AND failures > 0)"
        special = {"retrying": retrying, "waiting": f"(state = 'scheduled' AND {_WAITING})"}
        states = [special.get(state, f"state = '{state}'") for state in chosen.states]
        parts.append(f"({' OR '.join(states)})")
    if chosen.task is not None:
        # SQLite's LIKE takes A for a.
        like = "task GLOB :glob" if dialect.name == "sqlite" else "task LIKE :task ESCAPE '\\'"
        parts.append(like if "*" in chosen.task else "task = :task")
    for name, column in _EQUAL.items():
        if getattr(chosen, name) is not None:
            parts.append(f"{column} = :{name}")
    if chosen.lane is not None:
        parts.append(
            "EXISTS (SELECT 1 FROM taskworker_permit AS p WHERE p.job_id = taskworker_job.id "
            f"AND {_in_lane(chosen.lane)})"
        )
    if chosen.unique is not None:
        # Stored with the task before it: see client.rows.unique_key.
        parts.append(r"unique_key = replace(replace(task, '\', '\\'), ':', '\:') || ':' || :unique")
    parts += [condition for name, condition in _OTHERS.items() if getattr(chosen, name) is not None]
    return " AND ".join(parts)


def _in_lane(lane: str) -> str:
    # Without a key it means all of them.
    more = "" if ":" in lane else " OR (p.lane > :lane || ':' AND p.lane < :lane || ';')"
    return f"(p.lane = :lane{more})"


_CHILD = "substr(origin, 1, CAST(:child_length AS integer)) IN (:child, :child_and_more)"
"""The job stands first in an origin; see origin.py."""
_OTHERS = {
    "parent": _CHILD,
    "batch": "EXISTS (SELECT 1 FROM taskworker_member WHERE job_id = taskworker_job.id AND batch_id = :batch)",
    "follows": "EXISTS (SELECT 1 FROM taskworker_edge WHERE child_id = taskworker_job.id AND parent_id = :follows)",
    "attempts": "failures >= :attempts",
    "after": "created_at >= :after",
    "before": "created_at < :created_before",
}
_WAITING = f"marks & {WAITS | NOTICE} <> 0"
_EQUAL = {
    "id": "id",
    "uid": "uid",
    "queue": "queue",
    "schedule": "schedule",
    "worker": "worker_id",
    "group": "failure_group",
}


def parameters_of(chosen: JobFilter) -> dict[str, Any]:
    """The parameters of :func:`jobs` that come from the filter."""
    task = chosen.task_pattern() if chosen.task is not None and "*" in chosen.task else chosen.task
    values = {
        **{name: getattr(chosen, name) for name in _EQUAL},
        "task": task,
        "glob": chosen.task_glob(),
        "lane": chosen.lane,
        "unique": chosen.unique,
        "parent": chosen.parent,
        "child": None if chosen.parent is None else f'{{"job": {chosen.parent}}}',
        "child_and_more": None if chosen.parent is None else f'{{"job": {chosen.parent},',
        "child_length": None if chosen.parent is None else len(f'{{"job": {chosen.parent}}}'),
        "batch": chosen.batch,
        "follows": chosen.follows,
        "attempts": chosen.attempts,
        "after": chosen.after,
        "created_before": chosen.before,
    }
    return {name: value for name, value in values.items() if value is not None}


def jobs(dialect: Dialect, chosen: JobFilter, columns: str = ROW, *, everywhere: bool = False) -> str:
    """The newest ``:limit`` jobs before ``:before`` that fit, down to ``:floor``, where :func:`jobs_floor` says it is.

    *everywhere*: look at rows of all states, where the index offers some of a state in another order.
    """
    base, wanted = _base(dialect, chosen, everywhere=everywhere), conditions(dialect, chosen)
    if dialect.name == "sqlite":
        # As below, SQLite would read the whole window each time.
        return (
            f"SELECT {columns} FROM taskworker_job WHERE {base} AND id < :before AND id >= :floor AND {wanted} "
            "ORDER BY id DESC LIMIT :limit"
        )
    # As above, PostgreSQL would look at all rows: it does not know how few the floor leaves.
    window = (
        f"SELECT * FROM taskworker_job WHERE {base} AND id < :before AND id >= :floor ORDER BY id DESC "
        "LIMIT :window + 1"
    )
    return f"SELECT {columns} FROM ({window}) AS taskworker_job WHERE {wanted} ORDER BY id DESC LIMIT :limit"


def jobs_floor(dialect: Dialect, chosen: JobFilter, *, everywhere: bool = False) -> str:
    """Where the ``:window`` newest that the index offers end: the id of the next, or no row where they are all."""
    base = _base(dialect, chosen, everywhere=everywhere)
    # A child has a greater number than its parent.
    after = "" if chosen.parent is None else " AND id > :parent"
    return f"SELECT id FROM taskworker_job WHERE {base}{after} AND id < :before ORDER BY id DESC LIMIT 1 OFFSET :window"


def count_all(dialect: Dialect, chosen: JobFilter) -> str:
    """Exactly how many jobs before ``:before`` fit, but for their arguments. Not bounded."""
    base = _base(dialect, chosen, everywhere=True)
    return f"SELECT count(*) FROM taskworker_job WHERE {base} AND id < :before AND {conditions(dialect, chosen)}"


NEWEST_ID = "SELECT COALESCE(max(id), 0) FROM taskworker_job"
"""The number of the newest job; 0 where there is none."""


JOB_WHOLE = (
    f"SELECT {RECORD}, discarded, failure_group, substr(args, 1, CAST(:most AS integer)) AS args, error, "
    "substr(result, 1, CAST(:most AS integer)) AS result, origin FROM taskworker_job WHERE id = :id"
)
"""One job with its payloads, and what a list does not need."""


TRIES = (
    "SELECT 'try', claim, attempt, worker_id, started_at, finished_at, outcome, error FROM (SELECT * FROM "
    "taskworker_attempt WHERE job_id = :id ORDER BY claim DESC LIMIT 100) AS a "
    "UNION ALL SELECT 'log', claim, 0, NULL, NULL, 0, '', lines FROM (SELECT * FROM taskworker_log "
    "WHERE job_id = :id ORDER BY claim DESC LIMIT :tries) AS l "
    "UNION ALL SELECT 'calls', calls, 0, NULL, first_at, last_at, '', NULL FROM taskworker_key WHERE job_id = :id "
    "UNION ALL SELECT 'lane', 0, 0, NULL, 0, 0, '', lane FROM taskworker_permit WHERE job_id = :id "
    "UNION ALL SELECT 'steps', 0, 0, NULL, 0, 0, '', NULL WHERE EXISTS "
    "(SELECT 1 FROM taskworker_step WHERE job_id = :id)"
)
"""The last 100 tries of one job that did not succeed ("try"), the log lines of the last ``:tries`` ("log"), for how
many calls the job stands ("calls"), its lane ("lane"), and whether it has steps ("steps")."""


def children(dialect: Dialect) -> str:
    """The first ``:limit`` jobs that were enqueued inside job ``:parent``, between ``:since`` and ``:until``.

    Later jobs have greater numbers, but for those of clocks that differ: so where these moments are is found by
    halving, and no more than ``:window`` rows are looked at from there.
    """
    wanted = (
        "SELECT id FROM (SELECT id, origin FROM taskworker_job WHERE id > (SELECT max(low) FROM since_at) "
        "AND id <= (SELECT min(high) FROM until_at) ORDER BY id LIMIT :window) AS looked "
        f"WHERE {_CHILD} ORDER BY id LIMIT :limit"
    )
    places = ", ".join(_place(name) for name in ("since", "until"))
    chosen = f"id IN ({wanted})" if dialect.name == "sqlite" else f"id = ANY(ARRAY({wanted}))"
    return f"WITH RECURSIVE {places} SELECT {ROW} FROM taskworker_job WHERE {chosen} ORDER BY id"


def _place(moment: str) -> str:
    """Between which numbers the first job after that moment is: each row halves the distance."""
    middle = "(low + high) / 2"
    is_before = f"(SELECT created_at FROM taskworker_job WHERE id > {middle} ORDER BY id LIMIT 1) < :{moment}"
    return (
        f"{moment}_at(low, high) AS (SELECT CAST(:parent AS bigint), (SELECT max(id) FROM taskworker_job) UNION ALL "
        f"SELECT CASE WHEN {is_before} THEN {middle} ELSE low END, CASE WHEN {is_before} THEN high ELSE {middle} END "
        f"FROM {moment}_at WHERE high - low > 1)"
    )


PLACE = f"WITH RECURSIVE {_place('moment')} SELECT max(low), min(high) FROM moment_at"
"""Two numbers: those up to the first are of jobs before ``:moment``, and those above the second are of later ones."""


def count_states() -> str:
    """How many jobs have each state, each counted up to ``:most``; ``finished`` up to four times that."""
    counted = "SELECT '{}' AS what, (SELECT count(*) FROM (SELECT 1 FROM taskworker_job WHERE {} LIMIT {}) AS c)"
    kinds = {
        "scheduled": "state = 'scheduled'",
        "waiting": f"state = 'scheduled' AND run_at >= {FAR_MS}",
        "ready": "state = 'ready' AND solo = 0",
        "suspect": "state = 'ready' AND solo = 1",
        "running": "state = 'running'",
        **{s: f"state = '{s}' AND state IN ('failed', 'cancelled') AND {_ALIVE}" for s in ("failed", "cancelled")},
        "discarded": "discarded <> 0",
    }
    parts = [counted.format(what, where, ":most") for what, where in kinds.items()]
    parts.append(f"SELECT 'held', (SELECT count(*) FROM ({held_ids(':most')}) AS h)")
    parts.append(counted.format("finished", FINISHED, "4 * CAST(:most AS integer)"))
    due = "SELECT failures FROM taskworker_job WHERE state = 'scheduled' ORDER BY run_at LIMIT :most"
    parts.append(f"SELECT 'retrying', (SELECT count(*) FROM ({due}) AS r WHERE failures > 0)")
    return " UNION ALL ".join(parts)


_NEXT_QUEUE = "SELECT min(queue) FROM taskworker_job WHERE state = 'ready' AND solo = 0"
_QUEUES = (
    f"WITH RECURSIVE q(name) AS ({_NEXT_QUEUE} UNION ALL SELECT ({_NEXT_QUEUE} AND queue > q.name) FROM q "
    "WHERE q.name IS NOT NULL)"
)


RUNNING = f"SELECT {ROW} FROM taskworker_job WHERE state = 'running' ORDER BY started_at, id LIMIT :limit"
"""The jobs that run, those that have run longest first, up to ``:limit``."""


# -- failures ----------------------------------------------------------------------------------------------------------


def failure_groups(dialect: Dialect) -> str:
    """The newest ``:window`` failed jobs by group and slice of ``:step`` ms: how many, when, and the newest job.

    Those before ``:since`` are all in one slice, -1.
    """
    newest = (
        f"SELECT id, failure_group, finished_at FROM taskworker_job WHERE {_ended(dialect, 'failed')} "
        "ORDER BY id DESC LIMIT :window"
    )
    return (
        "SELECT failure_group, CASE WHEN finished_at < :since THEN -1 ELSE finished_at / :step * :step END AS slice, "
        f"count(*), max(id), min(finished_at), max(finished_at) FROM ({newest}) AS f GROUP BY 1, 2"
    )


ERROR_END = 4_000
"""Characters at the end of a stored error in which the last frames of its traceback are looked for."""


def error_ends(dialect: Dialect) -> str:
    """The ends of the errors of a batch of jobs."""
    first = f"CASE WHEN length(error) > {ERROR_END} THEN length(error) - {ERROR_END} + 1 ELSE 1 END"
    return (
        f"SELECT id, substr(error, {first}) FROM taskworker_job "
        f"WHERE id IN (SELECT id FROM {dialect.batch({'id': 'integer'})} AS e)"
    )


def jobs_by_id(dialect: Dialect) -> str:
    """The jobs of a batch of ids."""
    return f"SELECT {ROW} FROM taskworker_job WHERE id IN (SELECT id FROM {dialect.batch({'id': 'integer'})} AS e)"


# -- queues, schedules, workers ----------------------------------------------------------------------------------------


_READY = "FROM taskworker_job AS j WHERE j.state = 'ready' AND j.solo = 0 AND j.queue = q.name LIMIT"
QUEUES = (
    f"{_QUEUES} SELECT name, (SELECT count(*) FROM (SELECT 1 {_READY} :most) AS counted), (SELECT min(since) FROM "
    f"(SELECT CASE WHEN j.run_at > 0 THEN j.run_at ELSE j.created_at END AS since {_READY} 1000) AS dated) "
    "FROM q WHERE name IS NOT NULL"
)
"""Queues with ready jobs: how many up to ``:most``, and since when the oldest of the next 1,000 waits."""


RUNNING_AND_PAUSED = (
    "SELECT queue, 0 AS paused, count(*), CAST(NULL AS bigint), CAST(NULL AS text), CAST(NULL AS bigint) "
    "FROM taskworker_job WHERE state = 'running' GROUP BY queue "
    "UNION ALL SELECT name, 1, 0, paused_at, paused_by, paused_until FROM taskworker_queue WHERE paused = 1"
)
"""How many jobs of each queue run (a row with ``paused`` 0), and the queues that are paused (a row with 1)."""


def schedule_runs(dialect: Dialect) -> str:
    """The last ``:limit`` jobs of each schedule in ``:names``, newest first."""
    run = ", ".join(f"j.{name}" for name in _RUN)
    return (
        # CROSS, so that SQLite begins with the schedules: else it looks at all jobs of all of them.
        f"SELECT {run} FROM taskworker_schedule AS s CROSS JOIN taskworker_job AS j "
        f"WHERE s.name IN {dialect.names('names')} AND j.schedule = s.name AND j.schedule IS NOT NULL "
        "AND j.fire_at IN (SELECT fire_at FROM taskworker_job "
        "WHERE schedule IS NOT NULL AND schedule = s.name ORDER BY fire_at DESC LIMIT :limit) "
        "ORDER BY j.schedule, j.fire_at DESC"
    )


SCHEDULED_BY_QUEUE = (
    "SELECT queue, count(*), CAST(sum(CASE WHEN failures > 0 THEN 1 ELSE 0 END) AS bigint) "
    f"FROM (SELECT queue, failures FROM taskworker_job WHERE state = 'scheduled' AND run_at < {FAR_MS} "
    "ORDER BY run_at LIMIT :most) AS s GROUP BY queue"
)
"""The next ``:most`` scheduled jobs by queue: how many, and how many of them have failed before."""

SCHEDULE_FIGURES = (
    "SELECT s.name, s.next_at, s.paused, (SELECT max(r.finished_at) FROM (SELECT j.state, j.finished_at "
    "FROM taskworker_job AS j WHERE j.schedule IS NOT NULL AND j.schedule = s.name "
    "ORDER BY j.fire_at DESC LIMIT :runs) AS r WHERE r.state = 'succeeded') "
    "FROM taskworker_schedule AS s WHERE s.source = 'code' "
    "UNION ALL SELECT CAST(:others AS text), min(CASE WHEN paused = 0 THEN next_at END), 0, CAST(NULL AS bigint) "
    "FROM taskworker_schedule WHERE source = 'runtime' HAVING count(*) > 0"
)
"""What metrics say of schedules: see :meth:`Browser.schedule_figures`."""


_RUN = ("schedule", "id", "state", "fire_at", "started_at", "finished_at")


# -- figures -----------------------------------------------------------------------------------------------------------

_BUCKETS = range(len(BUCKETS_MS) + 1)
Key = Literal["task", "queue"]


def series(by: Key | None = None) -> str:
    """Figures since ``:since`` in slices of ``:step`` ms, one row a slice (and task or queue), oldest first."""
    sums = [f"CAST(sum({name}) AS bigint)" for name in ROLLUP_FIGURES if name != "longest_ms"]
    sums.insert(ROLLUP_FIGURES.index("longest_ms"), "max(longest_ms)")
    key = f", {by}" if by else ", ''"
    return (
        f"SELECT start / :step * :step AS slice{key}, {', '.join(sums)} FROM taskworker_rollup "
        "WHERE span = :span AND start >= :since AND (CAST(:task AS text) IS NULL OR task = :task) "
        "AND (CAST(:queue AS text) IS NULL OR queue = :queue) GROUP BY 1, 2 ORDER BY 1, 2"
    )


TOTALS = f"SELECT task, queue, {', '.join(ROLLUP_FIGURES)} FROM taskworker_rollup WHERE span = 0 ORDER BY task, queue"
"""The figures of all the time, by task and queue."""


# -- limits ------------------------------------------------------------------------------------------------------------

_ADMITTED = (
    # CROSS, so that SQLite begins with the lanes.
    "FROM taskworker_permit AS p CROSS JOIN taskworker_job AS j "
    "WHERE p.phase = 2 AND {} AND j.id = p.job_id AND j.finished_at IS NULL"
)
_ITS = "{0}.lane >= m.low AND {0}.lane < m.high"


def limits() -> str:
    """Every limit: its numbers, where they come from, what it has admitted, what waits, and its lanes.

    ``admitted``, ``waiting`` (in line), ``aside`` (of queues that are paused or not served) and ``closed`` (lanes) are
    counted up to ``:most``. ``opens_at``: when the first lane with a line opens, of the next ``:sample`` lanes that do.
    ``tat`` and ``closed_until`` are those of the lane that is called as the limit.
    """
    aside = "SELECT lane FROM taskworker_permit WHERE phase = 4 LIMIT :most"
    soon = "SELECT lane, open_at FROM taskworker_lane WHERE open_at IS NOT NULL AND open_at > :now"
    waits = "EXISTS (SELECT 1 FROM taskworker_permit AS p WHERE p.phase = 1 AND p.lane = s.lane)"
    columns = {
        "admitted": f"SELECT count(*) {_ADMITTED.format(_ITS.format('p'))}",
        "waiting": "SELECT count(*) FROM (SELECT 1 FROM taskworker_permit AS p WHERE p.phase = 1 "
        f"AND {_ITS.format('p')} LIMIT :most) AS w",
        "aside": f"SELECT count(*) FROM aside AS a WHERE {_ITS.format('a')}",
        "closed": f"SELECT count(*) FROM (SELECT closed_until FROM taskworker_lane AS l WHERE {_ITS.format('l')} "
        "AND l.open_at > :now LIMIT :most) AS c WHERE closed_until > :now",
        "opens_at": f"SELECT min(open_at) FROM soon AS s WHERE {_ITS.format('s')} AND {waits}",
    }
    picked = ", ".join(f"({select}) AS {name}" for name, select in columns.items())
    sums = ", ".join(f"CAST(sum({name}) AS bigint) AS {name}" for name in list(columns)[:-1])
    running = "(SELECT count(*) FROM taskworker_job WHERE state = 'running' AND queue = substr(t.name, 7))"
    ready = (
        "(SELECT count(*) FROM (SELECT 1 FROM taskworker_job WHERE state = 'ready' AND solo = 0 "
        "AND queue = substr(t.name, 7) LIMIT :most) AS r)"
    )
    of_queue = "CASE WHEN substr(t.name, 1, 6) = 'queue:' THEN {} ELSE {} END"
    return (
        "WITH m AS (SELECT name, name AS low, name || ' ' AS high FROM taskworker_limit UNION ALL "
        "SELECT name, name || ':', name || ';' FROM taskworker_limit), "
        f"aside AS ({aside}), soon AS ({soon} ORDER BY open_at LIMIT :sample), n AS (SELECT name, {sums}, "
        f"min(opens_at) AS opens_at FROM (SELECT m.name, {picked} FROM m) AS f GROUP BY name) "
        "SELECT t.name, t.running, t.amount, t.per_us, t.burst, t.source, t.set_by, t.set_at, t.closings, "
        f"{of_queue.format(running, 'n.admitted')}, {of_queue.format(ready, 'n.waiting')}, n.aside, n.closed, "
        "n.opens_at, COALESCE(l.tat, 0), COALESCE(l.closed_until, 0) FROM taskworker_limit AS t "
        "JOIN n ON n.name = t.name LEFT JOIN taskworker_lane AS l ON l.lane = t.name ORDER BY t.name"
    )


HELD_BY_QUEUE = (
    "SELECT queue, count(*) FROM (SELECT queue FROM (SELECT queue FROM taskworker_permit WHERE phase = 1 LIMIT :most) "
    "AS a UNION ALL SELECT queue FROM (SELECT queue FROM taskworker_permit WHERE phase = 4 LIMIT :most) AS b UNION ALL "
    "SELECT queue FROM (SELECT p.queue FROM taskworker_permit AS p CROSS JOIN taskworker_job AS j WHERE p.phase = 0 "
    "AND j.id = p.job_id AND j.state = 'held' LIMIT :most) AS c) AS h GROUP BY queue ORDER BY queue"
)
"""How many jobs of each queue wait to be admitted, up to ``:most`` of each kind."""

SUSPECTS = (
    "SELECT queue, count(*) FROM (SELECT queue FROM taskworker_job WHERE state = 'ready' AND solo = 1 LIMIT :most) "
    "AS s GROUP BY queue"
)
"""How many of the first ``:most`` ready jobs that must run alone each queue has."""


def lanes(dialect: Dialect) -> str:
    """The ``:shown`` lanes with the longest lines of each limit of a batch of names, and how each stands.

    Looked for among the lanes of the ``:window`` newest places, and those that a walk from lane to lane finds, which
    counts ``:sample`` jobs of each at the most, and about ``:budget`` in all.
    """
    sample = "SELECT count(*) FROM (SELECT 1 FROM taskworker_permit WHERE phase = 1 AND lane = {} LIMIT :sample) AS c"
    following = (
        "(SELECT min(p.lane) FROM taskworker_permit AS p WHERE p.phase = 1 AND p.lane < r.name || ';' "
        "AND p.lane > CASE WHEN r.lane = r.name THEN r.name || ':' ELSE r.lane END)"
    )
    collated = "" if dialect.name == "sqlite" else ' COLLATE "C"'
    names = dialect.batch({"name": "text"})
    walk = (
        f"r(name, lane, budget) AS (SELECT name, CAST(name AS text){collated}, CAST(:budget AS bigint) "
        f"FROM {names} AS e UNION ALL SELECT r.name, {following}, r.budget - 1 - ({sample.format('r.lane')}) FROM r "
        "WHERE r.lane IS NOT NULL AND r.budget > 0)"
    )
    newest = (
        "g AS (SELECT lane, count(*) AS number FROM (SELECT lane, phase FROM taskworker_permit ORDER BY job_id DESC "
        "LIMIT :window) AS p WHERE phase = 1 GROUP BY lane), "
        "h AS (SELECT e.name, g.lane, row_number() OVER (PARTITION BY e.name ORDER BY g.number DESC) AS place "
        f"FROM {names} AS e JOIN g ON g.lane = e.name OR (g.lane > e.name || ':' AND g.lane < e.name || ';'))"
    )
    found = "SELECT name, lane FROM r WHERE lane IS NOT NULL UNION SELECT name, lane FROM h WHERE place <= :shown"
    longest = (
        f"f AS (SELECT name, lane, row_number() OVER (PARTITION BY name ORDER BY number DESC, lane) AS place FROM "
        f"(SELECT name, lane, ({sample.format('a.lane')}) AS number FROM ({found}) AS a) AS c WHERE number > 0)"
    )
    waiting = sample.format("f.lane").replace(":sample", ":most")
    return (
        f"WITH RECURSIVE {walk}, {newest}, {longest} SELECT f.name, f.lane, ({waiting}) AS waiting, "
        f"(SELECT count(*) {_ADMITTED.format('p.lane = f.lane')}), "
        f"(SELECT count(*) {_ADMITTED.format('p.lane = f.lane AND p.begun = 0')}), "
        f"(SELECT min(p.job_id) {_ADMITTED.format('p.lane = f.lane')}), COALESCE(l.tat, 0), "
        "COALESCE(l.closed_until, 0) FROM f LEFT JOIN taskworker_lane AS l ON l.lane = f.lane WHERE f.place <= :shown "
        "ORDER BY f.name, waiting DESC, f.lane"
    )


# -- mails -------------------------------------------------------------------------------------------------------------

MAIL_HEAD = 4_096
"""Bytes of a mail in which its header lines are looked for."""


_MAILS = (
    "SELECT m.id, m.message_id, m.sender, m.once, m.phase, m.tries, m.size, m.created_at, m.give_up_at, "
    f"m.finished_at, substr(b.body, 1, {MAIL_HEAD}), j.id, j.state, j.failure_kind, j.run_at "
    "FROM taskworker_mail AS m LEFT JOIN taskworker_mail_body AS b ON b.mail_id = m.id "
    "LEFT JOIN taskworker_job AS j ON j.uid = m.id"
)


MAIL = f"{_MAILS} WHERE m.id = :id"
"""One queued mail, as in :func:`mails`."""


def first_recipients(dialect: Dialect) -> str:
    """The first ``:most`` recipients of each mail of a batch."""
    return (
        "SELECT mail_id, address, ending, code, text, next_try FROM taskworker_recipient WHERE mail_id IN "
        f"(SELECT id FROM {dialect.batch({'id': 'text'})} AS e) AND CAST(position AS bigint) < :most "
        "ORDER BY mail_id, position"
    )


def mail_endings(dialect: Dialect) -> str:
    """How many recipients of each mail of a batch stand how."""
    return (
        "SELECT mail_id, ending, count(*) FROM taskworker_recipient WHERE mail_id IN "
        f"(SELECT id FROM {dialect.batch({'id': 'text'})} AS e) GROUP BY mail_id, ending "
        "ORDER BY mail_id, min(position)"
    )


def mails(dialect: Dialect, given: Collection[str]) -> str:
    """The newest ``:limit`` queued mails, with the beginning of their bytes.

    *given*: which parameters limit them: ``before`` and ``floor``, ids, and ``address``, a part of a recipient's.
    """
    like = "LIKE" if dialect.name == "sqlite" else "ILIKE"
    conditions = {
        "before": "m.id < :before",
        "floor": "m.id >= :floor",
        "address": "EXISTS (SELECT 1 FROM taskworker_recipient AS r WHERE r.mail_id = m.id "
        f"AND r.address {like} :address ESCAPE '\\')",
    }
    wanted = " AND ".join(condition for name, condition in conditions.items() if name in given)
    return f"{_MAILS} WHERE {wanted or 'true'} ORDER BY m.id DESC LIMIT :limit"


def mails_floor(given: Collection[str]) -> str:
    """Where the ``:window`` newest mails (before ``:before``) end: the next id, or no row where they are all."""
    below = "id < :before" if "before" in given else "true"
    return f"SELECT id FROM taskworker_mail WHERE {below} ORDER BY id DESC LIMIT 1 OFFSET :window"


# -- the audit log -----------------------------------------------------------------------------------------------------


AUDIT = (
    "SELECT id, at, who, action, target, number FROM taskworker_audit WHERE id < :before ORDER BY id DESC LIMIT :limit"
)
"""The newest ``:limit`` actions before ``:before``."""


def unfinished_tasks() -> str:
    """How many of the first ``:window`` ready, and of as many scheduled, jobs there are of each task."""
    some = "SELECT task FROM (SELECT task FROM taskworker_job WHERE {} LIMIT :window) AS {}"
    kinds = {
        "r": "state = 'ready' AND solo = 0",
        "s": "state = 'ready' AND solo = 1",
        "d": "state = 'scheduled' ORDER BY run_at",
    }
    every = " UNION ALL ".join(some.format(where, name) for name, where in kinds.items())
    return f"SELECT task, count(*) FROM ({every}) AS u GROUP BY task ORDER BY task"


OVERDUE_FOR_PRUNING = (
    f"SELECT count(*) FROM (SELECT 1 FROM taskworker_job WHERE {FINISHED} AND expires_at < :before LIMIT :most) AS c"
)
"""How many finished jobs should have been deleted before ``:before``, up to ``:most``."""
