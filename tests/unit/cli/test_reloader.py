"""``flask tasks run --reload``."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from flask_taskworker.cli.reloader import own_folders
from tests.support.cli_shop import Shop
from tests.system.cli.test_run import Shop as ProcessShop
from tests.system.cli.test_run import ended, until


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
