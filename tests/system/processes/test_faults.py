"""Faults of the fault matrix that need a process: frozen and blocked workers, hung threads, files that go, limits."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.processes.parent import BACKGROUND, BLOCKING, Child, Lab

QUICK_BEAT = "type(task_worker)._timing = Timing(beat=0.1)"
WORKER = """
record("started")
task_worker.start()
record("returned")
"""


def blocking(lab: Lab, *body: str, name: str = "app") -> str:
    """A module that runs a blocking worker after *body*."""
    return str(lab.write(name, BLOCKING, *body, WORKER))


async def stub(number: int = 0) -> None:
    """Stands for a task that is declared in the worker's process only."""


def await_words(lab: Lab, child: Child, words: str) -> None:
    lab.await_state(lambda: words in child.output)


# -- a blocked loop, a held GIL ----------------------------------------------------------------------------------------

BLOCKS = """
@task_worker.task(name="blocks")
async def blocks():
    with recorded():
        until(gate("go").exists)
"""


def test_worker_with_a_blocked_loop_is_not_given_up_and_names_the_job(lab: Lab) -> None:
    """Row 24. Watched by another worker for longer than the lease."""
    blocked = lab.start("python", blocking(lab, QUICK_BEAT, BLOCKS))
    lab.task_worker.task(name="blocks")(stub)
    job = lab.task_worker._registry.get("blocks").enqueue()
    lab.await_evidence("start")
    lab.start("python", blocking(lab, QUICK_BEAT, BLOCKS, name="observer"))
    await_words(lab, blocked, "the event loop has not turned for")
    assert f"it is blocked by job {job.id} (blocks)" in blocked.output
    assert 'until(gate("go").exists)' in blocked.output
    (observer,) = [row for row in lab.await_workers(2) if row.pid != blocked.pid]
    lab.await_state(lambda: any(row.id == observer.id and row.beat > 40 for row in lab.workers()))
    lab.await_state(lambda: max(json.loads(row.info)["loop_lag_ms"] for row in lab.workers()) > 3000)
    lab.open_gate("go")
    lab.await_state(lambda: lab.row(job).state == "succeeded")
    assert (lab.row(job).claim, lab.row(job).crashes) == (1, 0)
    await_words(lab, blocked, "the event loop turns again after")
    assert len(lab.workers()) == 2


HOLDS = """
import ctypes
import flask_taskworker.worker.watchdog as watchdog
watchdog.FROZEN_AFTER = 2.0  # it looks every second

@task_worker.task(name="holds")
async def holds():
    record("start")
    if current_job.claim == 1:
        # With the GIL, until a process opens the other end.
        os.close(ctypes.PyDLL(None).open(os.environ["LAB"].encode() + b"/pipe", os.O_RDONLY))
    record("end")
"""


def test_worker_whose_process_stands_still_is_rescued_and_its_late_result_fenced(lab: Lab) -> None:
    """Row 25. The lease is 30 beats of 0.1 s here."""
    os.mkfifo(lab.folder / "pipe")
    frozen = lab.start("python", blocking(lab, QUICK_BEAT, HOLDS))
    lab.task_worker.task(name="holds")(stub)
    lab.await_workers(1)
    job = lab.task_worker._registry.get("holds").enqueue()
    lab.await_evidence("start")
    observer = lab.start("python", blocking(lab, QUICK_BEAT, HOLDS, name="observer"))
    lab.await_state(lambda: lab.row(job).state == "succeeded")
    assert (lab.row(job).claim, lab.row(job).crashes) == (2, 1)
    (lab.folder / "pipe").open("wb").close()
    await_words(lab, frozen, "is back under this new id")
    await_words(lab, frozen, "fenced")
    await_words(lab, frozen, "this process stood still for")
    lab.await_state(lambda: len(lab.evidence("end")) == 2)
    assert lab.row(job).claim == 2
    assert {row.pid for row in lab.await_workers(2)} == {frozen.pid, observer.pid}


# -- threads that never come back --------------------------------------------------------------------------------------

HANGS = """
import ctypes
type(task_worker)._timing = Timing(hung_grace=0.3)

@task_worker.task(name="hangs", timeout=0.5)
def hangs():
    record("start")
    ctypes.CDLL(None).sleep(600)  # without the GIL
"""


def test_worker_whose_threads_all_hang_drains_and_exits_with_75(lab: Lab) -> None:
    """Row 23: while one thread is left other jobs run; then what runs may end."""
    child = lab.start("python", blocking(lab, HANGS), LAB_TASKER_THREADS="2")
    lab.task_worker.task(name="hangs", timeout=0.5)(lambda: None)
    hangs = lab.task_worker._registry.get("hangs")
    first = hangs.enqueue()
    lab.await_state(lambda: lab.row(first).state == "failed")
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    lab.await_state(lambda: any(json.loads(row.info).get("hung_threads") == 1 for row in lab.workers()))
    beside = lab.tasks.ahold.enqueue("go")
    lab.await_state(lambda: lab.row(beside).state == "running")
    second = hangs.enqueue()
    await_words(lab, child, "all 2 threads for sync jobs are held by jobs that exceeded their timeout")
    lab.await_state(lambda: [row.state for row in lab.workers()] == ["draining"])
    later = lab.tasks.add.enqueue(1, 2)
    lab.open_gate("go")
    assert child.wait() == 75, child.output
    rows = [lab.row(job) for job in (first, second, beside, later)]
    assert [(row.state, row.failure_kind) for row in rows] == [
        ("failed", "timeout"),
        ("failed", "timeout"),
        ("succeeded", None),
        ("ready", None),
    ]
    assert lab.workers() == []


