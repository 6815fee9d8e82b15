"""Rows 1 to 5: processes that are killed, and processes that are asked to end."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import Any

from tests.system.chaos import journal
from tests.system.chaos.fleet import until
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.verifier import DIED, TOLD_TO_END, Fault, executions_of, percentile
from tests.system.chaos.worker import Place, Shop

WORKERS = 3


def _rescue_limit(run: Run) -> float:
    """Seconds within which 95 % of the rescued jobs run again."""
    return 2.0 if run.database == "sqlite" else 4.0


@row("1", "kill", "kill -9 of one of three workers")
def kill_workers(run: Run) -> Result:
    """Kill a random worker again and again, while jobs come in."""
    kills, jobs = run.choose((200, 10_000), (3, 60))
    # PostgreSQL: a death is certain after two beats of an observer, who has to live so long.
    pause = 0.5 if run.database == "sqlite" else 1.5
    with a_stage(run) as stage:
        stage.start(WORKERS)
        settle(stage, WORKERS)
        with stage.feeding(per_second=jobs / (kills * pause), longest=0.5, limit=jobs) as feeder:
            for _ in range(kills):
                time.sleep(pause * stage.chance.uniform(0.5, 1.5))
                child = stage.chance.choice(stage.children)
                _await_work(stage, child)
                stage.kill(child)
                stage.start()
            until(lambda: feeder.over, "the last job is enqueued", 300)
        result = Result(done=f"{kills} kills, {jobs} jobs, {WORKERS} workers").weigh(stage.judge())
        _check_hands(stage, result)
        settle(stage, WORKERS)
        stage.stop()
    limit = _rescue_limit(run)
    p95 = percentile(result.recovery, 0.95)
    result.expect(f"recovery p95 <= {limit:g} s", p95 <= run.within(limit))
    result.expect("kills met jobs", len(result.recovery) >= run.choose(kills / 2, 0))
    return result


def _await_work(stage: Stage, child: Any) -> None:
    """A kill of an idle worker shows nothing: wait a moment for one that has a job."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and not _begun_on(stage, child.pid):
        time.sleep(0.02)


def _begun_on(stage: Stage, pid: int) -> bool:
    sql = (
        "SELECT 1 FROM taskworker_job WHERE state = 'running' AND worker_id IN "
        "(SELECT id FROM taskworker_worker WHERE pid = :pid AND state = 'alive') LIMIT 1"
    )
    return bool(stage.shop.store.driver.read(sql, {"pid": pid}))


def _check_hands(stage: Stage, result: Result) -> None:
    """A death cuts off no more jobs than its process runs at once; besides, some have ended and are not recorded."""
    config = stage.place.config
    limit = config["TASKER_CONCURRENCY"] + config["TASKER_THREADS"]
    deaths = {fault.pid for fault in stage.faults if fault.kind == DIED}
    cut_off: Counter[int] = Counter()
    unrecorded: Counter[int] = Counter()
    for one in executions_of(stage.journal()).values():
        for execution in one[:-1]:
            if execution.pid in deaths:
                (cut_off if execution.how is None else unrecorded)[execution.pid] += 1
    result.figures["cut off by one kill"] = f"{max(cut_off.values(), default=0)} at most"
    result.figures["ended but not yet recorded at a kill"] = f"{max(unrecorded.values(), default=0)} at most"
    result.expect(f"cut off by one death <= {limit}", max(cut_off.values(), default=0) <= limit)
    assert result.judgement is not None
    result.figures["the oldest of them"] = f"{result.judgement.unrecorded:.3f} s"


@row("2", "kill-all", "kill -9 of all workers, then a restart")
def kill_all(run: Run) -> Result:
    """Kill all, wait, start again: what they had in hand runs at once."""
    cycles, pause = run.choose((20, 1.0), (2, 0.2))
    boots: list[float] = []
    with a_stage(run) as stage:
        stage.start(WORKERS)
        settle(stage, WORKERS)
        with stage.feeding(per_second=60, longest=0.5):
            for _ in range(cycles):
                time.sleep(stage.chance.uniform(0.3, 0.8))
                boots.append(_kill_all(stage, pause))
        result = Result(done=f"{cycles} times, {pause:g} s without a worker", recovery=boots).weigh(stage.judge())
        settle(stage, WORKERS)
        stage.stop()
    # PostgreSQL: a death is certain after two beats.
    limit = _rescue_limit(run)
    p95 = percentile(boots, 0.95)
    result.expect(f"first start p95 <= {limit:g} s after boot", p95 <= run.within(limit))
    return result


def _kill_all(stage: Stage, pause: float) -> float:
    """Seconds from the processes' start to the first start of a job that a dead one had in hand."""
    until(lambda: any(_begun_on(stage, child.pid) for child in stage.children), "a job runs")
    for child in list(stage.children):
        stage.kill(child)
    before = {entry.uid for entry in stage.journal() if entry.word == journal.BEGAN}
    time.sleep(pause)
    booted = time.monotonic()
    stage.start(WORKERS)

    def again() -> float:
        return next(
            (e.at for e in stage.journal() if e.word == journal.BEGAN and e.at > booted and e.uid in before), 0.0
        )

    return until(again, "a job that a dead worker had in hand runs again", 30) - booted


