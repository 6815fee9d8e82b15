from __future__ import annotations

import dataclasses
import enum
import json
import random
import re
import string
import sys
import threading
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import FunctionType, ModuleType
from typing import Annotated, Any, ClassVar, Generic, Literal, NewType, TypeVar
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from flask_taskworker.core.codec import MAX_BYTES, MAX_DEPTH, Codec
from flask_taskworker.core.hints import importable_name, named_types
from flask_taskworker.errors import DeclarationError, NotDecodable, NotEncodable

T = TypeVar("T")


class Color(enum.Enum):
    RED = "r"
    CRIMSON = "r"  # noqa: PIE796
    BLUE = object()


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Mode(enum.IntFlag):
    A = 1
    B = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclass(slots=True, kw_only=True)
class User:
    name: str
    at: Point
    color: Color = Color.RED
    tags: list[str] = field(default_factory=list)
    shown: str = field(init=False, default="")
    kind: ClassVar[str] = "user"

    def __post_init__(self) -> None:
        self.shown = self.name.upper()


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ZeroDivisionError("not positive")


@dataclass
class Demanding:
    a: int
    secret: InitVar[str]


@dataclass(frozen=True)
class Hashless:
    items: list[int]

    def __hash__(self) -> int:
        raise AttributeError("no hash today")


@dataclass
class Unregistered:
    """Its construction is seen: code that reaches it by a stored name has broken in."""

    x: int = 0
    built: ClassVar[int] = 0

    def __post_init__(self) -> None:
        type(self).built += 1


BERLIN = ZoneInfo("Europe/Berlin")


def shown(value: object) -> str:
    """A short name for a parameter; some have no text. No address: each process of a parallel run has its own."""
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:50]
    except (ValueError, RuntimeError):
        return type(value).__name__


@pytest.fixture
def codec() -> Codec:
    made = Codec()
    made.register(Color, Level, Word, Rights, Mode, Point, User, Box, Positive, Hashless)
    return made


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return (
            list(left) == list(right)
            and all(map(same, left, right))
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, datetime | time):
        return left == right and repr(left) == repr(right)
    return bool(left == right)


# ---- there and back ----

VALUES = [
    *(None, True, False, 0, -1, 2**63, 2**200, -(10**4299), 0.0, -0.5, 1e300, 5e-324, 0.1, "", "x", 'a"b\\c', "ü€😀"),
    *("\0\x1f\x7f\u2028", "\\u0000", '"$"', "[" * 5000, "{" * 500, "1" * 9000),
    *([], [1, [2, [3]]], {}, {"a": {"b": None}}, {"": 0}, (), (1,), (1, (2, [3, ()])), set(), {1, 2}, frozenset({"a"})),
    *({frozenset({1}), (1, 2)}, {1: 2}, {None: 1, True: 2}, {(1, 2): [3]}, {"a": 1, 2: "b"}, {1.5: {2: 3}}),
    *({"$": 1}, {"$": "tuple", "v": [1]}, {"$": {"$": {"$": []}}}, {"a": {"$": 0, "v": 0, "t": 0}}, {"$$": 1}),
    *(datetime(2026, 5, 1, 12, 30, 15, 123_456, tzinfo=UTC), datetime(2026, 5, 1)),  # noqa: DTZ001
    *(datetime.fromordinal(1), datetime(9999, 12, 31, 23, 59, 59, 999_999)),  # noqa: DTZ001
    datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    *(datetime(2026, 5, 1, tzinfo=timezone(timedelta(seconds=1))), datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)),
    *(datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)),
    *(datetime(2026, 10, 25, 2, 30, fold=1), datetime(2026, 5, 1, tzinfo=ZoneInfo("UTC"))),  # noqa: DTZ001
    *(date(2026, 5, 1), date.min, date.max, time(), time(23, 59, 59, 999_999), time(1, 2, tzinfo=UTC)),
    *(time(1, 2, tzinfo=BERLIN), time(1, 2, fold=1), time(1, 2, tzinfo=timezone(timedelta(hours=5, minutes=45)))),
    *(timedelta(0), timedelta(days=-1, seconds=5, microseconds=7), timedelta.min, timedelta.max),
    *(Decimal("1.20"), Decimal("-0"), Decimal("1E+400"), Decimal(1) / Decimal(3), UUID(int=0), uuid5(UUID(int=0), "x")),
    *(b"", b"\0\xff", bytes(range(256)), Color.RED, Color.CRIMSON, Color.BLUE, Level.HIGH, Word.YES),
    *(Rights.READ, Rights.READ | Rights.WRITE, Rights(0), Mode.A | Mode.B, Mode(64)),
    *(Point(1), Box(Box((1, 2))), User(name="ann", at=Point(1, 2), color=Color.BLUE, tags=["$"])),
    *({Point(1): {Level.LOW: Color.RED}}, {Level.LOW, Level.HIGH}, [Point(1), (Point(2), {Point(3)})]),
]


