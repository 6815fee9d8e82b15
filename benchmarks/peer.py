"""What a peer is to the benchmarks: something to fill, to enqueue into and to have work; and the tally of its jobs."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

PATIENCE = 60.0
_ENTRY = struct.Struct("qdd")


class Unfinished(Exception):
    """A peer whose jobs were not all run in time."""


class Tally:
    """Notes when the first and the last of the jobs ran, in however many processes they run.

    Each process keeps a count of its own in a file of the folder, so that counting waits for nothing.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self._folder = folder / "tally"
        self._folder.mkdir(exist_ok=True)
        self._jobs = jobs
        self._lock = threading.Lock()
        self._pid = 0
        self._done = threading.Event()

    def count(self) -> None:
        """One job runs."""
        with self._lock:
            now = time.perf_counter()
            if self._pid != os.getpid():
                self._begin(now)
            self._counted += 1
            _ENTRY.pack_into(self._entry, 0, self._counted, self._first, now)
            if self._counted == self._jobs:
                self._done.set()

    def _begin(self, now: float) -> None:
        # A fork inherits the lock taken and the counts of its parent: only its own jobs are its own.
        self._pid, self._counted, self._first = os.getpid(), 0, now
        with (self._folder / str(self._pid)).open("w+b") as file:
            file.truncate(_ENTRY.size)
            self._entry = mmap.mmap(file.fileno(), _ENTRY.size)

    def wait(self, alive: Callable[[], bool]) -> float:
        """Wait until all jobs ran; jobs a second, from the first to the last. Raises :exc:`Unfinished`."""
        deadline = time.monotonic() + PATIENCE
        while (ran := sum(counted for counted, _, _ in self._entries())) < self._jobs:
            if time.monotonic() > deadline or not alive():
                raise Unfinished(f"{ran} of {self._jobs} jobs ran")
            self._done.wait(0.02)
        entries = self._entries()
        return (self._jobs - 1) / (max(last for *_, last in entries) - min(first for _, first, _ in entries))

    def _entries(self) -> list[tuple[int, float, float]]:
        found = [path.read_bytes() for path in self._folder.iterdir()]
        # A process that has just begun has not counted yet.
        return [entry for data in found if len(data) == _ENTRY.size and (entry := _ENTRY.unpack(data))[0]]


class Peer:
    """A task queue: how to fill it, enqueue into it and have it work."""

    package: ClassVar[str] = ""
    """Its name on PyPI; nothing for ourselves."""

    note: ClassVar[str] = ""
    """With which settings, where they are not those of its documentation's first pages."""

    several: ClassVar[bool] = False
    """Whether its worker is several processes."""

    def __init__(self, folder: Path, tally: Tally) -> None:
        self.folder = folder
        self.tally = tally

    def enqueue(self) -> None:
        """One job."""
        raise NotImplementedError

    def fill(self, jobs: int) -> None:
        """Many jobs, in the quickest way that the peer offers."""
        for _ in range(jobs):
            self.enqueue()

    def context(self) -> AbstractContextManager[Any]:
        """In which other threads enqueue."""
        return contextlib.nullcontext()

    def work(self) -> None:
        """Start the worker."""
        raise NotImplementedError

    def alive(self) -> bool:
        """Whether the worker can still come to its end."""
        return True

    @property
    def url(self) -> str:
        """Of its database, where it has one beside the folder."""
        return (self.folder / "url").read_text()


class Program(Peer):
    """A peer whose worker is a program of its own, started as its documentation shows; its tasks are in ``apps``.

    Such a module finds its folder in ``BENCH_FOLDER``.
    """

    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, folder: Path, tally: Tally) -> None:
        super().__init__(folder, tally)
        os.environ.update(self.environment, BENCH_FOLDER=str(folder))
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """``python -m`` what."""
        raise NotImplementedError

    def work(self) -> None:
        """Its worker, whose output goes to a file as it would in production."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, "-m", *self.command()], stdout=log, stderr=log)

    def alive(self) -> bool:
        """Whether the program runs."""
        return self._process is None or self._process.poll() is None

    @property
    def log(self) -> Path:
        """What the program says."""
        return self.folder / "log"


def this_tally() -> Tally:
    """For the modules in ``apps``: counts only; how many jobs there are is known elsewhere."""
    return Tally(Path(os.environ["BENCH_FOLDER"]), -1)


def this_url() -> str:
    """For the modules in ``apps``: of the database."""
    return Path(os.environ["BENCH_FOLDER"], "url").read_text()
