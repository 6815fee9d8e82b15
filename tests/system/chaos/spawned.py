"""Worker processes that are started, not forked: with an environment, and so with libraries, of their own.

``python -m tests.system.chaos.spawned MODULE:FUNCTION PLACE`` calls that function with the place.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.system.chaos.worker import Place

ROOT = Path(__file__).parents[3]


class Spawned:
    """One process, with the face of ``multiprocessing.Process``."""

    def __init__(self, argv: list[str], log: str, environment: Mapping[str, str], folder: str | Path) -> None:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(folder)])
        with Path(log).open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *argv],
                env={**os.environ, "PYTHONPATH": paths, **environment},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid

    @property
    def exitcode(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL, for it and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def spawn(place: Place, function: str, log: str, environment: Mapping[str, str]) -> Spawned:
    """Start a process that calls ``MODULE:FUNCTION`` with the place and the log's path."""
    argv = ["-m", "tests.system.chaos.spawned", function, json.dumps([*place]), log]
    return Spawned(argv, log, environment, place.folder)


def main() -> None:
    """Call what the command line names."""
    module, _, name = sys.argv[1].partition(":")
    place: Any = Place(*json.loads(sys.argv[2]))
    getattr(importlib.import_module(module), name)(place, sys.argv[3])


if __name__ == "__main__":
    main()
