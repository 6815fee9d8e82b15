"""Queued mails as the worker's loop sees them: loading them, judging a try, and recording it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ...client.threads import ThreadPool
from ...core.clock import from_ms, to_ms
from ...errors import JobNotFound, NotDecodable, StoreError
from ...store.driver import Link, Run
from ...store.sql import Store
from ...store.statements import mails as mail_statements
from ...store.statements.jobs import Dialect, batch_of
from ...worker.thread_bridge import TimedTask
from ..envelope import Ending, Envelope, Reply, replies_in, reply_to
from ..errors import MailError
from ..smtp.connection import Receipt
from .queue import RecipientState, blobs_in, joined, load_recipients

T = TypeVar("T")

_GATHERING_S = 0.003
_Asked = tuple[str, Any, asyncio.Future[Any]]
_TOLD = (StoreError, NotDecodable)
"""Answers that are raised where the question was asked."""


def verdicts(envelope: Envelope, outcome: Receipt | Exception) -> dict[str, Reply]:
    """What a try came to for each recipient of *envelope*, but for those that the server wants in another mail."""
    if isinstance(outcome, Receipt):
        accepted = dict.fromkeys(outcome.accepted, outcome.reply)
        known = {**accepted, **outcome.refused}
        return {address: known[address] for address in envelope.recipients if address in known}
    error = outcome if isinstance(outcome, MailError) else MailError(str(outcome))
    known, rest = replies_in(error), reply_to(error)
    return {address: known.get(address, rest) for address in envelope.recipients}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMail:
    """A queued mail as it was loaded, and as a try leaves it. Times are epoch milliseconds."""

    envelope: Envelope
    id: str
    once: bool
    phase: str | None
    tries: int
    give_up_at: int
    finished_at: int | None
    recipients: tuple[RecipientState, ...]
    next_try_ms: int = 0

    @property
    def open(self) -> tuple[str, ...]:
        """The addresses that are to be tried."""
        return tuple(state.address for state in self.recipients if self._is_open(state))

    def _is_open(self, state: RecipientState) -> bool:
        return state.ending in (None, Ending.DEFERRED) or (state.ending is Ending.UNKNOWN and not self.once)

    @property
    def refused(self) -> dict[str, str]:
        """What the server said to those who were not accepted."""
        return {state.address: str(state) for state in self.recipients if state.ending is not Ending.ACCEPTED}

    @property
    def is_accepted_by_anybody(self) -> bool:
        """Whether at least one recipient was accepted."""
        return any(state.ending is Ending.ACCEPTED for state in self.recipients)

    def after(self, news: Mapping[str, Reply], now: int, again_at: int) -> StoredMail:
        """The mail after a try that came to *news*: open recipients are tried again, or given up if it is late."""
        is_late = now >= self.give_up_at
        states = [self._with_reply(state, news.get(state.address)) for state in self.recipients]
        is_open = any(map(self._is_open, states))
        next_try = min(again_at, self.give_up_at) if is_open else 0
        if is_open:
            states = [self._left_open(state, next_try, is_late) for state in states]
        return StoredMail(
            envelope=self.envelope,
            id=self.id,
            once=self.once,
            phase=None,
            tries=self.tries + 1,
            give_up_at=self.give_up_at,
            finished_at=None if is_open and not is_late else now,
            recipients=tuple(states),
            next_try_ms=next_try,
        )

    @staticmethod
    def _with_reply(state: RecipientState, reply: Reply | None) -> RecipientState:
        if reply is None:
            return state
        return RecipientState(address=state.address, ending=reply.ending, code=reply.code, text=reply.text)

    def _left_open(self, state: RecipientState, next_try: int, is_late: bool) -> RecipientState:
        if not self._is_open(state):
            return state
        if not is_late:
            return replace(state, next_try=from_ms(next_try))
        if state.ending is Ending.UNKNOWN:
            return state
        text = f"given up after MAIL_EXPIRES; the last reply was: {state.text}"
        return replace(state, ending=Ending.REJECTED, text=text)

    def settlement(self, news: Mapping[str, Reply], keep_ms: int) -> Settlement:
        """What the store must learn of the try."""
        changed = [state for state in self.recipients if state.address in news]
        expires_at = None if self.finished_at is None else self.finished_at + keep_ms
        return Settlement(self.id, self.phase, self.finished_at, expires_at, changed)


class Settlement(NamedTuple):
    """What a try of a mail came to, as it goes into the store."""

    mail_id: str
    phase: str | None
    finished_at: int | None
    expires_at: int | None
    recipients: Sequence[RecipientState]


class MailStore:
    """Queued mails as one worker's loop sees them. What many jobs ask for at once goes to the database in one hop."""

    def __init__(self, store: Store, is_busy: Callable[[], bool]) -> None:
        self._store = store
        self.is_busy = is_busy
        """Whether other mails are on their way, which will have something to ask, too."""
        self._thread = ThreadPool(1, "taskworker-mail")
        self._connection: Link | None = None
        self._to_load: list[_Asked] = []
        self._to_note: list[_Asked] = []
        self._bridge: asyncio.Task[None] | None = None

    async def load(self, mail_id: str) -> StoredMail:
        """One mail. Raises JobNotFound, StoreError; NotDecodable where what is stored cannot be sent."""
        mail: StoredMail | None = await self._ask("load", mail_id)
        if mail is None:
            raise JobNotFound(f"The mail {mail_id} is not in the store any more: it was pruned after MAIL_KEEP.")
        return mail

    async def settle(self, settlement: Settlement) -> None:
        """Record a try. Raises StoreError."""
        await self._ask("settle", settlement)

    async def enter_dot(self, mail_id: str) -> bool:
        """Note that the message is about to go out; False if that was noted before. Raises StoreError."""
        entered: bool = await self._ask("dot", mail_id)
        return entered

    async def _ask(self, what: str, subject: Any) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        (self._to_load if what == "load" else self._to_note).append((what, subject, answer))
        if self._bridge is None or self._bridge.done():
            self._bridge = TimedTask(self._work_off(), loop=asyncio.get_running_loop(), name="taskworker-mail-hop")
        return await answer

    async def _work_off(self) -> None:
        # A hop costs more than what it carries: so a moment's wait for company; others gather while one is under way.
        while self._to_note or self._to_load:
            if self.is_busy():
                await asyncio.sleep(_GATHERING_S)
            # What is to be noted first: messages may wait for that.
            batch = self._to_note or self._to_load
            if self._to_note:
                self._to_note = []
            else:
                self._to_load = []
            try:
                answers = await _in(self._thread, partial(self._serve, batch))
            except StoreError as error:
                answers = [error] * len(batch)
            for (_, _, answer), value in zip(batch, answers, strict=True):
                if not answer.done():
                    answer.set_exception(value) if isinstance(value, _TOLD) else answer.set_result(value)

    def _serve(self, batch: Sequence[tuple[str, Any, object]]) -> list[Any]:
        wanted = [subject for what, subject, _ in batch if what == "load"]
        loaded = self._load(wanted) if wanted else {}
        settlements = [subject for what, subject, _ in batch if what == "settle"]
        if settlements:
            self._settle(settlements)
        return [loaded.get(s) if what == "load" else what == "dot" and self._enter_dot(s) for what, s, _ in batch]

    def _link(self) -> Link:
        if self._connection is None:
            self._store.driver.prepare()
            self._connection = self._store.driver.connect_light()
        return self._connection

    def _load(self, ids: Sequence[str]) -> dict[str, StoredMail | NotDecodable]:
        return load_mails(self._link().read, self._store.driver.dialect, ids)

    def _settle(self, settlements: Sequence[Settlement]) -> None:
        # Not durable by itself: the end of the job, committed next, makes it so. Recipients first: if the process
        # dies in between, a mail all of whose recipients are decided is not sent again.
        write, dialect = self._link().write, self._store.driver.dialect
        recipients = [
            (s.mail_id, r.address, str(r.ending), r.code, r.text[:2000], r.next_try and to_ms(r.next_try))
            for s in settlements
            for r in s.recipients
        ]
        mails = [(s.mail_id, s.phase, s.finished_at, s.expires_at) for s in settlements]
        write(mail_statements.settle_recipients(dialect), {"batch": batch_of(recipients)})
        write(mail_statements.settle_mails(dialect), {"batch": batch_of(mails)})

    def _enter_dot(self, mail_id: str) -> bool:
        # Over the driver: this must have reached the disk before the message leaves.
        return bool(self._store.driver.write(mail_statements.ENTER_DOT, {"id": mail_id}))

    def close(self) -> None:
        """Close the connection and let the thread end."""
        if self._connection is not None:
            self._thread.submit(self._connection.close)
        self._thread.shutdown()


