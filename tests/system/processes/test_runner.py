"""A background worker in a process of its own: start, stop, and how the process ends."""

from __future__ import annotations

import signal
import sqlite3
import sys
import time

from tests.system.processes.parent import BACKGROUND, Child, Lab

AT_ONCE = 15.0
"""Seconds that "at once" may take on a busy machine; what it took is printed. TASKER_SHUTDOWN_TIMEOUT is 25 s."""


SHORT = {"LAB_TASKER_SHUTDOWN_TIMEOUT": "0.2"}
STILL_RUNS = "did not end in time; it is run again when this process has ended"


def ended_cleanly(lab: Lab, child: Child, *, says: str = "") -> None:
    """It ended soon after it recorded "ending", without another word."""
    assert child.wait() == 0, child.output
    assert [line for line in child.output.splitlines() if not says or says not in line] == []
    took = time.time() - lab.evidence("ending")[-1]["at"]
    print(f"the process ended {took:.2f} s later")
    assert took < AT_ONCE


def test_start_is_idempotent(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        runner = task_worker._runner
        task_worker.start()
        assert task_worker._runner is runner
        assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
        assert len(app.extensions["taskworker"].store.workers()) == 1
        task_worker.stop()
        """,
    )  # fmt: skip
    child = lab.strict(path)
    child.went_well()


def test_worker_starts_again_after_stop(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        for number in range(3):
            task_worker.start()
            assert tasks.add.enqueue(number, 1).result(timeout=PATIENCE) == number + 1
            task_worker.stop()
            assert app.extensions["taskworker"].store.workers() == []
            until(lambda: [t.name for t in threading.enumerate() if not t.daemon] == ["MainThread"], "no other thread")
        assert len([t for t in threading.enumerate() if t.name == "taskworker-watch"]) <= 1
        """,
    )  # fmt: skip
    child = lab.strict(path)
    child.went_well()


def test_process_ends_after_a_job_has_ended_its_event_loop_for_good(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        import gc

        gc.disable()  # what the lost loop has held stays

        @task_worker.task(name="harms")
        async def harms():
            if current_job.claim == 1:
                asyncio.get_running_loop()._selector.close()
            return "again"

        task_worker.start()
        assert harms.enqueue().result(timeout=PATIENCE) == "again"
        task_worker.stop()
        record("ending")
        """,
    )  # fmt: skip
    child = lab.start("python", str(path))
    assert child.wait() == 0, child.output
    assert "the event loop cannot go on" in child.output
    assert "Exception in thread" not in child.output


def test_two_apps_each_run_their_own_jobs_and_a_later_one_joins(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        second = make_app(task_worker, os.path.join(os.environ["LAB"], "second"), "second")

        def jobs_of(*apps):
            jobs = []
            for one in apps:
                with one.app_context():
                    jobs += [tasks.add.enqueue(1, 2), tasks.aadd.enqueue(3, 4)]
            return jobs

        task_worker.start()
        jobs = jobs_of(app, second)
        third = make_app(task_worker, os.path.join(os.environ["LAB"], "third"), "third")
        jobs += jobs_of(third)
        assert [job.result(timeout=PATIENCE) for job in jobs] == [3, 7] * 3
        stores = [one.extensions["taskworker"].store for one in (app, second, third)]
        ended = "SELECT count(*) FROM taskworker_job WHERE state = 'succeeded'"
        assert [store.driver.read(ended, {}) for store in stores] == [[(2,)]] * 3
        assert [len(store.workers()) for store in stores] == [1, 1, 1]
        task_worker.stop()
        assert [store.workers() for store in stores] == [[], [], []]
        """,
    )  # fmt: skip
    child = lab.strict(path)
    child.went_well()


