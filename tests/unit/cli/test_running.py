"""What ``flask tasks run`` is told to do, and to leave to others; in this process where that is possible."""

from __future__ import annotations

import json
import re
import signal

import pytest

from flask_taskworker import Every, JobState
from flask_taskworker.ops.health import info_of
from tests.support.cli_shop import Shop
from tests.system.cli.test_run import Shop as ProcessShop
from tests.system.cli.test_run import ended, until


def test_excluded_queues_are_left_to_others(shop: Shop) -> None:
    left, done = shop.crawl.enqueue("x"), shop.add.enqueue(1)
    assert shop("run", "--drain", "--exclude", "web").code == 0
    assert (left.refresh().state, done.refresh().state) == (JobState.READY, JobState.SUCCEEDED)
    assert shop("run", "--drain", env={"TASKER_CLI_RUN_EXCLUDE": "default other"}).code == 0
    assert left.refresh().state is JobState.SUCCEEDED


def test_suspect_job_of_an_excluded_queue_is_left_to_others(shop: Shop) -> None:
    job = shop.crawl.enqueue("x")
    shop.state.store.driver.write("UPDATE taskworker_job SET solo = 1", {})
    assert shop("run", "--drain", "-x", "web").code == 0
    assert job.refresh().state is JobState.READY
    assert shop("run", "--drain", "-x", "other").code == 0
    assert job.refresh().state is JobState.SUCCEEDED


def test_worker_without_a_scheduler_fires_nothing_and_stores_nothing(shop: Shop) -> None:
    shop.add.schedule(Every(seconds=1), name="often", args=(1,))
    shop.jump(5000)
    job = shop.add.enqueue(1)
    assert shop("run", "--drain", "--no-scheduler").code == 0
    assert job.refresh().state is JobState.SUCCEEDED
    (often,) = shop.state.store.schedules()
    assert (often.name, often.last_at) == ("often", None)
    assert shop("run", "--drain").code == 0
    assert shop.state.store.schedules()[0].last_at is not None


def test_queue_that_every_worker_excludes_is_unhealthy(shop: Shop) -> None:
    shop.crawl.enqueue("x")
    shop.register_worker()
    assert shop("status").code == 0
    (worker,) = shop.state.store.workers()
    info = info_of(worker) | {"exclude": ["web"]}
    shop.state.store.driver.write("UPDATE taskworker_worker SET info = :info", {"info": json.dumps(info)})
    assert shop("status").code == 4
    assert "Queue 'web' has ready jobs" in shop("status").out


def test_check_shows_what_is_left_to_others(shop: Shop) -> None:
    answer = shop("run", "--check", "-x", "web", "--no-scheduler", "--name", "{host}-{number}-a")
    assert answer.code == 0
    assert re.search(r"^  except +web$", answer.out, re.MULTILINE)
    assert re.search(r"^  schedules +none$", answer.out, re.MULTILINE)
    assert re.search(r"^  name +\S+-1-a$", answer.out, re.MULTILINE)


@pytest.mark.slow
def test_name_is_shown_and_filled_in_for_each_process(processes: ProcessShop) -> None:
    process = processes.start("tasks", "run", "-w", "2", "--name", "w{number}-{pid}", "-x", "mail")
    store = processes.app.extensions["taskworker"].store

    def names() -> list[str]:
        return sorted(info_of(worker).get("name", "") for worker in store.workers())

    until(lambda: len(names()) == 2, "no two workers")
    one, two = names()
    assert re.fullmatch(r"w1-\d+", one)
    assert re.fullmatch(r"w2-\d+", two)
    code, out, _ = processes.run("tasks", "status")
    assert code == 0
    assert one in out
    assert "all but mail" in out
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0
<<<<<<< HEAD
=======


# -- SIGUSR1 -----------------------------------------------------------------------------------------------------------