def load_mails(read: Run, dialect: Dialect, ids: Sequence[str]) -> dict[str, StoredMail | NotDecodable]:
    """These mails with their bytes and recipients, by id, as far as they are there; or why one cannot be read."""
    rows = read(mail_statements.mails(dialect), {"ids": json.dumps(ids)})
    recipients = load_recipients(read, dialect, ids)
    digests = list(blobs_in([row[7] for row in rows]))
    blobs: dict[str, bytes] = {}
    if digests:
        blobs.update(read(mail_statements.blobs(dialect), {"hashes": json.dumps(digests)}))
    found: dict[str, StoredMail | NotDecodable] = {}
    for row in rows:
        try:
            found[row[0]] = _stored(row, blobs, recipients.get(row[0], []))
        except NotDecodable as error:
            found[row[0]] = error
        except ValueError as error:
            found[row[0]] = NotDecodable(f"The mail cannot be read: {error}.")
    return found


def _stored(row: Sequence[Any], shared: Mapping[str, bytes], recipients: Sequence[RecipientState]) -> StoredMail:
    mail_id, message_id, sender, options, once, phase, tries, layout, give_up_at, finished_at, body = row
    mail_options, rcpt_options = map(tuple, json.loads(options))
    envelope = Envelope(
        sender=sender,
        recipients=tuple(state.address for state in recipients),
        data=joined(layout, body, shared),
        message_id=message_id,
        mail_options=mail_options,
        rcpt_options=rcpt_options,
    )
    return StoredMail(
        envelope=envelope,
        id=mail_id,
        once=bool(once),
        phase=phase,
        tries=tries,
        give_up_at=give_up_at,
        finished_at=finished_at,
        recipients=tuple(recipients),
    )


async def _in(threads: ThreadPool, call: Callable[[], T]) -> T:
    future: Future[T] = threads.submit(call)
    return await asyncio.wrap_future(future)
