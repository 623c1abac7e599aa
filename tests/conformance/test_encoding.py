"""clew writes OTLP's bytes itself. What they say is compared with what the stock encoder says of the same items."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from clew.pipeline.coercion import MAX_STACKTRACE_LENGTH
from clew.pipeline.encoding import Encoder, point_count
from clew.pipeline.records import LogItem
from clew.pipeline.redaction import REDACTED, Redactor
from clew.testing import read_logs as captured_logs
from tests.conformance import otlp_items as items

NO_LIMIT = 10**9
A_SCOPE = InstrumentationScope("clew")
EMPTY = Resource.get_empty()
# One for all examples: what it remembers of one must not show in another
SHARED = Encoder(EMPTY, Redactor(), max_value_length=NO_LIMIT)
SMALL = Encoder(EMPTY, Redactor(), max_value_length=100)
many = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


def same(ours: Any, stock: Any) -> None:
    """Compare by what is written: a NaN differs from itself, and 0.0 does not differ from -0.0."""
    if ours.SerializeToString(deterministic=True) != stock.SerializeToString(deterministic=True):
        assert str(ours) == str(stock)
        raise AssertionError("they differ in a NaN or a zero")


def holding_no_secret(body: bytes) -> bytes:
    """Leave out the few examples that look like secrets: what holds none must be as it was."""
    assume(REDACTED.encode() not in body)
    return body


def read_spans(body: bytes) -> ExportTraceServiceRequest:
    request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(body)
    return request


def read_logs(body: bytes) -> ExportLogsServiceRequest:
    request: ExportLogsServiceRequest = ExportLogsServiceRequest.FromString(body)
    return request


def stock_spans(spans: list[ReadableSpan]) -> ExportTraceServiceRequest:
    """The stock encoder's request, and what OTLP has besides that the stock encoder leaves out.

    It leaves out the W3C trace flags, the lower eight bits of a span's and a link's flags, and the trace state of a link:
    https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto
    """
    request = encode_spans(spans)
    of_id = {(span.context.trace_id, span.context.span_id): span for span in spans}
    assert len(of_id) == len(spans)
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for message in scope_spans.spans:
                span = of_id[int.from_bytes(message.trace_id, "big"), int.from_bytes(message.span_id, "big")]
                message.flags |= span.context.trace_flags
                for link_message, link in zip(message.links, span.links, strict=True):
                    link_message.flags |= link.context.trace_flags
                    link_message.trace_state = link.context.trace_state.to_header()
    return request


def batches_of(spans: st.SearchStrategy[ReadableSpan]) -> st.SearchStrategy[list[ReadableSpan]]:
    return st.lists(spans, max_size=3, unique_by=lambda span: span.context[:2])


@many
@given(batches_of(items.spans))
def test_spans_are_what_the_stock_encoder_says(spans):
    same(read_spans(holding_no_secret(SHARED.spans(spans))), stock_spans(spans))


class Renamed(ReadableSpan):
    """A span of somebody's own class, whose public properties say something else than its private attributes."""

    @property
    def name(self) -> str:
        return "renamed"

    @property
    def attributes(self) -> Any:
        return {"own": True}


@many
@given(batches_of(items.spans))
def test_a_span_of_another_class_is_read_by_its_public_properties(spans):
    for span in spans:
        span.__class__ = Renamed
    same(read_spans(holding_no_secret(SHARED.spans(spans))), stock_spans(spans))


@many
@given(st.lists(items.log_records(), max_size=3))
def test_log_records_are_what_the_stock_encoder_says(records):
    same(read_logs(holding_no_secret(SHARED.logs(records))), encode_logs(records))


