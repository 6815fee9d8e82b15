"""Rows 22, 28 and 30: jobs that kill, a web server with several processes, two versions at once."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import time
import urllib.request
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from flask_taskworker.extension import TaskWorker
from tests.system.chaos import journal
from tests.system.chaos.fleet import until
from tests.system.chaos.journal import executed
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.spawned import Spawned
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.verifier import DIED, Fault
from tests.system.chaos.worker import Place, Shop, log_to

# -- poison ------------------------------------------------------------------------------------------------------------

PILLS = 3


@row("22", "poison", "three jobs that kill their process, among 400")
def poison(run: Run) -> Result:
    """The killers are found out and fail; the others are all done, and none is blamed."""
    innocents = run.choose(400, 60)
    with a_stage(run) as stage:
        stage.start(3)
        settle(stage, 3)
        stage.put(innocents // 2, longest=0.3)
        pills = [job.uid for job in stage.enqueue("pill", [()] * PILLS)]
        stage.put(innocents - innocents // 2, longest=0.3)
        until(lambda: _replace_dead(stage) or not _unfinished(stage), "all jobs end", 240)
        found = stage.judge()
        deaths = [sum(e.uid == pill and e.word == journal.BEGAN for e in stage.journal()) for pill in pills]
        finals = stage.finals()
        settle(stage, 3)
        stage.stop()
    result = Result(done=f"{PILLS} pills among {innocents}").weigh(found)
    states = [(finals[pill].state, finals[pill].failure_kind) for pill in pills]
    result.figures |= {"deaths by each pill": deaths, "innocents run again": len(found.excused) - sum(deaths) + PILLS}
    result.expect("each pill failed as crashed", states == [("failed", "crashed")] * PILLS)
    result.expect("the pills alone are blamed", sorted(found.left_out) == sorted(pills))
    result.expect("<= 6 deaths a pill", max(deaths) <= 6)
    return result


def _replace_dead(stage: Stage) -> bool:
    """As a supervisor does."""
    for child in list(stage.children):
        if not child.is_alive():
            child.join()
            stage.children.remove(child)
            # It killed itself a moment ago: right after it began what it died of.
            last = max((e.at for e in stage.journal() if e.pid == child.pid), default=time.monotonic())
            stage.faults.append(Fault(kind=DIED, pid=child.pid, at=last, until=last))
            stage.start()
    return False


def _unfinished(stage: Stage) -> int:
    states = stage.states()
    return states["scheduled"] + states["ready"] + states["running"]


# -- gunicorn ----------------------------------------------------------------------------------------------------------

# From this version on it opens a socket in the home directory, and can be told not to.
QUIET = ["--no-control-socket"] if int(version("gunicorn").partition(".")[0]) >= 25 else []
MODES = ("-w 3", "-w 3 --preload", "-w 3 -k gthread --threads 4")


@row("28", "gunicorn", "three processes, with --preload and without, and a schedule of 1 s")
def gunicorn(run: Run) -> Result:
    """Each second fires once, and what the processes enqueue is run."""
    seconds, modes = run.choose((60.0, MODES), (8.0, MODES[1:2]))
    result = Result(done=f"{', '.join(modes)}; {seconds:g} s each")
    with a_stage(run) as stage:
        for mode in modes:
            _serve(run, stage, mode, seconds)
        stage.start()
        settle(stage, 1)
        result.weigh(stage.judge(), doubled=False)
        stage.stop()
        ticks = [line.x for line in stage.evidence("tick")]
        said = stage.whole_logs()
    twice = len(ticks) - len(set(ticks))
    result.figures |= {"ticks": len(ticks), "twice": twice}
    result.expect("no tick twice", not twice)
    result.expect("no tick left out", len(ticks) >= int(seconds - 3) * len(modes) and not _gaps(ticks, len(modes)))
    # Where user code stops the event loop, the worker says so with a traceback.
    result.expect("no traceback", run.neighbour or "Traceback" not in said)
    return result


def _serve(run: Run, stage: Stage, mode: str, seconds: float) -> None:
    """One gunicorn; each second a page that enqueues. It is asked to end, and drains."""
    port = _free_port()
    log = str(run.folder / f"log-gunicorn{mode.replace(' ', '')}")
    place = stage.place._replace(ticks=True)
    bind = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", str(run.folder), *QUIET]
    argv = [*bind, *mode.split(), "tests.system.chaos.web:app"]
    server = Spawned(argv, log, {"CHAOS_PLACE": json.dumps([*place])}, run.folder)
    stage.children.append(server)
    settle(stage, 3)
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        uid = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read().decode()
        journal.write(run.folder, journal.ACCEPTED, [uid])
        time.sleep(0.2)
    os.kill(server.pid, signal.SIGTERM)
    server.join(30)
    if server.exitcode != 0:
        raise AssertionError(f"gunicorn {mode} ended with {server.exitcode}: {stage.logs()[-2000:]}")
    stage.children.remove(server)


def _gaps(ticks: list[int], runs: int) -> int:
    """How many more holes there are than between one gunicorn and the next."""
    moments = sorted(set(ticks))
    holes = sum(later != earlier + 1 for earlier, later in itertools.pairwise(moments))
    return max(0, holes - (runs - 1))


def _free_port() -> int:
    """Below those that the system hands out, so that no other process has it by chance before gunicorn."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


# -- two versions ------------------------------------------------------------------------------------------------------


@row("30", "two-versions", "old and new code at once: a task that only the new one knows")
def two_versions(run: Run) -> Result:
    """The old worker hands its jobs back and fails none; the new one runs them."""
    jobs, alone = run.choose((200, 20.0), (20, 1.5))
    with a_stage(run) as stage:
        fresh = declare_fresh(stage.shop.task_worker, stage.place)
        (old,) = stage.start()
        settle(stage, 1)
        with stage.shop.app.app_context():
            stage.accept(fresh.enqueue_many([()] * jobs))
        stage.put(jobs)
        time.sleep(alone)
        early = stage.states()
        (new,) = stage.start(1, serve_new)
        settle(stage, 2)
        began = time.monotonic()
        with stage.shop.app.app_context():
            stage.accept(fresh.enqueue_many([()] * jobs))
        found = stage.judge(patience=run.choose(240, 60))
        took = time.monotonic() - began
        runs = {e.pid for e in stage.journal() if e.word == journal.BEGAN}
        stage.stop()
    result = Result(done=f"{2 * jobs} jobs of the new task, the old worker alone for {alone:g} s", recovery=[took])
    result.weigh(found, doubled=False)
    result.figures["while the old one was alone"] = dict(early)
    result.expect("none failed", not early["failed"])
    result.expect("the old one did its own work", runs == {old.pid, new.pid})
    return result


def declare_fresh(task_worker: TaskWorker, place: Place) -> Any:
    """The task of the new version."""

    @task_worker.task(name="shop.fresh")
    async def fresh() -> None:
        with executed(place.folder):
            pass

    return fresh


def serve_new(place: Place, log: str) -> None:
    """The life of a worker of the new version."""
    log_to(log)
    shop = Shop(place)
    declare_fresh(shop.task_worker, place)
    shop.task_worker.start()
