"""The committed configuration of the backends, against the real programs, with telemetry made by hand."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Exemplar,
    Histogram,
    HistogramDataPoint,
    Metric,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from tests.stack.backends import (
    ALL,
    ROOT,
    Stack,
    eventually,
    jaeger_search,
    jaeger_trace,
    loki_query,
    program,
    prometheus_exemplars,
    prometheus_query,
    prometheus_samples,
    running_stack,
)

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("backends_built"), pytest.mark.timeout(240, func_only=True)]

ARRIVES_WITHIN_S = 30.0
SCRAPED_WITHIN_S = 60.0
STARTED_NS = time.time_ns()
PROTOBUF = {"Content-Type": "application/x-protobuf"}

Value = str | int | bytes | Sequence["Value"] | Mapping[str, "Value"]


# ---- telemetry by hand


def any_value(value: Value) -> AnyValue:
    match value:
        case str():
            return AnyValue(string_value=value)
        case int():
            return AnyValue(int_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case Mapping():
            return AnyValue(kvlist_value=KeyValueList(values=attributes(value)))
        case _:
            return AnyValue(array_value=ArrayValue(values=[any_value(one) for one in value]))


def attributes(values: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def resource(service: str, extra: Mapping[str, Value] | None = None) -> Resource:
    named = {
        "service.name": service,
        "service.namespace": "shop",
        "service.instance.id": f"{service}-1",
        "deployment.environment.name": "test",
        "telemetry.sdk.language": "python",
    }
    return Resource(attributes=attributes({**named, **(extra or {})}))


def span(
    *,
    trace_id: bytes,
    span_id: bytes,
    name: str,
    parent: bytes = b"",
    kind: Span.SpanKind.ValueType = Span.SPAN_KIND_SERVER,
    values: Mapping[str, Value] | None = None,
    status: Status | None = None,
    links: Iterable[Span.Link] = (),
    events: Iterable[Span.Event] = (),
) -> Span:
    now = time.time_ns()
    return Span(
        trace_id=trace_id, span_id=span_id, parent_span_id=parent, name=name, kind=kind,
        start_time_unix_nano=now - 20_000_000, end_time_unix_nano=now, attributes=attributes(values or {}),
        status=status, links=links, events=events,
    )  # fmt: skip


def traces(service: str, spans: Iterable[Span]) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource(service), scope_spans=[ScopeSpans(spans=spans)])]
    )


def log_record(
    body: Value, *, trace_id: bytes = b"", span_id: bytes = b"", values: Mapping[str, Value] | None = None
) -> LogRecord:
    return LogRecord(
        time_unix_nano=time.time_ns(), severity_number=SeverityNumber.SEVERITY_NUMBER_INFO, severity_text="INFO",
        body=any_value(body), trace_id=trace_id, span_id=span_id, attributes=attributes(values or {}),
    )  # fmt: skip


def logs(service: str, records: Iterable[LogRecord]) -> ExportLogsServiceRequest:
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=resource(service), scope_logs=[ScopeLogs(log_records=records)])]
    )


def histogram(
    service: str,
    *,
    values: Mapping[str, Value] | None = None,
    exemplar: tuple[bytes, bytes] | None = None,
    count: int = 3,
) -> ExportMetricsServiceRequest:
    now = time.time_ns()
    exemplars = [Exemplar(time_unix_nano=now, as_double=0.02, trace_id=e[0], span_id=e[1]) for e in [exemplar] if e]
    point = HistogramDataPoint(
        start_time_unix_nano=STARTED_NS, time_unix_nano=now, count=count, sum=0.02 * count,
        bucket_counts=[0, count, 0], explicit_bounds=[0.01, 0.1], exemplars=exemplars,
        attributes=attributes(values or {"http.route": "/orders"}),
    )  # fmt: skip
    metric = Metric(
        name="http.server.request.duration",
        unit="s",
        histogram=Histogram(
            aggregation_temporality=AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE, data_points=[point]
        ),
    )
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=resource(service), scope_metrics=[ScopeMetrics(metrics=[metric])])]
    )


Request = ExportTraceServiceRequest | ExportLogsServiceRequest | ExportMetricsServiceRequest
PATHS: Mapping[type[Request], str] = {
    ExportTraceServiceRequest: "traces",
    ExportLogsServiceRequest: "logs",
    ExportMetricsServiceRequest: "metrics",
}


def post(stack: Stack, request: Request, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.post(
        f"{stack.otlp_http_url}/v1/{PATHS[type(request)]}",
        content=request.SerializeToString(),
        headers={**PROTOBUF, **(headers or {})},
        timeout=20,
    )


def send(stack: Stack, *requests: Request) -> None:
    for request in requests:
        answered = post(stack, request)
        assert answered.status_code == httpx.codes.OK, f"{answered.status_code} {answered.text}"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One trace of two spans with a log line and a histogram point that belong to it."""

    service: str
    trace_id: str
    root_id: str
    child_id: str
    linked: tuple[str, str]


