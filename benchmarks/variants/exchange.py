"""Messages through a stream with a consumer group, both ends in one process: the same FastStream app for all who trace it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from faststream import AckPolicy
from faststream.redis import RedisBroker, StreamSub

from benchmarks.variants.parts import Messages, nothing

_KEPT = 1_000


def exchange(
    address: str,
    *,
    middlewares: Sequence[Any] = (),
    instrument: Callable[[Any], Any] = lambda broker: broker,
    flush: Callable[[], object] = nothing,
) -> Messages:
    """Return a producer and a consumer of a stream of their own.

    Args:
        address: the Valkey's.
        middlewares: of the broker.
        instrument: what is done to the broker before it starts.
        flush: returns when everything emitted so far has been sent.
    """
    name = f"documents-{os.getpid()}"
    logger = logging.getLogger("bench")
    logger.setLevel(logging.WARNING)
    broker: Any = instrument(RedisBroker(address, middlewares=middlewares, logger=logger, log_level=logging.DEBUG))
    waiting = 0
    over = asyncio.Event()
    stream = StreamSub(name, group="workers", consumer="bench", maxlen=_KEPT)

    @broker.subscriber(stream=stream, ack_policy=AckPolicy.ACK)  # type: ignore[untyped-decorator] # the broker is any
    async def work(body: dict[str, Any]) -> None:
        nonlocal waiting
        assert body["pages"]
        waiting -= 1
        if not waiting:
            over.set()

    async def run(count: int) -> None:
        nonlocal waiting
        waiting = count
        over.clear()
        for number in range(count):
            await broker.publish({"document": number, "pages": [1, 2, 3]}, stream=name, maxlen=_KEPT)
        await asyncio.wait_for(over.wait(), 60)

    async def start() -> None:
        await broker.start()

    return Messages(start=start, run=run, flush=flush)
