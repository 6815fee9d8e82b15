"""A worker's loop without its life: a test calls each turn, and looks at what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from flask import Flask

from flask_taskworker.worker.bounds import EVERY_ROLE, NO_BOUNDS, Bounds
from flask_taskworker.worker.timing import DEFAULT_TIMING
from flask_taskworker.worker.work_loop import WorkerParts, WorkLoop

WORKER = "0a0b"
"""The id of its row."""


def with_turns(
    app: Flask,
    rows: Callable[..., Any],
    test: Callable[[WorkLoop], Awaitable[None]],
    *,
    parts: WorkerParts | None = None,
    bounds: Bounds = NO_BOUNDS,
    may_begin: Callable[[], bool] = lambda: True,
) -> None:
    """Call *test* with the opened loop of a worker that has a row."""
    state = app.extensions["taskworker"]
    state.store.driver.prepare()
    columns = "(id, host, pid, started_at, beat_at, state, info)"
    rows(f"INSERT INTO taskworker_worker {columns} VALUES ('{WORKER}', 'h', 1, 1, 1, 'alive', '{{}}')")

    async def run() -> None:
        loop = WorkLoop(
            client=state.client,
            registry=state.registry,
            config=state.config,
            find_app=state.find_app,
            may_begin=may_begin,
            bounds=bounds,
            role=EVERY_ROLE,
            timing=DEFAULT_TIMING,
            parts=parts or WorkerParts(),
        )
        await loop.open(lambda: None)
        try:
            await test(loop)
        finally:
            loop.jobs.close()
            await loop.work.close()

    asyncio.run(run())


async def turn_until(loop: WorkLoop, condition: Callable[[], Any]) -> None:
    """Turn after turn until *condition* holds, for 20 seconds at most."""
    async with asyncio.timeout(20):
        while not condition():
            await loop.turn(WORKER)
            await asyncio.sleep(0.002)
