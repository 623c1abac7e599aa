"""Envelopes of hand-made queues: anything goes through unharmed, and nothing that comes in is more than a message or an error."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clew
from clew import diagnostics
from clew.queues.envelope import MAX_HEADERS, opened, written
from clew.testing import CapturedTelemetry

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=5),
    max_leaves=20,
)
HEADERS = st.dictionaries(st.text(max_size=20), st.text(max_size=50) | JSON, max_size=5)


@settings(deadline=None)
@given(payload=JSON | st.binary(), as_text=st.booleans())
def test_any_payload_comes_back(payload: Any, as_text: bool) -> None:
    wire = written(payload, {"clew-type": "x"})
    found = opened(wire.decode() if as_text else wire)
    assert (found.envelope, found.payload) == ("clew", payload)
    assert type(found.payload) is type(payload)


@settings(deadline=None)
@given(
    raw=st.binary()
    | st.text(st.characters(codec=None))
    | JSON.map(json.dumps)
    | st.fixed_dictionaries(
        {"clew": st.integers(-1, 3) | JSON, "headers": HEADERS | JSON},
        optional={"payload": JSON, "payload_base64": st.text() | JSON},
    ).map(json.dumps)
)
def test_whatever_comes_in_is_a_message_or_an_error(raw: bytes | str) -> None:
    try:
        message = clew.message_process("documents", raw)
    except clew.MessageError:
        return
    with message:
        assert message.attempt >= 1
        assert message.envelope in ("clew", "plain")
        again = message.retry()
    # What was put back can be read, and is the same
    with clew.message_process("documents", again) as second:
        assert second.attempt == message.attempt + 1
        assert second.payload == message.payload


@pytest.mark.parametrize(
    ("raw", "payload"),
    [
        (b'{"id": 1}', {"id": 1}),
        (b"17", 17),
        ("plain text", "plain text"),
        (b"plain text", "plain text"),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"", ""),
        (b"NaN", "NaN"),
        (b'{"clew": "is a word", "id": 1}', {"clew": "is a word", "id": 1}),
        (bytearray(b"[1]"), [1]),
        (memoryview(b"[1]"), [1]),
    ],
)
def test_messages_of_producers_without_clew_are_taken(raw: Any, payload: Any) -> None:
    with clew.message_process("documents", raw) as message:
        assert (message.payload, message.envelope, message.attempt) == (payload, "plain", 1)
        assert (message.id, message.type, message.source, message.user, message.sent_at) == (None,) * 5


@pytest.mark.parametrize(
    ("raw", "reason", "says"),
    [
        (b"{not json", "malformed", "no JSON"),
        (b"  [1, 2", "malformed", "no JSON"),
        (b"[NaN]", "malformed", "NaN is no JSON"),
        (b"[" * 100_000, "malformed", "nested"),
        (b"[" * 200 + b"]" * 200, "malformed", "nested"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "malformed", "nested"),
        (b"[" + b"9" * 10_000 + b"]", "malformed", "no JSON"),
        (b'{"clew": 1}', "malformed", "has no payload"),
        (b'{"clew": 1, "headers": [], "payload": 1}', "malformed", "headers"),
        (b'{"clew": 1, "headers": {"traceparent": 1}, "payload": 1}', "malformed", "texts"),
        (
            json.dumps({"clew": 1, "headers": {str(n): "" for n in range(MAX_HEADERS + 1)}, "payload": 1}),
            "malformed",
            "64",
        ),
        (b'{"clew": 1, "payload_base64": "&&&"}', "malformed", "base64"),
        (b'{"clew": 2, "payload": 1}', "unknown_version", "newer clew"),
        (b"x" * 1_001, "oversized", "1001 bytes"),
        ("ä" * 501, "oversized", "1002 bytes"),
        (None, "malformed", "NoneType"),
        (b"", None, ""),
    ],
)
def test_what_is_no_message_is_one_error_and_counted(
    captured_telemetry: CapturedTelemetry, raw: Any, reason: str | None, says: str
) -> None:
    limit = 1_000 if reason == "oversized" else 1_000_000
    if reason is None:
        with clew.message_process("documents", raw, max_bytes=limit):
            assert not captured_telemetry.spans
        return
    with pytest.raises(ValueError, match=says) as caught:
        clew.message_process("documents", raw, max_bytes=limit)
    assert isinstance(caught.value, clew.MessageError)
    assert caught.value.reason == reason
    assert captured_telemetry.metric("clew.queue.rejected", **{"messaging.destination.name": "documents"}).value == 1
    span = captured_telemetry.span("process documents")
    assert (span.status, span.attributes["clew.queue.outcome"]) == ("error", reason)


@pytest.mark.parametrize("body", [math.nan, object(), {"a": {1, object()}}, {(1, 2): 3}])
def test_what_can_not_be_written_is_the_same_error(captured_telemetry: CapturedTelemetry, body: Any) -> None:
    with pytest.raises(clew.MessageError) as caught, clew.message_send("documents", body) as envelope:
        envelope.encode()
    assert caught.value.reason == "unwritable"
    assert captured_telemetry.span("send documents").status == "error"


def test_more_than_json_can_be_written() -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    with clew.message_send("documents", {"at": at, "ids": {1}}) as envelope:
        assert opened(bytes(envelope)).payload == {"at": "2026-01-31T00:00:00Z", "ids": [1]}
        assert str(envelope).encode() == envelope.encode()


def test_the_thread_goes_along(captured_telemetry: CapturedTelemetry) -> None:
    body = {"type": "document", "id": 1}
    with (
        clew.correlation("order-17"),
        clew.span("request"),
        clew.message_send("documents", body, user="u-17") as envelope,
    ):
        wire = envelope.encode()
    with clew.message_process("documents", wire) as message, clew.span("inside"):
        assert clew.correlation_id() == "order-17"
        assert (message.type, message.user, message.id, message.envelope) == ("document", "u-17", envelope.id, "clew")
        assert message.source == captured_telemetry.span("send documents").resource["service.name"]
        assert message.sent_at is not None
    send, process = captured_telemetry.span("send documents"), captured_telemetry.span("process documents")
    assert process.parent_id == send.span_id
    assert [link.span_id for link in process.links] == [send.span_id]
    assert captured_telemetry.span("inside").parent_id == process.span_id
    assert process.attributes["messaging.message.body.size"] == len(wire)


async def _through(body: Any) -> Any:
    async with clew.message_send("documents", body) as envelope:
        wire = envelope.encode()
    async with clew.message_process("documents", wire) as message:
        return message.payload


def test_it_works_in_coroutines() -> None:
    assert asyncio.run(_through({"id": 1})) == {"id": 1}


def test_a_try_that_puts_it_back_and_one_that_gives_it_up(captured_telemetry: CapturedTelemetry) -> None:
    with clew.message_send("documents", {"id": 1}) as envelope:
        wire = envelope.encode()
    with clew.message_process("documents", wire) as first:
        wire = first.retry()
    with clew.message_process("documents", wire) as second:
        assert (second.attempt, second.id, second.payload) == (2, envelope.id, {"id": 1})
        second.dead_letter("no_topic")
    one, two = [span for span in captured_telemetry.spans if span.name == "process documents"]
    assert one.trace_id == two.trace_id
    assert one.span_id in [link.span_id for link in two.links]
    labels = {"messaging.destination.name": "documents"}
    assert captured_telemetry.metric("clew.queue.redeliveries", **labels).value == 1
    assert captured_telemetry.metric("clew.queue.dead_letters", **labels).value == 1
    assert (one.status, two.status) == ("unset", "error")


def test_the_first_try_of_a_plain_message_begins_its_thread_and_is_linked_once(
    captured_telemetry: CapturedTelemetry,
) -> None:
    with clew.message_process("documents", b'{"id": 1}') as first:
        wire = first.retry()
    with clew.message_process("documents", wire) as second:
        wire = second.retry()
    with clew.message_process("documents", wire):
        pass
    one, two, three = captured_telemetry.spans
    assert (two.parent_id, three.parent_id) == (one.span_id, one.span_id)
    assert [link.span_id for link in two.links] == [one.span_id]
    assert [link.span_id for link in three.links] == [one.span_id, two.span_id]


def test_odd_headers_stop_nobody(captured_telemetry: CapturedTelemetry) -> None:
    diagnostics.set_strict(strict=False)
    headers = {
        "traceparent": "x" * 10_000,
        "clew-sent-at": "soon",
        "clew-attempt": "9" * 5_000,
        "clew-earlier-try": "none",
        "clew-message-id": "x" * 5_000,
    }
    with clew.message_process("documents", written(1, headers)) as message:
        assert (message.payload, message.attempt, message.sent_at) == (1, 1, None)
        assert len(message.id or "") == 255
