"""Rows 6 to 8: processes that stand still, a machine that sleeps, a clock that is set."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.chaos import journal
from tests.system.chaos.fleet import until
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.shims import built, compiler
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.verifier import FROZEN, Rules

FAST = {"beat": 0.1, "lease_beats": 20}
"""For the short forms: a lease of two seconds, which a living process does not stand still on a busy machine."""


def _knobs(run: Run) -> dict[str, float]:
    return {} if run.full else FAST


def _lease(run: Run) -> float:
    return 30.0 if run.full else FAST["beat"] * FAST["lease_beats"]


@row("6", "freeze", "SIGSTOP for three leases, then SIGCONT")
def freeze(run: Run) -> Result:
    """Its jobs are others' after a lease; what it still does afterwards changes nothing."""
    lease = _lease(run)
    result = Result(done=f"stopped for {3 * lease:g} s, with jobs of both kinds in hand")
    with a_stage(run, knobs=_knobs(run)) as stage:
        (victim,) = stage.start()
        settle(stage, 1)
        stage.accept(stage.enqueue("pulse", [(0.5,)] * 4))
        stage.accept(stage.enqueue("grind", [(0.5,)] * 4))
        until(lambda: stage.running_on(victim) >= 8, "all run")
        stage.freeze(victim)
        stage.start(2)
        # They count its missed beats from when they first see it, and take a while to start on a busy machine.
        until(lambda: len({*stage.alive()} - {victim.pid}) == 2, "the others have begun")
        stopped = time.monotonic()
        with stage.feeding(per_second=20):
            time.sleep(3 * lease)
        stage.thaw(victim)
        stage.put(20)
        rules = Rules(lease=0.8 * lease)
        result.weigh(stage.judge(rules))
        until(lambda: "is back under this new id" in stage.whole_logs(), "the thawed worker is back", 30)
        settle(stage, 3)
        late = [e.at - stopped for e in stage.journal() if e.word == journal.BEGAN and e.claim == 2]
        until(lambda: "fenced" in stage.whole_logs(), "a late result is fenced", 30)
        fenced = stage.whole_logs().count("fenced")
        stage.stop()
    assert result.judgement is not None
    result.recovery = late
    result.figures |= {"late results fenced": fenced}
    result.expect("each of the 8 ran again", len([n for n in result.judgement.excused if FROZEN in n]) == 8)
    result.expect("late results fenced", fenced > 0)
    # A beat takes a little longer than its second; and the observers begin to count when they first see it.
    result.expect("rescued <= 1.1 leases + 5 s", max(late, default=1e9) <= run.within(1.1 * lease + 5))
    return result


@row("7", "sleep", "the machine sleeps: all processes stop, and go on")
def sleep(run: Run) -> Result:
    """A worker that only slept with all the others is not dead."""
    seconds = run.choose((20.0, 45.0), (3.0,))
    result = Result(done=f"all stopped for {' and '.join(f'{s:g} s' for s in seconds)}")
    with a_stage(run, knobs=_knobs(run)) as stage:
        stage.start(3)
        settle(stage, 3)
        ids = {worker.id for worker in stage.shop.store.workers()}
        for pause in seconds:
            stage.put(run.choose(200, 60), longest=1.0)
            time.sleep(0.3)
            stage.freeze(*stage.children)
            time.sleep(pause)
            stage.thaw(*stage.children)
            time.sleep(run.choose(3.0, 0.5))
        # No excuse: a stop of all is none.
        result.weigh(stage.judge(Rules(lease=1e9)), doubled=False)
        same = ids == {worker.id for worker in stage.shop.store.workers()}
        stage.stop()
    result.expect("no worker declared dead", same and "dead" not in stage.whole_logs())
    return result


@row("8", "clock", "the clock is set an hour forward, and back")
def set_clock(run: Run) -> Result:
    """No false rescue, and no pause."""
    if compiler() is None:
        return Result(done="nothing", skipped="it needs a C compiler")
    jumps = run.choose((3600, -3600, 0, -3600, 3600, 0) * 3, (3600, -3600))
    clock = Clock(run.folder / "clock")
    result = Result(done=f"{len(jumps)} jumps of an hour or two, for workers and not for the enqueuer")
    with a_stage(run) as stage:
        stage.spawn(3, LD_PRELOAD=str(built("clock")), CHAOS_CLOCK=str(clock.path))
        settle(stage, 3)
        ids = {worker.id for worker in stage.shop.store.workers()}
        with stage.feeding(per_second=50, longest=0.2):
            began = time.monotonic()
            for jump in jumps:
                time.sleep(run.choose(4.0, 1.0))
                clock.set(jump)
                seen = _seen(stage, lambda moment, jump=jump: abs(moment - jump) < 60)
                result.expect("the workers see the jump", seen)
            time.sleep(run.choose(4.0, 0.5))
            over = time.monotonic()
        result.weigh(stage.judge(), doubled=False)
        result.expect("no worker declared dead", ids == {worker.id for worker in stage.shop.store.workers()})
        gap = _longest_gap(stage, began, over)
        stage.stop()
    result.figures["longest pause"] = f"{gap:.2f} s"
    result.expect("longest pause <= 2 s", gap <= run.within(2))
    return result


class Clock:
    """By how much the workers' clock is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    def set(self, seconds: float) -> None:
        # Never truncated: it is mapped into the workers' memory.
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))


def _seen(stage: Stage, fits: Callable[[float], bool]) -> bool:
    """Whether a worker's beat tells the new time: else the shim does nothing, and the row shows nothing."""

    def told() -> bool:
        now = time.time()
        return any(fits(worker.beat_at / 1000 - now) for worker in stage.shop.store.workers())

    return until(told, "a beat with the new time", 10)


def _longest_gap(stage: Stage, began: float, over: float) -> float:
    """Seconds without any job's beginning."""
    moments = [e.at for e in stage.journal() if e.word == journal.BEGAN and began <= e.at <= over]
    moments = sorted([began, *moments, over])
    return max(later - earlier for earlier, later in itertools.pairwise(moments))
