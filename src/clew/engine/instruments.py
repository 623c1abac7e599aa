"""The metric handles: counters, gauges, histograms and timers, each aggregated in place, one series for each set of labels."""

from __future__ import annotations

import functools
import inspect
import math
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar, cast

from opentelemetry import trace
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.metrics.export import (
    Gauge as GaugeData,
)
from opentelemetry.sdk.metrics.export import (
    Histogram as HistogramData,
)
from opentelemetry.sdk.metrics.export import (
    Metric as MetricData,
)

from clew import clock
from clew.catalog.kind import Metric
from clew.diagnostics import report
from clew.engine.coercion import label_value

P = ParamSpec("P")
R = TypeVar("R")
Labels = tuple[tuple[str, str | int], ...]

OVERFLOW: Final[Labels] = (("otel.metric.overflow", "true"),)
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


class _Number:
    """One series of a counter or gauge."""

    __slots__ = ("exemplar", "live", "started_ns", "value")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every measurement, and that there was one."""
        self.live = False
        self.started_ns = clock.now_ns()
        self.value: int | float = 0
        self.exemplar: Exemplar | None = None


class _Distribution:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "exemplars", "live", "max", "min", "started_ns", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.reset()

    def reset(self) -> None:
        """Forget every measurement, and that there was one."""
        self.live = False
        self.started_ns = clock.now_ns()
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        self.min = math.inf
        self.max = -math.inf
        self.exemplars: dict[int, Exemplar] = {}


def _exemplar(value: float) -> Exemplar | None:
    """Return a sample of a measurement made within a recorded trace, which the metric can be clicked through to."""
    span = trace.get_current_span()
    span_context = span.get_span_context()
    if not span_context.trace_flags.sampled:
        return None
    return Exemplar(
        filtered_attributes={},
        value=value,
        time_unix_nano=clock.now_ns(),
        span_id=span_context.span_id,
        trace_id=span_context.trace_id,
    )


S = TypeVar("S", _Number, _Distribution)


class Instrument(ABC):
    """What all handles have in common: a declaration, and one series for each combination of label values."""

    def __init__(self, declaration: Metric, *, open_labels: bool, max_series: Callable[[], int]) -> None:
        self.declaration = declaration
        self._open_labels = open_labels
        self._max_series = max_series
        self._series: dict[Labels, Any] = {}
        self._by_values: dict[Any, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Set every series back to nothing. Bound handles stay valid: they were often made once, at import."""
        self._lock = threading.Lock()
        for series in self._series.values():
            series.reset()

    def _new_series(self) -> Any:
        return _Number()

    def _find(self, labels: dict[str, Any]) -> Any:
        """Return the series of these labels, the overflow series when there are too many."""
        try:
            # Labels that were seen before, as they were given, need no checks
            key = tuple(labels.items())
            series = self._by_values.get(key)
        except TypeError:
            key, series = (), None
        if series is not None:
            return series
        clean = self._clean(labels)
        with self._lock:
            series = self._series.get(clean)
            if series is None:
                if len(self._series) >= self._max_series() - 1 and clean:
                    return self._series.setdefault(OVERFLOW, self._new_series())
                series = self._series[clean] = self._new_series()
            if key and all(type(value) is str for value in labels.values()) and len(self._by_values) < 10_000:
                self._by_values[key] = series
        return series

    def _clean(self, labels: dict[str, Any]) -> Labels:
        known = self.declaration.labels
        if not self._open_labels and not labels.keys() <= set(known):
            unknown = sorted(labels.keys() - set(known))
            report(
                f"metric {self.declaration.name}",
                f"{', '.join(unknown)}: not among the labels it was declared with ({', '.join(known) or 'none'})",
            )
            labels = {name: value for name, value in labels.items() if name in known}
        return tuple(sorted((name, label_value(value)) for name, value in labels.items()))

    def data(self, now_ns: int) -> MetricData | None:
        """Return the points of now, or ``None`` when nothing was recorded."""
        with self._lock:
            points = [
                self._point(dict(labels), series, now_ns) for labels, series in self._series.items() if series.live
            ]
        if not points:
            return None
        declaration = self.declaration
        return MetricData(
            name=declaration.name,
            description=declaration.description,
            unit=declaration.unit,
            data=self._aggregate(points),
        )

    def _point(self, labels: dict[str, str | int], series: Any, now_ns: int) -> Any:
        return NumberDataPoint(
            attributes=labels,
            start_time_unix_nano=series.started_ns,
            time_unix_nano=now_ns,
            value=series.value,
            exemplars=[series.exemplar] if series.exemplar is not None else [],
        )

    @abstractmethod
    def _aggregate(self, points: list[Any]) -> Any:
        """Return the points as the SDK's public data of this kind of metric."""


