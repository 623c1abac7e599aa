"""What a kind of operation means for the engine, worked out once: its instruments, and which attributes become their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.trace import SpanKind

from clew.catalog.kind import Metric, OperationKind, Role
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


class Handles:
    """Handles of one metric's series, remembered by the values of their labels.

    Args:
        metric: of the catalogue.
    """

    __slots__ = ("_instrument", "_known", "_labels")

    def __init__(self, metric: Metric) -> None:
        self._instrument: Any = registry.declared(metric)
        self._labels = metric.labels
        self._known: dict[Values, Any] = {}

    def of(self, attributes: Mapping[str, Any]) -> Any:
        """Return the handle of the series that something with these attributes belongs to; what it lacks is no label."""
        key = tuple(map(attributes.get, self._labels))
        return self._known.get(key) or self._find(key)

    def _find(self, key: tuple[Any, ...]) -> Any:
        labels = {name: value for name, value in zip(self._labels, key, strict=True) if value is not None}
        found = self._instrument.bind(**labels)
        # 1, True and 1.0 are equal as keys, and are no equal labels: only texts are remembered
        if len(self._known) < _MAX_REMEMBERED and all(type(value) is str or value is None for value in key):
            self._known[key] = found
        return found


class Plan:
    """One kind's.

    Args:
        kind: the row of the catalogue.

    Attributes:
        active: returns the count of operations in progress that one with some attributes belongs to; ``None`` where the kind has none.
        duration: returns the histogram of durations that it belongs to; ``None`` where the kind has none.
    """

    __slots__ = (
        "active",
        "duration",
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
        self.is_timed = bool(kind.active or kind.duration or kind.events.end or kind.events.error)
        self.active: Any = Handles(kind.active).of if kind.active is not None else None
        self.duration: Any = Handles(kind.duration).of if kind.duration is not None else None


plans: Final[dict[str, Plan]] = {}


def plan_of(kind: OperationKind) -> Plan:
    """Return the plan of a kind, made on the first call."""
    plan = plans.get(kind.name)
    if plan is None:
        plan = plans.setdefault(kind.name, Plan(kind))
    return plan
