"""Attribute values keep their meaning through JSON and through OTLP messages."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from clew.console.record_fields import value_of
from clew.console.values import (
    attributes_from_json,
    attributes_to_json,
    dump_json,
    from_json_value,
    to_json_value,
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text()
    | st.binary()
)
keys = st.text() | st.sampled_from(["$int", "$double", "$bytes", "$map"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


SCALAR_FIELDS = {
    bool: "bool_value",
    int: "int_value",
    float: "double_value",
    str: "string_value",
    bytes: "bytes_value",
}


def same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from 1.0 and True, -0.0 from 0.0, and takes NaN for NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def any_value(value: Any) -> AnyValue:
    if type(value) in SCALAR_FIELDS:
        return AnyValue(**{SCALAR_FIELDS[type(value)]: value})
    if isinstance(value, tuple):
        return AnyValue(array_value=ArrayValue(values=[any_value(item) for item in value]))
    if isinstance(value, dict):
        items = [KeyValue(key=key, value=any_value(item)) for key, item in value.items()]
        return AnyValue(kvlist_value=KeyValueList(values=items))
    return AnyValue()


@given(values)
def test_any_value_survives_json(value: Any) -> None:
    assert same(from_json_value(json.loads(dump_json(to_json_value(value)))), value)


@given(st.dictionaries(keys, values, max_size=5))
def test_attributes_named_like_a_wrapper_survive(attributes: Any) -> None:
    restored = attributes_from_json(json.loads(dump_json(attributes_to_json(attributes))))
    assert restored.keys() == attributes.keys()
    assert dump_json(attributes_to_json(restored)) == dump_json(attributes_to_json(attributes))


@given(values)
def test_any_value_survives_the_wire(value: Any) -> None:
    received = value_of(AnyValue.FromString(any_value(value).SerializeToString()))
    assert dump_json(to_json_value(received)) == dump_json(to_json_value(value))


def test_integers_that_json_readers_round_are_written_as_text() -> None:
    assert to_json_value(2**53 - 1) == 2**53 - 1
    assert to_json_value(2**53) == {"$int": "9007199254740992"}


def test_a_value_without_an_otlp_type_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="type object has no OTLP type"):
        to_json_value(object())  # type: ignore[arg-type]
