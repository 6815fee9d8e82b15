"""The duties of a worker: which part of the work is its."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRole:
    """Which part of the work a worker takes on, and under which name."""

    exclude: frozenset[str] = frozenset()
    """The queues whose jobs it leaves to others."""
    schedules: bool = True
    """Whether it fires schedules."""
    name: str = ""
    """A name for people; the code does not use it."""

    def words(self, queues: Sequence[str] | None) -> str:
        """What it works on, of these queues or of all."""
        excluded = f", but not {', '.join(sorted(self.exclude))}" if self.exclude else ""
        return ", ".join(queues or ("all queues",)) + excluded


EVERY_ROLE = WorkerRole()
