"""The streams between the services, whoever carries them: ``DEMO_QUEUE`` says whether Valkey, NATS or Celery does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from pydantic import BaseModel

import clew
from clew.demo.settings import DemoError, DemoSettings, Queue

GRACEFUL_TIMEOUT_S: Final = 1.0
"""How long a consumer has to end what it is at when its process is told to end."""

_PING_TIMEOUT_S: Final = 1.0
WATCH_EVERY_S: Final = 2.0
"""How often it is measured what waits."""


Handler = Callable[..., Awaitable[None]]


class QueueAwayError(DemoError):
    """A message could not be sent, because who carries it can't be reached."""


class Postponed(Exception):  # noqa: N818 - says what becomes of a message, as StopIteration does of an iteration
    """Raised by a handler whose message is to come again after a while; the error that it comes of is its cause."""


class Streams(ABC):
    """The streams of one service: what it takes from them, and what it sends.

    Attributes:
        title: who carries them, as people write it.
        name: the same, as metrics and health checks have it.

    Args:
        settings: how many messages are worked on at a time, and when one counts as abandoned.
    """

    title: ClassVar[str]
    name: ClassVar[str]

    def __init__(self, settings: DemoSettings) -> None:
        self._settings = settings
        self._groups: list[tuple[str, str]] = []

    def subscribe(self, stream: str, handler: Handler, *, group: str) -> None:
        """Let a handler take the messages of a stream, each once for the whole group.

        A message is acknowledged when its handler has ended, well or not, since a failure is written down where the sender looks
        for it; unless the handler raises :class:`Postponed`. Such a message comes again after a while, as does one whose consumer
        died. What was sent before the first consumer came is not lost.

        Args:
            stream: the stream's name.
            handler: takes a message of the stream, typed as such.
            group: the consumers that share the work, named after the service.
        """
        self._consume(stream, handler, group)
        self._groups.append((stream, group))

    async def connect(self) -> None:
        """Connect, so that messages can be sent, and make what consumers of this service need.

        Raises:
            DemoError: nobody answers.
        """
        try:
            await self._connect()
        except self.away() as error:
            raise DemoError(
                f"{self.title} can't be reached ({error}): check {self.name.upper()}_URL and that it runs"
            ) from error

    @abstractmethod
    async def start(self) -> None:
        """Let the consumers begin; the streams are connected."""

    @abstractmethod
    async def stop(self) -> None:
        """Let go, without losing a message."""

    async def publish(self, message: BaseModel, stream: str) -> None:
        """Put a message on a stream; it is there when this returns.

        Args:
            message: what is sent.
            stream: where it goes.

        Raises:
            QueueAwayError: it may not be there.
        """
        try:
            await self._publish(message.model_dump(mode="json"), stream)
        except self.away() as error:
            raise QueueAwayError(f"{self.title} can't be reached ({error})") from error

    @abstractmethod
    async def answers(self, timeout_s: float = _PING_TIMEOUT_S) -> bool:
        """Tell whether those who carry the streams answer in time."""

    def watch(self) -> None:
        """Have the health of the process tell whether they answer: without them there is no work."""
        clew.health_check(self.name, timeout_s=_PING_TIMEOUT_S, critical=True)(self.answers)

    @abstractmethod
    async def watch_depths(self) -> None:
        """Have what waits in all streams measured, whether or not anybody consumes them; the streams are connected."""

    @abstractmethod
    def _consume(self, stream: str, handler: Handler, group: str) -> None: ...

    @abstractmethod
    async def _connect(self) -> None: ...

    @abstractmethod
    async def _publish(self, body: Any, stream: str) -> None: ...

    @staticmethod
    @abstractmethod
    def put_bytes(url: str, stream: str, data: bytes) -> None:
        """Put bytes on a stream as they are."""

    @classmethod
    @abstractmethod
    def away(cls) -> tuple[type[Exception], ...]:
        """Return the errors that say that nobody answers."""


def make_streams(settings: DemoSettings) -> Streams:
    """Return the streams of a service, not connected yet.

    Args:
        settings: who carries them, and where.
    """
    streams: Streams = _kind(settings.queue)(settings)
    return streams


def put_bytes(queue: Queue, url: str, stream: str, data: bytes) -> None:
    """Put bytes on a stream as they are, as some other program may.

    Args:
        queue: who carries the messages.
        url: such as ``redis://127.0.0.1:6379/0`` or ``nats://127.0.0.1:4222``.
        stream: where they go.
        data: the bytes.

    Raises:
        QueueAwayError: nobody answers there.
    """
    kind = _kind(queue)
    try:
        kind.put_bytes(url, stream, data)
    except kind.away() as error:
        raise QueueAwayError(f"{kind.title} at {url.rpartition('@')[2]} can't be reached ({error})") from error


def _kind(queue: Queue) -> Any:
    # Only the library of the one that is used has to be there
    if queue == "nats":
        from clew.demo.nats_streams import NatsStreams

        return NatsStreams
    if queue == "celery":
        from clew.demo.celery_streams import CeleryStreams

        return CeleryStreams
    from clew.demo.valkey_streams import ValkeyStreams

    return ValkeyStreams
