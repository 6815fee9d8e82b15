"""Arguments and results as pages show them: read without making objects, secrets covered, long ones cut. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from inspect import Parameter
from typing import Any

from ..core.tasks import Task

COVER = "•••"
MOST = 8_192
"""Characters of a value that are shown."""
READ = 100_000
"""Characters of stored arguments, or of a result, that are read to be shown: of longer ones nothing is."""
BRIEF = 120
"""Characters of arguments in a list."""

_SECRET = re.compile(
    "pass|pwd|secret|token|key|auth|cookie|card|iban|credential|bearer|signature|session|jwt|csrf|xsrf|cvv|cvc|pincode"
    "|(?:access|security|verification|recovery|backup|one.?time)_?code"
    "|(?:^|[^a-z])(?:pin|otp|totp|sig|sid|cred|mfa)s?(?:[^a-z]|$)"
)
"""What is in the name of a secret, in lower case and with a _ between its words."""
_WORDS = re.compile("(?<=[a-z0-9])(?=[A-Z])")
_TEXTS = (
    # The password in an address; also one with an @ in it, which should have been quoted.
    ("://", re.compile(r"(\w://[^/\s:@]*):[^/\s]+@"), rf"\1:{COVER}@"),
    ("://", re.compile(r"(\bhttps?://|\w://(?=[^/\s:@]{20}))[^/\s:@]+@"), rf"\1{COVER}@"),
    ("://", re.compile(r"(\bhttps?://)[^/\s:@]{20,}:"), rf"\1{COVER}:"),
    # Header lines, and pairs of a header and its value.
    (
        "",
        re.compile(
            r"""(?i)((?:\b(?:proxy-)?authorization|\b(?:set-)?cookie|-(?:key|token|auth|secret|signature)(?:-\d{1,4})?)"""
            r"""["']?\s{0,9}[:,]\s{0,9}(?:b(?=["']))?["']?)[^\n"',][^\n"']*"""
        ),
        rf"\1{COVER}",
    ),
    ("bearer", re.compile(r"(?i)\b(bearer\s{1,9})[\w.~+/=-]{8,}"), rf"\1{COVER}"),
    # DSNs, and whatever else is written as name=value.
    (
        "=",
        re.compile(
            r"""(?i)((?:password|passwd|pwd|secret|token|credential|signature|jwt|(?:api|access|private|account)_?key"""
            r"""|\b(?:pass|otp|pin|cvv)\b)[\w-]{0,40}\s?=\s?)('[^']*'|"[^"]*"|[^\s;&,)"']+)"""
        ),
        rf"\1{COVER}",
    ),
    # Tokens that say what they are: JWT, GitHub, Slack, Stripe, AWS, Telegram.
    ("eyj", re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), COVER),
    ("", re.compile(r"\b(?:gh[a-z]_\w{20,}|xox[a-z]-[\w-]{10,}|[sr]k_(?:live|test)_\w{10,}|AKIA[0-9A-Z]{16})"), COVER),
    ("/bot", re.compile(r"/bot\d+:[\w-]{20,}"), f"/bot{COVER}"),
)
"""What each needs to be in the text, in lower case; what is covered; and how."""
_QUERY = re.compile(r"""([?&#;])([^=&?#\s]{1,80})=[^&?#\s"'<>]+(?:#[^=&?\s"'<>]*+(?=[\s"'<>]|$))?""")
"""An argument in an address."""
_ADDRESS = re.compile(r"""\bhttps?://[^\s"'<>]+""")
_PATH_TOKEN = re.compile(r"(?<=/)(?=[\w:~=-]*\d)(?=[\w:~=-]*[A-Za-z])[\w:~=-]{24,}+(?=[/?#]|$)")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_AnyTask = Task[..., Any, Any] | None


class Unreadable(ValueError):
    """What is stored is not what the codec writes, or only its beginning was read."""


def arguments(text: str, task: _AnyTask) -> dict[str, Any]:
    """The arguments of a stored call by name, covered. Raises Unreadable.

    What an unknown task calls secret is unknown too: all of its values are covered, and the positional ones numbered.
    """
    call = _load(text)
    if not isinstance(call, list) or len(call) != 2 or not isinstance(call[0], list) or not isinstance(call[1], dict):
        raise Unreadable
    secret = _secrets(task)
    named = [*zip(_names(task, len(call[0])), call[0], strict=True), *call[1].items()]
    return {name: COVER if task is None or covers(name, task) else _plain(value, secret) for name, value in named}


def covers(name: str, task: _AnyTask) -> bool:
    """Whether the value of this argument is covered: for its name, or for that of the ``**rest`` which takes it."""
    secret, parameters = _secrets(task), {} if task is None else task._signature.parameters
    rest = next((p.name for p in parameters.values() if p.kind is Parameter.VAR_KEYWORD), "")
    is_rest = name.partition("[")[0] not in parameters
    return _is_secret(name, secret) or (is_rest and _is_secret(rest, secret))


