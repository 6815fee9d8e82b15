"""Break things on purpose, row by row of the fault matrix, and hold what comes of it against what is promised.

Each row runs real worker processes. They and the processes that enqueue append to a file what they accept, begin and
end; a log says what was done to them; a verifier that knows nothing of the worker weighs both. Results go to
``build/chaos/``.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.postgres import PostgresServer, a_schema
from tests.system.chaos import matrix
from tests.system.chaos.row import POSTGRESQL, SQLITE, Result, Row, Run, keep, table

RESULTS = Path("build/chaos")
FAILED = 1


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="tox -e chaos --", description=__doc__)
    names = ", ".join(matrix.ROWS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows, by name or number; default: all. {names}")
    parser.add_argument("--database", choices=(SQLITE, POSTGRESQL, "both"), default="both")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--neighbour", action="store_true", help="beside user code that misbehaves on the event loops")
    parser.add_argument("--short", action="store_true", help="the short forms, as the tests run them")
    arguments = parser.parse_args()
    rows = [row for row in matrix.ROWS.values() if not arguments.names or {row.name, row.number} & {*arguments.names}]
    if unknown := {*arguments.names} - {name for row in rows for name in (row.name, row.number)}:
        parser.error(f"no row is called {', '.join(sorted(unknown))}; there are {names}")
    print(f"seed {arguments.seed}, {os.cpu_count()} CPUs", flush=True)
    results = [result for row in rows for result in _play(row, arguments)]
    print("\n" + table(results))
    return FAILED if any(result.failed for result in results) else 0


def _play(row: Row, arguments: argparse.Namespace) -> Iterator[Result]:
    wanted = (SQLITE, POSTGRESQL) if arguments.database == "both" else (arguments.database,)
    for database in row.databases:
        if database in wanted:
            form = {"full": not arguments.short, "neighbour": arguments.neighbour}
            with a_run(database, seed=arguments.seed, **form) as run:
                result = row.play(run, arguments.seed)
                _keep(result, run.folder)
            words = f"{row.number:>3} {row.name:<14} {database:<10} {result.seconds:>6.1f} s  {result.verdict}"
            print(words, flush=True)
            yield result


def _keep(result: Result, folder: Path) -> None:
    """The result, and where it failed what the processes have said and the evidence."""
    keep(result, RESULTS)
    kept = RESULTS / f"{result.name}-{result.database}{'-neighbour' * result.neighbour}"
    shutil.rmtree(kept, ignore_errors=True)
    if result.failed:
        kept.mkdir()
        for path in [*folder.rglob("log-*"), *folder.rglob("journal"), *folder.rglob("*.log")]:
            if path.is_file():
                shutil.copy(path, kept / path.name)


@contextmanager
def a_run(database: str, *, full: bool, seed: int, neighbour: bool = False) -> Iterator[Run]:
    """A folder and an empty database for one row."""
    form: dict[str, Any] = {"database": database, "full": full, "neighbour": neighbour, "chance": random.Random(seed)}
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        if database == SQLITE:
            url = f"sqlite:///{folder}/jobs.db"
            yield Run(url=url, folder=Path(folder), **form)
            return
        server = PostgresServer()
        try:
            server.start()
            with a_schema(server.url()) as url:
                yield Run(url=url, folder=Path(folder), server=server, **form)
        finally:
            server.close()


if __name__ == "__main__":
    sys.exit(main())
