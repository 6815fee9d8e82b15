"""Running a suspect alone: a job during which two processes died may have killed them, or only have been there. Pure.

A suspect runs only in a worker with nothing else in flight, so that its next crash blames it alone. A worker without
other work takes it at once. A busy one claims nothing for a while, its room, until its own jobs have ended. Where they
have not, it goes on as before for several times as long, and then makes twice as much room, until the suspect has run.
"""

from __future__ import annotations

from dataclasses import dataclass

from .timing import DEFAULT_TIMING

FIRST_WAIT = 10.0
"""Seconds that other jobs go on before a worker makes room for a new suspect."""

PAUSE_ROOMS = 6
"""For this many times the room that was too short the worker then goes on as before: this bounds what it loses."""


@dataclass(slots=True)
class Quarantine:
    """What one worker does about suspects. *now* is on its loop's clock, in seconds."""

    first_room: float = DEFAULT_TIMING.suspect_room
    """Seconds for which a busy worker at first waits for its own jobs to end."""
    waiting: bool = False
    """Whether a suspect is ready."""
    running: bool = False
    """Whether one runs here, alone."""
    _tries: int = 0
    """How often the room was too short."""
    _room_until: float = 0.0
    _next_room: float | None = None
    _stuck: bool = False

    def update(self, now: float, *, busy: bool, stuck: bool = False) -> None:
        """Begin to make room, or note that the suspect has ended.

        *stuck*: a timed-out job may keep its thread without end, so that the worker cannot become empty.
        """
        self._stuck = stuck
        if self.running and not busy:
            self.running = False
        if not self.waiting:
            self._tries, self._next_room = 0, None
        elif self._next_room is None:
            # Not at once: after a crash the other jobs come first.
            self._next_room = now + FIRST_WAIT
        elif not self.running and not stuck and now >= self._next_room:
            room = self.first_room * 2**self._tries
            self._room_until = now + room
            self._next_room = self._room_until + PAUSE_ROOMS * room
            self._tries += 1

    def closed(self, now: float) -> bool:
        """Whether nothing else may be claimed now."""
        return self.running or (self.waiting and now < self._room_until)

    def ready(self, now: float, *, busy: bool, others: bool) -> bool:
        """Whether to claim a suspect now. *others*: whether there are other jobs to claim, which come before it."""
        return self.waiting and not self.running and not busy and (not others or now < self._room_until)

    def claimed(self, *, found: bool) -> None:
        """Note what came of the claim: others may have been faster."""
        self.running = self.waiting = found
        if found:
            self._tries = 0

    def delay(self, now: float) -> float | None:
        """Seconds until there is something to do about a suspect, or None."""
        # A worker that is stuck is woken when its thread returns.
        if not self.waiting or self.running or self._stuck or self._next_room is None:
            return None
        moment = self._room_until if now < self._room_until else self._next_room
        return max(0.0, moment - now)
