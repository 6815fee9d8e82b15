"""How long a worker waits, and how much may wait: one value, passed in, so that tests need no patience. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of a worker, in seconds unless said. The defaults are those that the documentation speaks of."""

    beat: float = 1.0
    """From one heartbeat to the next. Defaults to 1."""
    lease_beats: int = 30
    """A worker that has not beaten during this many beats of an observer counts as dead. Defaults to 30 beats."""
    watchdog_turn: float = 0.5
    """From one question of the watchdog to the next. Defaults to 0.5."""
    blocked_after: float = 1.0
    """A loop that has not turned for this many seconds is blocked: a warning names the job. Defaults to 1."""
    lost_after: float = 30.0
    """A loop that has not turned for this many seconds is given up, as after a lease. Defaults to 30."""
    hung_grace: float = 5.0
    """What the last of the hung threads gets to return before the worker is given up. Defaults to 5."""
    standstill_grace: float = 3.0
    """For which jobs that wait for others may have all threads before it is reported. Defaults to 3."""
    cancel_grace: float = 1.0
    """What a cancelled coroutine gets to end at shutdown. Defaults to 1."""
    isolated_grace: float = 0.25
    """What an isolated job that is to end gets before its process is killed. Defaults to 0.25."""
    cleaning_interval: float = 60.0
    """Between two deletions of what is old. Defaults to 60."""
    prune_interval: float = 5.0
    """Between two looks for finished jobs whose time is over, while jobs end. Defaults to 5."""
    figures: float = 2.0
    """Between two writes of figures. Defaults to 2."""
    suspect_room: float = 5.0
    """For which a busy worker at first claims nothing, so that a suspect can run alone. Defaults to 5."""
    schedule_pause: float = 1.0
    """Until a due schedule that cannot fire is looked at again. Defaults to 1."""
    shortest_release: float = 2.0
    """Until a job whose task is unknown here is claimed again, at least. Defaults to 2."""
    replace_after: float = 1.0
    """From the end of a loop that user code has ended to the next one. Defaults to 1."""
    reach_again: float = 2.0
    """Between two tries to start where the database server cannot be reached. Defaults to 2."""
    signal_backlog: int = 10_000
    """How many signals may wait for their receivers before no more jobs begin. Defaults to 10,000."""
    lines_kept: int = 10_000_000
    """How many characters of log lines may wait for a database that does not take them. Defaults to 10,000,000."""


DEFAULT_TIMING = Timing()