def send_one_of_each(stack: Stack) -> Sent:
    trace_id, root, child = secrets.token_bytes(16), secrets.token_bytes(8), secrets.token_bytes(8)
    linked = (secrets.token_bytes(16), secrets.token_bytes(8))
    service = f"orders-{secrets.token_hex(4)}"
    served: dict[str, Value] = {
        "http.request.method": "GET",
        "http.route": "/orders/{id}",
        "http.response.status_code": 200,
    }
    send(
        stack,
        traces(
            service,
            [
                span(trace_id=trace_id, span_id=root, name="GET /orders/{id}", values=served),
                span(
                    trace_id=trace_id, span_id=child, name="send orders", parent=root, kind=Span.SPAN_KIND_PRODUCER,
                    links=[Span.Link(trace_id=linked[0], span_id=linked[1])],
                    status=Status(code=Status.STATUS_CODE_ERROR, message="the broker is away"),
                ),
            ],
        ),
        logs(service, [log_record("order.placed", trace_id=trace_id, span_id=child, values={"order_id": 7})]),
        histogram(service, exemplar=(trace_id, root)),
    )  # fmt: skip
    return Sent(
        service=service,
        trace_id=trace_id.hex(),
        root_id=root.hex(),
        child_id=child.hex(),
        linked=(linked[0].hex(), linked[1].hex()),
    )


@pytest.fixture(scope="module")
def sent(stack: Stack) -> Sent:
    return send_one_of_each(stack)


# ---- they come up


@pytest.mark.parametrize("name", ALL)
def test_a_backend_comes_up_without_a_word_of_deprecation(stack: Stack, name: str) -> None:
    told = [
        line
        for line in stack.logs(name).splitlines()
        if any(word in line.lower() for word in ("deprecat", "phased out", "is now permanently enabled"))
    ]
    assert not told


def test_the_collector_listens_for_grpc_and_says_that_it_is_healthy(stack: Stack) -> None:
    host, port = stack.otlp_grpc_target.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    assert httpx.get(stack.collector_health_url).json()["status"] == "Server available"


# ---- what arrives


def test_a_trace_arrives_in_jaeger_with_its_parent_and_its_link(stack: Stack, sent: Sent) -> None:
    spans = eventually(
        lambda: len(found := jaeger_trace(stack, sent.trace_id)) == 2 and found,
        timeout_s=ARRIVES_WITHIN_S,
        what=f"both spans of trace {sent.trace_id} in Jaeger",
    )
    assert spans
    by_id = {span.span_id: span for span in spans}
    root, child = by_id[sent.root_id], by_id[sent.child_id]
    assert (root.service, root.name, root.kind, root.status, root.parent_id) == (
        sent.service, "GET /orders/{id}", "server", "UNSET", None,
    )  # fmt: skip
    assert root.attributes["http.response.status_code"] == 200
    assert root.resource["deployment.environment.name"] == "test"
    assert (child.parent_id, child.kind, child.status) == (sent.root_id, "producer", "ERROR")
    assert child.attributes["otel.status_description"] == "the broker is away"
    assert child.links == (sent.linked,)
    found = jaeger_search(stack, sent.service, operation="GET /orders/{id}", tags={"http.route": "/orders/{id}"})
    assert [trace[0].trace_id for trace in found] == [sent.trace_id]


