"""``flask tasks run --reload``: a parent that restarts its worker when Python files change. For development.

werkzeug's own reloader runs the program in a daemon thread, where neither signals arrive nor anything ends in order.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

from ..core.loggers import Logger, get_logger
from .supervisor import Slot, Supervisor, own_command

log: Logger = get_logger("worker")

PATIENCE = 3.0
"""Seconds that running jobs get to end; then they go back to their queues, and run again with the new code."""

_KILL_AFTER = 10.0
_INSTALLED = tuple(
    {f"{os.path.realpath(sysconfig.get_path(name))}{os.sep}" for name in ("stdlib", "purelib", "platlib")}
)


class Reloader(Supervisor):
    """Runs one worker, and a new one whenever a Python file in *folders* changes. For the main thread."""

    def __init__(self, command: Sequence[str], folders: Sequence[str], *, environment: Mapping[str, str]) -> None:
        super().__init__(command, 1, ends=True, environment=environment)
        self._folders = folders
        self._asked_at = math.inf
        """When the worker was asked to end for a new one to start."""

    def run(self) -> int:
        """Until the worker ends by itself, or a signal ends both. Returns the exit code."""
        stopping = threading.Event()
        threading.Thread(target=self._watch_files, args=(stopping,), name="taskworker-files", daemon=True).start()
        try:
            return super().run()
        finally:
            stopping.set()

    def _watch_files(self, stopping: threading.Event) -> None:
        from watchfiles import PythonFilter, watch

        # At INFO it logs each change that it sees.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        for changes in watch(*self._folders, watch_filter=PythonFilter(), stop_event=stopping):
            name = min(path for _, path in changes)
            self.events.put(lambda name=name: self._on_change(name))  # type: ignore[misc]

    def _on_change(self, name: str) -> None:
        (slot,) = self.slots
        if self.is_stopping or self._asked_at < math.inf:
            return
        log.info("%s changed: restarting the worker", name)
        if slot.process is None:
            self.start(slot)
        else:
            self._asked_at = time.monotonic()
            slot.process.send_signal(signal.SIGTERM)

    def on_end(self, slot: Slot, code: int) -> None:
        """A worker that was asked to end is replaced; one that failed waits for the next change."""
        if self._asked_at < math.inf and not self.is_stopping:
            self._asked_at = math.inf
            self.start(slot)
        elif code == 0 or self.is_stopping:
            super().on_end(slot, code)
        else:
            slot.process, slot.start_at = None, math.inf
            log.warning("the worker ended with exit code %s; it starts again when a file changes", code)

    def on_quiet(self) -> None:
        """Hurry a worker that takes its time to end."""
        super().on_quiet()
        (slot,) = self.slots
        waited = time.monotonic() - self._asked_at
        if slot.process is not None and waited > _KILL_AFTER:
            slot.process.kill()
        elif slot.process is not None and waited > PATIENCE:
            slot.process.send_signal(signal.SIGTERM)


def own_folders(files: Iterable[str]) -> list[str]:
    """The folders of the application's own files, which are neither Python's nor installed, without those inside."""
    folders = {Path(name).parent for name in files if not name.startswith(_INSTALLED)}
    return sorted(str(folder) for folder in folders if folder.is_dir() and folders.isdisjoint(folder.parents))


def reload() -> int:
    """Run the command that runs here, and again whenever the application's code changes; the exit code."""
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        raise click.ClickException("--reload needs watchfiles: pip install 'Flask-TaskWorker[reload]'") from None
    names = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    files = [os.path.realpath(name) for name in names if isinstance(name, str) and name.endswith(".py")]
    return Reloader(own_command(), own_folders(files), environment=os.environ).run()
