"""Traces of a service, as a collector receives them."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from lalm.family import ModelFamily
from service import tracing
from service.app import create_app
from service.inference.exceptions import OutOfMemoryError
from service.logging import configure_logging
from service.settings import Settings, SettingsError
from tests.ready_client import ready_client
from tests.toy import toy_waveform
from tests.toy_masks import write_toy_masks

CLIENT_TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    """What came to an OTLP endpoint."""

    endpoint: str
    spans: list[Span] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def children(self, parent: Span) -> list[Span]:
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                received.services.update(
                    pair.value.string_value
                    for pair in resource.resource.attributes
                    if pair.key == "service.name"
                )
                for scope in resource.scope_spans:
                    received.spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield received
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def settings(collector: Collector, toy_checkpoint: Path, toy_family: ModelFamily, tmp_path: Path) -> Settings:
    write_toy_masks(tmp_path, toy_family.identity)
    return Settings(
        model=str(toy_checkpoint), masks_dir=tmp_path, max_slots=2, otel_endpoint=collector.endpoint
    )


@contextmanager
def client_of(settings: Settings) -> Iterator[TestClient]:
    """A client of a service that has sent all its spans once it is left."""
    with ready_client(create_app(settings)) as client:
        yield client


def recording() -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, toy_waveform(0.8), 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def test_the_stages_of_a_request_lie_within_its_span(settings: Settings, collector: Collector) -> None:
    headers = {"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01", "X-Request-Id": "mine"}
    with client_of(settings) as client:
        answers = client.post("/tasks?tasks=asr,gr", content=recording(), headers=headers).json()["results"]
    assert collector.services == {"ahamask"}
    (request,) = collector.named("POST /tasks")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (CLIENT_TRACE, CLIENT_SPAN)
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/tasks",
        "http.response.status_code": 200,
        "url.path": "/tasks",
        "ahamask.request_id": "mine",
    }
    audio, *rows = collector.children(request)
    assert audio.name == "audio"
    assert {attributes(row)["ahamask.task"] for row in rows} == {"asr", "gr"}
    assert len(collector.spans) == 1 + 1 + 2 * (1 + 4)
    for row in rows:
        answer = answers[attributes(row)["ahamask.task"]]
        assert attributes(row)["ahamask.output_tokens"] == answer["usage"]["output_tokens"]
        stages = collector.children(row)
        assert [stage.name for stage in stages] == list(tracing.STAGES)
        for stage in stages:
            took_ms = (stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e6
            assert took_ms == pytest.approx(answer["timings_ms"][stage.name], abs=0.01)
        ends = [row.start_time_unix_nano, *(stage.end_time_unix_nano for stage in stages)]
        assert [stage.start_time_unix_nano for stage in stages] == ends[:-1]
        assert ends[-1] == row.end_time_unix_nano


def test_a_refused_request_is_a_span_without_rows(settings: Settings, collector: Collector) -> None:
    with client_of(settings) as client:
        assert client.post("/tasks/nothing", content=recording()).status_code == 404
        assert client.post("/tasks/asr", content=b"no audio").status_code == 415
        assert client.get("/tasks").status_code == 200
    statuses = {
        attributes(span).get("http.response.status_code") for span in collector.spans if span.kind == 2
    }
    assert statuses == {404, 415}
    assert collector.named("row") == []
    assert {span.status.code for span in collector.named("POST /tasks/{task}")} == {
        Status.StatusCode.STATUS_CODE_UNSET
    }


def test_a_failed_request_is_an_error(
    settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: Any, **kwargs: Any) -> None:
        raise OutOfMemoryError

    monkeypatch.setattr("service.answers.answer_prepared", fail)
    with client_of(settings) as client:
        assert client.post("/tasks/asr", content=recording()).status_code == 503
    (request,) = collector.named("POST /tasks/{task}")
    assert request.status.code == Status.StatusCode.STATUS_CODE_ERROR
    assert [span.name for span in collector.children(request)] == ["audio"]


@pytest.mark.usefixtures("_logging_restored")
def test_the_log_line_of_a_request_is_json_and_names_its_trace(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", as_json=True)
    headers = {"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01", "X-Request-Id": "mine"}
    with client_of(settings) as client:
        assert client.post("/tasks/asr", content=recording(), headers=headers).status_code == 200
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= set(line) for line in lines)
    (line,) = (line for line in lines if line["event"] == "request")
    assert line.pop("duration_ms") > 0
    assert {name: line[name] for name in line if name not in ("timestamp", "logger")} == {
        "event": "request",
        "level": "info",
        "request_id": "mine",
        "trace_id": CLIENT_TRACE,
        "task": "asr",
        "method": "POST",
        "path": "/tasks/asr",
        "status": 200,
    }


def test_without_an_endpoint_there_are_no_traces() -> None:
    assert tracing.tracer_provider(Settings()) is None


def test_the_start_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"AHAMASK_OTEL_ENDPOINT.*ahamask\[otel\]"):
        tracing.tracer_provider(Settings(otel_endpoint="http://127.0.0.1:9/v1/traces"))
