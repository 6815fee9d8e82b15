"""What a worker with nothing to do costs: CPU and memory of a hello-world app, in a process of its own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from .common import Row, an_app, child, folder

SECONDS = 60.0


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far (proc(5): fields 14 and 15 of its stat file)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb_of(pid: int) -> float:
    """Resident memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> list[Row]:
    """Watch an idle process for a minute."""
    with folder() as path, child("idle", str(path)) as process:
        time.sleep(2.0)
        begin = cpu_of(process.pid)
        time.sleep(SECONDS)
        return [
            Row("idle worker", cpu_of(process.pid) - begin, "CPU s/min"),
            Row("resident memory of a hello-world app with a worker", resident_mb_of(process.pid), "MB"),
        ]


if __name__ == "__main__":
    with an_app(Path(sys.argv[1])) as worker:

        @worker.task(name="hello")
        def hello() -> None: ...

        worker.start()
        hello.enqueue().result(10)
        print("ready", flush=True)
        sys.stdin.read()