@pytest.mark.parametrize("value", VALUES, ids=shown)
def test_value_comes_back_equal_and_of_its_type(codec: Codec, value: Any) -> None:
    assert same(codec.decode(codec.encode(value)), value)
    args, kwargs = codec.decode_call(codec.encode_call((value, 1), {"k": value, "$": value}))
    assert same(args, (value, 1))
    assert same(kwargs, {"k": value, "$": value})


@pytest.mark.parametrize("value", VALUES, ids=shown)
def test_text_is_compact_json_that_a_database_can_store(codec: Codec, value: Any) -> None:
    text = codec.encode_call((value,), {})
    assert "\0" not in text
    assert text.encode()
    plain = json.loads(text)
    assert isinstance(plain, list)
    assert json.dumps(plain, ensure_ascii=False, separators=(",", ":")) == text


def test_random_values_come_back(codec: Codec) -> None:
    source = random.Random(1)
    for _ in range(400):
        value = random_value(source, 4)
        assert same(codec.decode(codec.encode(value)), value), value


def random_value(source: random.Random, depth: int) -> Any:
    if depth == 0 or source.random() < 0.3:
        return source.choice(VALUES)
    parts = [random_value(source, depth - 1) for _ in range(source.randrange(4))]
    keys = ["$", "v", "t", 1, (1, "$"), Point(1), None, "x"]
    return source.choice(
        [parts, tuple(parts), dict(zip(source.sample(keys, len(parts)), parts, strict=True)), Box(parts)]
    )


def test_plain_call_is_plain_json(codec: Codec) -> None:
    assert codec.encode_call((), {}) == "[[],{}]"
    assert codec.encode_call((1, "a", None), {"b": 0.5}) == '[[1,"a",null],{"b":0.5}]'
    assert codec.decode_call("[[],{}]") == ((), {})
    assert codec.decode_call(' [ [ 1 ] , { "a" : [ ] } ] ') == ((1,), {"a": []})


def test_stored_form_is_stable() -> None:
    # Jobs outlive an upgrade: what an older version stored must still be read.
    codec = Codec()
    codec.register(Color, Mode, Point)
    value = [(1,), {2}, {3: 4}, Decimal("1.0"), b"x", date(2026, 5, 1), timedelta(1), Color.RED, Mode.B, Point(1, 2)]
    name = __name__
    assert json.loads(codec.encode(value)) == [
        {"$": "tuple", "v": [1]},
        {"$": "set", "v": [2]},
        {"$": "dict", "v": [[3, 4]]},
        {"$": "decimal", "v": "1.0"},
        {"$": "bytes", "v": "eA=="},
        {"$": "date", "v": "2026-05-01"},
        {"$": "timedelta", "v": [1, 0, 0]},
        {"$": "enum", "t": f"{name}.Color", "v": "RED"},
        {"$": "flag", "t": f"{name}.Mode", "v": 2},
        {"$": "dataclass", "t": f"{name}.Point", "v": {"x": 1, "y": 2}},
    ]
    moment = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)
    assert json.loads(codec.encode(moment)) == {
        "$": "datetime",
        "v": "2026-10-25T02:30:00",
        "tz": "Europe/Berlin",
        "fold": 1,
    }


@dataclass
class Order:
    number: int
    total: int = field(init=False, default=0)
    note: str = field(init=False)
    price: float = 1.0
    built: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.price *= 2
        type(self).built += 1


def test_every_field_travels_and_the_constructor_does_not_run_again() -> None:
    codec = Codec()
    codec.register(Order)
    order = Order(1)
    order.total, order.note = 500, "late"
    built = Order.built
    back = codec.decode(codec.encode(order))
    assert (back, Order.built) == (order, built)


def test_a_field_that_is_not_set_yet_stays_so() -> None:
    codec = Codec()
    codec.register(Order)
    back = codec.decode(codec.encode(Order(1)))
    assert not hasattr(back, "note")


@dataclass
class Remembering:
    x: int
    secret: InitVar[str] = ""

    def __post_init__(self, secret: str) -> None:
        self.hidden = secret

    @cached_property
    def twice(self) -> int:
        return 2 * self.x


class Slotted:
    __slots__ = ("extra",)


@dataclass
class WithSlot(Slotted):
    x: int


@dataclass
class Words(dict[str, int]):
    x: int = 0


def mapped() -> Any:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Row(Base):
        __tablename__ = "row"
        id: Mapped[int] = mapped_column(init=False, primary_key=True)
        name: Mapped[str] = mapped_column(default="")

    return Row(name="one")


