"""dev.py itself: it has to work on machines that are not ours, so it is tried on a small project of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="uses POSIX shells, links and signals")


@pytest.fixture(scope="module")
def dev() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["dev"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["dev"]


# --- The command line ---------------------------------------------------------------------------------------------


def test_option_is_taken_from_anywhere_and_the_rest_passed_on(dev: ModuleType) -> None:
    assert dev.take_options(["test", "--python", "3.12", "-k", "cron"], "--python") == (
        ["test", "-k", "cron"],
        ["3.12"],
    )
    assert dev.take_options(["--python=3.12", "test"], "--python") == (["test"], ["3.12"])
    assert dev.take_options(["demo", "--", "--python", "x"], "--python") == (["demo", "--", "--python", "x"], [])


def test_option_without_a_value_is_refused(dev: ModuleType) -> None:
    with pytest.raises(dev.Failure, match="--python needs a value"):
        dev.take_options(["test", "--python"], "--python")


def test_unknown_command_names_those_that_exist(dev: ModuleType) -> None:
    with pytest.raises(dev.Failure, match=r"'tset' is not a command. Commands: demo, test,"):
        dev.main(["tset"])


def test_help_names_every_command(dev: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert dev.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in dev.COMMANDS if f"    {name}" not in printed] == []


def test_exit_codes_are_passed_on(dev: ModuleType) -> None:
    assert dev.run(sys.executable, "-c", "raise SystemExit(7)") == 7
    assert dev.run(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)") == 128 + 9


# --- Interpreters and environments --------------------------------------------------------------------------------


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose PATH and pyenv hold only what the test puts there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return programs


def pretend(path: Path, version: str, *, level: str = "final", name: str = "cpython") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    script(path, f"printf '%s\\n' {name} {version} {level} {path}")


def versions(dev: ModuleType) -> list[str]:
    return [found.version for found in dev.found_interpreters() if found != dev.running()]


def test_every_minor_version_is_found_once(dev: ModuleType, machine: Path) -> None:
    pretend(machine / "python3.27", "3.27.4")
    pretend(machine.parent / "pyenv/versions/3.27.1/bin/python", "3.27.1")
    pretend(machine.parent / "pyenv/versions/3.28.0/bin/python", "3.28.0")
    assert versions(dev) == ["3.27.4", "3.28.0"]
    assert dev.choose("3.28").executable.endswith("3.28.0/bin/python")


def test_what_does_not_run_or_is_not_a_released_cpython_is_left_out(dev: ModuleType, machine: Path) -> None:
    script(machine / "python3.24", "echo 'pyenv: python3.24: command not found' >&2; exit 127")
    pretend(machine / "python3.25", "3.25.0", level="candidate")
    pretend(machine / "python3.26", "3.26.0", level="free-threaded")
    pretend(machine / "python3.27", "3.27.0", name="pypy")
    pretend(machine.parent / "pyenv/versions/3.9.1/bin/python", "3.9.1")
    assert versions(dev) == []


@pytest.mark.usefixtures("machine")
def test_python_that_is_not_there_is_said_with_what_is(dev: ModuleType) -> None:
    with pytest.raises(dev.Failure, match=rf"--python 3.99: not found .* Found: {dev.running().version}"):
        dev.choose("3.99")
    with pytest.raises(dev.Failure, match="--python /no/such/python does not run"):
        dev.choose("/no/such/python")


def test_each_interpreter_has_an_environment_of_its_own(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    running = dev.running()
    assert dev.directory_for(running) == tmp_path / ".venv"
    assert dev.directory_for(dev.Interpreter(executable="x", version="3.27.1")) == tmp_path / ".venv-3.27"
    other_patch = f"{running.minor}.99"
    assert dev.directory_for(dev.Interpreter(executable="x", version=other_patch)) == tmp_path / f".venv-{other_patch}"


def test_environment_of_another_version_in_dot_venv_is_left_alone(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.99.1\n")
    assert dev.directory_for(dev.running()) == tmp_path / f".venv-{dev.running().minor}"


def test_groups_include_groups(dev: ModuleType) -> None:
    requirements = dev.group_requirements(["test"])
    assert set(dev.group_requirements(["demo"])) < set(requirements)
    assert all(isinstance(requirement, str) for requirement in requirements)


# --- check --------------------------------------------------------------------------------------------------------


def test_failing_step_does_not_keep_the_others_from_running(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> int:
        raise dev.Failure("pip could not install")

    steps = {"lint": lambda: 1, "wheel": broken, "test": lambda: 0, "others (3.99.1)": lambda: 0}
    monkeypatch.setattr(dev, "check_steps", lambda interpreter: steps)
    assert dev.check(dev.running(), []) == 1
    summary = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert [(line[0], line[-1]) for line in summary] == [
        ("lint", "FAILED"),
        ("wheel", "FAILED"),
        ("test", "ok"),
        ("others", "ok"),
    ]
    assert dev.check(dev.running(), ["--skip", "lint", "--skip=wheel"]) == 0


@pytest.mark.usefixtures("machine")
def test_check_refuses_a_step_that_does_not_exist(dev: ModuleType) -> None:
    with pytest.raises(dev.Failure, match="STEP being one of: browser, docs, lint, "):
        dev.check(dev.running(), ["--skip", "tests"])


# --- The whole of it, on a project without dependencies -----------------------------------------------------------

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[dependency-groups]
demo = []
"""

