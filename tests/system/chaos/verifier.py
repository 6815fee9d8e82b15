"""What the evidence says: which jobs were lost, are stuck, ran twice with an excuse or without, or overlapped. Pure.

An execution after a job's first needs an excuse, and the excuses are those that the documentation names: the earlier
one raised; its process died before the ending can have been committed; it was stopped for longer than the lease; or
its process was asked to end and the grace was over. Only what the faults' own log says counts, never the worker's word.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.system.chaos.journal import ACCEPTED, BEGAN, CANCELLED, ENDED, RAISED, Entry

DIED, FROZEN, TOLD_TO_END = "died", "frozen", "told to end"
BLAMED = 3
"""A job with that many solo crashes has failed: a kill from outside while it ran alone proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What was done to a process. *until*: when it was dead, went on, or had to be gone."""

    kind: str
    pid: int
    at: float
    until: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """A job's row in the end."""

    state: str
    failure_kind: str | None = None
    failures: int = 0
    solo_crashes: int = 0

    @property
    def finished(self) -> bool:
        """Whether it has come to an end."""
        return self.state in ("succeeded", "failed", "cancelled")


@dataclass(slots=True, kw_only=True)
class Execution:
    """One run of a job's function, as far as its lines tell."""

    uid: str
    claim: int
    pid: int
    began: float
    ended: float = math.inf
    how: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the verifier may excuse."""

    lease: float = 30.0
    """Seconds after which a stopped worker's jobs are others'."""
    commit: float = 5.0
    """Seconds in which an ending is committed, on a machine that is busy with all this; a death within them may repeat
    the job. On a quiet one they are milliseconds: see ``Judgement.unrecorded``."""
    handover: float = 0.1
    """Seconds in which a process ends that has handed back what its threads still run."""


@dataclass(slots=True, kw_only=True)
class Judgement:
    """What came of it."""

    accepted: int = 0
    executions: int = 0
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    """uid and excuse, one for each execution too many."""
    unexcused: list[str] = field(default_factory=list)
    overlapping: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Failed as poison, since the kills from outside met them while they ran alone."""
    counted: list[str] = field(default_factory=list)
    """An attempt was counted although the job never raised."""
    unrecorded: float = 0.0
    """Seconds: how old the oldest ending was that a death took along."""
    handover: float = 0.0
    """Seconds: the longest that a thread ran on beside the job's next execution, until its process had ended."""
    recovery: list[float] = field(default_factory=list)
    """Seconds from the first death of a job's process until it ran again."""

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.stuck or self.unexcused or self.overlapping or self.counted)


def judge(
    entries: Iterable[Entry], faults: Sequence[Fault], finals: dict[str, Final], rules: Rules | None = None
) -> Judgement:
    """Weigh the evidence against the rows that are left in the end."""
    return _Court(list(entries), faults, finals, rules or Rules()).judge()


def executions_of(entries: Iterable[Entry]) -> dict[str, list[Execution]]:
    """Each job's executions, in the order of their claims."""
    found: dict[tuple[str, int, int], list[Execution]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.at):
        one = found[entry.uid, entry.claim, entry.pid]
        if entry.word == BEGAN:
            one.append(Execution(uid=entry.uid, claim=entry.claim, pid=entry.pid, began=entry.at))
        elif entry.word in (ENDED, RAISED, CANCELLED) and one:
            one[-1].ended, one[-1].how = entry.at, entry.word
    jobs: dict[str, list[Execution]] = defaultdict(list)
    for some in found.values():
        for execution in some:
            jobs[execution.uid].append(execution)
    for one in jobs.values():
        one.sort(key=lambda execution: (execution.claim, execution.began))
    return dict(jobs)


