"""Streams carried by NATS: one JetStream work queue, with a subject and a durable consumer for each."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar, Final

import nats
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from nats.errors import Error
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from clew.demo.faststream_streams import LOGGER, FastStreamStreams, postponing
from clew.demo.messages import STREAMS
from clew.demo.settings import DemoSettings
from clew.demo.streams import GRACEFUL_TIMEOUT_S, Handler

JETSTREAM: Final = "clew-demo"
"""The JetStream stream that keeps the messages of all subjects until they are acknowledged."""

_PUBLISH_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 5.0


class NatsStreams(FastStreamStreams):
    """The streams of one service in NATS, at ``NATS_URL``."""

    title: ClassVar[str] = "NATS"
    name: ClassVar[str] = "nats"

    def __init__(self, settings: DemoSettings) -> None:
        broker = NatsBroker(
            settings.nats_url,
            connect_timeout=int(_CONNECT_TIMEOUT_S),
            # As long as it takes: a service outlives its server
            max_reconnect_attempts=-1,
            graceful_timeout=GRACEFUL_TIMEOUT_S,
            # At once, it would meet the same trouble
            middlewares=[postponing(delay=settings.redeliver_after_s)],
            logger=logging.getLogger(LOGGER),
            log_level=logging.DEBUG,
        )
        super().__init__(broker, settings)

    @classmethod
    def away(cls) -> tuple[type[Exception], ...]:
        """Return the errors that say that nobody answers."""
        return (Error, OSError)

    def _consume(self, stream: str, handler: Handler, group: str) -> None:
        self._broker.subscriber(
            stream,
            stream=JStream(JETSTREAM, declare=False),
            durable=durable_name(stream, group),
            pull_sub=PullSub(),
            ack_policy=AckPolicy.ACK,
            max_workers=self._settings.workers,
        )(handler)

    async def _connect(self) -> None:
        client: Any = await self._broker.connect()
        streams = client.jetstream()
        # Both are made anew, or become what the settings say now
        await streams.add_stream(
            StreamConfig(name=JETSTREAM, subjects=list(STREAMS), retention=RetentionPolicy.WORK_QUEUE)
        )
        for stream, group in self._groups:
            await streams.add_consumer(
                JETSTREAM,
                ConsumerConfig(
                    durable_name=durable_name(stream, group),
                    filter_subject=stream,
                    ack_wait=self._settings.redeliver_after_s,
                ),
            )

    async def _publish(self, body: Any, stream: str) -> None:
        await self._broker.publish(body, stream, stream=JETSTREAM, timeout=_PUBLISH_TIMEOUT_S)

    @staticmethod
    def put_bytes(url: str, stream: str, data: bytes) -> None:
        """Put bytes on a stream as they are."""

        async def put() -> None:
            client = await nats.connect(url, allow_reconnect=False)
            try:
                await client.jetstream().publish(stream, data)
            finally:
                await client.close()

        asyncio.run(put())


def durable_name(stream: str, group: str) -> str:
    """Return the name of the consumer of a group.

    Args:
        stream: what it takes from.
        group: the consumers that share the work.
    """
    # A dot parts the words of a subject, and no name may have one
    return f"{group}-{stream.replace('.', '-')}"
