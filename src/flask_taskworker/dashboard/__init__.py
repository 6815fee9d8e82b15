"""The dashboard: see what the jobs do, and act on them, in a browser.

::

    from flask_taskworker.dashboard import create_dashboard

    app.register_blueprint(create_dashboard(task_worker, access=lambda: current_user.is_admin), url_prefix="/tasks")
"""

from __future__ import annotations

from .blueprint import create_dashboard

__all__ = ["create_dashboard"]
