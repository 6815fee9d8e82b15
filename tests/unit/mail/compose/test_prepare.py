"""What is wrong with a message is found before any connection: a break in any field, an address, a missing one."""

from __future__ import annotations

import email
from collections.abc import Callable
from email.header import Header
from typing import Any

import pytest

from flask_taskworker.mail import Attachment, BadHeaderError, Message
from flask_taskworker.mail.compose.prepare import prepare
from flask_taskworker.mail.errors import BadAddressError, MissingRecipients, MissingSender

Make = Callable[..., Message]

EVIL = "Bcc: evil@evil.org"
BREAKS = ["\r\n", "\n", "\r", "\r\n ", "\n\t", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
PAYLOADS = [f"x{line_break}{EVIL}" for line_break in BREAKS] + [
    "=?utf-8?q?x=0D=0ABcc:_evil@evil.org?=",
    "=?utf-8?b?eA0KQmNjOiBldmlsQGV2aWwub3Jn?=",
    "=?utf-8?q?x=0D?= =?utf-8?q?=0ABcc:_evil@evil.org?=",
    "=?utf-8?q?x?=\r\n =?utf-8?q?=0ABcc:_evil@evil.org?=",
    "x\0" + EVIL,
]


def attachment(**fields: Any) -> dict[str, Any]:
    return {"attachments": [Attachment(**{"filename": "a.txt", "data": b"x", **fields})]}


FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "subject": lambda p: {"subject": p},
    "sender": lambda p: {"sender": f"a@x.org{p}"},
    "sender's name": lambda p: {"sender": (p, "a@x.org")},
    "recipient": lambda p: {"recipients": [f"a@x.org{p}"]},
    "recipient's name": lambda p: {"recipients": [(p, "a@x.org")]},
    "recipient with a name": lambda p: {"recipients": [f"{p} <a@x.org>"]},
    "cc": lambda p: {"cc": [f"a@x.org{p}"]},
    "cc's name": lambda p: {"cc": [(p, "a@x.org")]},
    "bcc": lambda p: {"bcc": [f"a@x.org{p}"]},
    "bcc's name": lambda p: {"bcc": [(p, "a@x.org")]},
    "reply-to": lambda p: {"reply_to": f"a@x.org{p}"},
    "reply-to's name": lambda p: {"reply_to": (p, "a@x.org")},
    "header name": lambda p: {"extra_headers": {p: "x"}},
    "header value": lambda p: {"extra_headers": {"X-A": p}},
    "attachment's file name": lambda p: attachment(filename=p),
    "attachment's content type": lambda p: attachment(content_type=f"text/plain{p}"),
    "attachment's disposition": lambda p: attachment(disposition=p),
    "attachment's header name": lambda p: attachment(headers={p: "x"}),
    "attachment's header value": lambda p: attachment(headers={"X-A": p}),
    "content id": lambda p: attachment(headers={"Content-ID": f"<{p}>"}),
    "mail option": lambda p: {"mail_options": [p]},
    "rcpt option": lambda p: {"rcpt_options": [p]},
    "alternative": lambda p: {"alts": {p: "x"}},
    "charset": lambda p: {"charset": p},
}


def header_names(message: Message) -> list[str]:
    return [name.lower() for name in email.message_from_bytes(prepare(message, now=0.0).envelope.data)]


@pytest.mark.parametrize("field", FIELDS)
def test_break_in_field_is_refused_or_stays_in_its_header(field: str, make_message: Make) -> None:
    clean = [*header_names(make_message()), "cc", "reply-to", "x-a"]
    for payload in PAYLOADS:
        message = make_message(**FIELDS[field](payload))
        try:
            prepared = prepare(message, now=0.0)
        except BadHeaderError:
            continue
        parsed = email.message_from_bytes(prepared.envelope.data)
        names = [name.lower() for name in parsed]
        assert len(names) == len(set(names)), payload
        assert set(names) <= {*clean, payload.lower()}, payload
        assert all("bcc" not in part for part in parsed.walk()), payload
        assert not any(line.lower().startswith(b"bcc") for line in prepared.envelope.data.splitlines()), payload
        assert all(address.endswith("@x.org") or "example.com" in address for address in prepared.envelope.recipients)


