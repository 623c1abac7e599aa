"""How spans start, what they continue, and how they become current: as under the SDK's tracer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk import trace as sdk
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState

from tests.conformance import values
from tests.conformance.twins import Twins, context_of, quiet, shown


@pytest.fixture(autouse=True, scope="module")
def silence():
    with quiet():
        yield


class Refused(Exception):  # noqa: N818 - what the app's own are called is its own affair
    pass


REMOTE = SpanContext(17, 18, is_remote=True, trace_flags=TraceFlags(0xFF), trace_state=TraceState([("v", "1")]))
PARENTS = st.one_of(st.none(), st.just(trace.INVALID_SPAN_CONTEXT), values.contexts)


def beneath(parent: SpanContext | None) -> Context:
    return Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())


@settings(max_examples=200, deadline=None)
@given(
    parent=PARENTS,
    is_current=st.booleans(),
    has_random_ids=st.booleans(),
    kind=st.sampled_from(SpanKind),
    attributes=values.mappings,
    links=st.one_of(st.none(), st.lists(st.tuples(values.contexts, values.mappings), max_size=2)),
    start_time=values.moments,
    limits=values.limits,
)
def test_every_argument_means_the_same(parent, is_current, has_random_ids, kind, attributes, links, start_time, limits):
    def act(tracer: sdk.Tracer) -> Any:
        context = beneath(parent)
        token = otel_context.attach(context if is_current else Context())
        try:
            span = tracer.start_span(
                "work",
                context=None if is_current else context,
                kind=kind,
                attributes=attributes,
                links=None if links is None else [Link(*link) for link in links],
                start_time=start_time,
            )
            with trace.use_span(span):
                child = tracer.start_span("child")
        finally:
            otel_context.detach(token)
        child.end()
        span.end()
        return shown(span), shown(child)

    Twins(limits=limits, has_random_ids=has_random_ids).both(act)


@pytest.mark.parametrize("record_exception", [True, False])
@pytest.mark.parametrize("set_status", [True, False])
@pytest.mark.parametrize("end_on_exit", [True, False])
def test_an_exception_leaves_the_same_trace(record_exception, set_status, end_on_exit):
    def as_current(tracer: sdk.Tracer) -> Any:
        with (
            pytest.raises(Refused),
            tracer.start_as_current_span(
                "current", Context(), record_exception=record_exception, set_status_on_exception=set_status,
                end_on_exit=end_on_exit,
            ) as span,
        ):  # fmt: skip
            assert trace.get_current_span() is span
            raise Refused("no")
        assert trace.get_current_span() is trace.INVALID_SPAN
        recording = span.is_recording()
        span.end()
        return recording

    def as_block(tracer: sdk.Tracer) -> None:
        with (
            pytest.raises(Refused),
            tracer.start_span(
                "block", Context(), record_exception=record_exception, set_status_on_exception=set_status
            ),
        ):
            raise Refused("no")

    def cancelled(tracer: sdk.Tracer) -> None:
        with pytest.raises(KeyboardInterrupt), tracer.start_as_current_span("cancelled"):
            raise KeyboardInterrupt

    twins = Twins()
    for act in (as_current, as_block, cancelled):
        twins.both(act)


def test_decorators_make_a_span_of_each_call():
    def act(tracer: sdk.Tracer) -> Any:
        @tracer.start_as_current_span("sync", context=Context())
        def plain(number):
            return number, shown(trace.get_current_span())

        @tracer.start_as_current_span("async", context=Context())
        async def coroutine(number):
            await asyncio.sleep(0)
            return number, shown(trace.get_current_span())

        async def twice():
            return await asyncio.gather(coroutine(3), coroutine(4))

        return plain(1), plain(2), asyncio.run(twice())

    twins = Twins()
    twins.both(act)
    assert [span.name for span in twins.taken] == ["sync", "sync", "async", "async"]


@pytest.mark.parametrize("flags", [0x00, 0x01, 0x02, 0x03, 0x05, 0xFF])
@pytest.mark.parametrize("is_remote", [True, False])
def test_a_parents_flags_and_state_go_on_as_the_specification_has_it(flags, is_remote):
    parent = SpanContext(17, 18, is_remote=is_remote, trace_flags=TraceFlags(flags), trace_state=REMOTE.trace_state)
    twins = Twins()
    twins.both(lambda tracer: tracer.start_span("work", beneath(parent)).end())
    (span,) = twins.taken
    assert span.parent is parent
    assert span.context.trace_state == parent.trace_state
    # Bits that are not known yet are not passed on as if they were
    assert span.context.trace_flags == 0x01 | flags & 0x02


def test_a_parent_that_is_no_span_context_is_refused_alike():
    class Odd(NonRecordingSpan):
        def get_span_context(self):
            return "17-18"

    Twins().both(lambda tracer: tracer.start_span("work", trace.set_span_in_context(Odd(REMOTE))))


def test_spans_of_both_kinds_are_each_others_parents():
    twins = Twins()
    own, stock = twins.own.get_tracer("own"), twins.stock.get_tracer("stock")
    with own.start_as_current_span("a") as a, stock.start_as_current_span("b") as b, own.start_as_current_span("c"):
        pass
    c_taken, a_taken = twins.taken
    (b_exported,) = twins.exported
    assert (c_taken.name, a_taken.name) == ("c", "a")
    assert context_of(b_exported.parent) == context_of(a.get_span_context())
    assert context_of(c_taken.parent) == context_of(b.get_span_context())
    assert {span.context.trace_id for span in (a_taken, b_exported, c_taken)} == {a.get_span_context().trace_id}


def test_what_an_instrumentation_library_makes_is_beneath_our_span_and_above_our_child():
    twins = Twins()
    tracer = twins.own.get_tracer("app")
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["traceparent"])
        with tracer.start_as_current_span("beneath the call"):
            return httpx.Response(200)

    client = httpx.Client(transport=httpx.MockTransport(answer))
    HTTPXClientInstrumentor.instrument_client(client, tracer_provider=twins.own)
    with tracer.start_as_current_span("above"):
        client.get("http://example.test/orders")
    beneath_it, call, above = twins.taken
    assert call.instrumentation_scope.name == "opentelemetry.instrumentation.httpx"
    assert context_of(call.parent) == context_of(above.context)
    assert context_of(beneath_it.parent) == context_of(call.context)
    assert f"{call.context.trace_id:032x}-{call.context.span_id:016x}" in seen[0]


def test_a_tracer_that_is_switched_off_hands_on_its_parent():
    twins = Twins()
    for provider in (twins.own, twins.stock):
        provider.get_tracer("lib", "1.0", "https://s", {"a": 1})
        provider._set_tracer_configurator(tracer_configurator=sdk._disable_tracer_configurator)
    twins.both(lambda tracer: shown(tracer.start_span("work", beneath(REMOTE))))
    twins.both(lambda tracer: shown(tracer.start_span("work", Context())))
    assert twins.taken == []
