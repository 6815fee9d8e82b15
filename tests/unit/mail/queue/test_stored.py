"""What a try of a queued mail comes to, for each recipient and for the mail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flask_taskworker.mail.envelope import Ending, Envelope, Reply
from flask_taskworker.mail.errors import DataRefused, DeliveryUnknown, RecipientsRefused, ServerDisconnected
from flask_taskworker.mail.queue.queue import RecipientState
from flask_taskworker.mail.queue.stored import StoredMail, verdicts
from flask_taskworker.mail.smtp.connection import Receipt

ENVELOPE = Envelope(sender="a@x.org", recipients=("b", "c"), data=b"")
OK = Reply(250, "queued")
BUSY = Reply(451, "later")
NO = Reply(550, "no such user")
LOST = Reply(-1, "lost", Ending.UNKNOWN)


def stored(**fields: Any) -> StoredMail:
    states = tuple(RecipientState(address=address, ending=None, code=None, text="") for address in "bc")
    defaults: dict[str, Any] = {"id": "1", "once": False, "phase": None, "tries": 0, "give_up_at": 1_000}
    return StoredMail(**{**defaults, "envelope": ENVELOPE, "finished_at": None, "recipients": states, **fields})


def endings(mail: StoredMail) -> list[Ending | None]:
    return [state.ending for state in mail.recipients]


def test_recipients_that_the_server_wants_in_another_mail_have_no_verdict() -> None:
    assert verdicts(ENVELOPE, Receipt(accepted=["b"], refused={}, reply=OK, left=["c"])) == {"b": OK}
    assert verdicts(ENVELOPE, Receipt(accepted=["b"], refused={"c": NO}, reply=OK)) == {"b": OK, "c": NO}


def test_error_is_the_verdict_of_everyone_without_a_reply_of_their_own() -> None:
    assert verdicts(ENVELOPE, DataRefused(554, "spam")) == dict.fromkeys("bc", Reply(554, "spam"))
    known = verdicts(ENVELOPE, RecipientsRefused({"b": (550, "no such user")}))
    assert (known["b"], known["c"].ending) == (NO, Ending.DEFERRED)
    broken = ServerDisconnected()
    broken.refused = {"b": NO}
    found = verdicts(ENVELOPE, broken)
    assert (found["b"], found["c"].ending) == (NO, Ending.DEFERRED)
    assert {reply.ending for reply in verdicts(ENVELOPE, DeliveryUnknown()).values()} == {Ending.UNKNOWN}


def test_only_the_deferred_are_tried_again() -> None:
    mail = stored().after({"b": OK, "c": BUSY}, 100, 200)
    assert (endings(mail), mail.open) == ([Ending.ACCEPTED, Ending.DEFERRED], ("c",))
    assert (mail.finished_at, mail.next_try_ms, mail.tries, mail.is_accepted_by_anybody) == (None, 200, 1, True)


def test_mail_ends_with_its_last_recipient() -> None:
    mail = stored().after({"b": OK, "c": NO}, 100, 200)
    assert (mail.finished_at, mail.open, mail.next_try_ms) == (100, (), 0)
    assert mail.refused == {"c": 'rejected 550 "no such user"'}


def test_unknown_delivery_is_tried_again_unless_the_mail_may_go_only_once() -> None:
    assert stored().after({"b": OK, "c": LOST}, 100, 200).open == ("c",)
    once = stored(once=True).after({"b": OK, "c": LOST}, 100, 200)
    assert (once.open, once.finished_at) == ((), 100)


def test_mail_is_given_up_when_it_is_late_and_what_is_unknown_stays_so() -> None:
    assert stored().after({"b": OK, "c": BUSY}, 999, 5_000).next_try_ms == 1_000
    late = stored().after({"b": BUSY, "c": LOST}, 1_000, 2_000)
    assert (endings(late), late.finished_at) == ([Ending.REJECTED, Ending.UNKNOWN], 1_000)
    assert "given up after MAIL_EXPIRES; the last reply was: later" in late.refused["b"]


def test_store_learns_what_has_changed_and_how_long_to_keep_the_mail() -> None:
    news = {"c": NO}
    mail = replace(stored(), recipients=stored().after({"b": OK}, 50, 60).recipients).after(news, 100, 0)
    settlement = mail.settlement(news, 7)
    assert ([state.address for state in settlement.recipients], settlement.finished_at) == (["c"], 100)
    assert settlement.expires_at == 107
    assert stored().after({"b": BUSY}, 100, 200).settlement({"b": BUSY}, 7).expires_at is None
