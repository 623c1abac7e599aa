"""Metrics by name: the registry of the process, read by OTLP, ``/metrics`` and the in-process summary alike."""

from __future__ import annotations

import atexit
import functools
import importlib
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, TypeVar

from opentelemetry.sdk.metrics.export import Metric as MetricData
from opentelemetry.sdk.metrics.export import ScopeMetrics

from clew import clock
from clew.catalog.kind import SECONDS_BUCKETS, Metric
from clew.diagnostics import report
from clew.engine.bound import use_exemplar_filter
from clew.engine.instruments import Counter, Gauge, Histogram, Instrument, Timer, UpDownCounter
from clew.pipeline.providers import SCOPE
from clew.settings import Settings

MAX_NAME_LENGTH: Final = 255

Exponential = Literal["exponential"]
Kind = TypeVar("Kind", bound=Instrument)


class MetricRegistry:
    """Every instrument of the process, by name. Asking twice for a name gives the same handle."""

    def __init__(self) -> None:
        self.max_series = 2_000
        self._exponential = False
        self._lock = threading.RLock()
        self._instruments: dict[str, Instrument] = {}
        self._before: list[Callable[[], None]] = []
        self._left_ns = self._leaving_ns = clock.now_ns()

    def configure(self, settings: Settings, *, before_collection: Callable[[], None]) -> None:
        """Take over what is chosen for the process; also for the handles that were made before.

        Args:
            settings: how many series there may be, which buckets, which exemplars.
            before_collection: called before points are read, to set what is counted elsewhere.
        """
        self.max_series = settings.max_series
        self.before_collection(before_collection)
        use_exemplar_filter(settings.exemplar_filter)
        self._exponential = settings.histogram_aggregation == "base2_exponential_bucket_histogram"
        for instrument in self._all():
            self._adopt(instrument)

    def before_collection(self, setting: Callable[[], None]) -> None:
        """Have something called before points are read, to set what is counted elsewhere. Once is enough."""
        if setting not in self._before:
            self._before.append(setting)

    def declared(self, declaration: Metric) -> Any:
        """Return the instrument of a metric of the catalogue."""
        kinds: dict[str, type[Instrument]] = {
            "counter": Counter,
            "up_down_counter": UpDownCounter,
            "gauge": Gauge,
            "histogram": Histogram,
        }
        return self.get(kinds[declaration.type], declaration, open_labels=False)

    def get(self, kind: type[Kind], declaration: Metric, *, open_labels: bool) -> Kind:
        """Return the instrument of a name, made on the first call.

        A name that is taken by another kind of instrument is reported; its caller gets a handle that is not exported.
        """
        with self._lock:
            known = self._instruments.get(declaration.name)
            if type(known) is kind:
                return known
            made = kind(declaration, open_labels=open_labels, max_series=lambda: self.max_series)
            self._adopt(made)
            if known is None:
                self._instruments[declaration.name] = made
                return made
        report(
            f"metric {declaration.name}",
            f"is a {type(known).__name__} already and can't be a {kind.__name__}: choose another name",
        )
        return made

    def read(self, now_ns: int) -> ScopeMetrics | None:
        """Return the points of everything so far, or ``None`` when there are none. Nobody else's points become others by it."""
        for setting in self._before:
            setting()
        return _scope([instrument.read(now_ns) for instrument in self._all()])

    def leave(self, now_ns: int, *, delta: bool) -> ScopeMetrics | None:
        """Return the points to be sent, or ``None``. Until :meth:`left` is called, they are part of the next ones as well.

        Args:
            now_ns: the time.
            delta: counters and histograms tell of what came since the last points, not of everything so far.
        """
        for setting in self._before:
            setting()
        self._leaving_ns = now_ns
        since_ns = self._left_ns if delta else None
        return _scope([instrument.leave(now_ns, since_ns) for instrument in self._all()])

    def left(self) -> None:
        """Take note that what :meth:`leave` returned is on its way."""
        self._left_ns = self._leaving_ns
        for instrument in self._all():
            instrument.left()

    def reset(self) -> None:
        """Set every series back to nothing: in a forked child, and between tests."""
        self._lock = threading.RLock()
        self._left_ns = self._leaving_ns = clock.now_ns()
        for instrument in self._all():
            instrument.reset()

    def _adopt(self, instrument: Instrument) -> None:
        if isinstance(instrument, Histogram):
            instrument.adopt(exponential=self._exponential)

    def _all(self) -> list[Instrument]:
        with self._lock:
            return list(self._instruments.values())


