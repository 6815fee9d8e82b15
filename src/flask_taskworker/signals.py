"""The blinker signals, all in one namespace. The sender is always the Flask app.

Job signals carry ``job=`` and, where there is one, ``outcome=`` or ``exception=``. ``job_enqueued`` is sent in the
process and thread that enqueues, after the commit; the others in the worker's process, after the commit, in one
thread beside the event loop and inside an app context. A receiver that raises is logged and harms nothing.
"""

from __future__ import annotations

from blinker import NamedSignal, Namespace

_signals = Namespace()

job_enqueued: NamedSignal = _signals.signal("job-enqueued", "A job was accepted. Keyword: job.")
job_started: NamedSignal = _signals.signal("job-started", "A worker claimed a job and runs it. Keyword: job.")
job_succeeded: NamedSignal = _signals.signal("job-succeeded", "A job ended well. Keywords: job, outcome.")
job_retrying: NamedSignal = _signals.signal(
    "job-retrying", "A try failed and another will follow. Keywords: job, outcome, exception."
)
job_failed: NamedSignal = _signals.signal("job-failed", "A job failed for good. Keywords: job, outcome, exception.")
job_cancelled: NamedSignal = _signals.signal("job-cancelled", "A job was cancelled. Keywords: job, outcome.")
job_rescued: NamedSignal = _signals.signal("job-rescued", "A dead worker's job went back to its queue. Keyword: job.")
schedule_fired: NamedSignal = _signals.signal(
    "schedule-fired", "A schedule made a job. Keywords: job, schedule, fire_at."
)
queue_paused: NamedSignal = _signals.signal("queue-paused", "A queue was paused or resumed. Keywords: queue, paused.")
dashboard_action: NamedSignal = _signals.signal(
    "dashboard-action", "A person acted through a page or a command. Keywords: who, action, target, number."
)
alert_changed: NamedSignal = _signals.signal(
    "alert-changed", "A problem that TASKER_ALERTS asks for has begun or is over. Keyword: alert."
)
worker_started: NamedSignal = _signals.signal("worker-started", "A worker begins to claim. Keyword: worker.")
worker_stopped: NamedSignal = _signals.signal("worker-stopped", "A worker has ended. Keyword: worker.")
email_queued: NamedSignal = _signals.signal("email-queued", "A mail was accepted for later. Keywords: message, job.")
email_failed: NamedSignal = _signals.signal("email-failed", "A queued mail was given up. Keywords: job, recipients.")
