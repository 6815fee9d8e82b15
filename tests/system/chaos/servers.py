"""Rows 18 to 20: PostgreSQL restarts, ends sessions, cannot be reached, or its answers are lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.postgres import run_sql
from tests.system.chaos import journal
from tests.system.chaos.clocks import FAST
from tests.system.chaos.fleet import until
from tests.system.chaos.proxy import Proxy
from tests.system.chaos.row import POSTGRESQL, Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.verifier import FROZEN, Fault, Rules, executions_of, judge
from tests.system.chaos.worker import Place, serve

OURS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'Flask-TaskWorker' "
    "AND datname = current_database() AND pid <> pg_backend_pid()"
)


@row("18", "pg-restart", "PostgreSQL restarts, fast and immediate; and is down for 30 s", (POSTGRESQL,))
def restart(run: Run) -> Result:
    """The workers come back by themselves, and none is taken for dead."""
    restarts, down = run.choose((20, 30.0), (2, 1.0))
    resumed: list[float] = []
    with a_stage(run) as stage:
        stage.start(3)
        settle(stage, 3)
        ids = {worker.id for worker in stage.shop.store.workers()}
        with stage.feeding(per_second=60) as feeder:
            for number in range(restarts):
                time.sleep(stage.chance.uniform(0.3, 1.0))
                pause = down if number == restarts - 1 else stage.chance.uniform(0.0, 0.5)
                resumed.append(_restart(run, stage, (signal.SIGINT, signal.SIGQUIT)[number % 2], pause))
            refused = feeder.refused
        result = Result(done=f"{restarts} restarts, the last after {down:g} s", recovery=resumed)
        result.weigh(stage.judge(), doubled=False)
        same = ids == {worker.id for worker in stage.shop.store.workers()}
        result.expect("no process ended, no worker declared dead", stage.all_live() and same)
        stage.stop()
    result.figures["refused to enqueue"] = refused
    result.expect("resumes <= 5 s", max(resumed) <= run.within(5))
    return result


def _restart(run: Run, stage: Stage, how: signal.Signals, pause: float) -> float:
    """Seconds from the server's return until every worker has begun a job."""
    run.server.stop(how)
    time.sleep(pause)
    run.server.start()
    back = time.monotonic()
    pids = {child.pid for child in stage.children}

    def all_back() -> bool:
        return pids <= {e.pid for e in stage.journal() if e.word == journal.BEGAN and e.at > back}

    until(all_back, "all workers begin jobs again", 60)
    return time.monotonic() - back


@row("19", "pg-terminate", "PostgreSQL ends our sessions, again and again", (POSTGRESQL,))
def terminate_sessions(run: Run) -> Result:
    """A lock that is gone makes a worker suspect, and its beat clears it."""
    times = run.choose(40, 4)
    with a_stage(run) as stage:
        stage.start(3)
        settle(stage, 3)
        ids = {worker.id for worker in stage.shop.store.workers()}
        ended = 0
        with stage.feeding(per_second=60):
            for _ in range(times):
                time.sleep(stage.chance.uniform(0.2, 0.8))
                ended += len(run_sql(run.url, OURS))
        # Among them those of this process, which it would notice one by one.
        stage.shop.store.driver.close()
        result = Result(done=f"{ended} sessions ended in {times} goes").weigh(stage.judge(), doubled=False)
        same = ids == {worker.id for worker in stage.shop.store.workers()}
        result.expect("no process ended, no worker declared dead", stage.all_live() and same)
        stage.stop()
    return result


@row("19b", "pg-blackhole", "one of two workers is cut off from PostgreSQL, without notice", (POSTGRESQL,))
def black_hole(run: Run) -> Result:
    """After a lease its jobs are the other's; what it tells afterwards is fenced."""
    seconds, lease, knobs = (60.0, 30.0, {}) if run.full else (6.0, FAST["beat"] * FAST["lease_beats"], FAST)
    result = Result(done=f"nothing passes for {seconds:g} s")
    with a_stage(run, knobs=knobs) as stage, a_proxy(run) as proxy:
        (victim,) = stage.start(1, serve_at, proxy.url(run.url))
        settle(stage, 1)
        # They outlast the lease, and end before the cut does.
        held = [*stage.enqueue("pulse", [(seconds * 0.9,)] * 3), *stage.enqueue("grind", [(seconds * 0.9,)] * 3)]
        stage.accept(held)
        until(lambda: stage.running_on(victim) >= 6, "all run")
        stage.start(1)
        settle(stage, 2)
        at = time.monotonic()
        proxy.hang(True)
        with stage.feeding(per_second=20):
            time.sleep(seconds)
        proxy.hang(False)
        until(lambda: victim.pid in stage.alive(), "it is back", 60)
        # Until it is back: it may have heard of its end a moment after the cut.
        stage.faults.append(Fault(kind=FROZEN, pid=victim.pid, at=at, until=time.monotonic()))
        result.weigh(stage.judge(Rules(lease=0.8 * lease)))
        result.figures["late results fenced"] = stage.whole_logs().count("fenced")
        jobs = executions_of(stage.journal())
        again = [one.began - at for job in held for one in jobs[job.uid][1:]]
        result.expect("no process ended", stage.all_live())
        stage.stop()
    result.recovery = again
    result.expect("rescued <= 1.1 leases + 5 s", max(again, default=1e9) <= run.within(1.1 * lease + 5))
    result.expect("its six jobs ran again", len(again) == 6)
    return result


def serve_at(place: Place, log: str, url: str) -> None:
    """The life of a worker that reaches the database by another way."""
    serve(place._replace(url=url), log)


@contextmanager
def a_proxy(run: Run) -> Iterator[Proxy]:
    """A proxy before the run's server."""
    with Proxy(Path(run.server.socket)) as proxy:
        yield proxy


@row("20", "lost-reply", "the answer to an enqueueing's COMMIT is lost", (POSTGRESQL,))
def lost_reply(run: Run) -> Result:
    """The same uid is asked for again, and there is one job, not two."""
    times = run.choose(100, 5)
    with a_proxy(run) as proxy, a_stage(run, url=proxy.url(run.url)) as stage:
        jobs: list[Any] = []
        with stage.shop.app.app_context():
            jobs.append(stage.shop.pulse.enqueue(0.0))
            # A statement that the server has prepared is sent without its words, and gets its answer.
            while proxy.lost < times and len(jobs) < 20 * times:
                proxy.lose_reply_to("INSERT INTO taskworker_job")
                jobs.append(stage.shop.pulse.enqueue(0.0))
        stage.accept(jobs)
        stage.start(1, serve_at, run.url)
        stage.await_end()
        found = judge(stage.journal(), stage.faults, stage.finals())
        result = Result(done=f"{proxy.lost} of {len(jobs)} answers lost").weigh(found, doubled=False)
        result.expect("each was lost", proxy.lost == times)
        # User code beside it may have enqueued, too.
        result.expect("one job for each call", len(stage.finals()) == found.accepted == found.executions)
        stage.stop()
    return result