@row("3", "enqueuer", "kill -9 of the enqueuing process")
def kill_enqueuer(run: Run) -> Result:
    """What enqueueing has returned for is run, whatever happened to who called it."""
    kills = run.choose(40, 3)
    with a_stage(run) as stage:
        stage.start(2)
        settle(stage, 2)
        for _ in range(kills):
            before = len(stage.journal())
            (child,) = stage.start(1, enqueue_for_ever, stage.chance.random())
            until(lambda before=before: len(stage.journal()) > before + 5, "it enqueues")
            time.sleep(stage.chance.uniform(0.0, 0.3))
            stage.kill(child)
        result = Result(done=f"{kills} enqueuers killed in mid-stream").weigh(stage.judge(), doubled=False)
        stage.stop()
    assert result.judgement is not None
    result.figures["accepted"] = result.judgement.accepted
    return result


def enqueue_for_ever(place: Place, log: str, seed: float) -> None:
    """The life of an enqueuer: single jobs and batches, as fast as it can."""
    shop = Shop(place)
    with shop.app.app_context():
        while True:
            jobs = [shop.pulse.enqueue(0.001)]
            if int(time.monotonic() * 1000) % 7 == 0:
                jobs += shop.grind.enqueue_many([(0.001,)] * 5)
            journal.write(place.folder, journal.ACCEPTED, [job.uid for job in jobs])


@row("4", "term", "SIGTERM while busy, as in a deployment")
def terminate(run: Run) -> Result:
    """Jobs that end within the grace end; nothing runs twice."""
    deploys, grace = run.choose((30, 10.0), (2, 10.0))
    exits: list[float] = []
    with a_stage(run, TASKER_SHUTDOWN_TIMEOUT=grace) as stage:
        stage.start(WORKERS)
        settle(stage, WORKERS)
        with stage.feeding(per_second=60, longest=run.choose(3.0, 0.5)):
            for number in range(deploys):
                time.sleep(stage.chance.uniform(0.2, 0.8))
                # One that has not registered yet has no handler for the signal either.
                child = stage.chance.choice([one for one in stage.children if one.pid in stage.alive()])
                _await_work(stage, child)
                stage.start()
                exits.append(stage.end(child, (signal.SIGTERM, signal.SIGINT)[number % 2], grace=grace))
        result = Result(done=f"{deploys} signals, grace {grace:g} s").weigh(stage.judge(), doubled=False)
        settle(stage, WORKERS)
        stage.stop()
    _tell_exits(result, exits)
    result.expect("exit <= grace + 1 s", max(exits) <= run.within(grace + 1))
    return result


@row("4b", "term-short", "SIGTERM with jobs longer than the grace")
def terminate_short(run: Run) -> Result:
    """They are handed back, and no attempt is counted."""
    deploys, grace = run.choose((15, 1.0), (1, 0.3))
    exits: list[float] = []
    with a_stage(run, TASKER_SHUTDOWN_TIMEOUT=grace) as stage:
        stage.start(WORKERS)
        settle(stage, WORKERS)
        stage.put(run.choose(60, 20), longest=4 * grace)
        for _ in range(deploys):
            child = stage.children[0]
            _await_work(stage, child)
            stage.start()
            exits.append(stage.end(child, signal.SIGTERM, grace=grace))
            stage.put(4, longest=4 * grace)
        result = Result(done=f"{deploys} signals, grace {grace:g} s").weigh(stage.judge())
        result.expect("no crash counted", not _crashes(stage))
        settle(stage, WORKERS)
        stage.stop()
    _tell_exits(result, exits)
    result.expect("exit <= grace + 1 s", max(exits) <= run.within(grace + 1))
    return result


def _tell_exits(result: Result, exits: list[float]) -> None:
    assert result.judgement is not None
    result.figures["slowest exit"] = f"{max(exits):.2f} s"
    result.figures["a thread ran on beside its successor"] = f"{result.judgement.handover * 1000:.0f} ms at most"


def _crashes(stage: Stage) -> int:
    ((number,),) = stage.shop.store.driver.read("SELECT count(*) FROM taskworker_job WHERE crashes > 0", {})
    return int(number)


@row("5", "second-signal", "a second signal; SIGHUP; SIGQUIT")
def second_signal(run: Run) -> Result:
    """It ends at once, and its jobs go back to their queues."""
    hurry = [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGHUP,), (signal.SIGQUIT,)]
    # Under nohup it is ignored, as it should be.
    hurry = [signals for signals in hurry if signal.getsignal(signals[0]) is not signal.SIG_IGN]
    exits: list[float] = []
    with a_stage(run, TASKER_SHUTDOWN_TIMEOUT=60) as stage:
        for signals in run.choose(hurry * 2, hurry[:1]):
            (child,) = stage.start()
            settle(stage, 1)
            stage.accept(stage.enqueue("pulse", [(run.choose(3.0, 1.0),)] * 3))
            stage.accept(stage.enqueue("grind", [(run.choose(3.0, 1.0),)] * 3))
            until(lambda child=child: stage.running_on(child) >= 6, "all run")
            exits.append(_hurry(stage, child, signals))
        stage.start()
        result = Result(done=f"{len(exits)} workers with 6 jobs each, in mid-job").weigh(stage.judge())
        result.expect("no crash counted", not _crashes(stage))
        settle(stage, 1)
        stage.stop()
    _tell_exits(result, exits)
    result.expect("exit <= 2 s", max(exits) <= run.within(2))
    return result


def _hurry(stage: Stage, child: Any, signals: tuple[signal.Signals, ...]) -> float:
    for number in signals[:-1]:
        os.kill(child.pid, number)
        time.sleep(0.2)
    at = time.monotonic()
    stage.faults.append(Fault(kind=TOLD_TO_END, pid=child.pid, at=at, until=at))
    os.kill(child.pid, signals[-1])
    return stage.await_exit(child, at)
