"""Several workers under one command: a parent that starts them, watches them, and passes signals on.

The children are the same command again. Each has a process group of its own, so that Ctrl+C in a terminal reaches the
parent alone: a worker that heard it twice would not let its jobs end. A pipe that the parent holds open tells them of
the parent's death, whatever its cause.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.loggers import Logger, get_logger
from ..worker.probes import FilesHealth
from .group import SCHEMA, USAGE

log: Logger = get_logger("worker")

LIFELINE = "_TASKWORKER_LIFELINE"
"""The environment variable that tells a child the number of the pipe's descriptor."""

NUMBER = "_TASKWORKER_NUMBER"
"""The environment variable that tells a child which of the workers it is, from 1."""

HEALTH = "_TASKWORKER_HEALTH"
"""The environment variable that tells a child where to write how it is."""

SHORTEST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between a worker's failure and its next start: doubled with each failure in a row."""

LOOK = 0.5
"""Seconds from look to look for signals: one that reaches another thread than the main one does not wake it."""

STEADY = 30.0
"""Seconds after which a worker counts as started."""

_HOPELESS = frozenset({USAGE, SCHEMA})
"""Exit codes that a new start does not change."""

PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
NOTED = ("SIGUSR1",)
"""Passed on, too; no worker ends because of them."""

_NOT_FOR_CHILDREN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What systemd tells the parent: the children's word does not count there."""


