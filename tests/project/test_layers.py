"""The house has rooms in an order: a module imports only from lower rooms or its own; `core` touches nothing outside.

The sources are parsed, never imported. What is imported for type checkers only, and own modules that are imported by
their names as strings, count like everything else.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "flask_taskworker"

# From the ground up: a room may import only from the rooms above it in this list. A room is a folder, or a module at
# the package's root; "" is the package itself.
ROOMS = [
    *("errors", "signals", "patching", "core", "store", "alembic"),
    *("client", "tracing", "sentry", "worker", "commands", "mail", "state", "ops"),
    *("metrics", "dashboard", "cli", "testing", "pytest_plugin", "extension", ""),
]

# No I/O, no asyncio, no Flask objects, and no clock: time is an argument.
PURE = ("core.", "errors", "store.schema", "store.statements.", "mail.compose.")
IMPURE_IMPORTS = {
    *("aiosmtplib", "aiosqlite", "asgiref", "asyncio", "concurrent", "flask", "http", "multiprocessing", "psycopg"),
    *("select", "selectors", "socket", "sqlite3", "ssl", "subprocess", "time", "urllib.request", "werkzeug"),
    *("smtplib.SMTP", "smtplib.SMTP_SSL", "smtplib.LMTP"),  # its exceptions are only names
}
IMPURE_CALLS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}

# Only these may be imported inside a function: what is not installed with the package, what stands on that, and what an
# app pays for only when it uses it.
OPTIONAL = {"psycopg", "flask_sqlalchemy", "gevent", "pytest", "watchfiles"}
ON_DEMAND = ("store.postgresql.driver", "metrics", "tracing", "sentry", "dashboard", "testing", "worker.isolation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import statement's reach: a module of the house ("" is the package itself), or one from outside."""

    target: str
    inside: bool
    line: int
    in_function: bool


def modules(package: Path) -> dict[str, Path]:
    """Every module of *package* by its name within it: "store.sql", "store" for its __init__, "" for the root's."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def violations(package: Path, rooms: list[str] = ROOMS) -> list[str]:
    """Everything in *package* that breaks the rules, one line each."""
    tree = modules(package)
    imports = {name: list(imports_of(name, path, tree, package.name)) for name, path in tree.items()}
    found = [line for name in tree for line in broken_rules(name, imports[name], rooms)]
    found += [line for name in tree if is_pure(name) for line in clock_reads(name, tree[name])]
    return found + cycles(imports)


def broken_rules(name: str, imports: list[Import], rooms: list[str]) -> Iterator[str]:
    room = name.partition(".")[0]
    if room not in rooms:
        yield f"{name}: is in no room. Put it into a folder of ROOMS in tests/project/test_layers.py."
        return
    for found in imports:
        at = f"{name or '__init__'}:{found.line}"
        if found.in_function:
            top = found.target.partition(".")[0]
            allowed = found.target.startswith(ON_DEMAND) if found.inside else top in OPTIONAL
            if not allowed:
                what = found.target or "the package"
                yield f"{at}: imports {what} inside a function; only {sorted(OPTIONAL)} may be."
        if found.inside:
            other = found.target.partition(".")[0]
            if other in rooms and rooms.index(other) > rooms.index(room):
                yield f"{at}: imports {found.target or 'the package'}, which is in a higher room."
        elif is_pure(name) and any(f"{found.target}.".startswith(f"{impure}.") for impure in IMPURE_IMPORTS):
            yield f"{at}: is pure and imports {found.target}."


def is_pure(name: str) -> bool:
    return any(name.startswith(pure) if pure.endswith(".") else name == pure for pure in PURE)


def imports_of(name: str, path: Path, tree: dict[str, Path], root: str) -> Iterator[Import]:
    """The imports of one module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, in_function in statements(ast.parse(path.read_text()), in_function=False):
        for target in targets(node, package, root):
            inside = target == root or target.startswith(f"{root}.")
            if inside:
                target = nearest_module(target.removeprefix(root).removeprefix("."), tree)
            if not inside or target != name:
                yield Import(target=target, inside=inside, line=node.lineno, in_function=in_function)


