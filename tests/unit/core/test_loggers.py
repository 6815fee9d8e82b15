"""Our loggers: fixed names, alive whatever the application configures, and no call of theirs raises."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from logging.config import dictConfig
from typing import Any

import pytest

from flask_taskworker.core.loggers import get_logger, protect_libraries


class Broken(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise OSError("disk full")


@pytest.fixture
def kept_configuration() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    enabled = [
        each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger) and not each.disabled
    ]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for each in enabled:
        each.disabled = False


@pytest.mark.usefixtures("kept_configuration")
def test_dict_config_does_not_silence_our_loggers() -> None:
    log = get_logger("worker")
    seen: list[str] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(f"{record.name} {record.filename}")

    logging.getLogger("flask_taskworker.worker")
    dictConfig({"version": 1, "root": {"level": "INFO", "handlers": []}})
    assert log.logger.disabled
    logging.getLogger().addHandler(Seen())
    log.warning("still here")
    assert seen == ["flask_taskworker.worker test_loggers.py"]


def test_a_handler_that_raises_harms_no_caller(capsys: pytest.CaptureFixture[str]) -> None:
    log = get_logger("unit")
    handler: Any = Broken()
    log.logger.addHandler(handler)
    try:
        log.error("no %s", "luck")
    finally:
        log.logger.removeHandler(handler)
    assert "flask_taskworker.unit: logging 'no %s' raised OSError" in capsys.readouterr().err


def test_library_that_logs_on_our_loop_is_not_stopped_by_a_handler_that_raises(
    capsys: pytest.CaptureFixture[str],
) -> None:
    protect_libraries()
    protect_libraries()
    library = logging.getLogger("aiosqlite")
    handler: Any = Broken()
    library.addHandler(handler)
    try:
        library.error("no %s", "luck")
    finally:
        library.removeHandler(handler)
    assert capsys.readouterr().err == "aiosqlite: logging 'no %s' raised OSError\n"
