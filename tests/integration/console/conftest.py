"""A real console on loopback, a real client, and short ways to write OTLP requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from clew.console.server import ConsoleServer

PROTOBUF = {"Content-Type": "application/x-protobuf"}
T0 = 1_700_000_000_000_000_000  # 2023-11-14T22:13:20Z
SECOND = 1_000_000_000


class Otlp:
    """Builds OTLP messages with few words; trace and span ids are given as small numbers."""

    protobuf = PROTOBUF
    t0 = T0

    @staticmethod
    def trace_id(number: int) -> str:
        return f"{number:032x}"

    @staticmethod
    def span_id(number: int) -> str:
        return f"{number:016x}"

    def span(self, trace: int, span: int, name: str = "work", **fields: Any) -> Span:
        start = fields.pop("start_s", 0)
        duration = fields.pop("duration_s", 0.5)
        parent = fields.pop("parent", None)
        links = [
            Span.Link(trace_id=bytes.fromhex(self.trace_id(t)), span_id=bytes.fromhex(self.span_id(s)))
            for t, s in fields.pop("links", ())
        ]
        return Span(
            trace_id=bytes.fromhex(self.trace_id(trace)),
            span_id=bytes.fromhex(self.span_id(span)),
            parent_span_id=b"" if parent is None else bytes.fromhex(self.span_id(parent)),
            name=name,
            start_time_unix_nano=T0 + int(start * SECOND),
            end_time_unix_nano=T0 + int((start + duration) * SECOND),
            links=links,
            attributes=self.attributes(fields.pop("attributes", {})),
            **fields,
        )

    def spans(self, *spans: Span, service: str = "orders") -> ExportTraceServiceRequest:
        scope_spans = ScopeSpans(scope=InstrumentationScope(name="test", version="1"), spans=spans)
        return ExportTraceServiceRequest(
            resource_spans=[ResourceSpans(resource=self.resource(service), scope_spans=[scope_spans])]
        )

    def log(self, body: str, **fields: Any) -> LogRecord:
        trace = fields.pop("trace", None)
        return LogRecord(
            time_unix_nano=T0 + int(fields.pop("time_s", 0) * SECOND),
            body=AnyValue(string_value=body),
            severity_number=fields.pop("severity", 9),
            trace_id=b"" if trace is None else bytes.fromhex(self.trace_id(trace)),
            attributes=self.attributes(fields.pop("attributes", {})),
            **fields,
        )

    def logs(self, *records: LogRecord, service: str = "orders") -> ExportLogsServiceRequest:
        scope_logs = ScopeLogs(scope=InstrumentationScope(name="test"), log_records=records)
        return ExportLogsServiceRequest(
            resource_logs=[ResourceLogs(resource=self.resource(service), scope_logs=[scope_logs])]
        )

    def resource(self, service: str) -> Resource:
        return Resource(attributes=self.attributes({"service.name": service}))

    @staticmethod
    def attributes(values: dict[str, str]) -> list[KeyValue]:
        return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in values.items()]


@pytest.fixture
def otlp() -> Otlp:
    return Otlp()


@pytest.fixture
def console(tmp_path) -> Iterator[ConsoleServer]:
    with ConsoleServer(data_dir=tmp_path / "console", port=0) as server:
        yield server


@pytest.fixture
def client(console) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=console.url, timeout=20) as client:
        yield client


@pytest.fixture
def send(client) -> Callable[[Any], httpx.Response]:
    """Send a protobuf request to where its kind belongs, and insist on an acknowledgement."""

    def send(request: Any) -> httpx.Response:
        signal = {"ExportTraceServiceRequest": "traces", "ExportLogsServiceRequest": "logs"}.get(
            type(request).__name__, "metrics"
        )
        answer: httpx.Response = client.post(f"/v1/{signal}", content=request.SerializeToString(), headers=PROTOBUF)
        assert answer.status_code == 200, answer.text
        return answer

    return send


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Poll a condition until it holds, or fail when the deadline has passed."""

    def wait_until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not so within {timeout_s} s"
            time.sleep(0.01)

    return wait_until
