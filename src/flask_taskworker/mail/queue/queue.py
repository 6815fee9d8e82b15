"""Queued mail as it is stored: putting it there in one transaction with its job, and looking at it.

A mail is checked and written once, when it is queued; every try sends the same bytes. Its id is the uid of its job,
and the only argument of that job. An attachment that many mails share is stored once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from flask import Flask

from ...client import signalling
from ...client.client import Client
from ...client.origin import current_origin
from ...client.rows import new_job, new_uid
from ...client.sessions import CallerTransaction
from ...core.clock import from_ms
from ...core.jobs import Job, JobClient, Reason
from ...core.mail_config import MailConfig
from ...core.rows import JobRecord, JobState, NewJob
from ...core.tasks import EnqueueOptions, Task
from ...errors import (
    AppError,
    ArgumentsError,
    ConnectionLost,
    JobFinished,
    JobNotFound,
    NotAccepted,
    NotDecodable,
    OutcomeUnknown,
    SchemaError,
    StoreError,
)
from ...signals import email_queued, job_enqueued
from ...store.driver import Row, Run
from ...store.flows import Flows
from ...store.sql import Store, record_of, to_duration_ms
from ...store.statements import mails as mail_statements
from ...store.statements.jobs import Dialect, batch_of
from ..compose.prepare import Prepared
from ..envelope import Ending, Envelope
from ..errors import MessageTooLarge

DELIVER = "flask_taskworker.mail.deliver"
"""The name of the built-in task."""

QUEUE = "mail"
"""The queue of mails where no other is asked for."""

_WAITING = "waiting"
_NO_WORKER = (
    "send_later needs a TaskWorker on the app, which stores the mail and sends it. Make one: "
    "task_worker = BackgroundTaskWorker(app). To send without one, use mail.send(message)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientState:
    """Where one recipient of a queued mail stands."""

    address: str
    ending: Ending | None = None
    """None while it waits for its first try."""

    code: int | None = None
    """The code of the server's last reply, or -1 where it said nothing."""

    text: str = ""
    next_try: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may still be tried."""
        return self.ending in (None, Ending.DEFERRED, Ending.UNKNOWN)

    def __str__(self) -> str:
        reply = f" {self.code}" if self.code is not None and self.code > 0 else ""
        words = f' "{self.text}"' if self.text else ""
        following = f", next try {self.next_try:%Y-%m-%d %H:%M:%S} UTC" if self.next_try is not None else ""
        return f"{self.ending or _WAITING}{reply}{words}{following}"


class Recipients(Protocol):
    """Who knows where the recipients of mails stand."""

    def recipients(self, uid: str) -> dict[str, RecipientState]:
        """The recipients of the mail of that job."""


class MailJob(Job[dict[str, str]]):
    """The job of a queued mail. Its result maps each refused recipient to what the server said."""

    __slots__ = ("_mails",)

    def __init__(self, record: JobRecord, client: JobClient, mails: Recipients) -> None:
        super().__init__(record, client)
        self._mails = mails

    @property
    def recipients(self) -> dict[str, RecipientState]:
        """Where each recipient stands now. Raises JobNotFound when the mail was pruned, or never committed."""
        return self._mails.recipients(self.uid)

    def result(self, timeout: float | None = None) -> dict[str, str]:
        """Wait for the end: what the server said to each refused recipient. Raises as :meth:`Job.result`."""
        return super().result(timeout) or {}

    async def aresult(self, timeout: float | None = None) -> dict[str, str]:
        """As :meth:`result`, for coroutines on any event loop."""
        return await super().aresult(timeout) or {}

    def retry(self, *, following: bool = False, fresh: bool = False) -> bool:
        """Send the mail again to all who were not accepted, after it was given up, held or cancelled; else False.

        For a mail that was queued with ``once=True`` and is held as unknown this is a person's decision: it may then
        arrive twice.
        """
        return super().retry(following=following, fresh=fresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """What ``send_later`` was given besides the message."""

    enqueue: EnqueueOptions
    once: bool = False


class MailQueue:
    """One app's queued mails. Safe from any thread."""

    def __init__(self, app: Flask, config: MailConfig) -> None:
        state = app.extensions.get("taskworker")
        if state is None:
            raise AppError(_NO_WORKER)
        self._app = app
        self._config = config
        self._client: Client = state.client
        self._store: Store = self._client.store
        self._task: Task[..., Any, Any] = state.registry.find(DELIVER)

    # -- putting in -------------------------------------------------------------------------------------------------

    def put(self, mails: Sequence[tuple[Any, Prepared]], options: QueueOptions) -> list[MailJob]:
        """Store messages, each with its job, in one transaction; in the caller's where there is a session.

        Raises MessageTooLarge, NotAccepted, or OutcomeUnknown when the commit got no answer.
        """
        queue = options.enqueue.queue or self._task.options.queue
        return self._client.traced(self._task.name, queue, len(mails), lambda: self._put(mails, options))

    def _put(self, mails: Sequence[tuple[Any, Prepared]], options: QueueOptions) -> list[MailJob]:
        now = self._store.clock()
        rows = [self._new_mail(message, prepared, options, now) for message, prepared in mails]
        if (session := self._client.session_of(options.enqueue)) is not None:
            return self._put_within(CallerTransaction(session), rows)
        return self._announced([MailJob(record, self._client, self) for record in self._add(rows)], rows)

    def _new_mail(self, message: Any, prepared: Prepared, options: QueueOptions, now: int) -> NewMail:
        size = len(prepared.envelope.data)
        if size > self._config.max_size:
            raise MessageTooLarge(
                f"The message has {size} octets; MAIL_MAX_SIZE allows {self._config.max_size}. "
                "Send a link instead of the attachment, or raise the limit."
            )
        job = new_job(self._task, "", options.enqueue, now, current_origin())
        job = job._replace(args=self._task._encode((job.uid,), {}))
        give_up_at = max(job.run_at, now) + to_duration_ms(self._config.expires)
        return NewMail(message=message, prepared=prepared, job=job, once=options.once, give_up_at=give_up_at)

    def _add(self, rows: Sequence[NewMail]) -> list[JobRecord]:
        try:
            self._store.driver.prepare()
            try:
                return self._add_once(rows)
            except ConnectionLost:
                return self._add_once(rows)  # the same ids: what the first try may have stored is found
        except ConnectionLost as lost:
            uids = tuple(row.job.uid for row in rows)
            raise OutcomeUnknown(
                f"The connection broke while the mail was being stored, so it may or may not be accepted. {lost} "
                "Queue it again with send_later(…, uid=error.uid), which never doubles it.",
                uids=uids,
            ) from lost
        except SchemaError:
            raise
        except StoreError as error:
            raise NotAccepted(f"The mail was not accepted. {error}") from error

    def _add_once(self, rows: Sequence[NewMail]) -> list[JobRecord]:
        return self._store.change(lambda flows: self._insert(flows, rows))

    def _insert(self, flows: Flows, rows: Sequence[NewMail]) -> list[JobRecord]:
        dialect, run = self._store.driver.dialect, flows.run
        # First, since a batch may refuse them. Of a repeat the jobs are there, and are found.
        records = self._store.add_within(flows, [row.job for row in rows])
        keep = to_duration_ms(self._config.keep) + to_duration_ms(self._config.expires)
        blobs = Blobs()
        parts = [blobs.split(row.prepared) for row in rows]
        mails = [row.values(layout, keep) for row, (layout, _) in zip(rows, parts, strict=True)]
        added = {uid for (uid,) in run(mail_statements.add_mails(dialect), {"batch": batch_of(mails)})}
        for row, (layout, body) in zip(rows, parts, strict=True):
            if row.job.uid in added:
                run(mail_statements.ADD_BODY, {"id": row.job.uid, "body": body})
                if layout is not None:
                    blobs.count(layout)
        blobs.store(run)
        batch = [(row.job.uid, address, i) for row in rows for i, address in enumerate(row.envelope.recipients)]
        run(mail_statements.add_recipients(dialect), {"batch": batch_of(batch)})
        return records

    def _announced(self, jobs: list[MailJob], rows: Sequence[NewMail]) -> list[MailJob]:
        try:
            for job, row in zip(jobs, rows, strict=True):
                if job_enqueued.receivers:
                    signalling.send(job_enqueued, self._app, job=job)
                if email_queued.receivers:
                    signalling.send(email_queued, self._app, message=row.message, job=job)
        finally:
            self._client.wake()
        return jobs

    def _put_within(self, transaction: CallerTransaction, rows: Sequence[NewMail]) -> list[MailJob]:
        flows = self._store.flows(transaction.run)
        if self._client.shares_database(transaction):
            records = self._insert(flows, rows)
        elif transaction.session is None:
            raise ArgumentsError(
                "The connection given as session=… is in another database than the jobs, and a connection does not "
                "say when it has committed. Give a Session, or call send_later after the commit without session=…."
            )
        else:
            records = [record_of(row.job, 0) for row in rows]
        jobs = [MailJob(record._replace(state=JobState.PENDING.value), self._client, self) for record in records]

        def on_commit() -> None:
            stored = records if records[0].id else self._add(rows)
            for job, record in zip(jobs, stored, strict=True):
                job._become(record)
            self._announced(jobs, rows)
            if flows.effects:
                self._client.follow(flows.effects)

        transaction.after_commit(on_commit)
        return jobs

    # -- what a MailJob asks ----------------------------------------------------------------------------------------

    def job(self, job_id: int) -> MailJob:
        """The job of that number as a mail's. Raises JobNotFound."""
        record = self._client.record(job_id)
        if record.task != DELIVER:
            raise JobNotFound(f"Job {job_id} is one of {record.task!r}, not of a mail.")
        return MailJob(record, self._client, self)

    def recipients(self, uid: str) -> dict[str, RecipientState]:
        """Where each recipient of the mail stands. Raises JobNotFound."""
        self._store.driver.prepare()
        found = load_recipients(self._store.driver.read, self._store.driver.dialect, [uid])
        if uid not in found:
            raise JobNotFound("The mail was pruned after its time in MAIL_KEEP, or its transaction never committed.")
        return {state.address: state for state in found[uid]}