class _Court:
    def __init__(self, entries: list[Entry], faults: Sequence[Fault], finals: dict[str, Final], rules: Rules) -> None:
        self._accepted = [entry.uid for entry in entries if entry.word == ACCEPTED]
        self._jobs = executions_of(entries)
        self._faults = faults
        self._finals = finals
        self._rules = rules
        self._found = Judgement()

    def judge(self) -> Judgement:
        """All of it."""
        found = self._found
        found.accepted = len(self._accepted)
        found.executions = sum(map(len, self._jobs.values()))
        found.unexcused += [f"{uid} accepted twice" for uid, number in Counter(self._accepted).items() if number > 1]
        for uid in dict.fromkeys([*self._accepted, *self._finals]):
            self._judge_end(uid)
        for uid, executions in self._jobs.items():
            for earlier, later in itertools.pairwise(executions):
                self._judge_pair(uid, earlier, later)
            self._judge_recovery(executions)
        return found

    # -- how each job ended -----------------------------------------------------------------------------------------

    def _judge_end(self, uid: str) -> None:
        final = self._finals.get(uid)
        raised = sum(execution.how == RAISED for execution in self._jobs.get(uid, ()))
        if final is None:
            self._found.lost.append(uid)
        elif not final.finished:
            self._found.stuck.append(f"{uid} {final.state}")
        elif final.state == "failed" and final.failure_kind == "crashed" and self._is_blamed_in_error(uid, final):
            self._found.left_out.append(uid)
        elif not self._has_run(uid, final):
            self._found.lost.append(f"{uid} {final.state}")
        if final is not None and final.failures > raised:
            self._found.counted.append(f"{uid} {final.failures}")

    def _has_run(self, uid: str, final: Final) -> bool:
        """Success needs an execution that came to its end; failure one that raised."""
        needed = ENDED if final.state == "succeeded" else RAISED
        return any(execution.how == needed for execution in self._jobs.get(uid, ()))

    def _is_blamed_in_error(self, uid: str, final: Final) -> bool:
        deaths = sum(self._death_during(execution) is not None for execution in self._jobs.get(uid, ()))
        return final.solo_crashes >= BLAMED and deaths >= BLAMED

    # -- executions too many ----------------------------------------------------------------------------------------

    def _judge_pair(self, uid: str, earlier: Execution, later: Execution) -> None:
        excuse = self._excuse(earlier, later)
        if earlier.claim == later.claim:
            self._found.unexcused.append(f"{uid} claim {later.claim} twice")
        elif excuse is None:
            self._found.unexcused.append(f"{uid} claim {later.claim} after {earlier.how or 'no end'}")
        elif excuse != RAISED:
            self._found.excused.append(f"{uid} {excuse}")
        if excuse == DIED and earlier.how == ENDED:
            self._found.unrecorded = max(self._found.unrecorded, self._death_at(earlier) - earlier.ended)
        overlap = self._end_of_life(earlier) - later.began
        if excuse == TOLD_TO_END:
            self._found.handover = max(self._found.handover, overlap)
        if excuse != FROZEN and overlap > (self._rules.handover if excuse == TOLD_TO_END else 0.0):
            self._found.overlapping.append(f"{uid} claims {earlier.claim} and {later.claim} by {overlap:.3f} s")

    def _excuse(self, earlier: Execution, later: Execution) -> str | None:
        if earlier.how == RAISED:
            return RAISED
        death = self._death_during(earlier)
        if death is not None and later.began >= death.at:
            return DIED
        if any(self._is_frozen(fault, earlier, later) for fault in self._of(FROZEN, earlier.pid)):
            return FROZEN
        told = self._of(TOLD_TO_END, earlier.pid)
        if any(self._was_cut_off(fault, earlier) and later.began >= fault.at for fault in told):
            return TOLD_TO_END
        return None

    def _of(self, kind: str, pid: int) -> list[Fault]:
        return [fault for fault in self._faults if fault.kind == kind and fault.pid == pid]

    def _death_during(self, execution: Execution) -> Fault | None:
        """The death that took the execution, or its ending before it was committed."""
        for fault in self._of(DIED, execution.pid):
            if execution.began <= fault.until and fault.at <= execution.ended + self._rules.commit:
                return fault
        return None

    def _death_at(self, execution: Execution) -> float:
        death = self._death_during(execution)
        return death.at if death is not None else 0.0

    def _is_frozen(self, fault: Fault, earlier: Execution, later: Execution) -> bool:
        lease = self._rules.lease
        if fault.until - fault.at < lease or not fault.at <= earlier.ended + self._rules.commit:
            return False
        return earlier.began <= fault.until and later.began >= fault.at + lease

    @staticmethod
    def _was_cut_off(fault: Fault, execution: Execution) -> bool:
        """*until* is the end of the grace. A coroutine is cancelled then; a thread merely never gets to its end."""
        return execution.began <= fault.until and (execution.how == CANCELLED or execution.ended >= fault.until)

    def _end_of_life(self, execution: Execution) -> float:
        """When it ended, or its process did."""
        deaths = [fault.at for fault in self._of(DIED, execution.pid) if fault.until >= execution.began]
        return min([execution.ended, *deaths])

    def _judge_recovery(self, executions: Sequence[Execution]) -> None:
        """Of a job's first death only: after the second it waits, and runs alone, as is promised."""
        for earlier, later in itertools.pairwise(executions):
            death = self._death_during(earlier)
            if death is not None:
                if later.began >= death.at:
                    self._found.recovery.append(later.began - death.at)
                return


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that is not below that *part* of all; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)] if ordered else 0.0
