"""FastStream over a real Valkey: lists, channels and streams, single messages and batches, replies, redelivery, nonsense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio
from faststream import BaseMiddleware, FastStream
from faststream._internal.broker import BrokerUsecase
from faststream.redis import ListSub, RedisBroker, RedisRouter, StreamSub
from pydantic import TypeAdapter

import clew
from clew.instrumentation.faststream import instrument_all
from clew.testing import CapturedLog, CapturedSpan, CapturedTelemetry
from tests.integration.waiting import WAIT_S, eventually_async


def run(
    url: str, setup: Callable[[RedisBroker, list[Any]], Any], act: Callable[[RedisBroker, list[Any]], Awaitable[None]]
) -> list[Any]:
    """Run one instrumented broker: ``setup`` registers, ``act`` publishes and waits for what was received."""
    received: list[Any] = []

    async def main() -> None:
        broker = clew.instrument(RedisBroker(url))
        setup(broker, received)
        async with broker:
            await broker.start()
            await act(broker, received)

    asyncio.run(main())
    return received


def spans(captured: CapturedTelemetry, name: str) -> list[CapturedSpan]:
    return [span for span in captured.spans if span.name == name]


def logs(captured: CapturedTelemetry, event: str) -> list[CapturedLog]:
    return [log for log in captured.logs if log.body == event]


DESTINATIONS: dict[str, dict[str, Any]] = {
    "list": {"list": "documents"},
    "channel": {"channel": "documents"},
    "stream": {"stream": "documents"},
}


@pytest.mark.parametrize("kind", DESTINATIONS)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_one_message_continues_the_trace(
    captured_telemetry: CapturedTelemetry, valkey_url: str, kind: str, before: bool
) -> None:
    received: list[Any] = []

    async def main() -> None:
        broker = RedisBroker(valkey_url)
        if before:
            assert clew.instrument(broker) is broker

        @broker.subscriber(**DESTINATIONS[kind])  # type: ignore[untyped-decorator] # its overloads can't see the table
        async def work(body: dict[str, Any]) -> None:
            with clew.span("inside"):
                received.append((body, clew.trace_id(), clew.correlation_id()))

        clew.instrument(broker)
        clew.instrument(broker)
        async with broker:
            await broker.start()
            with clew.correlation("order-17"), clew.span("request"):
                await broker.publish({"id": 1}, **DESTINATIONS[kind])
            await eventually_async(
                lambda: bool(spans(captured_telemetry, "process documents")), "the message was processed"
            )

    asyncio.run(main())

    request, send = captured_telemetry.span("request"), captured_telemetry.span("send documents")
    process, inside = captured_telemetry.span("process documents"), captured_telemetry.span("inside")
    assert received == [({"id": 1}, request.trace_id, "order-17")]
    assert (send.parent_id, process.parent_id, inside.parent_id) == (request.span_id, send.span_id, process.span_id)
    assert [link.span_id for link in process.links] == [send.span_id]
    assert (send.kind, process.kind) == ("producer", "consumer")
    assert {span.attributes["clew.correlation.id"] for span in (send, process, inside)} == {"order-17"}
    assert process.attributes["messaging.system"] == "redis"
    assert process.attributes["messaging.message.body.size"] == len(b'{"id":1}')
    assert 0 <= process.attributes["clew.queue.wait_s"] < WAIT_S
    if kind == "stream":
        assert process.attributes["messaging.message.id"] == send.attributes["messaging.message.id"]
    labels = {"messaging.system": "redis", "messaging.destination.name": "documents"}
    for metric in (
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.process.duration",
        "clew.queue.wait.duration",
    ):
        captured_telemetry.metric(metric, **labels)


def test_a_batch_only_has_links(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(stream=StreamSub("documents", batch=True, group="workers", consumer="one"))
        async def work(bodies: list[int]) -> None:
            received.append((bodies, clew.correlation_id()))

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        client = redis.asyncio.Redis.from_url(valkey_url)
        pipeline = client.pipeline()
        with clew.correlation("order-17"):
            for number in (1, 2, 3):
                with clew.span("request"):
                    await broker.publish(number, stream="documents", pipeline=pipeline)
        # At once, so that they are read at once
        await pipeline.execute()
        await eventually_async(lambda: bool(spans(captured_telemetry, "process documents")), "the batch was processed")
        await client.aclose()

    assert run(valkey_url, setup, act) == [([1, 2, 3], "order-17")]
    sent, process = spans(captured_telemetry, "send documents"), captured_telemetry.span("process documents")
    assert len(sent) == 3
    assert process.parent_id == ""
    assert process.trace_id not in {span.trace_id for span in sent}
    assert [link.span_id for link in process.links] == [span.span_id for span in sent]
    assert process.attributes["messaging.batch.message_count"] == 3
    assert process.attributes["messaging.consumer.group.name"] == "workers"
    assert captured_telemetry.metric("messaging.client.consumed.messages").value == 3


def test_messages_that_are_sent_together_share_a_send_span(
    captured_telemetry: CapturedTelemetry, valkey_url: str
) -> None:
    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(list=ListSub("documents"))
        async def work(body: int) -> None:
            received.append(body)

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        await broker.publish_batch(1, 2, list="documents")
        await eventually_async(lambda: len(spans(captured_telemetry, "process documents")) == 2, "both were processed")

    assert run(valkey_url, setup, act) == [1, 2]
    send = captured_telemetry.span("send documents")
    assert send.attributes["messaging.batch.message_count"] == 2
    assert {span.parent_id for span in spans(captured_telemetry, "process documents")} == {send.span_id}
    assert captured_telemetry.metric("messaging.client.sent.messages").value == 2


def test_what_a_handler_returns_is_sent_by_its_message(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    def setup(broker: RedisBroker, received: list[Any]) -> None:
        router = RedisRouter(prefix="v1-")

        @router.subscriber(stream="raw")
        @router.publisher(stream="clean")
        async def clean(body: str) -> str:
            return body.strip()

        @router.subscriber(stream="clean")
        async def keep(body: str) -> None:
            received.append((body, clew.correlation_id()))

        broker.include_router(router)

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        with clew.correlation("order-17"):
            await broker.publish(" text ", stream="v1-raw")
        await eventually_async(lambda: bool(spans(captured_telemetry, "process v1-clean")), "the second hop")

    assert run(valkey_url, setup, act) == [("text", "order-17")]
    chain = [captured_telemetry.span(f"{step} v1-{name}") for name in ("raw", "clean") for step in ("send", "process")]
    assert [span.parent_id for span in chain] == ["", *(span.span_id for span in chain[:-1])]


def test_a_reply_has_no_destination_of_its_own(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(channel="double")
        async def double(number: int) -> int:
            return number * 2

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        response = await broker.request(21, channel="double")
        received.append(await response.decode())
        await eventually_async(lambda: bool(spans(captured_telemetry, "process double")), "the request was processed")

    assert run(valkey_url, setup, act) == [42]
    assert sorted(span.name for span in captured_telemetry.spans) == [
        "process double",
        "send (temporary)",
        "send double",
    ]


def test_redelivery_is_the_same_trace_and_links_to_the_earlier_try(
    captured_telemetry: CapturedTelemetry, valkey_url: str
) -> None:
    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(stream=StreamSub("documents", group="workers", consumer="one"))
        async def first(body: int) -> None:
            received.append(body)
            raise RuntimeError("the first try fails")

        # Takes over what stays unacknowledged
        @broker.subscriber(stream=StreamSub("documents", group="workers", consumer="two", min_idle_time=50))
        async def again(body: int) -> None:
            received.append(body)

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        await broker.publish(7, stream="documents")
        await eventually_async(lambda: len(spans(captured_telemetry, "process documents")) == 2, "a second try")

    assert run(valkey_url, setup, act) == [7, 7]
    send = captured_telemetry.span("send documents")
    first, second = spans(captured_telemetry, "process documents")
    assert (first.status, second.status) == ("error", "unset")
    assert (first.trace_id, second.trace_id) == (send.trace_id, send.trace_id)
    assert "clew.queue.redelivery_count" not in first.attributes
    assert second.attributes["clew.queue.redelivery_count"] == 1
    assert [link.span_id for link in second.links] == [send.span_id, first.span_id]


@pytest.mark.parametrize(
    ("envelope", "error"),
    [
        pytest.param(b'{"data": "x", "headers": 5}', "AttributeError", id="headers are no mapping"),
        pytest.param(b"\x89BIN\r\n\x1a\n\x00\x01\xff\xff", "ValidationError", id="cut short"),
        pytest.param(b"{not json", "ValidationError", id="not JSON"),
        pytest.param(b'"' + b"x" * 10_000_000 + b'"', "ValidationError", id="10 MB of something else"),
    ],
)
def test_a_malformed_envelope_is_shown_and_the_consumer_runs_on(
    captured_telemetry: CapturedTelemetry, valkey_url: str, envelope: bytes, error: str
) -> None:
    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(list="documents")
        async def work(body: dict[str, int]) -> None:
            received.append(body)

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        client = redis.asyncio.Redis.from_url(valkey_url)
        await broker.publish({"id": 1}, list="documents")
        await client.rpush("documents", envelope)
        await broker.publish({"id": 2}, list="documents")
        await client.aclose()
        await eventually_async(lambda: len(spans(captured_telemetry, "process documents")) == 3, "all three were seen")

    assert run(valkey_url, setup, act) == [{"id": 1}, {"id": 2}]
    failed = [span for span in spans(captured_telemetry, "process documents") if span.status == "error"]
    assert [span.attributes["error.type"] for span in failed] == [error]
    assert captured_telemetry.metric("clew.queue.rejected", error__type=error).value == 1
    assert [log.trace_id for log in logs(captured_telemetry, "queue_error")] == [failed[0].trace_id]


def test_a_failing_handler_is_no_malformed_message(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(list="documents")
        async def work(body: dict[str, int]) -> None:
            TypeAdapter(int).validate_python("seven")

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        await broker.publish({}, list="documents")
        await eventually_async(lambda: bool(spans(captured_telemetry, "process documents")), "it was processed")

    run(valkey_url, setup, act)
    assert captured_telemetry.span("process documents").attributes["error.type"] == "ValidationError"
    assert not [series for series in captured_telemetry.metrics if series.name == "clew.queue.rejected"]


def test_messages_of_producers_without_clew(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(list="documents")
        async def work(body: dict[str, int]) -> None:
            received.append((body, clew.correlation_id()))

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        client = redis.asyncio.Redis.from_url(valkey_url)
        await client.rpush("documents", json.dumps({"data": '{"id": 1}', "headers": {"correlation_id": "legacy-1"}}))
        await client.rpush("documents", b'{"id": 2}')
        await client.aclose()
        await eventually_async(lambda: len(spans(captured_telemetry, "process documents")) == 2, "both were processed")

    received = run(valkey_url, setup, act)
    assert [body for body, _ in received] == [{"id": 1}, {"id": 2}]
    assert received[0][1] == "legacy-1"
    assert all(span.parent_id == "" and not span.links for span in captured_telemetry.spans)


def test_other_middlewares_work_within_the_span(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    seen: list[str] = []

    class Audit(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            seen.append(clew.trace_id())
            return await call_next(msg)

    def setup(broker: RedisBroker, received: list[Any]) -> None:
        broker.add_middleware(Audit)

        @broker.subscriber(list="documents")
        async def work(body: int) -> None:
            received.append(body)

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        await broker.publish(1, list="documents")
        await eventually_async(lambda: bool(spans(captured_telemetry, "process documents")), "it was processed")

    run(valkey_url, setup, act)
    assert seen == [captured_telemetry.span("process documents").trace_id]


def test_the_headers_of_the_app_stay_the_apps(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    headers = {"tenant": "north"}

    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(list="documents")
        async def work(body: int) -> None:
            received.append(body)

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        await broker.publish(1, list="documents", headers=headers)
        await eventually_async(lambda: bool(spans(captured_telemetry, "process documents")), "it was processed")

    run(valkey_url, setup, act)
    assert headers == {"tenant": "north"}


def test_every_broker_made_from_now_on(
    captured_telemetry: CapturedTelemetry, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is taken back after the test
    monkeypatch.setattr(BrokerUsecase, "__init__", BrokerUsecase.__init__)
    instrument_all()
    instrument_all()

    def setup(broker: RedisBroker, received: list[Any]) -> None:
        @broker.subscriber(list="documents")
        async def work(body: int) -> None:
            received.append(body)

    async def act(broker: RedisBroker, received: list[Any]) -> None:
        async with RedisBroker(valkey_url) as another:
            await another.publish(1, list="documents")
        await eventually_async(lambda: bool(spans(captured_telemetry, "process documents")), "it was processed")

    run(valkey_url, setup, act)
    assert captured_telemetry.span("process documents").parent_id == captured_telemetry.span("send documents").span_id


def test_the_broker_of_an_app_is_found(captured_telemetry: CapturedTelemetry) -> None:
    broker = RedisBroker()
    app = FastStream(broker)
    assert clew.instrument(app) is app
    clew.instrument(broker)
    assert len(broker.middlewares) == 1
