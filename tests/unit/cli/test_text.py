"""Text for a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest

from flask_taskworker.cli.text import safe, table, to_json


def test_control_characters_are_written_as_escapes() -> None:
    assert safe("a\x1b[31m\n\x9b\u202eü") == "a\\x1b[31m\\n\\x9b\\u202eü"
    line = to_json({"a\x1b": "\x9b\u202e\U000e0001ü"})
    assert line.isprintable()
    assert json.loads(line) == {"a\x1b": "\x9b\u202e\U000e0001ü"}


def test_a_table_is_cut_to_the_terminal_and_whole_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("shop.add", "x" * 40)]
    whole = table(("task", "error"), rows)
    assert whole[1].endswith("x" * 40)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((20, 24)))
    assert table(("task", "error"), rows) == ["  task      error", "  shop.add  xxxxxxx…"]
