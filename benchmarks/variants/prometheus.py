"""prometheus_client, and the FastAPI instrumentator over it: metrics only, read by a scrape."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_fastapi_instrumentator import Instrumentator

from benchmarks.variants.parts import Labels, Operations, Options, Served
from benchmarks.variants.shop import shop


def request(_options: Options) -> Served:
    """Return the app with the instrumentator's default metrics."""
    app = shop()
    Instrumentator().instrument(app)
    return Served(app=app)


def operations(_options: Options) -> Operations:
    """Return its metrics, bound and by keyword."""
    registry = CollectorRegistry()
    counter = Counter("bench_orders", "Orders", ["channel", "kind"], registry=registry)
    histogram = Histogram("bench_duration", "Duration", ["channel", "kind"], registry=registry)
    bound_counter = counter.labels(channel="web", kind="new")
    bound_histogram = histogram.labels(channel="web", kind="new")
    return Operations(
        each={
            "counter, bound": lambda: bound_counter.inc(1),
            "counter, by keyword": lambda: counter.labels(channel="web", kind="new").inc(1),
            "histogram, bound": lambda: bound_histogram.observe(0.25),
        }
    )


def labels(_options: Options) -> Labels:
    """Return a counter and a histogram of one label."""
    counter = Counter("bench_orders", "Orders", ["customer"])
    histogram = Histogram("bench_duration", "Duration", ["customer"])

    def add(value: str) -> None:
        counter.labels(customer=value).inc(1)
        histogram.labels(customer=value).observe(0.25)

    return Labels(add=add)