def statements(node: ast.AST, *, in_function: bool) -> Iterator[tuple[ast.stmt | ast.Call, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom) or is_import_by_name(child):
            yield child, in_function
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from statements(child, in_function=in_function or is_function)


def is_import_by_name(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("import_module")
        and isinstance(node.args[0], ast.Constant)
    )


def targets(node: ast.stmt | ast.Call, package: str, root: str) -> list[str]:
    """The dotted names that a statement may import; a name that is not a module is cut by nearest_module."""
    if isinstance(node, ast.Call):
        name = str(node.args[0].value)  # type: ignore[attr-defined]
        return [f"{root}{name}" if name.startswith(".") else name]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    if not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [root, *package.split(".")] if package else [root]
    base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
    return [f"{base}.{alias.name}" for alias in node.names]


def nearest_module(name: str, tree: dict[str, Path]) -> str:
    """The module that holds *name*: itself, or the first above it that exists."""
    while name and name not in tree:
        name = name.rpartition(".")[0]
    return name


def clock_reads(name: str, path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value).rpartition(".")[2]
            if (owner, node.func.attr) in IMPURE_CALLS:
                yield f"{name}:{node.lineno}: is pure and reads the clock; take `now` as an argument."


def cycles(imports: dict[str, list[Import]]) -> list[str]:
    graph = {name: {found.target for found in every if found.inside} for name, every in imports.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"import cycle: {' -> '.join(name or '__init__' for name in error.args[1])}"]
    return []


def test_modules_import_only_from_lower_rooms() -> None:
    found = violations(PACKAGE)
    assert not found, "\n".join(found)


# --- The checker itself -------------------------------------------------------------------------------------------


def house(root: Path, **sources: str) -> Path:
    """A small package: keyword names are modules, with __ for the dot."""
    package = root / "house"
    for name, source in {"": "", "errors": "", "store": "", "core": "", **sources}.items():
        parts = name.split("__") if name else []
        is_package = name in ("", "store", "core")
        path = package.joinpath(*parts, "__init__.py") if is_package else package.joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return package


ALLOWED = {
    "a lower room": {"core__codec": "from ..errors import Boom"},
    "a lower room, by its full name": {"core__codec": "import house.errors"},
    "its own room": {"store__sql": "from .schema import job", "store__schema": "from ..errors import Boom"},
    "an optional dependency in a function": {"store__driver": "def connect():\n    import psycopg"},
    "an impure import in an impure room": {"worker__loop": "import asyncio"},
}
FORBIDDEN = {
    "a higher room": (
        {"core__codec": "from ..store.sql import Store", "store__sql": ""},
        "core.codec:1: imports store.sql, which is in a higher room",
    ),
    "a higher room, by its full name": (
        {"core__codec": "\nimport house.store.sql", "store__sql": ""},
        "core.codec:2: imports store.sql, which",
    ),
    "a higher room, as a name of the package": (
        {"core__codec": "from .. import extension", "extension": ""},
        "core.codec:1: imports extension",
    ),
    "a higher room, for type checkers only": (
        {"cli__run": "if TYPE_CHECKING:\n    from ..extension import TaskWorker", "extension": ""},
        "cli.run:2: imports extension, which is in a higher room",
    ),
    "a higher room, by a string": (
        {"core__codec": 'import_module(".extension", __package__)', "extension": ""},
        "core.codec:1: imports extension",
    ),
    "the package itself": ({"core__codec": "from house import Task"}, "core.codec:1: imports the package, which is"),
    "a cycle inside a room": (
        {"core__codec": "from . import jobs", "core__jobs": "from . import codec"},
        "import cycle: ",
    ),
    "a module outside of the rooms": ({"helpers": ""}, "helpers: is in no room. Put it into a folder of ROOMS"),
    "an import in a function": ({"core__codec": "def f():\n    import json"}, "core.codec:2: imports json inside a"),
    "an import in a method": (
        {"worker__loop": "class W:\n    async def f(self):\n        from ..errors import Boom"},
        "worker.loop:3: imports errors inside a function",
    ),
    "asyncio in a pure room": ({"core__retry": "import asyncio"}, "core.retry:1: is pure and imports asyncio"),
    "sqlite3 in a pure module": (
        {"store__schema": "from sqlite3 import connect"},
        "store.schema:1: is pure and imports",
    ),
    "flask in a pure room": (
        {"core__tasks": "from flask import current_app"},
        "core.tasks:1: is pure and imports flask",
    ),
    "the clock in a pure room": (
        {"core__triggers": "import datetime as dt\ndt.datetime.now(dt.UTC)"},
        "core.triggers:2: is pure and reads the clock",
    ),
}


@pytest.mark.parametrize("sources", ALLOWED.values(), ids=ALLOWED)
def test_checker_allows(sources: dict[str, str], tmp_path: Path) -> None:
    assert violations(house(tmp_path, **sources)) == []


@pytest.mark.parametrize(("sources", "message"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_checker_finds(sources: dict[str, str], message: str, tmp_path: Path) -> None:
    assert any(line.startswith(message) for line in violations(house(tmp_path, **sources)))
