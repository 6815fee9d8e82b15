"""Background tasks, schedules and mail for Flask, with no broker to install."""

from .errors import (
    CancelJob,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobTimeout,
    LeaseLost,
    RetryJob,
    SnoozeJob,
    TaskWorkerError,
)
from .extension import BackgroundTaskWorker, BlockingTaskWorker
from .jobs import Job, JobState, current_job
from .mail import Attachment, BadHeaderError, Connection, Mail, Message, email_dispatched
from .retry import Retry
from .tasks import Task
from .triggers import At, Cron, Every

__all__ = [
    "At",
    "Attachment",
    "BackgroundTaskWorker",
    "BadHeaderError",
    "BlockingTaskWorker",
    "CancelJob",
    "Connection",
    "Cron",
    "Every",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
    "JobState",
    "JobTimeout",
    "LeaseLost",
    "Mail",
    "Message",
    "Retry",
    "RetryJob",
    "SnoozeJob",
    "Task",
    "TaskWorkerError",
    "current_job",
    "email_dispatched",
]
