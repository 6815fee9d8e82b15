"""Everything that this package raises.

::

    TaskWorkerError
    ├── ConfigError (ValueError)             a TASKER_* or MAIL_* value is wrong
    ├── NotSupported                         this platform or server cannot do it
    ├── AppError (RuntimeError)              which app is meant is unknown or impossible
    ├── DeclarationError (ValueError)        a task or schedule is declared wrongly
    │   └── TaskExists                       the name belongs to another function
    ├── TaskNotFound (LookupError)           no task has this name
    ├── ArgumentsError (TypeError)           the arguments do not fit the task's signature
    ├── NotEncodable (TypeError)             a value that JSON and the codec cannot hold
    ├── NotDecodable (ValueError)            stored text that is not what the codec writes
    ├── ProcessDied                          the process of an isolated job ended before its function
    ├── StepError (RuntimeError)             a step of a job is used wrongly; no policy retries it
    ├── StoreError                           the database said no
    │   ├── NotAccepted                      the job was not stored; enqueue again
    │   ├── OutcomeUnknown                   the commit got no answer; repeat with the same uid
    │   ├── ConnectionLost                   the server went away while it was asked
    │   ├── NotReachable                     the server does not answer; nothing was done
    │   └── SchemaError                      the tables are missing, too new or damaged
    │       └── DatabaseReplaced             the file is not the one that this process has opened
    ├── JobError
    │   ├── JobFailed                        the job ended with an exception
    │   ├── JobCancelled                     the job was cancelled
    │   ├── JobNotFound (LookupError)        never existed, or pruned
    │   ├── JobFinished                      it has ended, so it takes no notice
    │   ├── BatchNotFound (LookupError)      a batch that never existed, or was pruned
    │   ├── JobTimeout (TimeoutError)        no result within the caller's timeout
    │   └── LeaseLost                        another worker owns the job now
    ├── JobControl                           raised *by* a task to control its own job
    │   ├── RetryJob                         try again later; counts an attempt
    │   ├── SnoozeJob                        try again later; counts nothing
    │   └── CancelJob                        stop here, not an error
    └── MailError (smtplib.SMTPException)    see flask_taskworker.mail.errors

The docstring of a class is its default message.
"""

from __future__ import annotations

import inspect
from datetime import timedelta


class TaskWorkerError(Exception):
    """Flask-TaskWorker could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[0])


class ConfigError(TaskWorkerError, ValueError):
    """A configuration value is wrong."""

    @classmethod
    def _of(cls, key: str, value: object, allowed: str) -> ConfigError:
        """Name the key, the value and what is allowed."""
        return cls(f"{key} = {value!r} is not allowed. Allowed: {allowed}.")


class NotSupported(TaskWorkerError):
    """This platform or database server does not offer what is needed."""


class AppError(TaskWorkerError, RuntimeError):
    """No app is registered with this TaskWorker. Call init_app(app) first."""


class DeclarationError(TaskWorkerError, ValueError):
    """A task or a schedule is declared wrongly."""


class TaskExists(DeclarationError):
    """Another function is registered under this task name. Give one of them name=…."""


class TaskNotFound(TaskWorkerError, LookupError):
    """No task is registered under this name. Import the module that declares it."""


class ArgumentsError(TaskWorkerError, TypeError):
    """The arguments do not fit the task's signature."""


class NotEncodable(TaskWorkerError, TypeError):
    """A value cannot be stored as JSON."""


class NotDecodable(TaskWorkerError, ValueError):
    """A stored value is not what this version of the code can read."""


class StepError(TaskWorkerError, RuntimeError):
    """A step of a job is used wrongly. No retry policy repeats the job for that."""


class ProcessDied(TaskWorkerError):
    """The process of an isolated job ended before its function had returned."""

    failure_kind = "crashed"


class StoreError(TaskWorkerError):
    """The task database could not do what was asked."""


class NotAccepted(StoreError):
    """The job was not accepted: the database did not store it. Enqueue it again."""


class OutcomeUnknown(StoreError):
    """The commit got no answer, so the jobs may or may not be stored.

    Look them up, or enqueue again with ``using(uid=error.uid)``: the same uid is never stored twice.
    """

    def __init__(self, message: str | None = None, *, uids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.uids = uids

    @property
    def uid(self) -> str | None:
        """The uid of the only job, or of the first of several."""
        return self.uids[0] if self.uids else None


class ConnectionLost(StoreError):
    """The connection to the database server broke, so what was asked may or may not have been done."""


class NotReachable(StoreError):
    """The database server does not answer, or lets no one in just now. What was asked was not done; try again later."""


class SchemaError(StoreError):
    """The tables of the task database do not fit this version of Flask-TaskWorker."""


class DatabaseReplaced(SchemaError):
    """The database file was replaced while in use. Restart this process to work with the new one."""


class JobError(TaskWorkerError):
    """A job did not give a result."""


class JobFailed(JobError):
    """The job failed.

    ``exception_type``, ``exception_message`` and ``traceback`` are texts: the exception was raised in another
    thread or process and is never rebuilt. ``kind`` says how it failed: ``"exception"``, ``"timeout"``,
    ``"result"``, ``"payload"``, ``"crashed"``, ``"interrupted"`` or ``"unknown"``.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        job_id: int | None = None,
        kind: str = "exception",
        exception_type: str = "",
        exception_message: str = "",
        traceback: str = "",
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.kind = kind
        self.exception_type = exception_type
        self.exception_message = exception_message
        self.traceback = traceback


class JobCancelled(JobError):
    """The job was cancelled."""


class JobNotFound(JobError, LookupError):
    """The job never existed, or it was pruned after its time in TASKER_KEEP_*."""

    @classmethod
    def _of(cls, job_id: int) -> JobNotFound:
        """Name the job."""
        return cls(f"Job {job_id} never existed, or it was pruned after its time in TASKER_KEEP_*.")


class JobFinished(JobError):
    """The job has ended, so it takes no notice any more."""


class BatchNotFound(JobError, LookupError):
    """The batch never existed, or it was pruned after its time in TASKER_KEEP_FAILED."""

    @classmethod
    def _of(cls, batch_id: int) -> BatchNotFound:
        """Name the batch."""
        return cls(f"Batch {batch_id} never existed, or it was pruned after its time in TASKER_KEEP_FAILED.")


class JobTimeout(JobError, TimeoutError):
    """The job had no result within the timeout. It goes on; ask again later."""


class LeaseLost(JobError):
    """Another worker owns this job now: whatever this execution does will not be recorded."""


class JobControl(TaskWorkerError):
    """Raised by a task to say what becomes of its own job."""


class RetryJob(JobControl):
    """The task asked for another try.

    ``delay`` is in seconds or a timedelta; None takes the delay of the task's ``Retry`` policy, or of the
    default policy where the task has none. Counts an attempt: after ``max_attempts`` the job fails.
    """

    def __init__(self, message: str | None = None, *, delay: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class SnoozeJob(JobControl):
    """The task asked to be run again later.

    ``delay`` is in seconds or a timedelta. Counts no attempt. ``limit=True``: until then no other job of its lane (see
    ``Limit``) starts either, as an answer "429 Too Many Requests" asks for.
    """

    def __init__(self, delay: float | timedelta, message: str | None = None, *, limit: bool = False) -> None:
        super().__init__(message)
        self.delay = delay
        self.limit = limit


class CancelJob(JobControl):
    """The task cancelled its own job.

    ``reason`` is kept with the job.
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
