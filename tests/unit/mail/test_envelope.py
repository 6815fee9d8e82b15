"""What a server's reply means for a recipient."""

from __future__ import annotations

import pytest

from flask_taskworker.mail.envelope import Ending, Envelope, Reply, failed_result, reply_to
from flask_taskworker.mail.errors import DataRefused, DeliveryUnknown, MailError, ServerDisconnected

ENVELOPE = Envelope(sender="a@x.org", recipients=("b@x.org", "c@x.org"), data=b"", message_id="<1@x.org>")


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        (250, Ending.ACCEPTED),
        (251, Ending.ACCEPTED),
        (450, Ending.DEFERRED),
        (550, Ending.REJECTED),
        (-1, Ending.DEFERRED),
    ],
)
def test_code_decides_what_became_of_a_recipient(code: int, ending: Ending) -> None:
    assert Reply(code, "words").ending is ending


def test_lost_reply_to_the_final_dot_leaves_the_outcome_open() -> None:
    assert reply_to(DeliveryUnknown()).ending is Ending.UNKNOWN


def test_broken_connection_defers_and_a_wrong_message_is_rejected() -> None:
    assert reply_to(ServerDisconnected()).ending is Ending.DEFERRED
    assert reply_to(MailError("no")).ending is Ending.REJECTED


def test_refused_data_is_the_reply_to_each_recipient() -> None:
    result = failed_result(ENVELOPE, DataRefused(554, "spam"))
    assert {address: str(reply) for address, reply in result.refused.items()} == dict.fromkeys(
        ENVELOPE.recipients, "554 spam"
    )
    assert not result


def test_addresses_outside_of_ascii_need_smtputf8() -> None:
    assert not ENVELOPE.needs_smtputf8
    assert Envelope(sender="a@x.org", recipients=("ü@x.org",), data=b"").needs_smtputf8
