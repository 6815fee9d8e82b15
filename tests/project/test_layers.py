"""The house has floors: a module imports only from lower floors, and the pure ones touch nothing outside.

The sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "flask_taskworker"

# From the ground up: a module may import only what stands above it in this list. A new module gets its line here, as
# high up in the list as it can stand; `*` takes every module of a subpackage that has no line of its own.
FLOORS = [
    "errors",
    "loggers",
    "clock",
    "signals",
    "announce",
    "mail_config",
    "config",
    "duties",
    "hints",
    "codec",
    "jobs",
    "retry",
    "failures",
    "joblog",
    "logs",
    "filters",
    "triggers",
    "tasks",
    "store.schema",
    "store.fitting",
    "rollups",
    "alembic",
    "store.statements",
    "store.worker_statements",
    "store.mail_statements",
    "store.driver",
    "store.links",
    "store.live",
    "store.migrations",
    "store.holder",
    "store.forks",
    "store.guard",
    "store.commits",
    "store.sqlite",
    "store.libpq",
    "store.advisory",
    "store.postgresql",
    "store.sql",
    "store.steer_statements",
    "store.work",
    "store.browse_statements",
    "store.browse_rows",
    "store.browse",
    "store.glance",
    "store",
    "health_file",
    "health",
    "threads",
    "sessions",
    "origin",
    "tracing",
    "client",
    "hop",
    "executor",
    "slots",
    "hung",
    "quarantine",
    "bookkeeper",
    "crew",
    "outlook",
    "herald",
    "scheduling",
    "launch",
    "liveness",
    "limits",
    "finishing",
    "membership",
    "upkeep",
    "worker",
    "probes",
    "watchdog",
    "runner",
    "apps",
    "commands",
    "mail.errors",
    "mail.addresses",
    "mail.mime",
    "mail.envelope",
    "mail.message",
    "mail.signals",
    "mail.pipelining",
    "mail.portal",
    "mail.smtp",
    "mail.pool",
    "mail.hosts",
    "mail.lanes",
    "mail.bulk",
    "mail.queue",
    "mail.reading",
    "mail.stored",
    "mail.delivery",
    "mail.cli",
    "mail.extension",
    "mail",
    "steering",
    "own_engines",
    "doctor",
    "bulk",
    "dashboard.*",
    "dashboard.words",
    "dashboard.filtering",
    "dashboard.redact",
    "dashboard.charts",
    "dashboard.assets",
    "dashboard.forgery",
    "dashboard.access",
    "dashboard.responses",
    "dashboard.view",
    "dashboard.routes",
    "dashboard.rows",
    "dashboard.overview",
    "dashboard.acts",
    "dashboard.jobs",
    "dashboard.job",
    "dashboard.failures",
    "dashboard.queues",
    "dashboard.schedules",
    "dashboard.workers",
    "dashboard.mail",
    "dashboard.system",
    "dashboard.blueprint",
    "dashboard",
    "metrics",
    "cli.text",
    "cli.group",
    "cli.log_output",
    "cli.supervisor",
    "cli.reloader",
    "cli.stacks",
    "cli.running",
    "cli.status",
    "cli.listing",
    "cli.follow",
    "cli.looking",
    "cli.acting",
    "cli.steer",
    "cli.schedules",
    "cli.examining",
    "cli.mails",
    "cli.tables",
    "cli",
    "testing.matching",
    "testing.drive",
    "testing.jobs",
    "testing.clock",
    "testing.live",
    "testing.outbox",
    "testing",
    "pytest_plugin",
    "extension",
    "",  # flask_taskworker/__init__.py
]

# No I/O, no asyncio, no Flask objects, and no clock: time is an argument.
PURE = {
    *("errors", "clock", "config", "hints", "codec", "jobs", "failures", "retry", "triggers", "tasks"),
    *("duties", "hung"),
    *("store.schema", "store.statements", "store.worker_statements"),
    *("mail.addresses", "mail.mime", "mail.envelope", "mail.message"),
}
IMPURE_IMPORTS = {
    *("aiosmtplib", "asgiref", "asyncio", "concurrent", "flask", "http", "multiprocessing", "psycopg"),
    *("select", "selectors", "socket", "sqlite3", "ssl", "subprocess", "time", "urllib.request", "werkzeug"),
    *("smtplib.SMTP", "smtplib.SMTP_SSL", "smtplib.LMTP"),  # its exceptions are only names
}
IMPURE_CALLS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}

# What is not installed with the package: only these may be imported inside a function.
OPTIONAL = {"psycopg", "flask_sqlalchemy", "pytest", "watchfiles"}
# What stands on them, and so is imported only by those who need it.
ON_OPTIONAL = {"store.libpq", "store.advisory", "store.postgresql", "metrics", "tracing"}


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


def violations(package: Path, floors: list[str] = FLOORS) -> list[str]:
    """Everything in *package* that breaks the rules, one line each."""
    tree = modules(package)
    imports = {name: list(imports_of(name, path, tree, package.name)) for name, path in tree.items()}
    found = [line for name in tree for line in broken_rules(name, imports[name], floors)]
    found += [line for name in tree if name in PURE for line in clock_reads(name, tree[name])]
    return found + cycles(imports)


def broken_rules(name: str, imports: list[Import], floors: list[str]) -> Iterator[str]:
    floor = floor_of(name, floors)
    if floor is None:
        yield f"{name}: has no floor. Add it to FLOORS in tests/project/test_layers.py, as high in the list as it can stand."
    for found in imports:
        at = f"{name or '__init__'}:{found.line}"
        top = found.target.partition(".")[0]
        allowed = found.target in ON_OPTIONAL if found.inside else top in OPTIONAL
        if found.in_function and not allowed:
            yield f"{at}: imports {found.target or 'the package'} inside a function; only {sorted(OPTIONAL)} may be."
        if found.inside:
            below = floor_of(found.target, floors)
            if floor is not None and below is not None and below >= floor:
                yield f"{at}: imports {found.target or 'the package'}, which is not on a lower floor."
        elif name in PURE and any(f"{found.target}.".startswith(f"{impure}.") for impure in IMPURE_IMPORTS):
            yield f"{at}: is pure and imports {found.target}."


def floor_of(name: str, floors: list[str]) -> int | None:
    if name in floors:
        return floors.index(name)
    every = f"{name.partition('.')[0]}.*"
    return floors.index(every) if "." in name and every in floors else None


def imports_of(name: str, path: Path, tree: dict[str, Path], root: str) -> Iterator[Import]:
    """The imports of one module, those for type checkers only left out: they are not there when the code runs."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, in_function in statements(ast.parse(path.read_text()), in_function=False):
        for target in targets(node, package, root):
            inside = target == root or target.startswith(f"{root}.")
            if inside:
                target = nearest_module(target.removeprefix(root).removeprefix("."), tree)
            if not inside or target != name:
                yield Import(target=target, inside=inside, line=node.lineno, in_function=in_function)


