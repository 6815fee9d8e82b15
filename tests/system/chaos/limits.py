"""Rows of limits: processes are killed while lanes are full, and starts keep their rate."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flask_taskworker.store.statements import limits as statements
from tests.system.chaos import journal
from tests.system.chaos.clocks import Clock
from tests.system.chaos.fleet import until
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.shims import built, compiler
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.verifier import percentile
from tests.system.chaos.worker import LANE_ROOM, RATE, Line

WORKERS = 4
FRESH = 1_000
"""The first of the keys that are in use while nothing is killed."""
CALM_LANES = 20


@row("36", "limits-kill", "kill -9 of one of four workers while all lanes are full")
def kill_under_limits(run: Run) -> Result:
    """However processes die, no more than three jobs of a key run at once, and no room is lost."""
    kills, jobs, keys = run.choose((200, 10_000, 50), (4, 300, 10))
    pause = 0.5 if run.database == "sqlite" else 1.5
    died: dict[int, float] = {}
    with a_stage(run, TASKER_CONCURRENCY=16) as stage:
        stage.start(WORKERS)
        settle(stage, WORKERS)
        calls = [(number % keys, round(0.2 * stage.chance.random(), 3)) for number in range(jobs)]
        stage.accept(stage.enqueue("ship", calls))
        for _ in range(kills):
            time.sleep(pause * stage.chance.uniform(0.5, 1.5))
            child = stage.chance.choice(stage.children)
            stage.kill(child)
            died[child.pid] = time.time()
            stage.start()
        until(
            lambda: not _read(stage, "SELECT 1 FROM taskworker_job WHERE finished_at IS NULL LIMIT 1"), "all end", 600
        )
        result = Result(done=f"{kills} kills, {jobs} jobs, {keys} keys").weigh(stage.judge())
        most = most_at_once(stage.evidence("ship+"), stage.evidence("ship-"), died)
        left = _read(stage, "SELECT count(*) FROM taskworker_permit WHERE phase IN (1, 2, 4)")[0][0]
        wrong = _read(stage, statements.heal(stage.shop.store.driver.dialect), after=0, number=jobs + 1)
        settle(stage, WORKERS)
        # Nothing is killed any more, and the four workers have a slot for each place in these lanes.
        number = run.choose(60, 3)
        busy = [(FRESH + turn % CALM_LANES, 0.5 + 0.5 * stage.chance.random()) for turn in range(number * CALM_LANES)]
        stage.enqueue("ship", busy)
        until(lambda: sum(line.x >= FRESH for line in stage.evidence("ship-")) == len(busy), "the calm ones end", 600)
        share = busy_share(stage.evidence("ship+"), stage.evidence("ship-"))
        stage.stop()
    result.figures["of one key at once"] = f"{most} at most"
    result.expect(f"of one key at once <= {LANE_ROOM}", most <= LANE_ROOM)
    result.figures["busy while calm"] = f"{share:.1%}"
    result.expect("busy while calm >= 95 %", share >= run.choose(0.95, 0.3))
    result.expect("places that are left 0", left == 0)
    result.expect("places that contradict their jobs 0", all(fits for _, fits in wrong))
    return result


@row("37", "rate-window", "a rate over four workers")
def keep_the_rate(run: Run) -> Result:
    """In no second do more start than the rate allows, and nearly as many do."""
    seconds = run.choose(60, 5)
    with a_stage(run) as stage:
        stage.start(WORKERS)
        settle(stage, WORKERS)
        stage.accept(stage.enqueue("call", [()] * (RATE * seconds)))
        until(lambda: len(stage.evidence("call")) == RATE * seconds, "all have started", 4 * seconds)
        result = Result(done=f"{RATE * seconds} starts").weigh(stage.judge(), doubled=False)
        starts = sorted(line.at for line in stage.evidence("call"))
        stage.stop()
    busiest = _busiest(starts, run.choose(1.0, _BESIDE_OTHERS))
    used = (len(starts) - 1) / ((starts[-1] - starts[0]) * RATE)
    result.figures |= {"starts in one second": f"{busiest} at most", "of the rate used": f"{used:.1%}"}
    result.expect(f"starts in one second <= {RATE}", busiest <= RATE)
    result.expect("of the rate used >= 95 %", used >= run.choose(0.95, 0.1))
    return result


@row("37b", "rate-clock", "the clock is set an hour forward, and back, under a rate")
def keep_the_rate_when_the_clock_is_set(run: Run) -> Result:
    """No pause for longer than the burst takes, and at most one burst more."""
    if compiler() is None:
        return Result(done="nothing", skipped="it needs a C compiler")
    jumps = run.choose((3600, -3600, 0, -3600, 3600, 0) * 2, (3600, -3600))
    clock = Clock(run.folder / "clock")
    pause = run.choose(4.0, 2.0)
    result = Result(done=f"{len(jumps)} jumps of an hour or two, a rate of {RATE} a second")
    with a_stage(run) as stage:
        stage.spawn(WORKERS, LD_PRELOAD=str(built("clock")), CHAOS_CLOCK=str(clock.path))
        settle(stage, WORKERS)
        number = int(RATE * pause * (len(jumps) + 1))
        stage.accept(stage.enqueue("call", [()] * number))
        for jump in jumps:
            time.sleep(pause)
            clock.set(jump)
        clock.set(0)
        finished = "SELECT count(*) FROM taskworker_job WHERE finished_at IS NOT NULL"
        until(lambda: _read(stage, finished)[0][0] == number, "all have ended", 60 + number / RATE)
        result.weigh(stage.judge(), doubled=False)
        starts = sorted(entry.at for entry in stage.journal() if entry.word == journal.BEGAN)
        stage.stop()
    gap = max(later - earlier for earlier, later in itertools.pairwise(starts))
    busiest = _busiest(starts, run.choose(1.0, _BESIDE_OTHERS))
    result.figures |= {"longest pause": f"{gap:.2f} s", "starts in one second": f"{busiest} at most"}
    result.expect("longest pause <= burst + 1 s", gap <= run.within(1.0 + 1 / RATE))
    result.expect(f"starts in one second <= {RATE} and a burst", busiest <= RATE + 1)
    return result


@row("37c", "flood", "a million jobs in line of one key, and 100,000 closed lanes")
def flood(run: Run) -> Result:
    """The job of another key starts at once."""
    number, lanes, probes = run.choose((1_000_000, 100_000, 300), (5_000, 500, 40))
    with a_stage(run, TASKER_CONCURRENCY=100) as stage:
        driver = stage.shop.store.driver
        driver.prepare()
        for statement in FLOOD:
            driver.write(statement, {"number": number, "lanes": lanes} if ":" in statement else {})
        stage.start()
        settle(stage, 1)
        # The first of the flood itself: it has its lane looked at.
        stage.enqueue("ship", [(0, 0.05)])
        until(lambda: len(stage.evidence("ship+")) > 10, "the flood flows", 60)
        took = []
        for key in range(1, probes + 1):
            began = time.time()
            stage.enqueue("ship", [(key, 0.0)])
            until(lambda key=key: any(line.x == key for line in stage.evidence("ship+")), "it starts", 20)
            took.append(next(line.at for line in stage.evidence("ship+") if line.x == key) - began)
        flowed = sum(line.x == 0 for line in stage.evidence("ship-"))
        stage.stop()
    result = Result(done=f"{number:,} in line of one key, {lanes:,} closed lanes, {probes} jobs of other keys")
    p99 = percentile(took, 0.99)
    result.figures |= {"picked up p99": f"{p99 * 1000:.1f} ms", "of the flood meanwhile": flowed}
    # The short form runs beside other tests.
    most = run.choose({"sqlite": 0.01, "postgresql": 0.02}[run.database], 2.0)
    result.expect(f"picked up p99 <= {most * 1000:.0f} ms", p99 <= most)
    result.expect("the flood flows", flowed > 0)
    return result


_MANY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
_HELD = "INSERT INTO taskworker_job (uid, task, queue, kind, state, run_at, args, created_at, marks) "
FLOOD = (
    _HELD + _MANY.format(":number") + "SELECT 'flood-' || i, 'shop.ship', 'default', 'async', 'held', 0, "
    "'[[0,0.05],{}]', 1, 1 FROM n",
    _HELD + _MANY.format(":lanes") + "SELECT 'closed-' || i, 'shop.ship', 'default', 'async', 'held', 0, "
    "'[[0,0.05],{}]', 1, 1 FROM n",
    "INSERT INTO taskworker_permit (job_id, lane, queue, priority, phase) SELECT id, CASE WHEN uid LIKE 'flood-%' "
    "THEN 'shipper:0' ELSE 'shipper:' || uid END, 'default', 0, 1 FROM taskworker_job",
    "INSERT INTO taskworker_lane (lane, closed_until, open_at) SELECT 'shipper:' || uid, 9000000000000, 9000000000000 "
    "FROM taskworker_job WHERE uid LIKE 'closed-%'",
    # As the code declares it: a worker that stores it first looks at all lanes, which takes seconds.
    "INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) "
    f"VALUES ('shipper', {LANE_ROOM}, 'code', 1, 9000000000000)",
    "ANALYZE",
)


_BESIDE_OTHERS = 0.9
"""Seconds that a second counts in the short form: other tests run beside it, and hold up what was let start."""


def _busiest(starts: Sequence[float], second: float) -> int:
    """The most starts in any *second*; *starts* in order."""
    return max(sum(at <= other < at + second for other in starts[i : i + 3 * RATE]) for i, at in enumerate(starts))


def _read(stage: Stage, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = stage.shop.store.driver.read(sql, parameters)
    return found


def most_at_once(began: list[Line], ended: list[Line], died: dict[int, float]) -> int:
    """The most jobs of one key that ran at once; those of a process that was killed ran until then."""
    steps = [(line.at, 1, line.x, line.pid) for line in began] + [(line.at, -1, line.x, line.pid) for line in ended]
    steps += [(at, 0, 0, pid) for pid, at in died.items()]
    now: Counter[tuple[int, int]] = Counter()
    most = 0
    for _, change, key, pid in sorted(steps, key=lambda step: (step[0], step[1])):
        if change:
            now[key, pid] += change
        else:
            now = Counter({place: number for place, number in now.items() if place[1] != pid})
        most = max(most, sum(number for place, number in now.items() if place[0] == key))
    return most


def busy_share(began: list[Line], ended: list[Line]) -> float:
    """How much of the room of the lanes from :data:`FRESH` on is in use, while each has jobs in line."""
    used = room = 0.0
    for key in {line.x for line in began if line.x >= FRESH}:
        starts = sorted(line.at for line in began if line.x == key)
        first, last = starts[0], starts[-1]
        # From the last start on nothing is in line.
        ends = (min(line.at, last) for line in ended if line.x == key)
        used += sum(ends) - sum(starts)
        room += LANE_ROOM * (last - first)
    return used / room
