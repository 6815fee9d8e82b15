"""Mail: a report that waits in the queue until the worker sends it, then many messages at once.

The server counts what arrives. Each mail must be there once.
"""

from __future__ import annotations

import time
from collections import Counter
from email import message_from_bytes, policy

from flask_taskworker import JobState
from flask_taskworker.mail import Ending

from .. import index
from ..messages import ATTACHED, OWNER, mail, make_report, reader
from ..stage import Stage
from ..tasks import send_batch

TIMEOUT = 60


def run(stage: Stage) -> str:
    number = 2_000 if stage.limit is None else 100
    mail_report(stage)
    rate = mail_batch(stage, number)
    check_attachments(stage)
    return f"the report was mailed from the queue, then {number:,} different messages: {rate:,.0f} mails/s"


def mail_report(stage: Stage) -> None:
    """Durable from here on: were the server down, the worker would try again for days."""
    report = make_report(stage.figures)
    queued = time.perf_counter()
    job = mail.send_later(report)
    job.result(timeout=TIMEOUT)
    milliseconds = (stage.inbox.last_arrival - queued) * 1000
    stage.check("the job of the queued report succeeded", job.refresh().state is JobState.SUCCEEDED, job)
    endings = {address: state.ending for address, state in job.recipients.items()}
    stage.check("the server took the report", endings == {OWNER: Ending.ACCEPTED}, endings)
    arrived = dict(stage.inbox.arrived)
    stage.check("the report arrived exactly once", arrived == {(report.msgId, OWNER): 1}, arrived)
    stage.tell("report", f"mailed from the queue to {OWNER}, arrived after {milliseconds:.0f} ms")


def mail_batch(stage: Stage, number: int) -> float:
    """Mails a second, from the call that enqueues the job to the last arrival."""
    before = stage.inbox.arrived.copy()
    begun = time.perf_counter()
    job = send_batch.enqueue(number)
    stage.screen.follow("mail", number, lambda: progress(stage, number, before.total()))
    sent = job.result(timeout=TIMEOUT)
    seconds = stage.inbox.last_arrival - begun
    check_batch(stage, number, sent, stage.inbox.arrived - before)
    stage.tell("mails", f"{number:,} different messages in {seconds:.2f} s, {number / seconds:,.0f} a second")
    return number / seconds


def progress(stage: Stage, number: int, before: int) -> tuple[int, str]:
    """How many of the batch have arrived. There is no more to come when the job has ended, whatever came of it."""
    arrived = stage.inbox.count - before
    return number if stage.tally.ended(send_batch) else arrived, "arrived"


def check_batch(stage: Stage, number: int, sent: dict[str, str], arrived: Counter[tuple[str, str]]) -> None:
    readers = {reader(n) for n in range(1, number + 1)}
    all_sent = len(sent) == number and set(sent.values()) == readers
    stage.check("the server took each mail of the batch", all_sent, f"{len(sent):,} of {number:,}")
    once = arrived == Counter(sent.items())
    stage.check("each mail of the batch arrived exactly once", once, f"{arrived.total():,} of {len(sent):,}")


def check_attachments(stage: Stage) -> None:
    """The report has one, and so has the first of the batch."""
    stage.check("two mails had an attachment", set(stage.inbox.with_attachment) == {OWNER, reader(1)})
    for recipient, content in stage.inbox.with_attachment.items():
        attached = list(message_from_bytes(content, policy=policy.default).iter_attachments())
        found = [(part.get_filename(), part.get_payload(decode=True)) for part in attached]
        intact = found == [(ATTACHED, index.as_csv().encode())]
        stage.check(f"the attachment for {recipient} is intact", intact, [name for name, _ in found])
