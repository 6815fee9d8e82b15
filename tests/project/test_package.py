"""What gets installed: the metadata, the files, and what importing the package costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from readme_renderer import markdown

import flask_taskworker

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

DEPENDENCIES = {
    "Flask>=3.0",
    "SQLAlchemy>=2.0.16",
    "aiosqlite>=0.20,<0.23",
    "asgiref>=3.8",
    "aiosmtplib>=5.1.3,<6",
    "blinker>=1.8",
}


def test_runtime_dependencies_are_these_and_no_others() -> None:
    assert set(PYPROJECT["project"]["dependencies"]) == DEPENDENCIES


def test_installed_metadata_requires_the_same() -> None:
    required = {line for line in metadata.requires("Flask-TaskWorker") or [] if "extra ==" not in line}
    assert {comparable(line) for line in required} == {comparable(line) for line in DEPENDENCIES}


def comparable(requirement: str) -> tuple[str, frozenset[str]]:
    """ "Flask>=3.0,<4" as its parts: build backends write the same requirement in different ways."""
    name, specifiers = re.fullmatch(r"([\w.-]+)\s*(.*)", requirement.strip()).groups()  # type: ignore[union-attr]
    return name.lower(), frozenset(part.strip() for part in specifiers.strip("()").split(","))


def test_extras_ask_for_one_package_each() -> None:
    assert PYPROJECT["project"]["optional-dependencies"] == {
        "postgres": ["psycopg>=3.2"],
        "postgres-binary": ["psycopg[binary]>=3.2"],
        "prometheus": ["prometheus-client>=0.20"],
        "otel": ["opentelemetry-api>=1.30"],
        "sentry": ["sentry-sdk>=2"],
        "reload": ["watchfiles>=0.24"],
    }


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_readme_fits_and_on_pypi_it_has_no_relative_link() -> None:
    assert len(readme().splitlines()) <= 100
    page = markdown.render(readme())
    assert page is not None
    links = re.findall(r'(?:href|src)="([^#"][^"]*)"', page)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://") and "127.0.0.1" not in link] == []
    assert '<pre lang="python">' in page
    assert "<table>" in page


def test_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    measured = (ROOT / "docs/benchmarks.md").read_text()
    [row] = [line for line in readme().splitlines() if line.startswith("| [Sync jobs a second]")]
    ours, *others = [cell.strip() for cell in row.split("|")[2:-1]]
    assert f"| drain sync jobs | {ours} |" in measured
    for times, name in zip(others, ("celery", "RQ", "dramatiq", "huey"), strict=True):
        assert f"{times.removesuffix(' fewer')} {name}" in measured


def test_badges_say_what_the_classifiers_say() -> None:
    pythons = [line.rpartition(" ")[2] for line in PYPROJECT["project"]["classifiers"] if ":: 3." in line]
    tested = {f"{env[2]}.{env[3:]}" for env in PYPROJECT["tool"]["tox"]["env_list"] if re.fullmatch(r"py\d+", env)}
    assert set(pythons) == tested
    assert f"python-{'%20%7C%20'.join(pythons)}-blue" in readme()
    assert PYPROJECT["project"]["license"].replace("-", "--") in readme()


def test_flask_commands_come_with_an_app_not_with_the_installation() -> None:
    distribution = metadata.distribution("Flask-TaskWorker")
    assert not [point for point in distribution.entry_points if point.group == "flask.commands"]


def test_version_agrees_with_the_metadata() -> None:
    assert metadata.version("Flask-TaskWorker") == PYPROJECT["project"]["version"]
    assert getattr(flask_taskworker, "__version__", PYPROJECT["project"]["version"]) == PYPROJECT["project"]["version"]


def test_py_typed_lies_beside_the_code() -> None:
    assert (Path(flask_taskworker.__file__).parent / "py.typed").is_file()


def test_every_public_name_exists_and_is_listed_once() -> None:
    names = flask_taskworker.__all__
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(flask_taskworker, name)] == []


@pytest.mark.slow
def test_import_brings_in_nothing_that_only_tests_need() -> None:
    code = "import json, sys; from flask_taskworker import *; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    unwanted = {
        *("aiosmtpd", "cryptography", "flask_mail", "flask_sqlalchemy", "gunicorn", "pytest", "unittest", "xdist"),
        # An app that mounts the dashboard asks for it.
        *("flask_taskworker.dashboard", "flask_wtf"),
        *("prometheus_client", "opentelemetry"),
        *("psycopg", "greenlet", "sqlalchemy.ext.asyncio", "sqlalchemy.orm"),
    }
    assert unwanted.isdisjoint(json.loads(answer.stdout))
