"""What people write by habit, coming from other libraries, and the call that works here.

Pure texts: an error that a habit meets ends with the sentence that these functions give.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

TASK_METHODS = {
    **dict.fromkeys(("delay", "send", "queue", "submit", "defer", "enqueue_job"), "{task}.enqueue(…)"),
    **dict.fromkeys(("s", "si", "signature", "subtask", "message"), "{task}.bind(…)"),
    **dict.fromkeys(
        ("apply_async", "send_with_options", "options", "configure", "set", "enqueue_in"),
        "{task}.using(delay=…, queue=…).enqueue(…)",
    ),
    **dict.fromkeys(("enqueue_at", "eta"), "{task}.using(run_at=…).enqueue(…)"),
    **dict.fromkeys(("map", "starmap", "chunks"), "{task}.enqueue_many([(1,), (2,)])"),
    **dict.fromkeys(("apply", "run", "call_local", "fn", "func"), "{task}(…), which runs it here and now"),
    "delay_on_commit": "{task}.using(session=db.session).enqueue(…)",
    "retry": "raise RetryJob(delay=…) in the task, or @task_worker.task(retry=3)",
    "request": "current_job",
}

JOB_METHODS = {
    **dict.fromkeys(("get", "return_value", "wait_result", "collect"), "job.result(timeout=…)"),
    **dict.fromkeys(("ready", "successful", "failed", "status", "get_status", "is_finished", "is_failed"), "job.state"),
    **dict.fromkeys(("revoke", "abort", "delete"), "job.cancel()"),
    **dict.fromkeys(("requeue", "reschedule"), "job.retry()"),
    "meta": "job.progress",
}

BATCH_METHODS = {
    **dict.fromkeys(("get", "join", "result"), "batch.wait(timeout=…)"),
    **dict.fromkeys(("add", "enqueue", "append"), "task.using(batch=batch).enqueue(…)"),
    **dict.fromkeys(("completed_count", "status", "failed", "pending"), "batch.counts"),
    **dict.fromkeys(("revoke", "abort"), "batch.cancel()"),
}

WORKER_METHODS = {
    **dict.fromkeys(("enqueue", "send_task", "delay", "send", "submit"), "the_task.enqueue(…)"),
    **dict.fromkeys(("add_job", "schedule"), "the_task.schedule(Cron(…), name=…)"),
    **dict.fromkeys(
        ("periodic_task", "cron", "scheduled_job", "interval", "on_after_configure"),
        "@task_worker.task(schedule=Cron(…))",
    ),
    **dict.fromkeys(("job", "actor"), "@task_worker.task"),
    **dict.fromkeys(("group", "chord", "workflow"), "with task_worker.batch(name) as batch: …"),
    "chain": "the_task.using(after=job).enqueue(…)",
    "remove_job": "task_worker.unschedule(name)",
    **dict.fromkeys(("shutdown", "close"), "task_worker.stop()"),
}

_OF_A_CALL = {
    **dict.fromkeys(("countdown", "delay", "in_", "schedule_in"), "delay={value}"),
    **dict.fromkeys(("eta", "run_at", "schedule_at", "run_date"), "run_at={value}"),
    **dict.fromkeys(("task_id", "job_id", "uid"), "uid={value}"),
    **dict.fromkeys(("queueing_lock", "lock", "unique", "job_key"), "unique={value}"),
    "queue": "queue={value}",
    "priority": "priority={value}",
    "session": "session={value}",
    "at_front": "priority=1",
}
_OF_A_TASK = {
    **dict.fromkeys(("retries", "max_retries"), "retry=1 + {value}"),
    "retry": "retry={value}",
    **dict.fromkeys(("autoretry_for", "retry_on"), "retry=Retry(5, on={value})"),
    **dict.fromkeys(("retry_backoff", "retry_delay", "default_retry_delay"), "retry=Retry(5, base={value})"),
    **dict.fromkeys(("time_limit", "soft_time_limit", "job_timeout", "timeout"), "timeout={value}"),
    **dict.fromkeys(("result_ttl", "result_expires"), "keep={value}"),
    **dict.fromkeys(("cron", "crontab"), "schedule=Cron({value})"),
    **dict.fromkeys(("run_every", "interval", "every"), "schedule=Every(seconds={value})"),
    "queue_name": "queue={value}",
}
_NOT_NEEDED = {
    **dict.fromkeys(("bind", "pass_context", "context"), "current_job is the running job, in each task"),
    **dict.fromkeys(("ignore_result", "store_results"), "a result is kept with its job; keep= says how long"),
    **dict.fromkeys(("acks_late", "reject_on_worker_lost"), "a job is acknowledged when it has ended, always"),
    **dict.fromkeys(("serializer", "base"), "arguments are stored as JSON"),
}


def no_attribute(owner: str, name: str, meant: Mapping[str, str], **names: str) -> AttributeError:
    """The error for an attribute that *owner* does not have, with the call that was probably meant."""
    remedy = f" Write {meant[name].format(**names)}." if name in meant else ""
    return AttributeError(f"{owner} has no {name!r}.{remedy}", name=name)


def hint_for_call(task: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """What was meant by options of another library among the arguments of ``enqueue``; "" without such."""
    options = {name: value for name, value in kwargs.items() if name not in parameters}
    given = [_shown(value) for value in args]
    given += [f"{name}={_shown(value)}" for name, value in kwargs.items() if name in parameters]
    calls = [_OF_A_CALL[name].format(value=_shown(value)) for name, value in options.items() if name in _OF_A_CALL]
    if calls and len(calls) == len(options):
        return f" Write {task}.using({', '.join(calls)}).enqueue({', '.join(given)})."
    if set(options) in ({"args"}, {"args", "kwargs"}):
        return f" Write {task}.enqueue(*args, **kwargs): arguments are given as in a call."
    return hint_for_options(options)


def hint_for_options(options: Mapping[str, Any]) -> str:
    """What was meant by options of another library's decorator; "" without such."""
    declared = [_OF_A_TASK[name].format(value=_shown(value)) for name, value in options.items() if name in _OF_A_TASK]
    hints = [f"Write @task_worker.task({', '.join(declared)})."] if declared else []
    hints += [f"Leave {name} out: {_NOT_NEEDED[name]}." for name in options if name in _NOT_NEEDED]
    return "".join(f" {hint}" for hint in hints)


def _shown(value: object) -> str:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple) and value and all(isinstance(one, type) for one in value):
        return _shown(value[0]) if len(value) == 1 else f"({', '.join(map(_shown, value))})"
    return f"{value!r:.100}"


def hint_for_trigger(value: object) -> str:
    """The trigger that was meant by a value of another library's kind."""
    match value:
        case str():
            return f"Cron({value!r:.100})"
        case bool():
            return "Cron(…), Every(…) or At(…)"
        case int() | float():
            return f"Every(seconds={value})"
        case timedelta():
            return f"Every(seconds={value.total_seconds():g})"
        case datetime():
            return f"At({value!r})"
        case _:
            return "Cron(…), Every(…) or At(…)"
