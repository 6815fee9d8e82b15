"""Flask-Mail's own tests, with our mail half in its place.

0.9.1 has them in its source distribution, which pip fetches. Later releases have them in their repository only:
``FLASK_MAIL_CHECKOUT`` names the folder of a checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

SOURCES = Path(__file__).parents[3]
PASSED = {"0.9.1": 50, "checkout": 51}
"""How many tests there are, at least: none is left out."""


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the suites, each in a folder of its own and without the package it was written for."""
    return tmp_path_factory.mktemp("suites")


def fetch(version: str, suites: Path) -> Path:
    """The folder of a suite; one that cannot be had is a visible skip, and an error where CI is set."""
    folder = suites / version
    if folder.exists():
        return folder
    if version == "checkout":
        if "FLASK_MAIL_CHECKOUT" not in os.environ:
            pytest.skip("the newest release's tests are in its repository only: set FLASK_MAIL_CHECKOUT")
        shutil.copytree(Path(os.environ["FLASK_MAIL_CHECKOUT"], "tests"), folder)
        return folder
    download = ("-m", "pip", "download", "-q", "--no-deps", "--no-binary=Flask-Mail", f"--dest={suites}")
    fetched = subprocess.run([sys.executable, *download, f"Flask-Mail=={version}"], capture_output=True, text=True)
    if fetched.returncode:
        assert os.environ.get("CI") != "true", fetched.stderr
        pytest.skip(f"pip could not fetch Flask-Mail {version}: {fetched.stderr[-300:]}")
    folder.mkdir()
    with tarfile.open(next(suites.glob("*.tar.gz"))) as packed:
        found = packed.extractfile(f"Flask-Mail-{version}/tests.py")
        assert found is not None
        (folder / "test_it.py").write_bytes(found.read())
    return folder


@pytest.mark.parametrize("real", ["", "1"], ids=["alone", "beside the real one"])
@pytest.mark.parametrize("version", PASSED)
def test_flask_mails_own_tests_pass(version: str, real: str, suites: Path) -> None:
    folder = fetch(version, suites)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -p tests.support.as_flask_mail\n")
    environment = {**os.environ, "PYTHONPATH": f"{SOURCES / 'src'}:{SOURCES}", "REAL_FLASK_MAIL": real}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(folder)],
        cwd=folder,
        env={name: value for name, value in environment.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) >= PASSED[version]
    assert "skipped" not in ran.stdout
