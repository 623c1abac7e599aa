"""Streams carried by Valkey: a stream with a consumer group for each."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Final

from faststream import AckPolicy
from faststream.redis import RedisBroker, StreamSub
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from clew.demo.faststream_streams import LOGGER, FastStreamStreams, postponing
from clew.demo.settings import DemoSettings
from clew.demo.streams import GRACEFUL_TIMEOUT_S, Handler

_CLAIM_EVERY_S: Final = 1.0


class ValkeyStreams(FastStreamStreams):
    """The streams of one service in Valkey, at ``VALKEY_URL``."""

    title: ClassVar[str] = "Valkey"
    name: ClassVar[str] = "valkey"

    def __init__(self, settings: DemoSettings) -> None:
        broker = RedisBroker(
            settings.valkey_url,
            graceful_timeout=GRACEFUL_TIMEOUT_S,
            # Such a message stays pending until it counts as abandoned
            middlewares=[postponing()],
            # Not FastStream's own, which writes to the terminal by itself
            logger=logging.getLogger(LOGGER),
            log_level=logging.DEBUG,
        )
        super().__init__(broker, settings)

    @classmethod
    def away(cls) -> tuple[type[Exception], ...]:
        """Return the errors that say that nobody answers."""
        return (RedisError, OSError)

    def _consume(self, stream: str, handler: Handler, group: str) -> None:
        fresh = StreamSub(stream, group=group, consumer=f"{group}-1")
        abandoned = StreamSub(
            stream,
            group=group,
            consumer=f"{group}-1",
            min_idle_time=int(self._settings.redeliver_after_s * 1000),
            polling_interval=int(_CLAIM_EVERY_S * 1000),
        )
        workers = self._settings.workers
        wrapped = self._broker.subscriber(stream=fresh, ack_policy=AckPolicy.ACK, max_workers=workers)(handler)
        self._broker.subscriber(stream=abandoned, ack_policy=AckPolicy.ACK)(wrapped)

    async def _connect(self) -> None:
        client: Any = await self._broker.connect()
        await client.ping()
        for stream, group in self._groups:
            try:
                # From the stream's beginning: what was sent before the first consumer came is for it
                await client.xgroup_create(stream, group, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def _publish(self, body: Any, stream: str) -> None:
        await self._broker.publish(body, stream=stream)

    @staticmethod
    def put_bytes(url: str, stream: str, data: bytes) -> None:
        """Put bytes on a stream as they are."""
        with Redis.from_url(url) as client:
            client.xadd(stream, {"__data__": data})
