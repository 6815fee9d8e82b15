"""``flask tasks doctor``: findings as text and JSON, settings, and exit codes by what is wrong."""

from __future__ import annotations

import json

import pytest

from flask_taskworker.cli import examining
from flask_taskworker.ops.doctor import Finding
from tests.support.cli_shop import Shop


def test_a_healthy_installation_ends_with_0_and_a_line_a_finding(shop: Shop) -> None:
    shop.register_worker()
    answer = shop("doctor")
    assert (answer.code, answer.err) == (0, "")
    assert {line[:7].strip() for line in answer.out.splitlines() if not line.startswith(" ")} <= {"ok", "WARNING"}
    rows = [json.loads(line) for line in shop("doctor", "--json").out.splitlines()]
    assert {"level", "text", "fix"} == set().union(*rows)


def error(cause: str | None) -> Finding:
    return Finding(level="error", text="wrong\n\x1b[31m", fix="do this", cause=cause)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("causes", "code"),
    [(["no tables"], 1), (["schema"], 5), (["schema", "schema"], 5), ([None], 4), (["schema", None], 4), ([], 0)],
)
def test_the_exit_code_says_what_is_wrong(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, causes: list[str | None], code: int
) -> None:
    warning = Finding(level="warning", text="odd", fix="look")
    monkeypatch.setattr(examining, "findings", lambda app, **_: [warning, *map(error, causes)])
    answer = shop("doctor")
    assert answer.code == code
    assert answer.out.startswith("WARNING  odd\n         look\n")
    assert answer.out.count("ERROR    wrong\\n\\x1b[31m\n         do this\n") == len(causes)


def test_settings_are_printed_on_request(shop: Shop) -> None:
    assert "TASKER_THREADS" not in shop("doctor").out
    assert "TASKER_THREADS" in shop("doctor", "--settings").out
    last = json.loads(shop("doctor", "--settings", "--json").out.splitlines()[-1])
    assert set(last) == {"setting", "value"}
