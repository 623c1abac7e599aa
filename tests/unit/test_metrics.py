from __future__ import annotations

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import metrics as otel_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

import clew
from clew.engine.metrics import registry


def test_counters_count_by_label(captured_telemetry):
    orders = clew.counter("t.orders", unit="{order}", labels=("channel",))
    orders.add(1, channel="web")
    orders.bind(channel="web").add(2)
    orders.add(5, channel="shop")
    assert captured_telemetry.metric("t.orders", channel="web").value == 3
    assert captured_telemetry.metric("t.orders", channel="shop").value == 5
    assert clew.counter("t.orders") is orders


def test_a_counter_does_not_go_down(captured_telemetry):
    counter = clew.counter("t.down")
    with pytest.raises(clew.ClewError, match="can't go down"):
        counter.add(-1)
    clew.diagnostics.set_strict(strict=False)
    counter.add(-1)
    counter.add("three")  # type: ignore[arg-type]
    counter.add(math.nan)
    counter.add(2)
    assert captured_telemetry.metric("t.down").value == 2
    assert clew.diagnostics.problems() == {"metric t.down": 4}


def test_up_down_counters_and_gauges(captured_telemetry):
    active = clew.up_down_counter("t.active")
    active.add(3)
    active.add(-1)
    depth = clew.gauge("t.depth", unit="{message}")
    depth.set(7)
    depth.set(4.5)
    assert captured_telemetry.metric("t.active").value == 2
    assert captured_telemetry.metric("t.depth").value == 4.5


def test_a_series_of_a_gauge_that_is_removed_is_told_nowhere_until_it_is_set_again(captured_telemetry):
    depth = clew.gauge("t.depth", labels=("queue",))
    bound = depth.bind(queue="mail")
    bound.set(7)
    depth.set(1, queue="news")

    def told():
        now_ns = time.time_ns()
        # What is sent, what is scraped, what the process says of itself
        left: Any = registry.leave(now_ns, delta=True)
        (sent,) = [metric for metric in left.metrics if metric.name == "t.depth"]
        scraped = clew.prometheus_text()[0].decode()
        return (
            {point.attributes["queue"]: point.value for point in sent.data.data_points},
            {name for name in ("mail", "news") if f't_depth{{queue="{name}"}}' in scraped},
            {series.labels["queue"]: series.value for series in clew.summary("t.depth")},
        )

    assert told() == ({"mail": 7, "news": 1}, {"mail", "news"}, {"mail": 7, "news": 1})
    depth.remove(queue="mail")
    assert told() == ({"news": 1}, {"news"}, {"news": 1})
    bound.set(3)
    assert told() == ({"mail": 3, "news": 1}, {"mail", "news"}, {"mail": 3, "news": 1})


def test_a_histogram_summarises_its_measurements(captured_telemetry):
    sizes = clew.histogram("t.sizes", unit="By", buckets=range(0, 1001, 10))
    for value in range(1, 1001):
        sizes.record(value)
    series = captured_telemetry.metric("t.sizes")
    assert (series.count, series.sum) == (1000, 500_500)
    assert series.p50 == pytest.approx(500, abs=10)
    assert series.p95 == pytest.approx(950, abs=10)
    assert series.p99 == pytest.approx(990, abs=10)


@pytest.mark.parametrize("values", [[0.003], [20.0], [0.003, 20.0], [0.0], [-5.0, 5.0]])
def test_percentiles_stay_between_the_least_and_the_greatest(captured_telemetry, values):
    latency = clew.histogram("t.latency", unit="s")
    for value in values:
        latency.record(value)
    series = captured_telemetry.metric("t.latency")
    assert series.p50 is not None
    assert series.p99 is not None
    assert min(values) <= series.p50 <= series.p99 <= max(values)


def test_what_is_not_finite_is_left_out(captured_telemetry):
    clew.diagnostics.set_strict(strict=False)
    sizes = clew.histogram("t.finite")
    for value in (math.nan, math.inf, -math.inf, "x", None):
        sizes.record(value)  # type: ignore[arg-type]
    sizes.record(1)
    assert captured_telemetry.metric("t.finite").count == 1


