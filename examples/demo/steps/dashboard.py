"""The dashboard, asked as a browser asks it: each page answers, and shows what ran.

On a terminal it is there from the beginning, to look at while all this happens.
"""

from __future__ import annotations

import os
import time

from flask import current_app
from flask.testing import FlaskClient

from ..messages import OWNER
from ..page import DASHBOARD
from ..stage import Stage, wait_until
from ..tasks import parse_file, report_progress, send_batch, wait_too_long

SHOWS = {
    "": wait_too_long.name,
    "jobs": send_batch.name,
    f"jobs?filter=task:{parse_file.name}": parse_file.name,
    "failures": "SyntaxError",
    "queues": "gather",
    "schedules": report_progress.name,
    "workers": str(os.getpid()),
    "mail": OWNER,
    "system": "TASKER_THREADS",
}
"""What must stand on each page."""


def run(stage: Stage) -> str:
    client = current_app.test_client()
    succeeded = stage.tally.total()["succeeded"]
    # Figures are stored some seconds after the facts.
    wait_until(lambda: count_succeeded(client) >= succeeded, f"the overview counts {succeeded:,} jobs")
    took = [milliseconds(stage, client, page, words) for page, words in SHOWS.items()]
    check_job(stage, client)
    foreign = client.get(DASHBOARD, base_url="http://example.org").status_code
    stage.check("the dashboard answers under no foreign name", foreign == 403, foreign)
    stage.tell("dashboard", f"{len(took)} pages, the slowest in {max(took):.0f} ms")
    return f"each of {len(took)} pages shows what ran"


def count_succeeded(client: FlaskClient) -> int:
    """In the last hour, as the overview's chart has it."""
    bars = client.get(DASHBOARD, query_string={"format": "json"}).get_json()["throughput"]
    return sum(bar["succeeded"] for bar in bars)


def milliseconds(stage: Stage, client: FlaskClient, page: str, words: str) -> float:
    """Ask for a page, and look for the words on it."""
    begun = time.perf_counter()
    answer = client.get(DASHBOARD + page)
    seconds = time.perf_counter() - begun
    good = answer.status_code == 200 and words in answer.text
    stage.check(f"the dashboard's page {page or 'overview'!r} shows {words}", good, answer.status)
    return seconds * 1000


def check_job(stage: Stage, client: FlaskClient) -> None:
    """The page of the job that took too long."""
    found = client.get(DASHBOARD + f"jobs?filter=task:{wait_too_long.name}&format=json").get_json()["jobs"]
    answer = client.get(DASHBOARD + f"jobs/{found[0]['id']}")
    good = answer.status_code == 200 and "timeout" in answer.text
    stage.check("the page of a job that took too long says so", good, answer.status)
