"""Mail addresses: a strict parser for what goes out, and Flask-Mail's lenient functions beside it.

:func:`parse_mailbox` decides by allow-list and raises; every address that reaches a server went through it. The
``sanitize_*`` functions never raise for odd input, because ``Message.as_string()`` must not; they only shape text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from email.charset import SHORTEST, Charset
from email.header import Header
from email.utils import formataddr, parseaddr
from functools import lru_cache
from typing import Any, NamedTuple, cast

from ..errors import BadAddressError, BadHeaderError

Address = str | tuple[str, str]
"""What users write: ``"ada@example.org"``, ``"Ada <ada@example.org>"`` or ``("Ada", "ada@example.org")``."""

# str.splitlines() splits on more than CR and LF, and mail software written in other languages on other sets again.
# Bidirectional overrides are left alone: they deceive the eye, not the parser. Lone surrogates cannot be encoded.
FORBIDDEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_CHARS = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_SIMPLE = re.compile(rf"(?!-)({_CHARS}(?:\.{_CHARS})*)@([A-Za-z0-9._-]+)")
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a1-\U0010ffff-]+")
_QUOTED = re.compile(r'"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"')
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_QUOTED_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')
_PLAIN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 !*+/-]{0,50}[A-Za-z0-9])?")
_TWO_ADDRESSES = re.compile(r"@[^,;]*[,;]")
_QUOTED_LOCAL = re.compile(r'(.*?)<("(?:[^"\\]|\\.)*"@[^<>"]*)>')
_LOOKS_LIKE_ADDRESS = re.compile(r"[^\s@]+@[^\s@]+")


class FlaskMailUnicodeDecodeError(UnicodeDecodeError):
    """Bytes that are not text in the expected encoding; ``obj`` is what was passed in."""

    def __init__(self, obj: Any, *args: Any) -> None:
        self.obj = obj
        super().__init__(*args)

    def __str__(self) -> str:
        return f"{super().__str__()}. You passed in {self.obj!r} ({type(self.obj)})"


class Mailbox(NamedTuple):
    """One address, taken apart: the display name as text, and ``local@domain`` as it stands on the wire."""

    name: str
    address: str

    @property
    def needs_smtputf8(self) -> bool:
        """Whether only a server with SMTPUTF8 can take it: the part before the @ is not ASCII."""
        return not self.address.isascii()


def force_text(s: Any, encoding: str = "utf-8", errors: str = "strict") -> str:
    """*s* as a string: bytes decoded, lazy strings resolved, anything else by ``str()``."""
    if isinstance(s, str):
        return s
    try:
        return str(s, encoding, errors) if isinstance(s, bytes) else str(s)
    except UnicodeDecodeError as error:
        if isinstance(s, Exception):
            return " ".join(force_text(arg, encoding, errors) for arg in s.args)
        raise FlaskMailUnicodeDecodeError(s, *error.args) from error


def check_text(field: str, value: str) -> None:
    """Raise BadHeaderError, naming *field*, if *value* holds a character that no header may hold."""
    found = FORBIDDEN.search(value)
    if found:
        raise BadHeaderError(
            f"{field} holds the character {found[0]!r} at position {found.start()}, which a mail header must not have. "
            "Remove line breaks and control characters before you build the message."
        )


def check_list(field: str, value: object) -> list[Address]:
    """*value* as a list of addresses; a string, a mapping or a lone object is refused."""
    if type(value) is list:
        return value
    if value is None:
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | AbstractSet):
        raise BadAddressError(f"{field} must be a list of addresses, not {value!r}. Write {field}=[{value!r}].")
    return list(value)


def as_list(value: object) -> list[Address]:
    """The addresses of a field that takes one or a list: a tuple is one, a name with its address."""
    if type(value) is list:
        return value
    return list(value) if isinstance(value, list | AbstractSet) else [cast(Address, value)]


def pair_text(name: object, address: object) -> str:
    """``name <address>``, with the name in quotes where it would be read as something else."""
    name, address = force_text(name), force_text(address)
    plain = f"{name} <{address}>"
    is_clear = split_mailbox(plain) == (name.strip(), address.strip()) and not re.search("[<>]", name)
    if is_clear and not _TWO_ADDRESSES.search(name):
        return plain
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}" <{address}>'


def same_mailbox(address: str) -> str:
    """A key that is equal for the spellings of one mailbox: the domain is the same in any case."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}"


