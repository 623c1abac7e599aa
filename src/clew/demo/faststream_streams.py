"""Streams carried by a broker of FastStream, whichever that is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from faststream import BaseMiddleware
from faststream.exceptions import NackMessage
from faststream.message import StreamMessage

import clew
from clew.demo.messages import STREAMS
from clew.demo.settings import DemoSettings
from clew.demo.streams import WATCH_EVERY_S, Postponed, Streams

LOGGER: Final = "demo.streams"
"""The logger of FastStream's own lines. What they say of each message clew says, too."""


class FastStreamStreams(Streams):
    """The streams of one service by FastStream.

    Args:
        broker: it is not connected yet.
        settings: those of the demo.
    """

    def __init__(self, broker: Any, settings: DemoSettings) -> None:
        super().__init__(settings)
        self._broker: Any = clew.instrument(broker)

    async def start(self) -> None:
        """Let the consumers begin; the streams are connected."""
        await self._broker.start()

    async def stop(self) -> None:
        """Let go, without losing a message."""
        await self._broker.stop()

    async def answers(self, timeout_s: float = 1.0) -> bool:
        """Tell whether those who carry the streams answer in time."""
        return bool(await self._broker.ping(timeout=timeout_s))

    async def watch_depths(self) -> None:
        """Have what waits in all streams measured."""
        client = await self._broker.connect()
        for name in STREAMS:
            clew.watch_queue(client, name, interval_s=WATCH_EVERY_S)


def postponing(**options: Any) -> type[BaseMiddleware[Any, Any]]:
    """Return a middleware by which what is postponed goes back to its broker.

    Args:
        options: of ``NackMessage``, such as ``delay`` where the broker knows one.
    """

    class Postponing(BaseMiddleware[Any, Any]):
        async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: StreamMessage[Any]) -> Any:
            try:
                return await call_next(msg)
            except Postponed as error:
                raise NackMessage(**options) from error

    return Postponing
