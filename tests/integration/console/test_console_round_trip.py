"""What the SDK, its stock encoder and OTLP's JSON form send comes back out of the store as it was."""

from __future__ import annotations

import gzip
import json
import math
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Metric,
    ResourceMetrics,
    ScopeMetrics,
    Summary,
    SummaryDataPoint,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from clew.console import model, queries
from clew.console.server import ConsoleServer

RESOURCE = Resource({"service.name": "bestellungen-ü", "service.instance.id": "7"})
ODD_VALUES: dict[str, Any] = {
    "largest": 2**63 - 1,
    "smallest": -(2**63),
    "beyond.javascript": 2**53 + 1,
    "float": 1.0,
    "yes": True,
    "text": 'Zürich 🧶 "quoted" \\ \x00 end',
    "bytes": b"\x00\xff",
    "list": ("a", "b"),
}


def test_spans_of_the_sdk(send: Any, console: ConsoleServer) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("shop", "1.2", schema_url="https://example.test/schema")
    with tracer.start_as_current_span("earlier") as earlier:
        pass
    outer: Any
    inner: Any
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as outer:
        link = Link(earlier.get_span_context(), {"why": "retry"})
        inner = tracer.start_span("inner", links=[link], attributes=ODD_VALUES)
        inner.add_event("halfway", {"percent": 50})
        inner.set_status(Status(StatusCode.ERROR, "no stock"))
        inner.end()
    send(encode_spans(memory.get_finished_spans()))

    found = queries.trace(console.store, f"{outer.get_span_context().trace_id:032x}")
    assert found is not None
    assert [(item.span.name, item.depth) for item in found.spans] == [("outer", 0), ("inner", 1)]
    assert found.summary.root_name == "outer"
    assert found.summary.services == ("bestellungen-ü",)
    assert (found.summary.span_count, found.summary.error_count) == (2, 1)
    outer_span, inner_span = (item.span for item in found.spans)
    assert model.SPAN_KINDS[outer_span.kind] == "server"
    assert outer_span.start_time_unix_nano == outer.start_time
    assert outer_span.end_time_unix_nano == outer.end_time
    assert inner_span.parent_span_id == outer_span.span_id
    assert inner_span.attributes == ODD_VALUES
    assert type(inner_span.attributes["float"]) is float
    assert inner_span.attributes["yes"] is True
    assert inner_span.is_error
    assert inner_span.status_message == "no stock"
    assert [(event.name, event.attributes) for event in inner_span.events] == [("halfway", {"percent": 50})]
    assert inner_span.events[0].time_unix_nano == inner.events[0].timestamp
    assert inner_span.links[0].trace_id == f"{earlier.get_span_context().trace_id:032x}"
    assert inner_span.links[0].attributes == {"why": "retry"}
    assert inner_span.scope.name == "shop"
    assert inner_span.scope.schema_url == "https://example.test/schema"
    assert inner_span.resource.attributes["service.instance.id"] == "7"


def test_log_records_of_the_sdk(send: Any, console: ConsoleServer) -> None:
    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=RESOURCE)
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    logger = provider.get_logger("shop")
    logger.emit(
        timestamp=1_700_000_000_000_000_001,
        severity_number=SeverityNumber.ERROR,
        severity_text="ERROR",
        body="Größe fehlt",
        attributes=ODD_VALUES,
        event_name="order.failed",
    )
    nested = {"items": [1, 2.5, None, {"deep": b"\x01"}]}
    logger.emit(timestamp=1_700_000_000_000_000_000, body=nested, severity_number=SeverityNumber.INFO)
    send(encode_logs(memory.get_finished_logs()))

    newest, oldest = queries.logs(console.store)
    assert newest.time_unix_nano == 1_700_000_000_000_000_001
    assert (newest.body, newest.severity_number, newest.severity_text) == ("Größe fehlt", 17, "ERROR")
    assert newest.attributes == ODD_VALUES
    assert newest.event_name == "order.failed"
    assert newest.service == "bestellungen-ü"
    assert newest.trace_id is None
    assert oldest.body == {"items": (1, 2.5, None, {"deep": b"\x01"})}
    assert queries.logs(console.store, min_severity=17) == (newest,)