def with_extra() -> WithSlot:
    value = WithSlot(1)
    value.extra = 2
    return value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Remembering(1, "s"), "the attribute 'hidden', which is not one of its fields"),
        (with_extra, "the attribute 'extra', which is not one of its fields"),
        (lambda: Words(1), r"built by dict.__new__. Pass plain values"),
        (mapped, "would be inserted again. Pass its primary key"),
    ],
)
def test_a_dataclass_that_is_more_than_its_fields_is_refused(make: Callable[[], Any], words: str) -> None:
    value = make()
    codec = Codec()
    codec.register(type(value))
    with pytest.raises(NotEncodable, match=words):
        codec.encode(value)


def test_what_a_cached_property_remembers_need_not_travel() -> None:
    codec = Codec()
    codec.register(Remembering)
    value = Remembering(2)
    del value.hidden
    assert value.twice == 4
    back = codec.decode(codec.encode(value))
    assert back == value
    assert back.twice == 4


def test_a_missing_field_without_a_default_is_named(codec: Codec) -> None:
    with pytest.raises(NotDecodable, match=r"Positive cannot be built: its field value is missing"):
        codec.decode(typed("dataclass", f"{__name__}.Positive", "{}"))


COLLIDING = [n * (2**61 - 1) for n in range(1, 40_000)]


@pytest.mark.parametrize("kind", ["set", "frozenset", "dict"])
def test_members_that_collide_are_refused_before_they_are_compared(codec: Codec, kind: str) -> None:
    members = [[n, 0] for n in COLLIDING] if kind == "dict" else COLLIDING
    text = json.dumps({"$": kind, "v": members})
    started = perf_counter()
    with pytest.raises(NotDecodable, match="members of the same hash"):
        codec.decode(text)
    assert perf_counter() - started < 2
    with pytest.raises(NotEncodable, match="members of the same hash"):
        codec.encode(set(COLLIDING[:200]))


def test_a_large_ordinary_set_comes_back(codec: Codec) -> None:
    value = {*range(50_000), *map(str, range(50_000))}
    assert codec.decode(codec.encode(value)) == value


def test_only_fields_reach_a_constructor() -> None:
    codec = Codec()
    codec.register(Demanding)
    with pytest.raises(NotDecodable, match="are not the fields"):
        codec.decode(typed("dataclass", f"{__name__}.Demanding", '{"a":1,"secret":"x"}'))


@pytest.mark.parametrize(
    "value",
    [
        '["hunter2"',
        '{"$":"dataclass","t":"test_codec.Demanding","v":{"a":1,"gone":"hunter2"}}',
        '{"$":"dataclass","t":"test_codec.Demanding","v":["hunter2"]}',
        '{"$":"of tomorrow","v":"hunter2"}',
        '{"$":"tuple","v":"hunter2"}',
    ],
)
def test_no_error_repeats_what_may_be_secret(value: str) -> None:
    # Errors are kept, logged, and shown to those who may not see arguments.
    codec = Codec()
    codec.register(Demanding)
    for decode, text in ((codec.decode, value), (codec.decode_call, f"[[{value}],{{}}]"), (codec.decode_call, value)):
        with pytest.raises(NotDecodable) as caught:
            decode(text)
        assert "hunter2" not in str(caught.value)


def test_missing_field_takes_its_default(codec: Codec) -> None:
    # A job that was stored before the field was added.
    assert codec.decode(f'{{"$":"dataclass","t":"{__name__}.Point","v":{{"x":5}}}}') == Point(5, 0)


# ---- what is refused on the way out ----


class Text(str):
    __slots__ = ()