def stock_metrics(scopes: list[ScopeMetrics], resource: Resource = EMPTY) -> ExportMetricsServiceRequest:
    """The stock encoder's request, without the extremes that were not recorded.

    The SDK keeps them as an infinite minimum and a negative infinite maximum, which the stock encoder sends; in OTLP they are
    optional, and those two would be read as measurements.
    """
    metrics = ResourceMetrics(resource=resource, scope_metrics=scopes, schema_url=resource.schema_url)
    request = encode_metrics(MetricsData(resource_metrics=[metrics]))
    for resource_metrics in request.resource_metrics:
        for scope in resource_metrics.scope_metrics:
            for metric in scope.metrics:
                for point in (*metric.histogram.data_points, *metric.exponential_histogram.data_points):
                    if point.min == math.inf and point.max == -math.inf:
                        point.ClearField("min")
                        point.ClearField("max")
    return request


@many
@given(st.lists(items.scope_metrics, min_size=1, max_size=2, unique_by=lambda scope: (scope.scope, repr(scope.scope))))
def test_metrics_are_what_the_stock_encoder_says(scopes):
    same(ExportMetricsServiceRequest.FromString(holding_no_secret(SHARED.metrics(scopes))), stock_metrics(scopes))
    assert point_count(scopes) == sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics)


def a_span(**given: Any) -> ReadableSpan:
    context = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    fields: dict[str, Any] = {"name": "a span", "context": context, "resource": EMPTY}
    return ReadableSpan(**fields | given)


def a_record(attributes: Any = None, **given: Any) -> ReadableLogRecord:
    return ReadableLogRecord(log_record=LogRecord(attributes=attributes, **given), resource=EMPTY)


def a_counter(value: Any, attributes: Any = None) -> ScopeMetrics:
    point = NumberDataPoint(attributes=attributes, start_time_unix_nano=1, time_unix_nano=2, value=value)
    data = Sum(data_points=[point], aggregation_temporality=AggregationTemporality.CUMULATIVE, is_monotonic=True)
    metric = Metric(name="orders", description="", unit="", data=data)
    return ScopeMetrics(scope=InstrumentationScope("clew"), metrics=[metric], schema_url="")


@many
@given(items.resources)
def test_a_resource_is_what_the_stock_encoder_says_in_each_signal(resource):
    encoder = Encoder(resource, Redactor(), max_value_length=NO_LIMIT)
    span = a_span(resource=resource)
    record = ReadableLogRecord(log_record=LogRecord(body="x"), resource=resource)
    scopes = [a_counter(1)]
    same(read_spans(holding_no_secret(encoder.spans([span]))), stock_spans([span]))
    same(read_logs(holding_no_secret(encoder.logs([record]))), encode_logs([record]))
    same(
        ExportMetricsServiceRequest.FromString(holding_no_secret(encoder.metrics(scopes))),
        stock_metrics(scopes, resource),
    )


def test_every_batch_has_the_encoders_resource_whatever_its_items_were_made_with():
    encoder = Encoder(Resource({"service.name": "child"}), Redactor())
    spans = [a_span(resource=Resource({"service.name": "parent"})), a_span()]
    (resource_spans,) = read_spans(encoder.spans(spans)).resource_spans
    assert [(item.key, item.value.string_value) for item in resource_spans.resource.attributes] == [
        ("service.name", "child")
    ]


def value_of(attribute: Any, encoder: Encoder = SHARED) -> AnyValue:
    """What becomes of a value in a span's attribute."""
    request = read_spans(encoder.spans([a_span(attributes={"n": attribute})]))
    (pair,) = request.resource_spans[0].scope_spans[0].spans[0].attributes
    assert pair.key == "n"
    value: AnyValue = pair.value
    return value


@many
@given(st.lists(st.sampled_from([0, 1, 0.0, -0.0, 1.0, True, False, "1", "True", 2, 2.0, math.nan]), min_size=2))
def test_equal_values_of_other_types_are_never_taken_for_one_another(values):
    encoder = Encoder(EMPTY, Redactor())
    for value in values:
        shown = value_of(value, encoder)
        kind = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}[type(value)]
        assert shown.WhichOneof("value") == kind
        assert repr(getattr(shown, kind)) == repr(value)


