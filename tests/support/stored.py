"""Rows as a store may hold them, written in one statement behind the package's back."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

from flask_taskworker.store.sql import Store

Rows = Callable[..., list[tuple[Any, ...]]]

_ZERO = (
    *("priority", "run_at", "claim", "solo", "failures", "crashes", "solo_crashes", "discarded", "cancel_requested"),
    "at_most_once",
)
FINISHED = ("succeeded", "failed", "cancelled")


def store_jobs(rows: Rows, *jobs: dict[str, Any]) -> list[int]:
    """Insert jobs, ready ones of ``app.add`` but for what each dict says, and return their ids in order."""
    full = [_with_defaults(job) for job in jobs]
    columns = sorted({name for job in full for name in job})
    marks = ", ".join("(" + ", ".join("?" * len(columns)) + ")" for _ in full)
    values = [job.get(name) for job in full for name in columns]
    sql = f"INSERT INTO taskworker_job ({', '.join(columns)}) VALUES {marks} RETURNING id"
    return sorted(row[0] for row in rows(sql, *values))


def _with_defaults(job: dict[str, Any]) -> dict[str, Any]:
    state = job.get("state", "ready")
    return {
        "uid": secrets.token_hex(10),
        "task": "app.add",
        "queue": "default",
        "kind": "sync",
        "state": state,
        "args": "[[], {}]",
        "created_at": 1_000,
        **dict.fromkeys(_ZERO, 0),
        "worker_id": "w" if state == "running" else None,
        "finished_at": 2_000 if state in FINISHED else None,
        "expires_at": 4_000_000_000_000 if state in FINISHED else None,
        **job,
    }


def store_many(rows: Rows, number: int, *, source: str = "n", **columns: str) -> None:
    """Insert *number* jobs by one statement; *columns* are SQL expressions over ``i``, the number of the row.

    *source* may be a SELECT from ``n`` that gives the expressions more than ``i``.
    """
    known = {
        "uid": "'u' || i",
        "task": "'app.t' || (i - i / 20 * 20)",
        "queue": "'q' || (i - i / 4 * 4)",
        "kind": "'sync'",
        "state": "'succeeded'",
        "args": "'[[' || i || '], {}]'",
        "created_at": "i",
        "finished_at": "i + 5",
        "expires_at": "4000000000000",
        **columns,
    }
    rows(
        # A share sign would be a placeholder to one of the drivers.
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < CAST(? AS integer)) "
        f"INSERT INTO taskworker_job ({', '.join(known)}) SELECT {', '.join(known.values())} FROM {source}",
        number,
    )


def counts_of(store: Store) -> Counter[str]:
    """How many jobs there are in each state."""
    store.driver.prepare()
    return Counter(dict(store.driver.read("SELECT state, count(*) FROM taskworker_job GROUP BY state", {})))