class OddZone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=1)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __hash__(self) -> int:
        return 1


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"value is a builtins\.object, .*an id"),
        (Unprintable(), r"value is a .*Unprintable"),
        ([1, {"user": object()}], r"value\[1\]\['user'\] is a builtins\.object"),
        (Box([0, Unregistered()]), r"value\.content\[1\] is a .*\.Unregistered, which is not registered\. Annotate"),
        ({Unprintable(): 1}, r"value key <Unprintable> is a"),
        ({(1, 2): object()}, r"value\[<tuple>\] is a builtins\.object"),
        ({Unprintable()}, r"value member <Unprintable> is a"),
        (Text("x"), r"value is a .*\.Text, .*Convert it with str"),
        (Pair(1, 2), r"Convert it with tuple"),
        (OrderedDict(a=1), r"Convert it with dict"),
        (defaultdict(int), r"Convert it with dict"),
        (bytearray(b"x"), r"value is a builtins\.bytearray"),
        (1j, r"value is a builtins\.complex"),
        (lambda: 0, r"value is a builtins\.function"),
        (int, r"value is a builtins\.type"),
        (Point, r"value is a builtins\.type"),
        ((x for x in "ab"), r"value is a builtins\.generator"),
        (Path("x"), r"Path"),
        (float("nan"), r"value is nan, which JSON cannot hold"),
        ([float("inf")], r"value\[0\] is inf"),
        ((1, -float("inf")), r"value\[1\] is -inf"),
        (Decimal("NaN"), r"value is Decimal\('NaN'\)"),
        (Decimal("sNaN"), r"finite"),
        (Decimal("Infinity"), r"finite"),
        (10**4300, r"value is an int of more than 4300 digits"),
        (-(10**4300), r"value is an int of more than 4300 digits"),
        ([-(10**5000)], r"value\[0\] is an int of more than 4300 digits"),
        ("\ud800", r"value holds half a surrogate pair"),
        (["a", "b\udfff"], r"value\[1\] holds half a surrogate"),
        ({"\ud800": 1}, r"value key .* holds half a surrogate"),
        (datetime(2026, 5, 1, tzinfo=OddZone()), r"has a time zone of type .*OddZone.*ZoneInfo"),
        (time(1, tzinfo=OddZone()), r"has a time zone of type"),
    ],
    ids=shown,
)
def test_value_that_cannot_come_back_is_refused_with_its_place(codec: Codec, value: Any, message: str) -> None:
    with pytest.raises(NotEncodable, match=message):
        codec.encode(value)
    with pytest.raises(NotEncodable, match=message.removeprefix("value").replace(r"value", r"args\[1\]")):
        codec.encode_call((1, value), {})
    with pytest.raises(NotEncodable, match=r"^kwargs\['k'\]"):
        codec.encode_call((), {"k": value})


def test_message_names_field_type_and_remedies() -> None:
    codec = Codec()
    codec.register(Box)
    with pytest.raises(NotEncodable) as caught:
        codec.encode_call((Box(content=Point(1)),), {})
    assert str(caught.value) == (
        f"args[0].content is a {__name__}.Point, which is not registered. "
        "Annotate the task's parameter with it, or register the class."
    )


def test_keyword_that_is_not_text_is_refused(codec: Codec) -> None:
    with pytest.raises(NotEncodable, match="keyword 1 "):
        codec.encode_call((), {1: 2})  # type: ignore[dict-item]
    with pytest.raises(NotEncodable, match="surrogate"):
        codec.encode_call((), {"\ud800": 2})


def test_dataclass_whose_constructor_wants_more_comes_back() -> None:
    codec = Codec()
    codec.register(Demanding)
    assert codec.decode(codec.encode(Demanding(1, "s"))) == Demanding(1, "other")


def test_enum_value_that_is_not_a_member_is_refused(codec: Codec) -> None:
    stray = object.__new__(Color)
    stray._name_, stray._value_ = "GREEN", "g"
    with pytest.raises(NotEncodable, match="none of its members"):
        codec.encode(stray)


