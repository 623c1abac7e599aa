"""FastStream brokers: a send span for what they publish, a process span for what their subscribers get.

By FastStream's own middleware, so that it is the same for Redis and Valkey, NATS, Kafka, RabbitMQ and MQTT.

Source: https://faststream.ag2.ai/latest/getting-started/middlewares/
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

import wrapt
from faststream import BaseMiddleware
from faststream._internal.broker import BrokerUsecase
from faststream.exceptions import IgnoredException, NackMessage, RejectMessage
from faststream.message import StreamMessage
from faststream.message.source_type import SourceType
from faststream.response import PublishCommand
from faststream.response.publish_type import PublishType
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanContext

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.queues.message import (
    TYPE_HEADER,
    USER_HEADER,
    MessageProcess,
    MessageSend,
    header_of,
    new_process,
    new_send,
)
from clew.queues.record import REDELIVERY_COUNT, TYPE, USER, type_of

T = TypeVar("T")

TEMPORARY: Final = "(temporary)"
"""Stands for the destinations of replies, whose names are made up for one message each."""

_SYSTEMS: Final = {
    "redis": "redis",
    "nats": "nats",
    "kafka": "kafka",
    "confluent": "kafka",
    "rabbit": "rabbitmq",
    "mqtt": "mqtt",
}
# What subscribers of the several brokers call their source in their log context
_SOURCES: Final = ("channel", "topic", "subject", "queue", "destination")
_OUTCOMES: Final[dict[type[BaseException], str]] = {NackMessage: "returned", RejectMessage: "dead_lettered"}
_MAX_REMEMBERED_TRIES: Final = 1_000


class _EarlierTries:
    """The spans of this process's failed tries, by message: a broker's redelivery does not say who tried before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: OrderedDict[tuple[str, str], SpanContext] = OrderedDict()

    def remember(self, key: tuple[str, str], span: SpanContext) -> None:
        with self._lock:
            self._spans[key] = span
            self._spans.move_to_end(key)
            if len(self._spans) > _MAX_REMEMBERED_TRIES:
                self._spans.popitem(last=False)

    def take(self, key: tuple[str, str]) -> SpanContext | None:
        with self._lock:
            return self._spans.pop(key, None)


_tries: Final = _EarlierTries()


@dataclass(frozen=True, kw_only=True)
class ClewMiddleware:
    """What a broker gets among its middlewares: makes one scope for each message."""

    system: str

    def __call__(self, msg: Any, /, *, context: Any) -> _Scope:
        """Return the scope of a message that is consumed, or of one that is published (``msg`` is ``None``)."""
        return _Scope(msg, context=context, system=self.system)