def test_a_log_line_arrives_in_loki_under_three_labels_and_leads_to_its_trace(stack: Stack, sent: Sent) -> None:
    (line,) = eventually(
        lambda: loki_query(stack, f'{{service_name="{sent.service}"}} | trace_id = "{sent.trace_id}"'),
        timeout_s=ARRIVES_WITHIN_S,
        what=f"the line of trace {sent.trace_id} in Loki",
    )
    assert line.line == "order.placed"
    assert line.labels["span_id"] == sent.child_id
    assert line.labels["order_id"] == "7"
    series = httpx.get(
        f"{stack.loki_url}/loki/api/v1/series", params={"match[]": f'{{service_name="{sent.service}"}}'}
    ).json()["data"]
    assert series == [
        {"service_name": sent.service, "service_namespace": "shop", "deployment_environment_name": "test"}
    ]
    assert jaeger_trace(stack, line.labels["trace_id"])


def test_a_metric_arrives_in_prometheus_with_an_exemplar_that_resolves(stack: Stack, sent: Sent) -> None:
    (series,) = eventually(
        lambda: prometheus_query(
            stack, f'http_server_request_duration_seconds_bucket{{service_name="{sent.service}", le="0.1"}}'
        ),
        timeout_s=ARRIVES_WITHIN_S,
        what="the histogram in Prometheus",
    )
    assert series.value == 3
    assert series.labels["job"] == f"shop/{sent.service}"
    assert series.labels["instance"] == f"{sent.service}-1"
    assert series.labels["http_route"] == "/orders"
    exemplars = prometheus_exemplars(
        stack, f'http_server_request_duration_seconds_bucket{{service_name="{sent.service}"}}'
    )
    assert [exemplar.labels for exemplar in exemplars] == [{"trace_id": sent.trace_id, "span_id": sent.root_id}]
    assert jaeger_trace(stack, exemplars[0].labels["trace_id"])


def test_spans_become_metrics_with_exemplars_that_resolve_in_jaeger_and_loki(stack: Stack, sent: Sent) -> None:
    calls = eventually(
        lambda: prometheus_query(stack, f'traces_span_metrics_calls_total{{service_name="{sent.service}"}}'),
        timeout_s=ARRIVES_WITHIN_S,
        what="the span metrics in Prometheus",
    )
    served = next(one for one in calls if one.labels["span_kind"] == "SPAN_KIND_SERVER")
    assert served.labels["span_name"] == "GET /orders/{id}"
    assert served.labels["http_route"] == "/orders/{id}"
    assert served.labels["http_request_method"] == "GET"
    assert served.labels["deployment_environment_name"] == "test"
    assert "instance" not in served.labels, "span metrics merge instances, so they must not be named after one"
    failed = next(one for one in calls if one.labels["span_kind"] == "SPAN_KIND_PRODUCER")
    assert failed.labels["status_code"] == "STATUS_CODE_ERROR"
    exemplars = eventually(
        lambda: prometheus_exemplars(
            stack, f'traces_span_metrics_duration_seconds_bucket{{service_name="{sent.service}"}}'
        ),
        timeout_s=ARRIVES_WITHIN_S,
        what="exemplars of the span metrics",
    )
    assert {exemplar.labels["trace_id"] for exemplar in exemplars} == {sent.trace_id}
    assert {exemplar.labels["span_id"] for exemplar in exemplars} <= {sent.root_id, sent.child_id}
    assert jaeger_trace(stack, exemplars[0].labels["trace_id"])
    assert loki_query(stack, f'{{service_name=~".+"}} | trace_id = "{exemplars[0].labels["trace_id"]}"'), (
        "no line in Loki for the exemplar's trace"
    )