def statements(node: ast.AST, *, in_function: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from statements(ast.Module([other], []), in_function=in_function)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from statements(child, in_function=in_function or is_function)


def targets(node: ast.Import | ast.ImportFrom, package: str, root: str) -> list[str]:
    """The dotted names that a statement may import; a name that is no module is cut by nearest_module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
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


def test_modules_import_only_from_lower_floors() -> None:
    found = violations(PACKAGE)
    assert not found, "\n".join(found)


# --- The checker itself -------------------------------------------------------------------------------------------


def house(root: Path, **sources: str) -> Path:
    """A small package: keyword names are modules, with __ for the dot."""
    package = root / "house"
    for name, source in {"": "", "errors": "", "store": "", **sources}.items():
        parts = name.split("__") if name else []
        is_package = name in ("", "store")
        path = package.joinpath(*parts, "__init__.py") if is_package else package.joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return package


ALLOWED = {
    "a lower floor": {"codec": "from .errors import Boom"},
    "a lower floor, by its full name": {"codec": "import house.errors"},
    "a subpackage's lower module": {
        "store__sql": "from .schema import job",
        "store__schema": "from ..errors import Boom",
    },
    "an upper floor, for types only": {
        "cli": "if TYPE_CHECKING:\n    from .extension import TaskWorker",
        "extension": "",
    },
    "an optional dependency in a function": {"store__postgresql": "def connect():\n    import psycopg"},
    "an impure import in an impure module": {"worker": "import asyncio"},
    "a module of a subpackage that has a star": {"dashboard__views": "from ..errors import Boom"},
}
FORBIDDEN = {
    "an upper floor": ({"codec": "from .tasks import Task", "tasks": ""}, "codec:1: imports tasks, which is not"),
    "an upper floor, by its full name": (
        {"codec": "\nimport house.tasks", "tasks": ""},
        "codec:2: imports tasks, which",
    ),
    "an upper floor, as a name of the package": (
        {"codec": "from . import tasks", "tasks": ""},
        "codec:1: imports tasks",
    ),
    "an upper floor, from a subpackage": (
        {"store__sql": "from ..worker import Worker", "worker": ""},
        "store.sql:1: imports worker, which is not on a lower floor",
    ),
    "the package itself": ({"codec": "from house import Task"}, "codec:1: imports the package, which is not"),
    "a cycle": ({"codec": "from . import jobs", "jobs": "from . import codec"}, "import cycle: "),
    "a module without a floor": ({"helpers": ""}, "helpers: has no floor. Add it to FLOORS"),
    "an import in a function": ({"codec": "def f():\n    import json"}, "codec:2: imports json inside a function"),
    "an import in a method": (
        {"worker": "class W:\n    async def f(self):\n        from .errors import Boom"},
        "worker:3: imports errors inside a function",
    ),
    "asyncio in a pure module": ({"retry": "import asyncio"}, "retry:1: is pure and imports asyncio"),
    "sqlite3 in a pure module": (
        {"store__schema": "from sqlite3 import connect"},
        "store.schema:1: is pure and imports",
    ),
    "flask in a pure module": ({"tasks": "from flask import current_app"}, "tasks:1: is pure and imports flask"),
    "the clock in a pure module": (
        {"triggers": "import datetime as dt\ndt.datetime.now(dt.UTC)"},
        "triggers:2: is pure and reads the clock",
    ),
}


@pytest.mark.parametrize("sources", ALLOWED.values(), ids=ALLOWED)
def test_checker_allows(sources: dict[str, str], tmp_path: Path) -> None:
    assert violations(house(tmp_path, **sources)) == []


@pytest.mark.parametrize(("sources", "message"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_checker_finds(sources: dict[str, str], message: str, tmp_path: Path) -> None:
    assert any(line.startswith(message) for line in violations(house(tmp_path, **sources)))


def test_every_pure_module_has_a_floor() -> None:
    assert set(FLOORS) >= PURE
