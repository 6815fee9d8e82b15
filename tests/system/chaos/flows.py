"""Rows of batches and graphs: processes are killed while jobs end on which callbacks and other jobs depend."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from flask_taskworker import Job
from tests.system.chaos.fleet import until
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.worker import Place, Shop

WORKERS = 4


@row("40", "batch-kill", "kill -9 of one of four workers while the jobs of batches end")
def kill_under_batches(run: Run) -> Result:
    """Each callback is exactly one job, none is stored before the last ending, and counts equal the jobs' states."""
    kills, batches, jobs = run.choose((200, 100, 1_000), (3, 6, 60))
    with a_stage(run, TASKER_CONCURRENCY=16) as stage:
        stage.start(WORKERS)
        settle(stage, WORKERS)
        fates = ["fail"] * (jobs // 20) + ["once"] * (jobs // 10)
        fates += ["ok"] * (jobs - len(fates))
        told = stage.shop.told
        calls = {f"on_{event}": told.bind(event) for event in ("success", "failure", "end")}

        def feed() -> None:
            with stage.shop.app.app_context():
                for number in range(batches):
                    # Some have no failure.
                    some = [fate for fate in fates if number % 3 or fate != "fail"]
                    with stage.shop.task_worker.batch(f"batch {number}", **calls) as batch:
                        stage.shop.part.using(batch=batch).enqueue_many([(fate,) for fate in some])

        kill_beside(stage, kills, run, feed)
        all_end(stage)
        result = Result(done=f"{kills} kills, {batches} batches of {jobs} jobs")
        found = _read(stage, "SELECT id, ok, failed, cancelled, total, ended_at FROM taskworker_batch")
        wrong = Counter[str]()
        for batch_id, ok, failed, cancelled, total, ended_at in found:
            of_batch = "FROM taskworker_job AS j JOIN taskworker_member AS m ON m.job_id = j.id WHERE m.batch_id = :id"
            states = dict(_read(stage, f"SELECT j.state, count(*) {of_batch} GROUP BY j.state", id=batch_id))
            ((last,),) = _read(stage, f"SELECT max(j.finished_at) {of_batch}", id=batch_id)
            wrong["counts"] += (
                states != {k: v for k, v in (("succeeded", ok), ("failed", failed)) if v} or cancelled != 0
            )
            wrong["open"] += ended_at is None or ok + failed != total
            stored = dict(
                _read(
                    stage, "SELECT uid, created_at FROM taskworker_job WHERE uid LIKE :uid", uid=f"batch:{batch_id}:%"
                )
            )
            events = {"end", "failure" if failed else "success"}
            wrong["callbacks"] += stored.keys() != {f"batch:{batch_id}:1:{event}" for event in events}
            wrong["early"] += any(at < last for uid, at in stored.items() if not uid.endswith("failure"))
        _judge(stage, result, wrong, ("counts", "open", "callbacks", "early"))
        result.expect("batches", len(found) == batches)
        stage.stop()
    return result


@row("41", "flow-kill", "kill -9 of one of four workers while graphs of jobs run")
def kill_under_graphs(run: Run) -> Result:
    """No job begins before its parents ended as it asked, and every job ends."""
    kills, graphs = run.choose((200, 10_000), (3, 25))
    parents: dict[int, tuple[list[int], str]] = {}
    cancelled: set[int] = set()
    with a_stage(run, TASKER_CONCURRENCY=16) as stage:
        stage.start(WORKERS)
        settle(stage, WORKERS)

        def feed() -> None:
            with stage.shop.app.app_context():
                for _ in range(graphs):
                    _add_graph(stage, parents, cancelled)

        kill_beside(stage, kills, run, feed)
        all_end(stage)
        result = Result(done=f"{kills} kills, {graphs} graphs, {len(parents)} jobs")
        rows = _read(stage, "SELECT id, state, finished_at FROM taskworker_job")
        states = {job_id: (state, finished) for job_id, state, finished in rows}
        began: dict[int, float] = {}
        for line in stage.evidence("node"):
            began[line.x] = min(line.at * 1000 + 1, began.get(line.x, math.inf))
        wrong = Counter[str]()
        for job_id, (some, rule) in parents.items():
            state, _ = states[job_id]
            as_asked = all(rule in ("ended", states[parent][0]) for parent in some)
            has_run = state in ("succeeded", "failed")
            wrong["against their parents"] += has_run and not as_asked
            wrong["not run"] += not has_run and as_asked and job_id not in cancelled
            wrong["early"] += has_run and any(began[job_id] < states[parent][1] for parent in some)
        _judge(stage, result, wrong, ("against their parents", "not run", "early"))
        result.figures |= Counter(state for state, _ in states.values())
        stage.stop()
    return result


@row("42", "batch-race", "the last two jobs of a batch end at once in two processes")
def end_at_once(run: Run) -> Result:
    """Exactly one callback is stored, and the job that waits for both is released once."""
    batches = run.choose(10_000, 100)
    with a_stage(run) as stage:
        pairs: list[tuple[int, int]] = []
        with stage.shop.app.app_context():
            for _ in range(batches):
                with stage.shop.task_worker.batch("pair", on_end=stage.shop.told.bind("end")) as batch:
                    one, two = stage.shop.node.using(batch=batch, delay=3600).enqueue_many([("ok",), ("ok",)])
                stage.shop.told.using(after=[one, two], when="ended").enqueue("both")
                pairs.append((one.id, two.id))
        barrier = stage.barrier(2)
        children = [*stage.start(1, cancel_each, barrier, [pair[0] for pair in pairs])]
        children += stage.start(1, cancel_each, barrier, [pair[1] for pair in pairs])
        for child in children:
            stage.await_exit(child, time.monotonic(), 1_800)
        result = Result(done=f"{batches} batches")
        stored = _read(stage, "SELECT uid FROM taskworker_job WHERE task = 'shop.told' AND state = 'ready'")
        callbacks = {uid for (uid,) in stored if uid.startswith("batch:")}
        result.expect("one callback a batch", len(callbacks) == batches)
        result.expect("one release a batch", len(stored) == 2 * batches)
        counted = _read(stage, "SELECT count(*) FROM taskworker_batch WHERE ended_at IS NOT NULL AND cancelled = 2")
        result.expect("all counted", counted == [(batches,)])
    return result


def cancel_each(place: Place, log: str, barrier: Any, ids: list[int]) -> None:
    """The life of a process that cancels jobs, each at the moment at which another process does."""
    shop = Shop(place)
    for job_id in ids:
        barrier.wait(60)
        shop.store.cancel(job_id)


def _add_graph(stage: Stage, parents: dict[int, tuple[list[int], str]], cancelled: set[int]) -> None:
    chance, node = stage.chance, stage.shop.node
    jobs: list[Job[Any]] = []
    for number in range(chance.randint(1, 30)):
        some = chance.sample(jobs, min(number, chance.choice((0, 1, 1, 2, 3))))
        rule = chance.choice(("succeeded", "succeeded", "succeeded", "ended", "failed"))
        fate = "fail" if chance.random() < 0.1 else "ok"
        options: dict[str, Any] = {"after": some, "when": rule} if some else {}
        jobs.append(node.using(**options).enqueue(fate))
        parents[jobs[-1].id] = ([parent.id for parent in some], rule)
    for job in jobs:
        if chance.random() < 0.05 and job.cancel():
            cancelled.add(job.id)


def kill_beside(
    stage: Stage, kills: int, run: Run, feed: Callable[[], None], on_kill: Callable[[int], None] = lambda pid: None
) -> None:
    """Kill workers again and again, while *feed* enqueues in a thread of its own."""
    pause = 0.5 if run.database == "sqlite" else 1.5
    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    for _ in range(kills):
        time.sleep(pause * stage.chance.uniform(0.5, 1.5))
        child = stage.chance.choice(stage.children)
        stage.kill(child)
        on_kill(child.pid)
        stage.start()
    thread.join()


def all_end(stage: Stage) -> None:
    open_jobs = "SELECT 1 FROM taskworker_job WHERE finished_at IS NULL LIMIT 1"
    until(lambda: not _read(stage, open_jobs), "all end", 600)


def _judge(stage: Stage, result: Result, wrong: Counter[str], words: tuple[str, ...]) -> None:
    for word in words:
        result.expect(f"{word} 0", wrong[word] == 0)
    unfollowed, _ = stage.shop.store.change(lambda flows: flows.tidy((0, 0)))
    healed = stage.whole_logs().count("endings of jobs were not followed")
    result.figures["healed"] = healed + len(unfollowed)
    result.expect("healed 0", healed + len(unfollowed) == 0)
    settle(stage, WORKERS)


def _read(stage: Stage, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = stage.shop.store.driver.read(sql, parameters)
    return found
