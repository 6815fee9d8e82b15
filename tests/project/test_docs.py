"""The documentation cannot lie: its code runs, and what users can set, call, catch or type is in it.

Every block marked ```python runs, one process a page, the blocks of a page in order, in an empty directory. A page is
imported, so ``if __name__ == "__main__":`` keeps its usual meaning. A block that cannot run says why in a comment on
the lines above it::

    <!-- not run: app.run() blocks -->

It must still be Python. Blocks for reading only are marked otherwise, for example ```{code-block} python.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import blinker
import click
import pytest
from flask import Flask

import flask_taskworker
from docs.cli_help import helps, shown
from flask_taskworker.core.config import TaskWorkerConfig
from flask_taskworker.core.mail_config import MailConfig
from flask_taskworker.mail import Mail

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = Path(flask_taskworker.__file__).parent

REPOSITORY = r"https://(?:github|raw\.githubusercontent)\.com/carrasquel/flask-taskworker"
FENCE = re.compile(r"^(?P<indent>[ ]*)(?P<ticks>`{3,})(?P<info>.*)$")
NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>.*?)\s*-->\s*\Z", re.DOTALL)
# TASKER_CLI_… are environment variables, one for each option of a command: click's help lists them.
KEY = re.compile(r"(?:TASKER_(?!CLI_)|MAIL_)[A-Z][A-Z_]*[A-Z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A ```python block: its code, the line in the page where the code begins, and why it is not run (or None)."""

    code: str
    line: int
    not_run: str | None


def blocks(text: str) -> Iterator[Block]:
    """The ```python blocks of a page. A longer fence around them makes them part of its own text."""
    lines = text.splitlines()
    opened: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened = number, fence
        elif not fence["info"].strip() and len(fence["ticks"]) >= len(opened[1]["ticks"]):
            first, opening = opened
            opened = None
            if opening["info"].strip() == "python":
                code = textwrap.dedent("\n".join(lines[first + 1 : number]))
                comment = NOT_RUN.search("\n".join(lines[:first]).rstrip())
                yield Block(code=code, line=first + 2, not_run=comment and comment["reason"])


def program(text: str) -> str:
    """The blocks of a page that run, each line where it stands in the page, so that a traceback names the right one."""
    lines = [""] * (text.count("\n") + 1)
    for block in blocks(text):
        if block.not_run is None:
            code = block.code.split("\n")
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines)


def run_page(text: str, name: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Import the page's program as module *name* with *directory* as the working directory."""
    (directory / f"{name}.py").write_text(program(text))
    # A page that hangs shows where each of its threads stands.
    code = f"import faulthandler; faulthandler.dump_traceback_later(40, exit=True); import {name}"
    paths = os.pathsep.join([str(directory), str(SOURCE.parent)])
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "WERKZEUG_"))}
    return subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", code],
        cwd=directory,
        env=kept | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=50,
        stdin=subprocess.DEVNULL,
    )


PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_code_in_page_runs(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    if not program(text).strip():
        return
    answer = run_page(text, re.sub(r"\W", "_", page.stem.lower()), tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "ResourceWarning" not in answer.stderr
    assert "Traceback" not in answer.stderr, answer.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_code_that_is_not_run_is_python_and_says_why(page: Path) -> None:
    for block in blocks(page.read_text()):
        compile(block.code, f"{page.name}:{block.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert block.not_run is None or block.not_run, f"{page.name}:{block.line}: not run, but why?"


def test_links_of_the_readme_lead_to_files_of_the_repository() -> None:
    links = re.findall(rf"{REPOSITORY}/(?:blob/)?HEAD/([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    none_of(link for link in links if not (ROOT / link).is_file())


def test_first_program_of_the_readme_is_the_example() -> None:
    first = next(blocks((ROOT / "README.md").read_text()))
    assert first.code == (ROOT / "examples/hello.py").read_text().rstrip("\n")


# --- What the code has, the pages name ----------------------------------------------------------------------------


def documentation(name: str) -> str:
    """The text of one page, or "" where it is not written: then everything in it is missing."""
    path = DOCS / name
    return path.read_text() if path.exists() else ""


def everything() -> str:
    return "\n".join(page.read_text() for page in PAGES)


def none_of(names: Iterable[str]) -> None:
    missing = sorted(set(names))
    assert not missing, "missing, or not there any more:\n" + "\n".join(missing)


def config_keys(source: str) -> set[str]:
    """The configuration keys that a module names: string constants that are a key and nothing else."""
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and KEY.fullmatch(value)}


@functools.cache
def all_keys() -> set[str]:
    """The keys that code names, and those of the fields that read themselves."""
    named = {key for path in SOURCE.rglob("*.py") for key in config_keys(path.read_text())}
    tasker = {f"TASKER_{one.name.upper()}" for one in fields(TaskWorkerConfig)}
    mail = {f"MAIL_{one.name.upper()}" for one in fields(MailConfig) if one.name != "suppress"}
    return named | tasker | mail


def commands(group: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command under *group* with the words to type for it."""
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, f"{path} {name}")
    else:
        yield path, group


def cli_commands(app: Flask) -> dict[str, click.Command]:
    """Every command that the package gives to *app*, by what users type."""
    flask_taskworker.BackgroundTaskWorker(app)
    Mail(app)
    return {
        path: command for group in app.cli.commands.values() for path, command in commands(group, f"flask {group.name}")
    }


def test_every_configuration_key_has_a_row_in_the_table() -> None:
    keys = all_keys()
    rows = "\n".join(line for line in documentation("configuration.md").splitlines() if line.startswith("|"))
    none_of(key for key in keys if f"`{key}`" not in rows)


def test_the_configuration_page_names_no_key_that_does_not_exist() -> None:
    none_of(set(re.findall(rf"`({KEY.pattern})`", documentation("configuration.md"))) - all_keys())


def test_every_public_name_is_documented() -> None:
    words = set(re.findall(r"\w+", everything()))
    none_of(name for name in flask_taskworker.__all__ if name not in words)


def test_every_signal_is_documented() -> None:
    # By name: the attribute flask_taskworker.mail.signals is Flask-Mail's namespace of that name.
    modules = [importlib.import_module(f"flask_taskworker.{name}") for name in ("signals", "mail.signals")]
    names = {
        name for module in modules for name, value in vars(module).items() if isinstance(value, blinker.NamedSignal)
    }
    assert names
    none_of(name for name in names if f"`{name}`" not in documentation("signals.md"))


def test_every_logger_is_documented() -> None:
    sources = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    names = set(re.findall(r'get_logger\("([\w.]+)"\)', sources))
    assert "jobs" in names
    none_of(name for name in names if f"`flask_taskworker.{name}`" not in documentation("logs.md"))


def test_page_of_commands_shows_the_help_of_each() -> None:
    directives = re.findall(r"^```\{cli-help\} (.+)$", documentation("cli.md"), re.MULTILINE)
    assert sorted(command for words in directives for command in shown(words)) == sorted(helps())


def test_help_lists_every_option(make_app: Callable[..., Flask]) -> None:
    found = cli_commands(make_app(TESTING=True))
    assert "flask tasks run" in found
    none_of(
        f"{path} {option}"
        for path, command in found.items()
        for option in (max(p.opts, key=len) for p in command.params if isinstance(p, click.Option) and not p.hidden)
        if option not in helps()[path]
    )


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def answers() -> list[tuple[str, str]]:
    """Path and name of each answer in the list of questions that newcomers ask."""
    return re.findall(r"^\| Where [^|]+\? \| `([\w/]+\.py)` `(\w+)` \|$", documentation("design.md"), re.MULTILINE)


def test_questions_of_newcomers_are_answered_by_paths_that_exist() -> None:
    assert len(answers()) == 20
    none_of(f"{path} {name}" for path, name in answers() if name not in defined_in(SOURCE / path))


def test_ten_questions_of_newcomers_have_answers_two_clicks_from_the_first_page() -> None:
    rows = re.findall(
        r"^\| [^|]+\? \| \[([^\]]+)\]\(docs/([\w/-]+)\.md(?:#([\w-]+))?\) \|$", CONTRIBUTING, re.MULTILINE
    )
    assert len(rows) == 10
    for title, page, anchor in rows:
        headings = re.findall(r"^#+ (.+)$", documentation(f"{page}.md"), re.MULTILINE)
        assert title in [heading.replace("`", "") for heading in headings], f"{page}.md has no heading {title!r}"
        assert anchor in ("", re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")))
        assert page in first_clicks() or any(page in listed_in(other) for other in first_clicks())


def listed_in(page: str) -> set[str]:
    """The pages in the navigation below a page."""
    entries = re.findall(r"^```\{toctree\}\n(.*?)^```", documentation(f"{page}.md"), re.MULTILINE | re.DOTALL)
    folder = f"{page.rpartition('/')[0]}/".lstrip("/")
    names = [f"{folder}{line}" for entry in entries for line in entry.splitlines() if line and line[0] != ":"]
    return {str(path.relative_to(DOCS).with_suffix("")) for name in names for path in DOCS.glob(f"{name}.md")}


def first_clicks() -> set[str]:
    return listed_in("index")


def defined_in(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text())) if path.exists() else ()
    return {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}


def test_design_names_every_room() -> None:
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    named = set(re.findall(r"`(\w+)/?`", documentation("design.md").partition("## Where is")[0]))
    assert rooms - {"__init__"} <= named


# --- The checks themselves ----------------------------------------------------------------------------------------

PAGE = """\
# A page

```python
x = 1
```

1. In a list:

   ```python
   y = x + 1
   ```

```{code-block} python
this is not run
```

<!-- not run: it would
     block -->

```python
while True: pass
```

````markdown
```python
neither(is, this)
```
````

```python
assert (x, y) == (1, 2)
print(__name__)
```
"""


def test_blocks_of_a_page_run_in_order_and_in_one_namespace(tmp_path: Path) -> None:
    answer = run_page(PAGE, "page", tmp_path)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "page\n", "")


def test_failing_block_fails_with_its_line_in_the_page(tmp_path: Path) -> None:
    answer = run_page(PAGE.replace("(1, 2)", "(1, 3)"), "page", tmp_path)
    line = PAGE.splitlines().index("assert (x, y) == (1, 2)") + 1
    assert answer.returncode == 1
    assert f'page.py", line {line}' in answer.stderr


def test_only_a_comment_with_a_reason_keeps_a_block_from_running() -> None:
    assert [block.not_run for block in blocks(PAGE)] == [None, None, "it would\n     block", None]


def test_configuration_keys_are_found_in_code_and_not_in_prose() -> None:
    source = 'f(config, "TASKER_ONE", 1)\nraise E("TASKER_TWO is wrong")\nKEYS = ("MAIL_THREE_FOUR",)  # MAIL_FIVE'
    assert config_keys(source) == {"TASKER_ONE", "MAIL_THREE_FOUR"}
