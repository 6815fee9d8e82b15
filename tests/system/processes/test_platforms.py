"""Where something is missing: Windows, uWSGI without threads, a path that is too long for a socket's name."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from tests.system.processes.parent import BACKGROUND, BLOCKING, Lab

WINDOWS = """
import os, signal, socket, sys
assert "asyncio" not in sys.modules
import asyncio

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "pwd", "resource"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.modules.pop("fcntl", None)
del socket.AF_UNIX
for name in ("register_at_fork", "O_CLOEXEC", "O_DIRECTORY", "getuid", "fork"):
    delattr(os, name)
for name in ("SIGHUP", "SIGQUIT"):
    delattr(signal, name)

def refuse(self, number, callback, *args):
    raise NotImplementedError

asyncio.unix_events._UnixSelectorEventLoop.add_signal_handler = refuse
"""


@pytest.mark.parametrize("source", [BACKGROUND, BLOCKING], ids=["background", "blocking"])
def test_without_locks_and_sockets_enqueueing_works_and_a_worker_is_refused_in_words(lab: Lab, source: str) -> None:
    path = lab.write(
        "app", WINDOWS, source.replace("from lab import *", "os.O_CLOEXEC = 0\nfrom lab import *"), """
        from flask_taskworker.errors import NotSupported

        job = tasks.add.enqueue(1, 2)
        assert job.refresh().state == "ready"
        assert tasks.add.enqueue_many([(1, 2), (3, 4)])[1].cancel()
        try:
            task_worker.start()
        except NotSupported as error:
            record("refused", words=str(error))
        assert [t.name for t in threading.enumerate()] == ["MainThread"]
        """,
    )  # fmt: skip
    lab.strict(path).went_well()
    assert "Enqueueing works here" in lab.evidence("refused")[0]["words"]
    assert lab.workers() == []


def test_enqueueing_without_sockets_beside_a_living_worker_works(lab: Lab) -> None:
    """As under Windows beside WSL: the folder with the sockets is there, and nothing that could send."""
    worker = lab.start(
        "python", str(lab.write("worker", BLOCKING, "task_worker.start()")), LAB_TASKER_LOOP_INTERVAL="0.2"
    )
    lab.await_workers(1)
    source = BLOCKING.replace("from lab import *", "os.O_CLOEXEC = 0\nfrom lab import *")
    lab.strict(lab.write("app", WINDOWS, source, "tasks.add.enqueue(1, 2)")).went_well()
    assert lab.await_evidence("end")[0]["pid"] == worker.pid


# -- uWSGI -------------------------------------------------------------------------------------------------------------

UWSGI = """
import sys, types

class Uwsgi(types.ModuleType):
    opt = {options}

    def worker_id(self):
        return {worker_id}

sys.modules["uwsgi"] = uwsgi = Uwsgi("uwsgi")
"""


def test_uwsgi_without_threads_is_refused_with_the_reason(lab: Lab) -> None:
    path = lab.write(
        "app", UWSGI.format(options={}, worker_id=1), BACKGROUND, """
        from flask_taskworker.errors import NotSupported

        for options in ({}, {b"master": True}, {"enable-threads": b"false"}):
            uwsgi.opt = options
            try:
                task_worker.start()
            except NotSupported as error:
                record("refused", words=str(error))
        """,
    )  # fmt: skip
    lab.strict(path).went_well()
    assert ["enable-threads = true" in line["words"] for line in lab.evidence("refused")] == [True] * 3


def test_uwsgi_with_threads_is_fine(lab: Lab) -> None:
    path = lab.write(
        "app", UWSGI.format(options={}, worker_id=1), BACKGROUND, """
        for options in ({"enable-threads": True}, {b"threads": b"4"}):
            uwsgi.opt = options
            task_worker.start()
            assert tasks.add.enqueue(1, 2).result(timeout=PATIENCE) == 3
            task_worker.stop()
        """,
    )  # fmt: skip
    lab.strict(path).went_well()


def test_uwsgis_master_runs_no_jobs_and_each_process_that_it_forks_does(lab: Lab) -> None:
    """uWSGI forks in C, so that no fork hook of Python's runs; it calls one of its own in each new process."""
    path = lab.write(
        "app", UWSGI.format(options={"enable-threads": True}, worker_id=0), """
        uwsgi.post_fork_hook = lambda: record("hook of the user")
        """, BACKGROUND, """
        import ctypes

        early = tasks.add.enqueue(1, 2)
        task_worker.start()
        assert "taskworker-loop" not in [t.name for t in threading.enumerate()]
        children = []
        for number in (1, 2):
            pid = ctypes.CDLL(None).fork()
            if pid == 0:
                uwsgi.post_fork_hook()
                until(gate("done").exists)
                task_worker.stop()
                os._exit(0)
            children.append(pid)
        record("forked", children=children)
        until(gate("done").exists)
        for pid in children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """,
    )  # fmt: skip
    child = lab.start("python", str(path))
    running_jobs = {row.pid for row in lab.await_workers(2)}
    assert running_jobs == set(lab.await_evidence("forked")[0]["children"])
    assert [lab.tasks.add.enqueue(i, 1).result(timeout=30) for i in range(5)] == [1, 2, 3, 4, 5]
    assert len(lab.await_evidence("hook of the user", 2)) == 2
    lab.open_gate("done")
    child.went_well()
    assert {line["pid"] for line in lab.evidence("end")} <= running_jobs
    assert len(lab.evidence("end")) == 6


