"""``flask tasks run`` as users start it: in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import flask_taskworker
from flask_taskworker import Job, JobState

SOURCES = Path(flask_taskworker.__file__).parent.parent
PATIENCE = 45

SHOP = """
import logging
import time
from pathlib import Path

from flask import Flask, current_app
from flask_taskworker import BackgroundTaskWorker

HERE = Path(__file__).parent
task_worker = BackgroundTaskWorker()


@task_worker.task
def add(x: int, y: int) -> int:
    return x + y


@task_worker.task(queue="mail")
async def note(word: str) -> None:
    with open(HERE / "notes", "a") as file:
        file.write(f"{word} ")


@task_worker.task
def hold(seconds: float) -> str:
    (HERE / "held").touch()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (HERE / "let go").exists():
        time.sleep(0.01)
    return "held"


@task_worker.task
def log() -> None:
    current_app.logger.warning("from the app")
    logging.getLogger("shop").warning("from \\x1b[31m a task", extra={"customer": 7})


def create_app():
    app = Flask("shop", instance_path=str(HERE / "instance"))
    app.logger.setLevel("INFO")
    app.config["TASKER_LOOP_INTERVAL"] = 3600  # a worker that sleeps until the next look is caught
    app.config["TASKER_SHUTDOWN_TIMEOUT"] = 3600
    task_worker.init_app(app)
    task_worker.start()  # harmless under the flask command
    return app


def create_empty_app():
    app = Flask("empty", instance_path=str(HERE / "instance"))
    BackgroundTaskWorker(app)
    return app
"""


class Shop:
    """A small application in a folder: its commands run in processes, its jobs are enqueued from here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(SHOP)
        self.module = load(folder / "shop.py")
        self.module.task_worker.start = lambda: None  # in this process nothing may run
        self.app = self.module.create_app()
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, *words: str, app: str = "shop", **environment: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASK_", "TASKER_", "WERKZEUG_"))}
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", app, *words],
            cwd=self.folder,
            env=kept | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{self.folder}"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def run(self, *words: str, app: str = "shop", **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command that ends by itself."""
        return ended(self.start(*words, app=app, **environment))

    def enqueue(self, name: str, *args: Any) -> Job[Any]:
        with self.app.app_context():
            job: Job[Any] = getattr(self.module, name).enqueue(*args)
            return job

    def notes(self) -> list[str]:
        return (self.folder / "notes").read_text().split()

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.app.extensions["taskworker"].client.close()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.close()


@pytest.mark.slow
def test_drain_runs_what_is_ready_and_ends_by_itself(shop: Shop) -> None:
    ready = [shop.enqueue("add", 1, 2), shop.enqueue("note", "a")]
    with shop.app.app_context():
        later = shop.module.add.using(delay=3600).enqueue(3, 4)
    code, out, err = shop.run("tasks", "run", "--drain")
    assert (code, out) == (0, ""), err
    assert [job.refresh().state for job in ready] == [JobState.SUCCEEDED] * 2
    assert later.refresh().state is JobState.SCHEDULED


@pytest.mark.slow
def test_drain_ends_without_waiting_for_the_next_look(shop: Shop) -> None:
    # After a failure nothing wakes the loop again, and its next look is an hour away.
    job = shop.enqueue("add", 1, "x")
    assert shop.run("tasks", "run", "--drain")[0] == 0
    assert job.refresh().state is JobState.FAILED


@pytest.mark.slow
def test_given_queues_are_worked_on_in_that_order_and_no_others(shop: Shop) -> None:
    shop.app.config["TASKER_QUEUES"] = ["default"]
    with shop.app.app_context():
        for number in range(3):
            shop.module.note.using(queue="second").enqueue(f"second{number}")
            shop.module.note.using(queue="first").enqueue(f"first{number}")
        other = shop.module.note.using(queue="third").enqueue("third")
    code, _, err = shop.run("tasks", "run", "first", "second", "first", "-c", "1", "--burst")
    assert code == 0, err
    assert shop.notes() == ["first0", "first1", "first2", "second0", "second1", "second2"]
    assert other.refresh().state is JobState.READY


def test_sigterm_lets_the_running_job_end(shop: Shop) -> None:
    job = shop.enqueue("hold", 60)
    waiting = shop.enqueue("add", 1, 2)
    process = shop.start("tasks", "run", "--threads", "1")
    until((shop.folder / "held").exists, "the job did not start")
    process.send_signal(signal.SIGTERM)
    until(lambda: b"draining" in state_of_worker(shop), "the signal was not heard")
    (shop.folder / "let go").touch()
    code, _, err = ended(process)
    assert code == 0, err
    assert "SIGTERM: no more claims" in err
    assert (job.refresh().state, waiting.refresh().state) == (JobState.SUCCEEDED, JobState.READY)


def test_second_signal_hands_the_running_job_back_at_once(shop: Shop) -> None:
    job = shop.enqueue("hold", 60)
    process = shop.start("tasks", "run")
    until((shop.folder / "held").exists, "the job did not start")
    process.send_signal(signal.SIGINT)
    until(lambda: b"draining" in state_of_worker(shop), "the first signal was not heard")
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 0, err
    assert job.refresh().state is JobState.READY
    assert shop.app.extensions["taskworker"].store.attempts(job.id) == []


