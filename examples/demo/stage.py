"""What a step of the demo works with, and where it leaves what it found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .mail_server import Inbox
from .screen import Screen, Stuck
from .tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A promise, whether it was kept, and what was seen."""

    promise: str
    kept: bool
    seen: str = ""


@dataclass(slots=True, kw_only=True)
class Stage:
    """Handed from step to step."""

    data: Path
    limit: int | None
    """About how many files to index; None for all. Other steps do less too when it is set."""
    screen: Screen
    tally: Tally
    inbox: Inbox
    """What has arrived at the mail server."""
    begun: float = field(default_factory=time.perf_counter)
    figures: list[tuple[str, str]] = field(default_factory=list)
    """Lines of the summary: a word, and what there is to say."""
    checks: list[Check] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.perf_counter() - self.begun

    def tell(self, word: str, figure: str) -> None:
        """Add a line to the summary."""
        self.figures.append((word, figure))

    def check(self, promise: str, kept: bool, seen: object = "") -> None:
        """Note whether a promise was kept. One that was not makes the demo fail."""
        self.checks.append(Check(promise=promise, kept=kept, seen=str(seen)))

    def broken_promises(self) -> list[Check]:
        """What makes the demo fail."""
        return [check for check in self.checks if not check.kept]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One part of the demo. ``run`` returns what it did, in a few words."""

    title: str
    run: Callable[[Stage], str]


def wait_until(holds: Callable[[], bool], what: str, *, deadline: float = 30) -> None:
    """Look until it holds. Raises Stuck after *deadline* seconds."""
    end = time.monotonic() + deadline
    while not holds():
        if time.monotonic() > end:
            raise Stuck(f"waited {deadline:g} s until {what}")
        time.sleep(0.02)
