"""The metrics' way out: what the engine counts and what libraries count, read by anybody and sent with the chosen temporality."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, Protocol

from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    Counter,
    Exemplar,
    ExemplarFilter,
    Histogram,
    MeterProvider,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    TraceBasedExemplarFilter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricReader, MetricsData, ScopeMetrics
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource

from clew import clock
from clew.settings import Settings, Temporality

logger = logging.getLogger("clew.pipeline")

_LIMITED: Final = (
    Counter,
    UpDownCounter,
    Histogram,
    ObservableCounter,
    ObservableUpDownCounter,
    ObservableGauge,
)
_DELTA: Final[dict[Temporality, tuple[type, ...]]] = {
    "cumulative": (),
    "delta": (Counter, Histogram, ObservableCounter),
    "lowmemory": (Counter, Histogram),
}
"""The instruments whose points tell of what came since the last ones.

Source: https://opentelemetry.io/docs/specs/otel/metrics/sdk_exporters/otlp/#additional-environment-variable-configuration
"""
_MOST_EXEMPLARS: Final = 20
_EXEMPLAR_FILTERS: Final[dict[str, Callable[[], ExemplarFilter]]] = {
    "trace_based": TraceBasedExemplarFilter,
    "always_on": AlwaysOnExemplarFilter,
    "always_off": AlwaysOffExemplarFilter,
}


class MetricSource(Protocol):
    """The engine's own metrics, read in two ways that do not disturb each other."""

    def read(self, now_ns: int) -> ScopeMetrics | None:
        """Return the points of everything so far, or ``None``."""

    def leave(self, now_ns: int, *, delta: bool) -> ScopeMetrics | None:
        """Return the points to be sent, or ``None``; until :meth:`left` is called, they are part of the next ones as well."""

    def left(self) -> None:
        """Take note that what :meth:`leave` returned is on its way."""


class _PulledMetricReader(MetricReader):
    """Collects the instruments that libraries make, when the worker or a scrape asks."""

    def __init__(self, settings: Settings, temporality: Temporality) -> None:
        exponential = settings.histogram_aggregation == "base2_exponential_bucket_histogram"
        super().__init__(
            preferred_temporality=dict.fromkeys(_DELTA[temporality], AggregationTemporality.DELTA),
            preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()} if exponential else None,
            cardinality_limits=dict.fromkeys(_LIMITED, settings.max_series),
        )
        self._latest: MetricsData | None = None

    def scopes(self) -> list[ScopeMetrics]:
        self._latest = None
        self.collect()
        latest = self._latest
        return [scope for resource in latest.resource_metrics for scope in resource.scope_metrics] if latest else []

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self._latest = metrics_data

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Nothing to let go of."""


class _UnsentExemplars:
    """The exemplars of libraries that went to somebody who read: the SDK forgets them when they are read, and they are to be sent."""

    def __init__(self) -> None:
        self._by_point: dict[tuple[str, str, str], list[Exemplar]] = {}

    def keep(self, scopes: list[ScopeMetrics]) -> None:
        for key, points, index in _places(scopes):
            if points[index].exemplars:
                kept = self._by_point.setdefault(key, [])
                kept.extend(points[index].exemplars)
                del kept[:-_MOST_EXEMPLARS]

    def add_to(self, scopes: list[ScopeMetrics]) -> None:
        if self._by_point:
            for key, points, index in _places(scopes):
                if kept := self._by_point.get(key):
                    points[index] = replace(points[index], exemplars=[*kept, *points[index].exemplars])
            self._by_point.clear()


def _places(scopes: list[ScopeMetrics]) -> Iterator[tuple[tuple[str, str, str], Any, int]]:
    """Yield every point as a place in a list, and what tells it from others."""
    for scope in scopes:
        for metric in scope.metrics:
            points: Any = metric.data.data_points
            for index, point in enumerate(points):
                yield (
                    (scope.scope.name, metric.name, str(sorted((point.attributes or {}).items(), key=str))),
                    points,
                    index,
                )


class Metering:
    """The provider of meters for libraries, and every metric of the process as points.

    Whoever reads gets everything so far. What is sent has the temporality of the settings; a second reader of the SDK keeps the
    libraries' instruments for it where that is another one.

    Args:
        settings: which temporality, buckets, exemplars, how many series.
        resource: what the meter provider's resource is.
        source: the engine's own metrics.
    """

    def __init__(self, settings: Settings, resource: Resource, source: MetricSource) -> None:
        self._settings = settings
        self._source = source
        self._collecting = threading.RLock()
        self._make_readers()
        self.provider = MeterProvider(
            resource=resource,
            metric_readers=list(dict.fromkeys((self._reading, self._sending))),
            exemplar_filter=_EXEMPLAR_FILTERS[settings.exemplar_filter](),
            shutdown_on_exit=False,
        )

    def read(self) -> list[ScopeMetrics]:
        """Return the points of everything so far: the engine's own, and those of the instruments that libraries made."""
        if not self._settings.enabled("metrics"):
            return []
        with self._collecting:
            own = self._source.read(clock.now_ns())
            libraries = _scopes(self._reading)
            if self._reading is self._sending:
                self._unsent.keep(libraries)
            return _present(own) + libraries

    def send(self) -> list[ScopeMetrics]:
        """Return the points to be sent. What could not be collected, because something failed, is part of the next ones."""
        with self._collecting:
            own = self._source.leave(clock.now_ns(), delta=self._settings.metrics_temporality != "cumulative")
            libraries = _scopes(self._sending)
            self._source.left()
            self._unsent.add_to(libraries)
        return _present(own) + libraries

    def forget_libraries(self) -> None:
        """Let the instruments that libraries made begin at zero: the SDK keeps their values by reader."""
        with self._collecting:
            previous = dict.fromkeys((self._reading, self._sending))
            self._make_readers()
            for reader in previous:
                self.provider.remove_metric_reader(reader)
            for reader in dict.fromkeys((self._reading, self._sending)):
                self.provider.add_metric_reader(reader)

    def before_fork(self) -> None:
        """Hold collections up: a child forked in the middle of one would inherit the SDK's locks as they were, for ever."""
        self._collecting.acquire()

    def after_fork_in_parent(self) -> None:
        """Let collections go on."""
        self._collecting.release()

    def after_fork_in_child(self) -> None:
        """Begin at zero, with locks of its own."""
        self._collecting = threading.RLock()
        _free_locks(self.provider)
        self.forget_libraries()

    def _make_readers(self) -> None:
        self._unsent = _UnsentExemplars()
        self._reading = _PulledMetricReader(self._settings, "cumulative")
        temporality = self._settings.metrics_temporality
        self._sending = (
            self._reading if temporality == "cumulative" else _PulledMetricReader(self._settings, temporality)
        )


def _present(scope: ScopeMetrics | None) -> list[ScopeMetrics]:
    return [scope] if scope is not None else []


def _scopes(reader: _PulledMetricReader) -> list[ScopeMetrics]:
    try:
        return reader.scopes()
    except Exception:
        # An observable instrument that hangs is no reason to be without every other metric; the SDK keeps what it holds
        logger.exception("the metrics of libraries could not be collected")
        return []


def _free_locks(provider: MeterProvider) -> None:
    """Replace the locks under which another thread of the parent may have been making an instrument.

    The SDK replaces only those of the provider itself.
    """
    consumer: Any = getattr(provider, "_measurement_consumer", None)
    if consumer is not None:
        consumer._lock = threading.Lock()
    for meter in list(getattr(provider, "_meters", {}).values()):
        meter._instrument_registration_lock = threading.Lock()
