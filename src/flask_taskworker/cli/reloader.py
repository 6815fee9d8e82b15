"""``flask tasks run --reload``: a parent that starts the worker anew whenever its code changes. For development.

werkzeug's own reloader runs the program in a daemon thread, where neither signals arrive nor anything ends in order.
Here the worker is a process of its own, the same command again, which tells the parent which files it has imported.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from .supervisor import NOTED, listen, start_child

log = logging.getLogger("flask_taskworker.worker")

SOURCES = "_TASKWORKER_SOURCES"
"""The environment variable that tells a child where to write what it has imported."""

LOOK = 0.5
"""Seconds from look to look at the files."""

PATIENCE = 3.0
"""Seconds that running jobs get to end; then they go back to their queues, and run again with the new code."""

_KILL_AFTER = 10.0
_INSTALLED = tuple(
    {f"{os.path.realpath(sysconfig.get_path(name))}{os.sep}" for name in ("stdlib", "purelib", "platlib")}
)


class Reloader:
    """Runs *command*, and again whenever a file changes that it has imported. For the main thread."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_at: float | None = None
        """When the child was told to end for a new start."""
        self._asked_twice = False
        self._stopping = False
        self._code: int | None = None

    def run(self) -> int:
        """Until the child ends by itself, or a signal ends both. Returns the exit code."""
        read_end, write_end = os.pipe()
        handlers = listen(lambda number: self._events.put(lambda: self._on_signal(number)))
        with tempfile.TemporaryDirectory(prefix="taskworker-") as folder:
            self._sources = Path(folder, "sources")
            self._lifeline = read_end
            self._start()
            watcher = Watcher(self._sources, lambda names: self._events.put(lambda: self._on_change(names)))
            watcher.start()
            try:
                while self._code is None:
                    self._take_event()
            finally:
                watcher.stop()
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                os.close(write_end)
                os.close(read_end)
        return self._code

    def _take_event(self) -> None:
        try:
            # A signal that reaches another thread does not wake this one.
            event = self._events.get(timeout=LOOK)
        except queue.Empty:
            self._urge()
        else:
            event()

    # -- the child --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._asked_at, self._asked_twice = None, False
        environment = {**self._environment, SOURCES: str(self._sources)}
        self._process = start_child(self._command, environment, self._lifeline)
        name = f"taskworker-watch-{self._process.pid}"
        threading.Thread(target=self._await, args=(self._process,), name=name, daemon=True).start()

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self._events.put(lambda: self._on_end(code))

    def _on_end(self, code: int) -> None:
        self._process = None
        if self._stopping:
            self._code = 0 if code in (0, -signal.SIGTERM) else 1
        elif self._asked_at is not None:
            self._start()
        elif code == 0:
            # It has done what it was asked to, as with --drain.
            self._code = 0
        else:
            log.warning("the worker ended with exit code %s; it starts again when a file changes", code)

    def _on_change(self, names: Sequence[str]) -> None:
        if self._stopping or self._asked_at is not None:
            return
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        log.info("%s%s changed: the worker starts anew", names[0], more)
        if self._process is None:
            self._start()
        else:
            self._asked_at = time.monotonic()
            self._process.send_signal(signal.SIGTERM)

    def _urge(self) -> None:
        """The child takes its time to end."""
        if self._process is None or self._asked_at is None:
            return
        waited = time.monotonic() - self._asked_at
        if waited > _KILL_AFTER:
            self._process.kill()
        elif waited > PATIENCE and not self._asked_twice:
            self._asked_twice = True
            self._process.send_signal(signal.SIGTERM)

    def _on_signal(self, number: signal.Signals) -> None:
        """SIGINT goes on as SIGTERM, which means the same to the child, also while it still starts."""
        if number.name not in NOTED:
            self._stopping = True
            if self._process is None:
                self._code = 0
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)


# -- files -------------------------------------------------------------------------------------------------------------


class Watcher:
    """Tells, in a thread of its own, which files have changed: those that were imported, and Python files beside the
    application's own."""

    def __init__(self, sources: Path, on_change: Callable[[Sequence[str]], None]) -> None:
        self._sources = sources
        self._on_change = on_change
        self._files = set(imported_files())
        self._watch = _watchfiles()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="taskworker-files", daemon=True)

    def start(self) -> None:
        """Begin. What was changed before that is not noticed."""
        self._seen = snapshot(self._files)
        self._thread.start()

    def stop(self) -> None:
        """End soon."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._wait()
            self._look()

    def _wait(self) -> None:
        """Until something may have changed. watchfiles says so at once; without it one looks again and again."""
        folders = own_folders(self._files)
        if self._watch is None or not folders:
            self._stopping.wait(LOOK)
            return
        changes = self._watch(
            *folders, recursive=False, stop_event=self._stopping, yield_on_timeout=True, rust_timeout=round(LOOK * 4e3)
        )
        next(iter(changes), None)

    def _look(self) -> None:
        told = _read_sources(self._sources)
        if new := {name: changed_at for name, changed_at in told.items() if name not in self._files}:
            self._files.update(new)
            # What lies beside them is known from now on; they themselves may have changed since they were imported.
            self._seen = snapshot(self._files) | self._seen | new
        now = snapshot(self._files)
        changed = sorted(name for name in now.keys() | self._seen.keys() if now.get(name) != self._seen.get(name))
        if changed:
            self._seen = now
            self._on_change(changed)


def _watchfiles() -> Callable[..., Iterator[Any]] | None:
    """What waits for changes, where it is installed."""
    try:
        from watchfiles import watch  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    # At INFO it logs each change that it sees.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    return cast(Callable[..., Iterator[Any]], watch)


def imported_files() -> Iterator[str]:
    """The source files that this process has imported."""
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and name.endswith(".py"):
            yield os.path.realpath(name)


def own_folders(files: Iterable[str]) -> list[str]:
    """The folders of the application's own files: those that are neither Python's nor installed."""
    found = {Path(name).parent for name in files if not name.startswith(_INSTALLED)}
    return sorted(str(folder) for folder in found if folder.is_dir())


def snapshot(files: Iterable[str]) -> dict[str, int]:
    """When each of the files, and each Python file beside the application's own, was changed last."""
    files = set(files)
    for folder in own_folders(files):
        with suppress(OSError):
            files.update(entry.path for entry in os.scandir(folder) if entry.name.endswith(".py"))
    return changes_of(files)


def changes_of(files: Iterable[str]) -> dict[str, int]:
    """When each of the files was changed last, as far as they are there."""
    found = {}
    for name in files:
        try:
            found[name] = os.stat(name).st_mtime_ns
        except OSError:
            continue
    return found


def _read_sources(path: Path) -> dict[str, int]:
    """What a child has imported, and when each file had been changed last; nothing while it has not told."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def tell_sources() -> None:
    """In a child: write, now and whenever more is imported, which files this process has imported."""
    path = os.environ.pop(SOURCES, None)
    if path is not None:
        threading.Thread(target=_tell, args=(Path(path),), name="taskworker-sources", daemon=True).start()


def _tell(path: Path) -> None:
    known, pause = 0, threading.Event()
    while True:
        if len(sys.modules) != known:
            known = len(sys.modules)
            new = path.with_suffix(".new")
            try:
                new.write_text(json.dumps(changes_of(imported_files())))
                new.replace(path)
            except OSError:
                # The parent has ended, and taken its folder along.
                return
        pause.wait(LOOK)


def reload(command: Sequence[str]) -> int:
    """Run *command* until it ends, anew with each change of its code; the exit code."""
    return Reloader(command, environment=os.environ).run()
