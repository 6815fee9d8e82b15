from __future__ import annotations

from types import ModuleType

import pytest

from flask_taskworker.mail import BadAddressError, BadHeaderError, sanitize_address, sanitize_addresses
from flask_taskworker.mail.compose.fields import Mailbox, check_list, parse_mailbox

BAD = [
    "",
    "a",
    "@x.org",
    "a@",
    "a@b@c",
    "a b@x.org",
    "a@x y",
    "<a@x.org",
    "a@x.org>",
    "a..b@x.org",
    ".a@x.org",
    "a.@x.org",
    "a@x..org",
    "a@x.org.",
    "a@-x.org",
    "a@x-.org",
    "a)b@evil.org",
    "a(comment)@x.org",
    "friends: a@x.org;",
    "a@x.org, b@y.org",
    "A <a@x.org>, b@y.org",
    "a@x.org; b@y.org",
    "-oQ/tmp/q@x.org",
    "a" * 65 + "@x.org",
    "a@" + ".".join(["b" * 60] * 5),
    "a@[1.2.3]",
    "a@[IPv6:zz]",
    'a"b"@x.org',
    '"a@x.org',
    "a@x\uff1e.org",
    "a@x.org\uff0c",
    ("a", "b", "c"),
    ("a", ""),
    ("", "a b@x.org"),
    5,
    None,
]
BROKEN = ["u@example.org> SIZE=1\r\nRCPT TO:<x@y.org>", "a@x.org\n", "\0@x.org", "a@x\u2028.org", ("x\r\ny", "a@x.org")]

GOOD = {
    '"a b"@x.org': Mailbox("", '"a b"@x.org'),
    '"a@b"@x.org': Mailbox("", '"a@b"@x.org'),
    "o'brien+tag@x.co": Mailbox("", "o'brien+tag@x.co"),
    "a@localhost": Mailbox("", "a@localhost"),
    "a@b\u00fccher.example": Mailbox("", "a@xn--bcher-kva.example"),
    "\u00fcser@x.org": Mailbox("", "\u00fcser@x.org"),
    "a@[127.0.0.1]": Mailbox("", "a@[127.0.0.1]"),
    "a@[IPv6:::1]": Mailbox("", "a@[IPv6:::1]"),
    "!#$%&'*+/=?^_`{|}~@x.org": Mailbox("", "!#$%&'*+/=?^_`{|}~@x.org"),
    "<a@x.org>": Mailbox("", "a@x.org"),
    "Ada <a@x.org>": Mailbox("Ada", "a@x.org"),
    '"Doe, J" <a@x.org>': Mailbox("Doe, J", "a@x.org"),
    "Doe, J <a@x.org>": Mailbox("Doe, J", "a@x.org"),
    "me@x.org <me@x.org>": Mailbox("me@x.org", "me@x.org"),
    '"<" <a@x.org>': Mailbox("<", "a@x.org"),
}


@pytest.mark.parametrize("address", BAD, ids=repr)
def test_malformed_address_is_refused(address: object) -> None:
    with pytest.raises(BadAddressError):
        parse_mailbox(address)


@pytest.mark.parametrize("address", BROKEN, ids=repr)
def test_address_with_control_characters_is_a_bad_header(address: object) -> None:
    with pytest.raises(BadHeaderError):
        parse_mailbox(address)


@pytest.mark.parametrize(("address", "expected"), GOOD.items(), ids=repr)
def test_odd_but_valid_address_is_accepted(address: str, expected: Mailbox) -> None:
    assert parse_mailbox(address) == expected


def test_only_a_local_part_beyond_ascii_needs_smtputf8() -> None:
    assert parse_mailbox("\u00fcser@x.org").needs_smtputf8
    assert not parse_mailbox("a@b\u00fccher.example").needs_smtputf8


@pytest.mark.parametrize("value", ["a@x.org", b"a@x.org", {"a@x.org": 1}, 5], ids=repr)
def test_string_where_a_list_belongs_is_refused_with_the_remedy(value: object) -> None:
    with pytest.raises(BadAddressError, match=r"recipients must be a list .* Write recipients=\["):
        check_list("recipients", value)


def test_error_names_the_field_and_the_value() -> None:
    with pytest.raises(BadAddressError, match=r"cc 'a@b@c' has a malformed part before the @"):
        parse_mailbox("a@b@c", "cc")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("a@x.org", "a@x.org"),
        ("from@example.com\r\n", "from@example.com"),
        ("sender\r\n@example.com", "sender@example.com"),
        ("\u00c4\u00dc\u00d6 \u2192 \u2713 <a@x.org>", "=?utf-8?b?w4TDnMOWIOKGkiDinJM=?= <a@x.org>"),
        (("\u00c4\u00dc\u00d6 \u2192 \u2713", "a@x.org>"), "=?utf-8?b?w4TDnMOWIOKGkiDinJM=?= <a@x.org>"),
        (("Doe, J", "a@x.org"), "=?utf-8?q?Doe=2C_J?= <a@x.org>"),
        ("Doe <a@x.org>", "=?utf-8?q?Doe?= <a@x.org>"),
        ("a@b\u00fccher.example", "a@xn--bcher-kva.example"),
    ],
)
def test_sanitize_address_gives_what_flask_mail_gave(address: str | tuple[str, str], expected: str) -> None:
    assert sanitize_address(address) == expected


NAMES = [
    "Ada",
    "Ada Lovelace",
    "A-B *!+/ c",
    "O'Hara",
    "\u00dc",
    "x" * 51,
    "x" * 80,
    "Ada \u00dc " * 9 + "x",
    'a "b" c',
    "a.b",
    "1",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "us-ascii"])
def test_sanitize_address_equals_that_of_flask_mail(name: str, charset: str, flask_mail: ModuleType) -> None:
    theirs = flask_mail.sanitize_address((name, "a@x.org"), charset)
    # Theirs folds a long name, and so breaks the MAIL and RCPT commands that the address goes into.
    assert sanitize_address((name, "a@x.org"), charset) == theirs.replace("\n", "")


def test_sanitize_address_uses_the_charset_that_python_maps_it_to() -> None:
    assert sanitize_address("\u9001\u4fe1\u8005 <a@x.org>", "shift_jis").startswith("=?iso-2022-jp?b?")
    assert sanitize_address("\u9001\u4fe1\u8005 <a@x.org>", "us-ascii").startswith("=?utf-8?b?")


@pytest.mark.parametrize("address", [*BAD[:-2], *BROKEN], ids=repr)
def test_sanitizing_never_raises_and_never_leaves_a_line_break(address: str | tuple[str, str]) -> None:
    assert not set(sanitize_address(address)) & set("\r\n\0\u2028")


def test_long_name_stays_in_one_line() -> None:
    assert "\n" not in sanitize_addresses([("\u00c4" * 100, "a@x.org")])[0]
