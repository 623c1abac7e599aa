"""The metric handles: counters, gauges, histograms and timers, with one series for each set of labels."""

from __future__ import annotations

import functools
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Final, ParamSpec, Self, TypeVar, cast

from opentelemetry.sdk.metrics.export import AggregationTemporality, ExponentialHistogramDataPoint, Sum
from opentelemetry.sdk.metrics.export import ExponentialHistogram as ExponentialHistogramData
from opentelemetry.sdk.metrics.export import Gauge as GaugeData
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.export import Metric as MetricData

from clew import clock
from clew.catalog.kind import Metric
from clew.diagnostics import report
from clew.engine.aggregation import Attributes
from clew.engine.bound import (
    BoundCounter,
    BoundExponentialHistogram,
    BoundGauge,
    BoundHistogram,
    BoundUpDownCounter,
)
from clew.engine.series import number_of
from clew.pipeline.coercion import MAX_LABEL_LENGTH, clean, label_value

__all__ = [
    "BoundCounter",
    "BoundExponentialHistogram",
    "BoundGauge",
    "BoundHistogram",
    "BoundUpDownCounter",
    "Counter",
    "Gauge",
    "Histogram",
    "Instrument",
    "Timer",
    "UpDownCounter",
]

P = ParamSpec("P")
R = TypeVar("R")
Labels = tuple[tuple[str, str | int], ...]

OVERFLOW: Final[Attributes] = {"otel.metric.overflow": True}
"""The labels of the series in which measurements are counted that came after there were too many series."""

MAX_LABELS: Final = 128
# Label values of these types are told apart by type and value; a text must be one that is kept as it is
_REMEMBERED: Final = frozenset({str, int, bool, type(None)})
# The same labels may be given in another order, and need not be remembered in each
_WAYS_REMEMBERED: Final = 4

_UNKNOWN: Final = ((), None)


