"""What the benchmarks share: an app on a database of its own, child processes, waiting and tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask

from flask_taskworker import BackgroundTaskWorker

DEADLINE = 300.0


class Row(NamedTuple):
    """One figure: what was measured, how much, and beside what it is to be read."""

    what: str
    value: float
    unit: str
    note: str = ""


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | value | |", "|---|---:|---|"]
    lines += [f"| {row.what} | {row.value:,.4g} {row.unit} | {row.note} |" for row in rows]
    return "\n".join(lines)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that is removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def an_app(path: Path, **config: Any) -> Iterator[BackgroundTaskWorker]:
    """An app whose database lies in *path*; the worker is stopped at the end, if it was started."""
    app = Flask("bench", instance_path=str(path))
    app.config.update(config)
    task_worker = BackgroundTaskWorker(app)
    with app.app_context():
        yield task_worker
        task_worker.stop(0)


@contextlib.contextmanager
def child(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m benchmarks.MODULE …`` in a process of its own, ended at the end; its first line says it is ready."""
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_until(done: Callable[[], bool], pause: float = 0.002) -> None:
    """Wait for a state."""
    deadline = time.monotonic() + DEADLINE
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("a benchmark did not come to its end")
        time.sleep(pause)


def drained(task_worker: BackgroundTaskWorker) -> bool:
    """Whether no job is ready or runs; cheap whatever else is stored."""
    read = task_worker._state().store.driver.read
    # In the words of the partial indexes: another condition would look at every row.
    wheres = ("state = 'running'", "state = 'ready' AND solo = 0", "state = 'ready' AND solo = 1")
    return not any(read(f"SELECT 1 FROM taskworker_job WHERE {where} LIMIT 1", {}) for where in wheres)


def fsync_ms(path: Path, times: int = 100) -> float:
    """What a commit must wait for: milliseconds for 4 KB to reach the disk."""
    found = []
    with (path / "fsync").open("wb", buffering=0) as file:
        for _ in range(times):
            begin = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            found.append((time.perf_counter() - begin) * 1000)
    return median(found)


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which *share* of the values lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
