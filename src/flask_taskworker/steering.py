"""What a person may do to jobs, queues and schedules, from the pages and the commands alike. Each act is noted.

An act on many jobs goes in batches, each a transaction of its own, so that workers get at the database between them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from flask import Flask

from . import signals
from .client import Client
from .clock import from_ms, to_ms
from .errors import DeclarationError, JobNotFound, NotAccepted, StoreError
from .filters import JobFilter
from .jobs import Job, JobRecord
from .mail.queue import DELIVER, MailQueue
from .mail_config import MailConfig
from .store import statements as worker_statements
from .store import steer_statements as statements
from .store.browse import Browser, Names
from .store.driver import Row, Run
from .store.sql import ScheduleRow, to_duration_ms
from .store.statements import batch_of, expired_attempts
from .store.work import PRUNE_BATCH
from .tasks import EnqueueOptions, TaskRegistry
from .triggers import trigger_from_text

ACTIONS = ("retry", "cancel", "discard", "restore", "run")
"""What can be done to jobs. ``retry``: failed or cancelled ones go back to their queues. ``cancel``: waiting ones end,
running ones are asked to stop. ``discard``: finished and waiting ones are put away, until they are pruned; ``restore``
takes them back. ``run``: scheduled ones run now."""

BULK = "flask_taskworker.bulk"
"""The built-in task that acts on many jobs: see bulk.py."""

_TRIES = 5
MAX_TARGET = 500
"""Characters of what an act was done to that are noted."""


class Steering:
    """One app's. Safe from any thread. Errors come as StoreError."""

    def __init__(self, app: Flask, client: Client, registry: TaskRegistry, *, who: str) -> None:
        """*who* stands in the audit log."""
        self._app = app
        self._client = client
        self._registry = registry
        self._store = client.store
        self._dialect = client.store.driver.dialect
        self._who = who

    # -- jobs -------------------------------------------------------------------------------------------------------

    def act(self, action: str, job_id: int) -> bool:
        """Do *action* to one job; whether it was in a state for it. Raises JobNotFound, or NotAccepted for a retry
        whose unique key another unfinished job has."""
        _require(action)
        record = self._store.record(job_id)
        match action:
            case "retry":
                done = self._retry(record)
            case "cancel":
                done = self._client.cancel(job_id)
            case _:
                done = bool(self._batch(action, [job_id]))
                if not done and action == "restore":
                    self._refuse_taken_key(job_id)
        if done:
            self.note(action, f"job {job_id} ({record.task})", 1)
        return done

    def _refuse_taken_key(self, job_id: int) -> None:
        if self._read(statements.hidden_key_taken(), {"id": job_id}):
            raise NotAccepted(f"Job {job_id} cannot come back: another unfinished job has its unique key.")

    def act_on_some(self, action: str, ids: Sequence[int], target: str = "") -> int:
        """Do *action* to these jobs, at most 1,000; how many were in a state for it. *target*: how they are noted."""
        _require(action)
        changed = self._batch(action, ids)
        self.note(action, target or f"jobs {', '.join(map(str, ids))}", changed)
        return changed

    def act_on_all(
        self, action: str, chosen: JobFilter, *, before: int | None = None, names: Names = lambda task: ()
    ) -> Generator[int, None, None]:
        """Do *action* to every job that fits, in batches; yields how many jobs each batch changed.

        *before*: only to jobs with a smaller number.
        The act is noted when the iterator ends, or is closed. Those that are in no state for it are left as they are.
        """
        _require(action)
        total = 0
        try:
            for ids in Browser(self._store).ids(chosen, before=before, names=names):
                changed = self._batch(action, ids)
                total += changed
                yield changed
        finally:
            # Also where it was left half way: what was done is done.
            self.note(action, str(chosen) or "every job", total)

    def _batch(self, action: str, ids: Sequence[int]) -> int:
        now = self._store.clock()
        parameters = {
            "batch": batch_of([(job_id,) for job_id in ids]),
            "now": now,
            "expires_at": now + to_duration_ms(self._store.keep_succeeded),
        }
        rows = self._write(statements.BATCH[action](self._dialect), parameters)
        if action == "retry":
            special = self._read(statements.special_retries(self._dialect), {**parameters, "mail": DELIVER})
            rows += [(job_id, "ready") for (job_id,) in special if self._try_to_retry(job_id)]
        elif action == "restore":
            # Of two with one unique key only one can come back, so they come one by one.
            for (job_id,) in self._read(statements.special_restores(self._dialect), parameters):
                rows += self._write(statements.restore_one(), {"id": job_id, "now": now})
        self._tell(action, rows)
        return len(rows)

    def _retry(self, record: JobRecord) -> bool:
        if record.task == BULK:
            # Whoever may retry jobs need not be one who may do to them what this one does.
            raise NotAccepted(f"Job {record.id} has acted on many jobs and is not repeated. Ask for the act once more.")
        config = getattr(self._app.extensions.get("mail"), "config", None)
        if record.task == DELIVER and isinstance(config, MailConfig):
            # Its recipients have to be opened again.
            return MailQueue(self._app, config).retry(record.id)
        return self._client.retry(record.id)

    def _try_to_retry(self, job_id: int) -> bool:
        """As one of many: those with which it is not possible are left as they are."""
        try:
            return self._retry(self._store.record(job_id))
        except (NotAccepted, JobNotFound):
            return False

    def _tell(self, action: str, rows: Sequence[Row]) -> None:
        if action in ("retry", "restore", "run"):
            self._client.wake()
            return
        ended = [job_id for job_id, state in rows if state == "cancelled"]
        self._client.cancelled(ended)

    # -- deleting -----------------------------------------------------------------------------------------------------

    def purge(self, before: int) -> Iterator[int]:
        """Delete the jobs that ended before *before* (epoch ms), oldest first; yields how many each batch had.

        The act is noted when the iterator ends. Their mails stay for their own time.
        """
        total = 0
        for ids in self._ended(before):
            for start in range(0, len(ids), PRUNE_BATCH):
                gone = self._delete(ids[start : start + PRUNE_BATCH], before)
                total += gone
                yield gone
        self.note("purge", f"finished before {from_ms(before).isoformat(timespec='seconds')}", total)

    def purgeable(self, before: int) -> Iterator[int]:
        """How many jobs :meth:`purge` would delete, in parts."""
        return map(len, self._ended(before))

    def _ended(self, before: int) -> Iterator[list[int]]:
        self._store.driver.prepare()
        last = 0
        while rows := self._read(statements.ended_before(), {"after": last, "before": before, "number": 1000}):
            yield [job_id for job_id, ended in rows if ended]
            last = rows[-1][0]

    def _delete(self, ids: Sequence[int], before: int) -> int:
        batch = {"batch": batch_of([(job_id,) for job_id in ids])}

        def body(run: Run) -> int:
            gone = run(statements.purge(self._dialect), {**batch, "before": before})
            parts = {"batch": batch_of(gone)}
            run(expired_attempts(self._dialect, "taskworker_attempt"), parts)
            run(expired_attempts(self._dialect, "taskworker_log"), parts)
            return len(gone)

        return self._store.driver.transaction(body)

    # -- queues and schedules -----------------------------------------------------------------------------------------

    def pause_queue(self, name: str) -> None:
        """No worker takes jobs from this queue until it is resumed. Running jobs go on."""
        self._write(statements.pause_queue(), {"name": name, "now": self._store.clock(), "who": self._who})
        self.note("pause", f"queue {name}", 1)
        self._client.announce(signals.queue_paused, queue=name, paused=True)

    def resume_queue(self, name: str) -> bool:
        """Whether it was paused."""
        if not self._write(statements.resume_queue(), {"name": name}):
            return False
        self.note("resume", f"queue {name}", 1)
        self._client.wake()
        self._client.announce(signals.queue_paused, queue=name, paused=False)
        return True

    def pause_schedule(self, name: str) -> bool:
        """It fires no more until it is resumed; False if it was paused. Raises DeclarationError if there is none."""
        return self._on_schedule(name, "pause", statements.pause_schedule())

    def resume_schedule(self, name: str) -> bool:
        """It fires again, from its next time on: what it would have fired while paused is not made up for."""
        schedule = self._schedule(name)
        return self._on_schedule(name, "resume", statements.resume_schedule(), next_at=self._next(schedule))

    def skip_next(self, name: str) -> int | None:
        """Leave out the next fire time; returns the one after it, in epoch ms. Raises DeclarationError if there is
        no such schedule.

        A schedule that was made at run time and has no time left is deleted, as after its last firing.
        """
        schedule = self._schedule(name)
        if schedule.next_at is None:
            return None
        following = trigger_from_text(schedule.trigger).next_after(from_ms(schedule.next_at))
        next_at = None if following is None else to_ms(following)
        if not self._on_schedule(name, "skip", statements.move_schedule(), next_at=next_at, expected=schedule.next_at):
            # It has fired just now.
            return self._schedule(name).next_at
        self._write(worker_statements.remove_ended_schedule(), {"name": name})
        return next_at

    def run_schedule(self, name: str) -> Job[Any]:
        """Enqueue the job of a schedule now, besides its times. Raises DeclarationError if there is no such schedule,
        or the code no longer has its task."""
        schedule = self._schedule(name)
        task = self._registry.get(schedule.task)
        if task is None:
            raise DeclarationError(
                f"The schedule {name!r} is for the task {schedule.task!r}, which this code does not declare."
            )
        job = self._client.enqueue(task, [schedule.args], EnqueueOptions())[0]
        self.note("run", f"schedule {name}", 1)
        return job

    def _schedule(self, name: str) -> ScheduleRow:
        for schedule in self._store.schedules():
            if schedule.name == name:
                return schedule
        raise DeclarationError(f"There is no schedule {name!r}. flask tasks schedule list shows those that there are.")

    def _next(self, schedule: ScheduleRow) -> int | None:
        following = trigger_from_text(schedule.trigger).next_after(from_ms(self._store.clock()))
        return None if following is None else to_ms(following)

    def _on_schedule(self, name: str, action: str, sql: str, **parameters: Any) -> bool:
        self._schedule(name)
        if not self._write(sql, {"name": name, **parameters}):
            return False
        self.note(action, f"schedule {name}", 1)
        self._client.wake()
        return True

    # -- the audit log ------------------------------------------------------------------------------------------------

    def note(self, action: str, target: str, number: int) -> None:
        """Write into the audit log what was done, and send the signal dashboard_action."""
        values = {"at": self._store.clock(), "who": self._who, "action": action}
        self._write(statements.note(), {**values, "target": target[:MAX_TARGET], "number": number})
        self._client.announce(signals.dashboard_action, who=self._who, action=action, target=target, number=number)

    def _write(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        self._store.driver.prepare()
        for _ in range(_TRIES - 1):
            try:
                return self._store.driver.write(sql, parameters)
            except StoreError as error:
                # PostgreSQL has undone this statement, so that a worker which wanted the same rows can go on.
                if not _was_deadlock(error):
                    raise
        return self._store.driver.write(sql, parameters)

    def _read(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        return self._store.driver.read(sql, parameters)


def _was_deadlock(error: StoreError) -> bool:
    return (getattr(error.__cause__, "sqlstate", None) or "").startswith("40")


def _require(action: str) -> None:
    if action not in ACTIONS:
        raise ValueError(f"There is no action {action!r}. Actions: {', '.join(ACTIONS)}.")


def names_of(registry: TaskRegistry) -> Callable[[str], Sequence[str]]:
    """What a filter needs for ``args.NAME:VALUE``: the names of a task's parameters."""

    def names(task_name: str) -> Sequence[str]:
        task = registry.get(task_name)
        return () if task is None else tuple(task.signature.parameters)

    return names