def nested(levels: int, wrap: Callable[[Any], Any], inner: Any = 1) -> Any:
    value = inner
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("wrap", "levels"),
    [
        (lambda value: [value], MAX_DEPTH),
        (lambda value: {"a": value}, MAX_DEPTH),
        (lambda value: (value,), MAX_DEPTH // 2),
        (lambda value: frozenset({value}), MAX_DEPTH // 2),
        (lambda value: {1: value}, MAX_DEPTH // 3),
        (lambda value: Box(value), MAX_DEPTH // 2),
    ],
)
def test_depth_has_a_limit_that_can_be_reached(codec: Codec, wrap: Callable[[Any], Any], levels: int) -> None:
    deepest = nested(levels, wrap)
    assert codec.decode(codec.encode(deepest)) == deepest
    with pytest.raises(NotEncodable, match=r"nested deeper than 100 levels"):
        codec.encode(wrap(deepest))


def test_what_encodes_near_the_limit_decodes(codec: Codec) -> None:
    for leaf in [value for value in VALUES if not isinstance(value, str)]:
        for levels in range(MAX_DEPTH - 9, MAX_DEPTH + 1):
            value = nested(levels, lambda inner: [inner], leaf)
            try:
                text = codec.encode(value)
            except NotEncodable:
                continue
            assert same(codec.decode(text), value)


def test_value_that_holds_itself_is_refused(codec: Codec) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotEncodable, match="or holds itself") as caught:
        codec.encode_call((loop,), {})
    assert "[0][0]…" in str(caught.value)
    assert len(str(caught.value)) < 300
    deep = nested(100_000, lambda value: [value])
    with pytest.raises(NotEncodable, match="nested deeper"):
        codec.encode(deep)
    while deep != 1:  # freed level by level, for the interpreter's own sake
        deep = deep[0]


def test_size_has_a_limit_in_bytes(codec: Codec) -> None:
    fits = "x" * (MAX_BYTES - len('[[""],{}]'))
    assert codec.decode_call(codec.encode_call((fits,), {})) == ((fits,), {})
    with pytest.raises(NotEncodable, match=r"arguments of this call take 1,048,577 bytes.*1,048,576.*pass its key"):
        codec.encode_call((fits + "x",), {})
    with pytest.raises(NotEncodable, match=r"This value takes 1,200,002 bytes"):
        codec.encode("€" * 400_000)
    with pytest.raises(NotEncodable, match="bytes"):
        codec.encode([b"x" * 800_000])


def test_int_limit_of_the_interpreter_is_not_another_error(codec: Codec) -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        with pytest.raises(NotEncodable):
            codec.encode(10**1000)
        with pytest.raises(NotDecodable):
            codec.decode("1" * 1000)
        sys.set_int_max_str_digits(0)
        with pytest.raises(NotEncodable, match="4300 digits"):
            codec.encode(10**5000)
    finally:
        sys.set_int_max_str_digits(before)


# ---- what is refused on the way in ----


def tagged(tag: str, inner: str, **more: str) -> str:
    extra = "".join(f',"{key}":{value}' for key, value in more.items())
    return f'{{"$":"{tag}","v":{inner}{extra}}}'


def typed(kind: str, name: str, inner: str) -> str:
    return tagged(kind, inner, t=json.dumps(name))


POINT = f"{__name__}.Point"

BAD_VALUES = [
    *(
        "",
        " ",
        "\0",
        "\ufeff1",
        "nul",
        "{",
        "[1",
        '"abc',
        '{"a"',
        "[1,]",
        "{'a':1}",
        "1 2",
        "[1]x",
        "\\",
        '"\\',
        '"\\u12',
    ),
    *(
        "[" * 100_000,
        "{" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '["]","' + "[" * 200,
    ),
    *("1" * 4301, "-" + "1" * 100_000, "[0," + "9" * 5000 + "]", "1e999", "-1e999", "NaN", "Infinity", "[-Infinity]"),
    *('"\\ud800"', '"\\udfff\\ud800"', '["a","\\uD83D"]', '{"\\udead":1}', '"\ud800"', '["\udfff"]', '"a\nb"', '"\0"'),
    *('{"$":1}', '{"$":null}', '{"$":[]}', '{"$":{}}', '{"$":"tuple"}', '{"$":"","v":1}', '{"$":"exec","v":"1"}'),
    *(
        tagged("pickle", '"x"'),
        tagged("__import__", '"os"'),
        tagged("tuple", "[1]", x="1"),
        tagged("tuple", "[1]", t='"x"'),
    ),
    *(tagged("tuple", "1"), tagged("tuple", "null"), tagged("tuple", '"ab"'), tagged("tuple", '{"a":1}')),
    *(tagged("set", "[[1]]"), tagged("set", '[{"a":1}]'), tagged("set", "{}"), tagged("frozenset", "5")),
    *(tagged("dict", "{}"), tagged("dict", "[1]"), tagged("dict", "[[1]]"), tagged("dict", "[[1,2,3]]")),
    *(tagged("dict", "[[[1],2]]"), tagged("dict", '["ab"]')),
    *(tagged("datetime", '"yesterday"'), tagged("datetime", "5"), tagged("datetime", '"2026-13-01T00:00:00"')),
    *(tagged("datetime", '"2026-05-01T00:00:00+99:00"'), tagged("datetime", '"2026-05-01T00:00:00"', tz='"../x"')),
    *(
        tagged("datetime", '"2026-05-01T00:00:00"', tz=zone)
        for zone in ('"Europe"', '"/etc/passwd"', '"x"', "5", "[]", '""')
    ),
    *(tagged("datetime", '"2026-05-01T00:00:00"', fold=fold) for fold in ("2", "true", '"1"', "1.0", "[]")),
    *(
        tagged("datetime", '"2026-05-01T00:00:00+01:00"', tz='"Europe/Berlin"'),
        tagged("datetime", '"2026-05-01"', x="1"),
    ),
    *(tagged("date", '"2026-02-30"'), tagged("date", "20260501"), tagged("time", '"25:00"'), tagged("time", "null")),
    *(
        tagged("timedelta", inner)
        for inner in ("[1,2]", "[1,2,3,4]", '["1",2,3]', "[1e9,0,0]", "[9999999999,0,0]", "5")
    ),
    *(tagged("timedelta", f"[{'9' * 400},0,0]"), tagged("timedelta", "[true,0,0]")),
    *(
        tagged("decimal", inner)
        for inner in ('"x"', '"NaN"', '"-Infinity"', "1.5", "[0,[1],0]", '"1e99999999999999999999"')
    ),
    *(tagged("uuid", '"x"'), tagged("uuid", "5"), tagged("uuid", '""')),
    *(tagged("bytes", inner) for inner in ('"x"', '"eA="', '"e A=="', '"ü"', "5", "null", '"eA==eA=="')),
    *(typed("dataclass", name, "{}") for name in ("os.system", "__import__", "builtins.eval", "subprocess.Popen", "")),
    *(typed("dataclass", name, "{}") for name in (f"{__name__}.Unregistered", "Point", f"{__name__}.Codec")),
    *(
        typed("dataclass", name, '{"x":1}')
        for name in (f"{POINT}.__class__", f"{POINT}.__init__.__globals__", "\\ud800")
    ),
    *(
        typed("dataclass", POINT, inner)
        for inner in ('{"x":1,"z":2}', "{}", "[]", "null", '"x"', '{"y":1}', '{"__class__":1}')
    ),
    *(
        typed("dataclass", f"{__name__}.Color", '{"value":1}'),
        typed("dataclass", f"{__name__}.Positive", "{}"),
    ),
    *(
        typed("enum", f"{__name__}.Color", inner)
        for inner in ('"GREEN"', '"r"', '"__class__"', '"mro"', "null", "[]", "0", "{}")
    ),
    *(typed("enum", POINT, '"x"'), typed("enum", "enum.Enum", '"x"'), typed("enum", "os.system", '"x"')),
    *(typed("flag", f"{__name__}.Rights", inner) for inner in ("64", '"READ"', "true", "null", "1.0", "[]")),
    *(typed("flag", f"{__name__}.Color", "1"), typed("flag", POINT, "1"), typed("enum", f"{__name__}.User", "{}")),
    *('{"$":"dataclass","t":5,"v":{}}', '{"$":"dataclass","v":{}}', f'{{"$":"dataclass","t":"{POINT}"}}'),
    *(f'{{"$":"dataclass","t":"{POINT}","v":{{"x":1}},"x":1}}', '{"$":"enum","t":["x"],"v":"y"}'),
    tagged("set", "[" + typed("dataclass", f"{__name__}.Hashless", '{"items":[]}') + "]"),
    *(f"[{tagged('tuple', '1')}]", f'{{"a":{tagged("uuid", "1")}}}', tagged("tuple", f"[{tagged('bytes', '5')}]")),
]


def test_malformed_text_is_not_decodable(codec: Codec) -> None:
    for text in BAD_VALUES:
        built = Unregistered.built
        for decode in (codec.decode, codec.decode_call):
            with pytest.raises(NotDecodable) as caught:
                decode(text)
            str(caught.value).encode()
            assert len(str(caught.value)) < 1000
        for call in (f"[[{text}],{{}}]", f'[[],{{"k":{text}}}]'):
            if not text.strip() or text in ("[" * 100_000,):
                continue
            with pytest.raises(NotDecodable):
                codec.decode_call(call)
        assert Unregistered.built == built


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "1",
        '"x"',
        "[]",
        "{}",
        "[[]]",
        "[[],[]]",
        "[{},{}]",
        "[[],{},{}]",
        "[null,{}]",
        "[[],null]",
        '{"args":[]}',
    ],
)
def test_text_that_is_not_a_call_is_not_decodable(codec: Codec, text: str) -> None:
    with pytest.raises(NotDecodable, match="is not"):
        codec.decode_call(text)


