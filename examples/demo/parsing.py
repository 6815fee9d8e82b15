"""What one Python file holds. Pure: bytes in, facts out."""

from __future__ import annotations

import ast
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 10
"""How many functions of each file are remembered, the longest ones."""

BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Where statements hold other statements."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function and where it is."""

    lines: int
    file: str
    name: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What there is to know of one file. A task may return it as it is: its result keeps the type."""

    file: str
    lines: int
    functions: int
    classes: int
    documented: int
    """How many of the definitions have a docstring."""
    imports: tuple[str, ...]
    """The top-level names of the modules it imports."""
    longest: tuple[Function, ...]


def examine(file: str, source: bytes) -> FileFacts:
    """Parse *source* and count. Raises SyntaxError or ValueError for what is not Python."""
    nodes = list(statements(ast.parse(source, file)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    return FileFacts(
        file=file,
        lines=source.count(b"\n"),
        functions=len(functions),
        classes=len(classes),
        documented=sum(ast.get_docstring(node, clean=False) is not None for node in (*functions, *classes)),
        imports=tuple(sorted({name for node in nodes for name in imported(node)})),
        longest=longest(function_of(file, node) for node in functions),
    )


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and every statement in it, at any depth. Nothing that counts here hides in an expression."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for block in BLOCKS:
            waiting.extend(getattr(node, block, ()))


def imported(node: ast.AST) -> list[str]:
    """The top-level modules that a statement imports; relative imports stay within their package and do not count."""
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module.partition(".")[0]]
        case _:
            return []


def function_of(file: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    return Function(
        lines=(node.end_lineno or node.lineno) - node.lineno + 1, file=file, name=node.name, line=node.lineno
    )


def longest(functions: Iterator[Function]) -> tuple[Function, ...]:
    """The longest of them, longest first."""
    return tuple(heapq.nlargest(LONGEST, functions, key=lambda function: function.lines))
