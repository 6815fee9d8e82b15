"""Several workers under one command: started, watched, started again, and ended together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from flask_taskworker.cli import supervisor
from flask_taskworker.cli.supervisor import LIFELINE, NUMBER, Supervisor, available_cpus, own_command, start_child

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs process groups")


def supervised(code: str, count: int = 1, *, ends: bool = True) -> Supervisor:
    return Supervisor([sys.executable, "-c", code], count, ends=ends, environment=os.environ)


def test_it_ends_when_every_worker_has_done_its_work(tmp_path: Path) -> None:
    code = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, os.environ[{NUMBER!r}]).touch()"
    assert supervised(code, 2).run() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_worker_that_fails_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SHORTEST_PAUSE", 0.01)
    mark = tmp_path / "failed once"
    code = (
        f"import pathlib, sys; mark = pathlib.Path({str(mark)!r}); sys.exit(0 if mark.exists() else mark.touch() or 1)"
    )
    assert supervised(code).run() == 0
    assert mark.exists()


@pytest.mark.parametrize("exit_code", [2, 5])
def test_a_failure_that_a_new_start_cannot_help_ends_all(exit_code: int) -> None:
    code = f"import os, sys, time; sys.exit({exit_code}) if os.environ[{NUMBER!r}] == '1' else time.sleep(60)"
    started = time.monotonic()
    assert supervised(code, 2).run() == exit_code
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_all(number: signal.Signals) -> None:
    several = supervised("import time; time.sleep(60)", 2, ends=False)

    def kill() -> None:
        while not all(slot.process for slot in several.slots):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=kill, daemon=True).start()
    assert several.run() == 0
    assert signal.getsignal(number) is before


def test_the_health_is_that_of_the_workers_files(tmp_path: Path) -> None:
    several = supervised("pass", 2)
    health = several.write_health_to(tmp_path)
    assert (health.not_live(), health.not_ready()) == (None, "no worker has started")
    several.is_stopping = True
    assert health.not_ready() == "it stops"


@pytest.mark.slow
def test_a_child_ends_when_its_parent_is_gone() -> None:
    read_end, write_end = os.pipe()
    code = (
        "import signal, time; from flask_taskworker.cli.supervisor import hold_lifeline\n"
        "assert hold_lifeline(); time.sleep(60)"
    )
    child = start_child([sys.executable, "-c", code], os.environ, read_end)
    os.close(read_end)
    os.close(write_end)
    assert child.wait(timeout=60) == -signal.SIGTERM


def test_a_process_without_a_lifeline_is_not_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIFELINE, raising=False)
    assert supervisor.hold_lifeline() is False


def test_the_command_that_runs_here_is_this_python() -> None:
    assert own_command()[0] == sys.executable
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
