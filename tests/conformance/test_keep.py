"""What is kept of traces that are not sampled: failures and slow ones, once, without what is beneath them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, StaticSampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from clew.pipeline.sampling import Keep, ThreadSampler
from clew.pipeline.tracing import TracerProvider
from tests.conformance.scripts import run
from tests.conformance.twins import RESOURCE
from tests.integration.server_process import ServerProcess, uvicorn
from tests.otlp_sink import OtlpSink

SECOND_NS = 1_000_000_000
SAMPLERS = [
    ThreadSampler(ratio=0.0, follows_parent=True),
    ThreadSampler(ratio=0.0, follows_parent=False),
    ALWAYS_OFF,
    StaticSampler(Decision.RECORD_ONLY),
]


def keeping(sampler: Sampler, keep: Keep | None) -> tuple[TracerProvider, list[Any]]:
    taken: list[Any] = []
    provider = TracerProvider(taken.append, flush=lambda timeout_s: True, resource=RESOURCE, sampler=sampler, keep=keep)
    return provider, taken


def parent(*, is_remote: bool) -> Context:
    context = SpanContext(17, 18, is_remote=is_remote, trace_flags=TraceFlags(0))
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.get_description())
@pytest.mark.parametrize("context", [Context(), parent(is_remote=True)], ids=["new trace", "remote parent"])
def test_the_first_span_of_a_failure_is_kept_and_nothing_beneath_it(sampler, context):
    provider, taken = keeping(sampler, Keep(errors=True, slow_s=None))
    tracer = provider.get_tracer("lib")
    with pytest.raises(KeyError), tracer.start_as_current_span("request", context, attributes={"http.route": "/x"}):
        assert not trace.get_current_span().get_span_context().trace_flags.sampled
        with tracer.start_as_current_span("query") as query:
            query.set_status(StatusCode.ERROR)
        raise KeyError("no stock")
    (kept,) = taken
    assert kept.name == "request"
    assert dict(kept.attributes) == {"http.route": "/x", "clew.sampling.kept": "error"}
    assert [event.name for event in kept.events] == ["exception"]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.get_description())
def test_what_is_well_and_quick_is_not_kept(sampler):
    provider, taken = keeping(sampler, Keep(errors=True, slow_s=0.5))
    tracer = provider.get_tracer("lib")
    tracer.start_span("quick", start_time=0).end(SECOND_NS // 2 - 1)
    assert taken == []
    tracer.start_span("slow", start_time=0).end(SECOND_NS // 2)
    assert [(span.name, dict(span.attributes)) for span in taken] == [("slow", {"clew.sampling.kept": "slow"})]


def test_a_failure_beneath_a_local_span_that_is_not_recorded_is_not_kept():
    provider, taken = keeping(SAMPLERS[0], Keep(errors=True, slow_s=0.0))
    span = provider.get_tracer("lib").start_span("query", parent(is_remote=False))
    assert not span.is_recording()
    span.end()
    assert taken == []


def test_what_is_sampled_is_taken_once_and_not_marked():
    provider, taken = keeping(ThreadSampler(ratio=1.0, follows_parent=True), Keep(errors=True, slow_s=0.0))
    with provider.get_tracer("lib").start_as_current_span("request") as span:
        span.set_status(StatusCode.ERROR)
    assert [dict(span.attributes) for span in taken] == [{}]


def test_a_processor_of_others_exports_no_trace_that_is_not_sampled():
    provider, taken = keeping(SAMPLERS[0], Keep(errors=True, slow_s=None))
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("lib").start_span("well").end()
    failed = provider.get_tracer("lib").start_span("failed")
    failed.set_status(StatusCode.ERROR)
    failed.end()
    assert [span.name for span in taken] == ["failed"]
    assert exporter.get_finished_spans() == ()


APP = """
import clew
from fastapi import FastAPI
log = clew.get_logger("orders")
app = FastAPI()
clew.instrument(app)

@app.get("/orders/{number}")
async def order(number: int):
    log.info("order.asked", number=number)
    with clew.span("price"):
        if number == 13:
            raise KeyError("no stock")
    return {"number": number}
"""


def test_a_failing_request_leaves_its_span_where_nothing_is_sampled(otlp_sink: OtlpSink, tmp_path):
    (tmp_path / "orders.py").write_text(APP)
    environment = {**otlp_sink.environment, "OTEL_TRACES_SAMPLER": "always_off", "CLEW_KEEP_ERRORS": "true"}
    with ServerProcess(uvicorn("orders:app"), cwd=tmp_path, environment=environment) as server:
        headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
        assert httpx.get(f"{server.url}/orders/7").status_code == 200
        assert httpx.get(f"{server.url}/orders/13", headers=headers).status_code == 500
        otlp_sink.wait(
            lambda sink: sink.total("http.server.request.duration", http__route="/orders/{number}") == 2,
            what="both requests counted",
        )
        (kept,) = otlp_sink.wait(lambda sink: sink.spans, what="the failing request")
        asked = otlp_sink.wait_for_all(
            lambda sink: [log for log in sink.logs if log.body == "order.asked"], 2, what="log line of each request"
        )
    assert [span.name for span in otlp_sink.spans] == [kept.name]
    assert (kept.trace_id, kept.parent_id, kept.kind, kept.status) == ("a" * 32, "b" * 16, "server", "error")
    assert kept.attributes["clew.sampling.kept"] == "error"
    assert kept.attributes["http.route"] == "/orders/{number}"
    assert kept.attributes["http.request.method"] == "GET"
    assert kept.attributes["http.response.status_code"] == 500
    assert kept.attributes["url.path"] == "/orders/13"
    traces = {log.attributes["number"]: log.trace_id for log in asked}
    assert traces[13] == "a" * 32
    assert traces[7] not in ("", "0" * 32, traces[13])
    assert all(log.span_id for log in asked)


SLOW = """
import clew
clew.configure(service_name="slow", keep_slow_s=0.0)
with clew.span("first"), clew.span("beneath"):
    pass
"""


def test_a_slow_operation_is_kept_once_without_what_is_beneath_it(otlp_sink, spool_dir):
    run(SLOW, otlp_sink, OTEL_TRACES_SAMPLER="parentbased_always_off")
    assert [(span.name, span.attributes["clew.sampling.kept"]) for span in otlp_sink.spans] == [("first", "slow")]
