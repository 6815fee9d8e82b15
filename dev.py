#!/usr/bin/env python3
"""The workshop: python3 dev.py COMMAND [ARGUMENTS...]

It needs Python 3.11 or newer and pip, nothing else: each command makes the virtual environment that it needs in the
repository's root (.venv, and .venv-3.12 and so on for other Pythons) and installs into it, once.

    --python PATH_OR_VERSION    the interpreter to use, for example 3.12; default: the one that runs dev.py

Arguments after the command are passed on: python3 dev.py test -k cron
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (older Pythons get as far as this line, and should be told)
    sys.exit(f"dev.py needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: python3.11 dev.py")

import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent
STAMP = "dev-stamp.json"
PROBE = """
import sys, sysconfig
level = "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else sys.version_info.releaselevel
base = getattr(sys, "_base_executable", None) or sys.executable
print(sys.implementation.name, "%d.%d.%d" % sys.version_info[:3], level, base, sep="\\n")
"""


class Failure(Exception):
    """Something that the developer has to know and mend."""


# --- Saying and running -------------------------------------------------------------------------------------------


def say(text: str, colour: str = "36") -> None:
    """A line about what dev.py itself does, on stderr, coloured on a terminal only."""
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        text = f"\x1b[{colour}m{text}\x1b[0m"
    print(text, file=sys.stderr, flush=True)


def run(*argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
    """Run a program in the foreground and return its exit code; 128 + n when signal n ended it."""
    with subprocess.Popen([str(arg) for arg in argv], env=env, cwd=cwd or ROOT) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal sent it Ctrl-C too: let it end in its own way
            raise
        except BaseException:
            process.terminate()
            raise
    return code if code >= 0 else 128 - code


# --- Interpreters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A CPython on this machine, outside of any virtual environment."""

    executable: str
    version: str

    @property
    def minor(self) -> str:
        """3.12 for 3.12.1."""
        return self.version.rpartition(".")[0]


@functools.cache
def running() -> Interpreter:
    """The interpreter that runs dev.py."""
    executable = getattr(sys, "_base_executable", None) or sys.executable
    return Interpreter(executable=executable, version=".".join(map(str, sys.version_info[:3])))


def probe(executable: str | Path, *, released: bool = True) -> Interpreter | None:
    """Ask *executable* what it is; None unless it runs and is a (released) CPython of 3.11 or newer."""
    try:
        answer = subprocess.run(
            [str(executable), "-c", PROBE], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.splitlines()
    if answer.returncode or len(lines) != 4 or lines[0] != "cpython" or (released and lines[2] != "final"):
        return None
    found = Interpreter(executable=lines[3], version=lines[1])
    return found if version_key(found) >= (3, 11) else None


def version_key(interpreter: Interpreter) -> tuple[int, ...]:
    """A key to sort and compare versions by."""
    return tuple(map(int, interpreter.version.split(".")))


def candidates() -> Iterator[Path]:
    """Where a CPython may be: python3.N on PATH, and every pyenv version."""
    for directory in os.get_exec_path():
        for minor in range(11, 30):
            yield Path(directory, f"python3.{minor}")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob("versions/*/bin/python"))


def found_interpreters() -> list[Interpreter]:
    """Each released CPython of 3.11 or newer on this machine, one a minor version, the oldest first."""
    found = {running().minor: running()}
    for path in candidates():
        interpreter = probe(path) if path.is_file() else None
        if interpreter is not None:
            found.setdefault(interpreter.minor, interpreter)
    return sorted(found.values(), key=version_key)


def choose(wanted: str | None) -> Interpreter:
    """The interpreter for --python: a path, a version such as 3.12, or None for the running one."""
    if wanted is None:
        return running()
    if wanted[0].isdigit():
        for interpreter in found_interpreters():
            if interpreter.version == wanted or interpreter.minor == wanted:
                return interpreter
        seen = ", ".join(interpreter.version for interpreter in found_interpreters())
        raise Failure(f"--python {wanted}: not found on PATH or in pyenv. Found: {seen}.")
    chosen = probe(shutil.which(wanted) or wanted, released=False)
    if chosen is None:
        raise Failure(f"--python {wanted} does not run, or is not a CPython of 3.11 or newer.")
    return chosen


