"""The facade where contexts are not as they should be: nothing of it reaches the app."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import clew
from clew import diagnostics
from clew.pipeline.tracing import SPAN_KEY


@pytest.fixture
def lenient(captured_telemetry):
    """Telemetry as in production, where the facade reports and never raises."""
    diagnostics.set_strict(strict=False)
    return captured_telemetry


def test_a_span_that_is_left_in_another_task(lenient):
    async def main():
        span = clew.span("work")

        async def enter():
            span.__enter__()

        async def leave():
            span.__exit__(None, None, None)

        await asyncio.create_task(enter())
        await asyncio.create_task(leave())
        with clew.span("after") as after:
            return after.trace_id

    trace_id = asyncio.run(main())
    assert lenient.span("work").trace_id != trace_id
    assert lenient.span("after").parent_id == ""


def test_a_span_that_is_left_in_another_thread_or_context(lenient):
    span = clew.span("work")
    contextvars.copy_context().run(span.__enter__)
    leaving = threading.Thread(target=span.__exit__, args=(None, None, None))
    leaving.start()
    leaving.join()
    assert lenient.span("work").status == "unset"


def test_a_generator_that_is_dropped_in_another_context(lenient):
    def steps():
        with clew.span("steps"):
            yield 1
            yield 2

    running = steps()
    contextvars.copy_context().run(next, running)
    running.close()
    del running
    assert lenient.span("steps").attributes.get("error.type") is None
    with clew.span("after"):
        pass
    assert lenient.span("after").parent_id == ""


def test_spans_that_are_left_in_the_wrong_order(lenient):
    def cross():
        outer, inner = clew.span("outer"), clew.span("inner")
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)

    contextvars.copy_context().run(cross)
    assert lenient.span("inner").parent_id == lenient.span("outer").span_id


def test_a_span_that_is_left_twice_or_never_entered(lenient):
    span = clew.span("twice")
    span.__enter__()
    span.__exit__(None, None, None)
    span.__exit__(None, None, None)
    clew.span("never").__exit__(None, None, None)
    assert [span.name for span in lenient.spans] == ["twice"]


def test_a_span_of_another_provider_is_the_parent(captured_telemetry):
    other = sdk.TracerProvider(shutdown_on_exit=False).get_tracer("other")
    with other.start_as_current_span("theirs") as theirs, clew.span("ours"):
        pass
    ours = captured_telemetry.span("ours")
    assert ours.parent_id == trace.format_span_id(theirs.get_span_context().span_id)
    assert ours.trace_id == trace.format_trace_id(theirs.get_span_context().trace_id)


def test_a_local_parent_that_is_not_sampled_is_followed(captured_telemetry):
    silent = sdk.TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("other")
    with silent.start_as_current_span("theirs"), clew.span("ours") as ours:
        assert ours.trace_id == trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)
    assert captured_telemetry.spans == []


def test_a_remote_parent_that_is_not_sampled_does_not_silence(captured_telemetry):
    stranger = SpanContext(0xAB, 0xCD, is_remote=True, trace_flags=TraceFlags(0))
    token = otel_context.attach(trace.set_span_in_context(NonRecordingSpan(stranger), Context()))
    try:
        with clew.span("ours"):
            pass
    finally:
        otel_context.detach(token)
    ours = captured_telemetry.span("ours")
    assert (int(ours.trace_id, 16), int(ours.parent_id, 16)) == (0xAB, 0xCD)


@pytest.mark.parametrize("planted", ["a text", None, trace.INVALID_SPAN, object()])
def test_what_is_no_span_where_the_current_one_should_be(captured_telemetry, planted):
    token = otel_context.attach(Context({SPAN_KEY: planted}))
    try:
        with clew.span("work"), trace.get_tracer("lib").start_as_current_span("below"):
            pass
    finally:
        otel_context.detach(token)
    assert captured_telemetry.span("work").parent_id == ""
    assert captured_telemetry.span("below").parent_id == captured_telemetry.span("work").span_id


def test_a_span_whose_context_is_none(lenient):
    class Odd(NonRecordingSpan):
        def get_span_context(self):
            return "17-18"

    token = otel_context.attach(trace.set_span_in_context(Odd(trace.INVALID_SPAN_CONTEXT), Context()))
    ran = False
    try:
        with clew.span("work"):
            ran = True
    finally:
        otel_context.detach(token)
    assert ran
