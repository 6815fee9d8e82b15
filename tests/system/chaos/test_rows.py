"""The rows of the fault matrix in their short forms; ``tox -e chaos`` runs the long ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.chaos import matrix
from tests.system.chaos.__main__ import a_run
from tests.system.chaos.row import Result, Row, Run, keep, table
from tests.system.chaos.verifier import Judgement

SEED = 20_260
QUICK = {("second-signal", "sqlite")}
"""These stand for the others in ``dev.py test``."""
TOO_LONG = {"poison", "mail-login"}
"""Their short forms are elsewhere: tests/system/processes/test_poison.py and tests/unit/mail/queue/test_queue.py."""


BESIDE = ("kill", "term", "foreign-lock", "pg-terminate")
"""Rows that are run beside such user code here. `python -m tests.system.chaos --neighbour` runs all that can be."""


def cases() -> Iterator[object]:
    for row in matrix.ROWS.values():
        for database in row.databases:
            if row.name not in TOO_LONG:
                marks = () if (row.name, database) in QUICK else pytest.mark.slow
                yield pytest.param(row.name, database, marks=marks, id=f"{row.name}-{database}")


@pytest.mark.parametrize(("name", "database"), list(cases()))
def test_row_holds(name: str, database: str) -> None:
    hold(name, database)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "database"),
    [(name, database) for name in BESIDE for database in matrix.ROWS[name].databases],
)
def test_row_holds_beside_user_code_that_misbehaves_on_the_event_loop(name: str, database: str) -> None:
    hold(name, database, neighbour=True)


def hold(name: str, database: str, *, neighbour: bool = False) -> None:
    with a_run(database, full=False, seed=SEED, neighbour=neighbour) as run:
        result = matrix.ROWS[name].play(run, SEED)
    if result.skipped:
        pytest.skip(result.skipped)
    assert result.checks
    assert result.failed == [], table([result])


# -- the rows themselves -----------------------------------------------------------------------------------------------


def a_result(**more: object) -> Result:
    return Result(done="something", row="1", name="kill", fault="a fault", database="sqlite", **more)


@pytest.mark.parametrize("what", ["lost", "stuck", "unexcused", "overlapping", "counted"])
def test_row_fails_for_each_broken_promise(what: str) -> None:
    assert a_result().weigh(Judgement()).failed == []
    broken = a_result().weigh(Judgement(**{what: ["j"]}))
    assert len(broken.failed) == 1
    assert broken.verdict.startswith("FAILED: ")


def test_row_in_which_nothing_may_run_twice_fails_for_an_excused_one() -> None:
    assert a_result().weigh(Judgement(excused=["j died"])).failed == []
    assert a_result().weigh(Judgement(excused=["j died"]), doubled=False).failed == ["doubled 0"]


def test_row_that_breaks_off_has_failed(tmp_path: Path) -> None:
    def scenario(run: Run) -> Result:
        raise TimeoutError("not within 60 s")

    row = Row(number="1", name="kill", fault="a fault", databases=("sqlite",), scenario=scenario)
    run = Run(database="sqlite", url="", folder=tmp_path, full=False, chance=random.Random(1))
    assert row.play(run, 1).failed == ["TimeoutError: not within 60 s"]


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    result = a_result(figures={"slowest exit": "0.1 s"}).weigh(Judgement(lost=[f"j{n}" for n in range(50)]))
    keep(result, tmp_path)
    kept = json.loads((tmp_path / "kill-sqlite.json").read_text())
    assert (kept["judgement"]["lost"]["number"], len(kept["judgement"]["lost"]["some"])) == (50, 20)
    assert kept["verdict"] == "FAILED: lost 0"
    shown = table([result])
    assert "FAILED: lost 0" in shown
    assert "slowest exit 0.1 s" in shown
