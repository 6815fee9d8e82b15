"""The fixture of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.processes.parent import Lab

QUICK = {
    "test_living_worker_rescues_the_jobs_of_a_killed_one",
    "test_cancel_from_another_process_reaches_a_running_job",
    "test_process_ends_soon_after_its_main_thread",
}
"""What stands for the others in ``dev.py test``; `tox -e slow` runs the rest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and getattr(item, "originalname", item.name) not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    place = Lab(tmp_path)
    yield place
    place.close()
