"""How many jobs a worker may claim: its free slots, and a little ahead where jobs are short. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..core.rows import Claim

AHEAD_SECONDS = 0.02
"""Only jobs that will start within this time are claimed ahead, judged by how long recent jobs took."""

AHEAD_MOST = 128
_SMOOTHING = 0.2


@dataclass(slots=True)
class Slots:
    """The slots of one kind of job, and the claims that wait for one."""

    size: int
    running: int = 0
    overdue: int = 0
    """Threads that timed-out jobs still use."""
    waiting: deque[Claim] = field(default_factory=deque)
    moved_at: float = 0.0
    """When a job was last claimed or started, on the loop's clock."""
    seconds: float = 1.0
    """How long recent jobs took, smoothed."""

    @property
    def free(self) -> int:
        """Slots in which a job could start now."""
        return self.size - self.running - self.overdue

    @property
    def room(self) -> int:
        """How many jobs to claim."""
        return max(0, self.free - len(self.waiting) + self._ahead())

    def _ahead(self) -> int:
        return min(AHEAD_MOST, int(self.size * AHEAD_SECONDS / max(self.seconds, 1e-5)))

    def claim_none_ahead(self) -> None:
        """What was claimed ahead did not start soon: for a while claim only for free slots."""
        self.seconds = max(self.seconds, 1.0 + self.size * AHEAD_SECONDS)

    def learn(self, seconds: float) -> None:
        """Note how long a job took."""
        self.seconds += (seconds - self.seconds) * _SMOOTHING