def test_metrics_of_the_sdk(send: Any, console: ConsoleServer) -> None:
    reader: Any = InMemoryMetricReader()
    tracer = TracerProvider().get_tracer("shop")
    view = View(instrument_type=Histogram, instrument_name="sizes", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider(metric_readers=[reader], resource=RESOURCE, views=[view])
    meter = provider.get_meter("shop")
    orders = meter.create_counter("orders.placed", unit="{order}", description="Orders placed")
    duration = meter.create_histogram("duration", unit="s", explicit_bucket_boundaries_advisory=[0.1, 1.0])
    meter.create_histogram("sizes", unit="By").record(300)
    meter.create_gauge("depth").set(3)
    with tracer.start_as_current_span("place") as span:
        orders.add(2**53 + 1, {"channel": "web"})
        duration.record(0.5)
    send(encode_metrics(reader.get_metrics_data()))
    orders.add(1, {"channel": "web"})
    send(encode_metrics(reader.get_metrics_data()))

    named = {item.metric.name: item for item in queries.metrics(console.store)}
    assert set(named) == {"orders.placed", "duration", "sizes", "depth"}
    assert named["orders.placed"].metric == model.Metric(
        name="orders.placed",
        type="sum",
        unit="{order}",
        description="Orders placed",
        temporality="cumulative",
        is_monotonic=True,
    )
    assert named["orders.placed"].services == ("bestellungen-ü",)
    (series,) = queries.metric_series(console.store, "orders.placed")
    assert series.attributes == {"channel": "web"}
    assert [point.value for point in series.points] == [2**53 + 1, 2**53 + 2]
    assert series.latest.value == 2**53 + 2
    exemplar = series.points[0].exemplars[0]
    assert exemplar.trace_id == f"{span.get_span_context().trace_id:032x}"
    assert exemplar.span_id == f"{span.get_span_context().span_id:016x}"
    (histogram,) = queries.metric_series(console.store, "duration")
    assert histogram.latest.value == model.Histogram(
        count=1, sum=0.5, min=0.5, max=0.5, bounds=(0.1, 1.0), bucket_counts=(0, 1, 0)
    )
    (sizes,) = queries.metric_series(console.store, "sizes")
    assert isinstance(sizes.latest.value, model.ExponentialHistogram)
    assert (sizes.latest.value.count, sizes.latest.value.sum) == (1, 300)
    assert sum(sizes.latest.value.positive_counts) == 1
    (depth,) = queries.metric_series(console.store, "depth")
    assert depth.metric.type == "gauge"
    assert depth.latest.value == 3


def test_summary_points_and_values_json_has_no_numbers_for(send: Any, client: httpx.Client) -> None:
    point = SummaryDataPoint(time_unix_nano=1, count=2**64 - 1, sum=math.inf)
    point.quantile_values.add(quantile=0.5, value=math.nan)
    metrics = [Metric(name="old", summary=Summary(data_points=[point]))]
    send(ExportMetricsServiceRequest(resource_metrics=[ResourceMetrics(scope_metrics=[ScopeMetrics(metrics=metrics)])]))
    (series,) = client.get("/api/metrics/old").json()["series"]
    assert series["service"] == "unknown_service"
    assert series["latest"]["value"] == {
        "count": {"$int": str(2**64 - 1)},
        "sum": {"$double": "Infinity"},
        "quantiles": [[0.5, {"$double": "NaN"}]],
    }


JSON_TRACE = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "json.service"}}]},
            "scopeSpans": [
                {
                    "scope": {"name": "json"},
                    "spans": [
                        {
                            "traceId": "5B8EFFF798038103D269B633813FC60C",
                            "spanId": "EEE19B7EC3C1B174",
                            "parentSpanId": "eee19b7ec3c1b173",
                            "name": "from json",
                            "kind": 2,
                            "startTimeUnixNano": "1544712660000000001",
                            "endTimeUnixNano": 1544712661000000001,
                            "status": {"code": 2},
                            "links": [{"traceId": "5b8efff798038103d269b633813fc60d", "spanId": "eee19b7ec3c1b174"}],
                            "attributes": [
                                {"key": "traceId", "value": {"stringValue": "not an id"}},
                                {"key": "n", "value": {"intValue": "9223372036854775807"}},
                                {"key": "nan", "value": {"doubleValue": "NaN"}},
                                {"key": "raw", "value": {"bytesValue": "AP8="}},
                            ],
                            "aFieldOfTomorrow": {"x": [1]},
                        }
                    ],
                }
            ],
        }
    ]
}


def test_json_with_hex_ids_numbers_for_enums_and_unknown_fields(client: httpx.Client) -> None:
    answer = client.post("/v1/traces", json=JSON_TRACE)
    assert (answer.status_code, answer.headers["content-type"], answer.json()) == (200, "application/json", {})
    found = client.get("/api/traces/5b8efff798038103d269b633813fc60c").json()
    (span,) = found["spans"]
    assert (span["kind"], span["status"]["code"], span["is_orphan"]) == ("server", "error", True)
    assert span["parent_span_id"] == "eee19b7ec3c1b173"
    assert span["start_time"] == "2018-12-13T14:51:00.000000Z"
    assert span["start_time_unix_nano"] == "1544712660000000001"
    assert span["duration_s"] == 1.0
    assert span["links"][0]["trace_id"] == "5b8efff798038103d269b633813fc60d"
    assert span["attributes"] == {
        "traceId": "not an id",
        "n": {"$int": "9223372036854775807"},
        "nan": {"$double": "NaN"},
        "raw": {"$bytes": "AP8="},
    }


