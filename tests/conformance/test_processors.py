"""What others hang on clew's provider works as on the SDK's: processors, exporters, copies, checks of a type."""

from __future__ import annotations

import copy
import io
import json
import logging
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanContext, Status, StatusCode

import clew
from clew.pipeline.sampling import ThreadSampler
from clew.pipeline.tracing import TracerProvider
from tests.conformance.scripts import run
from tests.conformance.twins import NOW_NS, RESOURCE, Twins, one_clock, reading


def provider(**given: Any) -> tuple[TracerProvider, list[Any], list[float]]:
    taken: list[Any] = []
    flushes: list[float] = []

    def flush(timeout_s: float) -> bool:
        flushes.append(timeout_s)
        return bool(given.get("flushes", True))

    made = TracerProvider(
        taken.append,
        flush=flush,
        resource=RESOURCE,
        sampler=ThreadSampler(ratio=1.0, follows_parent=True),
        id_generator=given.get("id_generator"),
    )
    return made, taken, flushes


class Watcher(sdk.SpanProcessor):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def on_start(self, span, parent_context=None):
        self.told.append(("start", trace.get_current_span(parent_context).get_span_context().span_id))
        span.set_attribute("at.start", True)

    def _on_ending(self, span):
        self.told.append(("ending", span.end_time))

    def on_end(self, span):
        self.told.append(("end", dict(span.attributes)))

    def shutdown(self):
        self.told.append(("shutdown", None))

    def force_flush(self, timeout_millis=30_000):
        self.told.append(("flush", None))
        return True


class Broken(sdk.SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise RuntimeError("broken")

    _on_ending = on_end = on_start


def test_everything_is_of_the_sdks_types():
    made, taken, _ = provider()
    tracer = made.get_tracer("lib")
    assert isinstance(made, sdk.TracerProvider)
    assert isinstance(tracer, sdk.Tracer)
    assert made.get_tracer("lib") is tracer
    span = tracer.start_span("work")
    assert isinstance(span, sdk.Span)
    assert isinstance(span, sdk.ReadableSpan)
    assert isinstance(span, trace.Span)
    span.end()
    assert taken[0].resource is made.resource
    assert taken[0].instrumentation_scope.name == "lib"
    assert isinstance(taken[0], sdk.ReadableSpan)


def test_processors_are_told_in_the_same_order_of_the_same():
    stock, own = Watcher(), Watcher()
    twins = Twins()
    twins.stock.add_span_processor(stock)
    twins.own.add_span_processor(own)

    def act(tracer: sdk.Tracer) -> None:
        with (
            tracer.start_as_current_span("outer", attributes={"a": 1}),
            tracer.start_as_current_span("inner", Context()),
        ):
            pass

    twins.both(act)
    assert own.told == stock.told
    assert [what for what, _ in own.told] == ["start", "start", "ending", "end", "ending", "end"]


def test_simple_and_batch_processors_export_what_the_worker_gets():
    made, taken, _ = provider()
    simple, batched, written = InMemorySpanExporter(), InMemorySpanExporter(), io.StringIO()
    made.add_span_processor(SimpleSpanProcessor(simple))
    made.add_span_processor(BatchSpanProcessor(batched))
    made.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=written)))
    tracer = made.get_tracer("lib")
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner") as inner:
        inner.set_attribute("a", 1)
    assert made.force_flush()
    for exported in (simple.get_finished_spans(), batched.get_finished_spans()):
        assert [reading(span) for span in exported] == [reading(span) for span in taken]
    assert '"name": "inner"' in written.getvalue()
    assert '"a": 1' in written.getvalue()
    made.shutdown()


def test_a_processor_that_redacts_at_the_end_has_redacted_what_the_worker_gets():
    class Redacting(sdk.SpanProcessor):
        def on_end(self, span):
            span._attributes = {**span.attributes, "card": "***"}
            span._name = "hidden"

    made, taken, _ = provider()
    made.add_span_processor(Redacting())
    made.get_tracer("lib").start_span("work", attributes={"card": "4111"}).end()
    assert (taken[0].name, dict(taken[0].attributes)) == ("hidden", {"card": "***"})


def test_a_processor_may_give_a_span_another_resource():
    other = RESOURCE.merge(RESOURCE.__class__({"tenant": "a"}))

    class Moving(sdk.SpanProcessor):
        def on_start(self, span, parent_context=None):
            span._resource = other

    made, taken, _ = provider()
    made.add_span_processor(Moving())
    made.get_tracer("lib").start_span("work").end()
    assert taken[0].resource is other


def test_while_a_span_ends_its_processors_may_still_change_it():
    """The specification has it so; the SDK has closed the span by then.

    Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/#onending
    """

    class Finishing(sdk.SpanProcessor):
        def _on_ending(self, span):
            assert span.is_recording()
            assert span.end_time == NOW_NS + 1
            span.set_attribute("late", True)
            span.set_attributes({"later": 1})
            span.add_event("closing")
            span.add_link(SpanContext(1, 2, is_remote=False))
            span.update_name("renamed")
            span.set_status(StatusCode.ERROR, "late")
            span.end()

    made, taken, _ = provider()
    made.add_span_processor(Finishing())
    span = made.get_tracer("lib").start_span("work")
    with one_clock():
        span.end(NOW_NS + 1)
    (ended,) = taken
    span.set_attribute("too late", True)
    assert not span.is_recording()
    assert (ended.name, ended.status.status_code, ended.end_time) == ("renamed", StatusCode.ERROR, NOW_NS + 1)
    assert dict(ended.attributes) == {"late": True, "later": 1}
    assert (len(ended.events), len(ended.links)) == (1, 1)