BACKEND = '''\
"""Builds an editable wheel with nothing but the standard library, so that no network is needed."""

import zipfile
from pathlib import Path


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(Path(wheel_directory, "small-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("small.pth", str(Path.cwd()))
        wheel.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1.0\\n")
        wheel.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("small-1.0.dist-info/RECORD", "")
    return "small-1.0-py3-none-any.whl"
'''

DEMO = """\
import signal, sys
from importlib.metadata import version

if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("terminated", flush=True)))
    try:
        print("waiting", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        sys.exit(print("interrupted", flush=True))
print(version("small"), sys.argv[1:])
sys.exit(7)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    if not pip_wheels():
        pytest.skip("this Python comes without pip's wheel (ensurepip), so an environment cannot be made offline")
    root = tmp_path / "small project"
    (root / "examples").mkdir(parents=True)
    shutil.copy(ROOT / "dev.py", root)
    for name, text in {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "examples/demo.py": DEMO}.items():
        (root / name).write_text(text)
    return root


def pip_wheels() -> list[Path]:
    """The wheels of pip that came with this Python; Debian keeps them in a place of its own."""
    found = importlib.util.find_spec("ensurepip")
    bundled = [Path(found.origin).parent / "_bundled"] if found and found.origin else []
    return [wheel for folder in [*bundled, Path("/usr/share/python-wheels")] for wheel in folder.glob("pip-*.whl")]


def offline(**variables: str) -> dict[str, str]:
    """The variables of a shell in which pip has only the wheels that come with Python."""
    wheels = " ".join(str(wheel.parent) for wheel in pip_wheels())
    removed = ("PIP_", "PYTEST_", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(removed)}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": os.devnull}
    return kept | pip | variables


def dev_py(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(project / "dev.py"), *arguments]
    return subprocess.run(argv, env=offline(**variables), capture_output=True, text=True, timeout=55)


@pytest.mark.slow
def test_fresh_clone_is_installed_once_and_again_when_its_metadata_changes(project: Path) -> None:
    first = dev_py(project, "demo", "--once", "x")
    assert (first.returncode, first.stdout) == (7, "1.0 ['--once', 'x']\n"), first.stderr
    assert "Making .venv" in first.stderr
    assert "Installing the package + demo into .venv" in first.stderr

    second = dev_py(project, "demo")
    assert (second.returncode, second.stdout, second.stderr) == (7, "1.0 []\n", "")

    (project / "pyproject.toml").write_text(f"{PYPROJECT}\n# changed\n")
    third = dev_py(project, "demo")
    assert "Making" not in third.stderr
    assert "Installing" in third.stderr


@pytest.mark.slow
def test_environment_is_made_where_ensurepip_is_missing(project: Path, tmp_path: Path) -> None:
    (tmp_path / "ensurepip.py").write_text("raise ImportError('split off')")
    answer = dev_py(project, "demo", PYTHONPATH=str(tmp_path))
    assert (answer.returncode, answer.stdout) == (7, "1.0 []\n"), answer.stderr


@pytest.mark.slow
def test_missing_pip_is_said_with_the_remedy(project: Path, tmp_path: Path) -> None:
    for module in ("ensurepip", "pip"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('split off')")
    answer = dev_py(project, "demo", PYTHONPATH=str(tmp_path), PATH=os.devnull)
    assert answer.returncode == 2
    assert "no pip (22.3 or newer) was found that works" in answer.stderr
    assert "apt-get install python3-venv" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_signals_end_the_program_first(project: Path) -> None:
    ctrl_c = end_by(project, lambda group: os.killpg(group, signal.SIGINT))
    assert ctrl_c == ("waiting\ninterrupted\n", 130)
    sigterm = end_by(project, lambda group: os.kill(group, signal.SIGTERM))
    assert sigterm == ("waiting\nterminated\n", 143)


def end_by(project: Path, end: Callable[[int], None]) -> tuple[str, int]:
    """Start `dev.py demo wait` in a process group of its own, end it, and return what it printed and its exit code."""
    argv = [sys.executable, str(project / "dev.py"), "demo", "wait"]
    with subprocess.Popen(
        argv, env=offline(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        first = process.stdout.readline()
        end(process.pid)
        printed, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors
    return first + printed, process.returncode
