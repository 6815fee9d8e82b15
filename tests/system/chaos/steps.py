"""Rows of steps: processes are killed and replaced while jobs go from step to step, sleep, and wait for notices."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select

from tests.system.chaos.flows import all_end, kill_beside
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import a_stage, settle
from tests.system.chaos.verifier import percentile
from tests.system.chaos.worker import TOKEN_BITS, effect, metadata

WORKERS = 4
DRAIN = 30.0


@row("43", "steps-kill", "kill -9 of one of four workers while jobs go from step to step")
def kill_under_steps(run: Run) -> Result:
    """No step that has ended begins again; one under way does so once a kill; every execution sees the same values."""
    kills, jobs, steps = run.choose((200, 1_000, 10), (4, 40, 3))
    died: set[int] = set()
    with a_stage(run) as stage:
        metadata.create_all(stage.shop.engine)
        stage.start(WORKERS)
        settle(stage, WORKERS)

        def feed() -> None:
            for _ in range(jobs // 10):
                stage.enqueue("walk", [(steps, 0.01)] * 10)
                time.sleep(run.choose(0.7 if run.database == "sqlite" else 2.5, 0.2))

        kill_beside(stage, kills, run, feed, died.add)
        all_end(stage)
        states = stage.states()
        with stage.shop.engine.connect() as connection:
            effects = [x for (x,) in connection.execute(select(effect.c.x))]
        lines = sorted([*stage.evidence("step+"), *stage.evidence("step-")], key=lambda line: line.at)
        settle(stage, WORKERS)
        stage.stop()
    result = Result(done=f"{kills} kills, {jobs} jobs of {steps} steps of each kind")
    wrong, repeated = Counter[str](), 0
    under_way: dict[int, int] = {}
    tokens: dict[int, int] = {}
    for place, pid, _ in lines:
        if place >> TOKEN_BITS:
            which, token = place >> TOKEN_BITS, place & ((1 << TOKEN_BITS) - 1)
            wrong["other values"] += tokens.setdefault(which, token) != token
        else:
            wrong["ended steps that began again"] += place in tokens
            if place in under_way:
                repeated += 1
                wrong["repeated without a kill"] += under_way[place] not in died
            under_way[place] = pid
    for words in ("other values", "ended steps that began again", "repeated without a kill"):
        result.expect(f"{words} 0", not wrong[words])
    result.figures |= {"steps": len(under_way), "repeated": repeated, "effects": len(effects), **states}
    result.expect("each step is done", len(under_way) == len(tokens) == 2 * jobs * steps)
    result.expect("effects exactly once", len(effects) == len(set(effects)) == jobs * steps)
    result.expect("all succeeded", states == {"succeeded": jobs})
    return result


@row("44", "notice-race", "a job waits for a notice and another process tells it, within 1 ms")
def tell_at_once(run: Run) -> Result:
    """Each job gets its notice, once."""
    pairs = run.choose(10_000, 200)
    # A wait takes some statements more than a notice.
    longest = 0.002 if run.database == "sqlite" else 0.012
    with a_stage(run, TASKER_CONCURRENCY=32) as stage, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ears:
        ears.bind(("127.0.0.1", 0))
        ears.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        ears.settimeout(60)
        stage.start()
        settle(stage, 1)
        jobs = {job.uid: job for job in stage.enqueue("listen", [(ears.getsockname()[1],)] * pairs)}
        words = {uid: number for number, uid in enumerate(jobs)}

        def tell(uid: str) -> None:
            time.sleep(longest * random.random())
            with stage.shop.app.app_context():
                stage.shop.task_worker.tell(uid, "word", words[uid])

        with ThreadPoolExecutor(8) as tellers:
            told = [tellers.submit(tell, ears.recv(100).decode()) for _ in range(pairs)]
        all_end(stage)
        with stage.shop.app.app_context():
            heard = {uid: job.refresh().result(timeout=0) for uid, job in jobs.items()}
        sql = "SELECT claim, count(*) FROM taskworker_job GROUP BY claim"
        claims = dict(stage.shop.store.driver.read(sql, {}))
        ((left,),) = stage.shop.store.driver.read("SELECT count(*) FROM taskworker_notice", {})
        stage.stop()
    result = Result(done=f"{pairs} pairs")
    result.expect("told without an error", not any(future.exception() for future in told))
    result.expect("lost 0, each its own", heard == words)
    result.expect("left over 0", left == 0)
    # The wait came first in those that ran twice: both orders must have been met.
    result.figures |= {"the notice came first": claims.get(1, 0), "the wait came first": claims.get(2, 0)}
    result.expect("once each", set(claims) <= {1, 2})
    return result


@row("45", "sleep-lateness", "jobs that sleep, beside others")
def sleep_well(run: Run) -> Result:
    """A sleep is never shorter than asked for, and hardly longer."""
    jobs = run.choose(2_000, 60)
    with a_stage(run, TASKER_CONCURRENCY=100) as stage:
        stage.start(2)
        settle(stage, 2)
        for _ in range(jobs // 20):
            stage.enqueue("nap", [(round(stage.chance.uniform(0.2, 2), 3),) for _ in range(20)])
            time.sleep(0.3)
        all_end(stage)
        ends = dict(stage.shop.store.driver.read("SELECT job_id, due_at FROM taskworker_step", {}))
        late = [line.at - ends[line.x] / 1000 for line in stage.evidence("woke")]
        stage.stop()
    result = Result(done=f"{jobs} sleeps of 0.2 to 2 s")
    result.expect("all woke once", len(late) == jobs)
    result.expect("early 0", min(late) >= 0)
    result.figures |= {f"late at {part:.0%}": f"{1000 * percentile(late, part):.0f} ms" for part in (0.5, 0.99, 1)}
    bound = 0.05 if run.database == "sqlite" else 0.1
    result.expect(f"99 % late by <= {bound:g} s", percentile(late, 0.99) <= run.within(bound))
    return result


@row("46", "deploys", "one worker after the other is replaced while jobs of a minute run")
def replace_each(run: Run) -> Result:
    """A worker ends within a second of its signal, and no step is done twice."""
    restarts, jobs, steps, pause = run.choose((20, 36, 120, 0.5), (3, 8, 10, 0.1))
    exits: list[float] = []
    with a_stage(run) as stage:
        stage.start(3)
        settle(stage, 3)
        stage.enqueue("walk", [(steps, pause, False)] * jobs)
        for _ in range(restarts):
            time.sleep(run.choose(5, 0.3))
            oldest = stage.children[0]
            stage.start()
            settle(stage, 4)
            exits.append(stage.end(oldest, signal.SIGTERM, grace=DRAIN))
        all_end(stage)
        states = stage.states()
        places = [line.x for line in stage.evidence("step+")]
        stage.stop()
    result = Result(done=f"{restarts} restarts, {jobs} jobs of {steps} steps of {pause} s")
    result.figures["slowest exit"] = f"{max(exits):.2f} s"
    result.expect("exit within 1 s", max(exits) <= run.within(1.0))
    result.expect("each step once", len(places) == len(set(places)) == jobs * steps)
    result.expect("all succeeded", states == {"succeeded": jobs})
    return result