# -- paths -------------------------------------------------------------------------------------------------------------


def test_wake_up_reaches_a_worker_of_a_database_with_a_very_long_path(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    far = Lab(folder)
    try:
        # Without the wake-up the worker would look in an hour.
        child = far.start(
            "python", str(far.write("app", BLOCKING, "task_worker.start()")), LAB_TASKER_LOOP_INTERVAL="3600"
        )
        far.await_workers(1)
        for i in range(3):
            assert far.tasks.add.enqueue(i, 1).result(timeout=30) == i + 1
        assert sorted(path.name for path in folder.glob("taskworker.db*")) == [
            "taskworker.db", "taskworker.db-live", "taskworker.db-shm", "taskworker.db-wal",
        ]  # fmt: skip
        child.send(signal.SIGTERM)
        child.went_well()
        assert list((folder / "taskworker.db-live").iterdir()) == []
    finally:
        far.close()


def test_wake_up_and_rescue_work_without_proc(lab: Lab) -> None:
    """As on macOS: the sockets are in a private folder with a short name."""
    elsewhere = "import flask_taskworker.store.sqlite.live as live\nlive._LINUX = False"
    folder = lab.folder / ("long" * 40)
    folder.mkdir()
    temporary = Path(tempfile.mkdtemp(prefix="tw"))
    far, settings = Lab(folder), {"LAB_TASKER_LOOP_INTERVAL": "3600", "TMPDIR": str(temporary)}
    try:
        workers = [
            far.start("python", str(far.write(name, elsewhere, BLOCKING, "task_worker.start()")), **settings)
            for name in "ab"
        ]
        far.await_state(lambda: len(far.workers()) == 2)
        path = far.write(
            "web", elsewhere, BLOCKING, "record('result', value=tasks.add.enqueue(1, 2).result(timeout=PATIENCE))"
        )
        far.start("python", str(path), **settings).went_well()
        assert far.evidence("result")[0]["value"] == 3
        assert len(list(temporary.glob("tw-*/*.sock"))) == 2
        workers[0].send(signal.SIGKILL)
        far.await_workers(1)
        workers[1].send(signal.SIGTERM)
        workers[1].wait()
        assert list(temporary.glob("tw-*/*")) == []
        assert list((folder / "taskworker.db-live").iterdir()) == []
    finally:
        far.close()
        shutil.rmtree(temporary)


def test_files_are_for_their_owner_alone(lab: Lab) -> None:
    lab.start("python", str(lab.write("app", "import os\nos.umask(0)", BLOCKING, "task_worker.start()")))
    lab.await_workers(1)
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    live = lab.folder / "taskworker.db-live"
    modes = {path.name: path.stat().st_mode & 0o777 for path in [*lab.folder.glob("taskworker.db*"), *live.iterdir()]}
    assert modes.pop(live.name) == 0o700
    assert set(modes.values()) == {0o600}, modes
    assert len(modes) == 5
