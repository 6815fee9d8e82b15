"""A blocking worker in a process of its own: signals, hand-back, and a web process that never starts it."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing

import pytest

from tests.system.processes.parent import BLOCKING, Lab

AT_ONCE = 15.0
"""Seconds that "at once" may take on a busy machine; what it took is printed. TASKER_SHUTDOWN_TIMEOUT is 25 s."""

WORKER = """
record("started")
task_worker.start()
record("returned")
"""
SHORT = {"LAB_TASKER_SHUTDOWN_TIMEOUT": "0.3"}


def blocking(lab: Lab, *body: str) -> str:
    """A module that runs a blocking worker, at once or after *body*."""
    return str(lab.write("app", BLOCKING, *body, WORKER))


def states(lab: Lab, *jobs: object) -> list[tuple[str, int, int]]:
    rows = [lab.row(job) for job in jobs]
    return [(row.state, row.failures, row.crashes) for row in rows]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_running_jobs_end(lab: Lab, number: signal.Signals) -> None:
    child = lab.strict(lab.write("app", BLOCKING, WORKER))
    jobs = [lab.tasks.hold.enqueue("g"), lab.tasks.ahold.enqueue("g")]
    lab.await_evidence("start", 2)
    child.send(number)
    lab.await_state(lambda: [row.state for row in lab.workers()] == ["draining"])
    later = lab.tasks.add.enqueue(1, 2)
    lab.open_gate("g")
    child.went_well()
    assert states(lab, *jobs) == [("succeeded", 0, 0)] * 2
    assert states(lab, later) == [("ready", 0, 0)], "a draining worker claims nothing"
    assert lab.evidence("returned"), "start() has returned"
    assert lab.workers() == []


def test_idle_worker_ends_soon_after_the_signal(lab: Lab) -> None:
    child = lab.strict(lab.write("app", BLOCKING, WORKER))
    lab.await_workers(1)
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    begun = time.monotonic()
    child.send(signal.SIGTERM)
    child.went_well()
    print(f"the process ended {time.monotonic() - begun:.2f} s after SIGTERM")
    assert time.monotonic() - begun < AT_ONCE


def test_jobs_that_run_longer_than_the_timeout_are_handed_back(lab: Lab) -> None:
    child = lab.start("python", blocking(lab), **SHORT)
    jobs = [lab.tasks.hold.enqueue("never"), lab.tasks.ahold.enqueue("never"), lab.tasks.hang.enqueue()]
    lab.await_evidence("start", 3)
    begun = time.monotonic()
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.output
    print(f"the process ended {time.monotonic() - begun:.2f} s after SIGTERM, with a timeout of 0.3 s")
    assert time.monotonic() - begun < AT_ONCE
    assert states(lab, *jobs) == [("ready", 0, 0)] * 3
    assert lab.workers() == []
    # The next worker runs them again as what they are: the first try.
    lab.open_gate("never")
    lab.start("python", blocking(lab), **SHORT)
    again = [line for line in lab.await_evidence("start", 6) if line["claim"] == 2]
    assert [line["attempt"] for line in again] == [1, 1, 1]


TICKING = """
from flask_taskworker import signals

@task_worker.task(name="ticking")
def ticking():
    record("start")
    while not gate(f"enough-{current_job.claim}").exists():
        record("tick")
        time.sleep(0.001)

@task_worker.task(name="once", at_most_once=True)
def once():
    record("start")
    threading.Event().wait()

@signals.worker_stopped.connect
def linger(sender, worker):
    record("stopping")
    time.sleep(SLOW)

@signals.job_failed.connect
@signals.job_succeeded.connect
def tell(sender, job, outcome):
    record("told", id=job.id, ending=str(outcome.ending))