@pytest.mark.parametrize("text", [None, b"[[],{}]", 5, [[], {}], 10**5000], ids=shown)
def test_what_is_not_text_is_not_decodable(codec: Codec, text: Any) -> None:
    for decode in (codec.decode, codec.decode_call):
        with pytest.raises(NotDecodable, match="not text"):
            decode(text)


def test_brackets_in_strings_do_not_count_as_depth(codec: Codec) -> None:
    value = ["[" * 500, '"[' * 300, "\\" * 99, '\\"[{' * 100]
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    "text", ['"' + '\\"' * 400_000, "[" * 101 + '"' + '\\"' * 300_000, '"' * 500_001, "[" * 101 + "\\" * 600_000]
)
def test_hostile_text_is_refused_in_linear_time(codec: Codec, text: str) -> None:
    # A search that goes back to each quote would take minutes here; pytest's timeout is the judge.
    for _ in range(3):
        with pytest.raises(NotDecodable):
            codec.decode(text)


def test_escaped_tag_is_not_a_tag(codec: Codec) -> None:
    assert codec.decode('{"\\u0024":"tuple","v":[]}') == {"$": "tuple", "v": []}


def test_mutated_text_raises_nothing_else(codec: Codec) -> None:
    source = random.Random(2)
    texts = [codec.encode_call((value,), {"k": value}) for value in VALUES if len(repr(value)) < 300]
    pieces = [
        *'{}[]":,\\0-9e$vt',
        "null",
        "true",
        '"$"',
        '"v"',
        '"t"',
        "\\u0000",
        "\\ud800",
        "\0",
        "\ud800",
        "[" * 101,
        "NaN",
    ]
    pieces += ['"tuple"', '"dataclass"', '"enum"', '"datetime"', "1e999", "9" * 4400, *string.printable[:20]]
    for _ in range(6000):
        text = source.choice(texts)
        for _ in range(source.randint(1, 4)):
            at, length = source.randrange(len(text) + 1), source.choice([0, 0, 1, 2, 8])
            text = text[:at] + source.choice(["", *pieces]) + text[at + length :]
        for decode in (codec.decode_call, codec.decode):
            try:
                decode(text)
            except NotDecodable:
                continue


