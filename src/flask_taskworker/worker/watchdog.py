"""The watchdog: notices that an event loop stands still, and names who holds it up.

A thread of its own asks the loop twice a second to note the time, unless it is idle. From the answers comes the loop's
lag; where none comes for ``blocked_after``, the log gets the job that runs on the loop, and where in its code it
is: once for each blockage, and again when it is over. The heartbeat goes on meanwhile, and the worker keeps its
jobs, but only for ``lost_after``. Then the loop is given up.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from ..core.current_job import RunningJob, set_running
from ..core.loggers import Logger, get_logger
from ..core.rows import shown
from .timing import Timing

log: Logger = get_logger("worker")

DEBUGGERS = frozenset({"bdb", "debugpy", "pydevd", "_pydevd_bundle"})
"""The modules of debuggers: a loop that stands at a breakpoint is not given up."""

FROZEN_AFTER = 5.0
"""If the watchdog itself did not run for this many seconds, the whole process stood still."""

MOST_FRAMES = 30
MOST_STACK = 16_000
"""Characters of a stack that are logged, from its inner end."""

Task = asyncio.Task[Any]
_RUN_ONCE: CodeType | None = getattr(getattr(asyncio.BaseEventLoop, "_run_once", None), "__code__", None)
"""What calls ``select`` on a loop of asyncio's own. Another loop is asked each time."""


class Watchdog:
    """Watches one event loop. *find_job* gives the job that an asyncio task runs; it is called in another thread.

    *on_lost* is called once, in the watchdog's thread, with what blocks a loop that does not turn any more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        find_job: Callable[[Task], RunningJob | None],
        on_lost: Callable[[str], None],
        timing: Timing,
    ) -> None:
        self._loop = loop
        self._find_job = find_job
        self._on_lost = on_lost
        self._timing = timing
        self._stopping = threading.Event()
        self._loop_thread = 0
        self._asked_at = 0.0
        self._answered_at: float | None = 0.0
        """None while a question is open."""
        self._open_turns = 0
        self._culprit: str | None = None
        """Who was reported as blocking the loop, while it is blocked."""

    @property
    def lag_ms(self) -> float:
        """How late the loop was recently, in milliseconds; how long it has stood still. Safe from any thread."""
        answered_at, asked_at = self._answered_at, self._asked_at
        seconds = (time.monotonic() if answered_at is None else answered_at) - asked_at
        # A question that is asked at this moment comes after the last answer.
        return round(max(0.0, seconds) * 1000, 1)

    def start(self) -> None:
        """Begin, on the thread of the loop. Without a watchdog if the system has no thread left."""
        self._loop_thread = threading.get_ident()
        try:
            threading.Thread(target=self._work, name="taskworker-watchdog", daemon=True).start()
        except RuntimeError as error:
            log.info("the event loop is not watched: %s", error)

    def stop(self) -> None:
        """End soon. Safe from any thread."""
        self._stopping.set()

    def _work(self) -> None:
        timing = self._timing
        before, pause = time.monotonic(), timing.watchdog_turn
        while not self._stopping.wait(pause):
            now = time.monotonic()
            if now - before - pause > FROZEN_AFTER:
                words = (
                    "this process stood still for %.1f s: it was stopped, the machine slept or has too much to do, or "
                    "C code did not let go of Python's lock (GIL)"
                )
                log.warning(words, now - before)
            try:
                self._look(now)
            except RuntimeError:  # the loop has ended
                return
            is_lost = self._culprit is not None and self._open_turns * timing.watchdog_turn >= timing.lost_after
            if is_lost and not _is_debugged(sys._current_frames().get(self._loop_thread)):
                self._on_lost(str(self._culprit))
                return
            before, pause = now, timing.watchdog_turn * (1 if self._answered_at != now else 2)

    def _look(self, now: float) -> None:
        if self._answered_at is None:
            # Counted in turns of our own: while the process is stopped, nothing is blocked.
            self._open_turns += 1
            if self._culprit is None and self._open_turns * self._timing.watchdog_turn >= self._timing.blocked_after:
                self._tell_blocked(now)
            return
        if self._culprit is not None:
            seconds = self._answered_at - self._asked_at
            log.warning("the event loop turns again after %.1f s; it was blocked by %s", seconds, self._culprit)
            self._culprit = None
        self._open_turns = 0
        self._asked_at = now
        frame = sys._current_frames().get(self._loop_thread)
        # A job may wait in a selector of its own: what counts is who called it. To wake the loop for a question while
        # it waits for something to do would be most of the cost.
        if frame and frame.f_back and frame.f_code.co_name == "select" and frame.f_back.f_code is _RUN_ONCE:
            self._answered_at = now
        else:
            self._answered_at = None
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._answered_at = time.monotonic()

    def _tell_blocked(self, now: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        task = asyncio.current_task(self._loop)
        job = None if task is None else self._find_job(task)
        if job is None and task is not None and sys.version_info >= (3, 12):
            # What a job has started inherits its context.
            job = next((value for value in task.get_context().values() if isinstance(value, RunningJob)), None)
        self._culprit = _name(task, job)
        stack = "".join(traceback.format_stack(frame, limit=MOST_FRAMES))[-MOST_STACK:] if frame else ""
        # So that the record carries the job, as those do that the job writes itself.
        set_running(job)
        try:
            log.warning(
                "the event loop has not turned for %.1f s: it is blocked by %s. Until it turns no async job goes on. "
                "What takes long belongs into a sync task, or behind: await asyncio.to_thread(…). The loop is at:\n%s",
                now - self._asked_at,
                self._culprit,
                stack,
            )
        finally:
            set_running(None)


def _is_debugged(frame: FrameType | None) -> bool:
    """Whether a debugger holds this stack at a breakpoint."""
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in DEBUGGERS:
            return True
        frame = frame.f_back
    return False


def _name(task: Task | None, job: RunningJob | None) -> str:
    if job is not None:
        return str(job.claim)
    if task is None or task.get_name().startswith("taskworker-"):
        return "no job"
    name = getattr(task.get_coro(), "__qualname__", task.get_name())
    return f"no job, but the coroutine {shown(name)}"
