"""Roll-ups: how much ended in each minute and hour, and how long it took. Pure.

They make figures cheap: a page about a day reads some rows an hour, however many jobs there were.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.rows import OutcomeKind
from .schema import BUCKETS_MS, ROLLUP_FIGURES

SPANS = (0, 60, 3600)
"""Seconds; 0 is all the time since the tables were made, which is never deleted."""

_COUNTED = {
    OutcomeKind.SUCCEEDED: ROLLUP_FIGURES.index("succeeded"),
    OutcomeKind.FAILED: ROLLUP_FIGURES.index("failed"),
    OutcomeKind.RETRYING: ROLLUP_FIGURES.index("retried"),
    OutcomeKind.CANCELLED: ROLLUP_FIGURES.index("cancelled"),
}
_RUN_MS, _LONGEST_MS, _WAIT_MS = (ROLLUP_FIGURES.index(name) for name in ("run_ms", "longest_ms", "wait_ms"))
_RUN, _WAIT = ROLLUP_FIGURES.index("run_0"), ROLLUP_FIGURES.index("wait_0")


class Tally:
    """What has ended since the figures were last stored, by task, queue and minute. For one thread."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str, int], list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._figures)

    def add(self, task: str, queue: str, ending: OutcomeKind, *, due_at: int, started_at: int, ended_at: int) -> None:
        """Count one try. Times are epoch milliseconds; *due_at* is the moment from which it waited."""
        counted = _COUNTED.get(ending)
        if counted is None:
            return
        key = (task, queue, ended_at // 60_000)
        figures = self._figures.get(key)
        if figures is None:
            figures = self._figures[key] = [0] * len(ROLLUP_FIGURES)
        run, wait = max(0, ended_at - started_at), max(0, started_at - due_at)
        figures[counted] += 1
        figures[_RUN_MS] += run
        figures[_WAIT_MS] += wait
        figures[_LONGEST_MS] = max(figures[_LONGEST_MS], run)
        figures[_RUN + bisect_left(BUCKETS_MS, run)] += 1
        figures[_WAIT + bisect_left(BUCKETS_MS, wait)] += 1

    def put_back(self, other: Tally) -> None:
        """Count what *other* holds here again."""
        for key, figures in other._figures.items():
            known = self._figures.get(key)
            self._figures[key] = figures if known is None else _sum(known, figures)

    def rows(self) -> list[tuple[int | str, ...]]:
        """A row for each minute, one for each hour and one for all: span, start, task, queue and the figures.

        In one order in every process: two workers that store theirs at once must not wait for each other.
        """
        merged: dict[tuple[int, int, str, str], list[int]] = {}
        for (task, queue, minute), figures in self._figures.items():
            for span in SPANS:
                start = minute * 60_000 // (span * 1000) * (span * 1000) if span else 0
                key = (span, start, task, queue)
                merged[key] = _sum(merged[key], figures) if key in merged else figures
        return [(*key, *merged[key]) for key in sorted(merged)]


def _sum(one: Sequence[int], other: Sequence[int]) -> list[int]:
    total = [a + b for a, b in zip(one, other, strict=True)]
    total[_LONGEST_MS] = max(one[_LONGEST_MS], other[_LONGEST_MS])
    return total


@dataclass(frozen=True, slots=True, order=True)
class Percentile:
    """A duration that a share of all durations does not exceed."""

    ms: float
    at_least: bool = False
    """Whether it lies beyond the last bound of BUCKETS_MS, so that only a lower bound is known."""


def percentile(counts: Sequence[int], share: float) -> Percentile | None:
    """About how long *share* (0 to 1) of the durations took at most; None where there are none.

    *counts* are those of the buckets of BUCKETS_MS. Durations are taken to lie evenly within their bucket.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, seen = share * total, 0
    for i, count in enumerate(counts):
        if count and seen + count >= wanted:
            if i == len(BUCKETS_MS):
                break
            low = BUCKETS_MS[i - 1] if i else 0
            return Percentile(low + (BUCKETS_MS[i] - low) * (wanted - seen) / count)
        seen += count
    return Percentile(float(BUCKETS_MS[-1]), at_least=True)
