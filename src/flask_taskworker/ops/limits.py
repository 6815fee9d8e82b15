"""Limits as pages and commands show them: what holds, who set it, what runs, and where the lines are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..core.config import TaskWorkerConfig
from ..core.limits import QUEUE, LaneFacts, Numbers, Rate, declared_limits, room
from ..core.tasks import TaskRegistry
from ..errors import DeclarationError
from .browse import Browser
from .rows import LaneRow, LimitRow

LANES = 10
"""Lanes that are shown of each limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneView:
    """One lane in which jobs wait. Times are epoch milliseconds."""

    key: str
    """Empty for the only lane of a limit without a key."""
    state: str
    """``closed``, or ``full``."""
    running: int
    """The jobs that have its room: admitted, and not ended."""
    waiting: int
    """The jobs in line, counted up to MOST."""
    job: int | None
    """The oldest of the jobs that have its room."""
    opens_at: int | None
    """When the next may start, where its rate or a job that closed it keeps it from that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitView:
    """One limit. Times are epoch milliseconds."""

    name: str
    queue: str | None
    """The queue that it is of; None for a limit of tasks."""
    tasks: tuple[str, ...]
    """The tasks of this code that it holds for."""
    key: str | None
    """What its lanes are for: the name of a parameter, or ``function``; None for a limit without a key."""
    hold: bool
    running: int | None
    """The most at once."""
    rate: str | None
    """As :meth:`Rate.parse` reads it."""
    declared: str | None
    """What this code declares, in words."""
    source: str
    """``code``, or ``runtime`` where a person has changed it."""
    set_by: str | None
    set_at: int | None
    is_declared: bool
    is_stored: bool
    """False where code declares it and no worker has stored it yet."""
    state: str
    """``closed`` where a job has closed a lane, ``full`` where jobs wait for it, or ``ok``."""
    admitted: int
    """Jobs that have room: admitted, and not ended. For a queue, those that run."""
    waiting: int
    """Jobs in line, counted up to MOST. For a queue, those that are ready."""
    aside: int
    """Jobs besides, whose queue is paused or not served."""
    closed: int
    """Lanes that a job has closed (SnoozeJob with limit=True) and that are closed now."""
    closings: int
    """How often a job has closed a lane."""
    opens_at: int | None
    """When the first lane that waits for that opens, by this machine's clock."""
    lanes: tuple[LaneView, ...] = ()
    """Those with the longest lines."""

    @property
    def numbers(self) -> Numbers:
        """What holds."""
        return Numbers(self.running, *(Rate.parse(self.rate)._numbers if self.rate else ()))


def limit_views(
    browser: Browser, registry: TaskRegistry, config: TaskWorkerConfig, *, name: str | None = None, lanes: int = LANES
) -> list[LimitView]:
    """Every limit that is stored or declared, or the one called *name*, with its *lanes* with the longest lines."""
    now = browser.lane_now()
    ahead = now - browser.now()
    declared = declared_limits(registry.limits, config.queue_limits)
    stored = {row.name: row for row in browser.limits()}
    missing = {
        limit: LimitRow(limit, n.running, n.amount, n.per_us, n.burst, "", None, 0, 0, 0, 0, 0, 0, None, 0, 0)
        for limit, n in declared.items()
        if limit not in stored
    }
    rows = [row for row in (stored | missing).values() if name in (None, row.name)]
    lines = browser.lanes([row.name for row in rows if row.waiting], shown=lanes) if lanes else {}
    return [
        _limit_view(row, registry, declared, lines.get(row.name, ()), now, ahead)
        for row in sorted(rows, key=lambda row: row.name)
    ]


def limit_view(browser: Browser, registry: TaskRegistry, config: TaskWorkerConfig, name: str) -> LimitView:
    """One limit. Raises DeclarationError for a name that no limit has."""
    found = limit_views(browser, registry, config, name=name)
    if not found:
        raise DeclarationError(f"No limit is named {name!r:.200}. List them: flask tasks limits")
    return found[0]


def _limit_view(
    row: LimitRow,
    registry: TaskRegistry,
    declared: Mapping[str, Numbers],
    lines: Iterable[LaneRow],
    now: int,
    ahead: int,
) -> LimitView:
    """*now* by the clock of lanes, which is *ahead* of this machine's."""
    queue = row.name.removeprefix(f"{QUEUE}:") if row.name.startswith(f"{QUEUE}:") else None
    limit = registry.limits.get(row.name)
    numbers = Numbers(row.running, row.amount, row.per_us, row.burst)
    key = limit and (limit.key if isinstance(limit.key, str) else limit.key and "function")
    # Only without a key do these facts belong to all that wait.
    own = room(numbers, LaneFacts(row.admitted, 0, row.tat, row.closed_until), now, 1)
    # The ready jobs of a queue may as well wait for a slot.
    is_full = row.waiting and not (queue is not None and own.number)
    named = (task for task in registry if task.options.limit and task.options.limit.name == row.name)
    tasks = named if queue is None else (task for task in registry if task.options.queue == queue)
    return LimitView(
        name=row.name,
        queue=queue,
        tasks=tuple(sorted(task.name for task in tasks)),
        key=key or None,
        hold=bool(limit and limit.hold),
        running=row.running,
        rate=numbers.rate,
        declared=str(declared[row.name]) if row.name in declared else None,
        source=row.source or "code",
        set_by=row.set_by,
        set_at=row.set_at or None,
        is_declared=row.name in declared,
        is_stored=bool(row.source),
        state="closed" if row.closed else "full" if is_full else "ok",
        admitted=row.admitted,
        waiting=row.waiting,
        aside=row.aside,
        closed=row.closed,
        closings=row.closings,
        opens_at=min((at - ahead for at in (own.opens_at, row.opens_at) if at), default=None) if row.waiting else None,
        lanes=tuple(_lane_view(lane, row.name, numbers, now, ahead) for lane in lines),
    )


def _lane_view(row: LaneRow, limit: str, numbers: Numbers, now: int, ahead: int) -> LaneView:
    facts = LaneFacts(row.admitted, row.not_begun, row.tat, row.closed_until)
    opens_at = room(numbers, facts, now, 1).opens_at
    return LaneView(
        key=row.lane.removeprefix(limit).removeprefix(":"),
        state="closed" if row.closed_until > now else "full",
        running=row.admitted,
        waiting=row.waiting,
        job=row.first_admitted,
        opens_at=opens_at - ahead if opens_at and opens_at > now else None,
    )
