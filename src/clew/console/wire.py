"""Counting the nested messages of a protobuf body without decoding it.

An empty message is two bytes on the wire and up to 180 in memory, so a size limit alone does not bound memory.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from functools import cache
from typing import Any

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MESSAGE_TYPE = 11  # FieldDescriptor.TYPE_MESSAGE


def count_messages(body: bytes, descriptor: Any, *, stop_after: int) -> int:
    """Return how many nested messages a body holds; counting stops once there are more than `stop_after`.

    A malformed body gives a count of what could be read: the decoder that follows says what is wrong with it.

    Args:
        body: an encoded message.
        descriptor: the message type's protobuf descriptor.
        stop_after: no need to count further than this.

    Example:
        >>> from opentelemetry.proto.common.v1.common_pb2 import KeyValueList
        >>> count_messages(KeyValueList(values=[{}, {}]).SerializeToString(), KeyValueList.DESCRIPTOR, stop_after=9)
        2
    """
    count = 0
    waiting = [(0, len(body), descriptor.full_name)]
    _remember(descriptor)
    while waiting:
        position, end, type_name = waiting.pop()
        nested = _NESTED[type_name]
        while position < end:
            tag, position = _read_varint(body, position)
            kind = tag & 7
            if kind == _LENGTH:
                length, position = _read_varint(body, position)
                inner = nested.get(tag >> 3)
                if inner is not None:
                    count += 1
                    if count > stop_after:
                        return count
                    if length:
                        waiting.append((position, min(position + length, end), inner))
                position += length
            elif kind == _VARINT:
                _, position = _read_varint(body, position)
            elif kind == _FIXED64:
                position += 8
            elif kind == _FIXED32:
                position += 4
            else:
                break
    return count


_NESTED: dict[str, dict[int, str]] = {}


@cache
def _remember(descriptor: Any) -> None:
    """Note, for a message type and all types within it, which field numbers hold messages."""
    if descriptor.full_name in _NESTED:
        return
    fields = {item.number: item.message_type for item in descriptor.fields if item.type == _MESSAGE_TYPE}
    _NESTED[descriptor.full_name] = {number: inner.full_name for number, inner in fields.items()}
    for inner in fields.values():
        _remember(inner)


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    end = len(body)
    while position < end:
        byte = body[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            break
        shift += 7
    return result, position
