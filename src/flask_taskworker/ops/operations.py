"""What a person may do to jobs, limits, queues and schedules, with a page or a command; each act is in the audit log.

The note is written in the transaction of the act: neither exists without the other. An act on many jobs goes in
batches, each a transaction of its own, so that workers can use the database between them; each adds to the one note.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

from flask import Flask

from .. import signals
from ..client.batches import retry_members
from ..client.client import Client
from ..core.clock import from_ms, require_aware, to_ms
from ..core.filters import JobFilter
from ..core.jobs import Job
from ..core.limits import Numbers, declared_limits
from ..core.rows import JobRecord, JobState
from ..core.tasks import TaskRegistry
from ..core.triggers import trigger_from_text
from ..errors import DeclarationError, JobNotFound, NotAccepted, StoreError
from ..mail.queue.queue import DELIVER
from ..store.admission import pause_queue, remove_limit, resume_queue, set_limit, stored_limits
from ..store.driver import Row, Run
from ..store.flows import Flows
from ..store.sql import ScheduleRow, Store, next_fire_ms, to_duration_ms
from ..store.statements import browse as browse_statements
from ..store.statements import limits as limit_statements
from ..store.statements import operations as statements
from ..store.statements.jobs import REMOVE_ENDED_SCHEDULE, REMOVE_SCHEDULE, SCHEDULE_SOURCE, batch_of
from ..store.statements.workers import SET_SLOTS, WISH
from ..store.work import PRUNE_BATCH, remove_parts
from .browse import Browser, Names
from .views import JobView, WorkerView, worker_view

MOST_SLOTS = 10_000
"""How many jobs of a kind one worker may be asked to run at once."""
_HIDEABLE = ("scheduled", "held", "ready", "succeeded", "failed", "cancelled")
FITTING: dict[str, tuple[str, ...]] = {
    "retry": ("failed", "cancelled"),
    "cancel": ("scheduled", "held", "ready", "running"),
    "discard": _HIDEABLE,
    "restore": _HIDEABLE,
    "run": ("scheduled",),
}
"""What can be done to jobs, and in which states. ``retry``: failed or cancelled ones go back to their queues.
``cancel``: waiting ones end, running ones are asked to stop. ``discard``: finished and waiting ones are hidden until
they are pruned; ``restore`` undoes that. ``run``: scheduled ones run now."""

BULK = "flask_taskworker.bulk"
"""The built-in task that acts on many jobs: see bulk.py."""

_TRIES = 5
MAX_TARGET = 500
"""Characters of what an act was done to that are noted."""


class Operations:
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

    def act(self, action: str, job_id: int, *, following: bool = False, fresh: bool = False) -> bool:
        """Do *action* to one job; whether it was in a state for it. *following*: retry what was cancelled by it, too.

        *fresh*: retry it without what its steps have stored.

        Raises JobNotFound, or NotAccepted for a retry whose unique key another unfinished job has.
        """
        record = self._store.record(job_id)
        act = self._begin(action, f"job {job_id} ({record.task})")
        if action == "retry":
            changed = act.write(lambda flows: self._retry(flows, record, following=following, fresh=fresh))
            self._tell(action, changed)
        else:
            changed = self._batch(act, [job_id], None)
        if not changed and action == "restore":
            self._refuse_taken_key(job_id)
        if changed:
            act.tell()
        return bool(changed)

    def _refuse_taken_key(self, job_id: int) -> None:
        if self._read(statements.DISCARDED_KEY_TAKEN, {"id": job_id}):
            raise NotAccepted(f"Job {job_id} cannot be restored: another unfinished job has its unique key.")

    def act_on_some(self, action: str, ids: Sequence[int], target: str = "", *, chosen: JobFilter | None = None) -> int:
        """Do *action* to these jobs, at most 1,000; how many were in a state for it.

        *chosen*: the filter under which they were chosen; those that no longer fit it are left as they are, as far as
        that can change (:meth:`JobFilter.changeable`). *target*: how they are noted.
        """
        act = self._begin(action, target or f"jobs {', '.join(map(str, ids))}")
        self._batch(act, ids, chosen)
        act.end()
        return act.number

    def act_on_all(
        self, action: str, chosen: JobFilter, *, before: int | None = None, names: Names = lambda task: ()
    ) -> Generator[int, None, None]:
        """Do *action* to every job that fits, in batches; yields how many jobs each batch changed.

        *before*: only to jobs with a smaller number. Those that are in no state for it, or fit no longer when their
        turn comes, are left as they are. What was done is noted batch by batch, and told when the iterator ends, or is
        closed.
        """
        act = self._begin(action, str(chosen) or "every job")
        try:
            for ids in Browser(self._store).ids(chosen, before=before, names=names):
                yield len(self._batch(act, ids, chosen))
        finally:
            # Also where it was left half way: what was done is done.
            act.end()

    def _batch(self, act: Act, ids: Sequence[int], chosen: JobFilter | None) -> list[Row]:
        """Do it to these jobs, as far as they still fit *chosen*: id and new state of those that it has changed."""
        now, still = self._store.clock(), None if chosen is None else chosen.changeable()
        parameters = {
            "batch": batch_of([(job_id,) for job_id in ids]),
            "now": now,
            "expires_at": now + to_duration_ms(self._store.keep_succeeded),
            **({} if still is None else browse_statements.parameters_of(still)),
        }
        fits = "true" if still is None else browse_statements.conditions(self._dialect, still)
        batch = statements.BATCH[act.action](self._dialect, fits)
        changed = act.write(lambda flows: self._follow(flows, act.action, flows.run(batch, parameters)))
        if special := statements.SPECIAL.get(act.action):
            # Of two jobs with one unique key only one can come back, and a mail's recipients have to be opened again.
            for (job_id,) in self._read(special(self._dialect, fits), {**parameters, "mail": DELIVER}):
                changed += self._act_alone(act, fits, {**parameters, "job_id": job_id})
        self._tell(act.action, changed)
        return changed

    def _act_alone(self, act: Act, fits: str, parameters: dict[str, Any]) -> list[Row]:
        if act.action == "restore":
            one = statements.restore_one(fits)
            return act.write(lambda flows: self._follow(flows, act.action, flows.run(one, parameters)))

        def retry(flows: Flows) -> list[Row]:
            if not flows.run(statements.lock_fitting(self._dialect, fits), parameters):
                return []
            return self._retry(flows, self._store.record(parameters["job_id"]))

        try:
            return act.write(retry)
        except (NotAccepted, JobNotFound):
            # Those with which it is not possible are left as they are.
            return []

    def _follow(self, flows: Flows, action: str, rows: list[Row]) -> list[Row]:
        if action in ("retry", "restore"):
            flows.back(rows, by_rule=action == "restore")
        else:
            flows.changed(rows)
        return rows

    def _retry(self, flows: Flows, record: JobRecord, *, following: bool = False, fresh: bool = False) -> list[Row]:
        if record.task == BULK:
            # Permission to retry jobs is not permission to do what this one does.
            raise NotAccepted(f"Job {record.id} was a bulk action and cannot be retried. Start the action again.")
        return (
            [(record.id, "ready", record.marks)]
            if self._store.retry_within(flows, record.id, following=following, fresh=fresh)
            else []
        )

    def _tell(self, action: str, rows: Sequence[Row]) -> None:
        if action in ("retry", "restore", "run"):
            self._client.wake()
            return
        if any(marks for _, _, marks in rows):
            # There may be room for others now.
            self._client.wake()
        self._client.cancelled([job_id for job_id, state, _ in rows if state == "cancelled"])

    def tell(self, job_id: int, name: str, value: Any) -> None:
        """Give a job the value for which it waits. Raises JobNotFound, JobFinished or StepError."""
        record, steps = self._store.record(job_id), self._client.steps
        target = f"job {job_id} ({record.task}): {name}"
        self._do("tell", target, lambda flows: [(steps.tell_within(flows, record.uid, name, value),)])

    def change(self, job_id: int, **changes: Any) -> bool:
        """Change a job as ``Job.change`` does; False if a worker has taken it. Raises JobNotFound, ArgumentsError."""
        record = self._store.record(job_id)
        values = self._client.checked_change(record, **changes)
        given = [name for name, value in changes.items() if value is not None]
        words = [f"{name} {getattr(record, name)} → {changes[name]}" for name in given if name != "args"]
        target = f"job {job_id} ({record.task}): {', '.join(words)}"
        return self._do("change", target, lambda flows: flows.change(values))

    def act_on_batch(self, action: str, batch_id: int) -> int:
        """Do *action* to a batch: "retry" (how many jobs), "cancel" or "seal" (1 if it did). Raises BatchNotFound."""
        row = Browser(self._store).batch(batch_id)
        act = self._begin(action, f"batch {batch_id} ({row.name})")

        def body(flows: Flows) -> list[Row]:
            if action == "retry":
                states = (JobState.FAILED, JobState.CANCELLED) if row.stop_on_failure else (JobState.FAILED,)
                return [(batch_id,)] * retry_members(flows, batch_id, states)
            return [(batch_id,)] if flows.seal(batch_id, stop=action == "cancel") else []

        if act.write(body):
            act.tell()
            self._client.wake()
        return act.number

    # -- deleting -----------------------------------------------------------------------------------------------------

    def purge(self, before: int) -> Generator[int, None, None]:
        """Delete the jobs that ended before *before* (epoch ms), oldest first; yields how many each batch had.

        It is noted batch by batch. Their mails stay for their own time.
        """
        act = self._begin("purge", f"finished before {from_ms(before).isoformat(timespec='seconds')}")

        def delete(flows: Flows, ids: Sequence[tuple[int]]) -> list[Row]:
            gone = flows.run(statements.purge(self._dialect), {"batch": batch_of(ids), "before": before})
            remove_parts(self._dialect, flows.run, gone)
            return gone

        try:
            for ids in self._ended(before):
                for start in range(0, len(ids), PRUNE_BATCH):
                    some = [(job_id,) for job_id in ids[start : start + PRUNE_BATCH]]
                    yield len(act.write(lambda flows, some=some: delete(flows, some)))  # type: ignore[misc]
        finally:
            act.end()

    def purgeable(self, before: int) -> Iterator[int]:
        """How many jobs :meth:`purge` would delete, in parts."""
        return map(len, self._ended(before))

    def _ended(self, before: int) -> Iterator[list[int]]:
        self._store.driver.prepare()
        last = 0
        while rows := self._read(statements.ENDED_BEFORE, {"after": last, "before": before, "number": 1000}):
            yield [job_id for job_id, ended in rows if ended]
            last = rows[-1][0]

    # -- limits -------------------------------------------------------------------------------------------------------

    def set_limit(self, name: str, numbers: Numbers) -> bool:
        """Change a limit for all processes, at once and until it is reset; whether that changed anything.

        Running jobs go on, and no new ones start above the limit. Raises DeclarationError if no limit has this name, or
        for numbers that limit nothing.
        """
        known = self._limits()
        if name not in known:
            raise DeclarationError(f"No limit is named {name!r:.200}. List them: flask tasks limits")
        if numbers == Numbers():
            raise DeclarationError(
                f"The limit {name!r} would limit nothing. Give it a number of running jobs or a rate."
            )
        if numbers == known[name]:
            return False
        self._change_limit("limit", f"limit {name}: {numbers}, was {known[name]}", name, numbers, self._who)
        return True

    def reset_limit(self, name: str) -> bool:
        """Back to what the code declares, or to no limit where it declares none; whether that changed anything.

        Raises DeclarationError if no limit has this name.
        """
        declared = self._declared_limits()
        stored = {row[0]: (Numbers(*row[1:6]), row[6]) for row in self._read(limit_statements.LIMITS, {})}
        if name not in stored | declared:
            raise DeclarationError(f"No limit is named {name!r:.200}. List them: flask tasks limits")
        numbers, (before, source) = declared.get(name), stored.get(name, (None, "code"))
        if before in (None, numbers) and source == "code":
            return False
        self._change_limit("reset", f"limit {name}: {numbers or 'removed'}, was {before}", name, numbers, None)
        return True

    def _change_limit(self, action: str, target: str, name: str, numbers: Numbers | None, who: str | None) -> None:
        now = self._store.clock()

        def change(flows: Flows) -> list[Row]:
            if numbers is None:
                remove_limit(flows.run, name, now)
            else:
                set_limit(flows.run, name, numbers, now, who=who)
            return [(name,)]

        self._do(action, target, change)
        self._client.wake()

    def _limits(self) -> dict[str, Numbers]:
        return self._declared_limits() | stored_limits(self._store.driver.read)

    def _declared_limits(self) -> dict[str, Numbers]:
        self._store.driver.prepare()
        return declared_limits(self._registry.limits, self._app.extensions["taskworker"].config.queue_limits)

    # -- queues and schedules -----------------------------------------------------------------------------------------

    def pause_queue(self, name: str, until: datetime | None = None) -> None:
        """Pause a queue: running jobs finish, no new jobs start.

        *until*: when a worker resumes it. Raises DeclarationError for a naive moment, and for one that has passed.
        """
        now = self._store.clock()
        over_at = None if until is None else to_ms(require_aware(until, "until"))
        if over_at is not None and over_at <= now:
            raise DeclarationError(f"until = {until} has passed. Give a moment to come.")
        parameters = {"name": name, "now": now, "who": self._who, "until": over_at}

        def pause(flows: Flows) -> list[Row]:
            rows = flows.run(statements.PAUSE_QUEUE, parameters)
            pause_queue(self._dialect, flows.run, name)
            return rows

        self._do("pause", f"queue {name}", pause)
        self._client.announce(signals.queue_paused, queue=name, paused=True)

    def resume_queue(self, name: str) -> bool:
        """Whether it was paused."""

        def resume(flows: Flows) -> list[Row]:
            rows = flows.run(statements.RESUME_QUEUE, {"name": name})
            resume_queue(self._dialect, flows.run, name)
            return rows

        if not self._do("resume", f"queue {name}", resume):
            return False
        self._client.wake()
        self._client.announce(signals.queue_paused, queue=name, paused=False)
        return True

    def ask_worker(self, name: str, wish: Literal["quiet", "stop"]) -> bool:
        """Ask one worker to take no more jobs, or to stop as after SIGTERM; False if it was asked before.

        *name*: its name or id. Raises DeclarationError unless it is that of exactly one living worker.
        """
        worker = worker_named(self._store, name)
        rows = {"id": worker.id, "wish": wish}
        return self._do(wish, f"worker {worker.name} ({worker.id})", lambda flows: flows.run(WISH, rows))

    def set_slots(self, name: str, *, threads: int | None, concurrency: int | None) -> bool:
        """Have one worker run that many sync and async jobs at once; False if it takes no jobs. None leaves a number.

        *name*: its name or id. Raises DeclarationError unless it is that of exactly one living worker, and for a number
        below 1 or beyond 10,000.
        """
        for what, number in (("threads", threads), ("concurrency", concurrency)):
            if number is not None and (type(number) is not int or not 1 <= number <= MOST_SLOTS):
                raise DeclarationError(
                    f"{what} = {number!r:.80} is not allowed. Allowed: a whole number from 1 to {MOST_SLOTS:,}."
                )
        if threads is None and concurrency is None:
            raise DeclarationError("Nothing is to be set. Give threads=… for sync jobs, concurrency=… for async ones.")
        worker = worker_named(self._store, name)
        rows = {"id": worker.id, "threads": threads, "concurrency": concurrency}
        words = ", ".join(
            f"{what} {before} to {number}"
            for what, before, number in (
                ("threads", worker.sync_slots, threads),
                ("concurrency", worker.async_slots, concurrency),
            )
            if number is not None
        )
        return self._do("slots", f"worker {worker.name} ({worker.id}): {words}", lambda f: f.run(SET_SLOTS, rows))

    def pause_schedule(self, name: str) -> bool:
        """Pause a schedule; False if it was paused. Raises DeclarationError if none has this name."""
        return self._on_schedule(name, "pause", statements.PAUSE_SCHEDULE)

    def resume_schedule(self, name: str) -> bool:
        """Resume a schedule at its next time; times that passed while it was paused are not made up for."""
        schedule = self._schedule(name)
        return self._on_schedule(name, "resume", statements.RESUME_SCHEDULE, next_at=self._next(schedule))

    def skip_next(self, name: str) -> int | None:
        """Skip the next fire time; returns the one after it, in epoch ms.

        Raises DeclarationError if no schedule has this name. One made at run time that has no time left is deleted, as
        after its last firing.
        """
        schedule = self._schedule(name)
        if schedule.next_at is None:
            return None
        following = trigger_from_text(schedule.trigger).next_after(from_ms(schedule.next_at))
        next_at = None if following is None else to_ms(following)
        if not self._on_schedule(name, "skip", statements.MOVE_SCHEDULE, next_at=next_at, expected=schedule.next_at):
            # It has fired just now.
            return self._schedule(name).next_at
        return next_at

    def remove_schedule(self, name: str) -> bool:
        """Delete a schedule made at run time; False if there is none. Raises DeclarationError for one in code."""
        if self._do("remove", f"schedule {name}", lambda flows: flows.run(REMOVE_SCHEDULE, {"name": name})):
            self._client.wake()
            return True
        if self._read(SCHEDULE_SOURCE, {"name": name}):
            raise DeclarationError(f"The schedule {name!r} is declared in code: remove schedule=… there to end it.")
        return False

    def run_schedule(self, name: str) -> Job[Any]:
        """Enqueue a job of a schedule now, besides its times: with now as its fire time, and by its overlap rule.

        Raises DeclarationError if there is no such schedule, the code no longer has its task, or an earlier job of it
        is unfinished and may not be overlapped.
        """
        schedule = self._schedule(name)
        task = self._registry.get(schedule.task)
        if task is None:
            raise DeclarationError(
                f"The schedule {name!r} is for the task {schedule.task!r}, which this code does not declare."
            )
        act = self._begin("run", f"schedule {name}")

        def note(run: Run) -> None:
            skips = trigger_from_text(schedule.trigger).overlap == "skip"
            if skips and run(statements.UNFINISHED_OF_SCHEDULE, {"name": name}):
                raise DeclarationError(
                    f"An earlier job of the schedule {name!r} is unfinished, and its overlap is 'skip'. Wait for "
                    "it, or cancel it."
                )
            act.note_one(run)

        job = self._client.enqueue_with(task, schedule.args, note, schedule=name)
        act.tell()
        return job

    def _schedule(self, name: str) -> ScheduleRow:
        for schedule in self._store.schedules():
            if schedule.name == name:
                return schedule
        for declared in (one for task in self._registry for one in task._declared_schedules() if one.name == name):
            # No worker has stored it yet.
            zoned = declared._in_zone(self._store.timezone)
            self._store.put_schedule(zoned, next_fire_ms(zoned, from_ms(self._store.clock())), "code")
            return self._schedule(name)
        raise DeclarationError(f"No schedule is named {name!r}. List them: flask tasks schedule list")

    def _next(self, schedule: ScheduleRow) -> int | None:
        following = trigger_from_text(schedule.trigger).next_after(from_ms(self._store.clock()))
        return None if following is None else to_ms(following)

    def _on_schedule(self, name: str, action: str, sql: str, **parameters: Any) -> bool:
        self._schedule(name)

        def body(flows: Flows) -> list[Row]:
            rows = flows.run(sql, {"name": name, **parameters})
            if rows and action == "skip":
                flows.run(REMOVE_ENDED_SCHEDULE, {"name": name})
            return rows

        if not self._do(action, f"schedule {name}", body):
            return False
        self._client.wake()
        return True

    # -- the audit log ------------------------------------------------------------------------------------------------

    def _begin(self, action: str, target: str) -> Act:
        return Act(self._client, self._who, action, target)

    def _do(self, action: str, target: str, body: Callable[[Flows], list[Row]]) -> bool:
        """An act of one transaction; whether it has changed anything. If not, it is not noted."""
        act = self._begin(action, target)
        if not act.write(body):
            return False
        act.tell()
        return True

    def _read(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        return self._store.driver.read(sql, parameters)


class Act:
    """One act of a person, and its note in the audit log. For one thread."""

    def __init__(self, client: Client, who: str, action: str, target: str) -> None:
        self.action = action
        self.number: int = 0
        """How many rows it has changed so far, which stands in the note."""
        self._client = client
        self._store: Store = client.store
        self._who = who
        self._target = target
        self._note: int | None = None

    def write(self, body: Callable[[Flows], list[Row]]) -> list[Row]:
        """Run *body* and note how many rows it returns, in one transaction; nothing is noted of none."""
        for _ in range(_TRIES - 1):
            try:
                return self._write(body)
            except StoreError as error:
                # A deadlock, or a unique key that another transaction has just taken: PostgreSQL has undone all of it.
                state = getattr(error.__cause__, "sqlstate", None) or ""
                if not (state.startswith("40") or state == "23505"):
                    raise
        return self._write(body)

    def _write(self, body: Callable[[Flows], list[Row]]) -> list[Row]:
        def noted(flows: Flows) -> tuple[list[Row], int | None]:
            rows = body(flows)
            return rows, self._add(flows.run, len(rows)) if rows else self._note

        rows, self._note = self._store.change(noted)
        self.number += len(rows)
        return rows

    def _add(self, run: Run, number: int) -> int:
        if self._note is not None:
            run(statements.ADD_TO_NOTE, {"id": self._note, "number": number})
            return self._note
        values = {"at": self._store.clock(), "who": self._who, "action": self.action}
        ((note,),) = run(statements.NOTE, {**values, "target": self._target[:MAX_TARGET], "number": number})
        return int(note)

    def note_one(self, run: Run) -> None:
        """Note one row, inside a transaction of the caller's."""
        self._add(run, 1)
        self.number = 1

    def end(self) -> None:
        """An act on many is over: if it has changed nothing, that is noted; then the signal is sent."""
        if self._note is None:
            self._note = self._store.driver.transaction(lambda run: self._add(run, 0))
        self.tell()

    def tell(self) -> None:
        """Send the signal dashboard_action."""
        values = {"who": self._who, "action": self.action, "target": self._target, "number": self.number}
        self._client.announce(signals.dashboard_action, **values)


def worker_named(store: Store, name: str) -> WorkerView:
    """The living worker of that name, or id. Raises DeclarationError unless there is exactly one."""
    store.look()
    now = store.clock()
    living = [worker_view(row, now) for row in store.workers() if row.state in ("alive", "draining")]
    found = [worker for worker in living if name in (worker.id, worker.name)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(worker.id for worker in found)
        raise DeclarationError(f"{len(found)} living workers are named {name!r:.200}. Give the id of one: {ids}")
    raise DeclarationError(f"No living worker is named {name!r:.200}. List them: flask tasks workers")


def is_possible(action: str, job: JobView) -> bool:
    """Whether the job is in a state for it; of discarded jobs only restoring is possible."""
    if job.state == "waiting":
        return action in ("cancel", "discard") and not job.discarded
    state = "scheduled" if job.state == "retrying" else job.state
    return state in FITTING[action] and job.discarded == (action == "restore")
