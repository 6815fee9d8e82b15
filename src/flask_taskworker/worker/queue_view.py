"""What there is to do, as far as one worker knows: from its looks at the database, and from what it heard."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence

from ..core.limits import QUEUE
from ..store.work import Peek
from .running import KINDS

HELD = "held"
"""Where a kind is expected: a limited job came, which is to be admitted."""


class QueueView:
    """One worker's. For its loop only, but for :meth:`hear`."""

    def __init__(self, order: Sequence[str] | None, exclude: Collection[str] = ()) -> None:
        """*order*: the queues that the worker serves, in that order; None for all of them but those in *exclude*."""
        self._order = order
        self._exclude = frozenset(exclude)
        self._hints: set[tuple[str, str]] = set()
        self._is_hinted = False
        self.must_look: bool = False
        """Whether there may be news that only the database knows."""
        self.ready: dict[str, list[str]] = {kind: [] for kind in KINDS}
        """The queues that have ready jobs of each kind, in the order in which they are to be served."""
        self.next_due: int | None = None
        """When the next scheduled job is due, in epoch milliseconds."""
        self.next_fire: int | None = None
        """When the next schedule fires, in epoch milliseconds."""
        self.next_resume: int | None = None
        """When the next pause of a queue is over, in epoch milliseconds."""
        self.suspects: list[str] = []
        """The queues with jobs that must run alone."""
        self.must_admit: bool = False
        """Whether limited jobs have changed, so that others may be admitted."""
        self.next_open: int | None = None
        """When to look at the next lane again, by the clock of the lanes: see :meth:`WorkerStore.lane_now`."""
        self.limits: Mapping[str, int] = {}
        """The names of the limits, and whether they have a rate."""
        self.declared_limits: Collection[str] = ()
        """Those of the code."""

    @property
    def has_news(self) -> bool:
        """Whether something was heard that has not been acted on."""
        return self.must_look or self._is_hinted or self.must_admit

    @property
    def is_hinted(self) -> bool:
        """Whether it was heard of ready jobs that are not believed yet."""
        return self._is_hinted

    @property
    def has_ready(self) -> bool:
        """Whether a queue has ready jobs."""
        return any(self.ready.values())

    def hear(self, ready: Collection[tuple[str, str]]) -> bool:
        """There is news: jobs of these (queue, kind) are ready, or, without any, something unknown.

        Returns whether the loop must be told; it knows already after the first of many. Safe from any thread.
        """
        if ready:
            self._hints.update(ready)
            told, self._is_hinted = self._is_hinted, True
        else:
            told, self.must_look = self.must_look, True
        return not told

    def begin_look(self) -> None:
        """The database is about to be looked at. What is heard from now on counts as news again."""
        self.must_look = self._is_hinted = False
        self._hints.clear()

    def take_hints(self) -> None:
        """Believe what was heard."""
        # Before the hints are read: one that comes later must wake the loop again.
        self._is_hinted = False
        while self._hints:
            name, kind = self._hints.pop()
            if kind == HELD:
                # Limits that were never seen are to be looked at first.
                self.must_admit, self.must_look = True, self.must_look or not self.limits
            elif name not in self.ready[kind]:
                self.ready[kind] = self._in_order([*self.ready[kind], name])

    def take(self, peek: Peek) -> None:
        """Believe what the database said."""
        self.next_due, self.next_fire = peek.next_due, peek.next_fire
        self.next_resume = peek.next_resume
        self.next_open, self.limits = peek.next_open, peek.limits
        self.must_admit = peek.changed
        self.suspects = self._in_order(peek.suspects)
        for kind, names in peek.queues.items():
            self.ready[kind] = self._in_order(names)

    def forget_due(self, now: int) -> None:
        """What is due at *now*, in epoch milliseconds, was tried: wait for the next look."""
        if self.next_due is not None and self.next_due <= now:
            self.next_due = None
        if self.next_fire is not None and self.next_fire <= now:
            self.next_fire = None

    def limited_queues(self, queues: Iterable[str]) -> set[tuple[str, str]]:
        """Of these queues those with a limit, with each kind: their jobs may have waited for room."""
        if not self.limits:
            return set()
        return {(name, kind) for name in queues if f"{QUEUE}:{name}" in self.limits for kind in KINDS}

    def note_open(self, moment: int | None) -> None:
        """A lane is to be looked at then, in epoch milliseconds."""
        if moment is not None:
            self.next_open = moment if self.next_open is None else min(moment, self.next_open)

    def serves(self, name: str) -> bool:
        """Whether the worker takes jobs of that queue."""
        return bool(self._in_order([name]))

    def served(self, kind: str, *, more: bool) -> None:
        """Jobs were claimed from the first queue of that kind; *more* may be there."""
        names = self.ready[kind]
        name = names.pop(0)
        if more:
            # Without a configured order the queues take turns, so that none starves.
            names.insert(len(names) if self._order is None else 0, name)

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """The queues in the configured order; without one in turns, so that none starves."""
        if self._order is not None:
            present = set(names) - self._exclude
            return [name for name in self._order if name in present]
        found = [name for name in names if name not in self._exclude]
        random.shuffle(found)
        return found
