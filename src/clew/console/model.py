"""What the console stores and answers with: spans, log records and metric points as frozen values.

Times are integers of nanoseconds since the Unix epoch, as in OTLP, because a `datetime` holds microseconds only;
`utc_from_unix_nano` makes an aware datetime of one. Ids are lower-case hex.

Source: https://github.com/open-telemetry/opentelemetry-proto (v1)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from clew.console.values import Attributes, AttributeValue

SPAN_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
SPAN_STATUSES = ("unset", "ok", "error")
SPAN_STATUS_ERROR = 2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_from_unix_nano(unix_nano: int) -> datetime:
    """Return the aware UTC datetime of a Unix time, cut to whole microseconds.

    Args:
        unix_nano: nanoseconds since 1970-01-01T00:00:00Z.

    Raises:
        OverflowError: the time is past the year 9999.

    Example:
        >>> utc_from_unix_nano(1_700_000_000_123_456_789).isoformat()
        '2023-11-14T22:13:20.123456+00:00'
    """
    return _EPOCH + timedelta(microseconds=unix_nano // 1000)


def unix_nano_from_utc(moment: datetime) -> int:
    """Return nanoseconds since the Unix epoch for an aware datetime, exactly.

    Args:
        moment: an aware datetime, of any zone.

    Raises:
        ValueError: the datetime has no time zone.

    Example:
        >>> unix_nano_from_utc(datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))
        1700000000000000000
    """
    if moment.tzinfo is None:
        raise ValueError(f"the time {moment.isoformat()} has no time zone: give an aware datetime, such as UTC")
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """Who sent the telemetry.

    Fields: `attributes` as sent, `schema_url` (may be empty); `service` is the `service.name` attribute, or
    ``unknown_service``.
    """

    attributes: Attributes = field(default_factory=dict)
    schema_url: str = ""

    @property
    def service(self) -> str:
        """The `service.name` attribute as text, or ``unknown_service`` when it is missing or empty."""
        name = self.attributes.get("service.name")
        return str(name) if name not in (None, "") else "unknown_service"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """The instrumentation library: `name`, `version`, `attributes`, `schema_url`; any of them may be empty."""

    name: str = ""
    version: str = ""
    attributes: Attributes = field(default_factory=dict)
    schema_url: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanEvent:
    """Something that happened within a span: `name`, `time_unix_nano`, `attributes`, `dropped_attributes_count`."""

    name: str
    time_unix_nano: int
    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanLink:
    """A link to another span: hex `trace_id` and `span_id` of that span, `trace_state`, `attributes`, `flags`."""

    trace_id: str
    span_id: str
    trace_state: str = ""
    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0
    flags: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One span, as sent.

    `parent_span_id` is None for a root; `kind` indexes `SPAN_KINDS` and `status_code` indexes `SPAN_STATUSES` (numbers
    a newer sender uses are kept). Times are Unix nanoseconds; `duration_s` is seconds and never negative.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    trace_state: str = ""
    flags: int = 0
    name: str
    kind: int = 0
    start_time_unix_nano: int
    end_time_unix_nano: int
    status_code: int = 0
    status_message: str = ""
    attributes: Attributes = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()
    dropped_attributes_count: int = 0
    dropped_events_count: int = 0
    dropped_links_count: int = 0
    resource: Resource
    scope: Scope

    @property
    def service(self) -> str:
        """Name of the service that made the span."""
        return self.resource.service

    @property
    def start_time(self) -> datetime:
        """Start as an aware UTC datetime."""
        return utc_from_unix_nano(self.start_time_unix_nano)

    @property
    def duration_s(self) -> float:
        """Seconds from start to end; 0 when the sender's clock went backwards."""
        return max(0, self.end_time_unix_nano - self.start_time_unix_nano) / 1e9

    @property
    def is_error(self) -> bool:
        """Whether the span's status is error."""
        return self.status_code == SPAN_STATUS_ERROR


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRecord:
    """One log record, as sent.

    `time_unix_nano` is when it happened; senders may leave it 0 and give only `observed_time_unix_nano`, which
    `time` then falls back on. `severity_number` is OTLP's 0 (unset) or 1 to 24.
    """

    time_unix_nano: int = 0
    observed_time_unix_nano: int = 0
    severity_number: int = 0
    severity_text: str = ""
    body: AttributeValue = None
    attributes: Attributes = field(default_factory=dict)
    dropped_attributes_count: int = 0
    flags: int = 0
    trace_id: str | None = None
    span_id: str | None = None
    event_name: str = ""
    resource: Resource
    scope: Scope

    @property
    def service(self) -> str:
        """Name of the service that wrote the record."""
        return self.resource.service

    @property
    def time(self) -> datetime:
        """When it happened, or else was observed, as an aware UTC datetime."""
        return utc_from_unix_nano(self.time_unix_nano or self.observed_time_unix_nano)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exemplar:
    """A sample measurement behind a metric point: `time_unix_nano`, `value`, and the span it was made in, if any."""

    time_unix_nano: int
    value: int | float
    trace_id: str | None = None
    span_id: str | None = None
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """A histogram's state: `count`, `sum`, `min`, `max` (None when not sent), `bounds` and one more `bucket_counts`."""

    count: int
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    bounds: tuple[float, ...] = ()
    bucket_counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ExponentialHistogram:
    """An exponential histogram's state; a bucket is `2**2**-scale` wide."""

    count: int
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    scale: int = 0
    zero_count: int = 0
    zero_threshold: float = 0.0
    positive_offset: int = 0
    positive_counts: tuple[int, ...] = ()
    negative_offset: int = 0
    negative_counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiles:
    """OTLP's legacy summary point: `count`, `sum` and `quantiles`, pairs of quantile (0 to 1) and value."""

    count: int
    sum: float
    quantiles: tuple[tuple[float, float], ...] = ()


PointValue: TypeAlias = int | float | Histogram | ExponentialHistogram | Quantiles | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What a metric is: `name`, `type` (gauge, sum, histogram, exponential_histogram, summary), `unit`, `description`.

    `temporality` is unspecified, delta or cumulative; `is_monotonic` says whether a sum only grows.
    """

    name: str
    type: str
    unit: str = ""
    description: str = ""
    temporality: str = "unspecified"
    is_monotonic: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricPoint:
    """One point of one series. `value` is None when the sender says that none was recorded."""

    time_unix_nano: int
    start_time_unix_nano: int = 0
    value: PointValue
    flags: int = 0
    exemplars: tuple[Exemplar, ...] = ()

    @property
    def time(self) -> datetime:
        """Time of the point as an aware UTC datetime."""
        return utc_from_unix_nano(self.time_unix_nano)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredPoint:
    """A metric point with the series it belongs to, as it comes in."""

    metric: Metric
    attributes: Attributes
    point: MetricPoint
    resource: Resource
    scope: Scope


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one request brings: records to store, and how many were `rejected` for which first `reason`."""

    spans: tuple[Span, ...] = ()
    logs: tuple[LogRecord, ...] = ()
    points: tuple[MeasuredPoint, ...] = ()
    rejected: int = 0
    reason: str = ""

    def __len__(self) -> int:
        return len(self.spans) + len(self.logs) + len(self.points)