def test_there_are_enough_payloads() -> None:
    assert len(FIELDS) * len(PAYLOADS) >= 340


@pytest.mark.parametrize("field", [name for name in FIELDS if name != "subject"])
def test_raw_break_is_refused(field: str, make_message: Make) -> None:
    for line_break in BREAKS:
        with pytest.raises(BadHeaderError):
            prepare(make_message(**FIELDS[field](f"x{line_break}{EVIL}")), now=0.0)


@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
def test_return_path_with_break_is_refused(payload: str, make_message: Make) -> None:
    with pytest.raises(BadHeaderError):
        prepare(make_message(), now=0.0, envelope_from=f"a@x.org{payload}")


@pytest.mark.parametrize("field", FIELDS)
def test_message_text_never_has_a_header_of_the_attacker(field: str, make_message: Make) -> None:
    for payload in PAYLOADS:
        if field == "charset":
            continue  # an unknown charset cannot be written at all
        parsed = email.message_from_bytes(make_message(**FIELDS[field](payload)).as_bytes())
        assert all("bcc" not in part for part in parsed.walk()), payload


def test_error_says_which_field_and_what_to_do(make_message: Make) -> None:
    with pytest.raises(BadHeaderError, match=r"extra_headers\['X-A'\] holds the character '\\r' at position 1"):
        prepare(make_message(extra_headers={"X-A": "a\r\nb"}), now=0.0)
    with pytest.raises(ValueError, match="Use bcc="):
        prepare(make_message(extra_headers={"Bcc": "a@x.org"}), now=0.0)


def test_header_object_may_fold_itself(make_message: Make) -> None:
    message = make_message(extra_headers={"X-A": Header("\u00fc" * 100, "utf-8")})
    assert (
        str(
            email.header.make_header(
                email.header.decode_header(email.message_from_bytes(prepare(message, now=0.0).envelope.data)["X-A"])
            )
        )
        == "\u00fc" * 100
    )


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"recipients": []}, MissingRecipients),
        ({"sender": ""}, MissingSender),
        ({"recipients": "a@x.org"}, BadAddressError),
        ({"cc": "a@x.org"}, BadAddressError),
        ({"bcc": "a@x.org"}, BadAddressError),
        ({"reply_to": ["a@x.org", "b"]}, BadAddressError),
        ({"recipients": ["a@x.org, b@y.org"]}, BadAddressError),
        ({"recipients": [""]}, BadAddressError),
        ({"recipients": [None]}, BadAddressError),
        ({"sender": "noaddress"}, BadAddressError),
    ],
    ids=str,
)
def test_unusable_message_is_refused(fields: dict[str, Any], error: type[Exception], make_message: Make) -> None:
    message = make_message()
    for name, value in fields.items():
        setattr(message, name, value)
    with pytest.raises(error):
        prepare(message, now=0.0)


def test_missing_recipients_and_sender_are_assertion_errors_as_in_flask_mail(make_message: Make) -> None:
    with pytest.raises(AssertionError, match="No recipients have been added"):
        prepare(make_message(recipients=[]), now=0.0)
    message = make_message()
    message.sender = None
    with pytest.raises(AssertionError, match="does not specify a sender"):
        prepare(message, now=0.0)


def test_envelope_has_each_address_once_and_bare(make_message: Make) -> None:
    envelope = prepare(
        make_message(
            sender="Me <me@x.org>", recipients=["A <a@x.org>", "b@b\u00fccher.example"], cc=["a@x.org"], bcc=["c@x.org"]
        ),
        now=0.0,
    ).envelope
    assert envelope.sender == "me@x.org"
    assert envelope.recipients == ("a@x.org", "b@xn--bcher-kva.example", "c@x.org")


def test_null_return_path_can_be_asked_for(make_message: Make) -> None:
    assert prepare(make_message(), now=0.0, envelope_from="<>").envelope.sender == ""
    assert prepare(make_message(), now=0.0, envelope_from=("B", "bounce@x.org")).envelope.sender == "bounce@x.org"