def test_jaeger_shows_service_performance_from_the_span_metrics(stack: Stack) -> None:
    # Rates need calls that go on for two points of the series.
    service = f"monitored-{secrets.token_hex(4)}"
    numbers = itertools.count()

    def measured(kind: str) -> list[float]:
        next(numbers)
        send(
            stack,
            traces(service, [span(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), name="GET /m")]),
        )
        answered = httpx.get(
            f"{stack.jaeger_url}/api/metrics/{kind}",
            params={
                "service": service, "spanKind": "server", "step": "5000", "ratePer": "60000", "lookback": "120000",
                **({"quantile": "0.95"} if kind == "latencies" else {}),
            },
        ).json()  # fmt: skip
        points = [point for metric in answered.get("metrics", []) for point in metric["metricPoints"]]
        values = [point["gaugeValue"]["doubleValue"] for point in points]
        return [value for value in values if isinstance(value, float) and value > 0]

    assert eventually(lambda: measured("calls"), timeout_s=SCRAPED_WITHIN_S, what="call rates from Jaeger")
    (latest, *_) = eventually(lambda: measured("latencies"), timeout_s=SCRAPED_WITHIN_S, what="latencies from Jaeger")
    assert 0.01 < latest * (1 if latest < 1 else 0.001) < 0.1


# ---- secrets

SECRET = "s3cr3tPlanted"
BASIC = "dXNlcjpzM2NyM3RQbGFudGVk"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJl"
MADE_UP_KEY = "sk-proj-plantedPLANTED0123456789"
PLANTED = (SECRET, BASIC, JWT, MADE_UP_KEY, "planted pass phrase")

SECRET_ATTRIBUTES: Mapping[str, Value] = {
    "http.request.header.authorization": [f"Bearer {SECRET}"],
    "http.request.header.x-api-key": SECRET,
    "http.request.header.cookie": [f"a=1; session={SECRET}"],
    "db.password": SECRET,
    "OPENAI_API_KEY": MADE_UP_KEY,
    "client_secret": [SECRET, "x"],
    "aws.secret_access_key": SECRET,
    "headers.list": [f"Authorization: Basic {BASIC}", f"Cookie: a=1; session={SECRET}", "Accept: text/html"],
    "headers.map": {"authorization": f"Basic {BASIC}", "x-api-key": [SECRET], "deep": {"password": SECRET}},
    "json.text": f'{{"user": "ann", "password": "planted pass phrase", "api_key":"{SECRET}"}}',
    "json.twice": f'"{{\\"token\\": \\"{SECRET}\\"}}"',
    "url.full": f"https://shop.example/orders?page=2&access_token={SECRET}&size=3",
    "db.dsn": f"postgresql://ann:{SECRET}@db/orders",
    "free.text": f"sent Basic {BASIC} and then bearer {SECRET} and {JWT} and {MADE_UP_KEY}",
    "key.pem": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
}
HARMLESS: Mapping[str, Value] = {
    "gen_ai.usage.input_tokens": 12,
    "gen_ai.usage.output_tokens": 34,
    "gen_ai.request.max_tokens": 256,
    "gen_ai.token.type": "input",
    "url.path": "/orders/7",
    "note": "Basic authentication is on; the token bucket holds 5; secretary: none",
    "ratio": 5,
}
SECRET_TEXTS = (
    f"GET /login?password={SECRET}&next=/",
    f"call with Authorization: Bearer {SECRET}",
    f"Authorization: Basic {BASIC} was refused",
    f"no route to amqp://ann:{SECRET}@queue",
    f"bad key {MADE_UP_KEY}",
    f"bad token {JWT}",
)


