"""A span of clew's is, for whoever uses or reads it, a span of the SDK's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk import trace as sdk
from opentelemetry.trace import Link, Span, StatusCode

from tests.conformance import values
from tests.conformance.twins import Twins, outcome, quiet, shown


@pytest.fixture(autouse=True, scope="module")
def silence():
    with quiet():
        yield


def call(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), st.tuples(*arguments))


CALLS = st.one_of(
    call("set_attribute", st.one_of(values.keys, values.odd_keys, st.just([1])), values.values),
    call("set_attribute", values.keys, values.hostile),
    call("set_attributes", values.mappings.filter(lambda given: given is not None)),
    call("add_event", values.names, values.mappings, values.moments),
    call("add_link", values.contexts, values.mappings),
    call("add_link", st.none(), values.mappings),
    call("update_name", values.names),
    call("set_status", values.statuses),
    call("record_exception", values.exceptions, values.mappings, values.moments, st.booleans()),
    call("is_recording"),
    call("get_span_context"),
    call("start", values.moments),
)
ENDS = st.lists(call("end", values.moments), min_size=1, max_size=2)


def do(span: Span, name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "set_status":
        arguments = arguments[0]
    return outcome(lambda: getattr(span, name)(*arguments))


@settings(max_examples=250, deadline=None)
@given(
    limits=values.limits,
    at_start=values.mappings,
    links=st.lists(st.tuples(values.contexts, values.mappings), max_size=4),
    before=st.lists(CALLS, max_size=12),
    ends=ENDS,
    after=st.lists(CALLS, max_size=4),
)
def test_the_same_calls_make_the_same_span(limits, at_start, links, before, ends, after):
    def act(tracer: sdk.Tracer) -> Any:
        span = tracer.start_span("work", attributes=at_start, links=[Link(*link) for link in links])
        said = [do(span, *step) for step in (*before, ends[0], *after, *ends[1:])]
        return said, shown(span)

    Twins(limits=limits).both(act)


@settings(max_examples=150, deadline=None)
@given(limits=values.limits, steps=st.lists(CALLS, max_size=12))
def test_a_running_span_reads_the_same(limits, steps):
    def act(tracer: sdk.Tracer) -> Any:
        span = tracer.start_span("work")
        for step in steps:
            do(span, *step)
        assert isinstance(span, sdk.Span)
        readable = span._readable_span()
        assert isinstance(readable, sdk.ReadableSpan)
        return [
            (repr(dict(one.attributes or {})), one.dropped_attributes, one.dropped_events, one.dropped_links,
             one.status.status_code, outcome(one.to_json))
            for one in (span, readable)
        ]  # fmt: skip

    Twins(limits=limits).both(act)


def test_many_attributes_push_out_the_oldest_and_overwriting_makes_young():
    def act(tracer: sdk.Tracer) -> None:
        span = tracer.start_span("work", attributes={"first": 0, "second": 0})
        for number in range(127):
            span.set_attribute(f"key {number}", number)
            span.set_attribute("first", number)
        span.end()

    twins = Twins()
    twins.both(act)
    assert twins.taken[0].dropped_attributes == 1
    assert "second" not in twins.taken[0].attributes


@pytest.mark.parametrize("first", [StatusCode.OK, StatusCode.ERROR])
def test_ok_is_final(first):
    def act(tracer: sdk.Tracer) -> None:
        span = tracer.start_span("work")
        span.set_status(first, "first")
        span.set_status(StatusCode.UNSET)
        span.set_status(StatusCode.ERROR, "second")
        span.end()

    Twins().both(act)


def test_without_an_explicit_time_the_clock_is_asked():
    twins = Twins()
    span = twins.own.get_tracer("lib").start_span("work")
    span.add_event("now")
    span.end()
    (taken,) = twins.taken
    assert taken.start_time <= taken.events[0].timestamp <= taken.end_time