def test_an_app_made_after_all_others_are_gone_joins(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        import gc

        task_worker.start()
        assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
        for number in range(3):
            del app
            gc.collect()
            app = make_app(task_worker, os.path.join(os.environ["LAB"], str(number)), "later")
            assert tasks.add.enqueue(3, 4).result(timeout=PATIENCE) == 7
        """,
    )  # fmt: skip
    child = lab.strict(path)
    child.went_well()


def test_factory_called_twice_leaves_one_worker(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
        for number in range(4):
            app = make_app(task_worker)
            assert tasks.add.enqueue(number, 4).result(timeout=PATIENCE) == number + 4
        store = app.extensions["taskworker"].store
        until(lambda: len(store.workers()) == 1, "one worker")
        """,
    )  # fmt: skip
    child = lab.strict(path)
    child.went_well()
    assert len(lab.evidence("end")) == 5


def test_stop_lets_running_jobs_end_and_returns(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        store = app.extensions["taskworker"].store

        def open_gate_while_draining():
            until(lambda: store.workers()[0].state == "draining", "draining")
            gate("g").touch()

        task_worker.start()
        jobs = [tasks.hold.enqueue("g"), tasks.ahold.enqueue("g")]
        until(lambda: len(evidence(os.environ["LAB"], "start")) == 2, "both run")
        opener = threading.Thread(target=open_gate_while_draining)
        opener.start()
        task_worker.stop()
        assert [job.refresh().state for job in jobs] == ["succeeded", "succeeded"]
        assert store.workers() == []
        opener.join()
        record("ending")
        """,
    )  # fmt: skip
    ended_cleanly(lab, lab.strict(path))


def test_stop_with_a_timeout_hands_back_coroutines_and_counts_nothing(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        job = tasks.ahold.enqueue("never")
        until(lambda: evidence(os.environ["LAB"], "start"), "it runs")
        task_worker.stop(timeout=0)
        row = app.extensions["taskworker"].store.record(job.id)
        assert (row.state, row.failures, row.crashes) == ("ready", 0, 0), row
        assert app.extensions["taskworker"].store.workers() == []
        record("ending")
        """,
    )  # fmt: skip
    child = lab.strict(path)
    assert child.wait() == 0
    assert "Warning" not in child.output


def test_process_ends_soon_after_its_main_thread(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
        assert tasks.aadd.enqueue(1, 2).result(timeout=PATIENCE) == 3
        record("ending")
        """,
    )  # fmt: skip
    ended_cleanly(lab, lab.strict(path))
    assert lab.workers() == []


def test_process_ends_soon_after_an_exception_in_its_main_thread(lab: Lab) -> None:
    path = lab.write("app", BACKGROUND, "task_worker.start()\nrecord('ending')\nraise SystemExit(7)")
    child = lab.strict(path)
    assert (child.wait(), child.output) == (7, "")
    assert lab.workers() == []


def test_jobs_that_run_when_the_main_thread_ends_may_end_too(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        tasks.hold.enqueue("g")
        tasks.ahold.enqueue("g")
        until(lambda: len(evidence(os.environ["LAB"], "start")) == 2, "both run")
        """,
    )  # fmt: skip
    child = lab.strict(path)
    # They begin to drain only when the main thread has ended.
    lab.await_state(lambda: [row.state for row in lab.workers()] == ["draining"])
    lab.open_gate("g")
    child.went_well()
    assert len(lab.evidence("end")) == 2
    assert lab.workers() == []


def test_coroutines_that_run_too_long_after_the_main_thread_are_handed_back(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        job = tasks.ahold.enqueue("never")
        until(lambda: evidence(os.environ["LAB"], "start"), "it runs")
        record("ending", job_id=job.id)
        """,
    )  # fmt: skip
    ended_cleanly(lab, lab.strict(path, **SHORT))
    row = lab.task_worker.get_job(lab.evidence("ending")[0]["job_id"])._record
    assert (row.state, row.failures, row.crashes) == ("ready", 0, 0)


def test_hanging_sync_job_keeps_the_process_no_longer_than_the_timeout(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        job = tasks.hang.enqueue()
        until(lambda: evidence(os.environ["LAB"], "start"), "it runs")
        record("ending", job_id=job.id)
        """,
    )  # fmt: skip
    ended_cleanly(lab, lab.strict(path, **SHORT), says=STILL_RUNS)
    job = lab.task_worker.get_job(lab.evidence("ending")[0]["job_id"])
    assert job.state == "running", "it keeps its claim until the process is dead"
    # The next worker takes it over at once. It left in order, so no crash is counted.
    lab.start("python", str(lab.write("next", BACKGROUND, "task_worker.start()", "threading.Event().wait()")))
    assert lab.await_evidence("start", 2)[1]["claim"] == 2
    row = lab.row(job)
    assert (row.failures, row.crashes) == (0, 0)