def test_swapped_parts_raise_nothing_else(codec: Codec) -> None:
    """The JSON stays valid, but the wrong things sit in the wrong places."""
    source = random.Random(3)
    parts = [json.loads(codec.encode(value)) for value in VALUES if len(repr(value)) < 300]
    for _ in range(4000):
        whole = json.loads(json.dumps(source.choice(parts)))
        spots = [
            (holder, key)
            for holder in _containers(whole)
            for key in (holder if isinstance(holder, dict) else range(len(holder)))
        ]
        if spots:
            holder, key = source.choice(spots)
            holder[key] = source.choice(parts)
        try:
            codec.decode(json.dumps(whole))
        except NotDecodable:
            continue


def _containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [one for part in inner for one in _containers(part)]
    return [value, *found] if isinstance(value, dict | list) else found


# ---- the registry ----


def test_unknown_type_in_a_text_names_the_remedy() -> None:
    with pytest.raises(NotDecodable, match=r"'test_codec\.Gone' is not registered\. Annotate"):
        Codec().decode(typed("dataclass", "test_codec.Gone", "{}"))


@pytest.mark.parametrize("thing", [int, object, object(), "test_codec.Point", Point(1), len, list[Point]])
def test_only_dataclasses_and_enums_can_be_registered(thing: Any) -> None:
    with pytest.raises(DeclarationError, match="Only dataclasses and enums"):
        Codec().register(Point, thing)


def test_registering_a_dataclass_registers_what_its_fields_name() -> None:
    codec = Codec()
    codec.register(User)
    value = User(name="ann", at=Point(1), color=Color.BLUE)
    assert codec.decode(codec.encode(value)) == value


def test_redeclared_class_replaces_the_earlier() -> None:
    def declare() -> type:
        @dataclass
        class Local:
            x: int

        return Local

    first, second = declare(), declare()
    codec = Codec()
    codec.register(first)
    text = codec.encode(first(1))
    codec.register(second)
    assert type(codec.decode(text)) is second
    assert codec.encode(first(1)) == text


def by_parameter(user: User) -> None: ...
def by_result() -> Point: ...
def by_union(value: int | Point | None) -> None: ...
def by_generic(value: dict[str, list[tuple[Point, ...]]]) -> None: ...
def by_annotated(value: Annotated[list[Point], "meta"]) -> None: ...
def by_literal(value: Literal[Color.RED]) -> None: ...
def by_box(value: Box[Point]) -> None: ...
def by_callable(value: Callable[[Point], Color]) -> None: ...
def by_star(*args: Point, **kwargs: Color) -> None: ...
async def by_coroutine(value: Point) -> Color: ...


PointAlias = NewType("PointAlias", Point)
Bound = TypeVar("Bound", bound=Point)
Limited = TypeVar("Limited", Point, Color)


def by_newtype(value: PointAlias) -> None: ...
def by_bound(value: Bound) -> Bound: ...
def by_constraint(value: list[Limited]) -> None: ...


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (by_parameter, User(name="ann", at=Point(1))),
        (by_parameter, Point(1)),
        (by_parameter, Color.BLUE),
        (by_result, Point(1)),
        (by_union, Point(1)),
        (by_generic, {"a": [(Point(1), Point(2))]}),
        (by_annotated, [Point(1)]),
        (by_literal, Color.BLUE),
        (by_box, Box(Point(1))),
        (by_callable, [Point(1), Color.RED]),
        (by_star, [Point(1), Color.RED]),
        (by_coroutine, [Point(1), Color.RED]),
        (by_newtype, Point(1)),
        (by_bound, Point(1)),
        (by_constraint, [Point(1), Color.RED]),
    ],
)
def test_hints_of_a_function_register_what_they_name(function: Callable[..., Any], value: Any) -> None:
    here, there = Codec(), Codec()
    here.learn(function)
    there.learn(function)
    assert same(there.decode(here.encode(value)), value)
    with pytest.raises(NotEncodable, match="Unregistered"):
        here.encode(Unregistered())


MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
if TYPE_CHECKING:
    from nowhere import Nothing

def work(later: Later, never: Nothing) -> list[Other]: ...

class Space:
    @dataclass
    class Outer:
        inner: Nested
        never: Nothing | None = None
        shared: ClassVar[int] = 0

        @dataclass
        class Nested:
            x: int

    @dataclass
    class Child(Outer):
        y: int = 0
"""
LATER = """
@dataclass
class Later:
    x: int
    next: Later | None = None

@dataclass
class Other:
    x: int
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("declared_elsewhere")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(MODULE, vars(made))
    return made


def test_hint_that_is_not_defined_yet_is_read_later(module: ModuleType) -> None:
    codec = Codec()
    codec.learn(module.work)
    with pytest.raises(NotEncodable, match="Unregistered"):
        codec.encode(Unregistered())
    with pytest.raises(NotDecodable):
        codec.decode(typed("dataclass", "declared_elsewhere.Later", '{"x":1}'))
    exec(LATER, vars(module))
    assert codec.decode(typed("dataclass", "declared_elsewhere.Later", '{"x":1}')) == module.Later(1)
    assert codec.decode(codec.encode(module.Other(1))) == module.Other(1)
    value = module.Later(1, module.Later(2))
    assert codec.decode(codec.encode(value)) == value


def test_unresolvable_hint_does_not_hide_the_others(module: ModuleType) -> None:
    codec = Codec()
    codec.register(module.Space.Outer)
    value = module.Space.Outer(module.Space.Outer.Nested(1))
    assert codec.decode(codec.encode(value)) == value


def test_fields_of_base_classes_count(module: ModuleType) -> None:
    codec = Codec()
    codec.register(module.Space.Child)
    value = module.Space.Child(module.Space.Child.Nested(1))
    assert codec.decode(codec.encode(value)) == value


def test_hints_that_cannot_be_read_harm_nothing() -> None:
    def odd(value: Any) -> None: ...

    odd.__annotations__ = {"value": "1 +", "other": "boom()", "last": 5, "x": "[", "point": Point}
    codec = Codec()
    codec.learn(odd)
    codec.learn(len)
    codec.learn(lambda: 0)
    assert codec.decode(codec.encode(Point(1))) == Point(1)


def test_hints_behind_a_decorator_are_read() -> None:
    def outer(*args: Any) -> None: ...

    outer.__wrapped__ = by_result  # type: ignore[attr-defined]
    codec = Codec()
    codec.learn(outer)
    assert codec.encode(Point(1))


def test_recursive_hints_end() -> None:
    Tree = dict[str, Any]
    hints: list[Any] = [list[Tree], Point]
    hints.append(hints)
    assert list(named_types(hints)) == [Point]


def test_codec_may_be_used_by_many_threads() -> None:
    codec = Codec()
    codec.learn(by_parameter)
    value = User(name="ann", at=Point(1))
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work() -> None:
        start.wait(20)
        try:
            for _ in range(50):
                assert codec.decode(codec.encode(value)) == value
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


def test_thread_waits_for_hints_that_another_reads() -> None:
    entered, release = threading.Event(), threading.Event()

    def slow() -> type:
        entered.set()
        release.wait(20)
        return Point

    function = FunctionType((lambda value: None).__code__, {"slow": slow})
    function.__annotations__ = {"value": "slow()"}
    codec = Codec()
    codec.learn(function)
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(codec.encode(Point(1)))) for _ in range(2)]
    threads[0].start()
    assert entered.wait(20)
    threads[1].start()
    threads[1].join(0.1)  # without the lock the second thread fails at once
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(texts) == 2


def test_main_module_is_known_by_its_importable_name(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert importable_name("shop.tasks") == "shop.tasks"
    main.__file__ = "/srv/shop/app.py"
    assert importable_name("__main__") == "app"
    main.__spec__ = type(sys.__spec__)("shop.__main__", None)
    assert importable_name("__main__") == "shop"
    main.__spec__ = type(sys.__spec__)("shop.app", None)
    assert importable_name("__main__") == "shop.app"


def test_class_of_a_script_has_the_name_that_others_import(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    main.__file__ = "/srv/shop/app.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    cls = dataclasses.make_dataclass("Order", [("x", int)])
    cls.__module__ = "__main__"
    codec = Codec()
    codec.register(cls)
    assert json.loads(codec.encode(cls(1)))["t"] == "app.Order"