class Instrument(ABC):
    """What all handles have in common: a declaration, and one series for each combination of label values.

    Args:
        declaration: the name, the unit, the labels.
        open_labels: whether labels may be given that the declaration does not name.
        max_series: tells how many series there may be.
    """

    _leaves_as_delta: ClassVar[bool] = False

    def __init__(self, declaration: Metric, *, open_labels: bool, max_series: Callable[[], int]) -> None:
        self.declaration = declaration
        self._open_labels = open_labels
        self._max_series = max_series
        self._series: dict[Labels, Any] = {}
        self._overflow: Any = None
        # By labels as they were given: where all are texts, and else together with the types of the values
        self._by_texts: dict[Any, Any] = {}
        self._by_types: dict[Any, Any] = {}
        self._lock = threading.RLock()

    def reset(self) -> None:
        """Set every series back to nothing. Bound handles stay valid: they were often made once, at import."""
        self._lock = threading.RLock()
        for _, series in self._all():
            series.reset()

    @abstractmethod
    def _new_series(self) -> Any:
        """Return an empty series."""

    def _all(self) -> list[tuple[Attributes, Any]]:
        with self._lock:
            series: list[tuple[Attributes, Any]] = [(dict(labels), series) for labels, series in self._series.items()]
            return series if self._overflow is None else [*series, (OVERFLOW.copy(), self._overflow)]

    def _bind(self, labels: dict[str, Any]) -> Any:
        try:
            as_given = tuple(labels.items())
            series = self._by_texts.get(as_given)
            if series is not None:
                return series
            types, series = self._by_types.get(as_given, _UNKNOWN)
            # 1, 1.0 and True are equal, but they are not the same label
            if series is not None and types == tuple(map(type, labels.values())):
                return series
        except Exception:  # noqa: S110 - a value without a hash is made a text like any other
            pass
        try:
            return self._find(labels)
        except Exception as error:
            report(f"metric {self.declaration.name}", error)
            return self._new_series()

    def _find(self, labels: dict[str, Any]) -> Any:
        """Return the series of labels that were not met before, or not as texts; the overflow series when there are too many."""
        kept, as_they_are = self._clean(labels)
        key = tuple(sorted(kept.items()))
        with self._lock:
            series = self._series.get(key)
            if series is None:
                if key and len(self._series) >= self._max_series() - 1:
                    if self._overflow is None:
                        self._overflow = self._new_series()
                    return self._overflow
                series = self._series[key] = self._new_series()
            types = tuple(map(type, labels.values()))
            if as_they_are and _REMEMBERED.issuperset(types):
                texts = all(kind is str for kind in types)
                memory = self._by_texts if texts else self._by_types
                if len(memory) < self._max_series() * _WAYS_REMEMBERED:
                    memory[tuple(labels.items())] = series if texts else (types, series)
        return series

    def _clean(self, labels: dict[str, Any]) -> tuple[dict[str, str | int], bool]:
        """Return labels as they are kept, and whether these are the given ones, but for the form of values that are no text."""
        known, given = self.declaration.labels, labels
        if not self._open_labels and not labels.keys() <= set(known):
            unknown = sorted(labels.keys() - set(known))
            report(
                f"metric {self.declaration.name}",
                f"{', '.join(unknown)[:MAX_LABEL_LENGTH]}: not among the labels it was declared with ({', '.join(known) or 'none'})",
            )
            labels = {name: value for name, value in labels.items() if name in known}
        if len(labels) > MAX_LABELS:
            report(f"metric {self.declaration.name}", f"has {len(labels)} labels, of which {MAX_LABELS} are kept")
            labels = dict(list(labels.items())[:MAX_LABELS])
        kept = {clean(name, MAX_LABEL_LENGTH): label_value(value) for name, value in labels.items()}
        as_they_are = kept.keys() == given.keys() and all(
            type(value) is not str or kept[name] == value for name, value in given.items()
        )
        return kept, as_they_are

    def read(self, now_ns: int) -> MetricData | None:
        """Return the points of everything so far, or ``None`` when nothing was recorded."""
        return self._data([series.read(labels, now_ns) for labels, series in self._all()], delta=False)

    def leave(self, now_ns: int, since_ns: int | None) -> MetricData | None:
        """Return the points to be sent, or ``None``; see :meth:`clew.engine.series.Series.leave`."""
        delta = since_ns is not None and self._leaves_as_delta
        since_ns = since_ns if delta else None
        return self._data([series.leave(labels, now_ns, since_ns) for labels, series in self._all()], delta=delta)

    def left(self) -> None:
        """Forget what :meth:`leave` returned: it is on its way."""
        for _, series in self._all():
            series.left()

    def _data(self, points: list[Any], *, delta: bool) -> MetricData | None:
        points = [point for point in points if point is not None]
        if not points:
            return None
        declaration = self.declaration
        return MetricData(
            name=declaration.name,
            description=declaration.description,
            unit=declaration.unit,
            data=self._aggregate(points, AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE),
        )

    @abstractmethod
    def _aggregate(self, points: list[Any], temporality: AggregationTemporality) -> Any:
        """Return the points as the SDK's public data of this kind of metric."""


class Counter(Instrument):
    """Counts things that happen.

    Example:
        >>> import clew
        >>> orders = clew.counter("orders.placed", unit="{order}", labels=("channel",))
        >>> orders.add(1, channel="web")
    """

    _leaves_as_delta = True

    def add(self, value: float = 1, /, **labels: Any) -> None:
        """Add ``value``, which is 0 or more, to the series of ``labels``. A negative or non-numeric value is counted and left out."""
        self._bind(labels).add(value)

    def set_total(self, value: float, /, **labels: Any) -> None:
        """Take over a total that something else counts."""
        try:
            self.bind(**labels).set_total(number_of(value))
        except Exception as error:
            report(f"metric {self.declaration.name}", error)

    def bind(self, **labels: Any) -> BoundCounter:
        """Return a handle of one series."""
        return cast("BoundCounter", self._bind(labels))

    def _new_series(self) -> BoundCounter:
        return BoundCounter(self.declaration.name)

    def _aggregate(self, points: list[Any], temporality: AggregationTemporality) -> Any:
        return Sum(data_points=points, aggregation_temporality=temporality, is_monotonic=True)