class _Scope(BaseMiddleware[Any, Any]):
    """One message on its way through a broker.

    FastStream publishes a handler's result after the handler, by the scope of the message that the handler got. So the
    process span ends with the scope, not with the handler, and is the parent of what is published in between.
    """

    def __init__(self, msg: Any, /, *, context: Any, system: str) -> None:
        super().__init__(msg, context=context)
        self._system = system
        self._received_ns = clock.now_ns()
        self._processing: MessageProcess | None = None
        self._message: StreamMessage[Any] | None = None
        self._key = ("", "")

    async def publish_scope(self, call_next: Callable[[Any], Awaitable[Any]], cmd: Any) -> Any:
        if not _unseen(cmd):
            return await call_next(cmd)
        sending = self._sending(cmd)
        if sending is None:
            return await call_next(cmd)
        with sending:
            # A copy: the dictionary may be the app's own, or that of the message that is replied to
            cmd.headers = {**(cmd.headers or {}), **sending.headers()}
            result = await call_next(cmd)
            if isinstance(result, (bytes, str)) and result:
                # A stream's entry id; counts of receivers and the like are numbers
                sending.set(semconv.MESSAGING_MESSAGE_ID, result)
            return result

    def _sending(self, cmd: PublishCommand) -> MessageSend | None:
        try:
            reply = cmd.publish_type is PublishType.REPLY
            attributes: dict[str, Any] = {}
            if len(cmd.batch_bodies) > 1:
                attributes[semconv.MESSAGING_BATCH_MESSAGE_COUNT] = len(cmd.batch_bodies)
            parent = self._processing.context if self._processing is not None else None
            destination = TEMPORARY if reply else str(cmd.destination)
            headers = cmd.headers or {}
            bodies = cmd.batch_bodies
            body = bodies[0] if bodies else None
            if (kind := header_of(headers, TYPE_HEADER) or type_of(body)) is not None:
                attributes[TYPE] = kind
            if (user := header_of(headers, USER_HEADER)) is not None:
                attributes[USER] = user
            sending = new_send(self._system, destination, attributes, parent=parent)
            sending.body = list(bodies) if len(bodies) > 1 else body
        except Exception as error:
            report("instrument faststream", error)
            return None
        return sending

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: StreamMessage[Any]) -> Any:
        handler = self.context.get_local("handler_")
        # A response, or a message that the app fetches with get_one(): nobody processes it in here
        if handler is None or msg.source_type is SourceType.RESPONSE or not _unseen(msg):
            return await call_next(msg)
        redeliveries = await _redeliveries(handler, msg)
        processing = self._begin(handler, msg, redeliveries)
        token = processing.attach() if processing is not None else None
        try:
            return await call_next(msg)
        finally:
            if token is not None:
                otel_context.detach(token)

    def _begin(self, handler: Any, msg: StreamMessage[Any], redeliveries: int) -> MessageProcess | None:
        try:
            destination = _destination(handler)
            message_id = _message_id(msg)
            self._key = (destination, message_id)
            attributes: dict[str, Any] = {semconv.MESSAGING_MESSAGE_ID: message_id, **_group(handler)}
            if isinstance(msg.body, (bytes, bytearray)):
                attributes[semconv.MESSAGING_MESSAGE_BODY_SIZE] = len(msg.body)
            if redeliveries:
                attributes[REDELIVERY_COUNT] = redeliveries
            earlier = _tries.take(self._key)
            processing = new_process(
                self._system,
                destination,
                msg.batch_headers or msg.headers,
                attributes,
                earlier_tries=(earlier,) if earlier is not None else (),
                correlation_id=msg.correlation_id,
            )
            processing.body = msg.body
            processing.begin()
        except Exception as error:
            report("instrument faststream", error)
            return None
        self._processing, self._message = processing, msg
        return processing

    async def after_processed(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> bool | None:
        try:
            await self._finish(exc_val)
        except Exception as error:
            report("instrument faststream", error)
        return False

    async def _finish(self, error: BaseException | None) -> None:
        processing, self._processing = self._processing, None
        if processing is None:
            self._reject_unparsed(error)
            return
        if isinstance(error, IgnoredException):
            # How a handler says what becomes of the message: no failure
            processing.set("clew.queue.outcome", type(error).__name__)
            processing.outcome = _OUTCOMES.get(type(error))
        if error is not None and (not isinstance(error, IgnoredException) or isinstance(error, NackMessage)):
            _tries.remember(self._key, trace.get_current_span(processing.context).get_span_context())
        if isinstance(error, Exception) and await _is_unreadable(self._message, error):
            processing.reject(error)
        else:
            processing.finish(None if isinstance(error, IgnoredException) else error)

    def _reject_unparsed(self, error: BaseException | None) -> None:
        """Show a message that FastStream could not even parse: no handler has seen it."""
        handler = self.context.get_local("handler_")
        if not isinstance(error, Exception) or isinstance(error, IgnoredException) or self.msg is None:
            return
        if handler is None or self._message is not None:
            return
        attributes = {"clew.queue.outcome": "rejected", **_group(handler)}
        processing = new_process(self._system, _destination(handler), {}, attributes)
        processing.begin(start_time_ns=self._received_ns)
        processing.reject(error)


def _unseen(carrier: Any) -> bool:
    """Tell whether this is the first scope to see a message: a broker within an instrumented broker has two."""
    if getattr(carrier, "_clew_seen", False):
        return False
    try:
        carrier._clew_seen = True
    except AttributeError:
        # An object with slots can't be marked; one scope is the rule
        return True
    return True


async def _is_unreadable(msg: StreamMessage[Any] | None, error: Exception) -> bool:
    """Tell whether a handler never ran because its message could not be decoded, or is not what it declares to take."""
    if _is_of_arguments(error):
        return True
    try:
        if msg is not None:
            await msg.decode()
    except Exception:
        return True
    return False


def _is_of_arguments(error: Exception) -> bool:
    """Tell whether an error comes from fitting a message to a handler's arguments, not from within the handler."""
    module, function = "", ""
    traceback = error.__traceback__
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if not name.startswith(("pydantic", "msgspec")):
            module, function = name, traceback.tb_frame.f_code.co_name
        traceback = traceback.tb_next
    # What a handler returns is checked there, too
    return module.startswith("fast_depends") and function != "response"


async def _redeliveries(handler: Any, msg: StreamMessage[Any]) -> int:
    """Return how often the broker delivered a message before, as far as it tells."""
    try:
        raw = msg.raw_message
        if isinstance(raw, Mapping):
            return await _redis_redeliveries(handler, msg, raw)
        metadata = getattr(raw, "metadata", None)  # NATS JetStream
        if (delivered := getattr(metadata, "num_delivered", None)) is not None:
            return max(0, int(delivered) - 1)
        return int(getattr(raw, "redelivered", None) is True)  # RabbitMQ only has a flag
    except Exception:
        # Core NATS messages raise here, and a broker that can't answer must not stop the message
        return 0


async def _redis_redeliveries(handler: Any, msg: StreamMessage[Any], raw: Mapping[str, Any]) -> int:
    if "delivery_counts" in raw:
        return max((int(count) for count in raw["delivery_counts"]), default=0)
    stream = getattr(handler, "stream_sub", None)
    if stream is None or stream.group is None or stream.no_ack:
        return 0
    # Entries come from the list of unacknowledged ones: asking for their count is worth the round trip
    pending = stream.min_idle_time is not None or getattr(handler, "read_id", ">") != ">"
    count = getattr(msg, "get_delivery_count", None)
    if not pending or count is None:
        return 0
    return max(0, int(await count()) - 1)


def _destination(handler: Any) -> str:
    """Return where a subscriber listens, as it was declared: a pattern stays a pattern."""
    context = handler.get_log_context(None)
    for source in _SOURCES:
        name = context.get(source)
        if name:
            return str(getattr(name, "name", name))
    return "unknown"


def _group(handler: Any) -> dict[str, str]:
    stream = getattr(handler, "stream_sub", None)
    group = getattr(stream, "group", None) or getattr(handler, "group_id", None)
    return {semconv.MESSAGING_CONSUMER_GROUP_NAME: str(group)} if group else {}


def _message_id(msg: StreamMessage[Any]) -> str:
    ids = msg.raw_message.get("message_ids") if isinstance(msg.raw_message, Mapping) else None
    if ids:
        return ids[0].decode() if isinstance(ids[0], bytes) else str(ids[0])
    return str(msg.message_id)


def _system(broker: object) -> str:
    for kind in type(broker).__mro__:
        parts = kind.__module__.split(".")
        if parts[0] == "faststream" and len(parts) > 1 and parts[1] in _SYSTEMS:
            return _SYSTEMS[parts[1]]
    return "unknown"


def instrument(target: T) -> T:
    """Instrument a broker in place, or the broker of a FastStream app or of a FastAPI stream router. Twice is harmless.

    Args:
        target: a broker, before or after it has subscribers, started or not.

    Raises:
        TypeError: it has no broker.

    Example:
        >>> from faststream.redis import RedisBroker
        >>> broker = instrument(RedisBroker())
    """
    broker: Any = target if isinstance(target, BrokerUsecase) else getattr(target, "broker", None)
    if not isinstance(broker, BrokerUsecase):
        raise TypeError(f"a {type(target).__qualname__} is no FastStream broker and has none")
    if not any(isinstance(known, ClewMiddleware) for known in broker.middlewares):
        # The outermost, so that the other middlewares work within the span
        broker.insert_middleware(ClewMiddleware(system=_system(broker)))
    return target


def instrument_all() -> None:
    """Instrument every broker that the app makes from now on. Twice is harmless."""
    if isinstance(vars(BrokerUsecase)["__init__"], wrapt.FunctionWrapper):
        return

    def made(
        wrapped: Callable[..., None], broker: BrokerUsecase[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        wrapped(*args, **kwargs)
        try:
            instrument(broker)
        except Exception as error:
            report("instrument faststream", error)

    wrapt.wrap_function_wrapper(BrokerUsecase, "__init__", made)
