"""What measurements come to: sums and distributions that can be put together, and the points that leave of them.

Nothing here is called for each measurement: :mod:`clew.engine.series` gathers some and hands them over in one go.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from math import floor, frexp, inf, ldexp, log
from operator import add
from sys import float_info
from typing import Any, Final, NamedTuple, Protocol, Self

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    Buckets,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    NumberDataPoint,
)
from opentelemetry.trace import SpanContext

Number = int | float
Attributes = dict[str, str | int | bool]

MAX_SIZE: Final = 160
"""Buckets that an exponential histogram has for each sign."""
MAX_SCALE: Final = 20
"""The finest scale of an exponential histogram: each bucket's bound is ``2 ** 2 ** -20`` times the one before."""
LARGEST: Final = float_info.max
_LARGEST_EXPONENT: Final = 1024
_INT64: Final = range(-(2**63), 2**63)
# The logarithm of a power of two may come out on either side of its bucket's bound
_POWERS_OF_TWO: Final = frozenset(ldexp(1.0, exponent) for exponent in range(-1074, _LARGEST_EXPONENT))


class Sample(NamedTuple):
    """A measurement as it was made, which an exemplar is built of when it leaves."""

    value: Number
    span_context: SpanContext
    time_ns: int


class Period(NamedTuple):
    """The time that a point is about, in nanoseconds since the epoch."""

    start_ns: int
    end_ns: int


class State(Protocol):
    """What measurements come to."""

    def extend(self, values: list[Number]) -> None:
        """Add finite measurements, at least one."""

    def merge(self, other: Self) -> None:
        """Add what others came to; ``other`` is left as it is."""

    def point(self, attributes: Attributes, period: Period, samples: Iterable[Sample]) -> Any:
        """Return a point of the SDK's public types."""


