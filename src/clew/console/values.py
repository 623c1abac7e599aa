"""Attribute values: what OTLP's AnyValue can hold, as plain Python values, and their loss-free JSON form.

JSON has one number type, no bytes, no NaN and no infinity. Values it cannot hold are wrapped in an object with one
reserved key, in the database and in API answers alike:

====================  =============================================
value                 JSON
====================  =============================================
int beyond 2**53 - 1  ``{"$int": "9223372036854775807"}``
NaN, +inf, -inf       ``{"$double": "NaN" | "Infinity" | "-Infinity"}``
bytes                 ``{"$bytes": "<base64>"}``
a map that looks so   ``{"$map": {...}}``
====================  =============================================

Source: https://opentelemetry.io/docs/specs/otel/common/#anyvalue
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

AttributeValue: TypeAlias = (
    "str | bool | int | float | bytes | tuple[AttributeValue, ...] | Mapping[str, AttributeValue] | None"
)
Attributes: TypeAlias = "Mapping[str, AttributeValue]"
Json: TypeAlias = "str | bool | int | float | list[Json] | dict[str, Json] | None"

_LARGEST_EXACT_INT = 2**53 - 1  # JavaScript and many JSON parsers read larger integers as a rounded double
_WRAPPERS = frozenset({"$int", "$double", "$bytes", "$map"})
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json_value(value: AttributeValue) -> Json:
    r"""Return `value` as a JSON-ready value that `from_json_value` turns back into the same value.

    Args:
        value: an attribute value; maps and sequences may be nested.

    Raises:
        TypeError: a value OTLP has no type for.

    Example:
        >>> to_json_value((1, b"\x00", float("nan")))
        [1, {'$bytes': 'AA=='}, {'$double': 'NaN'}]
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if -_LARGEST_EXACT_INT <= value <= _LARGEST_EXACT_INT else {"$int": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$double": _non_finite_name(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        encoded = attributes_to_json(value)
        return {"$map": encoded} if len(encoded) == 1 and not _WRAPPERS.isdisjoint(encoded) else encoded
    if isinstance(value, Sequence):
        return [to_json_value(item) for item in value]
    raise TypeError(f"a value of type {type(value).__name__} has no OTLP type: use str, bool, int, float or bytes")


def from_json_value(value: Json) -> AttributeValue:
    """Return the attribute value that `to_json_value` made `value` from.

    Args:
        value: what `json.loads` gave.

    Raises:
        ValueError: a wrapper object whose content is not of its kind.

    Example:
        >>> from_json_value({"$int": "9223372036854775807"})
        9223372036854775807
    """
    if isinstance(value, list):
        return tuple(from_json_value(item) for item in value)
    if isinstance(value, dict):
        return _unwrapped(value)
    return value


def attributes_to_json(attributes: Attributes) -> dict[str, Json]:
    """Return a set of attributes as a JSON object; its own keys are never taken for a wrapper.

    Args:
        attributes: attribute values by key.

    Raises:
        TypeError: a value OTLP has no type for.

    Example:
        >>> attributes_to_json({"http.route": "/orders", "n": 2})
        {'http.route': '/orders', 'n': 2}
    """
    return {key: to_json_value(value) for key, value in attributes.items()}


def attributes_from_json(attributes: Mapping[str, Json]) -> dict[str, AttributeValue]:
    """Return the attributes that `attributes_to_json` made this object from.

    Args:
        attributes: a decoded JSON object.

    Raises:
        ValueError: a wrapper object whose content is not of its kind.

    Example:
        >>> attributes_from_json({"ids": [1, 2]})
        {'ids': (1, 2)}
    """
    return {key: from_json_value(value) for key, value in attributes.items()}


def dump_json(value: Json, *, sort_keys: bool = False) -> str:
    """Return compact JSON text with readable Unicode, so that a text search finds what was written.

    Args:
        value: a JSON-ready value.
        sort_keys: order object keys, for text that serves as an identity.

    Raises:
        ValueError: a number JSON does not have (NaN, infinity) that was not wrapped.

    Example:
        >>> dump_json({"city": "Zürich"})
        '{"city":"Zürich"}'
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=sort_keys)


def _unwrapped(value: dict[str, Json]) -> AttributeValue:
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key == "$map" and isinstance(inner, dict):
            return attributes_from_json(inner)
        if key in _WRAPPERS and isinstance(inner, str):
            if key == "$int":
                return int(inner)
            if key == "$double":
                return _NON_FINITE[inner]
            return base64.b64decode(inner)
    return attributes_from_json(value)


def _non_finite_name(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