def parse_mailbox(value: object, field: str = "the address") -> Mailbox:
    """Take one address apart, by allow-list. Raises BadAddressError, or BadHeaderError for control characters."""
    simple = _SIMPLE.fullmatch(value) if type(value) is str else None
    if simple and len(simple[0]) <= 254 and len(simple[1]) <= 64 and _wire_domain(simple[2]):
        return Mailbox("", simple[0])
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise BadAddressError(f"{field} {value!r} is not a pair (name, address).")
        if isinstance(value, list) and _LOOKS_LIKE_ADDRESS.fullmatch(force_text(value[0] or "")):
            raise BadAddressError(f"{field} {value!r} is a list of two addresses where one belongs.")
        name, address = (force_text(part or "") for part in value)
        check_text(field, name)
        check_text(field, address)
        return Mailbox(name.strip(), _checked(address.strip(), value, field))
    text = force_text(value)
    check_text(field, text)
    name, address = split_mailbox(text)
    before = _QUOTED.sub("", text.rpartition("<")[0]) if name else ""
    if "<" in before or ">" in before:
        raise BadAddressError(f"{field} {text!r} has < or > in its name. Put the name in quotes.")
    if _TWO_ADDRESSES.search(before) or _TWO_ADDRESSES.search(_QUOTED.sub("", address)):
        raise BadAddressError(f"{field} {text!r} holds more than one address. Make each an item of the list.")
    return Mailbox(name, _checked(address, text, field))


def parse_mailboxes(value: object, field: str) -> list[Mailbox]:
    """Take a list of addresses apart. Raises like :func:`parse_mailbox`, naming *field*."""
    return [parse_mailbox(item, field) for item in check_list(field, value)]


def split_mailbox(text: str) -> tuple[str, str]:
    """Split ``"Ada <ada@x>"`` into name and address, without judging either."""
    text = text.strip()
    if not text.endswith(">") or "<" not in text:
        return "", text
    quoted_local = _QUOTED_LOCAL.fullmatch(text)
    name, address = quoted_local.groups() if quoted_local else text[:-1].rsplit("<", 1)
    unquoted = _QUOTED_NAME.sub(lambda quoted: re.sub(r"\\(.)", r"\1", quoted[1]), name)
    return unquoted.strip(), address.strip()


def _checked(address: str, shown: object, field: str) -> str:
    local, at, domain = address.rpartition("@")
    if not at or not local or not domain:
        raise BadAddressError(f"{field} {shown!r} is not an address like name@example.org.")
    if not _is_local(local):
        remedy = f" Quoted it is allowed: '\"{local}\"@{domain}'." if _QUOTED.fullmatch(f'"{local}"') else ""
        raise BadAddressError(f"{field} {shown!r} has a malformed part before the @.{remedy}")
    wire = f"{local}@{_wire_domain(domain) or ''}"
    if wire.endswith("@"):
        raise BadAddressError(f"{field} {shown!r} has a malformed domain.")
    if len(wire.encode()) > 254 or len(local.encode()) > 64:
        raise BadAddressError(f"{field} {shown!r} is too long: at most 64 octets before the @ and 254 in all.")
    return wire


def _is_local(local: str) -> bool:
    if local.startswith('"'):
        return _QUOTED.fullmatch(local) is not None and local.isprintable()
    # A leading dash is an option to any sendmail-like program that the server may hand the address to.
    if local.startswith("-") or not local.isprintable():
        return False
    return all(_ATOM.fullmatch(atom) for atom in local.split("."))


