"""What brokers tell of a delivery, and what becomes of a message there: each in its own way."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

from faststream.exceptions import AckMessage, HandlerException, NackMessage, RejectMessage
from faststream.message import AckStatus, StreamMessage
from faststream.middlewares import AckPolicy
from opentelemetry.trace import SpanContext

from clew.catalog import semconv

Fate = Literal["processed", "failed", "rejected", "returned", "dead_lettered"]

# What subscribers of the several brokers call their source in their log context
_SOURCES: Final = ("channel", "topic", "subject", "queue", "destination")
_MAX_REMEMBERED: Final = 1_000
_ASKED: Final = {AckMessage: AckStatus.ACKED, NackMessage: AckStatus.NACKED, RejectMessage: AckStatus.REJECTED}
_ASKED_ON_ERROR: Final = {
    AckPolicy.ACK: AckStatus.ACKED,
    AckPolicy.NACK_ON_ERROR: AckStatus.NACKED,
    AckPolicy.REJECT_ON_ERROR: AckStatus.REJECTED,
}


@dataclass(frozen=True, kw_only=True)
class EarlierTry:
    """A try of this process: its span, and how often the message had been delivered before it."""

    span: SpanContext
    redeliveries: int


class EarlierTries:
    """This process's tries of messages that are unsettled: a broker's redelivery does not say who tried before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: OrderedDict[Any, EarlierTry] = OrderedDict()

    def find(self, keys: Iterable[Any]) -> list[EarlierTry]:
        """Return the last try of each of the messages, as far as there was one."""
        with self._lock:
            return [self._tries[key] for key in keys if key in self._tries]

    def remember(self, keys: Iterable[Any], this: EarlierTry) -> None:
        """Keep a try that begins."""
        with self._lock:
            for key in keys:
                self._tries[key] = this
                self._tries.move_to_end(key)
            while len(self._tries) > _MAX_REMEMBERED:
                self._tries.popitem(last=False)

    def forget(self, keys: Iterable[Any], span: SpanContext) -> None:
        """Drop a try after which there is no other. One that began since is kept: this one was too slow."""
        with self._lock:
            for key in keys:
                if key in self._tries and self._tries[key].span.span_id == span.span_id:
                    del self._tries[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What a subscriber says of itself, which stays as it is once messages come.

    Attributes:
        names: of the topics or subjects that it listens to, where it has several.
        destination: where it listens, as it was declared.
        group: whom it shares messages with; ``""`` where there is none.
        keeps: a stream of Redis keeps a message for it until it is acknowledged.
        claims: of such a stream it only gets messages that were delivered before.
    """

    names: tuple[str, ...]
    destination: str
    group: str
    keeps: bool
    claims: bool


_subscriptions: Final[WeakKeyDictionary[Any, Subscription]] = WeakKeyDictionary()


def subscription_of(handler: Any) -> Subscription:
    """Return what a subscriber says of itself, asked for once: FastStream copies all of a stream's declaration for each answer."""
    found = _subscriptions.get(handler)
    if found is None:
        found = _subscriptions[handler] = _asked_of(handler)
    return found


def _asked_of(handler: Any) -> Subscription:
    names = (*_names(handler, "topic_names"), *_names(handler, "filter_subjects"))
    stream = getattr(handler, "stream_sub", None)
    group = (
        getattr(stream, "group", None)
        or getattr(handler, "group_id", None)
        # NATS: a durable consumer of JetStream, or else a queue group; RabbitMQ's queue is no text
        or getattr(getattr(handler, "config", None), "durable_name", None)
        or getattr(handler, "queue", None)
    )
    context = handler.get_log_context(None)
    declared = next((name for source in _SOURCES if (name := context.get(source))), None)
    return Subscription(
        names=names,
        destination=str(getattr(declared, "name", declared)) if declared else ", ".join(names) or "unknown",
        group=group if group and isinstance(group, str) else "",
        keeps=stream is not None and bool(stream.group) and not stream.no_ack,
        claims=stream is not None and stream.min_idle_time is not None,
    )


def destination_of(handler: Any, msg: StreamMessage[Any] | None = None) -> str:
    """Return where a subscriber listens, as it was declared: a pattern stays a pattern.

    Of a subscriber with several topics or subjects, the one that the message came by.
    """
    known = subscription_of(handler)
    if msg is not None and len(known.names) > 1:
        raw = _first(msg.raw_message)
        for source in ("topic", "subject"):
            if (name := _called(raw, source)) in known.names:
                return str(name)
    return known.destination


def group_of(handler: Any) -> dict[str, str]:
    """Return the attribute with the group that a subscriber shares messages with, where there is one."""
    group = subscription_of(handler).group
    return {semconv.MESSAGING_CONSUMER_GROUP_NAME: group} if group else {}


def message_id_of(msg: StreamMessage[Any]) -> str:
    """Return what the broker calls a message, or else what its sender does; of a batch, the first one."""
    raw = _first(msg.raw_message)
    if isinstance(raw, Mapping):
        ids = raw.get("message_ids")
        return _text(ids[0]) if ids else str(msg.message_id)
    if (metadata := _metadata(raw)) is not None:
        return f"{metadata.stream}:{metadata.sequence.stream}"
    if (position := _position(raw)) is not None:
        return position
    if hasattr(raw, "redelivered"):
        # FastStream makes ids up where RabbitMQ's messages have none
        return str(raw.message_id or msg.correlation_id)
    return str(msg.message_id)


def sent_id(result: Any) -> str | None:
    """Return what the broker calls a message that it took, where it says so: the same as :func:`message_id_of`."""
    if isinstance(result, (bytes, str)):
        # A stream's entry id; counts of receivers and the like are numbers
        return _text(result) or None
    if isinstance(seq := getattr(result, "seq", None), int):
        return f"{result.stream}:{seq}"
    return _position(result)


def keys_of(destination: str, handler: Any, msg: StreamMessage[Any]) -> list[Any]:
    """Return by what a message is known again when it is delivered again; of a batch, each of its messages."""
    if not _keeps(handler, msg):
        return []
    group = subscription_of(handler).group
    raw = msg.raw_message
    if isinstance(raw, Mapping):
        return [(destination, group, _text(each)) for each in raw.get("message_ids") or ()]
    keys: list[Any] = []
    for each in raw if isinstance(raw, (list, tuple)) else (raw,):
        if (metadata := _metadata(each)) is not None:
            keys.append((metadata.stream, metadata.consumer, metadata.sequence.stream))
        elif (position := _position(each)) is not None:
            keys.append((_called(each, "topic"), group, position))
        elif hasattr(each, "redelivered") and "traceparent" in msg.headers:
            # No id is sure to be there, but each message has a send span of its own
            keys.append((destination, group, msg.headers["traceparent"]))
    return keys


async def redeliveries_of(handler: Any, msg: StreamMessage[Any]) -> int:
    """Return how often the broker delivered a message before, as far as it tells; of a batch, the highest."""
    try:
        raw = msg.raw_message
        if isinstance(raw, Mapping):
            return await _redis_redeliveries(handler, msg, raw)
        counts = [0]
        for each in raw if isinstance(raw, (list, tuple)) else (raw,):
            if (metadata := _metadata(each)) is not None:
                counts.append(int(metadata.num_delivered) - 1)
            elif isinstance(counted := msg.headers.get("x-delivery-count"), int):
                counts.append(counted)  # RabbitMQ's quorum queues
            else:
                counts.append(int(getattr(each, "redelivered", None) is True))  # Its other queues only have a flag
        return max(counts)
    except Exception:
        # A broker that can't answer must not stop the message
        return 0


def fate_of(handler: Any, msg: StreamMessage[Any], error: BaseException | None) -> Fate:
    """Return what becomes of a message that was processed: by what the broker does when it is told how that ended.

    It is dead-lettered only where the broker drops it, or moves it to a queue of dead letters: JetStream ends its
    delivery, RabbitMQ takes it off its queue. Kafka and MQTT go on to the next message, a stream of Redis leaves it
    with the group's unacknowledged ones, and lists, channels and core NATS have nothing to be told.

    Source: https://faststream.ag2.ai/latest/getting-started/acknowledgement/
    """
    refused = isinstance(error, (NackMessage, RejectMessage))
    failed = error is not None and not isinstance(error, HandlerException)
    over: Fate = "rejected" if refused else "failed" if failed else "processed"
    kept: Fate = "failed" if failed else "returned"
    asked = _asked(handler, msg, error)
    if not _keeps(handler, msg) or asked is AckStatus.ACKED:
        return over
    if asked is None:
        # Nobody has told the broker: it delivers the message again
        return kept if refused or failed else over
    raw = _first(msg.raw_message)
    if hasattr(raw, "redelivered"):
        options = error.extra_options if isinstance(error, (NackMessage, RejectMessage)) else {}
        requeued = options.get("requeue", asked is AckStatus.NACKED)
        return kept if requeued and not _is_last_of_quorum(handler, msg) else "dead_lettered"
    if asked is AckStatus.NACKED:
        return "dead_lettered" if _is_last_delivery(handler, raw) else kept
    if _metadata(raw) is not None:
        return "dead_lettered"
    return kept if isinstance(raw, Mapping) else over


def is_settled(handler: Any, msg: StreamMessage[Any], error: BaseException | None, fate: Fate) -> bool:
    """Tell whether the broker will not deliver a message again, whose fate is known."""
    if fate == "dead_lettered":
        return True
    asked = _asked(handler, msg, error)
    return asked is AckStatus.ACKED or (asked is AckStatus.REJECTED and _position(_first(msg.raw_message)) is not None)


def _asked(handler: Any, msg: StreamMessage[Any], error: BaseException | None) -> AckStatus | None:
    """Return what the broker was told, or will be: by the handler, by what it raised, or by the subscriber's policy."""
    if msg.committed is not None:
        return msg.committed
    policy = handler.ack_policy
    if policy is AckPolicy.MANUAL:
        # How subscribers of JetStream are made that acknowledge first
        first = getattr(handler, "extra_options", {}).get("manual_ack") is False
        return AckStatus.ACKED if first else None
    if policy is AckPolicy.ACK_FIRST or error is None:
        return AckStatus.ACKED
    if isinstance(error, HandlerException):
        return _ASKED.get(type(error))
    return _ASKED_ON_ERROR.get(policy) if isinstance(error, Exception) else None


def _keeps(handler: Any, msg: StreamMessage[Any]) -> bool:
    """Tell whether the broker keeps a message until it is acknowledged."""
    raw = _first(msg.raw_message)
    if isinstance(raw, Mapping):
        return subscription_of(handler).keeps
    if hasattr(raw, "qos"):
        return int(raw.qos) > 0
    return handler.ack_policy is not AckPolicy.ACK_FIRST and (
        _metadata(raw) is not None or _position(raw) is not None or hasattr(raw, "redelivered")
    )


def _is_last_delivery(handler: Any, raw: Any) -> bool:
    metadata = _metadata(raw)
    allowed = getattr(getattr(handler, "config", None), "max_deliver", None)
    return metadata is not None and isinstance(allowed, int) and 0 < allowed <= metadata.num_delivered


def _is_last_of_quorum(handler: Any, msg: StreamMessage[Any]) -> bool:
    """Tell whether a quorum queue of RabbitMQ takes a message back no more, by the limit that the app has declared for it.

    Source: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
    """
    arguments = getattr(getattr(handler, "queue", None), "arguments", None) or {}
    allowed, before = arguments.get("x-delivery-limit"), msg.headers.get("x-delivery-count", 0)
    return isinstance(allowed, int) and isinstance(before, int) and 0 <= allowed <= before


def _metadata(raw: Any) -> Any | None:
    """Return what JetStream tells of a delivery; messages of core NATS raise when they are asked."""
    try:
        metadata = raw.metadata
    except Exception:
        return None
    return metadata if hasattr(metadata, "num_delivered") else None


def _position(record: Any) -> str | None:
    """Return where a record is in its topic of Kafka."""
    partition, offset = _called(record, "partition"), _called(record, "offset")
    return f"{partition}:{offset}" if isinstance(partition, int) and isinstance(offset, int) else None


def _called(record: Any, name: str) -> Any:
    # What are fields in one client of Kafka are methods in the other
    value = getattr(record, name, None)
    return value() if callable(value) else value


async def _redis_redeliveries(handler: Any, msg: StreamMessage[Any], raw: Mapping[str, Any]) -> int:
    if "delivery_counts" in raw:
        return max((int(count) for count in raw["delivery_counts"]), default=0)
    known = subscription_of(handler)
    # Entries come from the list of unacknowledged ones: asking for their count is worth the round trip
    pending = known.claims or getattr(handler, "read_id", ">") != ">"
    count = getattr(msg, "get_delivery_count", None)
    if not known.keeps or not pending or count is None:
        return 0
    return max(0, int(await count()) - 1)


def _names(handler: Any, attribute: str) -> list[str]:
    names = getattr(handler, attribute, ())
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def _first(raw: Any) -> Any:
    return (raw[0] if raw else None) if isinstance(raw, (list, tuple)) else raw


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
