"""Traces and metrics for OpenTelemetry: a span where a job is enqueued, and one around each of its tries.

Needs the extra ``otel``.

The context of the first travels with the job, as W3C Trace Context. Of a job that runs at once its span is the parent
of the try's; later tries, and jobs that were delayed, have traces of their own: a trace that stays open for days is
none. Each try links to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from .client.origin import carriers
from .core.rows import Claim, Outcome, OutcomeKind, read_origin
from .core.tasks import HasRegistry, registry_of

try:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider, get_meter
    from opentelemetry.trace import (
        Link,
        Span,
        SpanKind,
        Status,
        StatusCode,
        TracerProvider,
        get_current_span,
        get_tracer,
    )
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _error:
    raise ImportError(
        "flask_taskworker.tracing needs opentelemetry-api: pip install 'Flask-TaskWorker[otel]'."
    ) from _error

# The semantic conventions for messaging are in development: these names may change, and stand nowhere else.
SYSTEM = "messaging.system"
DESTINATION = "messaging.destination.name"
MESSAGE_ID = "messaging.message.id"
BATCH_COUNT = "messaging.batch.message_count"
OPERATION_TYPE = "messaging.operation.type"
OPERATION_NAME = "messaging.operation.name"
ERROR_TYPE = "error.type"
TASK = "taskworker.task"
SCHEDULE = "taskworker.schedule"
ATTEMPT = "taskworker.attempt"
OUTCOME = "taskworker.outcome"
SYSTEM_NAME = "flask_taskworker"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The buckets that the conventions give; tries may run for longer, so theirs go on."""

_W3C = TraceContextTextMapPropagator()
_CARRIED = ("traceparent", "tracestate")


def instrument(
    task_worker: HasRegistry, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Make spans and metrics for the jobs of *task_worker*, in this process; call it wherever jobs are enqueued or run.

    *tracer_provider* and *meter_provider* default to the global ones. Before or after ``init_app``; repeated, the last
    call counts. Raises ArgumentsError for anything but a TaskWorker.
    """
    registry_of(task_worker).tracing = _Spans(
        get_tracer(__name__, tracer_provider=tracer_provider), get_meter(__name__, meter_provider=meter_provider)
    )
    if _W3C.inject not in carriers:
        carriers.append(_W3C.inject)


def uninstrument(task_worker: HasRegistry) -> None:
    """Make no more spans for the jobs of *task_worker*."""
    registry_of(task_worker).tracing = None


class _Spans:
    """A TaskWorker's jobs, as spans and metrics. Safe from any thread."""

    def __init__(self, tracer: Any, meter: Meter) -> None:
        self._tracer = tracer
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Jobs that were to be enqueued."
        )
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Tries that began.")
        self._send_duration, self._process_duration = (
            meter.create_histogram(name, "s", words, explicit_bucket_boundaries_advisory=bounds)
            for name, words, bounds in (
                ("messaging.client.operation.duration", "How long enqueueing took.", SECONDS),
                ("messaging.process.duration", "How long tries ran.", (*SECONDS, 30, 60, 120, 300)),
            )
        )

    @contextmanager
    def sending(self, task: str, queue: str, number: int) -> Iterator[Callable[[Sequence[int]], None]]:
        """Around the enqueueing of *number* jobs; to be told their ids."""
        attributes: dict[str, Any] = {**_attributes("send", queue), TASK: task}
        if number > 1:
            attributes[BATCH_COUNT] = number
        figures = {SYSTEM: SYSTEM_NAME, DESTINATION: queue, OPERATION_NAME: "send"}
        began = time.perf_counter()
        try:
            with self._tracer.start_as_current_span(
                f"send {queue}", kind=SpanKind.PRODUCER, attributes=attributes
            ) as span:
                yield partial(_sent, span)
        except BaseException as error:
            figures[ERROR_TYPE] = type(error).__qualname__
            raise
        finally:
            self._sent.add(number, figures)
            self._send_duration.record(time.perf_counter() - began, {**figures, OPERATION_TYPE: "send"})

    @contextmanager
    def processing(self, claim: Claim) -> Iterator[Callable[[Outcome], None]]:
        """Around one try; to be told how it ended."""
        origin = read_origin(claim.origin)
        carried = {name: origin[name] for name in _CARRIED if isinstance(origin.get(name), str)}
        context = _W3C.extract(carried, context=Context())
        sender = get_current_span(context).get_span_context()
        # The conventions want the link from each try, also where the sender's span is the parent, too.
        links = [Link(sender)] if sender.is_valid else []
        if claim.claim > 1 or claim.run_at:
            context = Context()
        attributes: dict[str, Any] = {
            **_attributes("process", claim.queue),
            TASK: claim.task,
            MESSAGE_ID: str(claim.id),
            ATTEMPT: claim.attempt,
        }
        if claim.schedule is not None:
            attributes[SCHEDULE] = claim.schedule
        figures = {SYSTEM: SYSTEM_NAME, DESTINATION: claim.queue, OPERATION_NAME: "process", TASK: claim.task}
        self._consumed.add(1, figures)
        began = time.perf_counter()

        def ended(outcome: Outcome) -> None:
            if (error := _ended(span, outcome)) is not None:
                figures[ERROR_TYPE] = error
            self._process_duration.record(time.perf_counter() - began, {**figures, OUTCOME: outcome.ending.value})

        with self._tracer.start_as_current_span(
            f"process {claim.queue}", context=context, kind=SpanKind.CONSUMER, attributes=attributes, links=links
        ) as span:
            yield ended


def _attributes(operation: str, queue: str) -> dict[str, str]:
    return {SYSTEM: SYSTEM_NAME, DESTINATION: queue, OPERATION_TYPE: operation, OPERATION_NAME: operation}


def _sent(span: Span, ids: Sequence[int]) -> None:
    # 0 stands for a job that is stored after a commit to come.
    if len(ids) == 1 and ids[0]:
        span.set_attribute(MESSAGE_ID, str(ids[0]))


def _ended(span: Span, outcome: Outcome) -> str | None:
    """Write the end into the span. Returns the type of the error, after one."""
    span.set_attribute(OUTCOME, outcome.ending.value)
    failure = outcome.failure
    if failure is None or outcome.ending not in (OutcomeKind.FAILED, OutcomeKind.RETRYING):
        return None
    kind = failure.type or failure.kind
    span.set_attribute(ERROR_TYPE, kind)
    # The stored texts, whose size is bounded; record_exception would format all of it.
    texts = {"type": kind, "message": failure.message, "stacktrace": failure.traceback}
    span.add_event("exception", {f"exception.{name}": text for name, text in texts.items()})
    span.set_status(Status(StatusCode.ERROR, f"{kind}: {failure.message[:200]}"))
    return kind
