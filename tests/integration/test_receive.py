"""Receiving from hand-made queues of a real Valkey: how long a poll took, what it brought, and where it came from."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

import clew
from clew import diagnostics
from clew.testing import CapturedTelemetry
from tests.integration.waiting import eventually_async


@pytest.fixture
def client(captured_telemetry: CapturedTelemetry, valkey_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(valkey_url) as made:
        yield made


def send(client: Any, *numbers: int) -> None:
    for number in numbers:
        with clew.message_send("documents", {"id": number}) as envelope:
            client.rpush("documents", envelope.encode())


def polls(operation: str = "receive", **labels: str) -> list[Any]:
    """Return the series of calls to the broker."""
    return [
        one
        for one in clew.summary("messaging.client.operation.duration")
        if one.labels["messaging.operation.name"] == operation
        and all(one.labels.get(key.replace("_", ".")) == value for key, value in labels.items())
    ]


def consumed() -> float:
    return sum(float(one.value or 0) for one in clew.summary("messaging.client.consumed.messages"))


def test_a_message_that_is_waited_for_is_linked_and_counted_once(
    captured_telemetry: CapturedTelemetry, client: Any
) -> None:
    late = threading.Timer(0.3, send, (client, 1))
    with clew.message_receive("documents") as receive:
        late.start()
        answer = client.blpop("documents", timeout=20)
        receive.got(answer[1])
    late.join()
    (raw,) = receive.messages
    with clew.message_process("documents", raw, received=receive) as message:
        assert message.payload == {"id": 1}
    sent, received, processed = (
        captured_telemetry.span(f"{name} documents") for name in ("send", "receive", "process")
    )
    assert received.kind == "client"
    assert received.attributes["messaging.operation.type"] == "receive"
    assert received.attributes["messaging.message.id"] == sent.attributes["messaging.message.id"]
    assert "messaging.batch.message_count" not in received.attributes
    assert [(link.trace_id, link.span_id) for link in received.links] == [(sent.trace_id, sent.span_id)]
    # A poll is no part of the message's trace, but is found by its correlation id
    assert received.trace_id != sent.trace_id
    assert received.attributes["clew.correlation.id"] == sent.attributes["clew.correlation.id"]
    assert (processed.trace_id, processed.parent_id) == (sent.trace_id, sent.span_id)
    # It took as long as the queue was empty
    assert received.duration_s >= 0.2
    (series,) = polls()
    assert series.count == 1
    assert series.sum >= 0.2
    assert consumed() == 1


def test_a_batch_of_a_stream(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    client.xgroup_create("pages", "workers", mkstream=True)
    for number in range(3):
        with clew.message_send("pages", {"id": number}) as envelope:
            client.xadd("pages", {"body": envelope.encode()})
    client.xadd("pages", {"body": b"of a stranger"})
    client.xadd("pages", {"body": b'{"clew": 1, "headers": '})
    with clew.span("worker") as worker, clew.message_receive("pages", group="workers") as receive:
        ((_, entries),) = client.xreadgroup("workers", "one", {"pages": ">"}, count=10)
        receive.got([fields[b"body"] for _, fields in entries])
    payloads, refused = [], 0
    for raw in receive.messages:
        try:
            message = clew.message_process("pages", raw, group="workers", received=receive)
        except clew.MessageError:
            refused += 1
            continue
        with message:
            payloads.append(message.payload)
    assert payloads == [{"id": 0}, {"id": 1}, {"id": 2}, "of a stranger"]
    assert refused == 1
    span = captured_telemetry.span("receive pages")
    assert span.parent_id == worker.span_id
    assert span.attributes["messaging.batch.message_count"] == 5
    assert span.attributes["messaging.consumer.group.name"] == "workers"
    sends = {one.span_id for one in captured_telemetry.spans if one.name == "send pages"}
    assert {link.span_id for link in span.links} == sends
    assert len(span.links) == len(sends) == 3
    assert consumed() == 5


def test_a_payload_that_is_processed_twice_is_read_twice_and_delivered_once(client: Any) -> None:
    send(client, 1)
    with clew.message_receive("documents") as receive:
        receive.got(client.lpop("documents", 10))
    (raw,) = receive.messages
    for _ in range(2):
        with clew.message_process("documents", raw, received=receive) as message:
            assert message.payload.pop("id") == 1
    assert consumed() == 1


def test_without_a_receive_the_processing_counts(client: Any) -> None:
    send(client, 1)
    with clew.message_process("documents", client.lpop("documents")):
        pass
    assert (consumed(), polls()) == (1, [])


def test_polls_that_bring_nothing_leave_no_span_but_their_time(
    captured_telemetry: CapturedTelemetry, client: Any
) -> None:
    for _ in range(3):
        with clew.message_receive("documents") as receive:
            receive.set("tried", 1)
            receive.got(client.lpop("documents"))
        assert receive.messages == []
    with clew.message_receive("documents") as receive:
        receive.got([])
    assert captured_telemetry.spans == []
    (series,) = polls()
    assert (series.count, consumed()) == (4, 0)
    assert "error.type" not in series.labels


def test_a_poll_that_fails_is_told(captured_telemetry: CapturedTelemetry) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = redis.Redis(port=unused.getsockname()[1])
        with pytest.raises(redis.ConnectionError), clew.message_receive("documents") as receive:
            receive.got(nowhere.lpop("documents"))
    span = captured_telemetry.span("receive documents")
    assert (span.status, span.attributes["error.type"]) == ("error", "ConnectionError")
    assert [event.name for event in span.events] == ["exception"]
    (series,) = polls()
    assert series.labels["error.type"] == "ConnectionError"
    with clew.message_receive("documents") as receive:
        receive.fail("not_mine", "somebody else has the lock")
    assert len(captured_telemetry.spans) == 2
    assert consumed() == 0


def test_a_poll_that_is_cancelled_brought_nothing(
    captured_telemetry: CapturedTelemetry, client: Any, valkey_url: str
) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis.from_url(valkey_url) as own:

            async def work() -> None:
                async with clew.message_receive("documents") as receive:
                    receive.got(await own.blpop("documents", timeout=60))

            task = asyncio.create_task(work())
            await eventually_async(lambda: client.info("clients")["blocked_clients"] == 1, "it waits")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert captured_telemetry.spans == []
    (series,) = polls()
    assert series.labels["error.type"] == "cancelled"


def test_commands_of_an_instrumented_client_stay_those_of_a_database(
    captured_telemetry: CapturedTelemetry, client: Any
) -> None:
    send(client, 1)
    clew.instrument(client)
    with clew.span("worker") as worker, clew.message_receive("documents") as receive:
        receive.got(client.blpop("documents", timeout=5)[1])
    assert {span.name for span in captured_telemetry.spans if span.parent_id == worker.span_id} == {
        "BLPOP",
        "receive documents",
    }


def test_what_is_no_message_is_said_and_raises_nothing(captured_telemetry: CapturedTelemetry) -> None:
    diagnostics.set_strict(strict=False)
    with clew.message_receive("documents") as receive:
        receive.got(5)  # type: ignore[arg-type] # that is the test
        receive.got([None, 5])  # type: ignore[list-item] # the same
    assert diagnostics.problems()["message_receive"] == 1
    assert captured_telemetry.span("receive documents").attributes["messaging.batch.message_count"] == 2
