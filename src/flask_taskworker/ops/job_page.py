"""One job with all that is known of it: its page and its command show the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.around import CARRIED
from ..core.rows import CHILD, EXPIRES, PARENT, THEN, Failure, read_meta, read_origin
from ..store.rollups import Percentile
from .browse import HOUR_MS, MOST_TEXT, Browser
from .rows import CallCount, JobRow, StepRow, add_up
from .views import JobView, TryView, job_view, try_views

STEP_MS = 2 * HOUR_MS
_SLICES = 12
CHILDREN = 20
STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDay:
    """How the tries of a task went in the last day."""

    tries: int
    succeeded: int
    failed: int
    p50: Percentile | None
    p95: Percentile | None
    longest_ms: int
    medians_s: tuple[float, ...]
    """The middle duration of each two hours, oldest first; 0 where no try ended."""

    @classmethod
    def take(cls, browser: Browser, task: str, now: int) -> TaskDay | None:
        """Look now; None where no try of the task has ended."""
        start = now // STEP_MS * STEP_MS - (_SLICES - 1) * STEP_MS
        found = {one.start: one for one in browser.figures(start, step=STEP_MS, span=3600, task=task)}
        total = add_up(list(found.values()))
        if total is None:
            return None
        slices = (found.get(start + i * STEP_MS) for i in range(_SLICES))
        medians = (one.run_percentile(0.5) if one else None for one in slices)
        return cls(
            tries=sum(total.run),
            succeeded=total.succeeded,
            failed=total.failed,
            p50=total.run_percentile(0.5),
            p95=total.run_percentile(0.95),
            longest_ms=total.longest_ms,
            medians_s=tuple(round(median.ms / 1000, 3) if median else 0 for median in medians),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One job. Payloads are as stored."""

    job: JobView
    in_graph: bool
    """Whether it waits for others, or others for it, or did."""
    args: str
    result: str | None
    meta: dict[str, Any]
    """What it has let others know by ``current_job.meta``."""
    origin: dict[str, Any]
    """Where it was enqueued: see ``client/origin.py``."""
    expires_ms: int | None
    """How long after it is due it may begin."""
    traceback: str
    tries: tuple[TryView, ...]
    """The tries that anything is known of, oldest first."""
    steps: tuple[StepRow, ...]
    """The last steps that were stored, newest first."""
    calls: CallCount | None
    """The calls that it stands for, where it has a key for that."""
    lane: str | None
    """The lane of its limit, where it has one."""
    children: tuple[JobRow, ...]
    """The first jobs that were enqueued inside it, oldest first."""
    has_more_children: bool
    earlier: TaskDay | None

    @classmethod
    def take(cls, browser: Browser, job_id: int, *, now: int, tries: int = 100, most: int = MOST_TEXT) -> JobPage:
        """Look now, at the log of the last *tries* and at *most* characters of a payload. Raises JobNotFound."""
        whole = browser.job(job_id, tries=tries, most=most)
        job = job_view(whole)
        children = browser.children(whole, limit=CHILDREN + 1)
        origin = read_origin(whole.origin)
        for key in (CARRIED, THEN):
            # What it carries may be secret.
            origin.pop(key, None)
        return cls(
            job=job,
            in_graph=bool(whole.record.marks & (PARENT | CHILD)),
            args=whole.args,
            result=whole.result,
            expires_ms=origin.pop(EXPIRES, None),
            meta=read_meta(whole.record.progress),
            origin=origin,
            traceback=Failure._from_text(whole.error, None).traceback,
            tries=try_views(job, whole),
            steps=tuple(browser.steps(job_id, limit=STEPS, most=most)) if whole.has_steps else (),
            calls=whole.calls,
            lane=whole.lane,
            children=tuple(children[:CHILDREN]),
            has_more_children=len(children) > CHILDREN,
            earlier=TaskDay.take(browser, job.task, now),
        )
