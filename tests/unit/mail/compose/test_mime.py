"""The written bytes against two judges: the standard email package, and Flask-Mail itself."""

from __future__ import annotations

import email
import email.charset
import email.header
import email.policy
import random
import string
from collections.abc import Callable
from email.message import EmailMessage
from email.message import Message as Parsed
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from flask_taskworker.mail import BadHeaderError, BadTextError, Message
from flask_taskworker.mail.compose import html_text
from flask_taskworker.mail.compose.mime import check_written, crlf, file_name, to_seven_bit, wire_form
from flask_taskworker.mail.compose.prepare import prepare

Make = Callable[..., Message]

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain beyond ascii": {"body": "Gr\u00fc\u00dfe \u2713\nzwei"},
    "no body": {"body": None},
    "every line end": {"body": "a\r\nb\rc\nd\n\n"},
    "html": {"html": "<b>\u00fc</b>"},
    "html without text": {"body": None, "html": "<b>x</b>"},
    "several alternatives": {"alts": {"html": "<b>x</b>", "calendar": "BEGIN:VCALENDAR", "json": "{}"}},
    "names beyond ascii": {"sender": "\u00c4 \u00d6 <a@x.org>", "recipients": [("B\u00f6", "b@x.org"), "c@x.org"]},
    "names with specials": {"sender": 'Doe "J" <a@x.org>', "recipients": [("Doe, J.", "b@x.org")]},
    "many recipients": {"recipients": [f"recipient{i}@example.org" for i in range(200)]},
    "cc and reply-to": {"cc": ["c@x.org", ("D", "d@x.org")], "reply_to": "\u00dc <r@x.org>"},
    "idn": {"recipients": ["a@b\u00fccher.example"]},
    "subject beyond ascii": {"subject": "\u00dcber \u2713 " * 20},
    "long subject": {"subject": "word " * 40 + "end"},
    "extra headers": {"extra_headers": {"X-A": "1", "X-C": "long " * 60 + "end"}},
    "charset latin-1": {"charset": "iso-8859-1", "body": "Gr\u00fc\u00dfe", "subject": "\u00fc"},
    "charset shift_jis": {"charset": "shift_jis", "body": "\u5185\u5bb9", "subject": "\u8868\u984c"},
    "charset us-ascii": {"charset": "us-ascii", "html": "<html></html>"},
    "charset utf-8, named": {"charset": "UTF-8", "body": "\u00fc"},
}


def unfolded(value: str) -> str:
    return "".join(
        part.decode(charset or "ascii") if isinstance(part, bytes) else part
        for part, charset in email.header.decode_header(value.replace("\r", "").replace("\n", ""))
    )


def text_of(part: Parsed) -> str:
    raw = part.get_payload(decode=True)
    assert isinstance(raw, bytes)
    return raw.decode(part.get_content_charset() or "ascii").replace("\r\n", "\n").replace("\r", "\n")


def shape(part: Parsed) -> Any:
    """What a reader of the mail gets: the tree of types, names and decoded contents."""
    if part.is_multipart():
        return part.get_content_type(), [shape(inner) for inner in part.get_payload()]
    content = text_of(part) if part.get_content_maintype() == "text" else part.get_payload(decode=True)
    return part.get_content_type(), part.get_filename(), part["Content-ID"], content


def headers(part: Parsed) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in part.items():
        if name not in ("Content-Type", "Content-Transfer-Encoding"):
            found.setdefault(name, []).append(unfolded(value))
    return found


