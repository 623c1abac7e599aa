"""Log records as OTLP's ``LogRecord`` messages.

Source: https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/logs/v1/logs.proto
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from clew.pipeline.encoding.values import Pairs, Texts, Values
from clew.pipeline.encoding.wire import counted, delimited, fixed32
from clew.pipeline.records import LogItem

# Fields 1 and 11: when it happened, when it was seen
_times: Final = Struct("<BQBQ").pack
# Fields 9 and 10: the trace's id in two halves, the span's id
_ids: Final = Struct(">HQQHQ").pack
_HALF: Final = 2**64 - 1
_SAMPLED: Final = b"\x45\x01\x00\x00\x00"


class LogMessages:
    """Encodes log records.

    Args:
        values: encodes what their attributes and bodies hold.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._severities = Texts(values, b"\x1a")
        self._bodies = Texts(values, b"\x0a", b"\x2a")
        self._event_names = Texts(values, b"\x62")
        self._attributes = Pairs(values, b"\x32")

    def encode(self, record: LogItem | ReadableLogRecord) -> tuple[InstrumentationScope | None, bytes]:
        """Return a record's scope and its message."""
        if type(record) is LogItem:
            return record.scope, self._item(record)
        assert isinstance(record, ReadableLogRecord)
        return record.instrumentation_scope, self._record(record)

    def _item(self, item: LogItem) -> bytes:
        attributes, body = item.attributes, item.body
        if callable(attributes):
            attributes = attributes()
        if type(body) is not str:
            body = self._values.plain("", body)
        parts = [
            _times(0x09, item.time_ns, 0x59, item.time_ns),
            counted(b"\x10", item.severity_number),
            self._severities[item.severity_text],
            self._bodies[body] if type(body) is str else delimited(b"\x2a", self._values.value(body)),
            *self._attributes.encode_anything(attributes),
        ]
        trace_id = item.trace_id
        if trace_id:
            parts.append(_ids(0x4A10, trace_id >> 64, trace_id & _HALF, 0x5208, item.span_id))
        if flags := item.trace_flags:
            parts.append(_SAMPLED if flags == 1 else b"\x45" + fixed32(flags))
        return b"".join(parts)

    def _record(self, readable: ReadableLogRecord) -> bytes:
        record = readable.log_record
        parts = [
            _times(0x09, record.timestamp or 0, 0x59, record.observed_timestamp or 0),
            delimited(b"\x2a", self._values.value(record.body)),
            *self._attributes.encode(record.attributes),
            counted(b"\x38", readable.dropped_attributes),
        ]
        if record.severity_number is not None:
            parts.append(counted(b"\x10", record.severity_number.value))
        if record.severity_text:
            parts.append(self._severities[record.severity_text])
        if record.trace_id:
            parts.append(delimited(b"\x4a", record.trace_id.to_bytes(16, "big")))
        if record.span_id:
            parts.append(delimited(b"\x52", record.span_id.to_bytes(8, "big")))
        if record.trace_flags:
            parts.append(b"\x45" + fixed32(record.trace_flags))
        if record.event_name:
            parts.append(self._event_names[record.event_name])
        return b"".join(parts)
