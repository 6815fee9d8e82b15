"""Message and Attachment: section by section what Flask-Mail's classes promise."""

from __future__ import annotations

import base64
import email
import io
import subprocess
import sys
from array import array
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import pytest

from flask_taskworker.errors import ArgumentsError
from flask_taskworker.mail import Attachment, BadHeaderError, Message
from flask_taskworker.mail.compose.prepare import prepare
from tests.support.smtp_server import SOURCES

Make = Callable[..., Message]


class Lazy:
    """A lazy string, as translations are."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


def test_lists_are_fresh_for_each_message() -> None:
    first, second = Message(sender="a@x.org"), Message(sender="a@x.org")
    first.add_recipient("to@x.org")
    assert second.recipients == second.cc == second.bcc == second.mail_options == second.rcpt_options == []


def test_sender_pair_becomes_a_string() -> None:
    assert Message(sender=("Me", "me@example.com")).sender == "Me <me@example.com>"


def test_send_to_is_the_set_of_all_recipients(make_message: Make) -> None:
    message = make_message(recipients=["a@x.org", ("B", "b@x.org")], cc=["c@x.org", "a@x.org"], bcc=["d@x.org"])
    assert message.send_to == {"a@x.org", ("B", "b@x.org"), "c@x.org", "d@x.org"}


def test_html_is_an_alternative(make_message: Make) -> None:
    message = make_message(html="<b>x</b>")
    assert message.alts == {"html": "<b>x</b>"}
    message.html = None
    assert message.alts == {}
    assert message.html is None


def test_html_given_in_alts_is_kept(make_message: Make) -> None:
    assert make_message(alts={"html": "<i>x</i>"}).html == "<i>x</i>"


def test_position_of_arguments_is_that_of_flask_mail() -> None:
    message = Message(
        "s", ["r@x.org"], "b", "<h>", {"json": "{}"}, "a@x.org", ["c@x.org"], ["d@x.org"], [], "e@x.org", 5.0
    )
    assert (message.subject, message.body, message.html, message.alts["json"]) == ("s", "b", "<h>", "{}")
    assert (message.sender, message.cc, message.bcc, message.reply_to, message.date) == (
        "a@x.org",
        ["c@x.org"],
        ["d@x.org"],
        "e@x.org",
        5.0,
    )


def test_message_id_is_made_once(make_message: Make) -> None:
    message = make_message()
    assert email.message_from_bytes(message.as_bytes())["Message-ID"] == message.msgId
    assert make_message().msgId != message.msgId
    assert message.msgId.endswith("@example.com>")


def test_same_bytes_each_time(make_message: Make) -> None:
    message = make_message(html="<b>x</b>", attachments=[Attachment("a.txt", data=b"x")])
    assert message.as_bytes() == message.as_bytes() == bytes(message)
    assert message.as_string() == str(message)


def test_bcc_is_never_written(make_message: Make) -> None:
    message = make_message(bcc=["secret@x.org"], extra_headers={"BCC": "secret@x.org"})
    assert b"secret" not in message.as_bytes()


def test_message_for_bcc_only_has_no_empty_to(make_message: Make) -> None:
    assert "\r\nTo: undisclosed-recipients:;\r\n" in make_message(recipients=[], bcc=["b@x.org"]).as_string()


def test_recipients_are_written_once_and_in_order(make_message: Make) -> None:
    message = make_message(recipients=["b@x.org", "a@x.org", "b@x.org"])
    assert "\r\nTo: b@x.org, a@x.org\r\n" in message.as_string()


def test_date_is_written_in_local_time(make_message: Make) -> None:
    assert f"\r\nDate: {formatdate(1_700_000_000.0, localtime=True)}\r\n" in make_message().as_string()


def test_empty_subject_is_left_out(make_message: Make) -> None:
    assert "Subject" not in make_message(subject="").as_string()


def test_lazy_strings_are_taken(make_message: Make) -> None:
    message = make_message(subject=Lazy("s\u00fcbject"), body=Lazy("t\u00e4xt"))
    assert "=?utf-8?q?s=C3=BCbject?=" in message.as_string()
    assert "t\u00e4xt".encode() in message.as_bytes()


def test_extra_headers_replace_ours_of_the_same_name(make_message: Make) -> None:
    given = {
        "X-A": "1",
        "date": "Tue, 01 Jan 2030 10:00:00 +0000",
        "From": "other@x.org",
        "Message-ID": "<own@x.org>",
        "Reply-To": "b@x.org, C <c@x.org>",
    }
    prepared = prepare(make_message(extra_headers=given, reply_to="r@x.org", cc=["d@x.org"]), now=0.0)
    parsed = email.message_from_bytes(prepared.envelope.data)
    assert {name: parsed.get_all(name) for name in given} == {name: [value] for name, value in given.items()}
    assert (prepared.envelope.message_id, prepared.envelope.sender) == ("<own@x.org>", "from@example.com")


@pytest.mark.parametrize(
    ("subject", "bad"),
    [
        ("plain", False),
        ("a\r\n b", False),
        ("testing\r\n testing\r\n testing \r\n \ttesting", False),
        ("a\tb", False),
        ("a\n b", True),
        ("a\r\n", True),
        ("a\r\nb", True),
        ("a\r\n ", True),
        ("a\r\n\t", True),
        ("a\r\n b\r\n\n", True),
        ("\r\n a", True),
        ("a\rb", True),
    ],
)
def test_subject_may_be_folded_but_not_broken(subject: str, bad: bool, make_message: Make) -> None:
    assert make_message(subject=subject).has_bad_headers() is bad


@pytest.mark.parametrize("field", ["sender", "reply_to"])
def test_line_break_in_address_is_bad(field: str, make_message: Make) -> None:
    assert make_message(**{field: "a@x.org\n"}).has_bad_headers()
    assert make_message(recipients=["a@x.org", ("x\r\n", "b@x.org")]).has_bad_headers()
    assert not make_message(recipients=["a@x.org", ("x", "b@x.org")]).has_bad_headers()


def test_old_name_of_has_bad_headers_warns(make_message: Make) -> None:
    with pytest.warns(DeprecationWarning, match="has_bad_headers"):
        assert not make_message().is_bad_headers()


def test_as_string_cleans_instead_of_raising(make_message: Make) -> None:
    message = make_message(
        subject="a\r\nBcc: x@x.org",
        sender="from@example.com\r\n",
        reply_to="evil@example.com\r",
        recipients=["to\r\n@x.org"],
    )
    parsed = email.message_from_string(message.as_string())
    assert (parsed["From"], parsed["Reply-To"], parsed["To"]) == ("from@example.com", "evil@example.com", "to@x.org")
    assert parsed["Bcc"] is None
    assert parsed["Subject"] == "a Bcc: x@x.org"


def test_folded_subject_is_written_as_it_is(make_message: Make) -> None:
    subject = "testing\r\n testing\r\n testing \r\n \ttesting"
    assert subject in make_message(subject=subject).as_string()


def test_attachment_needs_data() -> None:
    with pytest.raises(ValueError, match="The 'data' argument is required."):
        Attachment("a.txt")
    assert Attachment(data=b"").data == b""
    assert Attachment(data="").data == ""


@pytest.mark.parametrize(
    ("arguments", "content_type"),
    [
        ({"filename": "a.png", "data": b"x"}, "image/png"),
        ({"filename": "a.png", "content_type": "text/x", "data": b"x"}, "text/x"),
        ({"data": "x"}, "text/plain"),
        ({"data": b"x"}, "application/octet-stream"),
        ({"filename": "a.zzz", "data": "x"}, "text/plain"),
    ],
)
def test_content_type_is_guessed(arguments: dict[str, str], content_type: str) -> None:
    attachment = Attachment(**arguments)
    assert (attachment.content_type, attachment.disposition, attachment.headers) == (content_type, "attachment", {})


def test_attachment_without_name_has_no_disposition(make_message: Make) -> None:
    message = make_message()
    message.attach(data=b"this is a test", content_type="text/plain")
    part = email.message_from_bytes(message.as_bytes()).get_payload()[1]
    assert part["Content-Disposition"] is None
    assert part.get_payload(decode=True) == b"this is a test"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("test doc.txt", 'attachment; filename="test doc.txt"'),
        ('a"b\\c', 'attachment; filename="c"'),
        (
            "\u00fcnic\u00f6de \u2190\u2192 \u2713.txt",
            "attachment;\r\n filename*=UTF8''%C3%BCnic%C3%B6de%20%E2%86%90%E2%86%92%20%E2%9C%93.txt",
        ),
        ("../../etc/passwd", 'attachment; filename="passwd"'),
        ("C:\\temp\\a.exe", 'attachment; filename="a.exe"'),
        ("..", 'attachment; filename="attachment"'),
        ("x" * 5000 + ".txt", f'attachment;\r\n filename="{"x" * 187}.txt"'),
    ],
)
def test_file_name_is_reduced_to_a_base_name_and_encoded(name: str, written: str, make_message: Make) -> None:
    message = make_message()
    message.attach(name, "text/plain", b"x")
    assert f"\r\nContent-Disposition: {written}\r\n" in message.as_string()


def test_text_attachment_is_utf8(make_message: Make) -> None:
    message = make_message()
    message.attach("a.txt", "text/plain", "\u2713 \u00fc")
    part = email.message_from_bytes(message.as_bytes()).get_payload()[1]
    assert part.get_payload(decode=True).decode(part.get_content_charset()) == "\u2713 \u00fc"


def test_inline_picture_is_related_to_the_html(make_message: Make) -> None:
    message = make_message(html="<img>")
    cid = message.attach_inline("logo.png", "image/png", b"png")
    message.attach("a.txt", "text/plain", b"x")
    mixed = email.message_from_bytes(message.as_bytes())
    alternative, attached = mixed.get_payload()
    plain, related = alternative.get_payload()
    html, picture = related.get_payload()
    types = [part.get_content_type() for part in (mixed, alternative, plain, related, html, picture, attached)]
    assert types == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "multipart/related",
        "text/html",
        "image/png",
        "text/plain",
    ]
    assert picture["Content-ID"] == f"<{cid}>"
    assert picture["Content-Disposition"] == 'inline; filename="logo.png"'


def test_unsubscribe_writes_both_headers(make_message: Make) -> None:
    message = make_message()
    message.unsubscribe("https://x.org/u?a=1&b=2", one_click=True)
    assert message.extra_headers == {
        "List-Unsubscribe": "<https://x.org/u?a=1&b=2>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }


@pytest.mark.parametrize(
    "url", ["http://x.org/u", "https://x.org/a b", "https://x.org/>\r\nBcc: a@x.org", "ftp://x.org"]
)
def test_unsubscribe_refuses_other_links(url: str, make_message: Make) -> None:
    with pytest.raises(BadHeaderError):
        make_message().unsubscribe(url, one_click=True)


def test_subclass_that_writes_itself_is_asked(make_message: Make) -> None:
    class Signed(Message):
        def _message(self) -> email.message.Message:
            message = super()._message()
            message["X-Signed"] = "yes"
            return message

    assert b"\r\nX-Signed: yes\r\n" in Signed(sender="a@x.org", body="x").as_bytes()


def test_subclass_that_makes_its_text_parts_is_asked() -> None:
    class Shouting(Message):
        def _mimetext(self, text: str | None, subtype: str = "plain") -> email.mime.text.MIMEText:
            return super()._mimetext((text or "").upper(), subtype)

    message = Shouting(sender="a@x.org", body="x", html="<b>\u00fc</b>")
    plain, html = email.message_from_bytes(message.as_bytes()).get_payload()[0].get_payload()
    assert (plain.get_payload(), html.get_payload(decode=True).decode()) == ("X", "<B>\u00dc</B>")


@pytest.mark.slow
def test_charset_of_the_process_is_left_alone() -> None:
    code = (
        "from email.charset import CHARSETS; before = dict(CHARSETS)\n"
        "from flask_taskworker.mail import Message\n"
        "Message(sender='a@x.org', body='\u00fc', charset='utf-8')._mimetext('\u00fc')\n"
        "Message(sender='a@x.org', body='\u00fc', html='\u00fc').as_bytes()\n"
        "assert before == CHARSETS\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=SOURCES)


def test_base64_of_an_attachment_is_made_once(make_message: Make) -> None:
    attachment = Attachment("a.bin", data=bytes(100_000))
    first = make_message(attachments=[attachment]).as_bytes()
    attachment.data = b"other"
    second = make_message(attachments=[attachment]).as_bytes()
    assert base64.b64encode(b"other") in second
    assert base64.b64encode(b"other") not in first


def test_what_is_not_a_message_or_attachment_is_refused_with_the_remedy(make_message: Make) -> None:
    with pytest.raises(ArgumentsError, match=r"'Hello' is not a message\. Give a Message\(subject"):
        prepare("Hello", now=0.0)
    message = make_message(recipients=["a@x.org"], attachments=["bill.pdf"], sender="b@x.org")
    with pytest.raises(ArgumentsError, match=r"holds 'bill.pdf', which is not an Attachment\. .* message\.attach"):
        prepare(message, now=0.0)


@pytest.mark.parametrize("data", [3, io.StringIO("text"), io.BytesIO(b"bytes"), ["a"]])
def test_content_that_an_attachment_cannot_have_is_refused_with_the_remedy(make_message: Make, data: Any) -> None:
    message = make_message(recipients=["a@x.org"], sender="b@x.org", attachments=[Attachment("a.txt", data=data)])
    with pytest.raises(ArgumentsError, match=r"the data of an attachment is .*\. Give bytes or text: file\.read\(\)"):
        prepare(message, now=0.0)


@pytest.mark.parametrize("data", ["text", b"text", bytearray(b"text"), memoryview(b"text"), array("B", b"text")])
def test_content_of_an_attachment_may_be_text_or_any_bytes(make_message: Make, data: Any) -> None:
    message = make_message(recipients=["a@x.org"], sender="b@x.org", attachments=[Attachment("a.txt", data=data)])
    assert base64.b64encode(b"text") in prepare(message, now=0.0).envelope.data


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("recipients", 3, r"Write recipients=\[3\]"),
        ("date", datetime(2026, 1, 1, tzinfo=UTC), "date is datetime.* Give seconds since 1970; .* timestamp"),
        ("date", "today", "date is 'today'"),
        ("extra_headers", "X-A: b", "extra_headers is 'X-A: b'. Give a dict"),
        ("mail_options", "BODY=8BITMIME", r"mail_options must be a list, .* Write mail_options=\['BODY=8BITMIME'\]"),
    ],
)
def test_field_of_another_type_is_refused_with_the_remedy(
    make_message: Make, field: str, value: Any, words: str
) -> None:
    with pytest.raises(BadHeaderError, match=words):
        prepare(make_message(**{"recipients": ["a@x.org"], "sender": "b@x.org", field: value}), now=0.0)