def everything_stored(stack: Stack, service: str, trace_ids: Sequence[str]) -> dict[str, str]:
    """Return all that the three backends give back about a service, as the text of their answers."""
    window = {"start": str(time.time() - 3600), "end": str(time.time() + 60)}
    selector = f'{{service_name="{service}"}}'
    nanoseconds = {
        "start": str(time.time_ns() - 3600 * 10**9),
        "end": str(time.time_ns() + 60 * 10**9),
        "limit": "5000",
    }
    return {
        "Jaeger": "".join(httpx.get(f"{stack.jaeger_url}/api/traces/{one}").text for one in trace_ids)
        + httpx.get(f"{stack.jaeger_url}/api/operations", params={"service": service}).text,
        "Loki": httpx.get(f"{stack.loki_url}/loki/api/v1/query_range", params={"query": selector, **nanoseconds}).text,
        "Prometheus": httpx.get(f"{stack.prometheus_url}/api/v1/series", params={"match[]": selector, **window}).text
        + httpx.get(f"{stack.prometheus_url}/api/v1/query_exemplars", params={"query": selector, **window}).text,
    }


def send_secrets(stack: Stack, service: str) -> list[str]:
    """Plant secrets wherever telemetry has a place for them; return the trace ids."""
    trace_ids = [secrets.token_bytes(16) for _ in SECRET_TEXTS]
    mixed = {**SECRET_ATTRIBUTES, **HARMLESS}
    spans = [
        span(
            trace_id=trace_id, span_id=secrets.token_bytes(8), name=text, values=mixed,
            status=Status(code=Status.STATUS_CODE_ERROR, message=text),
            events=[Span.Event(name=text, time_unix_nano=time.time_ns(), attributes=attributes({
                "exception.message": text, "exception.stacktrace": f"Traceback ...\n  f({text!r})\n",
            }))],
        )
        for trace_id, text in zip(trace_ids, SECRET_TEXTS, strict=True)
    ]  # fmt: skip
    records = [log_record(text, trace_id=trace_ids[0], values=mixed) for text in SECRET_TEXTS]
    records.append(log_record(dict(SECRET_ATTRIBUTES), trace_id=trace_ids[0]))
    records.append(log_record([*SECRET_TEXTS, {"token": SECRET}], trace_id=trace_ids[0]))
    request = traces(service, spans)
    request.resource_spans[0].resource.attributes.extend(
        attributes({"process.command_line": f"run --password={SECRET}"})
    )
    request.resource_spans[0].scope_spans[0].scope.attributes.extend(attributes({"token": SECRET}))
    send(
        stack,
        request,
        logs(service, records),
        histogram(service, values={"url.full": f"/x?token={SECRET}", "password": SECRET, "kept": "yes"}),
    )
    return [trace_id.hex() for trace_id in trace_ids]


def await_stored(stack: Stack, service: str, trace_ids: Sequence[str]) -> None:
    eventually(
        lambda: all(jaeger_trace(stack, trace_id) for trace_id in trace_ids),
        timeout_s=ARRIVES_WITHIN_S,
        what="the traces in Jaeger",
    )
    eventually(
        lambda: len(loki_query(stack, f'{{service_name="{service}"}}')) == len(SECRET_TEXTS) + 2,
        timeout_s=ARRIVES_WITHIN_S,
        what="the log lines",
    )
    metrics = {"http_server_request_duration_seconds_count", "traces_span_metrics_calls_total"}
    selector = f'{{__name__=~"{"|".join(sorted(metrics))}", service_name="{service}"}}'
    eventually(
        lambda: {one.labels["__name__"] for one in prometheus_query(stack, selector)} == metrics,
        timeout_s=ARRIVES_WITHIN_S,
        what=f"{metrics} of {service} in Prometheus",
    )


def test_planted_secrets_are_found_nowhere_and_harmless_values_everywhere(stack: Stack) -> None:
    service = f"leaky-{secrets.token_hex(4)}"
    trace_ids = send_secrets(stack, service)
    await_stored(stack, service, trace_ids)
    stored = everything_stored(stack, service, trace_ids)
    found = [
        f"{planted} in {name}: ...{text[max(0, text.index(planted) - 150) : text.index(planted) + 40]}..."
        for name, text in stored.items()
        for planted in PLANTED
        if planted in text
    ]
    assert not found, "\n".join(found)

    (kept, *_) = jaeger_trace(stack, trace_ids[0])
    assert {key: kept.attributes.get(key) for key in HARMLESS} == HARMLESS
    assert kept.name == "GET /login?****&next=/"
    assert kept.attributes["url.full"] == "https://shop.example/orders?page=2&access_****&size=3"
    assert "text/html" in str(kept.attributes["headers.list"])
    assert not [key for key in kept.attributes if key.startswith("redaction.")]
    (series,) = prometheus_query(stack, f'http_server_request_duration_seconds_count{{service_name="{service}"}}')
    assert series.labels["kept"] == "yes"


