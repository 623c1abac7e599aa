"""Bodies are decompressed and counted within bounds."""

from __future__ import annotations

import gzip
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from clew.console.body import BodyLimits, InFlight, decompress
from clew.console.errors import BodyRefusedError
from clew.console.otlp import Signal, WireFormat, decode_request
from clew.console.wire import count_messages

MIB = 1024 * 1024


@given(st.binary(max_size=5000), st.integers(min_value=1, max_value=5))
def test_gzip_of_any_body_and_several_members(body: bytes, members: int) -> None:
    step = len(body) // members + 1
    pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    assert decompress(b"".join(gzip.compress(piece) for piece in pieces), "gzip", BodyLimits()) == body


def test_gzip_larger_than_one_step() -> None:
    body = bytes(range(256)) * 20_000
    assert decompress(gzip.compress(body), " GZip ", BodyLimits()) == body


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(b"\0" * 64 * MIB)
    tracemalloc.start()
    with pytest.raises(BodyRefusedError, match="larger than 1048576 bytes once decompressed") as refused:
        decompress(bomb, "gzip", BodyLimits(max_decompressed_bytes=MIB))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.value.status == 413
    assert peak_bytes < 4 * MIB


@pytest.mark.parametrize(
    ("body", "encoding", "status", "sentence"),
    [
        (b"plain", "gzip", 400, "is not gzip"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], "gzip", 400, "cut off"),
        (gzip.compress(b"", mtime=0) * 65, "gzip", 400, "more than 64 members"),
        (b"", "br", 415, "'br' is not supported: send gzip or identity"),
        (b"x" * 11, "identity", 413, "larger than 10 bytes"),
    ],
)
def test_what_is_refused_is_named(body: bytes, encoding: str, status: int, sentence: str) -> None:
    with pytest.raises(BodyRefusedError, match=sentence) as refused:
        decompress(body, encoding, BodyLimits(max_decompressed_bytes=10 if status == 413 else MIB))
    assert refused.value.status == status


def test_the_bytes_of_all_requests_together_are_bounded_and_given_back() -> None:
    in_flight = InFlight(max_bytes=10)
    with in_flight.share() as first:
        first.grow(8)
        with in_flight.share() as second, pytest.raises(BodyRefusedError) as refused:
            second.grow(3)
        assert refused.value.status == 503
    with in_flight.share() as third:
        third.grow(10)


def test_a_limit_that_is_not_above_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_body_bytes=0 is not usable"):
        BodyLimits(max_body_bytes=0)


def request_of(spans: int, attributes: int) -> ExportTraceServiceRequest:
    span = Span(name="s", attributes=[KeyValue() for _ in range(attributes)])
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[span] * spans)])])


@given(st.integers(min_value=0, max_value=30), st.integers(min_value=0, max_value=10))
def test_nested_messages_are_counted(spans: int, attributes: Any) -> None:
    body = request_of(spans, attributes).SerializeToString()
    expected = 2 + spans * (1 + attributes)  # the resource's list and the scope's, then the spans with theirs
    assert count_messages(body, ExportTraceServiceRequest.DESCRIPTOR, stop_after=10_000) == expected


@given(st.binary(max_size=300))
def test_counting_never_fails_on_nonsense(body: bytes) -> None:
    assert count_messages(body, ExportTraceServiceRequest.DESCRIPTOR, stop_after=50) <= 51


def test_a_small_body_of_very_many_messages_is_refused() -> None:
    body = request_of(400_000, 0).SerializeToString()
    with pytest.raises(BodyRefusedError, match="more than 1000 messages") as refused:
        decode_request(Signal.TRACES, body, WireFormat.PROTOBUF, max_messages=1000)
    assert refused.value.status == 413


def test_the_same_is_true_for_json() -> None:
    body = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 2000 + b"{}]}]}]}"
    with pytest.raises(BodyRefusedError, match="more than 1000 messages"):
        decode_request(Signal.TRACES, body, WireFormat.JSON, max_messages=1000)
