"""The wire format of protocol buffers, as much of it as OTLP needs.

Tags stand in the code as the byte they are: the field's number times eight, plus 0 for a varint, 1 for eight bytes, 2 for
what has a length, 5 for four bytes.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

_UINT64: Final = 2**64
# Most lengths, kept since they are looked up more quickly than made
_SHORT: Final = tuple(bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(1024))

double: Final = Struct("<d").pack
fixed32: Final = Struct("<I").pack
fixed64: Final = Struct("<Q").pack
sfixed64: Final = Struct("<q").pack


def varint(number: int) -> bytes:
    r"""Return a whole number from 0 up to 64 bits, in as few bytes as it needs.

    Raises:
        ValueError: it is negative, or too large.

    Example:
        >>> varint(1), varint(300)
        (b'\x01', b'\xac\x02')
    """
    if 0 <= number < 1024:
        return _SHORT[number]
    if 0 < number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if not 0 < number < _UINT64:
        raise ValueError(f"{number} is no unsigned number of 64 bits")
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def int64(number: int) -> bytes:
    """Return a whole number of 64 bits as protobuf's ``int64``: a negative one takes ten bytes."""
    return varint(number if number >= 0 else number + _UINT64)


def sint32(number: int) -> bytes:
    """Return a small number of either sign as protobuf's ``sint32``, in which small ones are short."""
    return varint(number * 2 if number >= 0 else -number * 2 - 1)


def delimited(tag: bytes, data: bytes) -> bytes:
    r"""Return a field that has a length: a text, bytes, or a message.

    Example:
        >>> delimited(b"\x0a", b"clew")
        b'\n\x04clew'
    """
    return tag + varint(len(data)) + data


def counted(tag: bytes, number: int) -> bytes:
    """Return a field that holds a count; nothing for zero, which is what a reader takes a missing one for."""
    return tag + varint(number) if number else b""


def packed(tag: bytes, letter: str, numbers: Any) -> bytes:
    """Return a field of many numbers of eight bytes: ``Q`` for counts, ``d`` for doubles. Nothing where there are none."""
    return delimited(tag, Struct(f"<{len(numbers)}{letter}").pack(*numbers)) if numbers else b""
