"""Finished spans as OTLP's ``Span`` messages.

Source: https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.span import TraceState

from clew.pipeline.encoding.values import Pairs, Texts, Values
from clew.pipeline.encoding.wire import counted, delimited, fixed32, fixed64, varint

# Fields 1 and 2: the trace's id in two halves, the span's id; in the second, field 4, the parent's
_ids: Final = Struct(">HQQHQ").pack
_ids_with_parent: Final = Struct(">HQQHQHQ").pack
# Fields 7, 8 and 16: start, end, flags
_times_and_flags: Final = Struct("<BQBQHI").pack
_HALF: Final = 2**64 - 1
# OTLP counts kinds from 1, and has them in the order of OpenTelemetry's API
_KINDS: Final = {kind.value: b"\x30" + varint(kind.value + 1) for kind in SpanKind}
_UNSET: Final = b"\x7a\x00"
_NO_TRACE_STATE: Final = TraceState.get_default()
# The lower eight bits are W3C's trace flags; these say whether the parent, or what is linked to, is of another process
_KNOWS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x300
# What may be read past a span's public properties, because they are known to return just that
_DIRECT_MODULES: Final = frozenset({"opentelemetry.sdk.trace", "clew.pipeline.tracing"})
_PROPERTIES: Final = (
    "context",
    "parent",
    "name",
    "kind",
    "start_time",
    "end_time",
    "attributes",
    "events",
    "links",
    "status",
    "instrumentation_scope",
)


class SpanMessages:
    """Encodes spans.

    Args:
        values: encodes what their attributes hold.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._names = Texts(values, b"\x2a")
        self._attributes = Pairs(values, b"\x4a")
        self._event_names = Texts(values, b"\x12")
        self._event_attributes = Pairs(values, b"\x1a")
        self._link_attributes = Pairs(values, b"\x22")
        self._direct: dict[type, bool] = {}

    def encode(self, span: ReadableSpan) -> tuple[InstrumentationScope | None, bytes]:
        """Return a span's scope and its message."""
        kind = type(span)
        direct = self._direct.get(kind)
        if direct is None:
            direct = self._direct[kind] = _is_direct(kind)
        attributes: Mapping[str, Any] | None
        events: Sequence[Event]
        links: Sequence[Link]
        if direct:
            context, parent, status, scope = span._context, span._parent, span._status, span._instrumentation_scope
            attributes, events, links = span._attributes, span._events, span._links
            head = self._names[span._name] + _KINDS[span._kind._value_]
            start_ns, end_ns = span._start_time, span._end_time
        else:
            context, parent, status, scope = span.context, span.parent, span.status, span.instrumentation_scope
            attributes, events, links = span.attributes, span.events, span.links
            head = self._names[span.name] + _KINDS[span.kind.value]
            start_ns, end_ns = span.start_time, span.end_time
        assert context is not None
        trace_id, span_id, _, flags, trace_state, _ = context
        if parent is None:
            ids = _ids(0x0A10, trace_id >> 64, trace_id & _HALF, 0x1208, span_id)
            remote = _KNOWS_REMOTE
        else:
            _, parent_id, is_remote, _, _, _ = parent
            ids = _ids_with_parent(0x0A10, trace_id >> 64, trace_id & _HALF, 0x1208, span_id, 0x2208, parent_id)
            remote = _IS_REMOTE if is_remote else _KNOWS_REMOTE
        parts = [ids, head, _times_and_flags(0x39, start_ns or 0, 0x41, end_ns or 0, 0x0185, flags & 0xFF | remote)]
        if attributes:
            parts += self._attributes.encode(attributes)
        parts.append(_UNSET if status.status_code is StatusCode.UNSET else self._status(status))
        if events:
            parts += self._events(events)
        if links:
            parts += self._links(links)
        if trace_state is not _NO_TRACE_STATE:
            parts.append(_trace_state(trace_state))
        if dropped := span.dropped_attributes:
            parts.append(counted(b"\x50", dropped))
        if dropped := span.dropped_events:
            parts.append(counted(b"\x60", dropped))
        if dropped := span.dropped_links:
            parts.append(counted(b"\x70", dropped))
        return scope, b"".join(parts)

    def _events(self, events: Iterable[Event]) -> list[bytes]:
        return [
            delimited(
                b"\x5a",
                b"".join(
                    (
                        b"\x09",
                        fixed64(event.timestamp or 0),
                        self._event_names[event.name],
                        *self._event_attributes.encode(event.attributes),
                        counted(b"\x20", event.dropped_attributes),
                    )
                ),
            )
            for event in events
        ]

    def _links(self, links: Iterable[Link]) -> list[bytes]:
        return [
            delimited(
                b"\x6a",
                b"".join(
                    (
                        b"\x0a\x10",
                        link.context.trace_id.to_bytes(16, "big"),
                        b"\x12\x08",
                        link.context.span_id.to_bytes(8, "big"),
                        _trace_state(link.context.trace_state),
                        *self._link_attributes.encode(link.attributes),
                        counted(b"\x28", link.dropped_attributes),
                        b"\x35",
                        fixed32(
                            link.context.trace_flags & 0xFF | (_IS_REMOTE if link.context.is_remote else _KNOWS_REMOTE)
                        ),
                    )
                ),
            )
            for link in links
        ]

    def _status(self, status: Status) -> bytes:
        message = delimited(b"\x12", self._values.text(status.description)) if status.description else b""
        return delimited(b"\x7a", message + counted(b"\x18", status.status_code.value))


def _trace_state(state: TraceState | None) -> bytes:
    # In a span and in a link alike, it is field 3
    return delimited(b"\x1a", state.to_header().encode()) if state else b""


def _is_direct(kind: type) -> bool:
    """Tell whether the public properties of a class of spans are the SDK's or clew's, which return plain attributes."""
    return all(
        next((owner.__module__ for owner in kind.__mro__ if name in vars(owner)), "") in _DIRECT_MODULES
        for name in _PROPERTIES
    )
