"""What a decorated function is: its name elsewhere, where it stands, what it takes, what it closes over. Pure."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import CellType, FrameType
from typing import Any

from .hints import importable_name

if sys.version_info >= (3, 14):
    import annotationlib

_PACKAGE = f"{__package__.partition('.')[0]}."


def task_name(function: Callable[..., Any]) -> str:
    """``module.qualname``, with the importable name for a module that runs as ``__main__``.

    So ``python app.py``, ``python -m app`` and ``flask --app app tasks run`` agree.
    """
    return f"{importable_name(function.__module__, getattr(function, '__globals__', None))}.{function.__qualname__}"


def signature_of(function: Callable[..., Any], *, follow_wrapped: bool = True) -> inspect.Signature:
    """The signature. Its annotations need not be resolvable: a name for type checkers only is left as it is."""
    if sys.version_info >= (3, 14):
        return inspect.signature(
            function, follow_wrapped=follow_wrapped, annotation_format=annotationlib.Format.FORWARDREF
        )
    return inspect.signature(function, follow_wrapped=follow_wrapped)


def positional_range(signature: inspect.Signature) -> tuple[int, int]:
    """How many positional arguments alone make a valid call; (1, 0), which fits none, if keywords are needed."""
    parameters = signature.parameters.values()
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return 1, 0
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    endless = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return sum(p.default is p.empty for p in positional), sys.maxsize if endless else len(positional)


def place_of(function: Callable[..., Any]) -> str:
    """Where the function stands, and where those stand that it has from outside.

    Without the latter all tasks of a decorator that lacks ``functools.wraps`` would stand in the same place.
    """
    inner = inspect.unwrap(function)
    cells = [cell.cell_contents for cell in inner.__closure__ or () if _has_contents(cell)]
    outer = sorted(_line(value) for value in cells if inspect.isfunction(value) and value is not inner)
    return ", with ".join([_line(inner), *outer])


def is_other_closure(known: Any, new: Any, depth: int = 5) -> bool:
    """Whether two functions of the same code would do different things: for what they close over, or their defaults.

    A function that was made by running its module again has another code object: it takes the earlier one's place.
    """
    if known.__code__ is not new.__code__:
        return False
    cells = [[c.cell_contents if _has_contents(c) else None for c in f.__closure__ or ()] for f in (known, new)]
    defaults = [[*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()] for f in (known, new)]
    return any(
        one is not other
        and (
            not (inspect.isfunction(one) and inspect.isfunction(other) and depth and one.__code__ is other.__code__)
            or is_other_closure(one, other, depth - 1)
        )
        for one, other in [*zip(*cells, strict=True), *zip(*defaults, strict=True)]
    )


def is_in_a_variable(task: Any) -> bool:
    """Whether a running function, or a module that one belongs to, has *task* in a variable: it is in use then."""
    frame: FrameType | None = sys._getframe()
    variables: list[Any] = list(task.function.__globals__.values())
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(_PACKAGE):
            variables += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    return any(value is task for value in variables)


def _has_contents(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # the name is not bound yet
        return False


def _line(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
