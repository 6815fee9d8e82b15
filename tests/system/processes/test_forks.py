"""Processes that fork: what a child inherits, what it must leave alone, and that its parent is none the worse."""

from __future__ import annotations

import signal
import sqlite3
import time
from typing import Any

import pytest

from tests.system.processes.parent import BACKGROUND, BLOCKING, Child, Lab

# The wake-up must do it, not the safety net: with this interval a lost one is a test that fails.
NO_NET = {"LAB_TASKER_LOOP_INTERVAL": "3600"}

FORKING = """
def links():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return found

def in_child(ending):
    inherited = links()
    job = tasks.add.enqueue(20, 1)
    record("child", enqueued=job.id, result=job.result(timeout=PATIENCE), inherited=inherited,
           threads=[t.name for t in threading.enumerate()])
    until(gate("child").exists)
    record("last", enqueued=tasks.add.enqueue(30, 1).id)
    ending()

@task_worker.task(name="lab.fork")
def fork(how):
    record("start")
    pid = os.fork()
    if pid == 0:
        in_child({"os._exit": lambda: os._exit(0), "return": lambda: None, "sys.exit": lambda: sys.exit(0)}[how])
        return how
    record("forked", child=pid)
    return pid

@task_worker.task(name="lab.afork")
async def afork(how):
    return fork(how)

@task_worker.task(name="lab.multiprocessing")
def with_multiprocessing():
    process = multiprocessing.get_context("fork").Process(target=in_child, args=[lambda: None])
    process.start()
    record("forked", child=process.pid)
    process.join()
    return process.exitcode
"""
IMPORTS = "import multiprocessing, sys"


def forking(lab: Lab, source: str = BLOCKING, *body: str) -> Child:
    return lab.start("python", str(lab.write("app", source, IMPORTS, FORKING, *body, "task_worker.start()")), **NO_NET)


def enqueue(lab: Lab, name: str, *args: Any) -> Any:
    if name == "lab.afork":

        async def function(*args: Any) -> None: ...
    else:

        def function(*args: Any) -> None: ...  # type: ignore[misc]

    return lab.task_worker.task(name=name)(function).enqueue(*args)


def is_intact(lab: Lab) -> bool:
    connection = sqlite3.connect(lab.database)
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


def has_ended(pid: int) -> bool:
    """Whether that process is gone, or a zombie that its parent has not asked for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("lab.fork", "os._exit"),
        ("lab.fork", "return"),
        ("lab.fork", "sys.exit"),
        ("lab.afork", "return"),
        ("lab.multiprocessing", None),
    ],
)
def test_forked_child_enqueues_and_does_nothing_else_of_ours(lab: Lab, name: str, how: str | None) -> None:
    parent = forking(lab)
    job = enqueue(lab, name, *[how] if how else [])
    child = lab.await_evidence("child")[0]
    assert child["result"] == 21
    assert child["threads"] == ["MainThread"] or "MainThread" not in child["threads"]
    live = [link for link in child["inherited"] if "-live" in link]
    assert live == [], "the lock, the socket's folder and the folder are closed"
    lab.open_gate("child")
    last = lab.await_evidence("last")[0]["enqueued"]
    lab.await_state(lambda: has_ended(lab.evidence("forked")[0]["child"]))
    assert lab.task_worker.get_job(last).result(timeout=30) == 31
    assert job.result(timeout=30) == (0 if how is None else lab.evidence("forked")[0]["child"])
    # The parent hears and works as before, and nothing has run twice.
    for i in range(5):
        assert lab.tasks.add.enqueue(i, 1).result(timeout=30) == i + 1
        assert lab.tasks.aadd.enqueue(i, 1).result(timeout=30) == i + 1
    assert {line["pid"] for line in lab.evidence("end")} == {parent.pid}
    assert lab.row(job).claim == 1
    parent.send(signal.SIGTERM)
    assert parent.wait() == 0, parent.output
    assert is_intact(lab)


def test_death_of_the_parent_is_found_although_its_child_lives_on(lab: Lab) -> None:
    first = forking(lab)
    held = lab.tasks.hold.enqueue("g")
    enqueue(lab, "lab.fork", "os._exit")
    child = lab.await_evidence("child")[0]["pid"]
    second = lab.start("python", str(lab.write("second", BLOCKING, IMPORTS, FORKING, "task_worker.start()")))
    lab.await_workers(2)
    first.send(signal.SIGKILL)
    killed = time.time()
    lab.await_state(lambda: lab.row(held).claim == 2)
    print(f"run again {time.time() - killed:.2f} s after the kill")
    assert time.time() - killed < 20, "not by the lease of 30 s"
    assert not has_ended(child)
    lab.open_gate("child")
    lab.open_gate("g")
    assert held.result(timeout=30) == "g"
    last = lab.await_evidence("last")[0]["enqueued"]
    assert lab.task_worker.get_job(last).result(timeout=30) == 31
    assert {line["pid"] for line in lab.evidence("end")[-2:]} == {second.pid}
    assert is_intact(lab)


@pytest.mark.slow
def test_child_of_a_web_process_ends_by_itself_without_harm(lab: Lab) -> None:
    """A fork in the main thread; the child runs to its end as any Python program does."""
    path = lab.write(
        "app", BACKGROUND, """
        import sys
        task_worker.start()
        assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
                sys.exit(number)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == number
            assert tasks.aadd.enqueue(number, 1).result(timeout=PATIENCE) == number + 1
        """,
    )  # fmt: skip
    child = lab.start("python", str(path), **NO_NET)
    child.went_well()
    assert {line["pid"] for line in lab.evidence("end")} == {child.pid}
    assert is_intact(lab)


@pytest.mark.slow
def test_forks_while_jobs_run_and_threads_enqueue_harm_nothing(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()

        def enqueue(number):
            for i in range(40):
                tasks.add.enqueue(number, i)

        threads = [threading.Thread(target=enqueue, args=[n]) for n in range(3)]
        for thread in threads:
            thread.start()
        for number in range(15):
            pid = os.fork()
            if pid == 0:
                tasks.aadd.enqueue(number, 1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for thread in threads:
            thread.join()
        ended = "SELECT count(*) FROM taskworker_job WHERE state = 'succeeded'"
        until(lambda: app.extensions["taskworker"].store.driver.read(ended, {}) == [(135,)], "all done")
        """,
    )  # fmt: skip
    child = lab.start("python", str(path), **NO_NET)
    child.went_well()
    assert len(lab.evidence("end")) == 135
    assert is_intact(lab)


