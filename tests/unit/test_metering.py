"""Every reader of the metrics gets the same numbers, whatever the temporality, and none disturbs another."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from opentelemetry.metrics import Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

import clew
from clew.catalog.kind import Metric
from clew.engine import metrics
from clew.engine.bound import use_exemplar_filter
from clew.engine.instruments import Gauge, Histogram
from clew.engine.metrics import MetricRegistry
from clew.engine.state import state
from clew.pipeline.providers import Pipeline
from clew.settings import Settings
from clew.testing import MemoryTransport, read_attributes

EXPONENTIAL = "base2_exponential_bucket_histogram"
SAMPLED = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
UNSAMPLED = SpanContext(0xABC, 0xDEF, is_remote=False)


class Process:
    """A pipeline and metrics as a process has them, kept apart from the test run's own."""

    def __init__(self, settings: Settings) -> None:
        self.transport = MemoryTransport()
        self.registry = MetricRegistry()
        self.registry.configure(settings, before_collection=lambda: None)
        self.pipeline = Pipeline(settings, metric_source=self.registry, transport=self.transport)
        self.meter = self.pipeline.meter_provider.get_meter("a.library")

    def sent(self) -> list[Any]:
        """Send, and return the metrics of all that was sent since the last call."""
        assert self.pipeline.flush(30.0)
        bodies = self.transport.bodies("metrics")
        self.transport.clear()
        return [
            metric
            for body in bodies
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def points(self, name: str) -> list[Any]:
        return [
            point
            for metric in self.sent()
            if metric.name == name
            for point in getattr(metric, metric.WhichOneof("data")).data_points
        ]


Start = Callable[..., Process]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    started: list[Process] = []

    def begin(**given: Any) -> Process:
        given = {"metric_interval_s": 3600.0, "export_interval_s": 3600.0, **given}
        settings = Settings.load(service_name="t", compression="none", **given)
        process = Process(settings)
        started.append(process)
        monkeypatch.setattr(state, "settings", settings)
        monkeypatch.setattr(state, "pipeline", process.pipeline)
        monkeypatch.setattr(metrics, "registry", process.registry)
        return process

    yield begin
    for process in started:
        process.pipeline.shutdown(5.0)
    use_exemplar_filter("trace_based")


def number(point: Any) -> Any:
    return getattr(point, point.WhichOneof("value"))


def measure_everything(process: Process) -> Callable[[], None]:
    """Return what measures once with every kind of instrument, clew's and libraries'."""
    observed = defaultdict[str, int](int)

    def observe(name: str) -> Callable[[Any], list[Observation]]:
        return lambda _options: [Observation(observed[name], {"k": "v"})]

    meter = process.meter
    lib_counter, lib_up_down = meter.create_counter("lib.counter"), meter.create_up_down_counter("lib.up_down")
    lib_gauge, lib_histogram = meter.create_gauge("lib.gauge"), meter.create_histogram("lib.histogram")
    advised = meter.create_histogram("lib.advised", explicit_bucket_boundaries_advisory=[1, 2, 4])
    meter.create_observable_counter("lib.observable_counter", [observe("counter")])
    meter.create_observable_up_down_counter("lib.observable_up_down", [observe("up_down")])
    meter.create_observable_gauge("lib.observable_gauge", [observe("gauge")])

    def measure() -> None:
        clew.counter("own.counter").add(2, k="v")
        clew.up_down_counter("own.up_down").add(-3, k="v")
        clew.gauge("own.gauge").set(time.monotonic(), k="v")
        for value in (0, 0.25, 3, 300):
            clew.histogram("own.histogram", buckets=(1, 10)).record(value, k="v")
            clew.histogram("own.open").record(value, k="v")
            clew.histogram("own.exponential", buckets="exponential").record(value, k="v")
            lib_histogram.record(value, {"k": "v"})
            advised.record(value, {"k": "v"})
        lib_counter.add(5, {"k": "v"})
        lib_up_down.add(-1, {"k": "v"})
        lib_gauge.set(observed["counter"], {"k": "v"})
        observed["counter"] += 7
        observed["up_down"] -= 2
        observed["gauge"] += 1

    return measure


@pytest.mark.parametrize("aggregation", ["explicit_bucket_histogram", EXPONENTIAL])
@pytest.mark.parametrize("temporality", ["cumulative", "delta", "lowmemory"])
def test_otlp_prometheus_and_the_summary_have_the_same_numbers(start, temporality, aggregation):
    process = start(metrics_temporality=temporality, histogram_aggregation=aggregation)
    measure = measure_everything(process)
    otlp: dict[str, Any] = {}
    for _ in range(3):
        for _ in range(2):
            measure()
            clew.summary()
            clew.prometheus_text()
        for metric in process.sent():
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind)
            (point,) = data.data_points
            if kind.endswith("histogram"):
                buckets = point.positive if kind == "exponential_histogram" else point
                told = [point.count, point.sum, list(buckets.bucket_counts)]
            else:
                told = [number(point)]
            if kind != "gauge" and data.aggregation_temporality == 1 and metric.name in otlp:
                before = otlp[metric.name]
                told = [
                    [a + b for a, b in zip(x, y, strict=True)] if isinstance(x, list) else x + y
                    for x, y in zip(before, told, strict=True)
                ]
            otlp[metric.name] = told
    names = ["counter", "up_down", "gauge", "histogram"]
    expected = {f"own.{name}" for name in [*names, "open", "exponential"]} | {
        f"lib.{name}" for name in [*names, "advised"]
    }
    expected |= {"lib.observable_counter", "lib.observable_up_down", "lib.observable_gauge"}
    summary: dict[str, Any] = {series.name: series for series in clew.summary()}
    text, _ = clew.prometheus_text()
    samples = {
        sample.name: sample.value
        for family in parse_prometheus(text.decode())
        for sample in family.samples
        if sample.labels.get("le", "+Inf") == "+Inf"
    }
    assert otlp.keys() == summary.keys() == expected
    for name, told in otlp.items():
        series, prometheus = summary[name], name.replace(".", "_")
        if series.type == "histogram":
            assert told[:2] == [series.count, series.sum]
            assert sum(told[2]) in (series.count, series.count - 6)  # zeros have a count of their own
            assert samples[f"{prometheus}_count"] == samples[f"{prometheus}_bucket"] == series.count
            assert samples[f"{prometheus}_sum"] == series.sum
            percentiles = [series.p50, series.p95, series.p99]
            assert percentiles == sorted(percentiles)
            assert 0 <= percentiles[0] <= percentiles[-1] <= 300
        else:
            assert told == [series.value]
            assert samples[f"{prometheus}_total" if series.type == "counter" else prometheus] == series.value
    assert summary["own.counter"].value == 12
    assert summary["own.histogram"].count == summary["own.exponential"].count == 24