class Total:
    """The sum of what was added."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Number = 0

    def extend(self, values: list[Number]) -> None:
        """Add some numbers."""
        self.value = total([self.value, *values])

    def merge(self, other: Total) -> None:
        """Add another sum."""
        self.value = carried(self.value + other.value)

    def point(self, attributes: Attributes, period: Period, samples: Iterable[Sample]) -> NumberDataPoint:
        """Return the sum as a point."""
        return NumberDataPoint(
            attributes=attributes,
            start_time_unix_nano=period.start_ns,
            time_unix_nano=period.end_ns,
            value=self.value,
            exemplars=exemplars(samples),
        )


class Distribution:
    """How measurements lie between given bounds.

    Args:
        bounds: upper bounds of the buckets, rising.
    """

    __slots__ = ("bounds", "counts", "greatest", "least", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: Number = 0
        self.least: Number = inf
        self.greatest: Number = -inf

    def extend(self, values: list[Number]) -> None:
        """Add some measurements."""
        self.sum = total([self.sum, *values])
        values = sorted(values)
        self.least, self.greatest = min(self.least, values[0]), max(self.greatest, values[-1])
        counts, seen, size = self.counts, 0, len(values)
        for index, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound, seen)
            if upto > seen:
                counts[index] += upto - seen
                seen = upto
                if seen == size:
                    return
        counts[-1] += size - seen

    def merge(self, other: Distribution) -> None:
        """Add other measurements, counted between the same bounds."""
        self.counts = list(map(add, self.counts, other.counts))
        self.sum = carried(self.sum + other.sum)
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    def point(self, attributes: Attributes, period: Period, samples: Iterable[Sample]) -> HistogramDataPoint:
        """Return the distribution as a point."""
        return HistogramDataPoint(
            attributes=attributes,
            start_time_unix_nano=period.start_ns,
            time_unix_nano=period.end_ns,
            count=sum(self.counts),
            sum=real(self.sum),
            bucket_counts=tuple(self.counts),
            explicit_bounds=self.bounds,
            min=real(self.least),
            max=real(self.greatest),
            exemplars=exemplars(samples),
        )


class ExponentialDistribution:
    """How measurements lie between bounds that grow by one factor, which adapts to them.

    The factor is the smallest for which the positive measurements, and the negative ones, fit :data:`MAX_SIZE` buckets.

    Source: https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram
    """

    __slots__ = ("count", "greatest", "least", "negative", "positive", "scale", "sum", "zeros")

    def __init__(self) -> None:
        self.count = self.zeros = 0
        self.sum: Number = 0
        self.least: Number = inf
        self.greatest: Number = -inf
        self.scale = MAX_SCALE
        # How many measurements are in which bucket, by sign
        self.negative: Counter[int] = Counter()
        self.positive: Counter[int] = Counter()

    def extend(self, values: list[Number]) -> None:
        """Add some measurements."""
        self.count += len(values)
        self.sum = total([self.sum, *values])
        values = sorted(values)
        self.least, self.greatest = min(self.least, values[0]), max(self.greatest, values[-1])
        below, above = bisect_left(values, 0), bisect_right(values, 0)
        self.zeros += above - below
        positive, negative = values[above:], [-value for value in reversed(values[:below])]
        for magnitudes, buckets in ((positive, self.positive), (negative, self.negative)):
            if magnitudes:
                self._make_room(buckets, bucket_of(magnitudes[0], self.scale), bucket_of(magnitudes[-1], self.scale))
        for magnitudes, buckets in ((positive, self.positive), (negative, self.negative)):
            if magnitudes:
                buckets.update(_buckets_of(magnitudes, self.scale))

    def merge(self, other: ExponentialDistribution) -> None:
        """Add other measurements; the scale becomes the finest one that both fit."""
        self._lower_scale(self.scale - other.scale)
        for mine, theirs in ((self.positive, other.positive), (self.negative, other.negative)):
            if theirs and not (self.scale == other.scale and theirs.keys() <= mine.keys()):
                by = other.scale - self.scale
                self._make_room(mine, min(theirs) >> by, max(theirs) >> by)
        by = other.scale - self.scale
        for mine, theirs in ((self.positive, other.positive), (self.negative, other.negative)):
            for index, count in theirs.items():
                mine[index >> by] += count
        self.zeros += other.zeros
        self.count += other.count
        self.sum = carried(self.sum + other.sum)
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    def _make_room(self, buckets: Mapping[int, int], low: int, high: int) -> None:
        """Lower the scale until these indexes fit among the buckets of one sign."""
        if buckets:
            least, greatest = min(buckets), max(buckets)
            low, high = min(low, least), max(high, greatest)
        change = 0
        while high - low >= MAX_SIZE:
            low, high, change = low >> 1, high >> 1, change + 1
        self._lower_scale(change)

    def _lower_scale(self, change: int) -> None:
        if change <= 0:
            return
        self.scale -= change
        for buckets in (self.positive, self.negative):
            before = list(buckets.items())
            buckets.clear()
            for index, count in before:
                buckets[index >> change] += count

    def point(self, attributes: Attributes, period: Period, samples: Iterable[Sample]) -> ExponentialHistogramDataPoint:
        """Return the distribution as a point."""
        return ExponentialHistogramDataPoint(
            attributes=attributes,
            start_time_unix_nano=period.start_ns,
            time_unix_nano=period.end_ns,
            count=self.count,
            sum=real(self.sum),
            # Zeros alone have no scale
            scale=self.scale if self.positive or self.negative else 0,
            zero_count=self.zeros,
            positive=_dense(self.positive),
            negative=_dense(self.negative),
            flags=0,
            min=real(self.least),
            max=real(self.greatest),
            exemplars=exemplars(samples),
        )


def bucket_of(value: float, scale: int) -> int:
    """Return the index of the bucket of a positive measurement: that whose upper bound it does not exceed.

    Example:
        >>> bucket_of(4.0, 0), bucket_of(4.1, 0), bucket_of(4.1, 1), bucket_of(4.1, -1)
        (1, 2, 4, 1)
    """
    mantissa, exponent = frexp(value)
    if mantissa == 0.5:
        exponent -= 1
        index = (exponent << scale) - 1 if scale > 0 else (exponent - 1) >> -scale
    elif scale > 0:
        index = floor(log(value) * _factor(scale))
    else:
        index = (exponent - 1) >> -scale
    return min(index, (_LARGEST_EXPONENT << scale) - 1) if scale > 0 else index


def upper_bound(index: int, scale: int) -> float:
    """Return the upper bound of a bucket.

    Example:
        >>> upper_bound(1, 0), upper_bound(-1, 0), upper_bound(1, -1), upper_bound(1023, 0)
        (4.0, 1.0, 16.0, inf)
    """
    exponent = (index + 1) * 2.0**-scale
    return 2.0**exponent if exponent < _LARGEST_EXPONENT else inf


def _factor(scale: int) -> float:
    return ldexp(1 / log(2), scale)


def _buckets_of(values: list[Number], scale: int) -> Iterable[int]:
    """Return the bucket of each of some positive measurements, which are sorted: :func:`bucket_of`, for many at once."""
    if scale <= 0 or values[-1] > LARGEST / 2 or not _POWERS_OF_TWO.isdisjoint(values):
        return [bucket_of(value, scale) for value in values]
    return map(floor, map(_factor(scale).__mul__, map(log, values)))


def _dense(counts: Mapping[int, int]) -> Buckets:
    if not counts:
        return Buckets(offset=0, bucket_counts=())
    first, last = min(counts), max(counts)
    dense = [0] * (last - first + 1)
    for index, count in counts.items():
        dense[index - first] = count
    return Buckets(offset=first, bucket_counts=tuple(dense))


def total(values: list[Number]) -> Number:
    """Return the sum of finite numbers, as OTLP can carry it."""
    try:
        return carried(sum(values))
    except OverflowError:
        # An integer that no floating-point number holds met one
        return real(sum(map(int, values)))


def carried(value: Number) -> Number:
    """Return a number as OTLP can carry it: integers have 64 bits, and there is no infinite sum."""
    return value if type(value) is int and value in _INT64 else real(value)


def real(value: Number) -> float:
    """Return a sum as a finite floating-point number."""
    if type(value) is float and -LARGEST <= value <= LARGEST:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = inf if value > 0 else -inf
    return min(max(number, -LARGEST), LARGEST)


def exemplars(samples: Iterable[Sample]) -> list[Exemplar]:
    """Return measurements as what a metric can be clicked through by."""
    return [_exemplar(sample) for sample in samples]


def _exemplar(sample: Sample) -> Exemplar:
    span_context = sample.span_context
    if not span_context.is_valid:
        return Exemplar(filtered_attributes={}, value=carried(sample.value), time_unix_nano=sample.time_ns)
    return Exemplar(
        filtered_attributes={},
        value=carried(sample.value),
        time_unix_nano=sample.time_ns,
        span_id=span_context.span_id,
        trace_id=span_context.trace_id,
    )
