"""Metrics by name: the registry of the process, read by OTLP, ``/metrics`` and the in-process summary alike."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from opentelemetry.sdk.metrics.export import ScopeMetrics

from clew.catalog.kind import SECONDS_BUCKETS, Metric
from clew.diagnostics import report
from clew.engine.instruments import Counter, Gauge, Histogram, Instrument, Timer, UpDownCounter
from clew.pipeline.providers import SCOPE

MAX_NAME_LENGTH: Final = 255

Kind = TypeVar("Kind", bound=Instrument)


class MetricRegistry:
    """Every instrument of the process, by name. Asking twice for a name gives the same handle."""

    def __init__(self) -> None:
        self.max_series = 2_000
        self._lock = threading.Lock()
        self._instruments: dict[str, Instrument] = {}

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
            if known is None:
                made = kind(declaration, open_labels=open_labels, max_series=lambda: self.max_series)
                self._instruments[declaration.name] = made
                return made
        if type(known) is kind:
            return known
        report(
            f"metric {declaration.name}",
            f"is a {type(known).__name__} already and can't be a {kind.__name__}: choose another name",
        )
        return kind(declaration, open_labels=open_labels, max_series=lambda: self.max_series)

    def scope(self, now_ns: int) -> ScopeMetrics | None:
        """Return the points of now of every instrument, or ``None`` when there are none."""
        with self._lock:
            instruments = list(self._instruments.values())
        metrics = [data for instrument in instruments if (data := instrument.data(now_ns)) is not None]
        return ScopeMetrics(scope=SCOPE, metrics=metrics, schema_url=SCOPE.schema_url or "") if metrics else None

    def reset(self) -> None:
        """Set every series back to nothing: in a forked child, and between tests."""
        self._lock = threading.Lock()
        for instrument in self._instruments.values():
            instrument.reset()


registry: Final = MetricRegistry()


def _declaration(
    name: str, kind: Any, unit: str, description: str, labels: Iterable[str], buckets: Iterable[float]
) -> Metric:
    text = name if isinstance(name, str) and name else "unnamed"
    if text != name or len(text) > MAX_NAME_LENGTH:
        report("metric", f"a metric's name is a text of 1 to {MAX_NAME_LENGTH} characters, not {str(name)[:50]!r}")
    try:
        bounds = tuple(sorted({float(bound) for bound in buckets}))
    except (TypeError, ValueError) as error:
        report(f"metric {text}", f"its buckets must be numbers ({error})")
        bounds = SECONDS_BUCKETS
    return Metric(
        name=text[:MAX_NAME_LENGTH],
        type=kind,
        unit=unit,
        description=description,
        labels=tuple(labels),
        buckets=bounds,
    )


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
    declaration = _declaration(name, "counter", unit, description, labels or (), ())
    return registry.get(Counter, declaration, open_labels=labels is None)


def up_down_counter(
    name: str, *, unit: str = "", description: str = "", labels: Iterable[str] | None = None
) -> UpDownCounter:
    """Return the up-down counter of a name; see :func:`counter`."""
    declaration = _declaration(name, "up_down_counter", unit, description, labels or (), ())
    return registry.get(UpDownCounter, declaration, open_labels=labels is None)


def gauge(name: str, *, unit: str = "", description: str = "", labels: Iterable[str] | None = None) -> Gauge:
    """Return the gauge of a name; see :func:`counter`."""
    declaration = _declaration(name, "gauge", unit, description, labels or (), ())
    return registry.get(Gauge, declaration, open_labels=labels is None)


def histogram(
    name: str,
    *,
    unit: str = "",
    description: str = "",
    labels: Iterable[str] | None = None,
    buckets: Iterable[float] = SECONDS_BUCKETS,
) -> Histogram:
    """Return the histogram of a name; see :func:`counter`.

    Args:
        buckets: upper bounds, in the metric's unit; by default those for durations of requests in seconds.
    """
    declaration = _declaration(name, "histogram", unit, description, labels or (), buckets)
    return registry.get(Histogram, declaration, open_labels=labels is None)


def timer(name: str, /, **labels: Any) -> Timer:
    """Return a timer of the histogram of a name, in seconds: a context manager and a decorator.

    Example:
        >>> import clew
        >>> with clew.timer("report.render.duration", format="pdf"):
        ...     pass
    """
    return histogram(name, unit="s").time(**labels)
