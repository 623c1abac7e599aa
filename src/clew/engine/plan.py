"""What a kind of operation means for the engine, worked out once: its instruments, and which attributes become their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from opentelemetry.trace import SpanKind

from clew.catalog.kind import OperationKind, Role
from clew.engine.instruments import BoundCounter, BoundHistogram, Histogram, UpDownCounter
from clew.engine.metrics import registry

Values = tuple[str | None, ...]

_SPAN_KINDS: Final = {
    Role.INTERNAL: SpanKind.INTERNAL,
    Role.SERVER: SpanKind.SERVER,
    Role.CLIENT: SpanKind.CLIENT,
    Role.PRODUCER: SpanKind.PRODUCER,
    Role.CONSUMER: SpanKind.CONSUMER,
}
_MAX_REMEMBERED: Final = 10_000


class Plan:
    """One kind's. Handles of series are remembered by the values of their labels.

    Args:
        kind: the row of the catalogue.
    """

    __slots__ = (
        "_active",
        "_active_series",
        "_duration",
        "_duration_series",
        "active_labels",
        "duration_labels",
        "end_event",
        "error_event",
        "is_timed",
        "level",
        "logger_name",
        "span_kind",
        "start_event",
    )

    def __init__(self, kind: OperationKind) -> None:
        self.span_kind = _SPAN_KINDS[kind.role]
        self.start_event = kind.events.start
        self.end_event = kind.events.end
        self.error_event = kind.events.error
        self.level: str = kind.events.level
        self.logger_name = f"clew.{kind.name}"
        self.active_labels = kind.active.labels if kind.active is not None else None
        self.duration_labels = kind.duration.labels if kind.duration is not None else None
        self.is_timed = bool(kind.active or kind.duration or kind.events.end or kind.events.error)
        self._active: UpDownCounter | None = registry.declared(kind.active) if kind.active is not None else None
        self._duration: Histogram | None = registry.declared(kind.duration) if kind.duration is not None else None
        self._active_series: dict[Values, BoundCounter] = {}
        self._duration_series: dict[Values, BoundHistogram] = {}

    def active(self, attributes: Mapping[str, Any]) -> BoundCounter:
        """Return the count of operations in progress that one with these attributes belongs to; only where the kind has one."""
        key = tuple(map(attributes.get, cast("tuple[str, ...]", self.active_labels)))
        return self._active_series.get(key) or self._find(key, self._active_series, self.active_labels, self._active)

    def duration(self, attributes: Mapping[str, Any]) -> BoundHistogram:
        """Return the histogram of durations that an operation with these attributes belongs to; only where the kind has one."""
        key = tuple(map(attributes.get, cast("tuple[str, ...]", self.duration_labels)))
        return self._duration_series.get(key) or self._find(
            key, self._duration_series, self.duration_labels, self._duration
        )

    def _find(self, key: tuple[Any, ...], series: dict[Any, Any], names: Any, instrument: Any) -> Any:
        found = instrument.bind(**{name: value for name, value in zip(names, key, strict=True) if value is not None})
        # 1, True and 1.0 are equal as keys, and are no equal labels: only texts are remembered
        if len(series) < _MAX_REMEMBERED and all(type(value) is str or value is None for value in key):
            series[key] = found
        return found


plans: Final[dict[str, Plan]] = {}


def plan_of(kind: OperationKind) -> Plan:
    """Return the plan of a kind, made on the first call."""
    plan = plans.get(kind.name)
    if plan is None:
        plan = plans.setdefault(kind.name, Plan(kind))
    return plan
