"""What type hints name: the dataclasses and enums that a function's parameters and result speak of."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .loggers import Logger, get_logger

if sys.version_info >= (3, 14):
    import annotationlib

log: Logger = get_logger("jobs")


def type_name(cls: type) -> str:
    """``module.qualname``, with the importable name for a class of the module that runs as ``__main__``."""
    return f"{importable_name(cls.__module__)}.{cls.__qualname__}"


def importable_name(module: str, namespace: Mapping[str, Any] | None = None) -> str:
    """The name under which another process imports *module*, however this one has loaded it.

    That differs for a script (``python src/shop/app.py``), a child that multiprocessing spawned, and a file that a
    server loads under a name of its own (uWSGI's wsgi-file, mod_wsgi). As in ``flask --app``, the folders above a file
    belong to its name as far as they hold an ``__init__.py``. *namespace*: the module's; looked up by default.
    """
    if namespace is None:
        namespace = vars(sys.modules[module]) if module in sys.modules else {}
    spec, file = namespace.get("__spec__"), namespace.get("__file__")
    is_main = module in ("__main__", "__mp_main__")
    if is_main and spec is not None:
        return str(spec.name).removesuffix(".__main__")
    if not isinstance(file, str) or "." in module or (not is_main and _is_found(module, file)):
        return module
    return _name_by_file(file)


@functools.lru_cache(maxsize=256)
def _is_found(module: str, file: str) -> bool:
    """Whether an import of *module* finds this file, or one that cannot be told."""
    for finder in sys.meta_path:
        with suppress(Exception):  # a finder is foreign code
            spec = finder.find_spec(module, None)
            if spec is not None:
                return spec.origin is None or Path(spec.origin).resolve() == Path(file).resolve()
    return False


@functools.lru_cache(maxsize=256)
def _name_by_file(file: str) -> str:
    path = Path(file).resolve()
    parts = [path.stem] if path.stem not in ("__init__", "__main__") else []
    for folder in path.parents:
        if not (folder / "__init__.py").exists():
            break
        parts.insert(0, folder.name)
    return ".".join(parts) or path.stem


def is_registrable(cls: object) -> bool:
    """Whether *cls* is a dataclass or an Enum."""
    return isinstance(cls, type) and (dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum))


def hints_of(owner: Any) -> tuple[list[Any], list[str]]:
    """The hints of a function or of a class's fields that can be resolved now, and the names of the others."""
    hints: list[Any] = []
    unresolved = []
    for holder in owner.__mro__ if isinstance(owner, type) else (owner,):
        if sys.version_info >= (3, 14):
            found: Any = annotationlib.get_annotations(holder, format=annotationlib.Format.FORWARDREF)
        else:
            found = inspect.get_annotations(holder)
        scope = getattr(holder, "__globals__", vars(sys.modules.get(holder.__module__, types.SimpleNamespace())))
        names = dict(vars(holder)) if isinstance(holder, type) else {}
        for name, hint in found.items():
            try:
                # One by one, so that one unknown name does not hide the others.
                one = type("_Hint", (), {"__annotations__": {"it": hint}})
                hints.append(typing.get_type_hints(one, scope, names)["it"])
            # Evaluating a hint runs the user's code; a name that is not defined yet is only the most common failure.
            except Exception as error:  # noqa: BLE001
                log.debug("the hint %r of %r cannot be resolved yet: %s", name, holder, error)
                unresolved.append(name)
    return hints, unresolved


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
