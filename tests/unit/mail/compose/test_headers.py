"""Header fields are written by their grammar, and those that describe the mail are not for users to write."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable
from typing import Any

import pytest

from flask_taskworker.mail import BadAddressError, BadHeaderError, Message
from flask_taskworker.mail.compose.headers import parameter, split_addresses
from flask_taskworker.mail.compose.prepare import prepare

Make = Callable[..., Message]


def sent(message: Message) -> Any:
    return email.message_from_bytes(prepare(message, now=0.0).envelope.data, policy=email.policy.default)


def raw(message: Message, name: str) -> str:
    return str(email.message_from_bytes(prepare(message, now=0.0).envelope.data)[name])


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("Sender", "B\u00fcro <office@example.org>", "<office@example.org>"),
        ("Disposition-Notification-To", "J\u00fcrgen M. <j@example.org>, Z\u00f6e <z@x.org>", "<z@x.org>"),
        ("List-Id", "Gr\u00fc\u00dfe <news.example.org>", "<news.example.org>"),
        ("X-Own", "\u00dc <a@b.org> and \u00f6", "<a@b.org>"),
    ],
)
def test_what_stands_in_angle_brackets_is_never_encoded(name: str, value: str, kept: str, make_message: Make) -> None:
    message = make_message(extra_headers={name: value})
    assert kept in raw(message, name)
    assert str(sent(message)[name]) == value


@pytest.mark.parametrize("name", ["In-Reply-To", "References", "List-Unsubscribe", "Date"])
def test_id_or_link_beyond_ascii_is_refused_by_name(name: str, make_message: Make) -> None:
    with pytest.raises(BadHeaderError, match=name):
        prepare(make_message(extra_headers={name: "<https://example.org/\u00fc>"}), now=0.0)


@pytest.mark.parametrize("name", ["Content-Type", "mime-version", "Content-Transfer-Encoding", "Bcc"])
def test_header_that_describes_the_mail_is_refused_by_name(name: str, make_message: Make) -> None:
    with pytest.raises(BadHeaderError, match=rf"extra_headers holds {name}"):
        prepare(make_message(extra_headers={name: "x"}), now=0.0)


def test_header_without_a_value_is_left_out(make_message: Make) -> None:
    message = sent(make_message(extra_headers={"X-A": None, "X-B": 1, "X-C": ""}))
    assert (message["X-A"], message["X-B"], message["X-C"]) == (None, "1", "")


def test_several_reply_addresses_are_a_list(make_message: Make) -> None:
    message = sent(make_message(reply_to=["b@x.org", ("D\u00f6, J.", "d@x.org")]))
    assert [str(a) for a in message["Reply-To"].addresses] == ["b@x.org", '"D\u00f6, J." <d@x.org>']
    assert len(sent(make_message(reply_to="Support, Team <s@x.org>"))["Reply-To"].addresses) == 1


NAMES = [
    "Support @ Example, Inc.",
    "A <B> C",
    'Ada "Countess" L',
    "Back\\slash",
    "a@b.example",
    "x: y; z",
    "\U0001f680",
]


@pytest.mark.parametrize("name", NAMES)
def test_name_of_a_pair_is_never_searched_for_addresses(name: str, make_message: Make) -> None:
    message = sent(make_message(sender=(name, "a@x.org"), recipients=[(name, "b@x.org")]))
    assert [a.display_name for a in (*message["From"].addresses, *message["To"].addresses)] == [name, name]


@pytest.mark.parametrize("given", ["<u@x.org><evil@y.org>", "a<b@x.org> <c@x.org>", "a@x.org, B <b@x.org>"])
def test_text_that_holds_two_addresses_is_refused(given: str, make_message: Make) -> None:
    with pytest.raises(BadAddressError):
        prepare(make_message(recipients=[given]), now=0.0)


def test_list_of_two_addresses_is_not_a_pair(make_message: Make) -> None:
    with pytest.raises(BadAddressError, match="two addresses"):
        prepare(make_message(recipients=[["a@x.org", "b@x.org"]]), now=0.0)


def test_one_mailbox_given_twice_gets_one_copy(make_message: Make) -> None:
    message = make_message(recipients=["a@X.org", "Ada <a@x.org>"], cc=["a@x.ORG", "A@x.org"], bcc=[("", "a@x.org")])
    assert prepare(message, now=0.0).envelope.recipients == ("a@X.org", "A@x.org")


def test_dots_that_the_grammar_forbids_are_suggested_in_quotes(make_message: Make) -> None:
    with pytest.raises(BadAddressError, match=r"'\"a\.\.b\"@docomo\.example'"):
        prepare(make_message(recipients=["a..b@docomo.example"]), now=0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20, "today"])
def test_date_that_is_none_is_refused(value: Any, make_message: Make) -> None:
    with pytest.raises(BadHeaderError, match="date is"):
        prepare(make_message(date=value), now=0.0)


def test_bounces_go_where_the_message_says(make_message: Make) -> None:
    assert prepare(make_message(envelope_from="b+1@x.org"), now=0.0).envelope.sender == "b+1@x.org"
    assert prepare(make_message(envelope_from="<>"), now=0.0).envelope.sender == ""
    assert prepare(make_message(envelope_from="<>"), now=0.0, envelope_from="c@x.org").envelope.sender == "c@x.org"


@pytest.mark.parametrize(
    "name", ["\u00fc.pdf", "Rechnung M\u00e4rz \u2013 " * 5 + ".pdf", "\u65e5\u672c\u8a9e" * 40 + ".txt"]
)
def test_file_name_of_any_length_arrives_whole(name: str, make_message: Make) -> None:
    message = make_message()
    message.attach(name, "application/pdf", b"x")
    data = prepare(message, now=0.0).envelope.data
    assert max(map(len, data.split(b"\r\n"))) <= 78
    part = list(email.message_from_bytes(data, policy=email.policy.default).walk())[-1]
    assert (part.get_filename() or "").replace(" ", "") == name.replace(" ", "")
    assert b"utf-8''" in data


def test_parameter_is_cut_between_octets() -> None:
    for section in parameter("filename", "\u00fc" * 60).split("; "):
        assert len(section.partition("=")[2].rpartition("'")[2]) % 3 == 0


def test_comma_in_quotes_separates_nothing() -> None:
    assert list(split_addresses('"A, B" <a@x>, b@y')) == ['"A, B" <a@x>', "b@y"]
    assert list(split_addresses("undisclosed-recipients:;")) == []