def result(text: str | None, task: _AnyTask) -> Any:
    """A stored result, covered; that of an unknown task as a whole. Raises Unreadable."""
    secret = _secrets(task)
    if text is None:
        return None
    return COVER if task is None or "return" in secret else _plain(_load(text), secret)


def brief(values: Mapping[str, Any]) -> str:
    """Arguments on one line: ``user_id=42 token=•••``."""
    line = " ".join(f"{name}={value if value == COVER else _json(value)}" for name, value in values.items())
    return line if len(line) <= BRIEF else f"{line[:BRIEF]}…"


def pretty(value: Any, most: int | None = MOST) -> str:
    """A covered value as lines, cut at *most* characters."""
    text = _json(value, indent=2)
    if most is None or len(text) <= most:
        return text
    return f"{text[:most]}\n… ({len(text):,} characters; these are the first)"


def cut(value: Any) -> Any:
    """A covered value for JSON: itself, or the beginning of its text where that is too long."""
    return value if len(_json(value)) <= MOST else pretty(value)


def without_logins(text: str) -> str:
    """Words with what logs in covered: passwords, keys and tokens in addresses, headers, DSNs and by themselves."""
    if "=" in text or "://" in text:
        text = _QUERY.sub(lambda one: f"{one[1]}{one[2]}={COVER}" if _has_secret_name(one[2]) else one[0], text)
        text = _ADDRESS.sub(lambda address: without_path_tokens(address[0]), text)
    lower = text.lower()
    for needed, pattern, cover in _TEXTS:
        if needed in lower:
            text = pattern.sub(cover, text)
    return text


def without_path_tokens(address: str) -> str:
    """An address, or a path, with those of its parts covered that are long and random; a UUID is left."""
    return _PATH_TOKEN.sub(lambda part: part[0] if _UUID.fullmatch(part[0]) else COVER, address)


def _has_secret_name(name: str) -> bool:
    return bool(_SECRET.search(_WORDS.sub("_", name).lower().replace("-", "_")))


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable from None


def _secrets(task: _AnyTask) -> frozenset[str]:
    return frozenset() if task is None else frozenset(name.lower() for name in task.options.sensitive)


def _names(task: _AnyTask, number: int) -> Iterator[str]:
    """The names of that many positional arguments."""
    parameters = [] if task is None else list(task._signature.parameters.values())
    plain = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is Parameter.VAR_POSITIONAL), "argument")
    for i in range(number):
        yield plain[i] if i < len(plain) else f"{rest}[{i - len(plain)}]"


def _named(name: str, value: Any, secret: frozenset[str]) -> Any:
    return COVER if _is_secret(name, secret) else _plain(value, secret)


def _is_secret(name: str, secret: frozenset[str]) -> bool:
    # "tokens[1]" is the second of *tokens.
    return _has_secret_name(name) or name.lower().partition("[")[0] in secret


def _plain(value: Any, secret: frozenset[str]) -> Any:
    try:
        return _uncovered(value, secret)
    except RecursionError:
        raise Unreadable from None


def _uncovered(value: Any, secret: frozenset[str]) -> Any:
    if isinstance(value, str):
        return without_logins(value)
    if isinstance(value, list):
        return _listed(value, secret)
    if not isinstance(value, dict):
        return value
    if "$" in value:
        return _tagged(value, secret)
    named = next((value[name] for name in ("name", "header", "key") if isinstance(value.get(name), str)), "")
    if "value" in value and _is_secret(named, secret):
        return {**{key: _uncovered(one, secret) for key, one in value.items()}, "value": COVER}
    return {key: _named(key, one, secret) for key, one in value.items()}


def _listed(values: list[Any], secret: frozenset[str]) -> list[Any]:
    """A list; or a pair of a name, such as a header's, and its value."""
    match values:
        case [str() as name, value] if _is_secret(name, secret):
            return [name, COVER if value is not None else None]
        case _:
            return [_uncovered(one, secret) for one in values]


def _tagged(value: dict[str, Any], secret: frozenset[str]) -> Any:
    """What the codec has written for a type that JSON does not have; see codec.py."""
    tag, inner, name = value.get("$"), value.get("v"), value.get("t")
    match tag:
        case "dict" if isinstance(inner, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in inner):
            pairs = [(key if isinstance(key, str) else _json(_uncovered(key, secret)), one) for key, one in inner]
            return {key: _named(key, one, secret) for key, one in pairs}
        case "dataclass" if isinstance(inner, dict):
            return {"type": name, **{key: _named(key, one, secret) for key, one in inner.items()}}
        case "bytes" if isinstance(inner, str):
            return f"({len(inner) * 3 // 4} bytes)"
        case "timedelta" if isinstance(inner, list):
            return f"timedelta{inner}"
        case "enum" | "flag":
            return f"{name}.{inner}"
    return _uncovered(inner, secret)