def standard(message: Message) -> EmailMessage:
    """The same mail, made by the standard library's newest interface."""
    mail = EmailMessage(policy=email.policy.SMTP)
    mail.set_content(message.body or html_text.text_of(message.html or ""), cte="8bit")
    for subtype, content in message.alts.items():
        mail.add_alternative(content, subtype=subtype, cte="8bit")
    return mail


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_parses_to_what_flask_mail_wrote(fields: dict[str, Any], make_message: Make, flask_mail: ModuleType) -> None:
    ours = make_message(**fields)
    names = (
        "subject",
        "sender",
        "recipients",
        "body",
        "alts",
        "html",
        "cc",
        "reply_to",
        "date",
        "charset",
        "extra_headers",
    )
    theirs = flask_mail.Message(**{name: getattr(ours, name) for name in names})
    theirs.msgId = ours.msgId
    theirs.body = theirs.body or html_text.text_of(theirs.html or "")  # theirs is empty beside HTML
    app = Flask("oracle")
    app.extensions["mail"] = SimpleNamespace(ascii_attachments=False)
    with app.app_context():
        expected = email.message_from_bytes(theirs.as_bytes())
    written = email.message_from_bytes(ours.as_bytes())
    assert shape(written) == shape(expected)
    their_headers = headers(expected)
    for name, values in headers(written).items():
        assert sorted(values[0].split(", ")) == sorted(their_headers[name][0].split(", ")), name
    assert list(headers(written)) == list(their_headers)


@pytest.mark.parametrize("fields", [f for f in SHAPES.values() if "charset" not in f], ids=str)
def test_text_parses_to_what_the_standard_library_wrote(fields: dict[str, Any], make_message: Make) -> None:
    message = make_message(**fields)
    expected = email.message_from_bytes(standard(message).as_bytes())
    texts = [text_of(part) for part in expected.walk() if not part.is_multipart()]
    written = email.message_from_bytes(message.as_bytes())
    # set_content() ends the text with a line break; a part is written as it was given.
    ours = [text_of(part) for part in written.walk() if not part.is_multipart()]
    assert [text.rstrip("\n") for text in ours] == [text.rstrip("\n") for text in texts]


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_written_bytes_are_clean(fields: dict[str, Any], make_message: Make) -> None:
    data = prepare(make_message(**fields), now=0.0).envelope.data
    assert data == crlf(data)
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert all(len(line) <= 78 or b" " not in line.strip() for line in data.split(b"\r\n\r\n")[0].split(b"\r\n")[2:])


LONG = {
    "ascii": "x" * 5000,
    "ascii among short lines": "short\n" + "y " * 2000 + "\nshort",
    "beyond ascii": "\u00fc\u2713" * 2000,
    "nul": "a\0b",
    "exactly 998": "z" * 998,
    "999": "z" * 999,
}


@pytest.mark.parametrize("charset", [None, "iso-8859-15", "utf-8"])
@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_no_line_is_longer_than_998_octets(body: str, charset: str | None, make_message: Make) -> None:
    if charset == "iso-8859-15":
        body = body.replace("\u2713", "")
    data = prepare(make_message(body=body, html=body, charset=charset), now=0.0).envelope.data
    assert max(map(len, data.split(b"\r\n"))) <= 998
    parts = [part for part in email.message_from_bytes(data).walk() if not part.is_multipart()]
    assert [text_of(part) for part in parts] == [body, body]


def test_extra_header_beyond_ascii_is_encoded(make_message: Make) -> None:
    written = email.message_from_bytes(make_message(extra_headers={"X-B": "\u00fc" * 40}).as_bytes())
    assert unfolded(written["X-B"]) == "\u00fc" * 40


def test_transfer_encoding_is_7bit_for_ascii_and_8bit_beyond(make_message: Make) -> None:
    assert "Content-Transfer-Encoding: 7bit\r\n" in make_message(body="x").as_string()
    assert "Content-Transfer-Encoding: 8bit\r\n" in make_message(body="\u00fc").as_string()


def test_body_that_the_charset_cannot_hold_raises(make_message: Make) -> None:
    with pytest.raises(UnicodeEncodeError):
        make_message(charset="us-ascii", body="\u00fc").as_bytes()