class UpDownCounter(Instrument):
    """Counts things that come and go, such as requests in progress."""

    def add(self, value: float = 1, /, **labels: Any) -> None:
        """Add ``value``, which may be negative, to the series of ``labels``."""
        self._bind(labels).add(value)

    def bind(self, **labels: Any) -> BoundUpDownCounter:
        """Return a handle of one series."""
        return cast("BoundUpDownCounter", self._bind(labels))

    def _new_series(self) -> BoundUpDownCounter:
        return BoundUpDownCounter(self.declaration.name)

    def _aggregate(self, points: list[Any], temporality: AggregationTemporality) -> Any:
        return Sum(data_points=points, aggregation_temporality=temporality, is_monotonic=False)


class Gauge(Instrument):
    """Holds the latest value of something, such as a temperature or a queue's depth.

    Example:
        >>> import clew
        >>> depth = clew.gauge("inbox.depth", unit="{message}")
        >>> depth.set(3)
    """

    def set(self, value: float, /, **labels: Any) -> None:
        """Replace the value of the series of ``labels``. One that is not a finite number is counted and left out."""
        self._bind(labels).set(value)

    def remove(self, **labels: Any) -> None:
        """Forget the value of the series of ``labels``: what is not measured any more is not told any more, until it is set again.

        Example:
            >>> import clew
            >>> depth = clew.gauge("outbox.depth", unit="{message}")
            >>> depth.set(3, outbox="mail")
            >>> depth.remove(outbox="mail")
            >>> clew.summary("outbox.depth")
            []
        """
        self._bind(labels).reset()

    def bind(self, **labels: Any) -> BoundGauge:
        """Return a handle of one series."""
        return cast("BoundGauge", self._bind(labels))

    def _new_series(self) -> BoundGauge:
        return BoundGauge(self.declaration.name)

    def _aggregate(self, points: list[Any], temporality: AggregationTemporality) -> Any:
        return GaugeData(data_points=points)


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

    _leaves_as_delta = True
    _kind: type[BoundHistogram] = BoundHistogram

    def adopt(self, *, exponential: bool) -> None:
        """Take over which buckets are used where the declaration leaves it open; once measurements were added up, they stay."""
        chosen = self.declaration.exponential
        with self._lock:
            series = [series for _, series in self._all()]
            if any(one.is_added_up for one in series):
                return
            self._kind = BoundExponentialHistogram if (exponential if chosen is None else chosen) else BoundHistogram
            for one in series:
                # A handle that was made before clew was configured stays the same object
                one.__class__ = self._kind

    def record(self, value: float, /, **labels: Any) -> None:
        """Record a measurement in the metric's unit. One that is not a finite number is counted and left out."""
        self._bind(labels).record(value)

    def bind(self, **labels: Any) -> BoundHistogram:
        """Return a handle of one series."""
        return cast("BoundHistogram", self._bind(labels))

    def time(self, **labels: Any) -> Timer:
        """Return a timer that records seconds: a context manager and a decorator."""
        return Timer(self.bind(**labels))

    def _new_series(self) -> BoundHistogram:
        return self._kind(self.declaration.name, self.declaration.buckets)

    def _aggregate(self, points: list[Any], temporality: AggregationTemporality) -> Any:
        if isinstance(points[0], ExponentialHistogramDataPoint):
            return ExponentialHistogramData(data_points=points, aggregation_temporality=temporality)
        return HistogramData(data_points=points, aggregation_temporality=temporality)
