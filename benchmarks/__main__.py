"""Run benchmarks by name, or all, and keep what they found in ``build/bench/NAME.json``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sqlite3
import sys
import time
from pathlib import Path

from .common import Row, table

NAMES = ("pickup", "sleepers", "drain", "history", "idle", "precision", "mail", "postgres", "versus")
RESULTS = Path("build/bench")


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="tox -e bench --", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; default: all")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    print(f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs\n", flush=True)
    for name in names:
        run(name)


def run(name: str) -> None:
    """Run one benchmark and keep its rows."""
    print(f"## {name}", flush=True)
    started = time.monotonic()
    rows: list[Row] = importlib.import_module(f"{__package__}.{name}").main() or []
    print(table(rows))
    print(f"({time.monotonic() - started:.0f} s)\n", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
