"""The loggers of this package: they have fixed names that users can rely on, and their calls never raise.

A filter, a handler or a record factory of the application may raise, and so may ``str()`` of what is logged. On the
event loop that would end whatever logs, the worker itself included.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LIBRARIES = ("asyncio", "aiosqlite", "aiosmtplib", "psycopg")
"""Their loggers are called on a worker's event loop and in its threads."""


class Logger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose calls never raise."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Keep ``extra=`` of the call, which Python up to 3.12 drops."""
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, or write to stderr why that failed."""
        # logging.config.dictConfig disables all loggers that it does not name, those of imported packages too.
        self.logger.disabled = False
        try:
            # One more: the record names the caller of this method.
            super().log(level, msg, *args, stacklevel=kwargs.pop("stacklevel", 1) + 1, **kwargs)
        except Exception as error:  # noqa: BLE001 - handlers, filters and factories are foreign code
            with suppress(Exception):
                sys.stderr.write(f"{self.logger.name}: logging {msg!r} raised {type(error).__qualname__}\n")


def get_logger(name: str) -> Logger:
    """The logger ``flask_taskworker.<name>``."""
    return Logger(logging.getLogger(f"flask_taskworker.{name}"), {})


def show_on_terminal() -> None:
    """Show the lines of this package from INFO on stderr, unless the application has set up logging.

    For debug mode, as werkzeug does with its lines of requests. Harmless when repeated.
    """
    ours = logging.getLogger("flask_taskworker")
    if ours.level == logging.NOTSET and not ours.hasHandlers():
        ours.setLevel(logging.INFO)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        # Set up after all: the root's handlers show the lines then.
        handler.addFilter(lambda _: not logging.root.handlers)
        ours.addHandler(handler)


def protect_libraries() -> None:
    """Make the calls of the libraries' loggers as safe as those of ours. Harmless when repeated."""
    for logger in map(logging.getLogger, LIBRARIES):
        if "handle" not in vars(logger):
            logger.handle = _never_raising(logger)  # type: ignore[assignment]


def _never_raising(logger: logging.Logger) -> Callable[[logging.LogRecord], None]:
    handle = logger.handle

    def safe(record: logging.LogRecord) -> None:
        try:
            handle(record)
        except Exception as error:  # noqa: BLE001 - as above
            with suppress(Exception):
                sys.stderr.write(f"{logger.name}: logging {record.msg!r} raised {type(error).__qualname__}\n")

    return safe