DELTA = {
    "cumulative": set[str](),
    "delta": {"own.counter", "own.histogram", "lib.counter", "lib.histogram", "lib.advised", "lib.observable_counter"},
    "lowmemory": {"own.counter", "own.histogram", "lib.counter", "lib.histogram", "lib.advised"},
}


@pytest.mark.parametrize("temporality", DELTA)
def test_each_kind_of_instrument_has_the_temporality_that_the_standard_gives_it(start, temporality):
    process = start(metrics_temporality=temporality)
    measure_everything(process)()
    sent = process.sent()
    found = {
        metric.name: getattr(metric, metric.WhichOneof("data")).aggregation_temporality
        for metric in sent
        if metric.WhichOneof("data") != "gauge"
    }
    (advised,) = (metric.histogram.data_points[0] for metric in sent if metric.name == "lib.advised")
    assert list(advised.explicit_bounds) == [1, 2, 4]
    delta = DELTA[temporality]
    if delta:
        delta = delta | {"own.open", "own.exponential"}
    assert {name for name, is_delta in found.items() if is_delta == 1} == delta
    assert all(value in (1, 2) for value in found.values())


def test_the_chosen_aggregation_is_that_of_histograms_for_which_the_app_names_no_buckets(start):
    process = start(histogram_aggregation=EXPONENTIAL)
    measure_everything(process)()
    kinds = {metric.name: metric.WhichOneof("data") for metric in process.sent()}
    assert {name for name, kind in kinds.items() if kind == "exponential_histogram"} == {
        "own.open",
        "own.exponential",
        "lib.histogram",
        "lib.advised",
    }
    assert kinds["own.histogram"] == "histogram"


def test_a_handle_from_before_the_configuration_has_the_buckets_of_the_configuration():
    registry = MetricRegistry()
    histogram = registry.get(
        Histogram, Metric(name="t.early", type="histogram", unit="s", description=""), open_labels=True
    )
    bound = histogram.bind(step="import")
    bound.record(3)
    registry.configure(Settings.load(histogram_aggregation=EXPONENTIAL), before_collection=lambda: None)
    bound.record(3)
    scope = registry.read(1)
    assert scope is not None
    point: Any = scope.metrics[0].data.data_points[0]
    assert point.positive.bucket_counts == (2,)


