"""Metrics for Prometheus: a blueprint, and a port of its own. Needs the extra ``prometheus``.

Each request reads the database, so any one process reports on all of them. The counters are the figures that workers
store some seconds later; they survive processes, and reset only with a new database.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from flask import Blueprint, Flask, Response, current_app, request
from werkzeug.wrappers import Response as BaseResponse

from .core.config import TaskWorkerConfig
from .core.limits import declared_limits
from .core.loggers import Logger, get_logger
from .core.tasks import TaskRegistry, registry_of
from .errors import StoreError
from .mail.queue.queue import DELIVER
from .ops.access import Gate
from .ops.browse import Browser
from .ops.rows import Figures, LimitRow, QueueState, add_up
from .ops.views import worker_view
from .state import HasState
from .store.driver import Row
from .store.schema import BUCKETS_MS
from .store.sql import Store, WorkerRow

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(
        "flask_taskworker.metrics needs prometheus-client: pip install 'Flask-TaskWorker[prometheus]'."
    ) from _error

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


log: Logger = get_logger("worker")

OUTCOMES = ("succeeded", "failed", "retried", "cancelled")
WORKER_STATES = ("alive", "draining", "dead", "left")

_BOUNDS = (*(f"{bound / 1000:g}" for bound in BUCKETS_MS), "+Inf")
_CLOSED = (
    "The metrics are closed: a request from %s was refused. Open them with create_metrics(task_worker, access=…), or "
    "set TASKER_DASHBOARD_USER and TASKER_DASHBOARD_PASSWORD. Without either they answer only on this machine, in "
    "debug mode, and not behind a proxy.%s"
)


def create_metrics(
    task_worker: HasState, access: Callable[[], Any] | None = None, *, name: str = "taskworker_metrics"
) -> Blueprint:
    """A blueprint that answers ``/metrics``.

    *access* is called within each request; it returns whether to answer, or a response to give instead. Without it the
    login of the dashboard holds: ``TASKER_DASHBOARD_USER`` and ``TASKER_DASHBOARD_PASSWORD``, else only a
    developer on this machine. *name* is that of the blueprint. Raises ArgumentsError for a *task_worker* that is none,
    and for an *access* that cannot be called.
    """
    registry_of(task_worker)
    blueprint = Blueprint(name, __name__)
    gate = Gate(access, None, closed=_CLOSED)

    @blueprint.get("/metrics")
    def metrics() -> BaseResponse:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        state = app.extensions["taskworker"]
        visitor = gate.admit(state.config, state.store)
        if isinstance(visitor, BaseResponse):
            return visitor
        if "view" not in visitor.permissions:
            return Response("The metrics are closed to you.\n", 403, content_type="text/plain")
        return _answer(_Collector(app), request.headers.get("Accept", ""))

    return blueprint


def serve_metrics(app: Flask, port: int, host: str = "0.0.0.0") -> WSGIServer:
    """Answer GET on a port of its own, in a thread, until ``shutdown()`` and ``server_close()`` of what is returned.

    It has no login, and answers any path. Port 0 takes a free one, which is ``server_port``. Raises OSError if the port
    is taken.
    """
    collector = _Collector(app)

    def answer(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        return _answer(collector, environ.get("HTTP_ACCEPT", ""))(environ, start_response)

    server = make_server(host, port, answer, _Server, _Quiet)
    threading.Thread(target=server.serve_forever, name="taskworker-metrics", daemon=True).start()
    return server


RUN_TIME = "(made at run time)"
"""The label of all schedules that code does not declare."""

OTHER = "(other)"
"""The label of queues that no task names, where there are more than MOST_QUEUES: there may be one for each user."""
MOST_QUEUES = 50


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _answer(collector: Collector, accept: str) -> Response:
    registry = CollectorRegistry()
    registry.register(collector)
    encode, content_type = choose_encoder(accept)
    try:
        return Response(encode(registry), content_type=content_type)
    except StoreError as error:
        log.warning("the metrics could not be read: %s", error)
        return Response("The database does not answer.\n", 503, content_type="text/plain")


class _Collector(Collector):
    """Collects from the database of *app*. For a registry of prometheus_client's. Safe from any thread."""

    def __init__(self, app: Flask) -> None:
        state = app.extensions["taskworker"]
        self._store: Store = state.store
        self._tasks: TaskRegistry = state.registry
        self._config: TaskWorkerConfig = state.config
        self._browser = Browser(self._store)

    def describe(self) -> list[Metric]:
        """Nothing: to be added to a registry it needs no database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Eight queries, and one more where the code declares limits. Raises StoreError; creates nothing."""
        self._store.look()
        now = self._store.clock()
        figures, scheduled = self._browser.totals(), self._browser.scheduled_by_queue()
        named = {task.options.queue for task in self._tasks}
        queues = self._browser.queues(also=sorted(named))
        label = _labels(
            [*(queue for _, queue in figures), *(q.name for q in queues), *(row[0] for row in scheduled)], named
        )
        parts = defaultdict[tuple[str, str], list[Figures]](list)
        for (task, queue), some in figures.items():
            parts[task, label(queue)].append(some)
        totals = {key: total for key, some in parts.items() if (total := add_up(some)) is not None}
        yield from _jobs(totals)
        yield _mails(totals)
        yield from _queues(queues, scheduled, label, now)
        if declared_limits(self._tasks.limits, self._config.queue_limits):
            yield from _limits(self._browser.limits())
        yield from self._schedules(now)
        yield from _workers(self._store.workers(), now)

    def _schedules(self, now: int) -> Iterator[Metric]:
        late, following, succeeded = (
            GaugeMetricFamily(f"taskworker_schedule_{name}", words, labels=["schedule"])
            for name, words in _SCHEDULE_GAUGES.items()
        )
        for name, next_at, paused, last_success in self._browser.schedule_figures(RUN_TIME):
            late.add_metric([name], 0 if paused or next_at is None else max(0, now - next_at) / 1000)
            if name != RUN_TIME and next_at is not None and not paused:
                following.add_metric([name], next_at / 1000)
            if last_success is not None:
                succeeded.add_metric([name], last_success / 1000)
        yield from (late, following, succeeded)


