"""dev.py has to work on machines that are not ours, so it is tried on a small project of its own, without a network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="uses POSIX signals and paths"),
]

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[dependency-groups]
demo = [{ include-group = "more" }]
more = []
dev = []
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
import os, signal, sys
from importlib.metadata import version


def end(*_):
    os.write(1, b"terminated\\n")  # print() must not be called again while it runs
    sys.exit()


if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, end)
    print("waiting", flush=True)
    signal.pause()
print(version("small"), sys.argv[1:])
sys.exit(7)
"""

PYTEST = """\
import sys

print(sys.argv[1:])
"""


def pip_wheels() -> list[Path]:
    """The wheels of pip that came with this Python; Debian keeps them in a place of its own."""
    found = importlib.util.find_spec("ensurepip")
    bundled = [Path(found.origin).parent / "_bundled"] if found and found.origin else []
    return [wheel for folder in [*bundled, Path("/usr/share/python-wheels")] for wheel in folder.glob("pip-*.whl")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    if not pip_wheels():
        pytest.skip("this Python comes without pip's wheel (ensurepip), so an environment cannot be made offline")
    root = tmp_path / "small project"
    (root / "examples").mkdir(parents=True)
    shutil.copy(ROOT / "dev.py", root)
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "examples/demo.py": DEMO, "pytest.py": PYTEST}
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def offline(**variables: str) -> dict[str, str]:
    """The variables of a shell in which pip has only the wheels that come with Python."""
    wheels = " ".join(str(wheel.parent) for wheel in pip_wheels())
    removed = ("PIP_", "PYTEST_", "PYTHONPATH", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(removed)}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": os.devnull}
    return kept | pip | variables


def dev_py(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    argv = [getattr(sys, "_base_executable", sys.executable), str(project / "dev.py"), *arguments]
    return subprocess.run(argv, env=offline(**variables), capture_output=True, text=True, timeout=55)


def test_fresh_clone_is_installed_once_and_again_when_its_metadata_changes(project: Path) -> None:
    first = dev_py(project, "demo", "--once", "x")
    assert (first.returncode, first.stdout) == (7, "1.0 ['--once', 'x']\n"), first.stderr
    assert "Making .venv" in first.stderr
    assert "Installing the package and its demo group into .venv" in first.stderr

    second = dev_py(project, "demo")
    assert (second.returncode, second.stdout, second.stderr) == (7, "1.0 []\n", "")

    (project / "pyproject.toml").write_text(f"{PYPROJECT}\n# changed\n")
    third = dev_py(project, "demo")
    assert "Making" not in third.stderr
    assert "Installing" in third.stderr


def test_each_command_installs_its_group_beside_the_other(project: Path) -> None:
    dev_py(project, "demo")
    tests = dev_py(project, "test", "-k", "cron")
    assert "its dev group" in tests.stderr
    assert "'not slow and not browser', '-k', 'cron']" in tests.stdout
    assert (dev_py(project, "demo").stderr, dev_py(project, "test").stderr) == ("", "")


def test_environment_is_made_where_ensurepip_is_missing(project: Path, tmp_path: Path) -> None:
    (tmp_path / "ensurepip.py").write_text("raise ImportError('split off')")
    answer = dev_py(project, "demo", PYTHONPATH=str(tmp_path))
    assert (answer.returncode, answer.stdout) == (7, "1.0 []\n"), answer.stderr


def test_missing_pip_is_reported_with_the_remedy(project: Path, tmp_path: Path) -> None:
    for module in ("ensurepip", "pip"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('split off')")
    answer = dev_py(project, "demo", PYTHONPATH=str(tmp_path), PATH=os.devnull)
    assert answer.returncode == 1
    assert "neither ensurepip nor pip 22.3 or newer" in answer.stderr
    assert "apt-get install python3-venv" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_environment_of_another_python_is_left_alone(project: Path) -> None:
    python = project / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 3.99\n")
    python.chmod(0o755)
    answer = dev_py(project, "demo")
    assert answer.returncode == 1
    assert "has Python 3.99" in answer.stderr
    assert python.read_text() == "#!/bin/sh\necho 3.99\n"


def test_unknown_command_shows_the_help(project: Path) -> None:
    assert dev_py(project, "--help").returncode == 0
    answer = dev_py(project, "tset")
    assert answer.returncode == 2
    assert "demo    Run the demo application" in answer.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_signals_reach_the_command(project: Path, number: signal.Signals, code: int) -> None:
    argv = [sys.executable, str(project / "dev.py"), "demo", "wait"]
    with subprocess.Popen(argv, env=offline(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        printed, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors
    assert (printed, process.returncode) == ("terminated\n" if code == 0 else "", code)