def test_redaction_can_be_switched_off(backends_built: None, tmp_path: Path) -> None:
    with running_stack(tmp_path, redaction=False) as stack:
        trace_ids = send_secrets(stack, "trusted")
        await_stored(stack, "trusted", trace_ids)
        stored = everything_stored(stack, "trusted", trace_ids)
    assert [name for name, text in stored.items() if SECRET not in text] == []


# ---- the token


def test_with_a_token_the_receiver_refuses_whoever_lacks_it(tmp_path: Path) -> None:
    token = secrets.token_urlsafe(24)
    request = traces("guarded", [span(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), name="GET /")])
    with running_stack(tmp_path, backends=["collector"], token=token) as stack:
        assert post(stack, request).status_code == httpx.codes.UNAUTHORIZED
        for wrong in ("Bearer wrong", "Bearer", token, f"Basic {token}"):
            assert post(stack, request, {"Authorization": wrong}).status_code == httpx.codes.UNAUTHORIZED, wrong
        assert post(stack, request, {"Authorization": f"Bearer {token}"}).status_code == httpx.codes.OK
        assert token not in stack.logs("collector")


def test_with_the_token_file_and_no_token_the_collector_does_not_start(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="no bearer token provided"),
        running_stack(tmp_path, backends=["collector"], token=""),
    ):
        pass  # pragma: no cover


def test_without_a_token_the_receiver_is_open(stack: Stack) -> None:
    request = traces("open", [span(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), name="GET /")])
    assert post(stack, request).status_code == httpx.codes.OK


# ---- nothing is lost


def test_backends_down_and_the_collector_killed_lose_nothing(tmp_path: Path) -> None:
    batches, batch_size = 20, 50
    with running_stack(tmp_path) as stack:
        for name in ("prometheus", "loki", "jaeger"):
            stack.stop(name)
        trace_ids = []
        for batch in range(batches):
            ids = [secrets.token_bytes(16) for _ in range(batch_size)]
            trace_ids += [trace_id.hex() for trace_id in ids]
            send(
                stack,
                traces("lasting", [span(trace_id=one, span_id=secrets.token_bytes(8), name="GET /") for one in ids]),
                logs("lasting", [log_record("kept", trace_id=one) for one in ids]),
                histogram("lasting", count=batch + 1),
            )
        stack.kill("collector")
        for name in ("prometheus", "loki", "jaeger"):
            stack.start(name)
        stack.start("collector")

        wanted = set(trace_ids)
        eventually(
            lambda: {line.labels["trace_id"] for line in loki_query(stack, '{service_name="lasting"}')} == wanted,
            timeout_s=60,
            what=f"all {len(wanted)} log lines in Loki",
        )
        eventually(
            lambda: {trace[0].trace_id for trace in jaeger_search(stack, "lasting", limit=2000)} == wanted,
            timeout_s=60,
            what=f"all {len(wanted)} traces in Jaeger",
        )
        selector = 'http_server_request_duration_seconds_count{service_name="lasting"}'
        eventually(
            # Not only these: Prometheus also puts a zero where a series starts.
            lambda: set(prometheus_samples(stack, selector)) >= set(range(1, batches + 1)),
            timeout_s=60,
            what=f"all {batches} points of the metric in Prometheus",
        )


def test_a_full_queue_refuses_at_once_what_it_cannot_hold(tmp_path: Path) -> None:
    with running_stack(tmp_path, backends=["collector"], environment={"OTELCOL_QUEUE_SIZE": "1000"}) as stack:
        request = logs("flooding", [log_record("x") for _ in range(400)])
        started = time.monotonic()
        answers = [post(stack, request).status_code for _ in range(6)]
        took = time.monotonic() - started
    assert answers[0] == httpx.codes.OK
    assert answers[-1] == httpx.codes.SERVICE_UNAVAILABLE
    assert took < 5


