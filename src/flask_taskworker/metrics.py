"""Metrics for Prometheus: a blueprint, and a port of its own. Needs the extra ``prometheus``.

Each request reads the database, so any one process reports on all of them. The counters are the figures that workers
store some seconds later; they survive processes, and reset only with a new database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from .ops.rows import Figures, LimitRow, QueueState
from .state import HasState
from .store.schema import BUCKETS_MS
from .store.sql import Store

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
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
        """Six queries, and one more where the code declares limits. Raises StoreError."""
        now = self._store.clock()
        totals = self._browser.totals()
        yield from _jobs(totals)
        yield _mails(totals)
        yield from _queues(self._browser.queues(also=sorted({task.options.queue for task in self._tasks})), now)
        if declared_limits(self._tasks.limits, self._config.queue_limits):
            yield from _limits(self._browser.limits())
        yield self._schedules(now)
        yield self._workers()

    def _schedules(self, now: int) -> Metric:
        words = "Since when a schedule should have fired; 0 where it is in time, or paused."
        late = GaugeMetricFamily("taskworker_schedule_late_seconds", words, labels=["schedule"])
        seconds: dict[str, float] = {}
        for schedule in self._store.schedules():
            overdue = 0 if schedule.paused or schedule.next_at is None else max(0, now - schedule.next_at)
            # Those made at run time may be thousands, and named after users: the latest of them stands for all.
            name = schedule.name if schedule.source == "code" else RUN_TIME
            seconds[name] = max(seconds.get(name, 0), overdue / 1000)
        for name, value in seconds.items():
            late.add_metric([name], value)
        return late

    def _workers(self) -> Metric:
        states = [worker.state for worker in self._store.workers()]
        workers = GaugeMetricFamily("taskworker_workers", "Workers by state.", labels=["state"])
        for state in WORKER_STATES:
            workers.add_metric([state], states.count(state))
        return workers


Totals = dict[tuple[str, str], Figures]


def _jobs(totals: Totals) -> Iterator[Metric]:
    jobs = CounterMetricFamily(
        "taskworker_jobs", "Tries of jobs by how they ended.", labels=["task", "queue", "outcome"]
    )
    durations = HistogramMetricFamily(
        "taskworker_job_duration_seconds", "How long tries of jobs ran.", labels=["task", "queue"]
    )
    for (task, queue), figures in totals.items():
        for outcome in OUTCOMES:
            jobs.add_metric([task, queue, outcome], getattr(figures, outcome))
        buckets = list(zip(_BOUNDS, accumulate(figures.run), strict=True))
        durations.add_metric([task, queue], buckets, figures.run_ms / 1000)
    yield jobs
    yield durations


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


_QUEUE_GAUGES: dict[str, tuple[str, Callable[[QueueState, int], float]]] = {
    "depth": ("Ready jobs, counted up to 10,000.", lambda queue, now: queue.ready),
    "oldest_seconds": (
        "Since when the ready job waits that has waited longest; 0 where none waits.",
        lambda queue, now: max(0, now - queue.oldest_at) / 1000 if queue.oldest_at is not None else 0,
    ),
    "running": ("Running jobs.", lambda queue, now: queue.running),
    "paused": ("1 while the queue is paused.", lambda queue, now: int(queue.paused)),
}


def _queues(queues: Sequence[QueueState], now: int) -> Iterator[Metric]:
    for name, (words, value) in _QUEUE_GAUGES.items():
        gauge = GaugeMetricFamily(f"taskworker_queue_{name}", words, labels=["queue"])
        for queue in queues:
            gauge.add_metric([queue.name], value(queue, now))
        yield gauge