@pytest.mark.slow
def test_random_messages_parse_to_their_fields(make_message: Make) -> None:
    chooser = random.Random(5)
    alphabet = string.printable.replace("\x0b", "").replace("\x0c", "") + "\u00fc\u00df\u2713\u4e16\U0001f600.\r\n"
    for _ in range(300):
        body, html = ("".join(chooser.choices(alphabet, k=chooser.randrange(300))) for _ in range(2))
        subject = "".join(chooser.choices(string.ascii_letters + " \u00fc\u2713=?_", k=chooser.randrange(120))).strip()
        message = make_message(body=body, html=html, subject=subject)
        data = prepare(message, now=0.0).envelope.data
        plain, rich = email.message_from_bytes(data).get_payload()[0].get_payload()
        expected = [text.replace("\r\n", "\n").replace("\r", "\n") for text in (body, html)]
        assert [text_of(plain), text_of(rich)] == expected
        parsed = email.message_from_bytes(data, policy=email.policy.default)
        assert (parsed["Subject"] or "").split() == subject.split()


def test_bytes_with_other_headers_than_meant_are_refused(make_message: Make) -> None:
    data = b"From: a@x.org\r\nBcc: b@x.org\r\n\r\nx"
    with pytest.raises(BadHeaderError, match="not what was asked for"):
        check_written(data, ["From"])
    check_written(data, ["From", "Bcc"])


@pytest.mark.parametrize(
    "data", [b"A: x\n\r\nb", b"A: x\r\nno header\r\n\r\n", b"A: x\r\n\r\na\0", b"A: x\r\n\r\n" + b"x" * 999]
)
def test_bytes_that_a_server_may_misread_are_refused(data: bytes) -> None:
    with pytest.raises(BadHeaderError):
        check_written(data)


def test_seven_bit_form_holds_the_same_mail(make_message: Make) -> None:
    message = make_message(body="Gr\u00fc\u00dfe", html="<b>\u2713</b>", subject="\u00dcber " * 30)
    message.attach("a.bin", data=bytes(range(256)))
    data = message.as_bytes()
    seven = to_seven_bit(data)
    assert seven.isascii()
    assert shape(email.message_from_bytes(seven)) == shape(email.message_from_bytes(data))
    assert seven.split(b"\r\n\r\n")[0] == data.split(b"\r\n\r\n")[0]
    assert seven == crlf(seven)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r.\rb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"\r\n.\r\n.\r\n", b"\r\n..\r\n..\r\n.\r\n"),
        (b"..", b"...\r\n.\r\n"),
    ],
)
def test_only_the_end_is_the_end_of_data(data: bytes, expected: bytes) -> None:
    assert wire_form(data) == expected


# ---------------------------------------------------------------- what is declared is what is sent

DECLARED = {
    "text/plain; charset=iso-8859-1": "Gr\u00fc\u00dfe",
    "text/csv; charset=windows-1252": "5 \u20ac",
    "text/plain; charset=utf-16": "abc",
    "text/plain; charset=us-ascii": "\u00fc",
    "text/plain; charset=nonsense; format=flowed": "\u00fc",
    "text/plain": "\u2713",
    "application/json": '{"a": "\u00fc"}',
}


@pytest.mark.parametrize("content_type", DECLARED)
def test_attached_text_is_in_the_charset_that_its_type_declares(content_type: str, make_message: Make) -> None:
    message = make_message()
    message.attach("f.txt", content_type, DECLARED[content_type])
    part = list(email.message_from_bytes(prepare(message, now=0.0).envelope.data).walk())[-1]
    raw = part.get_payload(decode=True)
    assert isinstance(raw, bytes)
    assert raw.decode(part.get_content_charset() or "utf-8") == DECLARED[content_type]


INNER = (
    "From: a@x.org\r\nSubject: inner\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Transfer-Encoding: 8bit\r\n\r\nGr\u00fc\u00dfe\r\n.dot\r\n"
)


