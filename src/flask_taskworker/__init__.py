"""Background tasks, schedules and mail for Flask, with no broker to install."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .patching import patch_first

patch_first()

if TYPE_CHECKING:
    from .core.batches import Batch, BatchCounts
    from .core.current_job import current_job
    from .core.jobs import Job, Reason
    from .core.limits import Limit, Rate
    from .core.retry import Retry
    from .core.rows import JobState
    from .core.tasks import Bound, Task
    from .core.triggers import At, Cron, Every
    from .core.unique import Unique
    from .errors import (
        BatchNotFound,
        CancelJob,
        JobCancelled,
        JobFailed,
        JobFinished,
        JobNotFound,
        JobTimeout,
        LeaseLost,
        RetryJob,
        SnoozeJob,
        StepError,
        TaskWorkerError,
    )
    from .extension import BackgroundTaskWorker, BlockingTaskWorker
    from .mail import Attachment, BadHeaderError, Connection, Mail, Message, email_dispatched

__all__ = [
    "At",
    "Attachment",
    "BackgroundTaskWorker",
    "BadHeaderError",
    "Batch",
    "BatchCounts",
    "BatchNotFound",
    "BlockingTaskWorker",
    "Bound",
    "CancelJob",
    "Connection",
    "Cron",
    "Every",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobFinished",
    "JobNotFound",
    "JobState",
    "JobTimeout",
    "LeaseLost",
    "Limit",
    "Mail",
    "Message",
    "Rate",
    "Reason",
    "Retry",
    "RetryJob",
    "SnoozeJob",
    "StepError",
    "Task",
    "TaskWorkerError",
    "Unique",
    "current_job",
    "email_dispatched",
]

_ERRORS = (
    *("BatchNotFound", "CancelJob", "JobCancelled", "JobFailed", "JobNotFound", "JobTimeout", "LeaseLost", "RetryJob"),
    *("JobFinished", "SnoozeJob", "StepError"),
)
_HOMES = {
    **dict.fromkeys((*_ERRORS, "TaskWorkerError"), ".errors"),
    **dict.fromkeys(("BackgroundTaskWorker", "BlockingTaskWorker"), ".extension"),
    **dict.fromkeys(("Job", "Reason"), ".core.jobs"),
    **dict.fromkeys(("Batch", "BatchCounts"), ".core.batches"),
    "JobState": ".core.rows",
    "current_job": ".core.current_job",
    **dict.fromkeys(("Attachment", "BadHeaderError", "Connection", "Mail", "Message", "email_dispatched"), ".mail"),
    **dict.fromkeys(("Limit", "Rate"), ".core.limits"),
    "Retry": ".core.retry",
    **dict.fromkeys(("Bound", "Task"), ".core.tasks"),
    **dict.fromkeys(("At", "Cron", "Every"), ".core.triggers"),
    "Unique": ".core.unique",
}
"""Where each name comes from. It is fetched when it is first asked for (PEP 562).

So pytest, which loads the plugin in every project that has this package installed, pays nothing for the rest. See
test_plugin_imports_nothing_heavy.
"""

_MODULES = frozenset({"errors", "mail", "signals", "testing"})

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(home, __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