# --- Virtual environments -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment and the interpreter it is made with."""

    interpreter: Interpreter
    directory: Path

    @property
    def scripts(self) -> Path:
        """Where the environment's programs are."""
        return self.directory / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.scripts / ("python.exe" if os.name == "nt" else "python")

    def variables(self) -> dict[str, str]:
        """The variables of a shell in which this environment is active."""
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
        path = os.pathsep.join([str(self.scripts), kept.get("PATH", os.defpath)])
        return kept | {"PATH": path, "VIRTUAL_ENV": str(self.directory)}

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> int:
        """Run the environment's Python with *arguments*."""
        return run(self.python, *arguments, env=self.variables(), cwd=cwd)

    def install(self, *requirements: str | Path) -> None:
        """Have pip install *requirements*, without chatter."""
        pip = ("-m", "pip", "--disable-pip-version-check", "install", "-qq")
        if self.run(*pip, *requirements):
            raise Failure(f"pip could not install into {self.directory}; what it said is above.")


def prepare(interpreter: Interpreter, *groups: str, directory: Path | None = None) -> Environment:
    """The environment of *interpreter* with the package (editable) and the dependency *groups* in it."""
    environment = Environment(interpreter=interpreter, directory=directory or directory_for(interpreter))
    if missing_groups(environment, groups):
        with one_at_a_time():
            install_groups(environment, groups)
    return environment


def directory_for(interpreter: Interpreter) -> Path:
    """.venv for the running interpreter, unless another version lives there; .venv-3.12 and the like for others."""
    default = ROOT / ".venv"
    if interpreter.version == running().version and venv_minor(default) in (None, interpreter.minor):
        return default
    same_minor = interpreter.minor == running().minor and interpreter.version != running().version
    return ROOT / f".venv-{interpreter.version if same_minor else interpreter.minor}"


