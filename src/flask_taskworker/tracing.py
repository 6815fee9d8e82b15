"""Traces for OpenTelemetry: a span where a job is enqueued, and one around each of its tries. Needs the extra ``otel``.

The context of the first travels with the job, as W3C Trace Context. Of a job that runs at once its span is the parent
of the try's; later tries, and jobs that were delayed, have traces of their own, which link to it: a trace that stays
open for days is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from .client.origin import carriers
from .core.rows import Claim, Outcome, OutcomeKind, read_origin
from .core.tasks import HasRegistry, registry_of

try:
    from opentelemetry.context import Context
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

_W3C = TraceContextTextMapPropagator()
_CARRIED = ("traceparent", "tracestate")


def instrument(task_worker: HasRegistry, tracer_provider: TracerProvider | None = None) -> None:
    """Make spans for the jobs of *task_worker*, in this process; call it wherever jobs are enqueued or run.

    *tracer_provider* defaults to the global one. Before or after ``init_app``; repeated, the last call counts. Raises
    ArgumentsError for anything but a TaskWorker.
    """
    registry_of(task_worker).tracing = _Spans(get_tracer(__name__, tracer_provider=tracer_provider))
    if _W3C.inject not in carriers:
        carriers.append(_W3C.inject)


def uninstrument(task_worker: HasRegistry) -> None:
    """Make no more spans for the jobs of *task_worker*."""
    registry_of(task_worker).tracing = None


class _Spans:
    """A TaskWorker's jobs, as spans. Safe from any thread."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    @contextmanager
    def sending(self, task: str, queue: str, number: int) -> Iterator[Callable[[Sequence[int]], None]]:
        """Around the enqueueing of *number* jobs; to be told their ids."""
        attributes: dict[str, Any] = {**_attributes("send", queue), TASK: task}
        if number > 1:
            attributes[BATCH_COUNT] = number
        with self._tracer.start_as_current_span(f"send {queue}", kind=SpanKind.PRODUCER, attributes=attributes) as span:
            yield partial(_sent, span)

    @contextmanager
    def processing(self, claim: Claim) -> Iterator[Callable[[Outcome], None]]:
        """Around one try; to be told how it ended."""
        origin = read_origin(claim.origin)
        carried = {name: origin[name] for name in _CARRIED if isinstance(origin.get(name), str)}
        context = _W3C.extract(carried, context=Context())
        sender = get_current_span(context).get_span_context()
        links, runs_at_once = [], claim.claim == 1 and not claim.run_at
        if sender.is_valid and not runs_at_once:
            context, links = Context(), [Link(sender)]
        attributes: dict[str, Any] = {
            **_attributes("process", claim.queue),
            TASK: claim.task,
            MESSAGE_ID: str(claim.id),
            ATTEMPT: claim.attempt,
        }
        if claim.schedule is not None:
            attributes[SCHEDULE] = claim.schedule
        with self._tracer.start_as_current_span(
            f"process {claim.queue}", context=context, kind=SpanKind.CONSUMER, attributes=attributes, links=links
        ) as span:
            yield partial(_ended, span)


def _attributes(operation: str, queue: str) -> dict[str, str]:
    return {SYSTEM: SYSTEM_NAME, DESTINATION: queue, OPERATION_TYPE: operation, OPERATION_NAME: operation}


def _sent(span: Span, ids: Sequence[int]) -> None:
    # 0 stands for a job that is stored after a commit to come.
    if len(ids) == 1 and ids[0]:
        span.set_attribute(MESSAGE_ID, str(ids[0]))


def _ended(span: Span, outcome: Outcome) -> None:
    span.set_attribute(OUTCOME, outcome.ending.value)
    failure = outcome.failure
    if failure is None or outcome.ending not in (OutcomeKind.FAILED, OutcomeKind.RETRYING):
        return
    kind = failure.type or failure.kind
    span.set_attribute(ERROR_TYPE, kind)
    # The stored texts, whose size is bounded; record_exception would format all of it.
    texts = {"type": kind, "message": failure.message, "stacktrace": failure.traceback}
    span.add_event("exception", {f"exception.{name}": text for name, text in texts.items()})
    span.set_status(Status(StatusCode.ERROR, f"{kind}: {failure.message[:200]}"))