Totals = dict[tuple[str, str], Figures]
Label = Callable[[str], str]


def _labels(queues: Iterable[str], named: Collection[str]) -> Label:
    """What stands for each queue: its name, or OTHER where calls have made up many that no task of the code names."""
    others = set(queues) - set(named)
    return lambda name: OTHER if len(others) > MOST_QUEUES and name in others else name


def _jobs(totals: Totals) -> Iterator[Metric]:
    labels = ["task", "queue"]
    jobs = CounterMetricFamily("taskworker_jobs", "Tries of jobs by how they ended.", labels=[*labels, "outcome"])
    durations = HistogramMetricFamily("taskworker_job_duration_seconds", "How long tries of jobs ran.", labels=labels)
    waits = HistogramMetricFamily(
        "taskworker_job_wait_seconds", "How long tries of jobs waited from being due to their start.", labels=labels
    )
    for key, figures in totals.items():
        for outcome in OUTCOMES:
            jobs.add_metric([*key, outcome], getattr(figures, outcome))
        for family, counts, sum_ms in (
            (durations, figures.run, figures.run_ms),
            (waits, figures.wait, figures.wait_ms),
        ):
            family.add_metric(key, list(zip(_BOUNDS, accumulate(counts), strict=True)), sum_ms / 1000)
    yield from (jobs, durations, waits)


def _mails(totals: Totals) -> Metric:
    mails = CounterMetricFamily("taskworker_mail", "Tries of queued mails by how they ended.", labels=["outcome"])
    for outcome in OUTCOMES:
        mails.add_metric([outcome], sum(getattr(f, outcome) for (task, _), f in totals.items() if task == DELIVER))
    return mails


def _limits(limits: Sequence[LimitRow]) -> Iterator[Metric]:
    # No label for each key: there may be thousands.
    admitted = GaugeMetricFamily("taskworker_limit_open", "Jobs that have room: admitted, not ended.", labels=["limit"])
    waiting = GaugeMetricFamily("taskworker_limit_waiting", "Jobs in line, counted up to 10,000.", labels=["limit"])
    closings = CounterMetricFamily("taskworker_limit_closings", "How often a job closed a lane.", labels=["limit"])
    for limit in limits:
        admitted.add_metric([limit.name], limit.admitted)
        waiting.add_metric([limit.name], limit.waiting)
        closings.add_metric([limit.name], limit.closings)
    yield from (admitted, waiting, closings)


