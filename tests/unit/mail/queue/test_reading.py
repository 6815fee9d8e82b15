"""A mail's bytes as people look at them: read whatever they are, and never steering what shows them."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable

import pytest

from flask_taskworker.mail import Attachment, Message
from flask_taskworker.mail.queue.reading import MAX_HTML, MAX_PARTS, Letter, header_in, headers_of

Make = Callable[..., Message]


def test_header_texts_and_attachments_are_read(make_message: Make) -> None:
    message = make_message(
        subject="Grüße an alle",
        html="<b>hallo</b>",
        attachments=[Attachment("bericht.pdf", "application/pdf", b"x" * 1000), Attachment("ü.txt", "text/plain", "a")],
    )
    letter = Letter.of(message.as_bytes())
    assert (letter.text, letter.html) == ("text", "<b>hallo</b>")
    assert header_in(letter.headers, "subject") == "Grüße an alle"
    assert header_in(letter.headers, "To") == "to@example.com"
    assert [(a.name, a.content_type, a.size, a.is_inline) for a in letter.attachments] == [
        ("bericht.pdf", "application/pdf", 1000, False),
        ("ü.txt", "text/plain", 1, False),
    ]


def test_pictures_of_the_mail_itself_are_put_into_its_html(make_message: Make) -> None:
    picture = Attachment("dot.png", "image/png", b"\x89PNG", headers={"Content-ID": "<dot@x>"})
    message = make_message(html='<img src="cid:dot@x"><img src="https://x.org/b.png">', attachments=[picture])
    html = Letter.of(message.as_bytes()).html
    assert html == '<img src="data:image/png;base64,iVBORw=="><img src="https://x.org/b.png">'


def test_picture_that_is_shown_a_million_times_does_not_fill_the_memory(make_message: Make) -> None:
    picture = Attachment("dot.png", "image/png", b"x" * 1000, headers={"Content-ID": "<d>"})
    message = make_message(html='<img src="cid:d">' * 20_000, attachments=[picture])
    html = Letter.of(message.as_bytes()).html
    assert html is not None
    assert len(html) < MAX_HTML


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b"=?nonsense?q?abc?=", "=?nonsense?q?abc?="),
        (b"=?utf-8?b?####?=", None),
        (b"=?utf-8?q?a=0D=0ABcc:_x?=", "a\ufffd\ufffdBcc: x"),
        ("ab\u202egpj.exe".encode(), None),
        (b"\xff\xfe raw", None),
    ],
)
def test_odd_header_is_shown_as_one_harmless_line(value: bytes, seen: str | None) -> None:
    ((name, shown),) = headers_of(b"Subject: " + value + b"\r\n\r\nbody")
    assert name == "Subject"
    assert seen is None or shown == seen
    assert not set(shown) & set("\r\n\0\u202e")


def test_header_line_that_was_cut_is_left_out() -> None:
    assert headers_of(b"Subject: hello\r\nTo: anna@exam") == (("Subject", "hello"),)
    assert headers_of(b"") == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\xff" * 100,
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\n--x",
        b"Content-Type: text/html; charset=nonsense\n\n<b>\xff",
        b"Content-Type: text/plain; charset*0=utf-\n\nabc",
        b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n!!!",
        b"Content-Type: message/rfc822\n\nSubject: inner\n\nbody",
        b"Content-Disposition: attachment; filename*=nonsense''%ff; filename=\"a\n",
        b"Content-Type: multipart/mixed; boundary=x\n\n" + b"--x\nContent-Type: multipart/mixed; boundary=x\n\n" * 300,
    ],
)
def test_damaged_mail_is_read_as_far_as_it_goes(data: bytes) -> None:
    assert isinstance(Letter.of(data), Letter)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a\0b.txt", "a\u202egpj.exe", "a\r\nBcc: x", "x" * 5000, "<script>"]
)
def test_name_of_an_attachment_is_one_harmless_line(name: str) -> None:
    encoded = "".join(f"%{octet:02X}" for octet in name.encode())
    data = f"Content-Type: application/x\nContent-Disposition: attachment; filename*=utf-8''{encoded}\n\nabc"
    (attached,) = Letter.of(data.encode()).attachments
    assert len(attached.name) <= 200
    assert not set(attached.name) & set("\r\n\0\u202e")


@pytest.mark.parametrize("charset", [b"undefined", b"idna", b'"a\0b"', b"unicode_escape", b"nowhere"])
def test_odd_charset_harms_nothing(charset: bytes) -> None:
    letter = Letter.of(b"Content-Type: text/plain; charset=" + charset + b"\r\n\r\nhello \\ud800 \xff")
    assert letter.text is not None
    assert letter.text.startswith("hello ")
    assert letter.text.encode()


def test_picture_is_not_taken_for_one_whose_name_begins_like_its_own(make_message: Make) -> None:
    pictures = [
        Attachment("p.png", "image/png", d, headers={"Content-ID": f"<{i}>"}) for i, d in (("a", b"1"), ("ab", b"2"))
    ]
    html = Letter.of(make_message(html='<img src="cid:ab"><img src="cid:a">', attachments=pictures).as_bytes()).html
    assert html == '<img src="data:image/png;base64,Mg=="><img src="data:image/png;base64,MQ==">'


INNER = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nFrom: a@x.org\r\n\r\ninner text\r\n"


def outer(part_headers: bytes, content: bytes) -> bytes:
    """A mail with a text, and a mail attached to it."""
    return (
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nouter text\r\n'
        b"--b\r\n" + part_headers + b"\r\n\r\n" + content + b"\r\n--b--\r\n"
    )


@pytest.mark.parametrize(
    ("headers", "content", "name"),
    [
        (b"Content-Type: message/rfc822", INNER, "Grüße"),
        (b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64", b64encode(INNER), "Grüße"),
        (b'Content-Type: message/rfc822; name="x.eml"', INNER, "x.eml"),
        (b"Content-Type: message/rfc822", INNER.replace(b"Subject", b"Other"), "(no name)"),
        (b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64", b"\xff!", "(no name)"),
        (b"Content-Type: message/rfc822", b"", "(no name)"),
    ],
)
def test_attached_mail_is_one_attachment_with_its_subject_as_name(headers: bytes, content: bytes, name: str) -> None:
    letter = Letter.of(outer(headers, content))
    assert letter.text == "outer text"
    (attached,) = letter.attachments
    assert (attached.name, attached.content_type) == (name, "message/rfc822")
    assert abs(attached.size - len(INNER)) < 10 or name == "(no name)"


def test_mail_that_this_package_attaches_is_read(make_message: Make) -> None:
    inner = make_message(subject="Grüße", attachments=[Attachment("a.txt", "text/plain", "x")]).as_bytes()
    message = make_message(attachments=[Attachment(None, "message/rfc822", inner)])
    (attached,) = Letter.of(message.as_bytes()).attachments
    assert (attached.name, attached.content_type, attached.size) == ("Grüße", "message/rfc822", len(inner))


def test_mail_whose_only_text_is_in_an_attached_one_has_none() -> None:
    data = outer(b"Content-Type: message/rfc822", INNER).replace(b"text/plain", b"text/x-other")
    assert Letter.of(data).text is None


WORD = b"=?utf-8?q?aaaa?="
OPEN = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
HOSTILE = {
    "encoded words": b"Subject: " + WORD * 100_000 + b"\r\n\r\nhello",
    "half a word": b"Subject: " + b"=?a?q?" * 100_000 + b"\r\n\r\nhello",
    "parameters": b"Content-Type: text/plain" + b"; a=b" * 200_000 + b"\r\n\r\nhello",
    "parameters in quotes": b'Content-Type: text/plain; a="' + b';\\"' * 300_000 + b"\r\n\r\nhello",
    "header lines": b"a: b\r\n" * 200_000 + b"\r\nhello",
    "parts": OPEN + b"--b\r\n\r\nx\r\n" * 100_000,
    "nested parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" * 2_000 + b"\r\nhello",
    "nested mails": b"Content-Type: message/rfc822\r\n\r\n" * 2_000 + b"hello",
    "header lines of parts": OPEN + (b"--b\r\n" + b"a: b\r\n" * 5_000 + b"\r\n\r\n") * 50,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_reading_a_hostile_mail_takes_a_bounded_time(name: str) -> None:
    begun = time.thread_time()
    letter = Letter.of(HOSTILE[name])
    assert len(letter.attachments) <= MAX_PARTS
    assert time.thread_time() - begun < 3


def test_a_mail_nested_in_ten_parts_is_read() -> None:
    opened = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (number, number) for number in range(10)
    )
    assert Letter.of(opened + b"\r\nhello\r\n").text == "hello"
