"""Where the log of a worker goes, and its format."""

from __future__ import annotations

import logging

from flask_taskworker.cli import log_output


def test_lines_of_a_log_record_never_look_like_records_of_their_own() -> None:
    record = logging.LogRecord(
        "x", logging.ERROR, "", 0, "one\n2026-01-01 12:00:00,000 ERROR   forged\u2028two", (), None
    )
    first, *others = log_output.TextFormatter().format(record).split("\n")
    assert first.endswith("ERROR   x: one")
    assert others == ["    2026-01-01 12:00:00,000 ERROR   forged", "    two"]
