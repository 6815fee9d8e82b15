"""The pytest plugin: fixtures that come by themselves, for nothing where they are not used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flask_taskworker import pytest_plugin

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
EXAMPLE = re.compile(r"<!-- file: (?P<name>\w+\.py) -->\n\n```\{code-block\} python\n(?P<code>.*?)```", re.DOTALL)


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The fixtures come from the plugin as it is here, whatever version is installed.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:flask_taskworker"]
    command += ["-p", pytest_plugin.__name__, "--rootdir", str(folder), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_plugin_imports_nothing_heavy() -> None:
    code = (
        "import json, sys, pytest; before = set(sys.modules); import flask_taskworker.pytest_plugin; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    expected = {"flask_taskworker", "flask_taskworker.patching", "flask_taskworker.pytest_plugin"}
    assert set(json.loads(answer.stdout)) == expected


def test_pytest_finds_the_plugin_and_loads_it_alone(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it(request):\n"
        "    assert 'flask_taskworker.pytest_plugin' in sys.modules\n"
        "    assert not [name for name in ('flask', 'sqlalchemy', 'aiosqlite') if name in sys.modules]\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "1 passed" in answer.stdout, answer.stdout


MORE = """\
import pytest
from flask import Flask
from flask_taskworker import BackgroundTaskWorker

task_worker = BackgroundTaskWorker()

@task_worker.task
def work(): raise ValueError

@pytest.fixture(scope="session")
def app(tmp_path_factory):
    app = Flask("shared", instance_path=str(tmp_path_factory.mktemp("instance")))
    task_worker.init_app(app)
    return app

def test_one(jobs): work.enqueue()
def test_two(jobs): assert jobs.drain().total == 0
"""


@pytest.mark.slow
def test_example_of_the_documentation_passes_and_no_test_harms_another(tmp_path: Path) -> None:
    files = {match["name"]: match["code"] for match in EXAMPLE.finditer(PAGE)}
    assert set(files) == {"shop.py", "conftest.py", "test_shop.py"}
    for name, code in {**files, "test_more.py": MORE}.items():
        (tmp_path / name).write_text(code)
    answer = run_pytest(tmp_path, "-W", "error")
    tests = sum(code.count("def test_") for code in (files["test_shop.py"], MORE))
    assert f"{tests} passed" in answer.stdout, answer.stdout


@pytest.mark.slow
def test_project_without_an_app_is_warned(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(jobs): pass\n")
    answer = run_pytest(tmp_path)
    assert "fixture 'app' not found" in answer.stdout
