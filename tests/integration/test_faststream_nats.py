"""FastStream over a real NATS: core and JetStream, redelivery, batches, replies, and what becomes of refused messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import nats
import pytest
from faststream import AckPolicy
from faststream.exceptions import NackMessage, RejectMessage
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage
from nats.js.api import ConsumerConfig

import clew
from clew.history import recorder as recording
from clew.history.models import QueueMessage
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.job_history import History, own_history
from tests.integration.nats_server import NATSServer
from tests.integration.waiting import eventually_async


def work_stream() -> JStream:
    """Return the stream of one test: a broker that has made a stream remembers it there."""
    return JStream("work", subjects=["documents", "pages.*"])


def run(
    url: str, setup: Callable[[NatsBroker, list[Any]], Any], act: Callable[[NatsBroker, list[Any]], Awaitable[None]]
) -> list[Any]:
    """Run one instrumented broker: ``setup`` registers, ``act`` publishes and waits for what was received."""
    received: list[Any] = []

    async def main() -> None:
        broker = clew.instrument(NatsBroker(url))
        setup(broker, received)
        async with broker:
            await broker.start()
            await act(broker, received)

    asyncio.run(main())
    return received


def spans(captured: CapturedTelemetry, name: str) -> list[CapturedSpan]:
    return [span for span in captured.spans if span.name == name]


def processed(captured: CapturedTelemetry, count: int, name: str = "process documents") -> Awaitable[None]:
    return eventually_async(lambda: len(spans(captured, name)) == count, f"{count} times: {name}")


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """An empty history that this process's recorder writes to."""
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened


def messages(history: History, **equal: Any) -> list[dict[str, Any]]:
    writer = recording._recorder
    assert writer is not None
    assert writer.flush(10)
    return [dict(row) for row in history.all(QueueMessage, **equal)]