def test_timers_time_blocks_functions_and_coroutines(captured_telemetry):
    with clew.timer("t.timed", step="block") as timer:
        pass
    assert timer.duration_s > 0

    @clew.timer("t.timed", step="function")
    def function():
        return 1

    @clew.timer("t.timed", step="coroutine")
    async def coroutine():
        await asyncio.sleep(0.01)
        return 2

    assert (function(), function(), asyncio.run(coroutine())) == (1, 1, 2)
    assert captured_telemetry.metric("t.timed", step="function").count == 2
    assert captured_telemetry.metric("t.timed", step="coroutine").sum >= 0.01
    assert captured_telemetry.metric("t.timed", step="block").unit == "s"


def test_a_label_that_was_not_declared_is_left_out_and_reported(captured_telemetry):
    counter = clew.counter("t.declared", labels=("channel",))
    with pytest.raises(clew.ClewError, match="user: not among the labels it was declared with"):
        counter.add(1, channel="web", user="u-1")
    clew.diagnostics.set_strict(strict=False)
    counter.add(1, channel="web", user="u-1")
    assert captured_telemetry.metric("t.declared").labels == {"channel": "web"}


@pytest.mark.parametrize(
    ("given", "kept"), [(True, "true"), (404, 404), (None, ""), (1.5, "1.5"), ("x" * 10_000_000, "x" * 255 + "…")]
)
def test_label_values_are_short_texts_or_integers(captured_telemetry, given, kept):
    clew.counter("t.labels").add(1, value=given)
    assert captured_telemetry.metric("t.labels").labels == {"value": kept}


def test_too_many_series_overflow_into_one(captured_telemetry, monkeypatch):
    monkeypatch.setattr(registry, "max_series", 10)
    counter = clew.counter("t.overflow")
    for number in range(1_000):
        counter.add(1, user=f"u-{number}")
    series = [item for item in captured_telemetry.metrics if item.name == "t.overflow"]
    assert len(series) == 10
    assert sum(item.value for item in series) == 1_000
    assert [item.value for item in series if item.labels == {"otel.metric.overflow": True}] == [991]


def test_a_name_of_another_kind_is_reported(captured_telemetry):
    clew.counter("t.kind").add(1)
    with pytest.raises(clew.ClewError, match="is a Counter already and can't be a Gauge"):
        clew.gauge("t.kind")
    clew.diagnostics.set_strict(strict=False)
    clew.gauge("t.kind").set(5)
    assert captured_telemetry.metric("t.kind").value == 1


def test_no_increment_is_lost_between_threads(captured_telemetry):
    counter, sizes = clew.counter("t.threads"), clew.histogram("t.threads.size")
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for _ in range(2_000):
            counter.add(1, thread="same")
            sizes.record(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert captured_telemetry.metric("t.threads").value == 16_000
    assert captured_telemetry.metric("t.threads.size").count == 16_000


def test_prometheus_has_the_same_numbers(captured_telemetry):
    clew.counter("t.orders.placed", unit="{order}", description="Orders").add(3, channel='we"b\n')
    clew.gauge("t.temperature", unit="Cel").set(-3.5)
    latency = clew.histogram("t.latency.seconds", unit="s", buckets=(0.1, 1))
    with clew.span("traced") as span:
        latency.record(0.5)
    otel_metrics.get_meter("a.library").create_counter("t.library.calls").add(4, {"a.b": "c"})
    text, content_type = clew.prometheus_text()
    assert content_type.startswith("text/plain")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_prometheus(text.decode())
        for sample in family.samples
    }
    assert samples["t_orders_placed_total", (("channel", 'we"b\n'),)] == 3
    assert samples["t_temperature_Cel", ()] == -3.5
    assert samples["t_latency_seconds_count", ()] == 1
    assert samples["t_latency_seconds_bucket", (("le", "0.1"),)] == 0
    assert samples["t_latency_seconds_bucket", (("le", "1.0"),)] == 1
    assert samples["t_library_calls_total", (("a_b", "c"),)] == 4
    text, content_type = clew.prometheus_text("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    exemplars = [
        sample.exemplar.labels["trace_id"]
        for family in parse_openmetrics(text.decode())
        for sample in family.samples
        if sample.name == "t_latency_seconds_bucket" and sample.exemplar
    ]
    assert exemplars == [span.trace_id]


def test_instruments_of_libraries_are_in_the_summary(captured_telemetry):
    meter = otel_metrics.get_meter("a.library")
    meter.create_histogram("t.library.duration", unit="s").record(0.2, {"peer": "db"})
    assert captured_telemetry.metric("t.library.duration", peer="db").count == 1