class BoundCounter:
    """A counter with its labels fixed, for hot paths. Made by :meth:`Counter.bind`."""

    __slots__ = ("_instrument", "_monotonic", "_series")

    def __init__(self, instrument: Instrument, series: _Number, *, monotonic: bool) -> None:
        self._instrument = instrument
        self._series = series
        self._monotonic = monotonic

    def add(self, value: float = 1) -> None:
        """Add to the series; see :meth:`Counter.add`."""
        series = self._series
        try:
            exemplar = _exemplar(value) if self._monotonic else None
            if value >= 0 or not self._monotonic:
                with self._instrument._lock:
                    series.live = True
                    series.value += value
                    if exemplar is not None:
                        series.exemplar = exemplar
                return
            problem: Exception | str = f"a counter can't go down (add({value!r}))"
        except Exception as error:
            problem = error
        report(f"metric {self._instrument.declaration.name}", problem)


class Counter(Instrument):
    """Counts things that happen.

    Example:
        >>> import clew
        >>> orders = clew.counter("orders.placed", unit="{order}", labels=("channel",))
        >>> orders.add(1, channel="web")
    """

    def add(self, value: float = 1, /, **labels: Any) -> None:
        """Add ``value``, which is 0 or more, to the series of ``labels``. A negative or non-numeric value is counted and left out."""
        self.bind(**labels).add(value)

    def set_total(self, value: float, /, **labels: Any) -> None:
        """Take over a total that something else counts."""
        series = self._find(labels)
        with self._lock:
            series.live, series.value = True, value

    def bind(self, **labels: Any) -> BoundCounter:
        """Return a handle of one series."""
        try:
            return BoundCounter(self, self._find(labels), monotonic=True)
        except Exception as error:
            report(f"metric {self.declaration.name}", error)
            return BoundCounter(self, _Number(), monotonic=True)

    def _aggregate(self, points: list[Any]) -> Any:
        return Sum(data_points=points, aggregation_temporality=_CUMULATIVE, is_monotonic=True)


class UpDownCounter(Instrument):
    """Counts things that come and go, such as requests in progress."""

    def add(self, value: float = 1, /, **labels: Any) -> None:
        """Add ``value``, which may be negative, to the series of ``labels``."""
        self.bind(**labels).add(value)

    def bind(self, **labels: Any) -> BoundCounter:
        """Return a handle of one series."""
        try:
            return BoundCounter(self, self._find(labels), monotonic=False)
        except Exception as error:
            report(f"metric {self.declaration.name}", error)
            return BoundCounter(self, _Number(), monotonic=False)

    def _aggregate(self, points: list[Any]) -> Any:
        return Sum(data_points=points, aggregation_temporality=_CUMULATIVE, is_monotonic=False)