# ---------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMail:
    """A mail and its job as they go into the store. Times are epoch milliseconds."""

    message: Any
    prepared: Prepared
    job: NewJob
    once: bool
    give_up_at: int

    @property
    def envelope(self) -> Envelope:
        """Sender, recipients and bytes."""
        return self.prepared.envelope

    def values(self, layout: list[int | str] | None, keep: int) -> tuple[str | int | None, ...]:
        """The values of ``add_mails``."""
        envelope = self.envelope
        return (
            self.job.uid,
            envelope.message_id,
            envelope.sender,
            json.dumps([envelope.mail_options, envelope.rcpt_options]),
            int(self.once),
            len(envelope.data),
            None if layout is None else json.dumps(layout),
            self.job.created_at,
            self.give_up_at,
            self.give_up_at + keep,
        )


class Blobs:
    """The shared pieces of the mails of one transaction."""

    def __init__(self) -> None:
        self._digests: dict[int, str] = {}
        self._bytes: dict[str, bytes] = {}
        self._uses: Counter[str] = Counter()

    def split(self, prepared: Prepared) -> tuple[list[int | str] | None, bytes]:
        """The layout and the mail's own bytes; no layout where nothing can be shared."""
        written = prepared.written
        if written is None or not written.shared:
            return None, prepared.envelope.data
        layout: list[int | str] = []
        own: list[bytes] = []
        for position, segment in enumerate(written.segments):
            if position in written.shared:
                # An attachment of a thousand messages is the same object in each of them.
                digest = self._digests.get(id(segment))
                if digest is None:
                    digest = self._digests[id(segment)] = hashlib.sha256(segment).hexdigest()
                    self._bytes[digest] = segment
                layout.append(digest)
            else:
                layout.append(len(segment))
                own.append(segment)
        return layout, b"".join(own)

    def count(self, layout: list[int | str]) -> None:
        """One more mail uses the blobs of *layout*."""
        self._uses.update(part for part in layout if isinstance(part, str))

    def store(self, run: Run) -> None:
        """Write what is not there yet."""
        for digest, uses in self._uses.items():
            if not run(mail_statements.USE_BLOB, {"digest": digest, "uses": uses}):
                run(mail_statements.ADD_BLOB, {"digest": digest, "uses": uses, "bytes": self._bytes[digest]})


