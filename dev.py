#!/usr/bin/env python3
"""Two commands for a machine with Python 3.11 or newer and pip: python3 dev.py COMMAND [ARGUMENTS...]

    demo    Run the demo application; --once ends by itself.
    test    Run the tests, except those marked slow or browser; arguments go to pytest: -k cron

Both install what they need into the virtual environment .venv, once, and again after pyproject.toml has changed.
For everything else, use tox: see CONTRIBUTING.md.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (older Pythons get as far as this line)
    sys.exit(f"dev.py needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: python3.11 dev.py")

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = SCRIPTS / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "dev-stamp.txt"
# One worker more than processors: some tests wait for other processes.
PYTEST = ["-m", "pytest", f"--numprocesses={min(4, (os.cpu_count() or 1) + 1)}", "--dist=worksteal"]
COMMANDS = {
    "demo": ("demo", ["-m", "examples.demo"]),
    "test": ("dev", [*PYTEST, "-m", "not slow and not browser"]),
}


def main(arguments: list[str]) -> int:
    """Install what the command needs, then become it."""
    name, *rest = arguments or [""]
    if name not in COMMANDS:
        print(__doc__)
        return 0 if name in ("-h", "--help", "help") else 2
    group, command = COMMANDS[name]
    with (ROOT / "pyproject.toml").open() as file:
        if fcntl is not None:  # a second dev.py waits until the first has installed
            fcntl.flock(file, fcntl.LOCK_EX)
        install(group)
    os.environ.pop("PYTHONHOME", None)
    os.environ["VIRTUAL_ENV"] = str(VENV)
    os.environ["PATH"] = os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", os.defpath)])
    os.chdir(ROOT)
    argv = [str(PYTHON), *command, *rest]
    return subprocess.call(argv) if os.name == "nt" else os.execv(PYTHON, argv)


def install(group: str) -> None:
    """Install the package and a dependency group, unless the stamp says that both are there in their present state."""
    state = "\n".join([(ROOT / "pyproject.toml").read_text(), sys.version, str(ROOT)])
    was, _, groups = STAMP.read_text().rpartition("\n") if STAMP.exists() else ("", "", "")
    installed = set(groups.split()) if was == state and PYTHON.exists() else set()
    if group in installed:
        return
    make_venv()
    print(f"Installing the package and its {group} group into .venv ...", file=sys.stderr, flush=True)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    if subprocess.call([*pip, "-e", str(ROOT), *requirements(group)]):
        sys.exit("pip could not install this; the reason is above.")
    STAMP.write_text("\n".join([state, " ".join({group, *installed})]))


def make_venv() -> None:
    """Make .venv with pip in it, also where Python comes without ensurepip, as Debian's does."""
    version = "{}.{}".format(*sys.version_info)
    if PYTHON.exists():
        code = "import sys; print('{}.{}'.format(*sys.version_info))"
        found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True).stdout.strip()
        if found == version:
            return
        if found:
            sys.exit(f"{VENV} has Python {found}, this is {version}. Remove it, or run dev.py with that Python.")
    print(f"Making .venv with Python {version} ...", file=sys.stderr, flush=True)
    has_pip = subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True).returncode == 0
    if subprocess.call([sys.executable, "-m", "venv", "--clear", *([] if has_pip else ["--without-pip"]), VENV]):
        sys.exit(f"{sys.executable} could not make {VENV}; the reason is above.")
    for borrowed in [] if has_pip else [[sys.executable, "-m", "pip"], ["pip3"], ["pip"]]:
        argv = [*borrowed, "--disable-pip-version-check", "--python", str(PYTHON), "install", "-qq", "pip"]
        has_pip = bool(shutil.which(borrowed[0])) and not subprocess.call(argv, stderr=subprocess.DEVNULL)
        if has_pip:
            break
    if not has_pip:
        sys.exit("Found neither ensurepip nor pip 22.3 or newer. On Debian: apt-get install python3-venv")


def requirements(group: str) -> list[str]:
    """The requirements in a [dependency-groups] table, with the groups that it includes."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][group]
    return [
        line for one in declared for line in ([one] if isinstance(one, str) else requirements(one["include-group"]))
    ]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
