"""One series of a metric: what was appended, what it came to, and what of that has been sent."""

from __future__ import annotations

import operator
import threading
from abc import ABC, abstractmethod
from typing import Any, Final

from opentelemetry.trace import SpanContext, TraceFlags

from clew import clock
from clew.diagnostics import report
from clew.engine import exemplars
from clew.engine.aggregation import LARGEST, Attributes, Number, Period, Sample, State

BATCH: Final = 128
"""How many measurements are added up at once."""
MOST_SAMPLES: Final = 20
"""How many measurements may become exemplars of a point."""
# A reader waits this long for another that is adding up; then it leaves the series out, which loses nothing
_PATIENCE_S: Final = 1.0
_SAMPLED: Final = int(TraceFlags.SAMPLED)


class Tally:
    """What a series came to within a time, and measurements to show for it."""

    __slots__ = ("samples", "state")

    def __init__(self) -> None:
        self.state: Any = None
        self.samples: dict[int, Sample] = {}

    def add(self, state: Any, samples: dict[int, Sample]) -> None:
        """Put more to it; the state is kept, or added to what is there."""
        if self.state is None:
            self.state = state
        elif state is not None:
            self.state.merge(state)
        for key, sample in samples.items():
            if key not in self.samples and len(self.samples) >= MOST_SAMPLES:
                del self.samples[next(iter(self.samples))]
            self.samples[key] = sample


class Series(ABC):
    """One series of a metric that adds up measurements.

    Args:
        metric: the metric's name, for messages.
    """

    __slots__ = (
        "_buffer",
        "_interval",
        "_leaving",
        "_left_behind",
        "_lock",
        "_metric",
        "_pending",
        "_samples",
        "_started_ns",
        "_total",
    )

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self.reset()

    def reset(self) -> None:
        """Forget every measurement, and that there was one. In a forked child the lock may be another thread's."""
        self._lock = threading.Lock()
        self._started_ns = clock.now_ns()
        self._buffer: list[Number] = []
        self._samples: dict[int, Sample] = {}
        self._interval: State | None = None
        self._total, self._pending, self._leaving = Tally(), Tally(), Tally()
        self._left_behind = False

    @property
    def is_added_up(self) -> bool:
        """Whether there were measurements of which only what they came to is left."""
        return self._interval is not None or self._total.state is not None

    def read(self, attributes: Attributes, now_ns: int) -> Any:
        """Return the point of everything so far, or ``None``."""
        if not self._lock.acquire(timeout=_PATIENCE_S):
            return None
        try:
            self._settle()
            if self._total.state is None:
                return None
            period = Period(min(self._started_ns, now_ns), now_ns)
            return self._total.state.point(attributes, period, self._total.samples.values())
        finally:
            self._lock.release()

    def leave(self, attributes: Attributes, now_ns: int, since_ns: int | None) -> Any:
        """Return the point to be sent, or ``None``; until :meth:`left` is called, it is part of the next one as well.

        Args:
            attributes: the labels.
            now_ns: the time.
            since_ns: when the last points left, for a point of what came since then; ``None`` for everything so far.
        """
        self._left_behind = not self._lock.acquire(timeout=_PATIENCE_S)
        if self._left_behind:
            return None
        try:
            self._settle()
            pending, self._pending = self._pending, Tally()
            self._leaving.add(pending.state, pending.samples)
            tally = self._total if since_ns is None else self._leaving
            if tally.state is None:
                return None
            period = Period(min(self._started_ns if since_ns is None else since_ns, now_ns), now_ns)
            return tally.state.point(attributes, period, self._leaving.samples.values())
        finally:
            self._lock.release()

    def left(self) -> None:
        """Forget what :meth:`leave` returned: it is on its way."""
        if not self._left_behind:
            self._leaving = Tally()

    def _fold(self) -> None:
        """Add up what was appended, unless somebody else does."""
        if self._lock.acquire(blocking=False):
            try:
                self._gather()
            finally:
                self._lock.release()

    def _gather(self) -> None:
        buffer = self._buffer
        if size := len(buffer):
            values = buffer[:size]
            del buffer[:size]
            if self._interval is None:
                self._interval = self._new_state()
            self._interval.extend(values)

    def _settle(self) -> None:
        """Give every reader what was measured since one of them read."""
        self._gather()
        samples = self._samples
        if samples:
            self._samples = {}
            # A thread may be about to put one more into what was taken away
            samples = samples.copy()
        if self._interval is not None or samples:
            interval, self._interval = self._interval, None
            self._count(interval, samples)

    def _count(self, interval: State | None, samples: dict[int, Sample]) -> None:
        if interval is not None and self._total.state is None:
            self._total.state = self._new_state()
        self._total.add(interval, samples)
        # The last to take it may keep it
        self._pending.add(interval, samples)

    @abstractmethod
    def _new_state(self) -> State:
        """Return what no measurements come to."""

    def _sample_within(self, value: Number, span: Any) -> None:
        try:
            span_context = span.get_span_context()
            # Most spans that are not sampled are turned away here
            if span_context.trace_flags & _SAMPLED or exemplars.in_any_span:
                self._sample(value, span_context)
        except Exception as error:
            report("current span", error)

    def _sample(self, value: Number, span_context: SpanContext) -> None:
        """Keep a measurement, the first one of its bucket since somebody read."""
        if exemplars.may_be_sampled(span_context):
            self._samples[self._bucket(value)] = Sample(value, span_context, clock.now_ns())

    def _bucket(self, value: Number) -> int:
        return 0

    def _other(self, value: Any, least: float, problem: str) -> None:
        """Take a value that is no plain number within the limits, such as numpy's, if it can be made one."""
        number: Number
        try:
            number = number_of(value)
            if least <= number <= LARGEST:
                self._buffer.append(number)
                if len(self._buffer) >= BATCH:
                    self._fold()
                return
        except Exception:
            problem = f"a {type(value).__name__} is no number"
        report(f"metric {self._metric}", problem)


def number_of(value: Any) -> Number:
    """Return what an app gives as a number as Python's own, an integer where it is one.

    Raises:
        TypeError, ValueError: it isn't one.
    """
    if isinstance(value, (str, bytes, bytearray)):
        raise TypeError("a text is not a number")
    try:
        return int(operator.index(value))
    except TypeError:
        return float(value)


def shown(value: Any) -> str:
    """Return a value that can't be used, for a message."""
    if type(value) is float:
        return repr(value)
    if type(value) is int:
        return str(value) if abs(value) < LARGEST else f"an integer of {value.bit_length()} bits"
    return type(value).__name__