def _scope(metrics: list[MetricData | None]) -> ScopeMetrics | None:
    present = [metric for metric in metrics if metric is not None]
    return ScopeMetrics(scope=SCOPE, metrics=present, schema_url=SCOPE.schema_url or "") if present else None


registry: Final = MetricRegistry()


def _declaration(
    name: str,
    kind: Any,
    unit: str,
    description: str,
    labels: Iterable[str],
    buckets: Iterable[float] | Exponential | None = None,
) -> Metric:
    text = name if isinstance(name, str) and name else "unnamed"
    if text != name or len(text) > MAX_NAME_LENGTH:
        report("metric", f"a metric's name is a text of 1 to {MAX_NAME_LENGTH} characters, not {str(name)[:50]!r}")
    bounds: tuple[float, ...] = SECONDS_BUCKETS
    exponential = None if buckets is None else buckets == "exponential"
    if buckets is not None and not isinstance(buckets, str):
        try:
            bounds = tuple(sorted({float(bound) for bound in buckets if math.isfinite(bound)}))
        except (TypeError, ValueError, OverflowError) as error:
            report(f"metric {text}", f"its buckets must be numbers ({error})")
    elif buckets not in (None, "exponential"):
        report(f"metric {text}", f"its buckets must be numbers, or 'exponential', not {buckets[:50]!r}")
    return Metric(
        name=text[:MAX_NAME_LENGTH],
        type=kind,
        unit=unit,
        description=description,
        labels=tuple(labels),
        buckets=bounds,
        exponential=exponential,
    )


@functools.cache
def _see_to_the_exit() -> None:
    """Have the metrics sent at exit, also of a process in which nothing else makes clew configure itself."""
    # Where threads can still be started, which the SDK does to find out what the process is: atexit comes too late for that
    register: Any = getattr(threading, "_register_atexit", atexit.register)
    importlib.import_module("concurrent.futures.thread")
    register(_send_at_exit)


def _send_at_exit() -> None:
    from clew.engine import ending, runtime
    from clew.engine.state import state

    if state.settings is None:
        runtime.ready()
        ending.shutdown()


def _of_the_app(kind: type[Kind], declaration: Metric, *, open_labels: bool) -> Kind:
    _see_to_the_exit()
    return registry.get(kind, declaration, open_labels=open_labels)


def counter(name: str, *, unit: str = "", description: str = "", labels: Iterable[str] | None = None) -> Counter:
    """Return the counter of a name.

    Args:
        name: with dots, such as ``orders.placed``.
        unit: UCUM, such as ``{order}``, ``By`` or ``s``.
        description: one sentence.
        labels: the names that :meth:`Counter.add` takes; others are left out and reported. By default any.

    Example:
        >>> import clew
        >>> clew.counter("orders.placed", unit="{order}", labels=("channel",)).add(1, channel="web")
    """
    declaration = _declaration(name, "counter", unit, description, labels or ())
    return _of_the_app(Counter, declaration, open_labels=labels is None)


def up_down_counter(
    name: str, *, unit: str = "", description: str = "", labels: Iterable[str] | None = None
) -> UpDownCounter:
    """Return the up-down counter of a name; see :func:`counter`."""
    declaration = _declaration(name, "up_down_counter", unit, description, labels or ())
    return _of_the_app(UpDownCounter, declaration, open_labels=labels is None)


def gauge(name: str, *, unit: str = "", description: str = "", labels: Iterable[str] | None = None) -> Gauge:
    """Return the gauge of a name; see :func:`counter`."""
    declaration = _declaration(name, "gauge", unit, description, labels or ())
    return _of_the_app(Gauge, declaration, open_labels=labels is None)


def histogram(
    name: str,
    *,
    unit: str = "",
    description: str = "",
    labels: Iterable[str] | None = None,
    buckets: Iterable[float] | Exponential | None = None,
) -> Histogram:
    """Return the histogram of a name; see :func:`counter`.

    Args:
        buckets: upper bounds, in the metric's unit, or ``"exponential"`` for buckets that adapt to what is measured. By default
            those for durations of requests in seconds, unless the settings say that buckets are exponential.

    Example:
        >>> import clew
        >>> clew.histogram("upload.size", unit="By", buckets="exponential").record(52_133)
    """
    declaration = _declaration(name, "histogram", unit, description, labels or (), buckets)
    return _of_the_app(Histogram, declaration, open_labels=labels is None)


def timer(name: str, /, **labels: Any) -> Timer:
    """Return a timer of the histogram of a name, in seconds: a context manager and a decorator.

    Example:
        >>> import clew
        >>> with clew.timer("report.render.duration", format="pdf"):
        ...     pass
    """
    return histogram(name, unit="s").time(**labels)