@lru_cache(maxsize=4096)
def _wire_domain(domain: str) -> str | None:
    """The domain in ASCII, IDN as punycode; None if it is malformed."""
    if domain.startswith("["):
        inside = domain[1:-1] if domain.endswith("]") else ""
        try:
            is_v6 = inside[:5].lower() == "ipv6:"
            is_literal = ipaddress.IPv6Address(inside[5:]).scope_id is None if is_v6 else ipaddress.IPv4Address(inside)
        except ValueError:
            return None
        return domain if is_literal else None
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError:
            return None
    # Checked after encoding: IDNA's normalisation turns full-width signs into the ASCII ones that we refuse.
    return domain if len(domain) <= 253 and all(_LABEL.fullmatch(label) for label in domain.split(".")) else None


# ---------------------------------------------------------------- Flask-Mail's functions


def sanitize_subject(subject: str, encoding: str = "utf-8") -> str:
    """*subject* as it stands in a header: itself if ASCII, else as encoded words in *encoding*, or in UTF-8."""
    return subject if subject.isascii() else encoded_words(subject, encoding)


def sanitize_address(addr: Address, encoding: str = "utf-8") -> str:
    """*addr* as it stands in a header: name encoded or quoted, IDN domain in punycode. Cleans, and never raises."""
    if type(addr) is str and _SIMPLE.fullmatch(addr):
        return addr
    name, address = (addr[0] or "", addr[1] or "") if isinstance(addr, tuple | list) else ("", force_text(addr))
    return _sanitized(force_text(name), force_text(address), isinstance(addr, tuple | list), encoding)


def sanitize_addresses(addresses: Iterable[Address], encoding: str = "utf-8") -> list[str]:
    """:func:`sanitize_address` for each."""
    return [sanitize_address(address, encoding) for address in addresses]


@lru_cache(maxsize=4096)
def _sanitized(name: str, address: str, is_pair: bool, encoding: str) -> str:
    try:
        return format_mailbox(parse_mailbox((name, address) if is_pair else address), encoding)
    except BadHeaderError:  # something harmless out of a malformed address
        text = FORBIDDEN.sub("", address)
        if not is_pair:
            name, text = split_mailbox(text)
        inside = parseaddr(text)[1] or text
        local, at, domain = re.sub(r'[\s<>,;:()\[\]\\"]', "", inside).rpartition("@")
        wire = f"{local}{at}{_wire_domain(domain) or domain if at else domain}"
        return format_mailbox(Mailbox(FORBIDDEN.sub("", name), wire), encoding)


def format_mailbox(box: Mailbox, encoding: str = "utf-8") -> str:
    """*box* as it stands in a header, in one line. Like Flask-Mail it encodes even ASCII names."""
    if not box.name:
        return box.address
    if encoding == "utf-8" and _PLAIN_NAME.fullmatch(box.name):
        return f"=?utf-8?q?{box.name.replace(' ', '_')}?= <{box.address}>"
    # formataddr() quotes what charsets leave as it is, but takes no address beyond ASCII.
    name = formataddr((encoded_words(box.name, encoding).replace("\n", ""), "a@b"))[: -len(" <a@b>")]
    return f"{name} <{box.address}>"


@lru_cache(maxsize=2048)
def encoded_words(text: str, encoding: str = "utf-8", header_name: str = "") -> str:
    """RFC 2047 words, folded as :mod:`email` does; in UTF-8 if *encoding* cannot hold *text*."""
    charset = Charset(encoding)
    if charset.input_charset == "utf-8":
        charset = utf8()
    try:
        return Header(text, charset, header_name=header_name or None).encode()
    except (UnicodeEncodeError, LookupError):
        return Header(text, utf8(), header_name=header_name or None).encode()


def utf8() -> Charset:
    """UTF-8 as :mod:`email` writes it, whatever other packages have made of ``email.charset`` in this process."""
    charset = Charset("utf-8")
    charset.header_encoding = SHORTEST
    charset.output_charset = charset.output_codec = "utf-8"
    return charset
