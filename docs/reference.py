"""What the reference has to show: read from the code, and compared with what Sphinx has found on the pages."""

from __future__ import annotations

import ast
import enum
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from importlib import import_module

import blinker

PACKAGE = "flask_taskworker"
MODULES = (
    PACKAGE,
    *(f"{PACKAGE}.{name}" for name in ("errors", "signals", "mail", "testing", "dashboard")),
    *(f"{PACKAGE}.{name}" for name in ("metrics", "tracing", "sentry", "alembic")),
)
"""What users import from. Everything else is internal."""


def public_objects() -> dict[str, object]:
    """The classes and functions that users import, by module and name; each once, where it is found first."""
    found: dict[str, object] = {}
    seen: set[int] = set()
    for module in map(import_module, MODULES):
        for name in getattr(module, "__all__", None) or [name for name in vars(module) if name[0] != "_"]:
            value = getattr(module, name)
            ours = str(getattr(value, "__module__", "")).startswith(PACKAGE)
            if name[0] != "_" and ours and (inspect.isclass(value) or inspect.isfunction(value)):
                home = "__all__" in vars(module) or value.__module__ == module.__name__
                if home and id(value) not in seen:
                    seen.add(id(value))
                    found[f"{module.__name__}.{name}"] = value
    return found


@functools.cache
def classes() -> dict[str, type]:
    """The classes that users meet: those that they import, and those that public members of these are or return."""
    found = {name: value for name, value in public_objects().items() if isinstance(value, type)}
    known = set(found.values())
    waiting = [*public_objects().values(), type(import_module(PACKAGE).current_job)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, type) and one not in known:
            known.add(one)
            found[f"{one.__module__}.{one.__qualname__}"] = one
        returned = list(_types_of(one)) if isinstance(one, type) else list(_classes_in(_hints(one).get("return")))
        waiting += [cls for cls in returned if cls not in known and _is_ours(cls)]
    return found


def members(cls: type) -> set[str]:
    """The public attributes and methods of a class, those that it inherits within this package included."""
    names: set[str] = set()
    for one in cls.__mro__:
        if one.__module__.startswith(PACKAGE):
            names |= {*vars(one), *inspect.get_annotations(one), *_assigned(one)}
    return {name for name in names - _foreign(cls) if name[0] != "_"}


def _foreign(cls: type) -> set[str]:
    """What it has from Python, as exceptions have ``args``."""
    ours = [one for one in cls.__mro__ if one.__module__.startswith(PACKAGE)]
    names = {name for one in cls.__mro__ if one not in ours for name in vars(one)}
    return names - {name for one in ours for name in vars(one)}


def not_shown(shown: set[str]) -> list[str]:
    """What is missing among the names that the reference shows, and what should not be there."""
    wanted = {name for name, value in public_objects().items() if not isinstance(value, type)}
    described = {name.rpartition(".")[2]: name for name in shown if name.rpartition(".")[2][:1].isupper()}
    lines = []
    for home, cls in classes().items():
        name = described.get(cls.__name__)
        if name is None:
            lines.append(f"{home} is missing")
            continue
        wanted |= {name} | {f"{name}.{member}" for member in members(cls)}
        told = {*_parameters(cls)}.union(*(re.findall(r"``(\w+)", one.__doc__ or "") for one in cls.__mro__))
        shown = shown | {f"{name}.{member}" for member in told & members(cls)}
        shown -= {f"{name}.{member}" for member in _foreign(cls)}
    wanted |= {module for module in MODULES if module in shown}
    lines += [f"{name} is missing" for name in sorted(wanted - shown)]
    public = {name for name in shown if not name.rpartition(".")[2].startswith("_")}
    return lines + [f"{name} is not public" for name in sorted(public - wanted)]


def _parameters(cls: type) -> Iterator[str]:
    """The names in its signature, which the reference shows; a method or attribute may have the same name."""
    return iter(inspect.signature(cls).parameters) if cls.__init__ is not object.__init__ else iter(())


@functools.cache
def _assigned(cls: type) -> set[str]:
    """The attributes that its methods set on self."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value)
    }


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith(PACKAGE) and cls.__name__[0] != "_" and not isinstance(cls, blinker.NamedSignal)


def _types_of(cls: type) -> Iterator[type]:
    """What its public members are or return, and what it is a mapping of."""
    for base in (
        types.get_original_bases(cls)
        if hasattr(types, "get_original_bases")
        else cls.__dict__.get("__orig_bases__", ())
    ):
        yield from _classes_in(typing.get_args(base))
    for one in cls.__mro__:
        if one.__module__.startswith(PACKAGE) and not issubclass(cls, enum.Enum):
            yield from _classes_in([hint for name, hint in _hints(one).items() if name[0] != "_"])
            for name, value in vars(one).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if name[0] != "_" and inspect.isfunction(function):
                    yield from _classes_in(_hints(function).get("return"))


def _hints(value: object) -> dict[str, object]:
    try:
        return inspect.get_annotations(value, eval_str=True)  # type: ignore[arg-type]
    except (NameError, TypeError):
        return {}


def _classes_in(hint: object) -> Iterator[type]:
    if isinstance(hint, list | tuple):
        for one in hint:
            yield from _classes_in(one)
    elif typing.get_origin(hint) is not None:
        origin = typing.get_origin(hint)
        if isinstance(origin, type) and origin.__name__ != "Shown":
            yield origin
        yield from _classes_in(typing.get_args(hint))
    elif isinstance(hint, type):
        yield hint
