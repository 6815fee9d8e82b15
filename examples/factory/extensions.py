"""The extensions, made before any app exists, so that every module can declare tasks."""

from __future__ import annotations

from flask_taskworker import BackgroundTaskWorker

task_worker = BackgroundTaskWorker()
