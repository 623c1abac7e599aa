"""What apps and libraries give a span: right, odd and wrong."""

from __future__ import annotations

import datetime as dt
import enum
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, TraceState


class Word(str):
    __slots__ = ()


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Nameless:
    """Has no text of its own."""


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


text = st.text(max_size=6)
keys = st.one_of(st.sampled_from(["a", "b", "c", "http.route", Word("a"), Colour.RED, ""]), text)
odd_keys = st.sampled_from([None, 0, 1, 2.5, b"a", b"", (), (1,), True, Nameless(), Number.ONE])
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), text, st.binary(max_size=4),
    st.sampled_from([Word("word"), Colour.RED, Number.ONE, "long " * 8, "\ud800", "\x00"]),
)  # fmt: skip
odd = st.sampled_from(
    [Nameless(), Decimal("1.5"), dt.date(2020, 1, 1), frozenset({1}), object(), range(3), 1j, bytearray(b"x"), int]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(scalars, odd),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.one_of(keys, odd_keys), inner, max_size=3),
    ),
    max_leaves=4,
)
hostile = st.sampled_from([Hostile(), [Hostile()], {"a": Hostile()}])
mappings = st.one_of(
    st.none(),
    st.dictionaries(keys, values, max_size=4),
    st.dictionaries(st.one_of(keys, odd_keys), values, max_size=6),
)
flags = st.integers(0, 255).map(TraceFlags)
states = st.sampled_from([TraceState(), TraceState([("vendor", "1")]), TraceState([("a", "1"), ("b", "2")])])
contexts = st.builds(
    SpanContext,
    st.sampled_from([0, 1, 2**63, 2**127 + 1, 2**128 - 1]),
    st.sampled_from([0, 1, 2**64 - 1]),
    st.booleans(),
    flags,
    states,
)
names = st.one_of(text, st.sampled_from(["GET /orders", "long " * 100]))
moments = st.one_of(st.none(), st.integers(0, 2**62))
statuses = st.one_of(
    st.tuples(st.sampled_from(StatusCode), st.one_of(st.none(), text)),
    st.tuples(
        st.sampled_from([Status(), Status(StatusCode.OK), Status(StatusCode.ERROR), Status(StatusCode.ERROR, "why")]),
        st.one_of(st.none(), text),
    ),
    st.tuples(st.sampled_from([None, "ERROR", 2]), st.none()),
)
exceptions = st.sampled_from(
    [ValueError("no stock"), KeyError("k"), HostileError(), ExceptionGroup("g", [OSError(1, "x")]),
     UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), KeyboardInterrupt(), TypeError("\ud800")]
)  # fmt: skip
_limit = st.sampled_from([None, 0, 1, 2, 5, SpanLimits.UNSET])
limits = st.builds(
    SpanLimits,
    max_attributes=_limit,
    max_events=_limit,
    max_links=_limit,
    max_span_attributes=_limit,
    max_event_attributes=_limit,
    max_link_attributes=_limit,
    max_attribute_length=_limit,
    max_span_attribute_length=_limit,
)
