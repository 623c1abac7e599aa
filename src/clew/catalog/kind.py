"""What a kind of operation, a metric and an event are made of. The rows themselves are in the modules beside this one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Literal

SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The bucket boundaries, in seconds, that the HTTP and messaging conventions advise."""

LONG_SECONDS_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Bucket boundaries, in seconds, for work that may take hours."""

BYTES_BUCKETS = (0.0, 128.0, 1024.0, 8192.0, 65536.0, 524288.0, 4194304.0, 33554432.0)
"""Bucket boundaries, in bytes, for sizes of bodies."""

TOKENS_BUCKETS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0)
"""Bucket boundaries, in tokens, that the GenAI conventions advise."""

LLM_SECONDS_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bucket boundaries, in seconds, that the GenAI conventions advise."""

MetricType = Literal["counter", "up_down_counter", "gauge", "histogram"]


class Role(Enum):
    """The part that an operation plays between services: OpenTelemetry's span kinds."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"
    PRODUCER = "producer"
    CONSUMER = "consumer"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A declared metric.

    Attributes:
        name: the OpenTelemetry name, with dots.
        type: how its values are aggregated.
        unit: the UCUM unit, such as ``s``, ``By`` or ``{request}``.
        description: one sentence.
        labels: the attributes that tell its series apart.
        buckets: upper bounds of a histogram's buckets, in the metric's unit.
        exponential: whether a histogram has exponential buckets instead; ``None`` leaves it to the settings.
    """

    name: str
    type: MetricType
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS_BUCKETS
    exponential: bool | None = None


@dataclass(frozen=True, kw_only=True)
class OperationEvents:
    """The log events that an operation writes when it starts, ends and fails; ``None`` writes nothing.

    ``others`` are written about operations of the kind by whoever notices something.
    """

    start: str | None = None
    end: str | None = None
    error: str | None = None
    level: Literal["debug", "info"] = "info"
    others: tuple[str, ...] = ()


_PLACEHOLDER = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True, kw_only=True)
class OperationKind:
    """One kind of work, from which its span, metrics, log events and history row are derived.

    Attributes:
        name: the kind, as it stands in records and in the reference.
        span_name: the span's name; ``{attribute}`` is replaced. Of low cardinality.
        role: the span kind.
        labels: the only attributes that may become metric labels.
        duration: the histogram of durations in seconds, labelled by ``labels`` and ``error.type``, or ``None``.
        active: the up-down counter of operations in progress, labelled by ``active_labels``, or ``None``.
        events: the log events.
        record: the table that keeps its durable record, by name, or ``None``.
        description: one sentence for the reference.

    Example:
        >>> kind = OperationKind(name="job", span_name="run {clew.job.name}", description="A run of a job.")
        >>> kind.title({"clew.job.name": "digest"})
        'run digest'
    """

    name: str
    span_name: str
    description: str
    role: Role = Role.INTERNAL
    labels: tuple[str, ...] = ()
    duration: Metric | None = None
    active: Metric | None = None
    events: OperationEvents = field(default_factory=OperationEvents)
    record: str | None = None

    @cached_property
    def _template(self) -> tuple[str, tuple[str, ...]]:
        return _PLACEHOLDER.sub("%s", self.span_name.replace("%", "%%")), tuple(_PLACEHOLDER.findall(self.span_name))

    def title(self, attributes: dict[str, object]) -> str:
        """Return the span's name for the given attributes; one that is missing leaves no trace."""
        template, keys = self._template
        return (template % tuple([attributes.get(key, "") for key in keys])).strip() or self.name
