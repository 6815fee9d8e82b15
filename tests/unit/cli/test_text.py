"""Text for a terminal."""

from __future__ import annotations

import json

from flask_taskworker.cli.text import safe, to_json


def test_control_characters_are_written_as_escapes() -> None:
    assert safe("a\x1b[31m\n\x9b\u202eü") == "a\\x1b[31m\\n\\x9b\\u202eü"
    line = to_json({"a\x1b": "\x9b\u202e\U000e0001ü"})
    assert line.isprintable()
    assert json.loads(line) == {"a\x1b": "\x9b\u202e\U000e0001ü"}