def test_hanging_sync_job_does_not_keep_stop_beyond_its_timeout(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        tasks.hang.enqueue()
        until(lambda: evidence(os.environ["LAB"], "start"), "it runs")
        task_worker.stop(timeout=0.2)
        task_worker.start()
        assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
        record("ending")
        """,
    )  # fmt: skip
    ended_cleanly(lab, lab.strict(path), says=STILL_RUNS)


def test_coroutine_may_use_threads_and_the_network_while_the_process_ends(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        @task_worker.task(name="late")
        async def late():
            record("start")
            while threading.main_thread().is_alive():
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(lambda: 5) == 5
            await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
            record("end")

        task_worker.start()
        late.enqueue()
        until(lambda: evidence(os.environ["LAB"], "start"), "it runs")
        """,
    )  # fmt: skip
    child = lab.strict(path)
    child.went_well()
    # Python 3.12.0 and 3.12.1 start no thread once the main thread has ended: there the job goes back.
    able = sys.version_info[:3] not in ((3, 12, 0), (3, 12, 1))
    assert len(lab.evidence("end")) == able
    job = lab.task_worker.get_job(lab.evidence("start")[0]["job"])
    assert job.state == ("succeeded" if able else "ready")


def test_job_that_the_end_of_the_interpreter_breaks_is_handed_back(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        from concurrent.futures import ThreadPoolExecutor

        @task_worker.task(name="late")
        def late():
            record("start")
            until(lambda: not threading.main_thread().is_alive())
            with ThreadPoolExecutor() as pool:
                pool.submit(record, "end")

        task_worker.start()
        record("made", job_id=late.enqueue().id)
        until(lambda: evidence(os.environ["LAB"], "start"), "it runs")
        """,
    )  # fmt: skip
    child = lab.start("python", str(path))
    assert child.wait() == 0
    assert lab.evidence("end") == []
    row = lab.task_worker.get_job(lab.evidence("made")[0]["job_id"])._record
    assert (row.state, row.failures, row.crashes) == ("ready", 0, 0), child.output


def test_worker_starts_although_another_process_holds_the_write_lock_for_seconds(lab: Lab) -> None:
    lab.task_worker._state().store.driver.prepare()
    path = lab.write(
        "app", BACKGROUND, """
        app.extensions["taskworker"].store.driver.prepare = lambda: None
        task_worker.start()
        record("started")
        threading.Event().wait()
        """,
    )  # fmt: skip
    job = lab.tasks.add.enqueue(1, 2)
    other = sqlite3.connect(lab.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    child = lab.start("python", str(path))
    lab.await_evidence("started")
    # It says so once it has given up for the first time.
    lab.await_state(lambda: "cannot start" in child.output)
    other.execute("COMMIT")
    other.close()
    assert job.result(timeout=20) == 3


def test_second_ctrl_c_ends_the_process_at_once_and_hands_back(lab: Lab) -> None:
    path = lab.write(
        "app", BACKGROUND, """
        task_worker.start()
        job = tasks.ahold.enqueue("never")
        record("made", job_id=job.id)
        threading.Event().wait()
        """,
    )  # fmt: skip
    child = lab.start("python", str(path))
    lab.await_evidence("start")
    child.send(signal.SIGINT)
    lab.await_state(lambda: [row.state for row in lab.workers()] == ["draining"])
    begun = time.monotonic()
    child.send(signal.SIGINT)
    child.wait()
    assert time.monotonic() - begun < AT_ONCE
    row = lab.task_worker.get_job(lab.evidence("made")[0]["job_id"])._record
    assert (row.state, row.failures, row.crashes) == ("ready", 0, 0)