def test_stacks_of_running_jobs_begin_in_the_code_of_their_tasks(shop: Shop) -> None:
    go_on = threading.Event()
    began = threading.Semaphore(0)

    async def inner() -> None:
        began.release()
        while not go_on.is_set():
            await asyncio.sleep(0.01)

    @shop.task_worker.task(name="shop.wait_async")
    async def wait_async() -> None:
        await inner()

    @shop.task_worker.task(name="shop.wait_sync")
    def wait_sync() -> None:
        began.release()
        go_on.wait(20)

    wait_async.enqueue()
    wait_sync.enqueue()
    shop.task_worker.start()
    assert began.acquire(timeout=20)
    assert began.acquire(timeout=20)
    (worker,) = shop.task_worker.workers()
    stacks: dict[str, list[str]] = {}

    def both_wait() -> bool:
        # A coroutine that does not wait at this moment shows no more than its own frame.
        stacks.update({job.claim.task: stack_of(task, job) for task, job in worker.running_jobs()})
        return len(stacks["shop.wait_async"]) > 1 and "go_on.wait(20)" in stacks["shop.wait_sync"][0]

    until(both_wait, "they do not wait where they should")
    go_on.set()
    assert "in wait_async" in stacks["shop.wait_async"][0]
    assert "in inner" in stacks["shop.wait_async"][1]
    assert "in wait_sync" in stacks["shop.wait_sync"][0]
    assert "go_on.wait(20)" in stacks["shop.wait_sync"][0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigusr1_writes_the_running_jobs_into_the_log(processes: ProcessShop, workers: str) -> None:
    process = processes.start("tasks", "run", "-w", workers)
    job = processes.enqueue("hold", 60)
    until((processes.folder / "held").exists, "the job did not start")
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    seen = ""
    while "time.sleep(0.01)" not in seen and "in hold" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    assert f"job {job.id} (shop.hold), try 1, sync" in seen
    (processes.folder / "let go").touch()
    assert job.result(timeout=30) == "held"
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0


# -- --reload ----------------------------------------------------------------------------------------------------------


def test_the_applications_own_folders_are_watched(tmp_path: Path) -> None:
    (tmp_path / "shop" / "parts").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    names = ("shop/a.py", "shop/parts/b.py", "other/c.py", "gone/d.py")
    files = [json.__file__, pytest.__file__, *(str(tmp_path / name) for name in names)]
    assert own_folders(files) == [str(tmp_path / "other"), str(tmp_path / "shop")]


def test_reload_without_watchfiles_names_the_extra(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    answer = shop("run", "--reload")
    assert (answer.code, answer.err) == (
        1,
        "Error: --reload needs watchfiles: pip install 'Flask-TaskWorker[reload]'\n",
    )


def test_reload_is_for_one_process(shop: Shop) -> None:
    answer = shop("run", "--reload", "--workers", "2")
    assert answer.code == 2
    assert "--reload is for one process. Leave out --workers." in answer.err


@pytest.mark.slow
def test_reload_runs_new_code_and_a_syntax_error_waits_for_the_next_change(processes: ProcessShop) -> None:
    module = processes.folder / "shop.py"
    source = module.read_text()
    process = processes.start("tasks", "run", "--reload")
    assert process.stderr is not None
    assert processes.enqueue("add", 1, 2).result(timeout=30) == 3
    module.write_text(source.replace("return x + y", "return x * y"))
    read_until(process.stderr, "changed: restarting the worker")
    assert until_result(processes, 2) == 2
    module.write_text(source + "\ndef broken(:\n")
    read_until(process.stderr, "it starts again when a file changes")
    assert process.poll() is None
    module.write_text(source.replace("return x + y", "return x - y"))
    assert until_result(processes, -1) == -1
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 0, err
    assert processes.app.extensions["taskworker"].store.workers() == []


@pytest.mark.slow
def test_worker_ends_when_the_reloading_parent_is_killed(processes: ProcessShop) -> None:
    process = processes.start("tasks", "run", "--reload")
    store = processes.app.extensions["taskworker"].store
    until(lambda: len(store.workers()) == 1, "the worker did not start")
    process.kill()
    until(lambda: store.workers() == [], "the worker went on without a parent")


def read_until(stream: object, words: str) -> None:
    seen = ""
    while words not in seen:
        line = stream.readline()  # type: ignore[attr-defined]
        assert line, seen
        seen += line


def until_result(processes: ProcessShop, wanted: int) -> int:
    """Of the same job again and again: the old worker may still take the first."""
    deadline = time.monotonic() + 40
    while (found := int(processes.enqueue("add", 1, 2).result(timeout=30))) != wanted:
        assert time.monotonic() < deadline, found
    return found


def test_snapshot_of_health_counts_a_worker_by_its_queues(shop: Shop) -> None:
    shop.crawl.enqueue("x")
    shop.register_worker(["default"])
    assert any("no living worker takes them" in problem for problem in Overview.take(shop.state.store).problems())
>>>>>>> e770162 (Say in tests what commands say)
