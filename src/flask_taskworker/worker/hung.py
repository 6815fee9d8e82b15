"""Threads that timed-out sync jobs still use: none can be stopped, so its slot is lost until it returns. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.rows import Claim

GRACE = 5.0
"""Seconds that the last of them gets to return, before a worker without any free thread is given up."""

SHOWN = 10
"""Jobs that a worker names."""


@dataclass(slots=True)
class HungThreads:
    """The overdue sync jobs of one worker, which has *size* threads. *now* is on its loop's clock, in seconds."""

    size: int
    claims: dict[tuple[int, int], Claim] = field(default_factory=dict)
    full_since: float | None = None
    """Since when no thread is left."""
    told: bool = False
    """Whether it was said so."""

    def add(self, claim: Claim, now: float) -> None:
        """A job has exceeded its timeout and keeps its thread."""
        self.claims[claim.id, claim.claim] = claim
        if len(self.claims) >= self.size and self.full_since is None:
            self.full_since = now

    def remove(self, claim: Claim) -> None:
        """Its function has returned."""
        self.claims.pop((claim.id, claim.claim), None)
        self.full_since, self.told = None, False

    def to_tell(self, now: float) -> bool:
        """Whether all threads are lost, and that was not reported yet. True once."""
        if self.told or self.full_since is None or now - self.full_since < GRACE:
            return False
        self.told = True
        return True

    def delay(self, now: float) -> float | None:
        """Seconds until there is something to tell, or None."""
        if self.told or self.full_since is None:
            return None
        return max(0.0, self.full_since + GRACE - now)

    def words(self, *, ends: bool) -> str:
        """What to tell when all threads are lost. *ends*: whether the worker ends."""
        some = [str(claim) for claim in list(self.claims.values())[:SHOWN]]
        more = len(self.claims) - len(some)
        names = ", ".join(some) + (f" and {more} more" if more > 0 else "")
        what = f"all {self.size} threads for sync jobs are held by jobs that exceeded their timeout: {names}."
        return f"{what} {_ENDS if ends else _GOES_ON}"


_ENDS = "The worker ends, for a new process to be started."
_GOES_ON = (
    "Until one of them returns, or this process is restarted, it runs no sync jobs; async jobs go on. Give what these "
    "jobs wait for a timeout of its own, or raise TASKER_THREADS."
)
