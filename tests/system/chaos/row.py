"""One row of the fault matrix: what was done, what came of it, and whether that is what is promised."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.system.chaos.verifier import Judgement, percentile

SQLITE, POSTGRESQL = "sqlite", "postgresql"


@dataclass(slots=True, kw_only=True)
class Run:
    """Where and how one row is run."""

    database: str
    url: str
    folder: Path
    full: bool
    """The long form with the real beat and lease; else a short one."""
    chance: random.Random
    neighbour: bool = False
    """Whether user code misbehaves on the event loops meanwhile."""
    server: Any = None
    """PostgreSQL: the server, to be stopped and started."""

    def choose(self, full: Any, short: Any) -> Any:
        """The value for this form."""
        return full if self.full else short

    def within(self, seconds: float) -> float:
        """How long something may take that is promised within *seconds*: the short form runs on a busy machine."""
        return self.choose(seconds, 10 * seconds)


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of it."""

    done: str
    judgement: Judgement | None = None
    checks: dict[str, bool] = field(default_factory=dict)
    """What had to hold, in words, and whether it did."""
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""
    recovery: list[float] = field(default_factory=list)
    row: str = ""
    name: str = ""
    fault: str = ""
    database: str = ""
    seconds: float = 0.0
    seed: int = 0
    neighbour: bool = False

    @property
    def failed(self) -> list[str]:
        """What did not hold."""
        return [words for words, held in self.checks.items() if not held]

    @property
    def verdict(self) -> str:
        """One word and what did not hold."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        return "FAILED: " + "; ".join(self.failed) if self.failed else "ok"

    def expect(self, words: str, held: bool) -> None:
        """Note what had to hold."""
        self.checks[words] = bool(held)

    def weigh(self, judgement: Judgement, *, doubled: bool = True) -> Result:
        """Hold the evidence against the promises. *doubled*: whether an execution too many may have an excuse."""
        self.judgement = judgement
        self.recovery = self.recovery or judgement.recovery
        self.expect("lost 0", not judgement.lost)
        self.expect("stuck 0", not judgement.stuck)
        self.expect("doubled without excuse 0", not judgement.unexcused)
        self.expect("overlapping 0", not judgement.overlapping)
        self.expect("no attempt counted", not judgement.counted)
        if not doubled:
            self.expect("doubled 0", not judgement.excused)
        return self

    def as_json(self) -> dict[str, Any]:
        """All there is, with at most twenty names of each kind."""
        found = asdict(self) | {"verdict": self.verdict}
        judgement = found["judgement"] or {}
        for key, value in judgement.items():
            if isinstance(value, list) and key != "recovery":
                judgement[key] = {"number": len(value), "some": value[:20]}
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the fault matrix."""

    number: str
    name: str
    fault: str
    databases: tuple[str, ...]
    scenario: Callable[[Run], Result]

    def play(self, run: Run, seed: int) -> Result:
        """Run it. An exception is a verdict, too."""
        began = time.monotonic()
        try:
            result = self.scenario(run)
        except Exception as error:  # noqa: BLE001 - the other rows must run, and this one says what it met
            result = Result(done="broke off", checks={f"{type(error).__name__}: {error}"[:600]: False})
        result.row, result.name, result.fault, result.database = self.number, self.name, self.fault, run.database
        result.seconds, result.seed = round(time.monotonic() - began, 1), seed
        result.neighbour = run.neighbour
        return result


ROWS: dict[str, Row] = {}


def row(
    number: str, name: str, fault: str, databases: tuple[str, ...] = (SQLITE, POSTGRESQL)
) -> Callable[[Callable[[Run], Result]], Callable[[Run], Result]]:
    """Enter a scenario into the matrix."""

    def enter(scenario: Callable[[Run], Result]) -> Callable[[Run], Result]:
        ROWS[name] = Row(number=number, name=name, fault=fault, databases=databases, scenario=scenario)
        return scenario

    return enter


# -- the table ---------------------------------------------------------------------------------------------------------

HEADINGS = (
    "row", "name", "database", "neighbour",
    "lost", "stuck", "excused", "unexcused", "overlap", "p50", "p95", "max", "s", "verdict",
)  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """The rows as text, and below them what was done in each. Doubled: with an excuse, and without."""
    cells = [HEADINGS, *(_cells(result) for result in results)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{result.row} {result.name} ({result.database}): {_note(result)}" for result in results]
    return "\n".join([*lines, "", *notes])


def _cells(result: Result) -> tuple[str, ...]:
    found = result.judgement
    counts = (
        ("-",) * 5
        if found is None
        else tuple(
            str(len(names)) for names in (found.lost, found.stuck, found.excused, found.unexcused, found.overlapping)
        )
    )
    times = tuple(f"{percentile(result.recovery, part):.2f}" if result.recovery else "-" for part in (0.5, 0.95, 1.0))
    return (
        result.row, result.name, result.database, "yes" * result.neighbour,
        *counts, *times, f"{result.seconds:.0f}", result.verdict[:160],
    )  # fmt: skip


def _note(result: Result) -> str:
    figures = "; ".join(f"{key} {value}" for key, value in result.figures.items())
    return f"{result.fault}. {result.done}" + (f" [{figures}]" if figures else "")


def keep(result: Result, folder: Path) -> None:
    """Write it to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}-{result.database}{'-neighbour' * result.neighbour}.json"
    path.write_text(json.dumps(result.as_json(), indent=1, default=str) + "\n")
