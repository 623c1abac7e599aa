"""FastStream's subscribers without a handler, over a real Valkey and a real NATS: the app fetches messages, and each poll is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.redis import RedisBroker, StreamSub

import clew
from clew.testing import CapturedTelemetry

Fetch = Callable[[Any], Awaitable[Any]]


async def by_get_one(subscriber: Any) -> Any:
    return await subscriber.get_one(timeout=20)


async def by_iteration(subscriber: Any) -> Any:
    iterator = aiter(subscriber)
    try:
        return await anext(iterator)
    finally:
        await iterator.aclose()


async def subscribed(subscriber: Any) -> None:
    """Have a subscriber of NATS listen: it does from its first poll on."""
    assert await subscriber.get_one(timeout=0.1) is None


def consumed() -> float:
    return sum(float(one.value or 0) for one in clew.summary("messaging.client.consumed.messages"))


def run(broker: Any, subscriber: Any, act: Callable[[Any], Awaitable[None]]) -> None:
    async def main() -> None:
        async with broker:
            await broker.start()
            await act(subscriber)

    asyncio.run(main())


def check(captured: CapturedTelemetry, system: str) -> None:
    """Check that one message was sent, and received by one poll, which is linked to the send."""
    sent, received = captured.span("send documents"), captured.span("receive documents")
    assert received.kind == "client"
    assert received.attributes["messaging.system"] == system
    assert received.attributes["messaging.operation.type"] == "receive"
    assert [link.span_id for link in received.links] == [sent.span_id]
    assert received.attributes["clew.correlation.id"] == "order-17"
    assert not [span for span in captured.spans if span.name.startswith("process")]
    assert consumed() == 1


@pytest.mark.parametrize("fetch", [by_get_one, by_iteration])
@pytest.mark.parametrize("kind", ["list", "stream", "channel"])
def test_messages_of_valkey(captured_telemetry: CapturedTelemetry, valkey_url: str, kind: str, fetch: Fetch) -> None:
    broker = clew.instrument(RedisBroker(valkey_url))
    source: dict[str, Any] = {kind: StreamSub("documents", last_id="0") if kind == "stream" else "documents"}
    threads: list[str | None] = []

    async def act(subscriber: Any) -> None:
        with clew.correlation("order-17"), clew.span("request"):
            await broker.publish({"id": 1}, **{kind: "documents"})
        message = await fetch(subscriber)
        assert await message.decode() == {"id": 1}
        with clew.extract(message.headers):
            threads.append(clew.correlation_id())

    run(broker, broker.subscriber(**source), act)
    check(captured_telemetry, "redis")
    assert threads == ["order-17"]


@pytest.mark.parametrize("fetch", [by_get_one, by_iteration])
@pytest.mark.parametrize("kind", ["core", "push", "pull"])
def test_messages_of_nats(captured_telemetry: CapturedTelemetry, nats_url: str, kind: str, fetch: Fetch) -> None:
    broker = clew.instrument(NatsBroker(nats_url))
    given: dict[str, Any] = {}
    if kind != "core":
        given = {"stream": JStream("work", subjects=["documents"]), "durable": "workers"}
    if kind == "pull":
        given["pull_sub"] = PullSub()

    async def act(subscriber: Any) -> None:
        await subscribed(subscriber)
        with clew.correlation("order-17"), clew.span("request"):
            await broker.publish({"id": 1}, "documents", **({} if kind == "core" else {"stream": "work"}))
        assert await fetch(subscriber) is not None

    run(broker, broker.subscriber("documents", **given), act)
    check(captured_telemetry, "nats")


def test_a_pattern_stays_a_pattern(captured_telemetry: CapturedTelemetry, nats_url: str) -> None:
    broker = clew.instrument(NatsBroker(nats_url))

    async def act(subscriber: Any) -> None:
        await subscribed(subscriber)
        await broker.publish({"id": 1}, "pages.17")
        assert await by_get_one(subscriber) is not None

    run(broker, broker.subscriber("pages.*"), act)
    assert captured_telemetry.span("receive pages.*").attributes["messaging.destination.name"] == "pages.*"


def test_a_poll_lasts_as_long_as_the_app_waits(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    broker = clew.instrument(RedisBroker(valkey_url))

    async def act(subscriber: Any) -> None:
        fetching = asyncio.create_task(by_get_one(subscriber))
        # What the broker's middleware alone does not see
        await asyncio.sleep(0.3)
        await broker.publish({"id": 1}, list="documents")
        assert await fetching is not None

    run(broker, broker.subscriber(list="documents"), act)
    assert captured_telemetry.span("receive documents").duration_s >= 0.1


def test_a_poll_that_brings_nothing_is_told_by_its_time_alone(
    captured_telemetry: CapturedTelemetry, valkey_url: str
) -> None:
    broker = clew.instrument(RedisBroker(valkey_url))

    async def act(subscriber: Any) -> None:
        assert await subscriber.get_one(timeout=0.2) is None

    run(broker, broker.subscriber(list="documents"), act)
    assert captured_telemetry.spans == []
    (series,) = clew.summary("messaging.client.operation.duration")
    assert (series.count, series.labels["messaging.operation.name"], consumed()) == (1, "receive", 0)
    assert series.sum >= 0.1


def test_a_broker_that_is_not_instrumented_is_left_alone(
    captured_telemetry: CapturedTelemetry, valkey_url: str
) -> None:
    clew.instrument(RedisBroker(valkey_url))
    stranger = RedisBroker(valkey_url)

    async def act(subscriber: Any) -> None:
        await stranger.publish({"id": 1}, list="documents")
        assert await by_get_one(subscriber) is not None

    run(stranger, stranger.subscriber(list="documents"), act)
    assert (captured_telemetry.spans, consumed()) == ([], 0)
    assert clew.summary("messaging.client.operation.duration") == []
