"""The Valkey Streams between the services: connecting, subscribing as a group, and letting go without losing a message."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from faststream import AckPolicy
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel
from redis.exceptions import RedisError, ResponseError

import clew
from clew.demo.settings import DemoError, DemoSettings

_GRACEFUL_TIMEOUT_S: Final = 1.0
_CLAIM_EVERY_S: Final = 1.0
_PING_TIMEOUT_S: Final = 1.0
_WATCH_EVERY_S: Final = 2.0

Handler = Callable[..., Awaitable[None]]


def make_broker(settings: DemoSettings) -> RedisBroker:
    """Return an instrumented broker that is not connected yet."""
    broker = RedisBroker(
        settings.valkey_url,
        graceful_timeout=_GRACEFUL_TIMEOUT_S,
        # Not FastStream's own, which writes to the terminal by itself. What it says of each message clew says, too
        logger=logging.getLogger("demo.streams"),
        log_level=logging.DEBUG,
    )
    instrumented: RedisBroker = clew.instrument(broker)
    return instrumented


def watch(broker: RedisBroker) -> None:
    """Have the health of the process tell whether Valkey answers: without it there is no work."""

    @clew.health_check("valkey", timeout_s=_PING_TIMEOUT_S, critical=True)
    async def answers() -> bool:
        return await broker.ping(timeout=_PING_TIMEOUT_S)


def subscribe(broker: RedisBroker, stream: str, handler: Handler, *, group: str, settings: DemoSettings) -> None:
    """Let a handler take the entries of a stream, each once for the whole group.

    An entry is acknowledged when its handler has ended, well or not, since a failure is written down where the sender looks for
    it; unless the handler raises ``NackMessage``. Such an entry comes again after a while, as does one whose consumer died.

    Args:
        broker: the broker, not started yet.
        stream: the stream's name.
        handler: takes a message of the stream, typed as such.
        group: the consumers that share the work, named after the service.
        settings: how many entries are worked on at a time, and when an entry counts as abandoned.
    """
    fresh = StreamSub(stream, group=group, consumer=f"{group}-1")
    abandoned = StreamSub(
        stream,
        group=group,
        consumer=f"{group}-1",
        min_idle_time=int(settings.redeliver_after_s * 1000),
        polling_interval=int(_CLAIM_EVERY_S * 1000),
    )
    wrapped = broker.subscriber(stream=fresh, ack_policy=AckPolicy.ACK, max_workers=settings.workers)(handler)
    broker.subscriber(stream=abandoned, ack_policy=AckPolicy.ACK)(wrapped)


async def connect(broker: RedisBroker, groups: Iterable[tuple[str, str]] = ()) -> None:
    """Connect, so that messages can be published, and make the consumer groups.

    Args:
        broker: the broker with its subscribers; ``broker.start()`` lets them consume.
        groups: pairs of stream and group. They are made to begin at the stream's beginning: what was published before the first
            consumer came is not lost.

    Raises:
        DemoError: Valkey can't be reached.
    """
    try:
        client: Any = await broker.connect()
        await client.ping()
        for stream, group in groups:
            try:
                await client.xgroup_create(stream, group, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
    except (RedisError, OSError) as error:
        raise DemoError(f"Valkey can't be reached ({error}): check VALKEY_URL and that it runs") from error


async def watch_queues(broker: RedisBroker, names: Iterable[str]) -> None:
    """Have what waits in streams measured, whether or not anybody consumes them.

    Args:
        broker: the broker, connected.
        names: the streams.
    """
    client = await broker.connect()
    for name in names:
        clew.watch_queue(client, name, interval_s=_WATCH_EVERY_S)


async def publish(broker: RedisBroker, message: BaseModel, stream: str) -> None:
    """Put a message on a stream.

    Args:
        broker: the broker of this service.
        message: what is sent.
        stream: where it goes.
    """
    await broker.publish(message.model_dump(mode="json"), stream=stream)
