"""clew's instruments and the SDK's come to the same points, whatever is measured and whoever reads in between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import Counter as SdkCounter
from opentelemetry.sdk.metrics import Histogram as SdkHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics import UpDownCounter as SdkUpDownCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    InMemoryMetricReader,
    MetricReader,
)
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)

from clew.catalog.kind import SECONDS_BUCKETS, Metric
from clew.engine.aggregation import bucket_of, upper_bound
from clew.engine.instruments import Counter, Gauge, Histogram, UpDownCounter
from clew.engine.metrics import MetricRegistry

LIMIT = 4
LABELS = st.sampled_from(["a", "b", "c", 7])
# Sums of these are exact in any order, so that they can be compared
EXACT = st.integers(-(2**30), 2**30) | st.integers(-(2**30), 2**30).map(lambda number: number / 1024)
WIDE = EXACT | st.floats(1e-300, 1e300).map(lambda number: math.ldexp(1.0, math.frexp(number)[1]))
READ, SEND = "read", "send"
UNTIMED = settings(deadline=None, max_examples=80)


def steps(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.tuples(LABELS, values) | st.sampled_from([READ, SEND]), max_size=60)


class Sdk:
    """The SDK's instruments with one reader that reads everything so far, and one that sends."""

    def __init__(self, *, delta: bool) -> None:
        self.reading = InMemoryMetricReader()
        kinds = (SdkCounter, SdkHistogram)
        # The SDK's histograms refuse negative measurements, but its up-down counters can be aggregated like them
        self.sending = InMemoryMetricReader(
            preferred_temporality={
                **dict.fromkeys(kinds, AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE),
            }
        )
        self.sending_histograms = InMemoryMetricReader(
            preferred_temporality={
                SdkUpDownCounter: AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
            }
        )
        provider = MeterProvider(
            metric_readers=[self.reading, self.sending, self.sending_histograms],
            views=[
                View(instrument_name="t.histogram", aggregation=ExplicitBucketHistogramAggregation(SECONDS_BUCKETS)),
                View(instrument_name="t.exponential", aggregation=ExponentialBucketHistogramAggregation()),
            ],
            shutdown_on_exit=False,
        )
        meter = provider.get_meter("sdk")
        histogram = meter.create_up_down_counter("t.histogram")
        exponential = meter.create_up_down_counter("t.exponential")
        self.take: dict[str, Any] = {
            "t.counter": meter.create_counter("t.counter").add,
            "t.up_down": meter.create_up_down_counter("t.up_down").add,
            "t.gauge": meter.create_gauge("t.gauge").set,
            "t.histogram": histogram.add,
            "t.exponential": exponential.add,
        }

    def measure(self, name: str, label: Any, value: float) -> None:
        self.take[name](value, {"label": label})

    def points(self, how: str, name: str) -> list[Any]:
        reader: InMemoryMetricReader = self.reading
        if how == SEND:
            reader = self.sending_histograms if name in ("t.histogram", "t.exponential") else self.sending
        return _points(reader, name)


class Clew:
    """clew's instruments, in a registry of their own."""

    def __init__(self, *, delta: bool) -> None:
        self.delta = delta
        self.registry = MetricRegistry()
        self.now_ns = 4 * 10**18
        declare = self.registry.get

        def metric(name: str, kind: Any, *, exponential: bool | None = None) -> Metric:
            return Metric(name=name, type=kind, unit="", description="", exponential=exponential)

        histogram = declare(Histogram, metric("t.histogram", "histogram"), open_labels=True)
        exponential = declare(Histogram, metric("t.exponential", "histogram", exponential=True), open_labels=True)
        self.take: dict[str, Any] = {
            "t.counter": declare(Counter, metric("t.counter", "counter"), open_labels=True).add,
            "t.up_down": declare(UpDownCounter, metric("t.up_down", "up_down_counter"), open_labels=True).add,
            "t.gauge": declare(Gauge, metric("t.gauge", "gauge"), open_labels=True).set,
            "t.histogram": histogram.record,
            "t.exponential": exponential.record,
        }

    def measure(self, name: str, label: Any, value: float) -> None:
        self.take[name](value, label=label)

    def points(self, how: str, name: str) -> list[Any]:
        self.now_ns += 1_000
        if how == READ:
            scope = self.registry.read(self.now_ns)
        else:
            scope = self.registry.leave(self.now_ns, delta=self.delta)
            self.registry.left()
        metrics = scope.metrics if scope is not None else []
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


