"""Arguments and results to JSON text and back.

What JSON cannot say is a tagged object, ``{"$": "tuple", "v": [1, 2]}``; a user's dict that has the key ``"$"``
itself is written as a tagged list of pairs. A call is the array ``[args, kwargs]``.

Stored text is not trusted: write access to the database must not give more than wrong values. No name in a text
is ever imported or looked up as an attribute. Dataclasses and enums come from the codec's own registry only, which the
program fills: by :meth:`Codec.register`, and from the type hints of the functions given to :meth:`Codec.learn`.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import inspect
import json
import math
import re
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cached_property
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from ..errors import DeclarationError, NotDecodable, NotEncodable
from .hints import hints_of, is_registrable, named_types, type_name

MAX_BYTES = 1_048_576
"""The most bytes of UTF-8 that one call's arguments, or one result, may take as JSON."""

MAX_DEPTH = 100
"""The deepest nesting of brackets in a text. A list takes one level, a tuple two, a dict with other keys three."""

MAX_DIGITS = 4300
"""The most digits that an int may have: what Python itself is willing to read by default."""

MAX_EQUAL_HASHES = 100
"""The most members of a set, or keys of a dict, that may have the same hash: ints can be chosen so."""

TAG = "$"
EMPTY_CALL = "[[],{}]"

_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_PLAIN = frozenset({str, int, float, bool, type(None)})
_MAX_INT = 10**MAX_DIGITS
_COLLIDE = f"has more than {MAX_EQUAL_HASHES} members of the same hash"
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+\-]+(?:/[A-Za-z0-9_+\-]+)*")


class UnknownType(NotDecodable):
    """A stored value has a type that this version of the code does not know; another version may."""


class Codec:
    """Encodes and decodes for one registry of types. Safe to use from any thread."""

    def __init__(self) -> None:
        self._by_name: dict[str, type] = {}
        self._by_type: dict[type, str] = {}
        # Weakly: a factory that is called again leaves its functions, and with them its last app, to be collected.
        self._unread: list[Callable[[], Any]] = []
        self._unresolved: dict[str, None] = {}
        # Reentrant: evaluating a hint may run code that declares a task.
        self._lock = threading.RLock()

    # ---- the registry ----

    def register(self, *types: type) -> None:
        """Allow these dataclasses and enums, and those that the fields of the dataclasses name.

        A class that is declared again under the same name replaces the earlier. Raises DeclarationError for others.
        """
        for cls in types:
            if not is_registrable(cls):
                raise DeclarationError(f"{cls!r} cannot be registered. Only dataclasses and enums can.")
        with self._lock:
            for cls in types:
                self._add(cls)

    def learn(self, function: Callable[..., Any]) -> None:
        """Allow the dataclasses and enums that the type hints of *function* name, for parameters and for the result.

        The hints are read when a type is first missing, for names in them may not be defined yet. A hint that cannot
        be resolved then is left for the next time.
        """
        with self._lock:
            self._unread.append(weakref.ref(inspect.unwrap(function)))

    def _add(self, cls: type) -> None:
        if cls in self._by_type:
            return
        name = type_name(cls)
        self._by_type[cls] = name
        self._by_name[name] = cls
        if dataclasses.is_dataclass(cls):
            self._unread.append(weakref.ref(cls))

    def _read_hints(self) -> None:
        """Resolve what has been given so far; classes found on the way join the list while it is walked."""
        with self._lock:
            again = []
            self._unresolved.clear()
            while self._unread:
                find_owner = self._unread.pop()
                owner = find_owner()
                if owner is None:
                    continue
                hints, unresolved = hints_of(owner)
                for cls in named_types(hints):
                    self._add(cls)
                if unresolved:
                    again.append(find_owner)
                    self._unresolved |= dict.fromkeys(f"{owner.__qualname__}({name})" for name in unresolved)
            self._unread = again

    def _name_of(self, cls: type) -> str | None:
        if cls not in self._by_type and is_registrable(cls):
            self._read_hints()
        return self._by_type.get(cls)

    def _unknown(self, cls: type) -> str:
        """Why a value of *cls* is refused, and the remedy."""
        name = f"{cls.__module__}.{cls.__qualname__}"
        if is_registrable(cls):
            remedy = "Annotate the task's parameter with it, or register the class."
            if self._unresolved:
                hints = ", ".join(list(self._unresolved)[:3])
                remedy = (
                    f"The annotation of {hints} cannot be resolved, perhaps because its name is imported under "
                    "TYPE_CHECKING. Import the name at run time, or register the class: task_worker.register_type(…)."
                )
            return f"is a {name}, which is not registered. {remedy}"
        base = next((base.__name__ for base in cls.__mro__ if base in _STORABLE), None)
        remedy = f"Convert it with {base}(…)" if base else "Pass a plain value, for example an id"
        return f"is a {name}, which cannot be stored as JSON. {remedy}, or make it a dataclass and register that."

    def _type_of(self, name: str) -> type | None:
        if name not in self._by_name:
            self._read_hints()
        return self._by_name.get(name)

    # ---- out ----

    def encode_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The arguments of one call as JSON. Raises NotEncodable with the place of the value, its type and a remedy."""
        if not args and not kwargs:
            return EMPTY_CALL
        # The types, not the values: a set of them is made faster than any loop.
        kinds = {*map(type, args), *map(type, kwargs.values())}
        if kinds <= _PLAIN and {*map(type, kwargs)} <= {str} and (text := _dump_plain([args, kwargs])) is not None:
            return text
        return _dump(_Packer(self._name_of, self._unknown).call(args, kwargs), "The arguments of this call take")

    def encode(self, value: Any) -> str:
        """One value as JSON. Raises NotEncodable with the place of the value, its type and a remedy."""
        if type(value) in _PLAIN and (text := _dump_plain(value)) is not None:
            return text
        return _dump(_Packer(self._name_of, self._unknown).packed("value", value, 0), "This value takes")

    def shown(self, value: Any) -> str:
        """A value as a filter names it: text as it is, anything else as JSON. Raises NotEncodable."""
        return value if isinstance(value, str) else json.dumps(json.loads(self.encode(value)))

    # ---- in ----

    def decode_call(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What :meth:`encode_call` was given. Raises NotDecodable, and nothing else, for any other text."""
        if text == EMPTY_CALL:
            return (), {}
        call = _load(text)
        if type(call) is not list or len(call) != 2 or type(call[0]) is not list or type(call[1]) is not dict:
            raise NotDecodable("The stored call is not [arguments, keyword arguments].")
        args, kwargs = call
        if '"$"' not in text:
            return tuple(args), kwargs
        unpack = _Unpacker(self._type_of).value
        return tuple(map(unpack, args)), {key: unpack(value) for key, value in kwargs.items()}

    def decode(self, text: str) -> Any:
        """What :meth:`encode` was given. Raises NotDecodable, and nothing else, for any other text."""
        value = _load(text)
        return _Unpacker(self._type_of).value(value) if '"$"' in text else value


