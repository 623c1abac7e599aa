"""Kafka and RabbitMQ through FastStream, in process: destinations, batches, redelivery, and what becomes of refused messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from faststream import AckPolicy
from faststream.exceptions import NackMessage, RejectMessage
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.rabbit import QueueType, RabbitBroker, RabbitExchange, RabbitQueue, TestRabbitBroker
from faststream.rabbit.testing import build_message

import clew
from clew.history import recorder as recording
from clew.history.models import QueueMessage
from clew.testing import CapturedTelemetry
from tests.integration.job_history import History, own_history


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """An empty history that this process's recorder writes to."""
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened


def statuses(history: History) -> list[str]:
    writer = recording._recorder
    assert writer is not None
    assert writer.flush(10)
    return [row["status"] for row in history.all(QueueMessage, direction="received")]


def dead_letters(captured: CapturedTelemetry) -> float:
    return sum(series.value for series in captured.metrics if series.name == "clew.queue.dead_letters")


def test_kafka_in_batches_and_one_by_one(captured_telemetry: CapturedTelemetry) -> None:
    received: list[Any] = []

    async def main() -> None:
        broker = clew.instrument(KafkaBroker())

        @broker.subscriber("documents", group_id="workers", batch=True)  # type: ignore[untyped-decorator]
        async def many(bodies: list[int]) -> None:
            received.append((bodies, clew.correlation_id()))

        @broker.subscriber("pages", "words")  # type: ignore[untyped-decorator]
        @broker.publisher("clean")  # type: ignore[untyped-decorator]
        async def one(body: str) -> str:
            return body.strip()

        @broker.subscriber("clean")  # type: ignore[untyped-decorator]
        async def keep(body: str) -> None:
            received.append((body, clew.correlation_id()))

        async with TestKafkaBroker(broker):
            with clew.correlation("order-17"), clew.span("request"):
                await broker.publish_batch(1, 2, 3, topic="documents")
                await broker.publish(" text ", topic="words")

    asyncio.run(main())
    assert received == [([1, 2, 3], "order-17"), ("text", "order-17")]
    send, process = captured_telemetry.span("send documents"), captured_telemetry.span("process documents")
    assert send.attributes["messaging.batch.message_count"] == process.attributes["messaging.batch.message_count"] == 3
    assert (process.parent_id, [link.span_id for link in process.links]) == ("", [send.span_id])
    assert process.attributes["messaging.system"] == "kafka"
    assert process.attributes["messaging.consumer.group.name"] == "workers"
    chain = [captured_telemetry.span(f"{verb} {topic}") for topic in ("words", "clean") for verb in ("send", "process")]
    request = captured_telemetry.span("request")
    assert [span.parent_id for span in chain] == [span.span_id for span in (request, *chain[:-1])]


def test_rabbitmq_by_queues_and_exchanges(captured_telemetry: CapturedTelemetry) -> None:
    exchange = RabbitExchange("papers")

    async def main() -> None:
        broker = clew.instrument(RabbitBroker())

        @broker.subscriber(RabbitQueue("documents"))  # type: ignore[untyped-decorator]
        async def direct(body: int) -> int:
            return body * 2

        @broker.subscriber(RabbitQueue("printed", routing_key="print"), exchange)  # type: ignore[untyped-decorator]
        async def routed(body: int) -> None:
            pass

        async with TestRabbitBroker(broker):
            with clew.span("request"):
                await broker.publish(1, "documents")
                await broker.publish(2, "print", exchange)

    asyncio.run(main())
    request = captured_telemetry.span("request")
    for sent, processed in (("documents", "documents"), ("papers:print", "printed")):
        send, process = captured_telemetry.span(f"send {sent}"), captured_telemetry.span(f"process {processed}")
        assert (send.parent_id, process.parent_id) == (request.span_id, send.span_id)
        assert [link.span_id for link in process.links] == [send.span_id]
        assert send.attributes["messaging.system"] == process.attributes["messaging.system"] == "rabbitmq"
        assert "clew.queue.redelivery_count" not in process.attributes