def joined(layout: str | None, body: bytes, blobs: Mapping[str, bytes]) -> bytes:
    """The bytes of a mail out of its own and the shared ones. Raises NotDecodable where these are missing."""
    if layout is None:
        return body
    pieces, start = [], 0
    for part in json.loads(layout):
        if isinstance(part, int):
            pieces.append(body[start : start + part])
            start += part
        elif part in blobs:
            pieces.append(blobs[part])
        else:
            raise NotDecodable(f"The mail cannot be read: the shared bytes {part!r:.80} are not stored.")
    return b"".join(pieces)


def blobs_in(layouts: Sequence[str | None]) -> Counter[str]:
    """How often each shared piece is used by these layouts."""
    return Counter(digest for layout in layouts for digest in mail_statements.hashes_in(layout))


def load_recipients(read: Run, dialect: Dialect, uids: Sequence[str]) -> dict[str, list[RecipientState]]:
    """The recipients of these mails, in order."""
    found: dict[str, list[RecipientState]] = {}
    for uid, *row in read(mail_statements.recipients(dialect), {"ids": json.dumps(uids)}):
        found.setdefault(uid, []).append(_recipient_state(*row))
    return found


def _recipient_state(
    address: str, ending: str, code: int | None, text: str | None, next_try: int | None
) -> RecipientState:
    return RecipientState(
        address=address,
        ending=None if ending == _WAITING else Ending(ending),
        code=code,
        text=text or "",
        next_try=None if next_try is None else from_ms(next_try),
    )


