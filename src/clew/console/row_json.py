"""The parts of a record that one JSON column holds: span events, exemplars, and the value of a metric point."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from clew.console.model import Exemplar, ExponentialHistogram, Histogram, PointValue, Quantiles, SpanEvent
from clew.console.values import (
    Json,
    attributes_from_json,
    attributes_to_json,
    dump_json,
    from_json_value,
    to_json_value,
)

_NO_ITEMS = "[]"


def events_to_text(events: Iterable[SpanEvent]) -> str:
    """Return span events as JSON text."""
    return dump_json(
        [
            {
                "name": event.name,
                "time_ns": event.time_unix_nano,
                "attributes": attributes_to_json(event.attributes),
                "dropped_attributes": event.dropped_attributes_count,
            }
            for event in events
        ]
    )


def events_from_text(text: str) -> tuple[SpanEvent, ...]:
    """Return the span events that `events_to_text` made `text` from."""
    if text == _NO_ITEMS:
        return ()
    return tuple(
        SpanEvent(
            name=item["name"],
            time_unix_nano=item["time_ns"],
            attributes=attributes_from_json(item["attributes"]),
            dropped_attributes_count=item["dropped_attributes"],
        )
        for item in json.loads(text)
    )


def exemplars_to_text(exemplars: Iterable[Exemplar]) -> str:
    """Return exemplars as JSON text."""
    return dump_json(
        [
            {
                "time_ns": item.time_unix_nano,
                "value": to_json_value(item.value),
                "trace_id": item.trace_id,
                "span_id": item.span_id,
                "attributes": attributes_to_json(item.attributes),
            }
            for item in exemplars
        ]
    )


def exemplars_from_text(text: str) -> tuple[Exemplar, ...]:
    """Return the exemplars that `exemplars_to_text` made `text` from."""
    if text == _NO_ITEMS:
        return ()
    return tuple(
        Exemplar(
            time_unix_nano=item["time_ns"],
            value=_number(from_json_value(item["value"])),
            trace_id=item["trace_id"],
            span_id=item["span_id"],
            attributes=attributes_from_json(item["attributes"]),
        )
        for item in json.loads(text)
    )


def point_value_to_json(value: PointValue) -> Json:
    """Return a metric point's value as JSON: a number, null, or an object of the histogram's or summary's fields.

    Args:
        value: the point's value.

    Example:
        >>> point_value_to_json(Histogram(count=2, sum=1.5, bounds=(1.0,), bucket_counts=(1, 1)))["bucket_counts"]
        [1, 1]
    """
    if value is None or isinstance(value, int | float):
        return to_json_value(value)
    return {item.name: to_json_value(getattr(value, item.name)) for item in fields(value)}


def point_value_to_text(value: PointValue) -> str:
    """Return a metric point's value as JSON text."""
    return dump_json(point_value_to_json(value))


def point_value_from_text(metric_type: str, text: str) -> PointValue:
    """Return the value that `point_value_to_text` made `text` from, given the type of its metric."""
    content = json.loads(text)
    if content is None:
        return None
    if metric_type not in _STATES:
        return _number(from_json_value(content))
    state: PointValue = _STATES[metric_type](**{name: from_json_value(value) for name, value in content.items()})
    return state


_STATES: dict[str, Any] = {
    "histogram": Histogram,
    "exponential_histogram": ExponentialHistogram,
    "summary": Quantiles,
}


def _number(value: Any) -> int | float:
    number: int | float = value
    return number
