"""Arguments and results to JSON text and back.

What JSON cannot say is a tagged object, ``{"$": "tuple", "v": [1, 2]}``; a user's dict that has the key ``"$"``
itself is written as a tagged list of pairs. A call is the array ``[args, kwargs]``.

Stored text is not trusted: whoever can write to the database must not gain more than wrong values. No name in a text
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
from collections.abc import Callable, Mapping, Sequence
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
_STRINGS = re.compile(r'"(?:[^"\\]++|\\.)*+["\\]?', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")
_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
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
            self._unread.append(_weakly(inspect.unwrap(function)))

    def _add(self, cls: type) -> None:
        if cls in self._by_type:
            return
        name = type_name(cls)
        self._by_type[cls] = name
        self._by_name[name] = cls
        if dataclasses.is_dataclass(cls):
            self._unread.append(_weakly(cls))

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
        base = next((base.__name__ for base in cls.__mro__ if base in _PACKERS), None)
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
        for value in args:
            if type(value) not in _PLAIN:
                break
        else:
            for key, value in kwargs.items():
                if type(value) not in _PLAIN or type(key) is not str:
                    break
            else:
                text = _dump_plain([args, kwargs])
                if text is not None:
                    return text
        return _dump(_Packer(self._name_of, self._unknown).call(args, kwargs), "The arguments of this call take")

    def encode(self, value: Any) -> str:
        """One value as JSON. Raises NotEncodable with the place of the value, its type and a remedy."""
        if type(value) in _PLAIN:
            text = _dump_plain(value)
            if text is not None:
                return text
        return _dump(_Packer(self._name_of, self._unknown).value(value), "This value takes")

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


def _weakly(owner: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(owner)
    except TypeError:
        return lambda: owner


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

    def place(self) -> str:
        """The way to the value, outermost step first; a long way only in part."""
        return "".join(self.steps[:-21:-1]) + ("…" if len(self.steps) > 20 else "")


class _Packer:
    """Turns values into what JSON can say, and refuses what would not come back equal."""

    def __init__(self, name_of: Callable[[type], str | None], unknown: Callable[[type], str]) -> None:
        self._name_of = name_of
        self._unknown = unknown

    def value(self, value: Any) -> Any:
        """*value* packed; its place is called "value" in messages."""
        return self._packed("value", value, 0)

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments packed, for an array of two."""
        named = {}
        for key, value in kwargs.items():
            if type(key) is not str:
                raise NotEncodable(f"The keyword {key!r} is no string.")
            self._packed(f"the keyword {key!r}", key, 0)
            named[key] = self._packed(f"kwargs[{key!r}]", value, 2)
        return [[self._packed(f"args[{index}]", value, 2) for index, value in enumerate(args)], named]

    def _packed(self, root: str, value: Any, depth: int) -> Any:
        try:
            return self._pack(value, depth)
        except _Refused as refused:
            raise NotEncodable(f"{root}{refused.place()} {refused}") from None
        except RecursionError:
            raise NotEncodable(f"{root} is nested too deeply for the stack that is left here.") from None

    def _pack(self, value: Any, depth: int) -> Any:
        """*value* at *depth* levels of brackets."""
        packer = _PACKERS.get(type(value))
        return packer(self, value, depth) if packer is not None else self._pack_registered(value, depth)

    def _child(self, value: Any, depth: int, step: str, key: object) -> Any:
        try:
            return self._pack(value, depth)
        except _Refused as refused:
            refused.steps.append(step % _shown(key))
            raise

    def _pack_str(self, value: str, depth: int) -> str:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _Refused("holds half a surrogate pair, which no database stores. Clean the text first.") from None
        return value

    def _pack_int(self, value: int, depth: int) -> int:
        if not -_MAX_INT < value < _MAX_INT:
            raise _Refused(f"is an int of more than {MAX_DIGITS} digits. Pass it as bytes: value.to_bytes(…).")
        return value

    def _pack_float(self, value: float, depth: int) -> float:
        if not math.isfinite(value):
            raise _Refused(f"is {value}, which JSON cannot hold. Pass None or a text instead.")
        return value

    def _pack_same(self, value: Any, depth: int) -> Any:
        return value

    def _pack_list(self, value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        _check_depth(depth)
        return [self._child(one, depth + 1, "[%s]", index) for index, one in enumerate(value)]

    def _pack_tuple(self, value: tuple[Any, ...], depth: int) -> dict[str, Any]:
        return {TAG: "tuple", "v": self._pack_list(value, depth + 1)}

    def _pack_set(self, value: set[Any] | frozenset[Any], depth: int) -> dict[str, Any]:
        _check_depth(depth + 1)
        try:
            _check_hashes(list(value))
        except ValueError as error:
            raise _Refused(f"could not be read again: {error}. Pass a list.") from None
        members = [self._child(one, depth + 2, " member %s", one) for one in value]
        return {TAG: type(value).__name__, "v": members}

    def _pack_dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        if TAG in value or not all(type(key) is str for key in value):
            return {TAG: "dict", "v": self._pack_pairs(value, depth + 2)}
        _check_depth(depth)
        return {
            self._child(key, depth, " key %s", key): self._child(one, depth + 1, "[%s]", key)
            for key, one in value.items()
        }

    def _pack_pairs(self, value: dict[Any, Any], depth: int) -> list[list[Any]]:
        _check_depth(depth)
        return [
            [self._child(key, depth + 1, " key %s", key), self._child(one, depth + 1, "[%s]", key)]
            for key, one in value.items()
        ]

    def _pack_datetime(self, value: datetime, depth: int) -> dict[str, Any]:
        return _leaf("datetime", value.replace(tzinfo=_offset_only(value)).isoformat(), depth) | _zone_and_fold(value)

    def _pack_time(self, value: time, depth: int) -> dict[str, Any]:
        return _leaf("time", value.replace(tzinfo=_offset_only(value)).isoformat(), depth) | _zone_and_fold(value)

    def _pack_date(self, value: date, depth: int) -> dict[str, Any]:
        return _leaf("date", value.isoformat(), depth)

    def _pack_timedelta(self, value: timedelta, depth: int) -> dict[str, Any]:
        return _leaf("timedelta", [value.days, value.seconds, value.microseconds], depth)

    def _pack_decimal(self, value: Decimal, depth: int) -> dict[str, Any]:
        if not value.is_finite():
            raise _Refused(f"is Decimal('{value}'). Only finite numbers are stored; pass None or a text instead.")
        return _leaf("decimal", str(value), depth)

    def _pack_uuid(self, value: UUID, depth: int) -> dict[str, Any]:
        return _leaf("uuid", str(value), depth)

    def _pack_bytes(self, value: bytes, depth: int) -> dict[str, Any]:
        return _leaf("bytes", base64.b64encode(value).decode("ascii"), depth)

    def _pack_registered(self, value: Any, depth: int) -> dict[str, Any]:
        cls = type(value)
        name = self._name_of(cls)
        if name is None:
            raise _Refused(self._unknown(cls))
        if isinstance(value, enum.Flag):
            return _leaf("flag", self._pack_int(value.value, depth), depth) | {"t": name}
        if isinstance(value, enum.Enum):
            if cls.__members__.get(value.name) is not value:
                raise _Refused(f"is a {name} that is none of its members, so it could not be read again.")
            return _leaf("enum", value.name, depth) | {"t": name}
        return {TAG: "dataclass", "t": name, "v": self._pack_fields(value, depth + 1)}

    def _pack_fields(self, value: Any, depth: int) -> dict[str, Any]:
        """All fields, for what comes back is put together from them: the constructor does not run again."""
        _check_depth(depth)
        names = [field.name for field in dataclasses.fields(value)]
        _check_state(value, names)
        # A field that the constructor leaves out may not be set yet.
        present = [name for name in names if hasattr(value, name)]
        return {name: self._child(getattr(value, name), depth + 1, f".{name}%s", None) for name in present}


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


_PACKERS: dict[type, Callable[[_Packer, Any, int], Any]] = {
    str: _Packer._pack_str,
    int: _Packer._pack_int,
    float: _Packer._pack_float,
    bool: _Packer._pack_same,
    type(None): _Packer._pack_same,
    list: _Packer._pack_list,
    tuple: _Packer._pack_tuple,
    set: _Packer._pack_set,
    frozenset: _Packer._pack_set,
    dict: _Packer._pack_dict,
    datetime: _Packer._pack_datetime,
    time: _Packer._pack_time,
    date: _Packer._pack_date,
    timedelta: _Packer._pack_timedelta,
    Decimal: _Packer._pack_decimal,
    UUID: _Packer._pack_uuid,
    bytes: _Packer._pack_bytes,
}


def _check_depth(depth: int) -> None:
    """Refuse a bracket that opens at *depth*, the number of brackets that are open already."""
    if depth >= MAX_DEPTH:
        raise _Refused(f"is nested deeper than {MAX_DEPTH} levels, or holds itself. Pass a flatter value.")


def _leaf(tag: str, inner: Any, depth: int) -> dict[str, Any]:
    _check_depth(depth + 1)
    return {TAG: tag, "v": inner}


def _offset_only(value: datetime | time) -> timezone | None:
    return value.tzinfo if type(value.tzinfo) is timezone else None


def _zone_and_fold(value: datetime | time) -> dict[str, Any]:
    """What the ISO text does not say: the key of the zone, and which of two equal hours is meant."""
    zone, packed = value.tzinfo, {"fold": 1} if value.fold else {}
    if zone is None or type(zone) is timezone:
        return packed
    if type(zone) is not ZoneInfo or zone.key is None:
        raise _Refused(f"has a time zone of type {type_name(type(zone))}. Use datetime.timezone or a named ZoneInfo.")
    return {**packed, "tz": zone.key}


def _shown(key: object) -> str:
    # A user's __repr__ may raise.
    return "" if key is None else repr(key)[:80] if type(key) in _PLAIN else f"<{type(key).__name__}>"


# ---- text in ----


def _load(text: str) -> Any:
    """The bare JSON value of *text*, after every check that can be made before it is taken apart."""
    if not isinstance(text, str):
        raise NotDecodable(f"What is stored is a value of type {type(text).__name__}, not text.")
    try:
        _check_text(text)
        value = _parse(text)
        # \ud800 in an escape is half a character, which only shows when it is written again.
        if "\\u" in text:
            _dumps(value).encode()
    except (ValueError, RecursionError) as error:
        # Nothing of it is repeated: errors are logged, and read by those who may not see arguments.
        raise NotDecodable(f"The stored text of {len(text):,} characters cannot be read: {error}") from error
    return value


def _check_text(text: str) -> None:
    if not text.isascii():
        text.encode()
    if text.count("[") + text.count("{") > MAX_DEPTH and _nesting(text) > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if len(text) > MAX_DIGITS and _LONG_NUMBER.search(text) and _LONG_NUMBER.search(_STRINGS.sub("", text)):
        raise ValueError(f"it holds a number of more than {MAX_DIGITS} digits")


def _nesting(text: str) -> int:
    """The deepest nesting of brackets outside strings, in one pass and without recursion."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


_parse = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant).decode


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
        # Constructors raise what they like: an unknown zone is a LookupError, a folder of zones an OSError, and sets
        # hash and compare the user's dataclasses.
        except Exception as error:
            raise NotDecodable(f"A stored value cannot be read: {type(error).__name__}: {str(error)[:200]}") from error

    def _unpack(self, value: Any) -> Any:
        if type(value) is list:
            return [self._unpack(one) for one in value]
        if type(value) is not dict:
            return value
        if TAG not in value:
            return {key: self._unpack(one) for key, one in value.items()}
        match value:
            case {"$": "dataclass" | "enum" | "flag" as kind, "t": str(name), "v": inner} if len(value) == 3:
                return self._registered(kind, name, inner)
            case {"$": "datetime" | "time" as kind, "v": str(wall), **rest}:
                return _unzoned(kind, wall, **rest)
            case {"$": str(tag), "v": inner} if len(value) == 2 and tag in _UNPACKERS:
                return _UNPACKERS[tag](self, inner)
        raise ValueError(f"{str(value[TAG])[:40]!r} is the tag of no value that this version knows")

    def _registered(self, kind: str, name: str, inner: Any) -> Any:
        cls = self._type_of(name)
        if cls is None:
            raise UnknownType(
                f"The stored type {name[:200]!r} is not registered. "
                "Annotate a task's parameter with it, or register the class; it must have the name that it had then."
            )
        if kind == "dataclass" and dataclasses.is_dataclass(cls):
            return self._dataclass(cls, inner)
        if kind == "enum" and issubclass(cls, enum.Enum) and type(inner) is str:
            return cls.__members__[inner]
        if kind == "flag" and issubclass(cls, enum.Flag) and type(inner) is int:
            return cls(inner)
        raise ValueError(f"{name} is no {kind}, or its value is none")

    def _dataclass(self, cls: type, inner: Any) -> Any:
        """An instance with the stored fields. Those that were added to the class since then have their defaults."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if type(inner) is not dict or not inner.keys() <= fields.keys():
            names = ", ".join(inner)[:200] if type(inner) is dict else f"those of a {type(inner).__name__}"
            raise ValueError(f"{names} are not the fields of {type_name(cls)}")
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

    def _members(self, inner: Any) -> list[Any]:
        return [self._unpack(one) for one in _checked(inner, list)]

    def _distinct(self, inner: Any) -> list[Any]:
        members = self._members(inner)
        _check_hashes(members)
        return members

    def _dict(self, inner: Any) -> dict[Any, Any]:
        pairs = (_checked(pair, list) for pair in _checked(inner, list))
        items = [(self._unpack(key), self._unpack(one)) for key, one in pairs]
        _check_hashes([key for key, _ in items])
        return dict(items)


_UNPACKERS: dict[str, Callable[[_Unpacker, Any], Any]] = {
    "tuple": lambda unpacker, inner: tuple(unpacker._members(inner)),
    "set": lambda unpacker, inner: set(unpacker._distinct(inner)),
    "frozenset": lambda unpacker, inner: frozenset(unpacker._distinct(inner)),
    "dict": _Unpacker._dict,
    "date": lambda _, inner: date.fromisoformat(_checked(inner, str)),
    "timedelta": lambda _, inner: _timedelta(*(_checked(part, int) for part in _checked(inner, list))),
    "decimal": lambda _, inner: _decimal(_checked(inner, str)),
    "uuid": lambda _, inner: UUID(_checked(inner, str)),
    "bytes": lambda _, inner: base64.b64decode(_checked(inner, str), validate=True),
}


def _check_hashes(members: Sequence[Any]) -> None:
    """Refuse members that were chosen to collide: each is compared with all before it, on the event loop."""
    if len(members) > MAX_EQUAL_HASHES and max(Counter(map(hash, members)).values()) > MAX_EQUAL_HASHES:
        raise ValueError(f"more than {MAX_EQUAL_HASHES} members of a set or dict have the same hash")


def _timedelta(days: int, seconds: int, microseconds: int) -> timedelta:
    return timedelta(days=days, seconds=seconds, microseconds=microseconds)


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(f"{value} is not finite")
    return value


def _checked(value: Any, wanted: type) -> Any:
    if type(value) is not wanted:
        raise TypeError(f"a {type(value).__name__} is no {wanted.__name__}")
    return value


def _unzoned(kind: str, wall: str, tz: Any = None, fold: Any = 0) -> datetime | time:
    value = datetime.fromisoformat(wall) if kind == "datetime" else time.fromisoformat(wall)
    zone: tzinfo | None = value.tzinfo
    if tz is not None:
        if zone is not None or not _ZONE_KEY.fullmatch(_checked(tz, str)):
            raise ValueError(f"{tz[:80]!r} is no zone for {wall[:80]!r}")
        zone = ZoneInfo(tz)
    if fold not in (0, 1) or type(fold) is not int:
        raise ValueError(f"{fold!r:.80} is no fold")
    return value.replace(tzinfo=zone, fold=fold)