# ---------------------------------------------------------------- suppressed


def reopening(find_app: Callable[[], Flask | None], store: Store) -> Callable[[Run, Sequence[Row]], None]:
    """What *store* is to call with jobs that are put back into their queues: see :attr:`Store.on_retry`.

    Of the mails among them those who were not accepted wait again.
    """

    def reopen(run: Run, rows: Sequence[Row]) -> None:
        uids = [uid for _, _, _, task, uid in rows if task == DELIVER]
        app = find_app() if uids else None
        if app is None:
            return
        config = getattr(app.extensions.get("mail"), "config", None)
        if not isinstance(config, MailConfig):
            # This process sends no mail itself.
            config = MailConfig.from_mapping(app.config)
        give_up_at = store.clock() + to_duration_ms(config.expires)
        expires_at = give_up_at + to_duration_ms(config.keep)
        for uid in uids:
            run(mail_statements.REOPEN_MAIL, {"id": uid, "give_up_at": give_up_at, "expires_at": expires_at})
            run(mail_statements.REOPEN_RECIPIENTS, {"id": uid})

    return reopen


class SuppressedMails:
    """Stands behind the jobs of an app that suppresses mail: they have succeeded, without a store."""

    def __init__(self, accepted: Sequence[str], now: int, options: EnqueueOptions) -> None:
        self._accepted = tuple(accepted)
        self._record = JobRecord(
            *(0, options.uid or new_uid(now), DELIVER, options.queue or QUEUE, "async", options.priority or 0),
            *("succeeded", 0, 1, None),
            created_at=now,
            finished_at=now,
        )

    def job(self) -> MailJob:
        """The only job."""
        return MailJob(self._record, self, self)

    def recipients(self, uid: str) -> dict[str, RecipientState]:
        """All accepted."""
        return {address: RecipientState(address=address, ending=Ending.ACCEPTED) for address in self._accepted}

    def record(self, job_id: int) -> JobRecord:
        """The only record."""
        return self._record

    def wait(self, job_id: int, timeout: float | None) -> Any:
        """No recipient was refused."""
        return {}

    async def await_result(self, job_id: int, timeout: float | None) -> Any:
        """No recipient was refused."""
        return {}

    def cancel(self, job_id: int) -> bool:
        """Too late."""
        return False

    def why(self, job_id: int) -> list[Reason]:
        """It does not wait."""
        return []

    def arguments(self, job_id: int, task: str) -> Mapping[str, Any]:
        """None."""
        return {}

    def error(self, job_id: int) -> None:
        """It has succeeded."""

    def url(self, job_id: int) -> None:
        """It is in no store."""

    def tell(self, uid: str, name: str, value: Any, session: Any = None) -> None:
        """Raise JobFinished."""
        raise JobFinished("The mail was suppressed, so its job has ended and takes no notice.")

    def retry(self, job_id: int, *, following: bool = False, fresh: bool = False) -> bool:
        """It has not failed."""
        return False

    def change(self, job_id: int, **changes: Any) -> bool:
        """It does not wait."""
        return False