def test_traces_on_disk_outlive_a_killed_jaeger(tmp_path: Path) -> None:
    with running_stack(tmp_path, backends=["jaeger", "collector"], durable_traces=True) as stack:
        sent = send_one_of_each(stack)
        eventually(lambda: len(jaeger_trace(stack, sent.trace_id)) == 2, timeout_s=ARRIVES_WITHIN_S, what="the trace")
        stack.kill("jaeger")
        stack.start("jaeger")
        assert {span.span_id for span in jaeger_trace(stack, sent.trace_id)} == {sent.root_id, sent.child_id}


# ---- rules, and the pipeline's own metrics


def test_promtool_accepts_the_configuration_and_the_rule_tests_pass() -> None:
    promtool = str(program("promtool"))
    folder = ROOT / "prometheus"
    tests = sorted(str(path) for path in (folder / "rules" / "tests").glob("*.test.yml"))
    assert len(tests) == len(list((folder / "rules").glob("*.yml"))), "every rule file has its test"
    for command in (["check", "config", str(folder / "prometheus.yml")], ["test", "rules", *tests]):
        checked = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_scrapes_every_backend_and_its_rules_evaluate(stack: Stack, sent: Sent) -> None:
    eventually(
        lambda: (
            {one.labels["job"] for one in prometheus_query(stack, "up == 1")}
            == {"otel-collector", "prometheus", "loki", "jaeger"}
        ),
        timeout_s=SCRAPED_WITHIN_S,
        what="every backend scraped",
    )
    own = {
        "otelcol_exporter_queue_size",
        "otelcol_exporter_queue_capacity",
        "otelcol_exporter_sent_spans_total",
        "otelcol_receiver_accepted_spans_total",
        "otelcol_receiver_refused_spans_total",
        "otelcol_receiver_refused_log_records_total",
        "otelcol_receiver_refused_metric_points_total",
    }
    eventually(
        lambda: own <= {one.labels["__name__"] for one in prometheus_query(stack, '{job="otel-collector"}')},
        timeout_s=SCRAPED_WITHIN_S,
        what=f"the Collector's own metrics {sorted(own)} in Prometheus",
    )

    def rule_health() -> bool:
        groups = httpx.get(f"{stack.prometheus_url}/api/v1/rules").json()["data"]["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}

    eventually(rule_health, timeout_s=SCRAPED_WITHIN_S, what="all rules evaluated without an error")


def test_an_alert_tells_of_data_that_a_backend_refuses_for_good(tmp_path: Path) -> None:
    with running_stack(tmp_path, backends=["collector", "prometheus", "loki"]) as stack:
        too_old = log_record("from three days ago")
        too_old.time_unix_nano -= 72 * 3600 * 10**9
        send(stack, logs("late", [too_old]))
        (firing,) = eventually(
            lambda: prometheus_query(stack, 'ALERTS{alertname="CollectorLosesData", alertstate="firing"}'),
            timeout_s=SCRAPED_WITHIN_S,
            what="the alert CollectorLosesData",
        )
    assert firing.labels["exporter"] == "otlp_http/loki"


def test_what_is_kept_is_kept_for_48_hours(stack: Stack) -> None:
    status = httpx.get(f"{stack.prometheus_url}/api/v1/status/runtimeinfo").json()["data"]
    assert status["storageRetention"] == "2d"
    loki = httpx.get(f"{stack.loki_url}/config").text
    assert "retention_period: 2d" in loki
    assert "retention_enabled: true" in loki


# ---- the harness itself


def test_backends_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.stack.backends import running_stack\n"
        "with running_stack(pathlib.Path(sys.argv[2]), backends=['collector']) as stack:\n"
        "    print(stack.collector_health_url, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    address = ran.stdout.strip()

    def gone() -> bool:
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
        return True

    eventually(gone, timeout_s=5, what=f"the Collector at {address} ended with its parent")
