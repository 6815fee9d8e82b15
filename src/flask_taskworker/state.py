"""What one app has: its settings, its store, its client and its worker; one living app a database."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from flask import Flask

from .client.client import Client
from .core.config import TaskWorkerConfig
from .core.tasks import HasRegistry, TaskRegistry
from .errors import AppError
from .store.sql import Store
from .worker.worker import Worker

KEY = "taskworker"


@dataclass(slots=True, eq=False, weakref_slot=True)
class AppState:
    """What one app has of its TaskWorker: ``app.extensions["taskworker"]``."""

    config: TaskWorkerConfig
    client: Client
    registry: TaskRegistry
    find_app: Callable[[], Flask | None]
    import_name: str
    run: Callable[..., None]
    """TaskWorker._run: serve every app of this process in the main thread."""
    workers: Callable[[], list[Worker]]
    """The workers that run in this process."""
    forget: Callable[[Flask], object]
    """Called when another app takes over the database."""
    worker: Worker | None = field(default=None)
    """The worker of this app in this process, while one runs."""

    @property
    def store(self) -> Store:
        """The app's rows."""
        return self.client.store

    def make_worker(
        self, loop: asyncio.AbstractEventLoop, config: TaskWorkerConfig | None = None, **options: Any
    ) -> Worker:
        """A worker of this app on *loop*, with another configuration than the app's if one is given."""
        return Worker(
            loop=loop,
            client=self.client,
            registry=self.registry,
            config=config or self.config,
            find_app=self.find_app,
            **options,
        )


class HasState(HasRegistry, Protocol):
    """What apps are registered with: a TaskWorker."""

    def _state(self) -> AppState:
        """The state of the current app, or of the only one."""


_databases: weakref.WeakValueDictionary[str, AppState] = weakref.WeakValueDictionary()

_databases_lock = threading.Lock()


def replace_predecessor(state: AppState) -> None:
    """One living app a database: two would run each other's jobs. A factory's next app replaces its last one."""
    key = state.store.driver.key
    if _is_rival(_databases.get(key), state):
        # It may only wait for the garbage collector.
        gc.collect()
    with _databases_lock:
        other = _databases.get(key)
        if other is not None and _is_rival(other, state):
            raise AppError(
                f"The apps {other.import_name!r} and {state.import_name!r} would share the database {key} and run "
                "each other's jobs. Give one of them another TASKER_DATABASE_URI."
            )
        _databases[key] = state
    if other is None:
        return
    if other.worker is not None:
        other.worker.stop()
        other.worker = None
    if (app := other.find_app()) is not None:
        other.forget(app)


def _is_rival(other: AppState | None, state: AppState) -> bool:
    return other is not None and other.find_app() is not None and other.import_name != state.import_name


def close_state(state: AppState) -> None:
    """The app is gone: its worker, which holds it only weakly, stops, and its connections close."""
    if state.worker is not None:
        state.worker.stop()
    state.client.close()


def _after_fork_in_child() -> None:
    global _databases_lock
    _databases_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
