"""Carriers: what comes back is what went out, and nonsense never hurts."""

from __future__ import annotations

import asyncio
import email.message
from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import clew
from clew import diagnostics
from clew.engine.context import is_valid_correlation_id
from clew.testing import CapturedTelemetry

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C

plain = st.text(alphabet="ABCXYZabcxyz0189._:/+=@-", min_size=1, max_size=128)


@pytest.fixture
def lenient(captured_telemetry: CapturedTelemetry) -> None:
    """As in production: a bad value is counted and logged, and raises nothing."""
    diagnostics.set_strict(strict=False)


@given(
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    sampled=st.booleans(),
    correlation_id=plain,
    other=st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=5),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_injected_is_extracted(
    captured_telemetry: CapturedTelemetry,
    trace_id: int,
    span_id: int,
    sampled: bool,
    correlation_id: str,
    other: dict[str, str],
) -> None:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    span = NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=False, trace_flags=flags))
    with trace.use_span(span), clew.correlation(correlation_id):
        carrier = clew.inject(dict(other))
    assert set(other) <= set(carrier)
    for form in (
        carrier,
        MappingProxyType(carrier),
        {key.encode(): value.encode() for key, value in carrier.items() if key not in other},
        {key.title(): value for key, value in carrier.items() if key not in other},
        {key: [value] for key, value in carrier.items()},
    ):
        carried = clew.extract(form)
        assert carried.correlation_id == correlation_id
        assert (carried.span_context.trace_id, carried.span_context.span_id) == (trace_id, span_id)
        assert carried.span_context.trace_flags.sampled == sampled
    # What was extracted is not current until it is asked for
    assert not trace.get_current_span().get_span_context().is_valid


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60) | st.binary(max_size=60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["traceparent", "tracestate", "baggage", "x-correlation-id", "TRACEPARENT", b"traceparent"])


@given(carrier=st.dictionaries(KEYS | st.text(max_size=10) | st.integers() | st.none(), VALUES, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nonsense_is_no_thread_and_no_error(lenient: None, carrier: dict[Any, Any]) -> None:
    with clew.extract(carrier) as carried:
        cid = clew.correlation_id()
        assert cid is None or is_valid_correlation_id(cid)
        with clew.span("work"):
            assert len(clew.trace_id()) == 32
    assert carried.correlation_id == cid


@pytest.mark.parametrize(
    "carrier",
    [
        pytest.param({"traceparent": "x" * 10_000_000, "x-correlation-id": "y" * 10_000_000}, id="10 MB of text"),
        pytest.param({"traceparent": b"\xff" * 10_000_000}, id="10 MB of bytes"),
        pytest.param({"x" * 10_000_000: TRACEPARENT}, id="a key of 10 MB"),
        pytest.param({"traceparent": [TRACEPARENT[:-1]] * 100_000}, id="many"),
        pytest.param({"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"}, id="all zero"),
        pytest.param({"traceparent": f"ff{TRACEPARENT[2:]}"}, id="a version that is none"),
        pytest.param({"x-correlation-id": "a\r\nset-cookie: b"}, id="a header in a header"),
        pytest.param({"x-correlation-id": "\x00"}, id="a control character"),
        pytest.param({"x-correlation-id": ""}, id="nothing"),
        pytest.param({}, id="empty"),
        pytest.param(None, id="none at all"),
    ],
)
def test_hostile_carriers_start_anew(captured_telemetry: CapturedTelemetry, carrier: Any) -> None:
    carried = clew.extract(carrier)
    assert not carried.span_context.is_valid
    assert carried.correlation_id is None


def test_the_good_half_of_a_carrier_counts(captured_telemetry: CapturedTelemetry) -> None:
    assert clew.extract({"traceparent": TRACEPARENT, "x-correlation-id": "a b"}).span_context.trace_id == TRACE_ID
    assert clew.extract({"traceparent": "broken", "x-correlation-id": "order-17"}).correlation_id == "order-17"
    huge = {"traceparent": TRACEPARENT, "tracestate": "a=" + "b" * 10_000_000, "baggage": "c" * 10_000_000}
    assert clew.extract(huge).span_context.trace_id == TRACE_ID


def test_the_first_of_duplicates_counts(captured_telemetry: CapturedTelemetry) -> None:
    carrier = {"traceparent": [TRACEPARENT, f"00-{'1' * 32}-{'2' * 16}-01"], "x-correlation-id": ("first", "second")}
    carried = clew.extract(carrier)
    assert (carried.span_context.trace_id, carried.correlation_id) == (TRACE_ID, "first")
    message = email.message.Message()
    message["Traceparent"] = TRACEPARENT
    message["X-Correlation-Id"] = "order-17"
    read: Any = message
    assert clew.extract(read).correlation_id == "order-17"


@pytest.mark.parametrize(
    "carrier", [7, "traceparent", b"bytes", ["traceparent"], object()], ids=lambda carrier: type(carrier).__name__
)
def test_what_is_no_mapping_is_named_and_the_app_goes_on(
    lenient: None, caplog: pytest.LogCaptureFixture, carrier: Any
) -> None:
    for _ in range(3):
        assert not clew.extract(carrier).span_context.is_valid
    said = [record.getMessage() for record in caplog.records if "carrier" in record.getMessage()]
    kind = type(carrier).__qualname__
    sentence = (
        f"extract: a carrier is a mapping, not a {kind}: the thread starts anew here (further ones are only counted)"
    )
    assert said == [sentence]
    assert diagnostics.problems()["extract"] == 3


def test_a_carrier_that_takes_nothing_is_counted(lenient: None) -> None:
    closed: Any = MappingProxyType({})
    with clew.span("work"):
        assert clew.inject(closed) is closed
    assert diagnostics.problems()["inject"] == 1


def test_an_async_generator_never_leaks_what_it_extracted(captured_telemetry: CapturedTelemetry) -> None:
    with clew.correlation("order-17"), clew.span("sender"):
        carrier: dict[str, str] = clew.inject({})
    seen: list[tuple[str, str | None]] = []

    async def messages() -> AsyncIterator[int]:
        for number in range(3):
            with clew.extract(carrier), clew.span("receive"):
                await asyncio.sleep(0)
            yield number

    @clew.span("stream")
    async def decorated() -> AsyncIterator[int]:
        async for number in messages():
            yield number

    async def main() -> None:
        # Left in the middle by one task and closed by another: where a held context would break
        stream = decorated()
        await asyncio.create_task(anext(stream))  # type: ignore[arg-type] # anext() of an async generator is a coroutine
        seen.append((clew.trace_id(), clew.correlation_id()))
        await anext(stream)
        seen.append((clew.trace_id(), clew.correlation_id()))
        await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined] # it is a generator

    asyncio.run(main())
    assert seen == [("", None), ("", None)]
    sender = captured_telemetry.span("sender")
    received = [span for span in captured_telemetry.spans if span.name == "receive"]
    assert {span.parent_id for span in received} == {sender.span_id}
    assert captured_telemetry.span("stream").parent_id == ""
