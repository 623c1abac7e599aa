"""Arbitrary spans, log records and metric points, as the SDK's own types."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Buckets as ExponentialBuckets
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

times_ns = st.none() | st.integers(0, 2**64 - 1)
trace_ids = st.integers(1, 2**128 - 1)
span_ids = st.integers(1, 2**64 - 1)
names = st.sampled_from(["GET /orders/{id}", "größer ✓", ""]) | st.text()
keys = st.sampled_from(["http.route", "n", "größe", "exception.stacktrace"]) | st.text(min_size=1)
int64s = st.sampled_from([-(2**63), -1, 0, 1, 127, 128, 2**31, 2**53 + 1, 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
floats = st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), -float("inf")]) | st.floats()
scalars = (
    st.none()
    | st.booleans()
    | int64s
    | floats
    | st.sampled_from(["", "1", "True", "GET", "ü" * 100])
    | st.text()
    | st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=6,
)
plain_attributes = st.dictionaries(keys, values, max_size=4)


@st.composite
def attributes(draw: st.DrawFn) -> Any:
    """Attributes as a plain dictionary, or as the SDK keeps them, with some dropped."""
    plain = draw(plain_attributes)
    kind = draw(st.sampled_from(["none", "plain", "bounded", "dropped"]))
    if kind == "none":
        return None
    if kind == "plain":
        return plain
    return BoundedAttributes(maxlen=2 if kind == "dropped" else None, attributes=plain, immutable=draw(st.booleans()))


# Two that are equal and not the same one, and several that differ in one thing
_SCOPES = [
    InstrumentationScope("clew", "1.0", "https://example.com/schema/1"),
    InstrumentationScope("clew", "1.0", "https://example.com/schema/1"),
    InstrumentationScope("clew", "1.0", "https://example.com/schema/2"),
    InstrumentationScope("clew", "1.1"),
    InstrumentationScope("clew"),
    InstrumentationScope("größer", attributes={"a": [1, 2], "b": "c"}),
    InstrumentationScope("größer", attributes={"a": [1, 3], "b": "c"}),
    InstrumentationScope(""),
]
scopes = st.sampled_from(_SCOPES)
resources = st.builds(
    Resource, st.dictionaries(keys, scalars, max_size=4), st.sampled_from(["", "https://example.com/schema/3"])
)

_trace_states = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_*/-]{0,8}", fullmatch=True),
    st.from_regex(r"[!-+\--<>-~]{1,8}", fullmatch=True),
    max_size=3,
).map(lambda entries: TraceState(list(entries.items())))
_contexts = st.builds(
    SpanContext,
    trace_ids,
    span_ids,
    st.booleans(),
    st.integers(0, 255).map(TraceFlags),
    st.none() | _trace_states,
)
_events = st.builds(Event, names, attributes(), times_ns.filter(lambda at_ns: at_ns is not None))
_links = st.builds(Link, _contexts, attributes())
_statuses = st.one_of(
    st.sampled_from([Status(StatusCode.UNSET), Status(StatusCode.OK)]),
    st.builds(Status, st.just(StatusCode.ERROR), st.none() | st.text()),
)


@st.composite
def _some_of(draw: st.DrawFn, items: st.SearchStrategy[Any]) -> Any:
    drawn = draw(st.lists(items, max_size=3))
    return BoundedList.from_seq(draw(st.sampled_from([1, 8])), drawn) if draw(st.booleans()) else drawn


spans = st.builds(
    ReadableSpan,
    names,
    context=_contexts,
    parent=st.none() | _contexts,
    resource=st.just(Resource.get_empty()),
    attributes=attributes(),
    events=_some_of(_events),
    links=_some_of(_links),
    kind=st.sampled_from(SpanKind),
    status=_statuses,
    start_time=times_ns,
    end_time=times_ns,
    instrumentation_scope=st.none() | scopes,
)


@st.composite
def log_records(draw: st.DrawFn) -> ReadableLogRecord:
    """A log record as the SDK hands it on."""
    record = LogRecord(
        timestamp=draw(times_ns),
        observed_timestamp=draw(times_ns),
        severity_text=draw(st.none() | names),
        severity_number=draw(st.none() | st.sampled_from(SeverityNumber)),
        body=draw(values),
        attributes=draw(attributes()),
        event_name=draw(st.none() | names),
    )
    record.trace_id = draw(st.just(0) | trace_ids)
    record.span_id = draw(st.just(0) | span_ids)
    record.trace_flags = draw(st.integers(0, 255).map(TraceFlags))
    return ReadableLogRecord(
        log_record=record, resource=Resource.get_empty(), instrumentation_scope=draw(st.none() | scopes)
    )


# How values nest is the same in every signal: here they are flat
labels = st.none() | st.dictionaries(keys, scalars, max_size=3)
_point_times_ns = st.integers(0, 2**64 - 1)
_counts = st.integers(0, 2**64 - 1)
_exemplars = st.lists(
    st.builds(
        Exemplar,
        labels,
        int64s | floats,
        _point_times_ns,
        st.none() | span_ids,
        st.none() | trace_ids,
    ),
    max_size=2,
)
_temporalities = st.sampled_from(AggregationTemporality)
_numbers = st.builds(NumberDataPoint, labels, times_ns, _point_times_ns, int64s | floats, _exemplars)


@st.composite
def _histogram_points(draw: st.DrawFn) -> HistogramDataPoint:
    bounds = draw(st.lists(floats, max_size=4))
    counts = draw(st.lists(_counts, min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    return HistogramDataPoint(
        attributes=draw(labels),
        start_time_unix_nano=draw(_point_times_ns),
        time_unix_nano=draw(_point_times_ns),
        count=draw(_counts),
        sum=draw(floats | int64s),
        bucket_counts=tuple(counts),
        explicit_bounds=bounds,
        min=draw(floats),
        max=draw(floats),
        exemplars=draw(_exemplars),
    )


_buckets = st.builds(ExponentialBuckets, st.integers(-(2**31), 2**31 - 1), st.lists(_counts, max_size=4))
_exponential_points = st.builds(
    ExponentialHistogramDataPoint,
    attributes=labels,
    start_time_unix_nano=_point_times_ns,
    time_unix_nano=_point_times_ns,
    count=_counts,
    sum=floats | int64s,
    scale=st.integers(-10, 20),
    zero_count=_counts,
    positive=_buckets,
    negative=_buckets,
    flags=st.integers(0, 1),
    min=floats,
    max=floats,
    exemplars=_exemplars,
)
metrics = st.builds(
    Metric,
    name=names,
    description=names,
    unit=st.sampled_from(["", "s", "{request}"]),
    data=st.one_of(
        st.builds(Gauge, st.lists(_numbers, max_size=2)),
        st.builds(Sum, st.lists(_numbers, max_size=2), _temporalities, st.booleans()),
        st.builds(Histogram, st.lists(_histogram_points(), max_size=2), _temporalities),
        st.builds(ExponentialHistogram, st.lists(_exponential_points, max_size=2), _temporalities),
    ),
)
scope_metrics = st.builds(
    lambda scope, found: ScopeMetrics(scope=scope, metrics=found, schema_url=scope.schema_url),
    scopes,
    st.lists(metrics, max_size=2),
)
