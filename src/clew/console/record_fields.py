"""The fields that spans, log records and metric points have in common, read from OTLP messages and checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clew.console.model import Resource, Scope
from clew.console.values import AttributeValue

_LATEST_UNIX_NANO = 2**63 - 1  # SQLite's integers are signed; this is the year 2262


class RecordRejectedError(Exception):
    """One record cannot be stored; the text says which field and why."""


class Rejections:
    """Counts rejected records and keeps the first reason, for OTLP's partial success.

    Example:
        >>> rejections = Rejections()
        >>> rejections.add("span 'a': trace_id is missing")
        >>> rejections.count, rejections.reason
        (1, "span 'a': trace_id is missing")
    """

    def __init__(self) -> None:
        self.count = 0
        self.reason = ""

    def add(self, reason: str, count: int = 1) -> None:
        """Count `count` records as rejected for `reason`."""
        self.count += count
        self.reason = self.reason or reason


def value_of(message: Any) -> AttributeValue:
    """Return the value in an AnyValue message; one without a value is None."""
    kind = message.WhichOneof("value")
    if kind == "array_value":
        return tuple(value_of(item) for item in message.array_value.values)
    if kind == "kvlist_value":
        return attributes_of(message.kvlist_value.values)
    if kind is None or kind == "string_value_strindex":  # an index into a table that only profiles have
        return None
    value: str | bool | int | float | bytes = getattr(message, kind)
    return value


def attributes_of(messages: Iterable[Any]) -> dict[str, AttributeValue]:
    """Return KeyValue messages as a dict; of a repeated key, which the standard forbids, the last one stays."""
    return {message.key: value_of(message.value) for message in messages}


def resource_of(message: Any) -> Resource:
    """Return the resource of a ResourceSpans, ResourceLogs or ResourceMetrics message."""
    return Resource(attributes=attributes_of(message.resource.attributes), schema_url=message.schema_url)


def scope_of(message: Any) -> Scope:
    """Return the scope of a ScopeSpans, ScopeLogs or ScopeMetrics message."""
    scope = message.scope
    return Scope(
        name=scope.name,
        version=scope.version,
        attributes=attributes_of(scope.attributes),
        schema_url=message.schema_url,
    )


def required_id(field: str, value: bytes, length_bytes: int) -> str:
    """Return an id as hex.

    Raises:
        RecordRejectedError: it has another length, or is all zeros, which the standard calls invalid.
    """
    if len(value) != length_bytes or not any(value):
        shown = value[:20].hex() or "missing"
        raise RecordRejectedError(f"{field} is {shown}: it must be {length_bytes} bytes and not all zeros")
    return value.hex()


def optional_id(field: str, value: bytes, length_bytes: int) -> str | None:
    """Return an id as hex, or None when there is none (empty, or all zeros as some senders have it).

    Raises:
        RecordRejectedError: it has another length.
    """
    if not any(value):
        return None
    return required_id(field, value, length_bytes)


def time_of(field: str, unix_nano: int) -> int:
    """Return a time in Unix nanoseconds.

    Raises:
        RecordRejectedError: it is past the year 2262.
    """
    if unix_nano > _LATEST_UNIX_NANO:
        raise RecordRejectedError(f"{field} is {unix_nano}: it must be before the year 2262, in nanoseconds")
    return unix_nano