"""
HAND_OVER = 0.5
"""Seconds in which the system ends a process that has asked for it, on a busy machine. A receiver takes longer."""


@pytest.mark.parametrize("slow", [0.0, 0.7, 3600.0], ids=lambda slow: f"receiver takes {slow:g} s")
def test_thread_that_is_handed_back_does_not_run_beside_its_successor(lab: Lab, slow: float) -> None:
    path = blocking(lab, f"SLOW = {slow}", TICKING)
    lab.task_worker.task(name="ticking")(lambda: None).enqueue()
    old = lab.start("python", path, **SHORT)
    lab.await_evidence("tick", 10)
    new = lab.start("python", path, **SHORT)
    lab.await_workers(2)
    begun = time.monotonic()
    old.send(signal.SIGTERM)
    lab.await_state(lambda: any(line["pid"] == new.pid for line in lab.evidence("tick")))
    lab.open_gate("enough-2")
    assert old.wait() == 0, old.output
    assert time.monotonic() - begun < AT_ONCE
    last = max(line["at"] for line in lab.evidence("tick") if line["pid"] == old.pid)
    first = min(line["at"] for line in lab.evidence("start") if line["pid"] == new.pid)
    print(f"its last line came {(first - last) * 1000:.1f} ms before the first of its successor")
    assert last - first < HAND_OVER
    assert len(lab.evidence("stopping")) == 1


def test_jobs_are_handed_back_when_the_last_app_of_the_process_has_ended(lab: Lab) -> None:
    other = """
    other = make_app(task_worker, os.environ["LAB"] + "/other", "other", TASKER_SHUTDOWN_TIMEOUT=60)
    with other.app_context():
        tasks.hold.enqueue("other")
    """
    (lab.folder / "other").mkdir()
    job = lab.tasks.hold.enqueue("never")
    child = lab.start("python", blocking(lab, other, TICKING.replace("SLOW", "0")), **SHORT)
    lab.await_evidence("start", 2)
    child.send(signal.SIGTERM)
    lab.await_state(lambda: "goes back to its queue" in child.output)
    # The thread runs on, and the other app's worker is not done.
    assert states(lab, job) == [("running", 0, 0)]
    assert [row.state for row in lab.workers()] == ["draining"]
    lab.open_gate("other")
    assert child.wait() == 0, child.output
    assert states(lab, job) == [("ready", 0, 0)]
    assert lab.workers() == []


def test_app_with_a_locked_database_keeps_no_thread_beside_the_successor_of_another_apps_job(lab: Lab) -> None:
    other = """
    other = make_app(task_worker, os.environ["LAB"] + "/other", "other")
    with other.app_context():
        tasks.hang.enqueue()
    """
    (lab.folder / "other").mkdir()
    lab.task_worker.task(name="ticking")(lambda: None).enqueue()
    old = lab.start("python", blocking(lab, other, "SLOW = 0", TICKING), **SHORT)
    lab.await_evidence("start", 2)
    new = lab.start("python", blocking(lab, "SLOW = 0", TICKING), **SHORT)
    lab.await_workers(2)
    with closing(sqlite3.connect(lab.folder / "other" / "taskworker.db", timeout=60, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        old.send(signal.SIGTERM)
        lab.await_state(lambda: any(line["pid"] == new.pid for line in lab.evidence("tick")))
        old.wait()
    last = max(line["at"] for line in lab.evidence("tick") if line["pid"] == old.pid)
    first = min(line["at"] for line in lab.evidence("start") if line["pid"] == new.pid)
    print(f"its last line came {(first - last) * 1000:.1f} ms before the first of its successor")
    assert last - first < HAND_OVER


PATIENT = f"""
import flask_taskworker.worker.worker
flask_taskworker.worker.worker.LAST_WORDS = PATIENCE
{TICKING.replace("time.sleep(SLOW)", "until(lambda: evidence(os.environ['LAB'], 'end')); time.sleep(0.5)")}
"""
"""The receiver takes until a job has ended, and long enough for its result to be heard of."""


def test_what_ends_while_receivers_are_slow_is_recorded_and_told(lab: Lab) -> None:
    never = lab.task_worker.task(name="once", at_most_once=True)(lambda: None).enqueue()
    ends, hangs = lab.tasks.hold.enqueue("g"), lab.tasks.hang.enqueue()
    child = lab.start("python", blocking(lab, PATIENT), **SHORT)
    lab.await_evidence("start", 3)
    child.send(signal.SIGTERM)
    lab.await_evidence("stopping")
    # From the start of the signal on nothing is waited for any more; but what ends meanwhile has ended.
    lab.open_gate("g")
    assert child.wait() == 0, child.output
    assert states(lab, ends, hangs, never) == [("succeeded", 0, 0), ("ready", 0, 0), ("failed", 1, 0)]
    assert ends.result(timeout=1) == "g"
    assert {(line["id"], line["ending"]) for line in lab.evidence("told")} == {
        (never.id, "failed"),
        (ends.id, "succeeded"),
    }
    assert lab.workers() == []
    assert list((lab.folder / "taskworker.db-live").glob("*")) == []


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP,), (signal.SIGQUIT,)],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
def test_second_signal_hands_back_at_once(lab: Lab, numbers: tuple[signal.Signals, ...]) -> None:
    child = lab.start("python", blocking(lab))
    jobs = [lab.tasks.hold.enqueue("never"), lab.tasks.ahold.enqueue("never")]
    lab.await_evidence("start", 2)
    for number in numbers[:-1]:
        child.send(number)
        lab.await_state(lambda: [row.state for row in lab.workers()] == ["draining"])
    begun = time.monotonic()
    child.send(numbers[-1])
    assert child.wait() == 0, child.output
    print(f"the process ended {time.monotonic() - begun:.2f} s later")
    assert time.monotonic() - begun < AT_ONCE
    assert states(lab, *jobs) == [("ready", 0, 0)] * 2


def test_ignored_hangup_stays_ignored(lab: Lab) -> None:
    child = lab.start("python", blocking(lab, "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"))
    lab.await_workers(1)
    child.send(signal.SIGHUP)
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    child.send(signal.SIGTERM)
    child.went_well()


def test_coroutine_that_will_not_be_cancelled_does_not_keep_the_process(lab: Lab) -> None:
    stubborn = """
    @task_worker.task(name="stubborn")
    async def stubborn():
        record("start")
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                record("cancelled")

    stubborn.enqueue()
    """
    child = lab.start("python", blocking(lab, stubborn), **SHORT)
    lab.await_evidence("start")
    begun = time.monotonic()
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.output
    assert lab.evidence("cancelled")
    assert time.monotonic() - begun < AT_ONCE


def test_what_a_handed_back_job_has_printed_is_not_lost(lab: Lab) -> None:
    loud = """
    @task_worker.task(name="loud")
    def loud():
        print("said before the end")
        record("start")
        threading.Event().wait()

    loud.enqueue()
    """
    child = lab.start("python", blocking(lab, loud), PYTHONUNBUFFERED="", **SHORT)
    lab.await_evidence("start")
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.output
    assert "said before the end" in child.output


def test_web_process_that_never_starts_it_gets_results(lab: Lab) -> None:
    """The process of this test is that web process; jobs wait until there is a worker, and come at once afterwards."""
    early = lab.tasks.add.enqueue(1, 2)
    child = lab.start("python", blocking(lab))
    assert early.result(timeout=30) == 3
    assert [lab.tasks.add.enqueue(i, 1).result(timeout=30) for i in range(5)] == [1, 2, 3, 4, 5]
    assert {line["pid"] for line in lab.evidence("end")} == {child.pid}


def test_stop_from_another_thread_ends_start(lab: Lab) -> None:
    path = lab.write(
        "app", BLOCKING, """
        def stop_soon():
            assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
            task_worker.stop()
            record("stopped")

        stopper = threading.Thread(target=stop_soon)
        stopper.start()
        task_worker.start()
        record("returned")
        stopper.join()
        """,
    )  # fmt: skip
    lab.strict(path).went_well()
    assert lab.evidence("returned")
    assert lab.evidence("stopped")


def test_start_outside_of_the_main_thread_is_refused(lab: Lab) -> None:
    path = lab.write(
        "app", BLOCKING, """
        def start():
            try:
                task_worker.start()
            except RuntimeError as error:
                record("refused", words=str(error))

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        """,
    )  # fmt: skip
    lab.strict(path).went_well()
    assert "main thread" in lab.evidence("refused")[0]["words"]


LOST = """
type(task_worker)._timing = Timing(watchdog_turn=0.1, blocked_after=0.2, lost_after=1.0)

@task_worker.task(name="harms")
async def harms(how):
    with recorded():
        if current_job.claim == 1:
            if how == "blocks":
                threading.Event().wait()
            asyncio.get_running_loop()._selector.close()
        return "again"
"""


@pytest.mark.parametrize("how", ["blocks", "ends"])
def test_process_ends_with_a_code_of_its_own_where_a_job_has_its_event_loop(lab: Lab, how: str) -> None:
    harms = lab.task_worker.task(name="harms")(lambda how: None)
    child = lab.start("python", blocking(lab, LOST))
    job = harms.enqueue(how)
    assert child.wait() == 70, child.output
    assert "the event loop" in child.output
    lab.start("python", blocking(lab, LOST))
    assert job.result(timeout=30) == "again"
    assert states(lab, job) == [("succeeded", 0, 1)], "that was a crash"
