"""This tree beside another commit: is anything slower? ``tox -e guard -- main``; without a commit, beside ``HEAD``.

Both do each work in turns, in processes and on databases of their own. Read the ratios: above 1, this tree is better.
Ends with 1 if something is slower: by more than two hundredths, in all rounds but one, and measured again, too.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from .common import folder, median
from .versus import ADatabase, on_postgres, on_sqlite, run

ROUNDS = 9
TOLERATED = 0.98
"""A median below it counts, if three quarters of the rounds agree."""

ON_POSTGRES = ("drain async", "drain sync", "enqueue", "bulk", "pick-up")
ON_SQLITE = (*ON_POSTGRES, "drain by two", "enqueue by eight", "mail", "hello")


def main() -> int:
    """Compare with the commit that the command line names."""
    parser = argparse.ArgumentParser(prog="tox -e guard --", description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD", help="default: HEAD, for what is not committed yet")
    parser.add_argument("--only", nargs="+", metavar="WORK", default=ON_SQLITE, help=f"of {', '.join(ON_SQLITE)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    options = parser.parse_args()
    slower = []
    print("| work | ratio | rounds, without the outermost | this tree |\n|---|---:|---:|---:|", flush=True)
    with folder() as path:
        sides = (shutil.copytree("src", path / "here" / "src"), source_of(options.commit, path / "there"))
        for side in sides:
            # Compile it, so that neither pays for that when it counts.
            with on_sqlite() as a_database:
                measure("hello", side, a_database)
        for database, place, works in (("sqlite", on_sqlite, ON_SQLITE), ("postgresql", on_postgres, ON_POSTGRES)):
            if options.database not in (database, "both"):
                continue
            with place() as a_database:
                for work in (work for work in works if work in options.only):
                    if suspects := compare(database, work, sides, options.rounds, a_database):
                        again = compare(database, work, sides, options.rounds, a_database)
                        slower += [what for what in again if what in suspects]
    print(f"\nSlower: {', '.join(slower)}" if slower else "\nNothing is slower.")
    return 1 if slower else 0


def source_of(commit: str, path: Path) -> Path:
    """The package as it is in that commit."""
    archive = subprocess.run(["git", "archive", commit, "src"], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(path, filter="data")
    return path / "src"


def compare(database: str, work: str, sides: Sequence[Path], rounds: int, a_database: ADatabase) -> list[str]:
    """Measure both in turns, print the ratios, and tell what is slower."""
    found: dict[str, dict[Path, list[float]]] = {}
    for number in range(rounds):
        for side in sides if number % 2 else reversed(sides):
            for name, figure in measure(work, side, a_database).items():
                found.setdefault(name, {}).setdefault(side, []).append(figure)
    slower = []
    for name, figures in found.items():
        here, there = (figures[side] for side in sides)
        ratios = [one / other for one, other in zip(here, there, strict=True)]
        _, low, *_, high, _ = sorted(ratios)
        what, ratio = f"{name}, {database}", median(ratios)
        print(f"| {what} | {ratio:.3f} | {low:.3f} to {high:.3f} | {median(here):,.4g} |", flush=True)
        if is_slower(ratios):
            slower.append(what)
    return slower


def is_slower(ratios: Sequence[float]) -> bool:
    """Whether the rounds show that this tree is slower, rather than that the machine is noisy."""
    return median(ratios) < TOLERATED and sorted(ratios)[-2] < 1


def measure(work: str, side: Path, a_database: ADatabase) -> dict[str, float]:
    """The figures of one work with that source."""
    with folder() as path, a_database(path) as url:
        if url is not None:
            (path / "url").write_text(url.replace("postgresql+psycopg", "postgresql"))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(side), str(Path.cwd())))}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        figures: dict[str, float] = run([sys.executable, "-m", "benchmarks.guarded", work, str(path)], environment)
        return figures


if __name__ == "__main__":
    sys.exit(main())
