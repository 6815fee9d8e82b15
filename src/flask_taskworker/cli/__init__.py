"""``flask tasks …``: the commands. They reach the TaskWorker through ``app.extensions``."""

from __future__ import annotations

from . import acting, looking, running, status, tables
from .group import tasks_command

__all__ = ["acting", "looking", "running", "status", "tables", "tasks_command"]
