"""SIGUSR1: what runs in this process, and where in its code it is."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ..core.current_job import RunningJob
from ..core.loggers import Logger, get_logger
from ..worker.worker import Worker

log: Logger = get_logger("worker")

MOST_FRAMES = 30
_PACKAGE = __name__.partition(".")[0]


def print_on_signal(workers: Callable[[], list[Worker]]) -> None:
    """Write the running jobs of these workers into the log at each SIGUSR1. For the main thread."""
    number = getattr(signal, "SIGUSR1", None)
    if number is None:
        return

    def print_jobs() -> None:
        for worker in workers():
            parts = []
            for task, job in worker.running_jobs():
                stack = "".join(stack_of(task, job)) or "  (no stack at the moment)"
                parts.append(f"{job.claim}, try {job.claim.attempt}, {job.claim.kind}\n{stack}")
            log.warning("worker %s runs %s jobs%s%s", worker.id, len(parts), ":\n" if parts else "", "\n".join(parts))

    def on_signal(_: int, __: FrameType | None) -> None:
        # The thread that the signal has interrupted may hold the lock of a log handler.
        threading.Thread(target=print_jobs, name="taskworker-stacks", daemon=True).start()

    signal.signal(number, on_signal)


def stack_of(task: asyncio.Task[Any], job: RunningJob) -> list[str]:
    """Where a job is, outermost first; empty when it is between two places."""
    if job.claim.kind == "sync":
        frame = None if job.thread is None else sys._current_frames().get(job.thread)
        frames = [] if frame is None else list(traceback.walk_stack(frame))[::-1]
    else:
        frames = [(frame, frame.f_lineno) for frame in _awaiting(task.get_coro())]
    own = [(frame, line) for frame, line in frames if not _is_ours(frame)] or frames
    return traceback.StackSummary.extract(iter(own[-MOST_FRAMES:])).format()


def _awaiting(awaited: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of what it waits for, one inside the other."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            return
        yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def _is_ours(frame: FrameType) -> bool:
    """Whether the frame only leads to the task's function."""
    name = str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in (_PACKAGE, "asgiref", "threading")