def _points(reader: MetricReader, name: str) -> list[Any]:
    assert isinstance(reader, InMemoryMetricReader)
    data: Any = reader.get_metrics_data()
    return [
        point
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def buckets(offset: int, counts: Any) -> dict[int, int]:
    return {index: count for index, count in enumerate(counts, offset) if count}


def told(point: Any) -> Any:
    """What a point says, its buckets by index."""
    if isinstance(point, ExponentialHistogramDataPoint):
        return (
            point.count,
            point.sum,
            point.min,
            point.max,
            point.zero_count,
            point.scale,
            buckets(point.positive.offset, point.positive.bucket_counts),
            buckets(point.negative.offset, point.negative.bucket_counts),
        )
    if isinstance(point, HistogramDataPoint):
        return (point.count, point.sum, point.min, point.max, *point.bucket_counts, *point.explicit_bounds)
    return point.value


def by_label(points: list[Any]) -> dict[Any, Any]:
    found = {tuple(sorted(point.attributes.items())): point for point in points}
    assert len(found) == len(points)
    return found


def play(name: str, script: list[Any], *, delta: bool) -> Iterator[tuple[dict[Any, Any], dict[Any, Any]]]:
    ours, theirs = Clew(delta=delta), Sdk(delta=delta)
    for step in [*script, READ, SEND, SEND]:
        if isinstance(step, str):
            yield by_label(ours.points(step, name)), by_label(theirs.points(step, name))
        else:
            label, value = step
            ours.measure(name, label, value)
            theirs.measure(name, label, value)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("name", ["t.up_down", "t.histogram"])
@UNTIMED
@given(script=steps(EXACT))
def test_sums_and_buckets_are_the_same(script, name, delta):
    for ours, theirs in play(name, script, delta=delta):
        assert {key: told(point) for key, point in ours.items()} == {key: told(point) for key, point in theirs.items()}


@pytest.mark.parametrize("delta", [False, True])
@UNTIMED
@given(script=steps(EXACT.map(abs)))
def test_counters_are_the_same(script, delta):
    for ours, theirs in play("t.counter", script, delta=delta):
        assert {key: told(point) for key, point in ours.items()} == {key: told(point) for key, point in theirs.items()}


@UNTIMED
@given(script=steps(EXACT))
def test_gauges_are_the_same(script):
    for ours, theirs in play("t.gauge", script, delta=False):
        assert {key: told(point) for key, point in ours.items()} == {key: told(point) for key, point in theirs.items()}


@pytest.mark.parametrize("delta", [False, True])
@UNTIMED
@given(script=steps(EXACT | WIDE))
def test_exponential_buckets_are_the_same(script, delta):
    # The SDK collects once, all that a point of clew's is about: where it puts collections together, it fails once a sign appears
    # that was not there before, and stays at scale 0 once there were only zeros
    ours, everything, since = Clew(delta=delta), list[Any](), list[Any]()
    for step in [*script, READ, SEND, SEND]:
        if not isinstance(step, str):
            ours.measure("t.exponential", *step)
            everything.append(step)
            since.append(step)
            continue
        theirs = Sdk(delta=False)
        for label, value in since if delta and step == SEND else everything:
            theirs.measure("t.exponential", label, value)
        if step == SEND:
            since.clear()
        mine = {key: told(point) for key, point in by_label(ours.points(step, "t.exponential")).items()}
        its = {key: told(point) for key, point in by_label(theirs.points(READ, "t.exponential")).items()}
        assert mine.keys() == its.keys()
        for key, (count, total, *rest) in mine.items():
            assert (count, *rest) == (its[key][0], *its[key][2:])
            assert total == pytest.approx(its[key][1])


@UNTIMED
@given(value=st.floats(2.3e-308, 1.79e308), scale=st.integers(-10, 20))
def test_a_measurement_lies_within_the_bounds_of_its_bucket(value, scale):
    index = bucket_of(value, scale)
    # A logarithm is exact to the last digits only
    assert upper_bound(index - 1, scale) * (1 - 1e-12) <= value <= upper_bound(index, scale) * (1 + 1e-12)


@UNTIMED
@given(exponent=st.integers(-1022, 1023), scale=st.integers(-10, 20))
def test_a_power_of_two_is_its_buckets_upper_bound(exponent, scale):
    index = bucket_of(math.ldexp(1.0, exponent), scale)
    assert index == ((exponent << scale) - 1 if scale > 0 else (exponent - 1) >> -scale)


@UNTIMED
@given(labels=st.lists(st.integers(0, 12), max_size=60))
def test_too_many_series_overflow_as_the_sdks_do(labels):
    reader = InMemoryMetricReader(cardinality_limits={SdkCounter: LIMIT - 1})
    theirs = MeterProvider(metric_readers=[reader], shutdown_on_exit=False).get_meter("sdk").create_counter("t.counter")
    ours = Clew(delta=False)
    ours.registry.max_series = LIMIT
    for label in labels:
        theirs.add(1, {"label": label})
        ours.measure("t.counter", label, 1)
    sdk = {key: told(point) for key, point in by_label(_points(reader, "t.counter")).items()}
    assert {key: told(point) for key, point in by_label(ours.points(READ, "t.counter")).items()} == sdk
    assert len(sdk) <= LIMIT


@UNTIMED
@given(script=steps(EXACT.map(abs)))
def test_deltas_abut_and_come_to_the_total(script):
    ours = Clew(delta=True)
    began_ns, came_to = ours.registry._left_ns, dict[Any, float]()
    for step in [*script, SEND]:
        if step == SEND:
            points = ours.points(SEND, "t.counter")
            for point in points:
                assert (point.start_time_unix_nano, point.time_unix_nano) == (began_ns, ours.now_ns)
                key = point.attributes["label"]
                came_to[key] = came_to.get(key, 0) + point.value
            began_ns = ours.now_ns
        elif step == READ:
            ours.points(READ, "t.counter")
        else:
            ours.measure("t.counter", *step)
    assert came_to == {point.attributes["label"]: point.value for point in ours.points(READ, "t.counter")}