def test_supervised_worker_whose_threads_all_hang_is_started_again(lab: Lab) -> None:
    path = lab.write("app", BLOCKING, HANGS)
    child = lab.start(
        "flask", "--app", str(path), "tasks", "run", "--workers", "2", LAB_TASKER_THREADS="1"
    )  # fmt: skip
    before = {row.pid for row in lab.await_workers(2)}
    lab.task_worker.task(name="hangs", timeout=0.5)(lambda: None)
    lab.task_worker._registry.get("hangs").enqueue()
    await_words(lab, child, "ended with exit code 75; it starts again in")
    lab.await_state(lambda: len(lab.workers()) == 2 and {row.pid for row in lab.workers()} != before)
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.output


# -- the database file -------------------------------------------------------------------------------------------------


def checkpointed(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_blocking_worker_waits_for_a_deleted_file_and_makes_none(lab: Lab, tmp_path: Path) -> None:
    """Row 15."""
    child = lab.start("python", blocking(lab))
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    away = lab.database.rename(tmp_path / "away")
    await_words(lab, child, "was deleted or replaced while in use")
    await_words(lab, child, "Next try in")
    assert child.process.poll() is None
    assert not lab.database.exists()
    away.rename(lab.database)
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.output
    assert [line["pid"] for line in lab.evidence("end")] == [child.pid] * 2


@pytest.mark.parametrize("how", ["script", "command"])
def test_blocking_worker_ends_when_its_file_is_replaced(lab: Lab, tmp_path: Path, how: str) -> None:
    path = lab.write("app", BLOCKING, WORKER if how == "script" else "")
    child = lab.start(*(["python", str(path)] if how == "script" else ["flask", "--app", str(path), "tasks", "run"]))
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    other = tmp_path / "other.db"
    shutil.copy(lab.database, other)
    before = other.read_bytes()
    other.replace(lab.database)
    code = child.wait()
    assert code == (1 if how == "script" else 5), child.output
    assert "restart this process to work with the new one" in child.output
    assert lab.database.read_bytes() == before


LOCKED_OUT = """
import os
for path in [os.environ["LAB"], *(os.path.join(os.environ["LAB"], n) for n in os.listdir(os.environ["LAB"]))]:
    os.chown(path, 65534, 65534)
os.setuid(65534)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_file_that_is_locked_away_is_an_error_until_it_is_readable_again() -> None:
    """Row 15, chmod 0; by a user who is not root."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Lab(Path(folder))
        try:
            place.task_worker._state().store.driver.prepare()
            child = place.start("python", blocking(place, LOCKED_OUT, QUICK_BEAT))
            place.await_state(lambda: place.workers())
            assert place.tasks.add.enqueue(1, 2).result(timeout=30) == 3
            os.chmod(place.database, 0)
            begun = time.monotonic()
            await_words(place, child, "is no longer readable and writable for this user: its mode is 0o0")
            print(f"the error came {time.monotonic() - begun:.1f} s later")
            await_words(place, child, "Next try in")
            assert child.process.poll() is None
            os.chmod(place.database, 0o600)
            assert place.tasks.add.enqueue(3, 4).result(timeout=30) == 7
        finally:
            place.close()


@pytest.mark.parametrize("what", ["no database", "a damaged page"])
def test_worker_on_a_damaged_copy_claims_nothing_and_says_so(lab: Lab, what: str) -> None:
    """Row 16: no crash loop either."""
    jobs = lab.tasks.add.enqueue_many([(n, n) for n in range(2000)])
    lab.app.extensions["taskworker"].client.close()
    checkpointed(lab.database)
    content = bytearray(lab.database.read_bytes())
    with closing(sqlite3.connect(lab.database)) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'taskworker_attempt'")
    if what == "no database":
        content[:100] = b"\x5a" * 100
    else:
        content[(page - 1) * 4096 : page * 4096] = b"\x5a" * 4096
    for file in lab.folder.glob("taskworker.db*"):
        if file.is_file():
            file.unlink()
    lab.database.write_bytes(content)
    child = lab.start("flask", "--app", str(lab.write("app", BLOCKING)), "tasks", "run")
    if what == "no database":
        assert child.wait() == 1, child.output
        assert "The file is not a database: move it away" in child.output
    else:
        await_words(lab, child, "The file is damaged: stop all processes and restore it from a backup. Next try in")
        assert child.process.poll() is None
    assert lab.database.read_bytes() == content
    assert lab.evidence("start") == []
    assert len(jobs) == 2000


# -- limits ------------------------------------------------------------------------------------------------------------


def limited(lab: Lab, *limits: tuple[int, int]) -> str:
    """Source that limits the process before it starts its worker; the worker's own needs are met."""
    lines = "\n".join(f"resource.setrlimit({number}, ({value}, {value}))" for number, value in limits)
    return f"import resource\n{lines}\n"


DESCRIPTORS = """
import itertools, socket
from flask_taskworker import Retry

exhausted = 0

@task_worker.task(name="greedy", retry=Retry(50, base=0.2, cap=1, jitter=0.9))
async def greedy(number):
    global exhausted
    pairs = []
    try:
        # A few descriptors for a while: too many, if all jobs do so at once.
        for _ in range(4):
            pairs.append(socket.socketpair())
        await asyncio.sleep(0.1)
    except OSError:
        exhausted += 1
        raise
    finally:
        for one in itertools.chain(*pairs):
            one.close()

@task_worker.task(name="tell")
def tell():
    return exhausted

@task_worker.task(name="modest", retry=Retry(50, base=0.2, cap=1, jitter=0.9))
def modest(number):
    with open(os.devnull):
        time.sleep(0.001)
"""


def test_nothing_is_lost_where_descriptors_run_out(lab: Lab) -> None:
    """Row 34, ulimit -n 64."""
    source = limited(lab, (resource.RLIMIT_NOFILE, 64))
    child = lab.start("python", blocking(lab, source, DESCRIPTORS))
    registry = lab.task_worker._registry
    lab.task_worker.task(name="greedy", retry=50)(stub)
    lab.task_worker.task(name="modest", retry=50)(lambda number: None)
    lab.await_workers(1)
    jobs = registry.get("greedy").enqueue_many([(n,) for n in range(200)])
    jobs += registry.get("modest").enqueue_many([(n,) for n in range(200)])
    lab.await_state(lambda: all(lab.row(job).state in ("succeeded", "failed") for job in jobs))
    exhausted = lab.task_worker.task(name="tell")(lambda: 0).enqueue().result(timeout=30)
    rows = [lab.row(job) for job in jobs]
    print(f"{exhausted} executions found no descriptor; {sum(row.failures for row in rows)} tries were repeated")
    assert exhausted > 20, "the limit was reached"
    assert [row.error for row in rows if row.state != "succeeded"] == []
    assert child.process.poll() is None, "the worker lives"
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.output


THREADS = """
import os, resource
for path in [os.environ["LAB"], *(os.path.join(os.environ["LAB"], n) for n in os.listdir(os.environ["LAB"]))]:
    os.chown(path, 54321, 54321)
os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (12, 12))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without other processes")
def test_nothing_is_lost_where_threads_run_out() -> None:
    """Row 34, ulimit -u: twelve threads, and the worker needs some of them itself; 40 jobs want one each."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Lab(Path(folder))
        try:
            place.task_worker._state().store.driver.prepare()
            child = place.start("python", blocking(place, THREADS), LAB_TASKER_THREADS="40")
            place.await_state(lambda: place.workers())
            jobs = [place.tasks.hold.enqueue("go") for _ in range(40)]
            place.await_evidence("start", 2)
            await_words(place, child, "no further thread for sync jobs")
            place.open_gate("go")
            place.await_state(lambda: all(place.row(job).state == "succeeded" for job in jobs))
            starts = len(place.evidence("start"))
            print(f"{starts} starts for 40 jobs")
            assert starts == 40
            assert child.process.poll() is None
        finally:
            place.close()


# -- sizes -------------------------------------------------------------------------------------------------------------

HUGE = """
from flask_taskworker.errors import JobFailed

def peak_mb():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

@task_worker.task(name="huge")
def huge():
    raise ValueError("x" * 50_000_000)

@task_worker.task(name="small")
def small():
    raise ValueError("x")

def failed(task):
    try:
        task.enqueue().result(timeout=PATIENCE)
    except JobFailed as error:
        return len(error.exception_message), len(error.traceback)

task_worker.start()
failed(small)
Path("/proc/self/clear_refs").write_text("5")  # the peak is reset
before = peak_mb()
sizes = [failed(huge) for _ in range(3)]
record("measured", grew=peak_mb() - before, sizes=sizes)
task_worker.stop()
"""


def test_message_of_fifty_megabytes_costs_less_than_a_hundred(lab: Lab) -> None:
    lab.run("python", str(lab.write("app", BACKGROUND, HUGE)))
    (measured,) = lab.await_evidence("measured")
    print(f"the process grew by {measured['grew']:.0f} MB; message and traceback: {measured['sizes'][0]} characters")
    assert 40 < measured["grew"] < 100
    assert all(length < 66_000 for sizes in measured["sizes"] for length in sizes)
