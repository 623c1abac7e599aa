"""OTLP on the wire: a request body to protobuf messages, and the answers, in protobuf and in JSON.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp and #json-protobuf-encoding
"""

from __future__ import annotations

import base64
import json
from enum import Enum
from typing import Any, TypeAlias

from google.protobuf import json_format  # type: ignore[import-untyped, unused-ignore]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from clew.console.errors import BodyRefusedError
from clew.console.wire import count_messages

ExportRequest: TypeAlias = ExportTraceServiceRequest | ExportLogsServiceRequest | ExportMetricsServiceRequest

_ID_KEYS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_COUNT_ABOVE_BYTES = 1024 * 1024  # smaller bodies cannot cost much, so they are spared the counting


class Signal(Enum):
    """The three signals, by the last part of their OTLP path."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


class WireFormat(Enum):
    """How a body is encoded, by its content type."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"


_REQUESTS: dict[Signal, type[ExportRequest]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
}
_RESPONSES: dict[Signal, tuple[Any, str]] = {
    Signal.TRACES: (ExportTraceServiceResponse, "rejected_spans"),
    Signal.METRICS: (ExportMetricsServiceResponse, "rejected_data_points"),
    Signal.LOGS: (ExportLogsServiceResponse, "rejected_log_records"),
}


def wire_format(content_type: str) -> WireFormat:
    """Return the format a Content-Type header names.

    Args:
        content_type: the header; parameters such as a charset are ignored.

    Raises:
        BodyRefusedError: 415, for any other type.

    Example:
        >>> wire_format("application/json; charset=utf-8")
        <WireFormat.JSON: 'application/json'>
    """
    try:
        return WireFormat(content_type.partition(";")[0].strip().lower())
    except ValueError:
        shown = content_type[:80] or "(missing)"
        raise BodyRefusedError(
            415, f"Content-Type {shown!r} is not OTLP: send application/x-protobuf or application/json"
        ) from None


def decode_request(signal: Signal, body: bytes, form: WireFormat, *, max_messages: int) -> ExportRequest:
    """Return the export request in a body.

    Args:
        signal: which of the three requests it is.
        body: the decompressed body.
        form: how it is encoded.
        max_messages: nested messages it may hold.

    Raises:
        BodyRefusedError: 400 malformed, 413 too many messages.

    Example:
        >>> request = decode_request(Signal.LOGS, b'{"resourceLogs": []}', WireFormat.JSON, max_messages=10)
        >>> len(request.resource_logs)
        0
    """
    if form is WireFormat.JSON:
        return _decode_json(signal, body, max_messages)
    kind = _REQUESTS[signal]
    if len(body) > _COUNT_ABOVE_BYTES and count_messages(body, kind.DESCRIPTOR, stop_after=max_messages) > max_messages:
        raise _too_many_messages(max_messages)
    request = kind()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise BodyRefusedError(400, f"the body is not a protobuf {kind.__name__}, or is nested too deeply") from None
    return request


def success_body(signal: Signal, form: WireFormat, *, rejected: int, reason: str) -> bytes:
    """Return the body of a 200 answer, with a partial success when records were rejected.

    Args:
        signal: what was sent.
        form: the encoding of the request, which the answer keeps.
        rejected: how many records were not stored.
        reason: one sentence on why, for the sender.

    Example:
        >>> success_body(Signal.TRACES, WireFormat.JSON, rejected=0, reason="")
        b'{}'
    """
    response_type, rejected_field = _RESPONSES[signal]
    response = response_type()
    if rejected or reason:
        setattr(response.partial_success, rejected_field, rejected)
        response.partial_success.error_message = reason
    if form is WireFormat.JSON:
        return str(json_format.MessageToJson(response, indent=None)).encode()
    return bytes(response.SerializeToString())


def status_body(form: WireFormat, *, code: int, message: str) -> bytes:
    r"""Return a google.rpc.Status, the body of every OTLP error answer.

    Written out by hand: its two fields are not worth a dependency on googleapis-common-protos.

    Args:
        form: the encoding to answer in.
        code: google.rpc.Code number, such as 3 for INVALID_ARGUMENT.
        message: one sentence for the sender.

    Example:
        >>> status_body(WireFormat.PROTOBUF, code=3, message="no")
        b'\x08\x03\x12\x02no'
    """
    if form is WireFormat.JSON:
        return json.dumps({"code": code, "message": message}).encode()
    text = message.encode("utf-8", "replace")
    return b"\x08" + _varint(code) + b"\x12" + _varint(len(text)) + text


def _decode_json(signal: Signal, body: bytes, max_messages: int) -> ExportRequest:
    kind = _REQUESTS[signal]
    try:
        content = json.loads(body)
    except RecursionError:
        raise BodyRefusedError(400, "the JSON body is nested too deeply") from None
    except ValueError as error:  # also not UTF-8, or a number of thousands of digits
        raise BodyRefusedError(400, f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BodyRefusedError(400, f"the JSON body is a {type(content).__name__}: send an object")
    _prepare_json(content, max_messages)
    request = kind()
    try:
        json_format.ParseDict(content, request, ignore_unknown_fields=True)
    except (json_format.ParseError, RecursionError) as error:
        raise BodyRefusedError(400, f"the JSON body is not an {kind.__name__}: {str(error)[:300]}") from None
    return request


def _prepare_json(content: dict[str, Any], max_messages: int) -> None:
    """Turn the ids, hex in OTLP's JSON, into the base64 that protobuf's JSON wants, in place; count the objects."""
    waiting: list[Any] = [content]
    objects = 0
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(item for item in node if isinstance(item, dict | list))
            continue
        objects += 1
        if objects > max_messages:
            raise _too_many_messages(max_messages)
        for key, value in node.items():
            if isinstance(value, dict | list):
                waiting.append(value)
            elif key in _ID_KEYS and value is not None:
                node[key] = _base64_of_hex(key, value)


def _base64_of_hex(key: str, value: object) -> str:
    if isinstance(value, str):
        try:
            return base64.b64encode(bytes.fromhex(value)).decode("ascii")
        except ValueError:
            pass
    raise BodyRefusedError(400, f"{key} {str(value)[:80]!r} is not hexadecimal")


def _too_many_messages(max_messages: int) -> BodyRefusedError:
    return BodyRefusedError(413, f"the body holds more than {max_messages} messages: send smaller batches")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
