"""Rows of limits: processes are killed while lanes are full, and starts keep their rate."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from flask_taskworker.store.statements import limits as statements
from tests.system.chaos.fleet import until
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.worker import LANE_ROOM, RATE, Line

WORKERS = 4


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
        stage.stop()
    result.figures["of one key at once"] = f"{most} at most"
    result.expect(f"of one key at once <= {LANE_ROOM}", most <= LANE_ROOM)
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
    busiest = max(sum(at <= other < at + 1 for other in starts[i : i + 2 * RATE]) for i, at in enumerate(starts))
    used = (len(starts) - 1) / ((starts[-1] - starts[0]) * RATE)
    result.figures |= {"starts in one second": f"{busiest} at most", "of the rate used": f"{used:.1%}"}
    result.expect(f"starts in one second <= {RATE}", busiest <= RATE)
    result.expect("of the rate used >= 95 %", used >= run.choose(0.95, 0.1))
    return result


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
