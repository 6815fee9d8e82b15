"""Every statement that changes the state of jobs is known, since lanes, batches and children must follow it."""

from __future__ import annotations

import re
from pathlib import Path

import flask_taskworker.store.statements

FOLDER = Path(flask_taskworker.store.statements.__file__).parent
ENQUEUE = {"jobs.ADD_JOB", "jobs.add_alike", "jobs.add_jobs", "jobs.add_scheduled_jobs"}
"""Followed by Flows.added."""
TOUCHED = {
    *("jobs.CANCEL", "jobs.RETRY", "jobs.FINISH_ONE", "jobs.promote", "jobs.finish", "workers.sweep", "keys.merge"),
    *("flows.release", "flows.cancel_children", "flows.wait_again", "steps.wake", "jobs.finish_succeeded"),
    *("operations.retry", "operations.cancel", "operations.discard", "operations._RESTORE", "operations.run"),
    "operations.CHANGE",
    *("limits.let_in", "limits.take_back"),
}
"""Followed by Flows.changed, Flows.back or touch, or part of admission."""
UNLIMITED = {"jobs._claim"}
"""A claim takes what is admitted, and what waits for nothing."""

WRITES = r"UPDATE taskworker_job SET(?:(?!WHERE)[\s\S])*?\bstate = (CASE|'|\{)|INTO taskworker_job "


def test_every_writer_of_states_is_known() -> None:
    found = set()
    for path in FOLDER.glob("*.py"):
        for part in re.split(r"^(?=def |[A-Z_]+\b.* = )", path.read_text(), flags=re.M):
            name = re.match(r"(?:def )?(\w+)", part)
            if name and re.search(WRITES, part):
                found.add(f"{path.stem}.{name[1]}")
    assert found == ENQUEUE | TOUCHED | UNLIMITED