def test_scopes_that_differ_only_in_the_type_of_a_value_stay_apart():
    # The stock encoder takes them for one: as dictionaries they are equal
    one, true = (InstrumentationScope("s", attributes={"a": value}) for value in (1, True))
    spans = [a_span(instrumentation_scope=scope) for scope in (one, true)]
    scopes = read_spans(SHARED.spans(spans)).resource_spans[0].scope_spans
    assert [scope.scope.attributes[0].value.WhichOneof("value") for scope in scopes] == ["int_value", "bool_value"]


class Odd:
    """Nothing that OTLP has a type for."""

    def __str__(self) -> str:
        return "odd"


class Hostile:
    """It has no text form."""

    def __str__(self) -> str:
        raise RuntimeError


class Says:
    """Its text form is what it was given."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def a_log_item(attributes: dict[str, Any], *, body: Any, scope: InstrumentationScope = A_SCOPE) -> LogItem:
    return LogItem(
        time_ns=1_700_000_000_000_000_001,
        severity_number=9,
        severity_text="INFO",
        body=body,
        attributes=attributes,
        trace_id=2**127,
        span_id=2**63,
        trace_flags=1,
        scope=scope,
    )


def repr_safely(value: object) -> str:
    return type(value).__name__


# What the stock encoder leaves out with a logged error, or loses its whole batch to
REFUSED = [
    (2**63, "9223372036854775808"),
    (-(2**63) - 1, "-9223372036854775809"),
    (10**5000, hex(10**5000)),
    ("lone \ud800 half", "lone ? half"),
    ({"a": ["\udfff"]}, "?"),
    (Odd(), "odd"),
    (Hostile(), "<Hostile without a text form>"),
    ([Odd()], "odd"),
    ({3}, "3"),
]


@pytest.mark.parametrize(("value", "text"), REFUSED, ids=range(len(REFUSED)))
def test_what_the_stock_encoder_refuses_becomes_text(value, text):
    assert text in str(value_of(value))
    record = a_record(attributes={"a": value}, body=value)
    (message,) = read_logs(SHARED.logs([record])).resource_logs[0].scope_logs[0].log_records
    assert text in str(message.body)
    assert text in str(message.attributes)


@pytest.mark.parametrize("name", ["lone \ud800", "🦊 \udfff"])
def test_half_a_surrogate_pair_anywhere_is_a_question_mark(name):
    context = SpanContext(3, 4, is_remote=True)
    span = a_span(
        name=name,
        attributes={name: name},
        events=[Event(name, {name: name})],
        links=[Link(context, {name: name})],
        status=Status(StatusCode.ERROR, name),
        instrumentation_scope=InstrumentationScope(name, name, name, {name: name}),
    )
    (message,) = read_spans(SHARED.spans([span])).resource_spans[0].scope_spans[0].spans
    assert message.name == message.status.message == name[:-1] + "?"


def test_what_nests_too_deep_becomes_text_at_the_depth_that_a_receiver_takes():
    endless: list[Any] = []
    endless.append(endless)
    for _ in range(200):
        deep: Any = {"d": endless}
        endless[:] = [deep, 1]
    # Reading it back is the proof: protobuf itself refuses what is nested a hundred deep
    shown = value_of(deep)
    assert shown.WhichOneof("value") == "kvlist_value"


def test_a_total_that_64_bits_cannot_hold_is_sent_as_a_float():
    request = ExportMetricsServiceRequest.FromString(SHARED.metrics([a_counter(2**64)]))
    (point,) = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    assert point.as_double == 2.0**64


def test_a_histogram_without_extremes_says_so():
    point = HistogramDataPoint(
        attributes={},
        start_time_unix_nano=1,
        time_unix_nano=2,
        count=1,
        sum=1.0,
        bucket_counts=[1],
        explicit_bounds=[],
        min=math.inf,
        max=-math.inf,
    )
    data = Histogram(data_points=[point], aggregation_temporality=AggregationTemporality.DELTA)
    metric = Metric(name="d", description="", unit="s", data=data)
    body = SHARED.metrics([ScopeMetrics(scope=InstrumentationScope("s"), metrics=[metric], schema_url="")])
    (found,) = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics
    (shown,) = found.histogram.data_points
    assert not shown.HasField("min")
    assert not shown.HasField("max")


@pytest.mark.parametrize(
    "broken",
    [
        {"context": None},
        {"kind": "server"},
        {"start_time": -1},
        {"end_time": 2**64},
        {"context": SpanContext(2**130, 2, is_remote=False)},
        {"status": None},
    ],
    ids=str,
)
def test_a_span_that_cannot_be_encoded_raises_and_leaves_no_trace(broken):
    good = a_span(attributes={"a": 1})
    before = SHARED.spans([good])
    with pytest.raises(Exception):  # noqa: B017 - which one is no promise
        SHARED.spans([good, a_span(**broken)])
    assert SHARED.spans([good]) == before


def test_attributes_that_another_thread_changes_meanwhile_are_read_again():
    class Changing(dict[str, Any]):
        reads = 0

        def items(self) -> Any:
            Changing.reads += 1
            if Changing.reads < 5:
                raise RuntimeError("dictionary changed size during iteration")
            return super().items()

    span = a_span(attributes=Changing(a="b"))
    same(read_spans(SHARED.spans([span])), stock_spans([span]))
    assert Changing.reads > 4


@pytest.mark.parametrize(("size", "pauses"), [(0, 0), (1, 0), (32, 0), (33, 1), (100, 3)])
def test_a_batch_is_encoded_with_pauses(size, pauses):
    taken: list[None] = []
    SHARED.spans([a_span()] * size, lambda: taken.append(None))
    SHARED.logs([a_record(body="x")] * size, lambda: taken.append(None))
    assert len(taken) == 2 * pauses


def test_a_stream_of_unique_keys_and_values_is_not_kept():
    import tracemalloc

    encoder = Encoder(EMPTY, Redactor())

    def encode(of: int) -> None:
        for start in range(of, of + 12_000, 100):
            spans = [
                a_span(
                    name=f"name {n}",
                    attributes={"id": f"{n:064}", f"key.{n}": n, "list": [n]},
                    status=Status(StatusCode.ERROR, f"failed {n}"),
                    instrumentation_scope=InstrumentationScope(f"scope {n}"),
                )
                for n in range(start, start + 100)
            ]
            encoder.spans(spans)

    encode(0)
    tracemalloc.start()
    try:
        encode(100_000)
        encode(200_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4_000_000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("text", "text"),
        (True, True),
        (1, 1),
        (1.5, 1.5),
        (None, ""),
        (2**63, "9223372036854775808"),
        (Decimal("9.90"), "9.90"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (StatusCode.ERROR, 2),
        (b"\xffbytes", "\\xffbytes"),
        ({"a": [1, {"b": None}]}, '{"a": [1, {"b": null}]}'),
        (["a", "b"], ["a", "b"]),
        ([1, True], "[1, true]"),
        ((), "[]"),
        (Odd(), "odd"),
        (Hostile(), "<Hostile without a text form>"),
        ({Hostile(): 1}, "<dict without a text form>"),
        ("lone \ud800", "lone ?"),
        ("x" * 200, "x" * 99 + "…"),
    ],
    ids=repr_safely,
)
def test_a_log_item_may_hold_anything(value, shown):
    encoder = Encoder(EMPTY, Redactor(), max_value_length=100)
    for _ in range(2):
        (log,) = captured_logs(encoder.logs([a_log_item({"a": value}, body=value)]))
        assert log.attributes == {"a": shown}
        assert type(log.attributes["a"]) is type(shown)
        assert log.body == shown


def test_a_log_item_has_what_the_record_of_the_sdk_has():
    scope = InstrumentationScope("orders")
    attributes: dict[str, Any] = {"a": "b", "n": 1, "f": 0.5, "yes": True}
    item = a_log_item(attributes, body="order.placed", scope=scope)
    record = LogRecord(
        timestamp=item.time_ns,
        observed_timestamp=item.time_ns,
        severity_text="INFO",
        severity_number=SeverityNumber.INFO,
        body="order.placed",
        attributes=attributes,
    )
    record.trace_id, record.span_id, record.trace_flags = item.trace_id, item.span_id, TraceFlags(item.trace_flags)
    stock = encode_logs([ReadableLogRecord(log_record=record, resource=EMPTY, instrumentation_scope=scope)])
    same(read_logs(SHARED.logs([item])), stock)


def test_the_attributes_of_a_log_item_may_be_made_when_they_are_needed():
    item = a_log_item({"a": Decimal("9.90")}, body="x")
    made = item._replace(attributes=lambda: {"a": Decimal("9.90")})
    assert SHARED.logs([made]) == SHARED.logs([item])


def test_a_log_item_outside_of_a_span_has_no_ids():
    item = a_log_item({}, body="x")._replace(trace_id=0, span_id=0, trace_flags=0)
    (message,) = read_logs(SHARED.logs([item])).resource_logs[0].scope_logs[0].log_records
    assert (message.trace_id, message.span_id, message.flags) == (b"", b"", 0)


def test_a_stack_trace_keeps_its_end_and_more_of_it_than_other_texts():
    text = "first\n" + "x" * 20_000 + "\nlast"
    (log,) = captured_logs(SMALL.logs([a_log_item({"exception.stacktrace": text, "other": text}, body="x")]))
    assert log.attributes["exception.stacktrace"] == "…" + text[-MAX_STACKTRACE_LENGTH:]
    assert log.attributes["other"] == text[:99] + "…"
    short = text[: MAX_STACKTRACE_LENGTH - 10]
    (log,) = captured_logs(SMALL.logs([a_log_item({"exception.stacktrace": short}, body="x")]))
    assert log.attributes["exception.stacktrace"] == short


def test_keys_that_are_no_texts_become_texts():
    attributes: dict[Any, Any] = {1: "b", None: "c", Hostile(): "d"}
    (log,) = captured_logs(SHARED.logs([a_log_item(attributes, body="x")]))
    assert log.attributes == {"1": "b", "None": "c", "<Hostile without a text form>": "d"}


def test_a_value_that_holds_itself_or_the_same_list_a_million_times_ends():
    loop: list[Any] = [1]
    loop.append(loop)
    bomb: list[Any] = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    (log,) = captured_logs(SHARED.logs([a_log_item({"loop": loop, "bomb": bomb}, body=loop)]))
    assert set(log.attributes) == {"loop", "bomb"}


SECRET = "hunter2hunter2"
_secret_texts = st.sampled_from(
    [
        f"password={SECRET}",
        f"https://user:{SECRET}@example.com/",
        f"Authorization: Bearer {SECRET}",
        f'{{"token": "{SECRET}"}}',
        f"größe, PWD={SECRET}",
    ]
)
_planted = st.recursive(
    _secret_texts
    | _secret_texts.map(str.encode)
    | st.builds(lambda key: {key: SECRET}, st.sampled_from(["password", "x-api-key", "db.token"]))
    | st.builds(lambda text: {text: 1}, _secret_texts),
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(items.keys, inner, min_size=1, max_size=3),
    max_leaves=5,
)
_planted_attributes = st.dictionaries(items.keys, _planted, max_size=2).map(
    lambda planted: {**planted, "password": SECRET, "session_id": [SECRET], "cookie": SECRET.encode()}
)
_planted_scopes = st.builds(
    InstrumentationScope, _secret_texts, _secret_texts, _secret_texts, st.just({"password": SECRET})
)


@many
@given(_planted_attributes, _secret_texts, _planted_scopes, st.booleans())
def test_no_planted_secret_leaves_in_a_span(planted, text, scope, bounded):
    attributes: Any = BoundedAttributes(attributes=planted) if bounded else planted
    encoder = Encoder(Resource({"password": SECRET, "url": text}, text), Redactor())
    span = a_span(
        name=text,
        attributes=attributes,
        events=[Event(text, attributes)],
        links=[Link(SpanContext(3, 4, is_remote=True), attributes)],
        status=Status(StatusCode.ERROR, text),
        instrumentation_scope=scope,
    )
    for _ in range(2):
        body = encoder.spans([span, span])
        assert SECRET.encode() not in body
        assert REDACTED.encode() in body
        read_spans(body)


@many
@given(_planted_attributes, _planted, _secret_texts, _planted_scopes)
def test_no_planted_secret_leaves_in_a_log_record(planted, body_value, text, scope):
    encoder = Encoder(EMPTY, Redactor())
    record = ReadableLogRecord(
        log_record=LogRecord(body=body_value, attributes=planted, severity_text=text, event_name=text),
        resource=EMPTY,
        instrumentation_scope=scope,
    )
    for _ in range(2):
        body = encoder.logs([record, a_record(body=text)])
        assert SECRET.encode() not in body
        read_logs(body)


@many
@given(_planted_attributes, _planted, _secret_texts, _planted_scopes)
def test_no_planted_secret_leaves_in_a_log_item(planted, body_value, text, scope):
    encoder = Encoder(EMPTY, Redactor())
    attributes = {**planted, "set": {text}, "object": Says(text), "password": Says(SECRET), "deep": [{"pwd": SECRET}]}
    for body in (body_value, text, Says(text)):
        item = a_log_item(attributes, body=body, scope=scope)._replace(severity_text=text)
        for _ in range(2):
            encoded = encoder.logs([item])
            assert SECRET.encode() not in encoded
            read_logs(encoded)


@many
@given(_planted_attributes, _secret_texts, _planted_scopes)
def test_no_planted_secret_leaves_in_a_metric(planted, text, scope):
    encoder = Encoder(EMPTY, Redactor())
    point = NumberDataPoint(attributes=planted, start_time_unix_nano=1, time_unix_nano=2, value=1)
    data = Sum(data_points=[point], aggregation_temporality=AggregationTemporality.DELTA, is_monotonic=False)
    metric = Metric(name=text, description=text, unit=text, data=data)
    body = encoder.metrics([ScopeMetrics(scope=scope, metrics=[metric], schema_url="")])
    assert SECRET.encode() not in body
    ExportMetricsServiceRequest.FromString(body)


def test_a_trace_state_is_left_alone():
    state = TraceState([("vendor", "password:abcdefgh")])
    span = a_span(context=SpanContext(1, 2, is_remote=False, trace_state=state))
    same(read_spans(SHARED.spans([span])), stock_spans([span]))


@pytest.mark.parametrize("length", [50, 99, 100, 101, 5_000, 100_000])
@pytest.mark.parametrize("start", [0, 40, 90, 98])
def test_a_secret_across_the_limit_of_a_text_is_not_cut_into_one_that_shows(length, start):
    encoder = Encoder(EMPTY, Redactor(), max_value_length=100)
    text = ("x" * start + f" https://u:{SECRET}@host/ ").ljust(length, "y")
    shown = value_of(text, encoder).string_value
    assert "hunter" not in shown
    assert len(shown) <= 100
    if len(text) > 200:
        assert shown.endswith("…")


def test_a_span_keeps_the_kinds_of_the_api():
    for kind in SpanKind:
        span = a_span(kind=kind)
        same(read_spans(SHARED.spans([span])), stock_spans([span]))
