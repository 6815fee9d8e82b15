"""What type hints name: the dataclasses and enums that a function's parameters and result speak of."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import logging
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

log = logging.getLogger("flask_taskworker")


def type_name(cls: type) -> str:
    """``module.qualname``, with the importable name for a class of the module that runs as ``__main__``."""
    return f"{importable_name(cls.__module__)}.{cls.__qualname__}"


def importable_name(module: str) -> str:
    """The name under which another process imports *module*: for ``__main__`` its spec's, else its file's stem."""
    if module != "__main__":
        return module
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return PurePath(file).stem if file else module


def is_registrable(cls: object) -> bool:
    """Whether *cls* is a dataclass or an Enum."""
    return isinstance(cls, type) and (dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum))


@functools.lru_cache(maxsize=1024)
def init_fields(cls: type) -> tuple[str, ...] | None:
    """The fields that the constructor takes; None if it demands something that is no field."""
    names = tuple(field.name for field in dataclasses.fields(cls) if field.init)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in inspect.signature(cls).parameters.values():
        required = parameter.default is parameter.empty and parameter.kind not in variadic
        if required and parameter.name not in names:
            return None
    return names


def hints_of(owner: Any) -> tuple[list[Any], bool]:
    """The hints of a function or of a class's fields that can be resolved now, and whether that is all of them."""
    hints: list[Any] = []
    complete = True
    for holder in owner.__mro__ if isinstance(owner, type) else (owner,):
        for name, hint in _annotations(holder).items():
            try:
                hints.append(_resolved(hint, holder))
            # Evaluating a hint runs the user's code; a name that is not defined yet is only the most common failure.
            except Exception as error:  # noqa: BLE001
                log.debug("the hint %r of %r cannot be resolved yet: %s", name, holder, error)
                complete = False
    return hints, complete


def _annotations(holder: Any) -> dict[str, Any]:
    # A class without annotations would show those of its base.
    found = (
        vars(holder).get("__annotations__") if isinstance(holder, type) else getattr(holder, "__annotations__", None)
    )
    return found if isinstance(found, dict) else {}


def _resolved(hint: Any, holder: Any) -> Any:
    module = vars(sys.modules.get(holder.__module__, types.SimpleNamespace()))
    scope = getattr(holder, "__globals__", module)
    names = dict(vars(holder)) if isinstance(holder, type) else {}
    # Resolved one by one, so that one unknown name does not hide the others.
    return typing.get_type_hints(type("_Hint", (), {"__annotations__": {"it": hint}}), scope, names)["it"]


def named_types(hints: list[Any]) -> Iterator[type]:
    """The dataclasses and enums in *hints*, inside generics, unions, Annotated and Literal too."""
    waiting = list(hints)
    # Hints may be unhashable. They are kept, for the id of a dead one may be given to another.
    seen: dict[int, Any] = {}
    while waiting:
        hint = waiting.pop()
        if id(hint) in seen:
            continue
        seen[id(hint)] = hint
        if is_registrable(hint):
            yield hint
        elif isinstance(hint, enum.Enum):
            yield type(hint)
        elif isinstance(hint, list):
            waiting.extend(hint)
        else:
            waiting.extend(_parts(hint))


def _parts(hint: Any) -> list[Any]:
    """What a hint is made of: its origin and arguments, what a NewType or alias stands for, a TypeVar's bounds."""
    parts = [typing.get_origin(hint), *typing.get_args(hint)]
    parts += [getattr(hint, name, None) for name in ("__supertype__", "__bound__", "__value__")]
    parts += getattr(hint, "__constraints__", ())
    return [part for part in parts if part is not None and not isinstance(part, str)]