def _queues(queues: Sequence[QueueState], scheduled: Iterable[Row], label: Label, now: int) -> Iterator[Metric]:
    by_label = defaultdict[str, list[QueueState]](list)
    for queue in queues:
        by_label[label(queue.name)].append(queue)
    for name, (words, value) in _QUEUE_GAUGES.items():
        gauge = GaugeMetricFamily(f"taskworker_queue_{name}", words, labels=["queue"])
        for queue_label, some in by_label.items():
            gauge.add_metric([queue_label], value(some, now))
        yield gauge
    waiting = GaugeMetricFamily("taskworker_queue_scheduled", _SCHEDULED, labels=["queue"])
    retrying = GaugeMetricFamily("taskworker_queue_retrying", _RETRYING, labels=["queue"])
    counts = dict.fromkeys(by_label, (0, 0))
    for name, number, again in scheduled:
        before, before_again = counts.get(label(name), (0, 0))
        counts[label(name)] = (before + number, before_again + again)
    for queue_label, (number, again) in counts.items():
        waiting.add_metric([queue_label], number)
        retrying.add_metric([queue_label], again)
    yield from (waiting, retrying)


def _oldest(queues: Sequence[QueueState], now: int) -> float:
    return max((max(0, now - queue.oldest_at) / 1000 for queue in queues if queue.oldest_at is not None), default=0)


_QUEUE_GAUGES: dict[str, tuple[str, Callable[[Sequence[QueueState], int], float]]] = {
    "depth": ("Ready jobs, counted up to 10,000.", lambda queues, now: sum(queue.ready for queue in queues)),
    "oldest_seconds": ("How long the oldest ready job has waited; 0 without one. Scale by this.", _oldest),
    "running": ("Running jobs.", lambda queues, now: sum(queue.running for queue in queues)),
    "paused": ("1 while the queue is paused.", lambda queues, now: max(int(queue.paused) for queue in queues)),
}
_SCHEDULED = "Jobs that are not due yet, among the next 10,000."
_RETRYING = "Those of them that wait for their next try."
_SCHEDULE_GAUGES = {
    "late_seconds": "How long ago a schedule should have fired; 0 if it is on time or paused.",
    "next_timestamp_seconds": "When a schedule in code fires next.",
    "last_success_timestamp_seconds": "When a job of a schedule in code last succeeded.",
}


def _workers(rows: Sequence[WorkerRow], now: int) -> Iterator[Metric]:
    workers = GaugeMetricFamily("taskworker_workers", "Workers by state.", labels=["state"])
    for state in WORKER_STATES:
        workers.add_metric([state], sum(row.state == state for row in rows))
    living = [worker_view(row, now) for row in rows if row.state in ("alive", "draining")]
    slots = GaugeMetricFamily("taskworker_slots", "Jobs that the workers can run at once.", labels=["kind"])
    busy = GaugeMetricFamily("taskworker_slots_busy", "Slots in use.", labels=["kind"])
    slots.add_metric(["async"], sum(worker.async_slots or 0 for worker in living))
    slots.add_metric(["sync"], sum(worker.sync_slots or 0 for worker in living))
    busy.add_metric(["async"], sum(worker.async_busy for worker in living))
    busy.add_metric(["sync"], sum(worker.sync_busy for worker in living))
    info = InfoMetricFamily("taskworker", "Versions of Flask-TaskWorker among the living workers.")
    for version in sorted({worker.version for worker in living if worker.version}):
        info.add_metric([], {"version": version})
    yield from (workers, slots, busy, info)
    resident_mb = sum(worker.resident_mb or 0 for worker in living)
    lag_ms = max((worker.loop_lag_ms or 0 for worker in living), default=0)
    for name, words, value in (
        (
            "hung_threads",
            "Threads held by jobs that have timed out.",
            sum(worker.hung_threads or 0 for worker in living),
        ),
        ("loop_lag_seconds", "How late the latest of the event loops is.", lag_ms / 1000),
        ("resident_memory_bytes", "Memory of the living workers.", round(resident_mb * 2**20)),
    ):
        yield GaugeMetricFamily(f"taskworker_{name}", words, value=value)
