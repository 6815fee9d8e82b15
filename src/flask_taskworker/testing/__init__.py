"""Helpers for the tests of an application: see the page on testing. Its fixtures for pytest come by themselves."""

from __future__ import annotations

from .clock import TaskClock
from .jobs import Crash, Drained, Jobs
from .live import LiveWorker
from .matching import EnqueuedJob
from .outbox import Outbox, SentMail

__all__ = ["Crash", "Drained", "EnqueuedJob", "Jobs", "LiveWorker", "Outbox", "SentMail", "TaskClock"]