def test_a_processor_that_fails_spoils_neither_the_app_nor_the_others(caplog):
    made, taken, _ = provider()
    watcher = Watcher()
    made.add_span_processor(Broken())
    made.add_span_processor(watcher)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            made.get_tracer("lib").start_span("work").end()
    assert len(taken) == 3
    assert [what for what, _ in watcher.told] == ["start", "ending", "end"] * 3
    assert [record.message for record in caplog.records if "Broken" in record.message] != []


def test_flush_and_shutdown_reach_the_worker_and_the_processors():
    made, _, flushes = provider()
    watcher = Watcher()
    made.add_span_processor(watcher)
    assert made.force_flush(2_000)
    assert flushes == [2.0]
    made.shutdown()
    assert len(flushes) == 2
    assert [what for what, _ in watcher.told] == ["flush", "flush", "shutdown"]


def test_processors_are_flushed_where_the_worker_could_not_be():
    made, _, _ = provider(flushes=False)
    watcher = Watcher()
    made.add_span_processor(watcher)
    assert not made.force_flush()
    assert [what for what, _ in watcher.told] == ["flush"]


def test_a_processor_of_the_global_provider_sees_the_facades_spans(captured_telemetry):
    exporter = InMemorySpanExporter()
    made = trace.get_tracer_provider()
    assert isinstance(made, TracerProvider)
    before = made.guests._span_processors
    made.add_span_processor(SimpleSpanProcessor(exporter))
    try:
        with clew.span("price", sku="A-17"), trace.get_tracer("lib").start_as_current_span("below"):
            pass
    finally:
        made.guests._span_processors = before
    below, price = exporter.get_finished_spans()
    assert price.attributes is not None
    assert (below.name, price.name, price.attributes["sku"]) == ("below", "price", "A-17")
    assert [span.name for span in captured_telemetry.spans] == ["below", "price"]


def test_an_ended_span_is_copied_and_written_as_the_sdks_is():
    twins = Twins(limits=sdk.SpanLimits(max_span_attributes=1, max_events=1))

    def act(tracer: sdk.Tracer) -> None:
        span = tracer.start_span("work", attributes={"a": 1, "b": [1, 2]})
        span.add_event("one", {"x": "y"})
        span.add_event("two")
        span.set_status(Status(StatusCode.ERROR, "why"))
        span.end()

    twins.both(act)
    (own,), (stock,) = twins.taken, twins.exported
    assert json.loads(own.to_json()) == json.loads(stock.to_json())
    for copied in (copy.copy(own), copy.deepcopy(own), own._readable_span()):
        assert isinstance(copied, sdk.ReadableSpan)
        assert reading(copied) == reading(stock)
    assert repr(own).endswith(repr(stock._context) + ")")


def test_a_copy_that_is_changed_leaves_the_span_as_it_was():
    made, taken, _ = provider()
    made.get_tracer("lib").start_span("work", attributes={"a": 1}).end()
    copied = copy.deepcopy(taken[0])
    copied._attributes = {}
    copied._name = "other"
    assert (taken[0].name, dict(taken[0].attributes)) == ("work", {"a": 1})


def test_an_id_generator_of_others_is_asked():
    class Marked(RandomIdGenerator):
        def generate_trace_id(self):
            return 0xC1E30000000000000000000000000000 | super().generate_trace_id() >> 16

    made, taken, _ = provider(id_generator=Marked())
    tracer = made.get_tracer("lib")
    with tracer.start_as_current_span("outer"):
        tracer.start_span("inner").end()
    assert [f"{span.context.trace_id:032x}"[:4] for span in taken] == ["c1e3", "c1e3"]
    assert len({span.context.span_id for span in taken}) == 2


INTERNAL_METRICS = """
import clew
from opentelemetry import trace
from clew.engine.state import state
from clew.engine import runtime
clew.configure(service_name="counts")
def total(name):
    metrics = (metric for scope in state.pipeline.collect() for metric in scope.metrics if metric.name == name)
    return sum(point.value for metric in metrics for point in metric.data.data_points)
with clew.span("outer"), trace.get_tracer("lib").start_as_current_span("inner"):
    print(total("otel.sdk.span.live"))
print(total("otel.sdk.span.live"), total("otel.sdk.span.started"))
"""


@pytest.mark.parametrize("word", ["true", "TRUE"])
def test_the_sdks_own_metrics_count_our_spans(otlp_sink, spool_dir, word):
    done = run(INTERNAL_METRICS, otlp_sink, OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=word)
    assert done.stdout.split() == ["2", "0", "2"]
    assert len(otlp_sink.spans) == 2


AT_EXIT = """
import sys
import clew
from opentelemetry import trace
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
clew.configure(service_name="guest")
trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stdout)))
with clew.span("last words"):
    pass
"""


def test_what_a_batch_processor_of_others_holds_at_exit_is_exported(otlp_sink, spool_dir):
    done = run(AT_EXIT, otlp_sink)
    assert '"name": "last words"' in done.stdout
    assert len(otlp_sink.named("last words")) == 1