def test_attached_mail_is_sent_as_it_is(make_message: Make) -> None:
    message = make_message()
    message.attach("mail.eml", None, INNER.encode())
    data = prepare(message, now=0.0).envelope.data
    for form in (data, to_seven_bit(data)):
        part = list(email.message_from_bytes(form, policy=email.policy.default).walk())[-2]
        assert part.get_content_type() == "message/rfc822"
        assert str(part["Content-Transfer-Encoding"]) in ("7bit", "8bit")
        inner = part.get_payload()[0]
        assert (inner["Subject"], inner.get_content().splitlines()) == ("inner", ["Gr\u00fc\u00dfe", ".dot"])
    assert to_seven_bit(data).isascii()


def test_attached_mail_that_smtp_cannot_carry_is_a_file(make_message: Make) -> None:
    message = make_message()
    message.attach("mail.eml", None, b"Subject: x\r\n\r\n" + b"x" * 2000)
    part = list(email.message_from_bytes(prepare(message, now=0.0).envelope.data).walk())[-1]
    assert part.get_content_type() == "application/octet-stream"


@pytest.mark.parametrize("charset", [None, "iso-8859-1"])
@pytest.mark.parametrize("key", ["calendar; method=REQUEST", 'calendar;method="REQUEST"'])
def test_alternative_keeps_its_parameters(key: str, charset: str | None, make_message: Make) -> None:
    data = prepare(make_message(alts={"html": "<p>", key: "BEGIN:VCALENDAR"}, charset=charset), now=0.0).envelope.data
    part = list(email.message_from_bytes(data).walk())[-1]
    assert (part.get_content_type(), part.get_param("method")) == ("text/calendar", "REQUEST")


def test_html_alone_gets_its_words_as_text(make_message: Make) -> None:
    message = make_message(body=None, html="<p>5 &euro;</p>", charset="us-ascii")
    _, _, plain, html = email.message_from_bytes(prepare(message, now=0.0).envelope.data).walk()
    assert (plain.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert plain.get_payload(decode=True).decode() == "5 \u20ac"


def test_html_without_words_has_no_empty_text_beside_it(make_message: Make) -> None:
    data = prepare(make_message(body=None, html='<img src="cid:1">'), now=0.0).envelope.data
    assert [part.get_content_type() for part in email.message_from_bytes(data).walk()] == [
        *("multipart/mixed", "multipart/alternative", "text/html")
    ]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("\u65e5\u672c.pdf", "attachment.pdf"),
        ("\u65e5\u672c", "attachment"),
        ("Gr\u00f6\u00dfe.pdf", "Groe.pdf"),
        (".x", ".x"),
    ],
)
def test_ascii_name_of_an_attachment_is_usable(name: str, written: str) -> None:
    assert file_name(name, to_ascii=True) == written


CHANGES = {
    "as Flask-Mail": ("utf-8", email.charset.SHORTEST, None, "utf-8"),
    "quoted": ("utf-8", email.charset.QP, email.charset.QP, "utf-8"),
    "bare": ("utf-8", None, None, None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_charsets_that_another_package_has_changed_change_no_mail(change: Any, make_message: Make) -> None:
    fields = {"subject": "\u00fc", "body": "Gr\u00fc\u00dfe", "html": "<p>\u00fc", "sender": "\u00dc <a@x.org>"}
    kept = dict(email.charset.CHARSETS)
    try:
        email.charset.add_charset(*change)
        data = prepare(make_message(**fields), now=0.0).envelope.data
        seven = to_seven_bit(data)
    finally:
        email.charset.CHARSETS.clear()
        email.charset.CHARSETS.update(kept)
    assert data.partition(b"\r\n\r\n")[0].isascii()
    assert seven.isascii()
    assert shape(email.message_from_bytes(seven)) == shape(email.message_from_bytes(data))


@pytest.mark.parametrize("field", ["body", "html"])
def test_half_an_emoji_is_a_mail_error(field: str, make_message: Make) -> None:
    with pytest.raises(BadTextError):
        prepare(make_message(**{field: "\ud83d"}), now=0.0)
    with pytest.raises(BadTextError):
        prepare(make_message(body=b"\xff"), now=0.0)
