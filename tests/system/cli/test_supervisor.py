"""``flask tasks run --workers``: a parent and its workers, with real signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_taskworker import JobState
from flask_taskworker.cli.supervisor import available_cpus
from tests.system.cli.test_run import Shop, ended, until

BROKEN = """
if (HERE / "broken").exists():
    raise RuntimeError("this module is broken")
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    with (tmp_path / "shop.py").open("a") as module:
        module.write(BROKEN)
    yield shop
    shop.close()


def workers(shop: Shop) -> list[Any]:
    """The living workers."""
    return [row for row in shop.app.extensions["taskworker"].store.workers() if row.state == "alive"]


def await_workers(shop: Shop, number: int, but: int = 0) -> list[int]:
    """Their processes, once there are that many of them and none is *but*."""
    until(lambda: len(workers(shop)) == number and but not in {row.pid for row in workers(shop)}, f"{number} workers")
    return sorted(row.pid for row in workers(shop))


def start(shop: Shop, *words: str, number: int = 2) -> subprocess.Popen[str]:
    process = shop.start("tasks", "run", "--workers", str(number), *words)
    await_workers(shop, number)
    return process


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
def test_workers_run_in_processes_of_their_own_and_end_with_the_parent(shop: Shop) -> None:
    process = start(shop, number=3)
    pids = await_workers(shop, 3)
    assert process.pid not in pids
    jobs = [shop.enqueue("add", number, 1) for number in range(20)]
    assert [job.result(timeout=30) for job in jobs] == list(range(1, 21))
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert (code, out) == (0, ""), err
    assert shop.app.extensions["taskworker"].store.workers() == []
    assert all(is_gone(pid) for pid in pids)
    assert "processes: 3" in err
    assert re.search(rf" {process.pid} INFO .*worker 1 of 3 is process \d+", err)
    assert {int(pid) for pid in re.findall(r" (\d+) INFO +flask_taskworker.worker: worker \w+ works on", err)} == {
        *pids
    }


@pytest.mark.slow
def test_killed_worker_is_replaced_and_its_job_run_again(shop: Shop) -> None:
    process = start(shop)
    job = shop.enqueue("hold", 60)
    until((shop.folder / "held").exists, "the job did not start")
    (holder,) = [row.pid for row in workers(shop) if row.running]
    (shop.folder / "held").unlink()
    os.kill(holder, signal.SIGKILL)
    until((shop.folder / "held").exists, "the job was not run again")
    await_workers(shop, 2, but=holder)
    (shop.folder / "let go").touch()
    assert job.result(timeout=30) == "held"
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 0, err
    assert re.search(rf"WARNING .*\(process {holder}\) was ended by SIGKILL; it starts again in 0\.\d s", err)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_lets_running_jobs_end(shop: Shop) -> None:
    """The terminal sends SIGINT to the whole group; a worker that heard it twice would hand its job back."""
    process = start(shop)
    job = shop.enqueue("hold", 60)
    until((shop.folder / "held").exists, "the job did not start")
    groups = {os.getpgid(row.pid) for row in workers(shop)}
    assert os.getpgid(process.pid) not in groups
    process.send_signal(signal.SIGINT)
    until(lambda: len(workers(shop)) == 0, "the signal was not passed on")
    (shop.folder / "let go").touch()
    code, _, err = ended(process)
    assert code == 0, err
    assert job.refresh().state is JobState.SUCCEEDED


@pytest.mark.slow
def test_second_signal_hands_running_jobs_back_at_once(shop: Shop) -> None:
    process = start(shop)
    job = shop.enqueue("hold", 60)
    until((shop.folder / "held").exists, "the job did not start")
    process.send_signal(signal.SIGTERM)
    until(lambda: not workers(shop), "the signal was not passed on")
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 0, err
    assert job.refresh().state is JobState.READY


