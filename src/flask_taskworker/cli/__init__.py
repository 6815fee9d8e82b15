"""``flask tasks …``: the commands. They reach the TaskWorker through ``app.extensions``."""

from __future__ import annotations

from . import acting, examining, listing, looking, mails, operations, running, schedules, status, tables  # noqa: F401
