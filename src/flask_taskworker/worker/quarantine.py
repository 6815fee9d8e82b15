"""Running a suspect alone: a job during which two processes died may have killed them, or only have been there. Pure.

A suspect runs only in a worker with nothing else in flight, so that its next crash blames it and nobody else. A busy
worker makes room for one: it claims nothing for a while, and goes on as before if its own jobs do not end in that time.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOM_SECONDS = 5.0
"""For so long a busy worker waits for its own jobs to end."""

PAUSE_SECONDS = 30.0
"""Then it works on for so long before it tries again."""


@dataclass(slots=True)
class Quarantine:
    """What one worker does about suspects. *now* is on its loop's clock, in seconds."""

    waiting: bool = False
    """Whether a suspect is ready."""
    running: bool = False
    """Whether one runs here, alone."""
    _room_until: float = 0.0
    _next_try: float = 0.0
    _stuck: bool = False

    def update(self, now: float, *, busy: bool, stuck: bool = False) -> None:
        """Begin to make room, or note that the suspect has ended.

        *stuck*: a timed-out job may keep its thread for ever, so that to wait for its end would be in vain.
        """
        self._stuck = stuck
        if self.running and not busy:
            self.running = False
        if self.waiting and not self.running and not stuck and now >= self._next_try:
            self._room_until = now + ROOM_SECONDS
            self._next_try = self._room_until + PAUSE_SECONDS

    def closed(self, now: float) -> bool:
        """Whether nothing else may be claimed now."""
        return self.running or (self.waiting and now < self._room_until)

    def ready(self, *, busy: bool) -> bool:
        """Whether to claim a suspect now: a worker without other jobs needs to make no room."""
        return self.waiting and not self.running and not busy

    def claimed(self, *, found: bool) -> None:
        """Note what came of the claim: others may have been faster."""
        self.running = found
        self.waiting = found
        self._next_try = 0.0

    def delay(self, now: float) -> float | None:
        """Seconds until there is something to do about a suspect, or None."""
        # Whoever is stuck is told when its thread returns.
        if not self.waiting or self.running or self._stuck:
            return None
        moment = self._room_until if now < self._room_until else self._next_try
        return max(0.0, moment - now)
