"""``flask tasks …``: the commands. They reach the TaskWorker through ``app.extensions``."""

from __future__ import annotations

from . import (  # noqa: F401
    acting,
    batches,
    examining,
    limits,
    listing,
    looking,
    mails,
    operations,
    running,
    schedules,
    status,
    tables,
)