# ---- text out ----


def _dump_plain(value: Any) -> str | None:
    """The short text of a value that holds only scalars; None if the careful way has to look at it."""
    try:
        text = _dumps(value)
        if not text.isascii():
            text.encode()
    except ValueError:
        return None
    # In a short text no int is too long.
    return text if len(text) <= MAX_DIGITS else None


def _dump(value: Any, subject: str) -> str:
    """The text of a packed value, unless it is too large."""
    try:
        text = _dumps(value)
    except ValueError as error:  # an int that sys.set_int_max_str_digits() forbids
        raise NotEncodable(f"{subject} what JSON cannot hold: {error}") from error
    size = len(text) if text.isascii() else len(text.encode())
    if size > MAX_BYTES:
        raise NotEncodable(
            f"{subject} {size:,} bytes as JSON; at most {MAX_BYTES:,} are stored. "
            "Store the data elsewhere, in a file or a table, and pass its key."
        )
    return text


class _Refused(Exception):
    """A value cannot be packed; the steps to it are collected on the way out, innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.steps: list[str] = []


class _Packer:
    """Turns values into what JSON can say, and refuses what would not come back equal."""

    def __init__(self, name_of: Callable[[type], str | None], unknown: Callable[[type], str]) -> None:
        self._name_of = name_of
        self._unknown = unknown

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments packed, for an array of two."""
        named = {}
        for key, value in kwargs.items():
            if type(key) is not str:
                raise NotEncodable(f"The keyword {key!r} is not a string.")
            self.packed(f"the keyword {key!r}", key, 0)
            named[key] = self.packed(f"kwargs[{key!r}]", value, 2)
        return [[self.packed(f"args[{index}]", value, 2) for index, value in enumerate(args)], named]

    def packed(self, root: str, value: Any, depth: int) -> Any:
        """*value* packed at *depth* levels of brackets; its place begins with *root* in messages."""
        try:
            return self._pack(value, depth)
        except _Refused as refused:
            # Outermost step first; a long way only in part.
            place = "".join(refused.steps[:-21:-1]) + ("…" if len(refused.steps) > 20 else "")
            raise NotEncodable(f"{root}{place} {refused}") from None
        except RecursionError:
            raise NotEncodable(f"{root} is nested too deeply for the stack that is left here.") from None

    def _pack(self, value: Any, depth: int) -> Any:  # noqa: C901 - one case a type
        kind = type(value)
        if kind is str:
            if not value.isascii() and value.encode(errors="replace") != value.encode(errors="surrogatepass"):
                raise _Refused("holds half a surrogate pair, which no database stores. Clean the text first.")
        elif kind is int:
            if not -_MAX_INT < value < _MAX_INT:
                raise _Refused(f"is an int of more than {MAX_DIGITS} digits. Pass it as bytes: value.to_bytes(…).")
        elif kind is float:
            if not math.isfinite(value):
                raise _Refused(f"is {value}, which JSON cannot hold. Pass None or a text instead.")
        elif kind is list:
            return self._pack_list(value, depth)
        elif kind is tuple:
            return {TAG: "tuple", "v": self._pack_list(value, depth + 1)}
        elif kind is dict:
            if TAG not in value and all(type(key) is str for key in value):
                _check_depth(depth)
                child = self._child
                return {child(k, depth, " key %s", k): child(one, depth + 1, "[%s]", k) for k, one in value.items()}
            _check_depth(depth + 2)
            pairs = [
                [self._child(key, depth + 3, " key %s", key), self._child(one, depth + 3, "[%s]", key)]
                for key, one in value.items()
            ]
            return {TAG: "dict", "v": pairs}
        elif kind is set or kind is frozenset:
            _check_depth(depth + 1)
            if _colliding(value):
                raise _Refused(f"{_COLLIDE}, so it could not be read again. Pass a list.")
            members = [self._child(one, depth + 2, " member %s", one) for one in value]
            return {TAG: kind.__name__, "v": members}
        elif kind not in _PLAIN:
            return self._pack_tagged(value, depth)
        return value

    def _pack_list(self, value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        _check_depth(depth)
        return [self._child(one, depth + 1, "[%s]", index) for index, one in enumerate(value)]

    def _child(self, value: Any, depth: int, step: str, key: object) -> Any:
        try:
            return self._pack(value, depth)
        except _Refused as refused:
            # A user's __repr__ may raise.
            shown = repr(key)[:80] if type(key) in _PLAIN else f"<{type(key).__name__}>"
            refused.steps.append(step.replace("%s", shown))
            raise

    def _pack_tagged(self, value: Any, depth: int) -> dict[str, Any]:
        """A value that JSON has no form for: one of the standard library's, an enum or a dataclass."""
        cls = type(value)
        _check_depth(depth + 1)
        if cls.__module__ == "freezegun.api":
            cls = next(base for base in cls.__mro__ if base in _LEAVES)
        if (leaf := _LEAVES.get(cls)) is not None:
            tag, encode = leaf
            packed = {TAG: tag, "v": encode(value)}
            return packed | _zone_and_fold(value) if tag in ("datetime", "time") else packed
        name = self._name_of(cls)
        if name is None:
            raise _Refused(self._unknown(cls))
        if isinstance(value, enum.Flag):
            return {TAG: "flag", "v": self._pack(value.value, depth), "t": name}
        if isinstance(value, enum.Enum):
            if cls.__members__.get(value.name) is not value:
                raise _Refused(f"is a {name} that is none of its members, so it could not be read again.")
            return {TAG: "enum", "v": value.name, "t": name}
        names = [field.name for field in dataclasses.fields(value)]
        _check_state(value, names)
        # The constructor does not run again on arrival. A field that it leaves out may not be set yet.
        fields = {n: self._child(getattr(value, n), depth + 2, f".{n}", None) for n in names if hasattr(value, n)}
        return {TAG: "dataclass", "t": name, "v": fields}


_LEAVES: dict[type, tuple[str, Callable[[Any], Any]]] = {
    datetime: ("datetime", lambda value: value.replace(tzinfo=_offset_only(value)).isoformat()),
    time: ("time", lambda value: value.replace(tzinfo=_offset_only(value)).isoformat()),
    date: ("date", date.isoformat),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("decimal", lambda value: str(_finite_decimal(value))),
    UUID: ("uuid", str),
    bytes: ("bytes", lambda value: base64.b64encode(value).decode("ascii")),
}
_STORABLE = (*_PLAIN, *_LEAVES, list, tuple, set, frozenset, dict)


def _check_depth(depth: int) -> None:
    """Refuse a bracket that opens at *depth*, the number of brackets that are open already."""
    if depth >= MAX_DEPTH:
        raise _Refused(f"is nested deeper than {MAX_DEPTH} levels, or holds itself. Pass a flatter value.")


def _check_state(value: Any, names: Sequence[str]) -> None:
    """Refuse a dataclass that is more than its fields: the rest would not arrive."""
    cls = type(value)
    state = object.__getstate__(value)  # what __dict__ and __slots__ hold, whatever the class says
    parts = state if isinstance(state, tuple) else (state,)
    held = {name for part in parts if part for name in part}
    if "_sa_instance_state" in held:
        raise _Refused(
            f"is a row of the table of {type_name(cls)}, which would be inserted again. Pass its primary key."
        )
    base = next(base for base in cls.__mro__ if "__new__" in vars(base))
    if base is not object:
        raise _Refused(f"is a {type_name(cls)}, built by {base.__name__}.__new__. Pass plain values.")
    others = sorted(name for name in held - set(names) if not isinstance(getattr(cls, name, None), cached_property))
    if others:
        raise _Refused(
            f"is a {type_name(cls)} with the attribute {others[0]!r}, which is not one of its fields and would be "
            f"lost. Declare it as {others[0]}: … = field(init=False), or pass plain values."
        )


def _offset_only(value: datetime | time) -> timezone | None:
    return value.tzinfo if type(value.tzinfo) is timezone else None


def _finite_decimal(value: Decimal) -> Decimal:
    if not value.is_finite():
        raise _Refused(f"is Decimal('{value}'). Only finite numbers are stored; pass None or a text instead.")
    return value


def _zone_and_fold(value: datetime | time) -> dict[str, Any]:
    """What the ISO text does not say: the key of the zone, and which of two equal hours is meant."""
    zone, packed = value.tzinfo, {"fold": 1} if value.fold else {}
    if zone is None or type(zone) is timezone:
        return packed
    if type(zone) is not ZoneInfo or zone.key is None:
        raise _Refused(f"has a time zone of type {type_name(type(zone))}. Use datetime.timezone or a named ZoneInfo.")
    return {**packed, "tz": zone.key}


def _colliding(members: Collection[Any]) -> bool:
    """Whether members were chosen to have one hash: each would be compared with all before it, on the event loop."""
    return len(members) > MAX_EQUAL_HASHES and max(Counter(map(hash, members)).values()) > MAX_EQUAL_HASHES


# ---- text in ----


def _load(text: str) -> Any:
    """The bare JSON value of *text*."""
    if not isinstance(text, str):
        raise NotDecodable(f"What is stored is a value of type {type(text).__name__}, not text.")
    try:
        if not text.isascii():
            text.encode()
        value = _parse(text)
        # \ud800 in an escape is half a character, which only shows when it is written again.
        if "\\u" in text:
            _dumps(value).encode()
    except (ValueError, RecursionError) as error:
        # Nothing of it is repeated: errors are logged, and read by those who may not see arguments.
        raise NotDecodable(f"The stored text of {len(text):,} characters cannot be read: {error}") from error
    return value


def _number(text: str) -> float:
    """A finite number; NaN and Infinity are constants of Python's JSON alone."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


_parse = json.JSONDecoder(parse_float=_number, parse_constant=_number).decode


class _Unpacker:
    """Turns what JSON said back into values."""

    def __init__(self, type_of: Callable[[str], type | None]) -> None:
        self._type_of = type_of

    def value(self, value: Any) -> Any:
        """*value* unpacked. Raises NotDecodable."""
        try:
            return self._unpack(value)
        except NotDecodable:
            raise
        # An unknown zone is a LookupError, a folder of zones an OSError, and sets hash and compare the user's classes.
        except Exception as error:
            raise NotDecodable(f"A stored value cannot be read: {type(error).__name__}: {str(error)[:200]}") from error

    def _unpack(self, value: Any) -> Any:  # noqa: C901 - one case a tag
        if type(value) is list:
            return [self._unpack(one) for one in value]
        if type(value) is not dict:
            return value
        if TAG not in value:
            return {key: self._unpack(one) for key, one in value.items()}
        match value:
            case {"$": "dataclass" | "enum" | "flag" as kind, "t": str(name), "v": inner} if len(value) == 3:
                cls = self._type_of(name)
                if cls is None:
                    raise UnknownType(
                        f"The stored type {name[:200]!r} is not registered. Annotate a task's parameter with it, or "
                        "register the class; it must have the name that it had then."
                    )
                if kind == "dataclass" and dataclasses.is_dataclass(cls) and type(inner) is dict:
                    return self._dataclass(cls, inner)
                if kind == "enum" and issubclass(cls, enum.Enum) and type(inner) is str:
                    return cls.__members__[inner]
                if kind == "flag" and issubclass(cls, enum.Flag) and type(inner) is int:
                    return cls(inner)
                raise ValueError(f"{name} is not a {kind}, or its value is not one of those")
            case {"$": "tuple" | "set" | "frozenset" as kind, "v": list(inner)} if len(value) == 2:
                members = [self._unpack(one) for one in inner]
                if kind == "tuple":
                    return tuple(members)
                _require(not _colliding(members), _COLLIDE)
                return set(members) if kind == "set" else frozenset(members)
            case {"$": "dict", "v": list(inner)} if len(value) == 2:
                pairs = [
                    (self._unpack(key), self._unpack(one)) for key, one in (_checked(pair, list) for pair in inner)
                ]
                _require(not _colliding([key for key, _ in pairs]), _COLLIDE)
                return dict(pairs)
            case {"$": "datetime" | "time" as kind, "v": str(wall), **rest}:
                return _unzoned(kind, wall, **rest)
            case {"$": str(tag), "v": inner} if len(value) == 2 and tag in _READERS:
                return _READERS[tag](inner)
        raise ValueError(f"{str(value[TAG])[:40]!r} is not the tag of a value that this version knows")

    def _dataclass(self, cls: type, inner: dict[str, Any]) -> Any:
        """An instance with the stored fields. Those that were added to the class since then have their defaults."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        _require(inner.keys() <= fields.keys(), f"{', '.join(inner)[:200]} are not the fields of {type_name(cls)}")
        built: Any = object.__new__(cls)
        for name, field in fields.items():
            if name in inner:
                object.__setattr__(built, name, self._unpack(inner[name]))
            elif field.default is not dataclasses.MISSING:
                object.__setattr__(built, name, field.default)
            elif field.default_factory is not dataclasses.MISSING:
                object.__setattr__(built, name, field.default_factory())
            elif field.init:
                raise NotDecodable(f"A stored {type_name(cls)} cannot be built: its field {name} is missing.")
        return built


_PARTS = ("days", "seconds", "microseconds")
_READERS: dict[str, Callable[[Any], Any]] = {
    "date": lambda inner: date.fromisoformat(_checked(inner, str)),
    "timedelta": lambda inner: timedelta(
        **{part: _checked(value, int) for part, value in zip(_PARTS, _checked(inner, list), strict=True)}
    ),
    "decimal": lambda inner: _finite_decimal(Decimal(_checked(inner, str))),
    "uuid": lambda inner: UUID(_checked(inner, str)),
    "bytes": lambda inner: base64.b64decode(_checked(inner, str), validate=True),
}


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _checked(value: Any, wanted: type) -> Any:
    _require(type(value) is wanted, f"a {type(value).__name__} is not a {wanted.__name__}")
    return value


def _unzoned(kind: str, wall: str, tz: Any = None, fold: Any = 0) -> datetime | time:
    value = datetime.fromisoformat(wall) if kind == "datetime" else time.fromisoformat(wall)
    zone: tzinfo | None = value.tzinfo
    if tz is not None:
        _require(
            zone is None and _ZONE_KEY.fullmatch(_checked(tz, str)) is not None,
            f"{str(tz)[:80]!r} is not a zone for {wall[:80]!r}",
        )
        zone = ZoneInfo(tz)
    _require(type(fold) is int and fold in (0, 1), f"{str(fold)[:80]} is not a fold")
    return value.replace(tzinfo=zone, fold=fold)
