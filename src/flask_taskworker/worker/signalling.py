"""The herald: what becomes of a worker's jobs, told to the app's signals and to those who wait for results.

It is sent after the commit, and costs next to nothing without receivers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flask import Flask

from .. import signals
from ..client.client import Client
from ..client.signalling import SignalSender
from ..core.jobs import Job
from ..core.loggers import Logger, get_logger
from ..core.rows import CRASHED, INTERRUPTED, Claim, JobRecord, JobState, Outcome, OutcomeKind
from ..store.work import Ended
from .timing import Timing

log: Logger = get_logger("jobs")

_SIGNALS = {
    OutcomeKind.SUCCEEDED: signals.job_succeeded,
    OutcomeKind.RETRYING: signals.job_retrying,
    OutcomeKind.FAILED: signals.job_failed,
    OutcomeKind.CANCELLED: signals.job_cancelled,
}

_FINAL = frozenset(state.value for state in JobState if state.finished)
_DEATHS = {failure.kind: failure for failure in (CRASHED, INTERRUPTED)}


class WorkerSignals:
    """One worker's. For its loop only."""

    def __init__(self, client: Client, find_app: Callable[[], Flask | None], timing: Timing) -> None:
        self._client = client
        self._find_app = find_app
        self._sender = SignalSender()
        self._most_behind = timing.signal_backlog

    @property
    def is_behind(self) -> bool:
        """Whether receivers are so slow that no further jobs should be begun: what waits for them takes memory."""
        return self._sender.backlog > self._most_behind

    def worker_started(self, worker: object) -> None:
        """The worker begins to claim."""
        self._sender.announce(signals.worker_started, self._find_app(), worker=worker)

    def worker_stopped(self, worker: object) -> None:
        """The worker has ended."""
        self._sender.announce(signals.worker_stopped, self._find_app(), worker=worker)

    def started(self, claim: Claim) -> None:
        """A job begins to run."""
        self._sender.announce(signals.job_started, self._find_app(), job=self._job(claim, "running"))

    def ended(self, ended: Iterable[Ended], states: dict[int, str]) -> None:
        """The store has these endings; *states* lacks the jobs whose claim was lost."""
        self._client.finished(job_id for job_id, state in states.items() if state in _FINAL)
        for e in ended:
            state = states.get(e.claim.id)
            if state is None:
                log.warning("fenced: the ending of %s, claim %s, came too late and is dropped", e.claim, e.claim.claim)
            else:
                outcome = e.outcome
                # What should run again may have been cancelled meanwhile.
                signal = _SIGNALS.get(OutcomeKind.CANCELLED if state == "cancelled" else outcome.ending)
                if signal is not None and signal.receivers:
                    extra = {} if outcome.exception is None else {"exception": outcome.exception}
                    job = self._job(e.claim, state, outcome.ending.failures)
                    self._sender.announce(signal, self._find_app(), job=job, outcome=outcome, **extra)

    def _job(self, claim: Claim, state: str, failures: int = 0) -> Job[object]:
        known = claim._asdict() | {"failures": claim.failures + failures}
        del known["args"], known["origin"]
        return Job(JobRecord(**known, state=state), self._client)

    def fired(self, fired: Iterable[tuple[str, JobRecord]]) -> None:
        """Schedules have made these jobs."""
        for name, record in fired:
            job: Job[object] = Job(record, self._client)
            self._sender.announce(signals.schedule_fired, self._find_app(), job=job, schedule=name, fire_at=job.fire_at)

    def rescued(self, records: Iterable[JobRecord]) -> None:
        """These jobs were a dead worker's; they are back in their queues, or have ended."""
        for record in records:
            job: Job[object] = Job(record, self._client)
            if record.state not in _FINAL:
                self._sender.announce(signals.job_rescued, self._find_app(), job=job)
                continue
            self._client.finished((record.id,))
            outcome = Outcome(OutcomeKind(record.state), failure=_DEATHS.get(record.failure_kind or ""))
            self._sender.announce(_SIGNALS[outcome.ending], self._find_app(), job=job, outcome=outcome)

    def cancelled(self, records: Iterable[JobRecord]) -> None:
        """These jobs waited for others, and were cancelled because of them."""
        for record in records:
            self._client.finished((record.id,))
            job: Job[object] = Job(record, self._client)
            self._sender.announce(signals.job_cancelled, self._find_app(), job=job, outcome=None)

    def close(self, timeout: float) -> None:
        """Send what is pending, for *timeout* seconds at most. In a thread."""
        self._sender.close(timeout)