class Gauge(Instrument):
    """Holds the latest value of something, such as a temperature or a queue's depth.

    Example:
        >>> import clew
        >>> depth = clew.gauge("inbox.depth", unit="{message}")
        >>> depth.set(3)
    """

    def set(self, value: float, /, **labels: Any) -> None:
        """Replace the value of the series of ``labels``."""
        try:
            series = self._find(labels)
            number = value if type(value) is int else float(value)
            with self._lock:
                series.live = True
                series.value = number
        except Exception as error:
            report(f"metric {self.declaration.name}", error)

    def _aggregate(self, points: list[Any]) -> Any:
        return GaugeData(data_points=points)


class BoundHistogram:
    """A histogram with its labels fixed, for hot paths. Made by :meth:`Histogram.bind`."""

    __slots__ = ("_instrument", "_series")

    def __init__(self, instrument: Instrument, series: _Distribution) -> None:
        self._instrument = instrument
        self._series = series

    def record(self, value: float) -> None:
        """Record a measurement; see :meth:`Histogram.record`."""
        series = self._series
        try:
            index = bisect_left(series.bounds, value)
            exemplar = _exemplar(value)
            if -math.inf < value < math.inf:
                with self._instrument._lock:
                    series.live = True
                    series.counts[index] += 1
                    series.total += value
                    series.min = min(series.min, value)
                    series.max = max(series.max, value)
                    if exemplar is not None:
                        series.exemplars[index] = exemplar
                return
            problem: Exception | str = f"a measurement must be finite ({value!r})"
        except Exception as error:
            problem = error
        report(f"metric {self._instrument.declaration.name}", problem)

    def record_in(self, value, span_context):
        self.record(value)


class Timer:
    """Times a block, or every call of a function, in seconds. Made by :meth:`Histogram.time` and :func:`clew.timer`.

    Example:
        >>> import clew
        >>> with clew.timer("report.render.duration", format="pdf"):
        ...     pass
        >>> @clew.timer("report.send.duration")
        ... def send(): ...
    """

    __slots__ = ("_bound", "_started_ns", "duration_s")

    def __init__(self, bound: BoundHistogram) -> None:
        self._bound = bound
        self._started_ns = 0
        self.duration_s = 0.0

    def __enter__(self) -> Self:
        self._started_ns = clock.monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.duration_s = (clock.monotonic_ns() - self._started_ns) / 1e9
        self._bound.record(self.duration_s)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Time every call of ``function``, a coroutine function until it has returned."""
        bound = self._bound
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                with Timer(bound):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", timed_coroutine)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with Timer(bound):
                return function(*args, **kwargs)

        return timed


class Histogram(Instrument):
    """Records how a quantity is distributed, such as durations or sizes.

    Example:
        >>> import clew
        >>> size = clew.histogram("upload.size", unit="By", buckets=(1e3, 1e6, 1e9))
        >>> size.record(52_133)
    """

    def _new_series(self) -> Any:
        return _Distribution(self.declaration.buckets)

    def record(self, value: float, /, **labels: Any) -> None:
        """Record a measurement in the metric's unit. One that is not a finite number is counted and left out."""
        self.bind(**labels).record(value)

    def bind(self, **labels: Any) -> BoundHistogram:
        """Return a handle of one series."""
        try:
            return BoundHistogram(self, self._find(labels))
        except Exception as error:
            report(f"metric {self.declaration.name}", error)
            return BoundHistogram(self, self._new_series())

    def time(self, **labels: Any) -> Timer:
        """Return a timer that records seconds: a context manager and a decorator."""
        return Timer(self.bind(**labels))

    def _point(self, labels: dict[str, str | int], series: Any, now_ns: int) -> Any:
        return HistogramDataPoint(
            attributes=labels,
            start_time_unix_nano=series.started_ns,
            time_unix_nano=now_ns,
            count=sum(series.counts),
            sum=series.total,
            bucket_counts=tuple(series.counts),
            explicit_bounds=series.bounds,
            min=series.min,
            max=series.max,
            exemplars=list(series.exemplars.values()),
        )

    def _aggregate(self, points: list[Any]) -> Any:
        return HistogramData(data_points=points, aggregation_temporality=_CUMULATIVE)