@pytest.mark.slow
@pytest.mark.parametrize("source", [BACKGROUND, BLOCKING], ids=["background", "blocking"])
def test_start_at_import_does_nothing_in_a_spawned_process(lab: Lab, source: str) -> None:
    """The methods "spawn" and "forkserver" import the main module again, with all that stands at its top."""
    path = lab.write(
        "app", source, """
        import multiprocessing

        def in_child():
            record("child", threads=[t.name for t in threading.enumerate()], name=__name__)

        @task_worker.task(name="lab.spawn")
        def spawn():
            process = multiprocessing.get_context("spawn").Process(target=in_child)
            process.start()
            process.join()
            return process.exitcode

        task_worker.start()
        if __name__ == "__main__":
            threading.Event().wait()
        """,
    )  # fmt: skip
    lab.start("python", str(path))
    assert enqueue(lab, "lab.spawn").result(timeout=30) == 0
    child = lab.evidence("child")[0]
    assert (child["name"], child["threads"]) == ("__mp_main__", ["MainThread"])


@pytest.mark.slow
def test_fork_without_pythons_hooks_gives_the_child_connections_of_its_own(lab: Lab) -> None:
    """As uWSGI forks: in C, behind Python's back."""
    path = lab.write(
        "app", BLOCKING, """
        import ctypes

        tasks.add.enqueue(1, 2)
        driver = app.extensions["taskworker"].store.driver
        engine = driver.engine
        pid = ctypes.CDLL(None).fork()
        if pid == 0:
            record("child", job_id=tasks.add.enqueue(3, 4).id, own=driver.engine is not engine)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert driver.engine is engine
        """,
    )  # fmt: skip
    lab.start("python", str(path)).went_well()
    line = lab.evidence("child")[0]
    assert line["own"]
    assert lab.task_worker.get_job(line["job_id"]).state == "ready"
    assert lab.database.exists()


@pytest.mark.slow
def test_child_that_outlives_its_parent_still_enqueues_into_the_database(lab: Lab) -> None:
    """The last to close an SQLite file deletes its log: it must know of the child's connection."""
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
        if os.fork() == 0:
            tasks.add.enqueue(3, 4)
            record("child")
            until(gate("parent has ended").exists)
            record("last", job_id=tasks.add.enqueue(5, 6).id)
            os._exit(0)
        until(lambda: evidence(os.environ["LAB"], "child"))
        """,
    )  # fmt: skip
    lab.app.extensions["taskworker"].client.close()
    lab.start("python", str(path)).went_well()
    lab.open_gate("parent has ended")
    last = lab.await_evidence("last")[0]["job_id"]
    assert lab.task_worker.get_job(last).state == "ready"
    assert is_intact(lab)


def test_fork_in_the_middle_of_a_transaction_is_refused_in_words(lab: Lab) -> None:
    path = lab.write(
        "app", BLOCKING, """
        from flask_taskworker.errors import NotAccepted

        def fork(run):
            if os.fork() == 0:
                try:
                    tasks.add.enqueue(1, 2)
                except NotAccepted as error:
                    record("refused", words=str(error))
                os._exit(0)
            os.wait()

        tasks.add.enqueue(1, 2)
        app.extensions["taskworker"].store.driver.transaction(fork)
        record("made", job_id=tasks.add.enqueue(3, 4).id)
        """,
    )  # fmt: skip
    lab.start("python", str(path)).went_well()
    assert "forked in the middle of a transaction" in lab.evidence("refused")[0]["words"]
    assert lab.task_worker.get_job(lab.evidence("made")[0]["job_id"]).state == "ready"
