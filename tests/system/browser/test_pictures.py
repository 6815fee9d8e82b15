"""The pictures of the documentation can be taken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_pictures_are_taken_of_the_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "docs.make_pictures", "overview-dark", "job", "--to", str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["job.png", "overview-dark.png"]
    assert "TOO LARGE" not in answer.stdout