def test_rabbitmq_says_that_it_delivers_again(captured_telemetry: CapturedTelemetry) -> None:
    received: list[Any] = []

    async def main() -> None:
        broker = clew.instrument(RabbitBroker())

        @broker.subscriber("documents", ack_policy=AckPolicy.NACK_ON_ERROR)  # type: ignore[untyped-decorator]
        async def work(body: int) -> None:
            received.append(body)
            if len(received) < 3:
                raise RuntimeError("not yet")

        (subscriber,) = broker.subscribers
        raws: list[Any] = []
        consume = subscriber.process_message

        async def seen(raw: Any) -> Any:
            for _ in range(2):
                # As RabbitMQ does with what is put back: the same message, with the flag
                again = await build_message(
                    raw.body,
                    "documents",
                    headers=raw.headers,
                    correlation_id=raw.correlation_id,
                    content_type=raw.content_type,
                    serializer=None,
                )
                object.__setattr__(again, "redelivered", True)  # Messages that came can't be changed
                raws.append(again)
            return await consume(raw)

        async with TestRabbitBroker(broker):
            subscriber.process_message = seen
            with pytest.raises(RuntimeError, match="not yet"):
                await broker.publish(7, "documents")
            with pytest.raises(RuntimeError, match="not yet"):
                await consume(raws[0])
            await consume(raws[1])

    asyncio.run(main())
    assert received == [7, 7, 7]
    send = captured_telemetry.span("send documents")
    tries = [span for span in captured_telemetry.spans if span.name == "process documents"]
    assert [one.attributes.get("clew.queue.redelivery_count") for one in tries] == [None, 1, 2]
    assert [[link.span_id for link in one.links] for one in tries] == [
        [send.span_id],
        [send.span_id, tries[0].span_id],
        [send.span_id, tries[1].span_id],
    ]
    assert dead_letters(captured_telemetry) == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RejectMessage(), "dead_lettered"),
        (RejectMessage(requeue=True), "returned"),
        (NackMessage(), "returned"),
        (NackMessage(requeue=False), "dead_lettered"),
        (ValueError("no such topic"), "dead_lettered"),
    ],
    ids=["reject", "reject and requeue", "nack", "nack without requeue", "reject by policy"],
)
def test_what_becomes_of_a_message_of_rabbitmq(
    history: History, captured_telemetry: CapturedTelemetry, error: Exception, status: str
) -> None:
    async def main() -> None:
        broker = clew.instrument(RabbitBroker())

        @broker.subscriber("documents")  # type: ignore[untyped-decorator]
        async def work(body: int) -> None:
            raise error

        async with TestRabbitBroker(broker):
            with suppress(ValueError):
                await broker.publish(1, "documents")

    asyncio.run(main())
    assert statuses(history) == [status]
    assert dead_letters(captured_telemetry) == (status == "dead_lettered")


@pytest.mark.parametrize(
    ("arguments", "before", "status"),
    [
        ({"x-delivery-limit": 2}, 1, "failed"),
        ({"x-delivery-limit": 2}, 2, "dead_lettered"),
        ({"x-delivery-limit": 0}, None, "dead_lettered"),
        ({"x-delivery-limit": "two"}, 2, "failed"),
        ({"x-delivery-limit": 2}, "2", "failed"),
        (None, 20, "failed"),
    ],
    ids=["not yet", "the last", "none allowed", "a limit that is none", "a count that is none", "no limit declared"],
)
def test_a_quorum_queue_takes_a_message_back_until_its_limit(
    history: History, captured_telemetry: CapturedTelemetry, arguments: Any, before: Any, status: str
) -> None:
    async def main() -> None:
        broker = clew.instrument(RabbitBroker())
        queue = RabbitQueue("documents", queue_type=QueueType.QUORUM, durable=True, arguments=arguments)

        @broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)  # type: ignore[untyped-decorator]
        async def work(body: int) -> None:
            raise RuntimeError("never")

        async with TestRabbitBroker(broker):
            with suppress(RuntimeError):
                await broker.publish(1, queue, headers={} if before is None else {"x-delivery-count": before})

    asyncio.run(main())
    assert statuses(history) == [status]
    assert dead_letters(captured_telemetry) == (status == "dead_lettered")


@pytest.mark.parametrize(
    ("policy", "error", "status"),
    [
        (AckPolicy.ACK, RejectMessage(), "rejected"),
        (AckPolicy.ACK, NackMessage(), "returned"),
        (AckPolicy.ACK_FIRST, NackMessage(), "rejected"),
        (AckPolicy.MANUAL, RejectMessage(), "returned"),
    ],
    ids=["reject", "nack", "nack after it was acknowledged", "nobody acknowledges"],
)
def test_kafka_has_no_dead_letters(
    history: History, captured_telemetry: CapturedTelemetry, policy: AckPolicy, error: Exception, status: str
) -> None:
    async def main() -> None:
        broker = clew.instrument(KafkaBroker())

        @broker.subscriber("documents", group_id="workers", ack_policy=policy)  # type: ignore[untyped-decorator]
        async def work(body: int) -> None:
            raise error

        async with TestKafkaBroker(broker):
            # It is left to FastStream's own middleware, which is not there where the app acknowledges
            with suppress(type(error)):
                await broker.publish(1, "documents")

    asyncio.run(main())
    assert statuses(history) == [status]
    assert dead_letters(captured_telemetry) == 0
