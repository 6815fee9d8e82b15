"""The health file: what a worker's process writes each second, and how it is judged.

It is read by ``python -m flask_taskworker.health``, which containers start every few seconds. So nothing is imported
here that costs anything.
"""

from __future__ import annotations

import os
import sys
import time

UNHEALTHY = 4
"""The exit code, as that of ``flask tasks status``."""
_USAGE = 2
_DEFAULT_AGE = 30.0
_HELP = """\
Usage: python -m flask_taskworker.health --file FILE [--max-age SECONDS] [--ready]

  Say whether the worker that writes FILE (flask tasks run --health-file FILE) works. Imports no application.

  --max-age SECONDS  How old the file may be. Defaults to 30.
  --ready            Also require that the worker takes jobs and reaches the database.

  Exits with 0 if it does, with 4 if not.
"""


def words_of(not_live: str | None, not_ready: str | None) -> str:
    """What the file says: a line on each, "ok" or what is wrong."""
    return f"live: {not_live or 'ok'}\nready: {not_ready or 'ok'}\n"


def read_health(path: str, max_age: float, *, needs_ready: bool) -> str | None:
    """What is wrong with the process that writes the file; None where all is well."""
    try:
        age = time.time() - os.stat(path).st_mtime
        with open(path, encoding="utf-8", errors="replace") as file:
            answers = dict(line.split(": ", 1) for line in file.read(10_000).splitlines() if ": " in line)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if age > max_age:
        return f"{path} was written {age:.0f} s ago: the worker stands still, or is gone"
    for name in ("live", "ready") if needs_ready else ("live",):
        if answers.get(name) != "ok":
            return f"not {name}: {answers.get(name, 'the file does not say')}"
    return None


def main(arguments: list[str]) -> int:
    """The command; the exit code."""
    options = {"--file": "", "--max-age": str(_DEFAULT_AGE), "--ready": ""}
    rest = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            sys.stdout.write(_HELP)
            return 0
        if word not in options or (word != "--ready" and not rest):
            return _refuse(f"{word!r} is no option, or lacks its value.")
        options[word] = "yes" if word == "--ready" else rest.pop(0)
    try:
        max_age = float(options["--max-age"])
    except ValueError:
        return _refuse(f"--max-age is {options['--max-age']!r}. Give seconds.")
    if not options["--file"]:
        return _refuse("--file is missing.")
    problem = read_health(options["--file"], max_age, needs_ready=bool(options["--ready"]))
    sys.stdout.write(f"{problem or 'ok'}\n")
    return UNHEALTHY if problem else 0


def _refuse(message: str) -> int:
    sys.stderr.write(f"{_HELP}\nError: {message}\n")
    return _USAGE