@dataclass(slots=True, eq=False)
class Slot:
    """One of the workers, through all its processes."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    start_at: float | None = field(default=None)
    """When to start it again; None while it runs, and when it is done."""


def listen(note: Callable[[signal.Signals], None]) -> dict[signal.Signals, Any]:
    """Handle signals, but for those that are ignored, as under nohup; what was there before."""
    numbers = [getattr(signal, name) for name in (*PASSED_ON, *NOTED) if hasattr(signal, name)]
    kept = {number: signal.getsignal(number) for number in numbers}
    for number, handler in kept.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda n, _: note(signal.Signals(n)))
    return kept


class Supervisor:
    """Runs *count* processes of *command* until all of them have ended. For the main thread.

    *ends*: whether a worker that ends by itself with 0 has done what it was asked to; else it is started again.
    """

    def __init__(self, command: Sequence[str], count: int, *, ends: bool, environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environment = {name: value for name, value in environment.items() if name not in _NOT_FOR_CHILDREN}
        self._folder: Path | None = None
        self._ends = ends
        self.slots: list[Slot] = [Slot(number) for number in range(1, count + 1)]
        self.events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.is_stopping: bool = False
        self._code = 0

    def write_health_to(self, folder: Path) -> FilesHealth:
        """Let each worker write its health into *folder*; returns the health of all of them."""
        self._folder = folder

        def files() -> list[Path]:
            """Those of the workers that have had the time to write one."""
            running = [(slot, folder / str(slot.number)) for slot in self.slots if slot.process is not None]
            now = time.monotonic()
            return [file for slot, file in running if file.exists() or now - slot.started_at > STEADY]

        return FilesHealth(files, lambda: self.is_stopping)

    def run(self) -> int:
        """Returns the exit code: 0 if all ended well, else 1, or that of a worker that a new start cannot help."""
        read_end, self._write_end = os.pipe()
        self._lifeline = read_end
        # Only a note: it is acted on between two other events.
        handlers = listen(lambda number: self.events.put(lambda: self._pass_on(number)))
        try:
            for slot in self.slots:
                self.start(slot)
            while any(slot.process is not None or slot.start_at is not None for slot in self.slots):
                due = min((slot.start_at for slot in self.slots if slot.start_at is not None), default=math.inf)
                try:
                    event = self.events.get(timeout=min(LOOK, max(0.0, due - time.monotonic())))
                except queue.Empty:
                    self.on_quiet()
                else:
                    event()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(self._write_end)
            os.close(read_end)
        return self._code

    # -- starting ---------------------------------------------------------------------------------------------------

    def start(self, slot: Slot) -> None:
        """Start a process of this worker."""
        slot.start_at = None
        slot.started_at = time.monotonic()
        told = {NUMBER: str(slot.number)}
        if self._folder is not None:
            # A former process's word counts no more.
            (self._folder / str(slot.number)).unlink(missing_ok=True)
            told[HEALTH] = str(self._folder / str(slot.number))
        slot.process = start_child(self._command, {**self._environment, **told}, self._lifeline)
        log.info("worker %s of %s is process %s", slot.number, len(self.slots), slot.process.pid)
        name = f"taskworker-watch-{slot.process.pid}"
        threading.Thread(target=self._watch, args=(slot, slot.process), name=name, daemon=True).start()

    def _watch(self, slot: Slot, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self.events.put(lambda: self.on_end(slot, code))

    def on_quiet(self) -> None:
        """Nothing has happened for a while: start what is due."""
        now = time.monotonic()
        for slot in self.slots:
            if slot.start_at is not None and slot.start_at <= now:
                self.start(slot)

    # -- ends -------------------------------------------------------------------------------------------------------

    def on_end(self, slot: Slot, code: int) -> None:
        """A process of this worker has ended."""
        assert slot.process is not None
        pid, slot.process = slot.process.pid, None
        if self.is_stopping:
            # One that had not begun to listen ends of the signal itself.
            self._code = self._code or int(code not in (0, -signal.SIGTERM))
        elif code in _HOPELESS:
            log.error("worker %s (process %s) cannot run: exit code %s; all stop", slot.number, pid, code)
            self._code = code
            self._pass_on(signal.SIGTERM)
        elif code == 0 and self._ends:
            log.info("worker %s (process %s) is done", slot.number, pid)
        else:
            self._plan(slot, pid, code)

    def _plan(self, slot: Slot, pid: int, code: int) -> None:
        """Start it again: at once where it ended in order after a while, else after a pause that grows."""
        lived = time.monotonic() - slot.started_at
        if lived >= STEADY or (code == 0 and lived >= SHORTEST_PAUSE):
            slot.failures = 0
        pause = 0.0
        if code != 0 or lived < SHORTEST_PAUSE:
            pause = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2**slot.failures) * random.uniform(0.8, 1.2)
            slot.failures = min(slot.failures + 1, 16)
        level = logging.WARNING if code else logging.INFO
        words = _ending(code)
        log.log(level, "worker %s (process %s) %s; it starts again in %.1f s", slot.number, pid, words, pause)
        slot.start_at = time.monotonic() + pause

    def _pass_on(self, number: signal.Signals) -> None:
        """To every worker. SIGINT goes on as SIGTERM, which means the same to them, also while they still start."""
        if number.name in NOTED:
            for slot in self.slots:
                if slot.process is not None:
                    slot.process.send_signal(number)
            return
        self.is_stopping = True
        for slot in self.slots:
            slot.start_at = None
            if slot.process is not None:
                slot.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def start_child(command: Sequence[str], environment: Mapping[str, str], lifeline: int) -> subprocess.Popen[bytes]:
    """Start a process that ends when this one does. For the main thread.

    Until it handles SIGUSR1 it ignores it: by default a process ends of it.
    """
    noted = [getattr(signal, name) for name in NOTED if hasattr(signal, name)]
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in noted}
    try:
        return subprocess.Popen(
            command,
            env={**environment, LIFELINE: str(lifeline)},
            stdin=subprocess.DEVNULL,
            pass_fds=(lifeline,),
            process_group=0,
        )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def own_command() -> list[str]:
    """The command that runs here."""
    return [sys.executable, *sys.orig_argv[1:]]


def hold_lifeline() -> bool:
    """In a child: end in order when the parent is gone. Returns whether this is a child."""
    descriptor = os.environ.pop(LIFELINE, None)
    if descriptor is None:
        return False
    threading.Thread(target=_await_parent, args=(int(descriptor),), name="taskworker-lifeline", daemon=True).start()
    return True


def _await_parent(descriptor: int) -> None:
    os.read(descriptor, 1)
    log.warning("the parent process is gone; this worker stops, too")
    os.kill(os.getpid(), signal.SIGTERM)


def available_cpus() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
