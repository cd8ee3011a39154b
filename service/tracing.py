"""OpenTelemetry traces: a span a request, in it one for decoding audio and one a row, in that one a stage.

Off unless `otel_endpoint` is set; the extra `otel` has what it takes. Spans are made when a request is over,
from the timings that the service takes anyway, so that tracing does not slow what is being computed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from service.inference.request import RowResult

STAGES = ("queue", "encoder", "prefill", "decode")


@dataclass(frozen=True)
class Row:
    """What a row came to: the name of its task, and the engine's answer."""

    task: str
    result: RowResult


@dataclass
class Timeline:
    """When a request passed each point, in seconds of `time.perf_counter`; a route leaves it in the state.

    decode_s: its audio began to be decoded. submitted_s: its rows went to the engine, if it came so far.
    """

    decode_s: float
    submitted_s: float | None = None
    rows: Sequence[Row] = ()


def tracer_provider(settings: Settings) -> TracerProvider | None:
    """What sends spans to `settings.otel_endpoint`; None without one.

    Raises:
        SettingsError: the extra `otel` is not installed.
    """
    if settings.otel_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            "otel_endpoint (AHAMASK_OTEL_ENDPOINT): traces need pip install 'ahamask[otel]'"
        ) from error
    resource = Resource.create({SERVICE_NAME: "ahamask"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otel_endpoint)))
    return provider


class TracingMiddleware:
    """Pure ASGI, inside RequestMiddleware: the span of a request for a task, and those within it.

    A `traceparent` header makes the span a part of the client's trace. Log lines of the request carry
    its `trace_id`.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("ahamask")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        status = 0

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        parent = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        span = self._tracer.start_span("POST", parent, SpanKind.SERVER)
        trace_id = f"{span.get_span_context().trace_id:032x}"
        structlog.contextvars.bind_contextvars(trace_id=trace_id)
        try:
            await self._app(scope, receive, send_and_look)
        except BaseException as error:
            span.record_exception(error)
            raise
        finally:
            self._finish(span, scope, scope["state"].get("stream_status") or status)

    def _finish(self, span: Span, scope: Scope, status: int) -> None:
        from opentelemetry.trace import Status, StatusCode

        route = getattr(scope.get("route"), "path", None)
        if route is not None:
            span.update_name(f"POST {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.request.method", "POST")
        span.set_attribute("url.path", scope["path"])
        span.set_attribute("ahamask.request_id", scope["state"]["request_id"])
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500 or not status:
            span.set_status(Status(StatusCode.ERROR))
        timeline: Timeline | None = scope["state"].get("timeline")
        if timeline is not None:
            self._stages(span, timeline)
        span.end()

    def _stages(self, span: Span, timeline: Timeline) -> None:
        from opentelemetry.trace import set_span_in_context

        # The clock of the timings counts from an arbitrary point.
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        context = set_span_in_context(span)
        end_s = timeline.submitted_s if timeline.submitted_s is not None else time.perf_counter()
        decoding = self._tracer.start_span("audio", context, start_time=epoch_ns + _ns(timeline.decode_s))
        decoding.end(epoch_ns + _ns(end_s))
        for row in timeline.rows:
            arrived_s = row.result.arrived_s
            start_ns = epoch_ns + _ns(end_s if arrived_s is None else arrived_s)
            whole = self._tracer.start_span("row", context, start_time=start_ns)
            whole.set_attribute("ahamask.task", row.task)
            whole.set_attribute("ahamask.finish_reason", row.result.finish_reason)
            whole.set_attribute("ahamask.output_tokens", len(row.result.token_ids))
            within = set_span_in_context(whole)
            for stage in STAGES:
                part = self._tracer.start_span(stage, within, start_time=start_ns)
                start_ns += _ns(row.result.timings_ms[stage] / 1e3)
                part.end(start_ns)
            whole.end(start_ns)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
