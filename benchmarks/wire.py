"""Counts what is in an OTLP request without decoding it: lengths are skipped. Standard library only.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

# Field numbers from the request down to what is counted
_SPANS: Final = ((1,), (2,), (2,))
_POINTS: Final = ((1,), (2,), (2,), (5, 7, 9, 10, 11), (1,))
PATHS: Final = {"traces": _SPANS, "logs": _SPANS, "metrics": _POINTS}


def count(signal: str, body: bytes) -> int:
    """Return how many spans, log records or metric points an export request holds.

    Example:
        >>> count("traces", bytes([10, 6, 18, 4, 18, 0, 18, 0]))
        2
    """
    return _count(body, 0, len(body), PATHS[signal])


def _count(body: bytes, start: int, end: int, path: tuple[tuple[int, ...], ...]) -> int:
    wanted, rest = path[0], path[1:]
    total = 0
    for field, at, length in _fields(body, start, end):
        if field in wanted:
            total += _count(body, at, at + length, rest) if rest else 1
    return total


def _fields(body: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, place and length of each length-delimited field of a message."""
    while at < end:
        key, at = _varint(body, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(body, at)
            yield key >> 3, at, length
            at += length
        elif kind == 0:
            _, at = _varint(body, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} is not of OTLP")


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