def test_deltas_abut_and_tell_only_of_what_was_measured(start):
    process = start(metrics_temporality="delta")
    counter = clew.counter("t.abut").bind()
    ends = []
    for amount in (1, 0, 5):
        if amount:
            counter.add(amount)
        ends.append([(p.start_time_unix_nano, p.time_unix_nano, number(p)) for p in process.points("t.abut")])
    assert ends[1] == []
    ((start_ns, end_ns, first),) = ends[0]
    ((second_start_ns, second_end_ns, second),) = ends[2]
    assert (first, second) == (1, 5)
    assert start_ns < end_ns <= second_start_ns < second_end_ns


class Breaks(Gauge):
    broken = True

    def leave(self, now_ns: int, since_ns: int | None) -> Any:
        if self.broken:
            raise RuntimeError("in the middle of a collection")


def test_a_delta_is_neither_lost_nor_sent_twice_when_a_collection_fails(start, caplog):
    process = start(metrics_temporality="delta")
    counter, sizes = clew.counter("t.kept"), clew.histogram("t.kept.sizes")
    library = process.meter.create_counter("lib.kept")
    breaks = process.registry.get(Breaks, Metric(name="t.z", type="gauge", unit="", description=""), open_labels=True)
    for _ in range(3):
        counter.add(1)
        sizes.record(0.2)
        library.add(1)
        assert process.sent() == []
    assert "could not be collected" in caplog.text
    assert clew.summary("t.kept")[0].value == 3
    breaks.broken = False
    counter.add(1)
    sent = {metric.name: metric for metric in process.sent()}
    assert number(sent["t.kept"].sum.data_points[0]) == 4
    assert sent["t.kept.sizes"].histogram.data_points[0].count == 3
    assert number(sent["lib.kept"].sum.data_points[0]) == 3
    assert process.sent() == []


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_nothing_is_lost_between_threads_that_measure_send_and_scrape(start, temporality):
    process = start(metrics_temporality=temporality)
    threads, times = 6, 3_000
    handles: list[Callable[[float], None]] = [
        clew.counter("t.counter").bind().add,
        clew.up_down_counter("t.up_down").bind().add,
        clew.histogram("t.histogram").bind().record,
        clew.histogram("t.exponential", buckets="exponential").bind().record,
        lambda value: clew.counter("t.keyword").add(value, number=404),
        process.meter.create_counter("lib.counter").add,
    ]
    begin, done = threading.Barrier(threads), threading.Event()
    sent = defaultdict[str, float](float)

    def work(_: int) -> None:
        begin.wait()
        for _ in range(times):
            for measure in handles:
                measure(1)

    def scrape() -> None:
        while not done.is_set():
            clew.summary()
            clew.prometheus_text()

    def send() -> None:
        last = False
        while not last:
            last = done.is_set()
            for metric in process.sent():
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                (point,) = data.data_points
                came = point.count if kind.endswith("histogram") else number(point)
                sent[metric.name] = came + (sent[metric.name] if data.aggregation_temporality == 1 else 0)

    readers = [threading.Thread(target=scrape), threading.Thread(target=send)]
    for reader in readers:
        reader.start()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    done.set()
    for reader in readers:
        reader.join()
    expected = threads * times
    names = ["t.counter", "t.up_down", "t.histogram", "t.exponential", "t.keyword", "lib.counter"]
    assert sent == dict.fromkeys(names, expected)
    assert {series.name: series.sum for series in clew.summary()} == dict.fromkeys(names, expected)


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_a_forked_child_begins_at_zero_with_the_handles_of_its_parent(temporality):
    script = """
        import json, os, sys
        import clew
        from opentelemetry import metrics
        counter, sizes = clew.counter("t.counter").bind(k="v"), clew.histogram("t.sizes").bind()
        from clew.engine import runtime
        from clew.settings import Settings
        from clew.testing import MemoryTransport
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
        transport = MemoryTransport()
        runtime.start(Settings.load(service_name="t", compression="none"), transport=transport)
        library = metrics.get_meter("lib").create_counter("lib.counter")

        def measure(times):
            for _ in range(times):
                counter.add(1); sizes.record(0.2); library.add(1)

        def told():
            clew.flush()
            found = {}
            for body in transport.bodies("metrics"):
                for metric in ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics:
                    for one in metric.metrics:
                        if one.name in ("t.counter", "lib.counter"):
                            found.setdefault(one.name, []).append(one.sum.data_points[0].as_int)
                        if one.name == "t.sizes":
                            found.setdefault(one.name, []).append(one.histogram.data_points[0].count)
            return found

        measure(5)
        child = os.fork()
        if child == 0:
            transport.clear()
            measure(2)
            print(json.dumps(told()), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        measure(1)
        print(json.dumps(told()), flush=True)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={"PATH": "/usr/bin", "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": temporality},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    child, parent = (json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{"))
    assert {name: values[-1] for name, values in child.items()} == {"t.counter": 2, "t.sizes": 2, "lib.counter": 2}
    assert {name: values[-1] for name, values in parent.items()} == {"t.counter": 6, "t.sizes": 6, "lib.counter": 6}


def test_a_reset_leaves_handles_valid(start):
    process = start()
    counter, gauge = clew.counter("t.counter").bind(k="v"), clew.gauge("t.gauge").bind()
    sizes = clew.histogram("t.sizes", buckets="exponential").bind()
    for value in (4, 3):
        counter.add(value)
        gauge.set(value)
        sizes.record(value)
        assert {series.name: series.sum for series in clew.summary()} == dict.fromkeys(
            ["t.counter", "t.gauge", "t.sizes"], value
        )
        process.registry.reset()
        assert clew.summary() == []


def test_equal_labels_of_other_types_are_other_labels(start):
    start()
    counter = clew.counter("t.types")
    for _ in range(3):
        for value in (1, True, 1.0, "1", Fraction(1)):
            counter.add(1, value=value)
    assert {
        str(series.labels["value"]) + type(series.labels["value"]).__name__: series.value for series in clew.summary()
    } == {
        "1int": 3,
        "truestr": 3,
        "1.0str": 3,
        "1str": 6,  # a fraction's text is that of the text
    }


def test_hostile_labels_leave_memory_bounded(start):
    start(max_series=50)
    counter = clew.counter("t.hostile", labels=("user",))
    open_counter, sizes = clew.counter("t.hostile.open"), clew.histogram("t.hostile.sizes")

    def attack(first: int) -> None:
        for index in range(first, first + 10_000):
            counter.add(1, user=f"{index}" * 50)
            open_counter.add(1, user=index, other=f"{index}")
            open_counter.add(1, other=f"{index}", user=None)
            sizes.record(1, **{f"label{index}": "x" * 1_000})

    tracemalloc.start()
    try:
        attack(0)
        clew.summary()
        before, _ = tracemalloc.get_traced_memory()
        attack(10_000)
        clew.summary()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200_000
    series = clew.summary()
    assert {s.name: sum(o.sum for o in series if o.name == s.name) for s in series} == {
        "t.hostile": 20_000,
        "t.hostile.open": 40_000,
        "t.hostile.sizes": 20_000,
    }
    assert sum(item.labels == {"otel.metric.overflow": True} for item in series) == 3
    assert len(series) == 150


def test_a_label_named_like_the_overflow_is_not_mixed_up_with_it(start):
    start(max_series=2)
    counter = clew.counter("t.mixed")
    counter.add(1, **{"otel.metric.overflow": 1})
    counter.add(2, k="a")
    assert sorted(series.value for series in clew.summary()) == [1, 2]
    assert b'otel_metric_overflow="true"' in clew.prometheus_text()[0]


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([True, 2], 3),
        ([Decimal("1.5"), Fraction(1, 2)], 2.0),
        ([2**63, 2**63], 2.0**64),
        ([2**63 - 1, 1], 2.0**63),
        ([10**308, 10**308, 0.5], sys.float_info.max),
        ([sys.float_info.max] * 3, sys.float_info.max),
        ([-0.0], 0.0),
    ],
)
def test_any_number_can_be_sent(start, values, total):
    process = start()
    for value in values:
        clew.counter("t.counter").add(value)
        clew.up_down_counter("t.up_down").add(value)
        clew.histogram("t.histogram").record(value)
        clew.histogram("t.exponential", buckets="exponential").record(-value)
        clew.gauge("t.gauge").set(value)
    sent = {metric.name: metric for metric in process.sent()}
    assert number(sent["t.counter"].sum.data_points[0]) == total
    assert number(sent["t.up_down"].sum.data_points[0]) == total
    assert sent["t.histogram"].histogram.data_points[0].sum == total
    assert sent["t.exponential"].exponential_histogram.data_points[0].sum == -total
    assert number(sent["t.gauge"].gauge.data_points[0]) == float(values[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "3", b"3", None, [], object()])
def test_what_is_no_finite_number_is_left_out_and_counted(start, value):
    start()
    clew.diagnostics.forget()
    clew.diagnostics.set_strict(strict=False)
    try:
        clew.counter("t.counter").add(value)
        clew.up_down_counter("t.up_down").add(value)
        clew.histogram("t.histogram").record(value)
        clew.histogram("t.exponential", buckets="exponential").record(value)
        clew.gauge("t.gauge").set(value)
        assert clew.summary() == []
        assert sum(clew.diagnostics.problems().values()) == 5
    finally:
        clew.diagnostics.forget()


def exemplars(process: Process) -> dict[str, list[tuple[float, str]]]:
    return {
        metric.name: [
            (getattr(exemplar, exemplar.WhichOneof("value")), exemplar.trace_id.hex())
            for point in getattr(metric, metric.WhichOneof("data")).data_points
            for exemplar in point.exemplars
        ]
        for metric in process.sent()
    }


@pytest.mark.parametrize(
    ("chosen", "in_sampled", "in_unsampled", "in_none"),
    [
        ("trace_based", True, False, False),
        ("always_on", True, True, True),
        ("always_off", False, False, False),
    ],
)
def test_the_filter_says_which_measurements_become_exemplars(start, chosen, in_sampled, in_unsampled, in_none):
    process = start(exemplar_filter=chosen)
    library = process.meter.create_counter("lib.counter")
    own = [
        clew.counter("t.counter").add,
        clew.histogram("t.histogram").record,
        clew.histogram("t.exponential", buckets="exponential").record,
        library.add,
    ]
    for span_context, wanted in ((SAMPLED, in_sampled), (UNSAMPLED, in_unsampled), (None, in_none)):
        for measure in own:
            if span_context is None:
                measure(0.25)
            else:
                with use_span(NonRecordingSpan(span_context)):
                    measure(0.25)
        # A scrape takes nothing from what is sent
        clew.prometheus_text("application/openmetrics-text")
        found = exemplars(process)
        trace_id = f"{0xABC:032x}" if span_context is not None else ""
        assert found == dict.fromkeys(
            ["t.counter", "t.histogram", "t.exponential", "lib.counter"], [(0.25, trace_id)] if wanted else []
        )


def test_an_exemplar_is_kept_for_each_bucket_and_shown_until_there_is_another(start):
    process = start()
    sizes = clew.histogram("t.sizes", buckets=(1, 10)).bind()
    began_ns = time.time_ns()
    for value in (0.5, 0.7, 5, 50, 70):
        sizes.record_in(value, SAMPLED)
    sizes.record_in(0.1, UNSAMPLED)
    sizes.record_in(0.1, None)
    text, _ = clew.prometheus_text("application/openmetrics-text")
    assert text.count(b"trace_id") == 3
    (point,) = process.points("t.sizes")
    assert sorted(exemplar.as_double or exemplar.as_int for exemplar in point.exemplars) == [0.5, 5, 50]
    assert all(began_ns <= exemplar.time_unix_nano <= time.time_ns() for exemplar in point.exemplars)
    assert list(process.points("t.sizes")[0].exemplars) == []
    assert clew.prometheus_text("application/openmetrics-text")[0].count(b"trace_id") == 3
    assert read_attributes(point.attributes) == {}


def test_percentiles_of_an_exponential_histogram_are_close(start):
    start()
    sizes = clew.histogram("t.sizes", buckets="exponential")
    for value in range(-1_000, 10_001):
        sizes.record(value / 10)
    (series,) = clew.summary()
    assert series.count == 11_001
    assert series.p50 == pytest.approx(450, rel=0.05)
    assert series.p95 == pytest.approx(945, rel=0.05)
    assert series.p99 == pytest.approx(989, rel=0.05)


def test_buckets_that_are_none_are_reported(start):
    start()
    clew.diagnostics.set_strict(strict=True)
    try:
        with pytest.raises(clew.ClewError, match="its buckets must be numbers, or 'exponential', not 'wide'"):
            clew.histogram("t.wide", buckets="wide")  # type: ignore[arg-type]
        with pytest.raises(clew.ClewError, match="its buckets must be numbers"):
            clew.histogram("t.mixed", buckets=(1, "two"))  # type: ignore[arg-type]
    finally:
        clew.diagnostics.set_strict(strict=False)
