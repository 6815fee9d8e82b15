"""Which reply answers which command, and what they come to."""

from __future__ import annotations

import pytest
from aiosmtplib.response import SMTPResponse

from flask_taskworker.mail.envelope import Envelope, Reply
from flask_taskworker.mail.errors import OutOfStep, RecipientsRefused, SenderRefused, ServerDisconnected
from flask_taskworker.mail.smtp.transaction import DATA, RSET, Command, Transaction, flights, reply_of

MAIL = Command(b"MAIL FROM:<a@x.org>\r\n", "MAIL")


def rcpt(address: str) -> Command:
    return Command(f"RCPT TO:<{address}>\r\n".encode(), "RCPT", address)


def transaction(*replies: str, addresses: str = "bc") -> Transaction:
    """A transaction after these replies to MAIL, one RCPT for each of *addresses*, and DATA."""
    made = Transaction(Envelope(sender="a@x.org", recipients=tuple(addresses), data=b""), b"")
    made.note([MAIL, *map(rcpt, addresses), DATA], [SMTPResponse(int(reply[:3]), reply[4:]) for reply in replies])
    return made


def test_message_may_follow_when_the_server_waits_for_it() -> None:
    made = transaction("250 ok", "250 ok", "550 no", "354 go")
    assert (made.accepted, made.refused, made.left, made.error()) == (["b"], {"c": Reply(550, "no")}, (), None)


@pytest.mark.parametrize("replies", [("354 go",), ("250 ok", "354 go"), ("250 ok", "250 ok", "250 ok", "250 ok")])
def test_reply_of_another_class_is_out_of_step(replies: tuple[str, ...]) -> None:
    with pytest.raises(OutOfStep):
        transaction(*replies)


def test_recipient_that_is_accepted_without_a_sender_is_out_of_step() -> None:
    with pytest.raises(OutOfStep):
        transaction("550 no", "250 ok")


def test_too_many_recipients_are_left_and_not_refused() -> None:
    made = transaction("250 ok", "250 ok", "452 4.5.3 enough", "354 go")
    assert (made.refused, made.left, made.is_full) == ({}, ("c",), True)
    assert transaction("250 ok", "452 4.5.3 enough").refused == {"b": Reply(452, "4.5.3 enough")}


def test_unasked_recipients_are_left() -> None:
    made = transaction("250 ok", "550 no", addresses="b")
    made.envelope = Envelope(sender="a@x.org", recipients=("b", "c"), data=b"")
    error = made.error()
    assert isinstance(error, RecipientsRefused)
    assert error.left == ("c",)


def test_authentication_required_says_nothing_about_the_mail() -> None:
    error = transaction("530 5.7.0 authentication required").error()
    assert isinstance(error, SenderRefused)
    assert error.of_transport


def test_server_that_cannot_reset_is_left() -> None:
    made = Transaction(Envelope(sender="a@x.org", recipients=("b",), data=b""), b"")
    commands = [RSET, MAIL, rcpt("b"), DATA]
    replies = [SMTPResponse(code, "") for code in (451, 250, 250, 354)]
    made.note(commands, replies)
    assert made.is_useless
    assert not made.is_open
    assert isinstance(made.error(), ServerDisconnected)


def test_nothing_is_an_answer_from_the_farewell_on() -> None:
    made = transaction("250 ok", "421 bye", "250 ok", "354 go")
    assert (made.accepted, made.left, made.is_open) == ([], ("b", "c"), False)


@pytest.mark.parametrize(
    ("replies", "is_out_of_turn"),
    [
        (("503 5.5.1 not now",), True),
        (("250 ok", "554 5.5.0 improper pipelining"), True),
        (("250 ok", "250 ok", "250 ok", "503 not now"), True),
        (("450 4.7.1 later", "503 5.5.1 need MAIL", "503 5.5.1 need MAIL", "503 5.5.1 need RCPT"), False),
        (("250 ok", "550 no", "550 no", "503 5.5.1 need RCPT"), False),
    ],
)
def test_bad_sequence_that_follows_from_a_refusal_is_no_objection_to_the_order(
    replies: tuple[str, ...], is_out_of_turn: bool
) -> None:
    assert transaction(*replies).is_out_of_turn == is_out_of_turn


def test_recipients_are_named_in_groups_of_a_hundred() -> None:
    envelope = Envelope(sender="a@x.org", recipients=tuple(map(str, range(250))), data=b"")
    groups = flights(envelope, MAIL, list(map(rcpt, envelope.recipients)), together=True)
    assert [len(group) for group in groups] == [101, 100, 51]
    assert len(flights(envelope, MAIL, list(map(rcpt, envelope.recipients)), together=False)) == 252


def test_reply_is_text_that_can_be_stored() -> None:
    assert reply_of(SMTPResponse(550, "bo\udcee\0te\n\u00e9")) == Reply(550, "bo\ufffd\ufffdte\n\u00e9")