@pytest.mark.slow
def test_workers_end_when_the_parent_is_killed(shop: Shop) -> None:
    process = start(shop)
    pids = await_workers(shop, 2)
    process.kill()
    until(lambda: all(is_gone(pid) for pid in pids), "the workers went on without a parent")
    assert shop.app.extensions["taskworker"].store.workers() == []


@pytest.mark.slow
def test_workers_that_drain_are_not_started_again(shop: Shop) -> None:
    jobs = [shop.enqueue("add", number, 1) for number in range(20)]
    code, _, err = shop.run("tasks", "run", "--workers", "2", "--drain")
    assert code == 0, err
    assert {job.refresh().state for job in jobs} == {JobState.SUCCEEDED}
    assert err.count("is done") == 2
    assert "starts again" not in err


@pytest.mark.slow
def test_workers_that_have_done_their_jobs_are_started_again(shop: Shop) -> None:
    jobs = [shop.enqueue("add", number, 1) for number in range(4)]
    process = shop.start("tasks", "run", "--workers", "2", "--max-jobs", "1")
    until(lambda: all(job.refresh().state is JobState.SUCCEEDED for job in jobs), "the jobs did not end")
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 0, err
    assert "ended with exit code 0; it starts again in" in err


@pytest.mark.slow
def test_worker_that_cannot_start_is_tried_again_after_growing_pauses(shop: Shop) -> None:
    process = start(shop)
    (first, _) = await_workers(shop, 2)
    (shop.folder / "broken").touch()
    os.kill(first, signal.SIGKILL)
    assert process.stderr is not None
    pauses = []
    while len(pauses) < 3:
        line = process.stderr.readline()
        assert line, "the parent has ended"
        if found := re.search(r"starts again in (\d+\.\d) s", line):
            pauses.append(float(found[1]))
    assert pauses[0] < pauses[1] < pauses[2]
    assert len(workers(shop)) <= 2
    (shop.folder / "broken").unlink()
    await_workers(shop, 2, but=first)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0


@pytest.mark.slow
def test_parent_stops_at_once_where_no_new_start_can_help(shop: Shop) -> None:
    """Here the tables are taken to a newer version under its feet."""
    process = start(shop)
    (first, second) = await_workers(shop, 2)
    driver = shop.app.extensions["taskworker"].store.driver
    driver.write("UPDATE taskworker_meta SET value = '999' WHERE name = 'schema_version'", {})
    os.kill(first, signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 5, err
    assert "cannot run: exit code 5; all stop" in err
    assert "version 999" in err
    assert is_gone(second)


@pytest.mark.slow
def test_what_is_wrong_with_the_database_is_said_once_by_the_parent(shop: Shop) -> None:
    (shop.folder / "instance").mkdir(exist_ok=True)
    (shop.folder / "instance" / "taskworker.db").write_text("this is not a database" * 100)
    code, _, err = shop.run("tasks", "run", "--workers", "3")
    assert code == 1
    assert err.count("Error: SQLite at") == 1
    assert "is process" not in err


@pytest.mark.slow
def test_json_log_names_the_process(shop: Shop) -> None:
    code, _, err = shop.run("tasks", "run", "--workers", "2", "--drain", "--log-format", "json")
    assert code == 0
    assert len(set(re.findall(r'"process": (\d+)', err))) == 3


@pytest.mark.slow
def test_auto_is_one_process_for_each_processor(shop: Shop) -> None:
    code, out, _ = shop.run("tasks", "run", "--workers", "auto", "--check")
    assert code == 0
    assert ("processes" in out) is (available_cpus() > 1)
    assert available_cpus() == len(os.sched_getaffinity(0)) if sys.platform == "linux" else available_cpus() >= 1


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_wrong_number_of_workers_is_refused(shop: Shop, value: str) -> None:
    code, out, err = shop.run("tasks", "run", "--workers", value)
    assert (code, out) == (2, "")
    assert "'-w' / '--workers'" in err