@pytest.mark.parametrize("kind", ["core", "push", "pull"])
def test_one_message_continues_the_trace_and_is_recorded(
    history: History, captured_telemetry: CapturedTelemetry, nats_url: str, kind: str
) -> None:
    options: dict[str, dict[str, Any]] = {
        "core": {"queue": "workers"},
        "push": {"stream": work_stream(), "durable": "workers"},
        "pull": {"stream": work_stream(), "durable": "workers", "pull_sub": PullSub(batch_size=2, timeout=0.2)},
    }

    def setup(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber("documents", **options[kind])  # type: ignore[untyped-decorator] # its overloads can't see the table
        async def work(body: dict[str, Any]) -> None:
            with clew.span("inside"):
                received.append((body, clew.trace_id(), clew.correlation_id()))

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        stream = None if kind == "core" else "work"
        with clew.correlation("order-17"), clew.span("request"):
            await broker.publish(
                {"type": "upload", "name": "Größe"}, "documents", stream=stream, headers={"clew-user": "u-17"}
            )
        await processed(captured_telemetry, 1)

    received = run(nats_url, setup, act)
    request, send = captured_telemetry.span("request"), captured_telemetry.span("send documents")
    process, inside = captured_telemetry.span("process documents"), captured_telemetry.span("inside")
    assert received == [({"type": "upload", "name": "Größe"}, request.trace_id, "order-17")]
    assert (send.parent_id, process.parent_id, inside.parent_id) == (request.span_id, send.span_id, process.span_id)
    assert [link.span_id for link in process.links] == [send.span_id]
    assert (send.kind, process.kind) == ("producer", "consumer")
    assert process.attributes["messaging.consumer.group.name"] == "workers"
    assert "clew.queue.redelivery_count" not in process.attributes
    if kind != "core":
        assert process.attributes["messaging.message.id"] == send.attributes["messaging.message.id"] == "work:1"
    for metric in (
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.process.duration",
        "clew.queue.wait.duration",
    ):
        captured_telemetry.metric(metric, **{"messaging.system": "nats", "messaging.destination.name": "documents"})
    for status, span in (("sent", send), ("processed", process)):
        (row,) = messages(history, status=status)
        assert (row["span_id"], row["status"], row["system"], row["queue"]) == (
            *(span.span_id, status),
            *("nats", "documents"),
        )
        assert (row["type"], row["user_id"], row["correlation_id"]) == ("upload", "u-17", "order-17")
        assert row["payload"] == {"type": "upload", "name": "Größe"}
        assert row["attempt"] == 1


def test_a_pattern_stays_a_pattern(captured_telemetry: CapturedTelemetry, nats_url: str) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber("pages.*", stream=work_stream())
        async def one(body: int) -> None:
            received.append(body)

        @broker.subscriber(config=ConsumerConfig(filter_subjects=["pages.a", "documents"]), stream=work_stream())
        async def several(body: int) -> None:
            received.append(body)

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        await broker.publish(1, "pages.a", stream="work")
        await processed(captured_telemetry, 1, "process pages.*")
        await processed(captured_telemetry, 1, "process pages.a")

    assert run(nats_url, setup, act) == [1, 1]


def test_what_is_put_back_comes_again_and_links_to_the_earlier_try(
    history: History, captured_telemetry: CapturedTelemetry, nats_url: str
) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber("documents", stream=work_stream(), durable="workers", ack_policy=AckPolicy.NACK_ON_ERROR)
        async def work(body: int) -> None:
            received.append(body)
            if len(received) == 1:
                raise NackMessage
            if len(received) == 2:
                raise RuntimeError("the second try fails")

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        await broker.publish(7, "documents", stream="work")
        await processed(captured_telemetry, 3)

    assert run(nats_url, setup, act) == [7, 7, 7]
    send = captured_telemetry.span("send documents")
    tries = spans(captured_telemetry, "process documents")
    assert {one.trace_id for one in tries} == {send.trace_id}
    assert [one.attributes.get("clew.queue.redelivery_count") for one in tries] == [None, 1, 2]
    assert [[link.span_id for link in one.links] for one in tries] == [
        [send.span_id],
        [send.span_id, tries[0].span_id],
        [send.span_id, tries[1].span_id],
    ]
    assert captured_telemetry.metric("clew.queue.redeliveries").value == 2
    rows = messages(history, direction="received")
    assert [(row["status"], row["attempt"], row["message_id"]) for row in rows] == [
        ("returned", 1, "work:1"),
        ("failed", 2, "work:1"),
        ("processed", 3, "work:1"),
    ]
    assert not [series for series in captured_telemetry.metrics if series.name == "clew.queue.dead_letters"]


def test_what_is_not_acknowledged_in_time_comes_again(captured_telemetry: CapturedTelemetry, nats_url: str) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber(
            "documents",
            stream=work_stream(),
            durable="workers",
            config=ConsumerConfig(ack_wait=0.3),
            ack_policy=AckPolicy.MANUAL,
        )
        async def work(body: int, message: NatsMessage) -> None:
            received.append(body)
            if len(received) > 1:
                await message.ack()

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        await broker.publish(7, "documents", stream="work")
        await processed(captured_telemetry, 2)

    assert run(nats_url, setup, act) == [7, 7]
    send = captured_telemetry.span("send documents")
    first, second = spans(captured_telemetry, "process documents")
    assert second.attributes["clew.queue.redelivery_count"] == 1
    assert [link.span_id for link in second.links] == [send.span_id, first.span_id]


def test_a_batch_only_has_links(history: History, captured_telemetry: CapturedTelemetry, nats_url: str) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber(
            "documents",
            stream=work_stream(),
            durable="workers",
            pull_sub=PullSub(batch_size=3, batch=True, timeout=5.0),
            ack_policy=AckPolicy.NACK_ON_ERROR,
        )
        async def work(bodies: list[int]) -> None:
            received.append((sorted(bodies), clew.correlation_id()))
            if len(received) == 1:
                raise RuntimeError("the first try fails")

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        with clew.correlation("order-17"):
            for number in (1, 2, 3):
                await broker.publish(number, "documents", stream="work")
        await processed(captured_telemetry, 2)

    assert run(nats_url, setup, act) == [([1, 2, 3], "order-17")] * 2
    sent, (first, second) = (spans(captured_telemetry, f"{verb} documents") for verb in ("send", "process"))
    assert (first.parent_id, second.parent_id) == ("", "")
    assert [link.span_id for link in first.links] == [span.span_id for span in sent]
    assert {link.span_id for link in second.links} == {span.span_id for span in (*sent, first)}
    assert first.attributes["messaging.batch.message_count"] == 3
    assert second.attributes["clew.queue.redelivery_count"] == 1
    assert [(row["status"], row["messages"], row["attempt"]) for row in messages(history, direction="received")] == [
        ("failed", 3, 1),
        ("processed", 3, 2),
    ]


@pytest.mark.parametrize("stream", [None, "work"], ids=["core", "jetstream"])
def test_a_reply_has_no_destination_of_its_own(
    captured_telemetry: CapturedTelemetry, nats_url: str, stream: str | None
) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        options: dict[str, Any] = {} if stream is None else {"stream": work_stream()}

        @broker.subscriber("documents", **options)  # type: ignore[untyped-decorator] # its overloads can't see them
        async def double(number: int) -> int:
            return number * 2

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        response = await broker.request(21, "documents", stream=stream, timeout=10)
        received.append(await response.decode())
        await processed(captured_telemetry, 1)

    assert run(nats_url, setup, act) == [42]
    request, process = captured_telemetry.span("send documents"), captured_telemetry.span("process documents")
    reply = captured_telemetry.span("send (temporary)")
    assert (process.parent_id, reply.parent_id) == (request.span_id, process.span_id)
    assert len(captured_telemetry.spans) == 3


@pytest.mark.parametrize(
    ("stream", "error", "status"),
    [
        ("work", RejectMessage(), "dead_lettered"),
        ("work", ValueError("no such topic"), "dead_lettered"),
        (None, RejectMessage(), "rejected"),
        (None, NackMessage(), "rejected"),
        (None, ValueError("no such topic"), "failed"),
    ],
    ids=["term", "term by policy", "core reject", "core nack", "core error"],
)
def test_only_what_jetstream_drops_is_a_dead_letter(
    history: History,
    captured_telemetry: CapturedTelemetry,
    nats_url: str,
    stream: str | None,
    error: Exception,
    status: str,
) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        options: dict[str, Any] = {} if stream is None else {"stream": work_stream()}

        @broker.subscriber("documents", **options)  # type: ignore[untyped-decorator] # its overloads can't see them
        async def work(body: int) -> None:
            received.append(body)
            raise error

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        await broker.publish(1, "documents", stream=stream)
        await processed(captured_telemetry, 1)

    assert run(nats_url, setup, act) == [1]
    (row,) = messages(history, direction="received")
    assert row["status"] == status
    assert row["error_type"] == ("ValueError" if isinstance(error, ValueError) else None)
    counted = [series.value for series in captured_telemetry.metrics if series.name == "clew.queue.dead_letters"]
    assert counted == ([1] if status == "dead_lettered" else [])


def test_the_last_delivery_that_jetstream_makes_is_a_dead_letter(
    history: History, captured_telemetry: CapturedTelemetry, nats_url: str
) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber(
            "documents", stream=work_stream(), config=ConsumerConfig(max_deliver=2), ack_policy=AckPolicy.NACK_ON_ERROR
        )
        async def work(body: int) -> None:
            received.append(body)
            raise ValueError

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        await broker.publish(1, "documents", stream="work")
        await processed(captured_telemetry, 2)

    assert run(nats_url, setup, act) == [1, 1]
    assert [row["status"] for row in messages(history, direction="received")] == ["failed", "dead_lettered"]


def test_what_nobody_can_read_and_what_strangers_send(captured_telemetry: CapturedTelemetry, nats_url: str) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber("documents")
        async def work(body: dict[str, int]) -> None:
            received.append((body, clew.correlation_id()))

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        stranger = await nats.connect(nats_url)
        await stranger.publish("documents", b"\xff\xfe no JSON")
        await stranger.publish("documents", b'{"id": 2}', headers={"correlation_id": "legacy-1"})
        await stranger.publish("documents", b'{"id": 3}', headers={"traceparent": "nonsense", "clew-sent-at": "soon"})
        await stranger.close()
        await processed(captured_telemetry, 3)

    received = run(nats_url, setup, act)
    assert [body for body, _ in received] == [{"id": 2}, {"id": 3}]
    assert received[0][1] == "legacy-1"
    assert all(span.parent_id == "" and not span.links for span in captured_telemetry.spans)
    assert captured_telemetry.metric("clew.queue.rejected").value == 1


def test_a_message_waits_for_a_server_that_is_started_again(
    history: History, captured_telemetry: CapturedTelemetry, nats_url: str, nats_server: NATSServer
) -> None:
    def setup(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber("pages.*", stream=work_stream(), durable="pages")
        async def other(body: int) -> None:
            raise AssertionError

    async def act(broker: NatsBroker, received: list[Any]) -> None:
        with clew.span("request"):
            await broker.publish(1, "documents", stream="work")

    run(nats_url, setup, act)
    nats_server.stop()
    nats_server.start()

    def later(broker: NatsBroker, received: list[Any]) -> None:
        @broker.subscriber("documents", stream=work_stream(), durable="workers")
        async def work(body: int) -> None:
            received.append(body)

    assert run(nats_url, later, lambda *_: processed(captured_telemetry, 1)) == [1]
    assert captured_telemetry.span("process documents").trace_id == captured_telemetry.span("request").trace_id