@pytest.mark.parametrize("compressed", [True, False])
def test_gzip_and_identity(client: httpx.Client, otlp: Any, compressed: bool) -> None:
    body = otlp.spans(otlp.span(1, 1)).SerializeToString()
    headers = otlp.protobuf | {"Content-Encoding": "gzip" if compressed else "identity"}
    answer = client.post("/v1/traces", content=gzip.compress(body) if compressed else body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-protobuf")
    assert ExportTraceServiceResponse.FromString(answer.content) == ExportTraceServiceResponse()
    assert client.get("/api/summary").json()["spans"] == 1


def test_an_empty_request_is_a_success(client: httpx.Client, otlp: Any) -> None:
    assert client.post("/v1/metrics", content=b"", headers=otlp.protobuf).status_code == 200
    assert client.post("/v1/logs", json={}).json() == {}


def test_a_span_delivered_twice_shows_once(send: Any, client: httpx.Client, otlp: Any) -> None:
    request = otlp.spans(otlp.span(1, 1, links=[(2, 2)], status={"code": 2}), otlp.span(1, 2, parent=1))
    send(request)
    send(request)
    send(otlp.spans(otlp.span(1, 2, parent=1), otlp.span(1, 3, parent=1)))
    found = client.get(f"/api/traces/{otlp.trace_id(1)}").json()
    assert [span["span_id"] for span in found["spans"]] == [otlp.span_id(number) for number in (1, 2, 3)]
    assert (found["span_count"], found["error_count"]) == (3, 1)
    assert len(found["linked_traces"]) == 1


def test_records_that_cannot_be_right_are_counted_and_the_others_kept(client: httpx.Client, otlp: Any) -> None:
    bad_id = otlp.span(1, 2, "bad id")
    bad_id.trace_id = b"\0" * 16
    bad_time = otlp.span(1, 3, "bad time")
    bad_time.end_time_unix_nano = 2**64 - 1
    bad_link = otlp.span(1, 4, "bad link", links=[(9, 9)])
    bad_link.links[0].trace_id = b"short"
    request = otlp.spans(otlp.span(1, 1), bad_id, bad_time, bad_link)
    answer = client.post("/v1/traces", content=request.SerializeToString(), headers=otlp.protobuf)
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, partial.rejected_spans) == (200, 2)
    assert partial.error_message.startswith("span 'bad id': trace_id is 0000")
    spans = client.get(f"/api/traces/{otlp.trace_id(1)}").json()["spans"]
    assert [(span["name"], span["dropped_links_count"]) for span in spans] == [("work", 0), ("bad link", 1)]

    log = {"traceId": "abcd", "body": {"stringValue": "x"}}
    answer = client.post("/v1/logs", json={"resourceLogs": [{"scopeLogs": [{"logRecords": [log]}]}]})
    assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "1"
    assert "trace_id is abcd" in answer.json()["partialSuccess"]["errorMessage"]
    histogram = {"dataPoints": [{"bucketCounts": ["1"], "explicitBounds": [1, 2]}, {"timeUnixNano": "1", "count": 1}]}
    metrics = [{"name": "h", "histogram": histogram}, {"gauge": {"dataPoints": [{}]}}]
    answer = client.post("/v1/metrics", json={"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]})
    assert answer.json()["partialSuccess"]["rejectedDataPoints"] == "2"
    assert len(client.get("/api/metrics/h").json()["series"]) == 1


keys = st.text(min_size=1, max_size=8)
numbers = st.integers(min_value=-(2**63), max_value=2**63 - 1) | st.floats(allow_nan=False)
scalars = st.booleans() | numbers | st.text(max_size=20) | st.binary(max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attributes=st.dictionaries(keys, scalars, max_size=6), number=st.integers(min_value=1, max_value=2**100))
def test_any_attributes_come_back_by_receiver_and_store(
    send: Any, console: ConsoleServer, otlp: Any, attributes: Any, number: int
) -> None:
    span = otlp.span(number, 1)
    fields = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value", bytes: "bytes_value"}
    span.attributes.extend(
        KeyValue(key=key, value=AnyValue(**{fields[type(value)]: value})) for key, value in attributes.items()
    )
    span.span_id = hash(json.dumps(sorted(map(repr, attributes.items())))).to_bytes(8, "big", signed=True)
    if not any(span.span_id):
        return
    send(otlp.spans(span))
    found = queries.trace(console.store, otlp.trace_id(number))
    assert found is not None
    received = next(item.span for item in found.spans if item.span.span_id == span.span_id.hex())
    assert received.attributes == attributes
    assert {key: type(value) for key, value in received.attributes.items()} == {
        key: type(value) for key, value in attributes.items()
    }
