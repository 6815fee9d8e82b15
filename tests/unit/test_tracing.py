"""Traces: from the request through the enqueueing to each try of the job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from flask import Flask
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, Tracer

from flask_taskworker import BackgroundTaskWorker, Every, Job, Mail, Message, Retry, tracing
from flask_taskworker.client import origin
from flask_taskworker.core.rows import read_origin
from flask_taskworker.errors import ArgumentsError
from flask_taskworker.ops.browse import Browser
from flask_taskworker.store.sql import Store
from tests.support.apps import KINDS
from tests.support.smtp_server import SMTPServer
from tests.support.stored import Rows, store_jobs
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")


class Recorded:
    """The spans that have ended."""

    def __init__(self, task_worker: BackgroundTaskWorker) -> None:
        self.provider = TracerProvider()
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        tracing.instrument(task_worker, self.provider)

    @property
    def tracer(self) -> Tracer:
        return self.provider.get_tracer("tests")

    def named(self, name: str, number: int = 1) -> list[ReadableSpan]:
        """The spans of that name, once there are that many, first begun first."""
        found = wait_for(lambda: (s := self._named(name)) and len(s) >= number and s, f"{number} spans {name!r}")
        assert len(found) == number
        return sorted(found, key=lambda span: span.start_time or 0)

    def _named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def spans(idle_worker: BackgroundTaskWorker) -> Iterator[Recorded]:
    before = list(origin.carriers)
    yield Recorded(idle_worker)
    tracing.uninstrument(idle_worker)
    origin.carriers[:] = before


def context(span: ReadableSpan) -> SpanContext:
    found = span.get_span_context()
    assert found is not None
    return found


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    same_trace = context(span).trace_id == context(parent).trace_id
    return same_trace and span.parent is not None and span.parent.span_id == context(parent).span_id


def is_linked(span: ReadableSpan, other: ReadableSpan) -> bool:
    """With a trace of its own, and a link."""
    links = [(link.context.trace_id, link.context.span_id) for link in span.links]
    return span.parent is None and links == [(context(other).trace_id, context(other).span_id)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_goes_from_the_request_into_the_task(
    app: Flask, idle_worker: BackgroundTaskWorker, spans: Recorded, kind: str
) -> None:
    def work(x: int) -> None:
        with spans.tracer.start_as_current_span("inside"):
            pass

    async def awork(x: int) -> None:
        work(x)

    task = idle_worker.task(name="work", queue="web")(work if kind == "sync" else awork)
    found: list[Job[Any]] = []

    @app.post("/reports")
    def reports() -> str:
        with spans.tracer.start_as_current_span("request"):
            found.append(task.enqueue(1))
        return ""

    app.test_client().post("/reports")
    idle_worker.start()
    (request,), (send,), (process,), (inside,) = map(spans.named, ("request", "send web", "process web", "inside"))
    assert is_child(send, request)
    assert is_child(process, send)
    assert is_child(inside, process)
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert [link.context.span_id for link in process.links] == [context(send).span_id]
    common = {
        "messaging.system": "flask_taskworker",
        "messaging.destination.name": "web",
        "messaging.message.id": str(found[0].id),
        "taskworker.task": "work",
    }
    assert send.attributes == common | {"messaging.operation.type": "send", "messaging.operation.name": "send"}
    assert process.attributes == common | {
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "taskworker.attempt": 1,
        "taskworker.outcome": "succeeded",
    }


def test_the_context_lies_in_the_row_as_w3c_has_it(
    idle_worker: BackgroundTaskWorker, spans: Recorded, store: Store
) -> None:
    task = idle_worker.task(name="work")(lambda: None)
    job = task.enqueue()
    (send,) = spans.named("send default")
    carried = read_origin(Browser(store).job(job.id).origin)
    sent = context(send)
    assert carried == {"traceparent": f"00-{sent.trace_id:032x}-{sent.span_id:016x}-{sent.trace_flags:02x}"}


@pytest.mark.sqlite_only
def test_a_delayed_job_has_a_trace_of_its_own_with_a_link(idle_worker: BackgroundTaskWorker, spans: Recorded) -> None:
    task = idle_worker.task(name="work")(lambda: None)
    task.using(delay=timedelta(milliseconds=20)).enqueue()
    idle_worker.start()
    (process,) = spans.named("process default")
    assert is_linked(process, spans.named("send default")[0])


@pytest.mark.sqlite_only
def test_each_try_has_a_span_and_later_ones_a_link(idle_worker: BackgroundTaskWorker, spans: Recorded) -> None:
    @idle_worker.task(name="work", retry=Retry(max_attempts=3, base=0.001))
    async def work() -> None:
        raise KeyError("total")

    work.enqueue()
    idle_worker.start()
    first, second, third = spans.named("process default", 3)
    (send,) = spans.named("send default")
    assert is_child(first, send)
    assert is_linked(second, send)
    assert is_linked(third, send)
    tries = [(s.attributes or {})["taskworker.attempt"] for s in (first, second, third)]
    outcomes = [(s.attributes or {})["taskworker.outcome"] for s in (first, second, third)]
    assert (tries, outcomes) == ([1, 2, 3], ["retrying", "retrying", "failed"])
    assert third.status.status_code is StatusCode.ERROR
    assert third.status.description == "KeyError: 'total'"
    assert (third.attributes or {})["error.type"] == "KeyError"
    (event,) = third.events
    assert event.name == "exception"
    assert (event.attributes or {})["exception.message"] == "'total'"
    assert "in work" in str((event.attributes or {})["exception.stacktrace"])


@pytest.mark.sqlite_only
def test_a_job_that_a_job_enqueues_is_in_the_same_trace(idle_worker: BackgroundTaskWorker, spans: Recorded) -> None:
    child = idle_worker.task(name="child", queue="children")(lambda: None)

    @idle_worker.task(name="parent", queue="parents")
    async def parent() -> None:
        await child.aenqueue()

    parent.enqueue()
    idle_worker.start()
    (process,), (send,), (last,) = map(spans.named, ("process parents", "send children", "process children"))
    assert is_child(send, process)
    assert is_child(last, send)


def test_many_jobs_are_sent_in_one_span(idle_worker: BackgroundTaskWorker, spans: Recorded) -> None:
    task = idle_worker.task(name="work")(lambda: None)
    task.enqueue_many([()] * 3)
    idle_worker.start()
    (send,) = spans.named("send default")
    assert (send.attributes or {})["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in (send.attributes or {})
    assert all(is_child(process, send) for process in spans.named("process default", 3))


@pytest.mark.sqlite_only
def test_a_queued_mail_has_its_spans(app: Flask, idle_worker: BackgroundTaskWorker, spans: Recorded) -> None:
    app.config["MAIL_DEFAULT_SENDER"] = "from@example.com"
    mail = Mail(app)
    with app.app_context():
        job = mail.send_later(Message("Hi", recipients=["a@x.org"], body="Hi"))
    (send,) = spans.named("send mail")
    assert (send.attributes or {})["messaging.message.id"] == str(job.id)


@pytest.mark.sqlite_only
def test_one_trace_goes_from_a_request_over_jobs_to_a_mail(
    app: Flask, idle_worker: BackgroundTaskWorker, spans: Recorded
) -> None:
    app.config["MAIL_DEFAULT_SENDER"] = "from@example.com"
    mail = Mail()

    @idle_worker.task(name="invoice", queue="slow")
    def invoice() -> None:
        mail.send_later(Message("Hi", recipients=["a@x.org"], body="Hi"))

    order = idle_worker.task(name="order", queue="web")(lambda: invoice.enqueue() and None)

    @app.post("/orders")
    def orders() -> str:
        with spans.tracer.start_as_current_span("request"):
            order.enqueue()
        return ""

    names = ("request", "send web", "process web", "send slow", "process slow", "send mail", "process mail")
    with SMTPServer() as server:
        app.config["MAIL_PORT"] = server.port
        mail.init_app(app)
        app.test_client().post("/orders")
        idle_worker.start()
        trace = [spans.named(name)[0] for name in names]
    assert all(is_child(span, parent) for parent, span in pairwise(trace))
    for send, process in ((trace[1], trace[2]), (trace[3], trace[4]), (trace[5], trace[6])):
        assert [link.context.span_id for link in process.links] == [context(send).span_id]


def test_metrics_have_the_names_of_the_conventions(idle_worker: BackgroundTaskWorker, spans: Recorded) -> None:
    reader = InMemoryMetricReader()
    tracing.instrument(idle_worker, spans.provider, MeterProvider([reader]))
    good = idle_worker.task(name="good", queue="web")(lambda: None)
    bad = idle_worker.task(name="bad", queue="web")(lambda: 1 / 0)
    jobs = [*good.enqueue_many([()] * 2), bad.enqueue()]
    idle_worker.start()
    wait_for(lambda: all(job.refresh().state.finished for job in jobs))
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: metric
        for part in data.resource_metrics
        for scope in part.scope_metrics
        for metric in scope.metrics
    }
    units = {name: metric.unit for name, metric in found.items()}
    assert units == {
        "messaging.client.sent.messages": "{message}",
        "messaging.client.consumed.messages": "{message}",
        "messaging.client.operation.duration": "s",
        "messaging.process.duration": "s",
    }
    numbers = {
        name: sum(getattr(point, "value", None) or point.count for point in metric.data.data_points)
        for name, metric in found.items()
    }
    assert numbers == {
        "messaging.client.sent.messages": 3,
        "messaging.client.consumed.messages": 3,
        "messaging.client.operation.duration": 2,
        "messaging.process.duration": 3,
    }
    errors = [
        dict(point.attributes or {}).get("error.type") for point in found["messaging.process.duration"].data.data_points
    ]
    assert sorted(map(str, errors)) == ["None", "ZeroDivisionError"]


@pytest.mark.parametrize("kind", KINDS)
def test_log_records_of_a_job_name_its_trace(
    idle_worker: BackgroundTaskWorker, spans: Recorded, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        logging.getLogger("shop").warning("inside")
        raise ValueError("no")

    async def awork() -> None:
        work()

    idle_worker.task(name="work")(work if kind == "sync" else awork).enqueue()
    idle_worker.start()
    (process,) = spans.named("process default")
    ended = wait_for(lambda: [record for record in caplog.records if hasattr(record, "taskworker_outcome")])[0]
    inside = next(record for record in caplog.records if record.message == "inside")
    ids = (f"{context(process).trace_id:032x}", f"{context(process).span_id:016x}")
    for record in (inside, ended):
        assert (record.__dict__["taskworker_trace"], record.__dict__["taskworker_span"]) == ids
        assert record.__dict__["taskworker_queue"] == "default"
    assert ended.__dict__["taskworker_outcome"] == "failed"


@pytest.mark.sqlite_only
def test_a_schedule_begins_a_trace(idle_worker: BackgroundTaskWorker, spans: Recorded) -> None:
    @idle_worker.task(name="work", schedule=Every(seconds=1))
    async def work() -> None: ...

    idle_worker.start()
    wait_for(lambda: spans._named("process default"))
    process = spans._named("process default")[0]
    assert process.parent is None
    assert process.links == ()
    assert (process.attributes or {})["taskworker.schedule"] == "work"


@pytest.mark.parametrize("carried", ['{"traceparent": "rubbish"}', '{"traceparent": 7, "tracestate": []}', "damaged"])
@pytest.mark.sqlite_only
def test_a_damaged_context_begins_a_trace(
    idle_worker: BackgroundTaskWorker, spans: Recorded, store: Store, rows: Rows, carried: str
) -> None:
    idle_worker.task(name="app.add")(lambda: None)
    store.driver.prepare()
    store_jobs(rows, {"origin": carried})
    idle_worker.start()
    (process,) = spans.named("process default")
    assert process.parent is None
    assert (process.attributes or {})["taskworker.outcome"] == "succeeded"


@pytest.mark.sqlite_only
def test_a_job_that_is_not_accepted_is_an_error_of_its_span(
    idle_worker: BackgroundTaskWorker, spans: Recorded, rows: Rows, store: Store
) -> None:
    store.driver.prepare()
    rows("ALTER TABLE taskworker_job RENAME TO away")
    with pytest.raises(Exception, match="not accepted"):
        idle_worker.task(name="work")(lambda: None).enqueue()
    (send,) = spans.named("send default")
    assert send.status.status_code is StatusCode.ERROR


@pytest.mark.sqlite_only
def test_without_it_nothing_is_carried(idle_worker: BackgroundTaskWorker, spans: Recorded, store: Store) -> None:
    tracing.uninstrument(idle_worker)
    task = idle_worker.task(name="work")(lambda: None)
    job = task.enqueue()
    idle_worker.start()
    job.result(timeout=20)
    assert Browser(store).job(job.id).origin is None
    assert spans._named("send default") == spans._named("process default") == []


@pytest.mark.sqlite_only
def test_apps_that_come_later_are_followed_too(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    task_worker = make_worker(start=False)
    spans = Recorded(task_worker)
    app = make_app()
    task_worker.init_app(app)
    task = task_worker.task(name="work")(lambda: None)
    with app.app_context():
        task.enqueue()
    spans.named("send default")
    tracing.uninstrument(task_worker)
    origin.carriers.remove(tracing._W3C.inject)


@pytest.mark.sqlite_only
def test_what_is_not_a_task_worker_is_refused(app: Flask) -> None:
    for function in (tracing.instrument, tracing.uninstrument):
        with pytest.raises(ArgumentsError, match="is not a TaskWorker"):
            function(app)  # type: ignore[arg-type]
