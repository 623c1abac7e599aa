"""From finished spans, log records and metric points to OTLP bytes, redacted on the way.

It writes the bytes itself: by way of protobuf's message objects it costs five times as much. Nothing outside this package
knows how a batch becomes bytes.

Source: https://opentelemetry.io/docs/specs/otlp/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import ScopeMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from clew.pipeline.encoding.logs import LogMessages
from clew.pipeline.encoding.metrics import MetricMessages
from clew.pipeline.encoding.spans import SpanMessages
from clew.pipeline.encoding.values import Pairs, Values
from clew.pipeline.encoding.wire import delimited, varint
from clew.pipeline.records import LogItem
from clew.pipeline.redaction import Redactor

# Items encoded between two pauses: about 0.2 ms
ITEMS_BETWEEN_PAUSES: Final = 32
_MAX_REMEMBERED_SCOPES: Final = 1_000

Item = TypeVar("Item")


class Encoder:
    """Encodes batches for one resource. It is used by one thread at a time.

    Args:
        resource: what every batch is stamped with: a forked child stamps what it inherited as its own.
        redactor: replaces secrets in keys, values, names and messages.
        max_value_length: characters that are kept of a text; of a stack trace it is
            :data:`~clew.pipeline.coercion.MAX_STACKTRACE_LENGTH`.

    Example:
        >>> from opentelemetry.sdk.resources import Resource
        >>> from clew.pipeline.redaction import Redactor
        >>> Encoder(Resource.get_empty(), Redactor()).spans([])
        b''
    """

    def __init__(self, resource: Resource, redactor: Redactor, *, max_value_length: int = 8_192) -> None:
        values = Values(redactor, max_value_length)
        self._values = values
        self._spans = SpanMessages(values)
        self._logs = LogMessages(values)
        self._metrics = MetricMessages(values)
        self._scope_attributes = Pairs(values, b"\x1a")
        self._resource = delimited(b"\x0a", b"".join(Pairs(values, b"\x0a").encode(resource.attributes)))
        self._resource_schema_url = self._schema_url(resource.schema_url)
        # By identity: two that are equal may differ in attributes such as 1 and True
        self._scopes: dict[int, tuple[InstrumentationScope | None, tuple[bytes, bytes]]] = {}

    def spans(self, spans: Sequence[ReadableSpan], pause: Callable[[], object] | None = None) -> bytes:
        """Encode finished spans as an ``ExportTraceServiceRequest``.

        Args:
            pause: called now and then while a batch is encoded, so that the app's threads can run.

        Raises:
            Exception: one of them can't be encoded: the caller tries again without it.
        """
        return self._batch(spans, self._spans.encode, pause)

    def logs(self, records: Sequence[LogItem | ReadableLogRecord], pause: Callable[[], object] | None = None) -> bytes:
        """Encode log records as an ``ExportLogsServiceRequest``; see :meth:`spans`."""
        return self._batch(records, self._logs.encode, pause)

    def metrics(self, scopes: Sequence[ScopeMetrics]) -> bytes:
        """Encode metric points as an ``ExportMetricsServiceRequest``.

        Raises:
            Exception: one of the points can't be encoded.
        """
        encode = self._metrics.encode
        return self._request(
            [
                (
                    self._scope(scope.scope),
                    [part for metric in scope.metrics for part in _item(encode(metric))],
                )
                for scope in scopes
            ]
        )

    def _batch(
        self,
        items: Sequence[Item],
        encode: Callable[[Item], tuple[InstrumentationScope | None, bytes]],
        pause: Callable[[], object] | None,
    ) -> bytes:
        by_scope: dict[tuple[bytes, bytes], list[bytes]] = {}
        latest: Any = by_scope
        for start in range(0, len(items), ITEMS_BETWEEN_PAUSES):
            if start and pause is not None:
                pause()
            for item in items[start : start + ITEMS_BETWEEN_PAUSES]:
                scope, message = encode(item)
                if scope is not latest:
                    parts = by_scope.setdefault(self._scope(scope), [])
                    latest = scope
                parts += (b"\x12", varint(len(message)), message)
        return self._request(by_scope.items())

    def _request(self, scopes: Iterable[tuple[tuple[bytes, bytes], list[bytes]]]) -> bytes:
        encoded = [delimited(b"\x12", b"".join((scope, *parts, schema_url))) for (scope, schema_url), parts in scopes]
        if not encoded:
            return b""
        return delimited(b"\x0a", b"".join((self._resource, *encoded, self._resource_schema_url)))

    def _scope(self, scope: InstrumentationScope | None) -> tuple[bytes, bytes]:
        """Return a scope's message and its schema URL, as fields."""
        known = self._scopes.get(id(scope))
        if known is not None:
            return known[1]
        if scope is None:
            encoded = delimited(b"\x0a", b""), b""
        else:
            name, version = self._values.text(scope.name or ""), self._values.text(scope.version or "")
            attributes = self._scope_attributes.encode(scope.attributes)
            message = b"".join((delimited(b"\x0a", name), delimited(b"\x12", version), *attributes))
            encoded = delimited(b"\x0a", message), self._schema_url(scope.schema_url)
        if len(self._scopes) >= _MAX_REMEMBERED_SCOPES:
            self._scopes.clear()
        # Kept along with it, a scope's id is no other's
        self._scopes[id(scope)] = scope, encoded
        return encoded

    def _schema_url(self, url: str | None) -> bytes:
        return delimited(b"\x1a", self._values.text(url)) if url else b""


def _item(message: bytes) -> tuple[bytes, bytes, bytes]:
    return b"\x12", varint(len(message)), message


def point_count(scopes: Iterable[ScopeMetrics]) -> int:
    """Return how many metric points a collection holds."""
    return sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics)