def venv_minor(directory: Path) -> str | None:
    """The minor version of the environment in *directory*, or None where there is none."""
    try:
        lines = (directory / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return None
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    version = settings.get("version") or settings.get("version_info", "")
    return ".".join(version.split(".")[:2]) or None


def missing_groups(environment: Environment, groups: Sequence[str]) -> bool:
    """Whether anything is left to install: read from the stamp, without starting a process."""
    stamp = read_stamp(environment)
    return stamp is None or not environment.python.exists() or not {*groups} <= {*stamp}


def read_stamp(environment: Environment) -> list[str] | None:
    """The groups that are installed, or None when the stamp is missing or from another state of the project."""
    try:
        stamp = json.loads((environment.directory / STAMP).read_text())
        return list(stamp["groups"]) if stamp["fingerprint"] == fingerprint(environment) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def fingerprint(environment: Environment) -> str:
    """What an installation depends on: the project's metadata, the interpreter, and where the repository is."""
    parts = [(ROOT / "pyproject.toml").read_text(), environment.interpreter.version, str(ROOT)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keep a second dev.py from installing at the same moment. Where there is no flock, it may."""
    with (ROOT / "pyproject.toml").open() as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install_groups(environment: Environment, groups: Sequence[str]) -> None:
    """Make the environment where there is none, install, and leave a stamp."""
    if not missing_groups(environment, groups):
        return  # another dev.py did it while this one waited
    if probe(environment.python, released=False) is None:
        make_venv(environment)
    wanted = sorted({*(read_stamp(environment) or ()), *groups})
    say(f"Installing the package{''.join(f' + {group}' for group in wanted)} into {environment.directory.name} …")
    environment.install("-e", ROOT, *group_requirements(wanted))
    stamp = {"fingerprint": fingerprint(environment), "groups": wanted}
    (environment.directory / STAMP).write_text(json.dumps(stamp))


def make_venv(environment: Environment) -> None:
    """Make the environment with pip in it, also where the interpreter has no ensurepip (Debian splits it off)."""
    python, directory = environment.interpreter.executable, environment.directory
    say(f"Making {directory.name} with Python {environment.interpreter.version} …")
    bare = subprocess.run([python, "-c", "import ensurepip"], capture_output=True).returncode != 0
    code = run(python, "-m", "venv", "--clear", *(["--without-pip"] if bare else []), directory)
    if code:
        raise Failure(f"{python} could not make a virtual environment in {directory}; what it said is above.")
    if bare:
        borrow_pip(environment)


def borrow_pip(environment: Environment) -> None:
    """Install pip into the environment with a pip from outside."""
    pips = [[environment.interpreter.executable, "-m", "pip"], [running().executable, "-m", "pip"], ["pip3"], ["pip"]]
    for pip in pips:
        program = shutil.which(pip[0])
        if program and subprocess.run([program, *pip[1:], "--version"], capture_output=True).returncode == 0:
            arguments = ("--disable-pip-version-check", "--python", environment.python, "install", "-qq", "pip")
            if run(program, *pip[1:], *arguments) == 0:
                return
    raise Failure(
        f"{environment.interpreter.executable} has no ensurepip, and no pip (22.3 or newer) was found that works. "
        "Install one of them; on Debian: apt-get install python3-venv, or python3-pip."
    )


def group_requirements(groups: Sequence[str]) -> list[str]:
    """The requirements in the [dependency-groups] of pyproject.toml, included groups too."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text()).get("dependency-groups", {})
    requirements: list[str] = []
    for group in groups:
        for requirement in declared[group]:
            if isinstance(requirement, dict):
                requirements += group_requirements([requirement["include-group"]])
            else:
                requirements.append(requirement)
    return requirements


# --- Commands -----------------------------------------------------------------------------------------------------


def demo(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Run the demo application; --once ends by itself."""
    return prepare(interpreter, "demo").run("-m", "examples.demo", *arguments)


def test(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Run the test suite but for its slow and browser tests, unless -m says otherwise; arguments go to pytest."""
    # One more than processors: some tests wait for other processes.
    workers = min(4, (os.cpu_count() or 1) + 1)
    chosen = [] if "-m" in arguments else ["-m", "not slow and not browser"]
    return prepare(interpreter, "test").run(
        "-m", "pytest", "--numprocesses", str(workers), "--dist", "worksteal", *chosen, *arguments
    )


def slow(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Run the slow tests."""
    # They wait more than they work.
    return test(interpreter, ["--numprocesses", "4", "-m", "slow and not browser", *arguments])


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def with_chromium(interpreter: Interpreter) -> Environment:
    """The environment with what drives a browser, and Chromium's path in TASKER_TEST_BROWSER."""
    found = os.environ.get("TASKER_TEST_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise Failure(
            "There is no Chromium. Install one (apt-get install chromium), or name it in TASKER_TEST_BROWSER."
        )
    environment = prepare(interpreter, "browser")
    os.environ["TASKER_TEST_BROWSER"] = found
    return environment


def browser(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Click through the dashboard in a real Chromium; arguments go to pytest."""
    command = ("-m", "pytest", "--numprocesses", "2", "-m", "browser", "tests/system/browser")
    return with_chromium(interpreter).run(*command, *arguments)


def pictures(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Take the pictures of the documentation from the demo at work, in a real Chromium; or those named."""
    return with_chromium(interpreter).run("-m", "docs.make_pictures", *arguments)


def bench(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Run the benchmarks, or those named, with the peers in an environment of their own (.venv-bench)."""
    environment = prepare(interpreter, "bench", directory=ROOT / ".venv-bench")
    if not arguments or "versus" in arguments:
        prepare_newer_peers()
    return environment.run("-m", "benchmarks", *arguments)


def prepare_newer_peers() -> None:
    """An environment for the peers that need Python 3.12, where there is one; its path goes to the benchmarks."""
    newer = [interpreter for interpreter in found_interpreters() if version_key(interpreter) >= (3, 12)]
    for interpreter in newer[:1]:
        directory = ROOT / f".venv-bench-{interpreter.minor}"
        try:
            os.environ["BENCH_NEWER_PYTHON"] = str(prepare(interpreter, "bench-newer", directory=directory).python)
        except Failure as failure:
            say(f"{failure} The peers that need it are left out.", "31")


def chaos(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Break things on purpose, or those named, and judge what comes of it; --short for the short forms."""
    return prepare(interpreter, "test").run("-m", "tests.system.chaos", *arguments)


def lint(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Look for mistakes and unformatted code; --fix mends what it can."""
    environment = prepare(interpreter, "lint")
    fix = "--fix" in arguments
    rest = [argument for argument in arguments if argument != "--fix"]
    found = environment.run("-m", "ruff", "check", *(["--fix"] if fix else []), *(rest or ["."]))
    unformatted = environment.run("-m", "ruff", "format", *([] if fix else ["--check"]), *(rest or ["."]))
    return found or unformatted


def types(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Check the types with mypy --strict."""
    return prepare(interpreter, "types").run("-m", "mypy", *arguments)


def docs(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Build the documentation into docs/_build/html; a warning is a failure."""
    options = ("-W", "--keep-going", "-q", "-b", "html", *arguments)
    code = prepare(interpreter, "docs").run("-m", "sphinx", *options, ROOT / "docs", ROOT / "docs/_build/html")
    if not code:
        say("Built docs/_build/html/index.html")
    return code


def wheel(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Build the wheel, install it alone into a fresh environment, run a job there, and keep the wheel in dist."""
    environment = prepare(interpreter)
    with tempfile.TemporaryDirectory(prefix="wheel-") as scratch:
        code = environment.run("-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", scratch, ROOT)
        if code:
            return code
        [built] = Path(scratch).glob("*.whl")
        say(f"Built {built.name} ({built.stat().st_size // 1024} KB)")
        fresh = Environment(interpreter=interpreter, directory=Path(scratch, "venv"))
        make_venv(fresh)
        fresh.install(built)
        # -I: neither this directory nor PYTHONPATH may stand in for the wheel.
        code = fresh.run("-I", "-X", "dev", ROOT / "tests/project/smoke.py", *arguments, cwd=Path(scratch))
        if not code:
            kept = ROOT / "dist" / built.name
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(built, kept)
            say(f"Kept as dist/{built.name}")
        return code


def check(interpreter: Interpreter, arguments: Sequence[str]) -> int:
    """Run all of it, and the quick tests on every other Python found; --skip STEP leaves one out."""
    rest, skipped = take_options(arguments, "--skip")
    steps = check_steps(interpreter)
    names = {name.split()[0] for name in steps}
    if rest or not {*skipped} <= names:
        raise Failure(f"check takes --skip STEP only, STEP being one of: {', '.join(sorted(names))}.")
    results = [timed(name, step) for name, step in steps.items() if name.split()[0] not in skipped]
    print("\n" + "\n".join(f"{name:<24}{seconds:>7.1f} s  {'ok' if ok else 'FAILED'}" for name, seconds, ok in results))
    return 0 if all(ok for _, _, ok in results) else 1


def check_steps(interpreter: Interpreter) -> dict[str, Callable[[], int]]:
    """What check does, by name, in order."""
    plain = {"lint": lint, "types": types, "test": test, "slow": slow, "browser": browser, "docs": docs, "wheel": wheel}
    steps: dict[str, Callable[[], int]] = {
        name: functools.partial(command, interpreter, []) for name, command in plain.items()
    }
    others = [other for other in found_interpreters() if other.minor != interpreter.minor]
    return steps | {f"others ({other.version})": functools.partial(test, other, list(REDUCED)) for other in others}


REDUCED = (
    "-k",
    "not postgresql",
    "tests/behaviour",
    "tests/system/processes",
    "tests/unit/mail/test_sending.py",
    "tests/unit/core/test_codec.py",
)
"""What runs on other Pythons: whatever depends on the interpreter, and no second database."""


def timed(name: str, step: Callable[[], int]) -> tuple[str, float, bool]:
    """Run one step of check; a step that fails must not keep the others from telling theirs."""
    say(f"\n=== {name} ===", "1")
    begun = time.monotonic()
    try:
        ok = step() == 0
    except Failure as failure:
        say(str(failure), "31")
        ok = False
    return name, time.monotonic() - begun, ok


COMMANDS = {
    command.__name__: command
    for command in (demo, test, slow, browser, bench, chaos, lint, types, docs, pictures, wheel, check)
}


# --- The command line ---------------------------------------------------------------------------------------------


def take_options(arguments: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Take every ``OPTION VALUE`` and ``OPTION=VALUE`` out of *arguments*, up to ``--``; return rest and values."""
    rest: list[str] = []
    values: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            return [*rest, argument, *waiting], values
        name, equals, value = argument.partition("=")
        if name != option:
            rest.append(argument)
            continue
        value = value if equals else next(waiting, "")
        if not value:
            raise Failure(f"{option} needs a value.")
        values.append(value)
    return rest, values


def usage() -> str:
    """The help text."""
    commands = "\n".join(f"    {name:<10}{command.__doc__}" for name, command in COMMANDS.items())
    return f"{__doc__}\nCommands:\n{commands}"


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    arguments, pythons = take_options(argv, "--python")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    command = COMMANDS.get(arguments[0])
    if command is None:
        raise Failure(f"{arguments[0]!r} is not a command. Commands: {', '.join(COMMANDS)}.")
    return command(choose(pythons[-1] if pythons else None), arguments[1:])


def terminated(number: int, frame: object) -> None:
    """SIGTERM ends the program that runs, then dev.py."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Failure as failure:
        say(f"dev.py: {failure}", "31")
        sys.exit(2)