def state_of_worker(shop: Shop) -> bytes:
    return b" ".join(worker.state.encode() for worker in shop.app.extensions["taskworker"].store.workers())


@pytest.mark.slow
def test_grace_bounds_the_wait_for_running_jobs(shop: Shop) -> None:
    job = shop.enqueue("hold", 60)
    process = shop.start("tasks", "run", "--grace", "0.1s")
    until((shop.folder / "held").exists, "the job did not start")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0
    assert job.refresh().state is JobState.READY


@pytest.mark.slow
def test_max_jobs_ends_after_that_many(shop: Shop) -> None:
    jobs = [shop.enqueue("add", number, 1) for number in range(4)]
    code, _, err = shop.run("tasks", "run", "--max-jobs", "3")
    assert code == 0, err
    assert sorted(job.refresh().state for job in jobs) == ["ready", "succeeded", "succeeded", "succeeded"]


@pytest.mark.slow
def test_max_idle_ends_a_worker_without_jobs(shop: Shop) -> None:
    assert shop.run("tasks", "run", "--max-idle", "0.1")[0] == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_max_memory_ends_after_the_first_job_and_not_before(shop: Shop) -> None:
    process = shop.start("tasks", "run", "--max-memory", "1")
    until(lambda: b"alive" in state_of_worker(shop), "the worker did not start")
    assert process.poll() is None
    job = shop.enqueue("add", 1, 2)
    code, _, err = ended(process)
    assert code == 0, err
    assert "MB of memory" in err
    assert job.refresh().state is JobState.SUCCEEDED


@pytest.mark.slow
def test_options_come_from_the_environment(shop: Shop) -> None:
    job = shop.enqueue("add", 1, 2)
    assert shop.run("tasks", "run", TASKER_CLI_RUN_DRAIN="1", TASKER_CLI_RUN_QUIET="1") == (0, "", "")
    assert job.refresh().state is JobState.SUCCEEDED


@pytest.mark.slow
def test_debug_does_not_matter(shop: Shop) -> None:
    job = shop.enqueue("add", 1, 2)
    code, _, err = shop.run("--debug", "tasks", "run", "--drain")
    assert code == 0, err
    assert job.refresh().state is JobState.SUCCEEDED


@pytest.mark.slow
def test_check_says_what_would_run_and_runs_nothing(shop: Shop) -> None:
    job = shop.enqueue("add", 1, 2)
    code, out, err = shop.run("tasks", "run", "mail", "typo", "--threads", "3", "--max-jobs", "7", "--check")
    assert code == 0, err
    for words in ("mail, typo", "3 sync jobs", "after 7 jobs", "taskworker.db", "4 tasks", "shop.add, shop.hold"):
        assert words in out
    assert err == "Note: no task uses the queue 'typo'; it only gets jobs enqueued with using(queue='typo').\n"
    assert job.refresh().state is JobState.READY


@pytest.mark.slow
def test_check_fails_where_no_task_is_registered(shop: Shop) -> None:
    code, out, err = shop.run("tasks", "run", "--check", app="shop:create_empty_app")
    assert code == 1
    assert "0 tasks" in out
    assert "No task is registered with this app. Declare one" in err


@pytest.mark.slow
def test_text_log_shows_each_record_once_and_steers_no_terminal(shop: Shop) -> None:
    job = shop.enqueue("log")
    _, _, err = shop.run("tasks", "run", "--drain")
    assert err.count("from the app") == 1
    assert f"shop: from \\x1b[31m a task [job {job.id}]" in err
    assert "succeeded" not in err


@pytest.mark.slow
def test_json_log_has_an_object_a_line_with_the_job_and_extra(shop: Shop) -> None:
    job = shop.enqueue("log")
    shop.enqueue("add", 1, "x")
    _, _, err = shop.run("tasks", "run", "--drain", "--log-format", "json", "--verbose")
    records = [json.loads(line) for line in err.splitlines()]
    said = next(record for record in records if record["message"] == "from \x1b[31m a task")
    assert said["logger"] == "shop"
    assert (said["job_id"], said["task"], said["attempt"], said["customer"]) == (job.id, "shop.log", 1, 7)
    assert (said["queue"], len(said["worker"])) == ("default", 12)
    ended = next(record for record in records if record.get("outcome") == "succeeded")
    assert (ended["job_id"], ended["logger"]) == (job.id, "flask_taskworker.jobs")
    assert 0 <= ended["duration"] < 20
    assert any("TypeError" in record.get("exception", "") for record in records)
    assert any(record["level"] == "DEBUG" for record in records)


@pytest.mark.slow
def test_watch_looks_again_until_interrupted(shop: Shop) -> None:
    # Looking makes no tables.
    shop.app.extensions["taskworker"].store.driver.prepare()
    process = shop.start("tasks", "status", "--json", "--watch", "0.1")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    job = shop.enqueue("add", 1, 2)
    until(lambda: json.loads(process.stdout.readline())["counts"]["ready"] == 1, "it did not look again")
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    assert first["counts"]["ready"] == 0
    assert job.state is JobState.READY
