"""Subjects of a real JetStream that are watched: what waits for a consumer, and what its stream has where there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import nats
import pytest
from nats.js.api import ConsumerConfig, StreamConfig

import clew
from clew import diagnostics
from clew.health import checks
from clew.history import recorder as recording
from clew.history.models import QueueDepth
from clew.testing import CapturedTelemetry
from tests.integration.job_history import History, own_history
from tests.integration.nats_server import NATSServer
from tests.integration.waiting import eventually_async


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """An empty history that this process's recorder writes to."""
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened


def series(name: str, queue: str = "documents") -> float | None:
    for one in clew.summary(name):
        if one.labels["messaging.destination.name"] == queue:
            assert one.labels["messaging.system"] == "nats"
            return float(one.value or 0)
    return None


def depth(queue: str = "documents") -> float | None:
    return series("clew.queue.depth", queue)


def age_s() -> float | None:
    return series("clew.queue.oldest.age")


def run(url: str, act: Callable[[Any], Awaitable[None]], **given: Any) -> None:
    """Connect, and have a stream with some subjects."""

    async def main() -> None:
        client = await nats.connect(url, **given)
        try:
            await client.jetstream().add_stream(StreamConfig(name="work", subjects=["documents", "pages.*"]))
            await act(client)
        finally:
            clew.unwatch_queue("documents", "pages", "pages.*", "nowhere")
            await client.close()

    asyncio.run(main())


async def taken(streams: Any, consumer: str, number: int, subject: str = "documents") -> list[Any]:
    subscription = await streams.pull_subscribe(subject, durable=consumer, stream="work")
    messages: list[Any] = []
    while len(messages) < number:
        messages += await subscription.fetch(number - len(messages), timeout=20)
    return messages


def test_a_durable_consumer_has_what_it_did_not_acknowledge_and_what_was_not_delivered(
    captured_telemetry: CapturedTelemetry, history: History, nats_url: str
) -> None:
    async def act(client: Any) -> None:
        streams = client.jetstream()
        await streams.add_consumer("work", ConsumerConfig(durable_name="workers", filter_subject="documents"))
        await streams.publish("pages.1", b"another subject")
        started_s = time.time()
        for number in range(5):
            await streams.publish("documents", str(number).encode())
        clew.watch_queue(client, "documents", group="workers", interval_s=0.05)
        await eventually_async(lambda: depth() == 5, "none was delivered")
        first, second = await taken(streams, "workers", 2)
        await second.ack_sync()
        await eventually_async(lambda: depth() == 4, "one is unacknowledged, three were not delivered")
        between_s = time.time() - started_s
        assert (age_s() or 0) >= between_s - 1, "the first one, which was not acknowledged, tells"
        await first.ack_sync()
        for message in await taken(streams, "workers", 3):
            await message.ack_sync()
        await eventually_async(lambda: (depth(), age_s()) == (0, 0), "all is done")

    run(nats_url, act)
    writer = recording._recorder
    assert writer is not None
    assert writer.flush(10)
    (row,) = history.all(QueueDepth, queue="documents")
    assert (row["system"], row["consumer_group"], row["kind"], row["problem"]) == ("nats", "workers", "stream", None)


def test_the_age_is_that_of_the_first_message_that_waits(captured_telemetry: CapturedTelemetry, nats_url: str) -> None:
    async def act(client: Any) -> None:
        streams = client.jetstream()
        await streams.publish("documents", b"old")
        await asyncio.sleep(1.5)
        await streams.publish("documents", b"new")
        clew.watch_queue(streams, "documents", interval_s=0.05)
        await eventually_async(lambda: depth() == 2, "the stream has them: there is no consumer")
        assert (age_s() or 0) >= 1.5
        await streams.add_consumer("work", ConsumerConfig(durable_name="workers", filter_subject="documents"))
        (old,) = await taken(streams, "workers", 1)
        await old.ack_sync()
        await eventually_async(lambda: depth() == 1 and (age_s() or 9) < 1.5, "only the new one waits")

    run(nats_url, act)


def test_of_several_consumers_the_one_that_is_furthest_behind_tells(
    captured_telemetry: CapturedTelemetry, nats_url: str
) -> None:
    async def act(client: Any) -> None:
        streams = client.jetstream()
        for name, subject in (("slow", "documents"), ("fast", "documents"), ("other", "pages.*")):
            await streams.add_consumer("work", ConsumerConfig(durable_name=name, filter_subject=subject))
        for number in range(3):
            await streams.publish("documents", str(number).encode())
            await streams.publish(f"pages.{number}", b"")
            await streams.publish(f"pages.{number}", b"")
        clew.watch_queue(client, "documents", interval_s=0.05)
        clew.watch_queue(client, "pages.*", name="pages", interval_s=0.05)
        for message in await taken(streams, "fast", 3):
            await message.ack_sync()
        await eventually_async(lambda: (depth(), depth("pages")) == (3, 6), "each tells of its own")
        for message in await taken(streams, "slow", 1):
            await message.ack_sync()
        await eventually_async(lambda: depth() == 2, "the slow one goes on")

    run(nats_url, act)


def test_what_is_not_there_is_told(captured_telemetry: CapturedTelemetry, history: History, nats_url: str) -> None:
    async def act(client: Any) -> None:
        clew.watch_queue(client, "nowhere", interval_s=0.05)
        clew.watch_queue(client, "documents", group="nobody", interval_s=0.05)
        await eventually_async(lambda: (depth(), depth("nowhere")) == (0, 0), "they are looked at")

    run(nats_url, act)
    writer = recording._recorder
    assert writer is not None
    assert writer.flush(10)
    problems = {row["queue"]: row["problem"] for row in history.all(QueueDepth)}
    assert problems == {
        "nowhere": "no stream has the subject nowhere",
        "documents": "no consumer 'nobody' reads it",
    }


def test_a_server_that_is_started_again_is_looked_at_again(
    captured_telemetry: CapturedTelemetry, tmp_path: Any
) -> None:
    diagnostics.set_strict(strict=False)
    with NATSServer(tmp_path) as server:

        async def quiet(_: Exception) -> None: ...

        async def act(client: Any) -> None:
            await client.jetstream().publish("documents", b"1")
            clew.watch_queue(client, "documents", interval_s=0.05)
            await eventually_async(lambda: depth() == 1, "it is counted")
            server.stop()
            await eventually_async(lambda: depth() is None, "nobody knows any more")
            await asyncio.to_thread(server.start)
            await eventually_async(lambda: depth() == 1, "it is counted again")

        run(server.url, act, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=quiet)


def test_a_check_of_a_subject(captured_telemetry: CapturedTelemetry, nats_url: str) -> None:
    async def act(client: Any) -> None:
        for number in range(3):
            await client.jetstream().publish("documents", str(number).encode())
        result = await checks.queue(client, "documents", max_length=2).probe()
        assert (result.status, result.data["length"]) == ("degraded", 3)

    run(nats_url, act)
