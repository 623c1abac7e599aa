"""The handles of a metric with its labels fixed: the hot path of measuring.

A measurement is checked and appended to a list, which threads may do at once without a lock. What was appended is added up when
there are :data:`BATCH` of them, and when somebody reads. So a measurement costs a fraction of what a lock would, and none is
lost: whoever adds up takes the beginning of the list, while others append to its end. The methods repeat a few lines, because a
call costs as much as they do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import frexp
from typing import Any

from opentelemetry.sdk.metrics.export import NumberDataPoint
from opentelemetry.trace import SpanContext

from clew import clock
from clew.diagnostics import report
from clew.engine import exemplars
from clew.engine.aggregation import (
    LARGEST,
    Attributes,
    Distribution,
    ExponentialDistribution,
    Number,
    State,
    Total,
    carried,
)
from clew.engine.exemplars import SPAN_KEY
from clew.engine.series import BATCH, MOST_SAMPLES, Series, Tally, number_of, shown
from clew.pipeline.current import get_current
from clew.settings import ExemplarFilter

_current_context: Callable[[], Mapping[str, object]] = get_current


def use_exemplar_filter(chosen: ExemplarFilter) -> None:
    """Choose which measurements may become exemplars, from now on and for every metric."""
    global _current_context
    _current_context = exemplars.use(chosen)


class BoundCounter(Series):
    """A counter with its labels fixed, for hot paths. Made by :meth:`clew.engine.instruments.Counter.bind`."""

    __slots__ = ()

    def add(self, value: float = 1) -> None:
        """Add to the series; see :meth:`clew.engine.instruments.Counter.add`."""
        kind = type(value)
        if (kind is int or kind is float) and 0 <= value <= LARGEST:
            if not self._samples and (span := _current_context().get(SPAN_KEY)) is not None:
                self._sample_within(value, span)
            buffer = self._buffer
            buffer.append(value)
            if len(buffer) >= BATCH:
                self._fold()
        else:
            self._other(value, 0, f"a counter can't go down, and needs finite numbers ({shown(value)})")

    def set_total(self, total: Number) -> None:
        """Take over a total that something else counts; a lower one than before is that of a new beginning."""
        with self._lock:
            self._settle()
            before = self._total.state.value if self._total.state is not None else 0
            if total < before:
                before, self._total, self._started_ns = 0, Tally(), clock.now_ns()
            state = Total()
            state.value = carried(total - before)
            self._count(state, {})

    def _new_state(self) -> State:
        return Total()


class BoundUpDownCounter(BoundCounter):
    """An up-down counter with its labels fixed, for hot paths."""

    __slots__ = ()

    def add(self, value: float = 1) -> None:
        """Add to the series; see :meth:`clew.engine.instruments.UpDownCounter.add`."""
        kind = type(value)
        if (kind is int or kind is float) and -LARGEST <= value <= LARGEST:
            buffer = self._buffer
            buffer.append(value)
            if len(buffer) >= BATCH:
                self._fold()
        else:
            self._other(value, -LARGEST, f"needs finite numbers ({shown(value)})")


class BoundHistogram(Series):
    """A histogram with its labels fixed, for hot paths. Made by :meth:`clew.engine.instruments.Histogram.bind`.

    Args:
        metric: the metric's name, for messages.
        bounds: upper bounds of the buckets, rising.
    """

    __slots__ = ("_bounds",)

    def __init__(self, metric: str, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        super().__init__(metric)

    def record(self, value: float) -> None:
        """Record a measurement; see :meth:`clew.engine.instruments.Histogram.record`."""
        kind = type(value)
        if (kind is float or kind is int) and -LARGEST <= value <= LARGEST:
            if (span := _current_context().get(SPAN_KEY)) is not None and bisect_left(
                self._bounds, value
            ) not in self._samples:
                self._sample_within(value, span)
            buffer = self._buffer
            buffer.append(value)
            if len(buffer) >= BATCH:
                self._fold()
        else:
            self._other(value, -LARGEST, f"a measurement must be finite ({shown(value)})")

    def record_in(self, value: float, span_context: SpanContext | None) -> None:
        """Record a measurement made in a span that the caller knows, or in none: the current span is not looked up."""
        kind = type(value)
        if (kind is float or kind is int) and -LARGEST <= value <= LARGEST:
            if span_context is not None and bisect_left(self._bounds, value) not in self._samples:
                self._sample(value, span_context)
            buffer = self._buffer
            buffer.append(value)
            if len(buffer) >= BATCH:
                self._fold()
        else:
            self._other(value, -LARGEST, f"a measurement must be finite ({shown(value)})")

    def _new_state(self) -> State:
        return Distribution(self._bounds)

    def _bucket(self, value: Number) -> int:
        return bisect_left(self._bounds, value)


class BoundExponentialHistogram(BoundHistogram):
    """A histogram with exponential buckets and its labels fixed, for hot paths.

    A sample is kept for each power of two.
    """

    __slots__ = ()

    def record(self, value: float) -> None:
        """Record a measurement; see :meth:`clew.engine.instruments.Histogram.record`."""
        kind = type(value)
        if (kind is float or kind is int) and -LARGEST <= value <= LARGEST:
            if (span := _current_context().get(SPAN_KEY)) is not None and frexp(value)[1] not in self._samples:
                self._sample_within(value, span)
            buffer = self._buffer
            buffer.append(value)
            if len(buffer) >= BATCH:
                self._fold()
        else:
            self._other(value, -LARGEST, f"a measurement must be finite ({shown(value)})")

    def record_in(self, value: float, span_context: SpanContext | None) -> None:
        """Record a measurement made in a span that the caller knows, or in none: the current span is not looked up."""
        kind = type(value)
        if (kind is float or kind is int) and -LARGEST <= value <= LARGEST:
            if span_context is not None and frexp(value)[1] not in self._samples:
                self._sample(value, span_context)
            buffer = self._buffer
            buffer.append(value)
            if len(buffer) >= BATCH:
                self._fold()
        else:
            self._other(value, -LARGEST, f"a measurement must be finite ({shown(value)})")

    def _new_state(self) -> State:
        return ExponentialDistribution()

    def _sample(self, value: Number, span_context: SpanContext) -> None:
        if len(self._samples) < MOST_SAMPLES:
            super()._sample(value, span_context)

    def _bucket(self, value: Number) -> int:
        return frexp(value)[1]


class BoundGauge:
    """A gauge with its labels fixed, for hot paths. Made by :meth:`clew.engine.instruments.Gauge.bind`.

    Args:
        metric: the metric's name, for messages.
    """

    __slots__ = ("_metric", "_started_ns", "_value")

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self.reset()

    def reset(self) -> None:
        """Forget the value, and that there was one."""
        self._started_ns = clock.now_ns()
        self._value: Number | None = None

    def set(self, value: float) -> None:
        """Replace the value; see :meth:`clew.engine.instruments.Gauge.set`."""
        kind = type(value)
        if (kind is float or kind is int) and -LARGEST <= value <= LARGEST:
            self._value = value
        else:
            self._other(value)

    def read(self, attributes: Attributes, now_ns: int) -> NumberDataPoint | None:
        """Return the point of now, or ``None``."""
        value = self._value
        if value is None:
            return None
        return NumberDataPoint(
            attributes=attributes,
            start_time_unix_nano=min(self._started_ns, now_ns),
            time_unix_nano=now_ns,
            value=carried(value),
        )

    def leave(self, attributes: Attributes, now_ns: int, since_ns: int | None) -> NumberDataPoint | None:
        """Return the point to be sent, or ``None``: the same, because a gauge's points do not build on each other."""
        return self.read(attributes, now_ns)

    def left(self) -> None:
        """Keep the value: it stands until it is replaced."""

    def _other(self, value: Any) -> None:
        try:
            number = number_of(value)
            if -LARGEST <= number <= LARGEST:
                self._value = number
                return
            problem = f"needs finite numbers ({shown(value)})"
        except Exception:
            problem = f"a {type(value).__name__} is no number"
        report(f"metric {self._metric}", problem)
