"""A message on its way: sending it and processing it, whichever library carries it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.context import Context

from clew import clock
from clew.catalog import semconv
from clew.catalog.kind import Metric
from clew.catalog.metrics import MESSAGES_CONSUMED, MESSAGES_SENT, QUEUE_REJECTED, QUEUE_WAIT
from clew.catalog.operations import MESSAGE_PROCESS, MESSAGE_SEND
from clew.engine.context import Carried, extract, is_valid_correlation_id, with_correlation_id
from clew.engine.metrics import registry
from clew.engine.operation import Linkable, Operation

SENT_AT_HEADER: Final = "clew-sent-at"
"""The header of a message in which its producer writes when it sent it, in seconds since the epoch."""

REDELIVERY_COUNT: Final = "clew.queue.redelivery_count"
"""The attribute that says how often a message was delivered before."""


class MessageSend(Operation):
    """Sending one message, or a batch of them. Its carrier goes into the headers."""

    __slots__ = ()

    def headers(self) -> dict[str, str]:
        """Return what the message must carry: the thread, and when it was sent."""
        return {**self.carrier, SENT_AT_HEADER: f"{clock.now_ns() / 1e9:.6f}"}

    def finish(self, error: BaseException | None = None) -> None:
        """End the send and count the messages."""
        super().finish(error)
        _count(MESSAGES_SENT, self, _messages(self))


class MessageProcess(Operation):
    """Processing one message, or a batch of them. Made by :func:`message_process`."""

    __slots__ = ("_waits_s",)
    _waits_s: list[float]

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the processing and record how long the messages waited."""
        super().begin(start_time_ns=start_time_ns)
        waits_s = getattr(self, "_waits_s", [])
        if self.context is None or not waits_s:
            return
        labels = {key: self.attributes[key] for key in QUEUE_WAIT.labels}
        # Within the processing, so that a measurement can lead to its trace
        with Carried(self.context):
            for waited_s in waits_s:
                registry.declared(QUEUE_WAIT).record(waited_s, **labels)

    def finish(self, error: BaseException | None = None) -> None:
        """End the processing and count the messages."""
        super().finish(error)
        count_consumed(self)

    def reject(self, error: BaseException) -> None:
        """Count the message as one that could not be read, and end its processing with that error."""
        self.finish(error)
        _count(QUEUE_REJECTED, self, 1)


def message_send(
    system: str,
    destination: str,
    attributes: Mapping[str, Any] | None = None,
    *,
    parent: Context | None = None,
) -> MessageSend:
    """Return the operation of sending a message.

    Args:
        system: ``messaging.system``, such as ``redis``.
        destination: the queue, stream, topic or subject.
        attributes: more attributes of the span; ``messaging.batch.message_count`` where it sends more than one message.
        parent: the context of what sends it, where that is not the current one.

    Example:
        >>> with message_send("redis", "documents") as sending:
        ...     headers = sending.headers()
    """
    return MessageSend(MESSAGE_SEND, _attributes(system, destination, "send", attributes), parent=parent)


def message_process(
    system: str,
    destination: str,
    headers: Mapping[Any, Any] | Iterable[Mapping[Any, Any]],
    attributes: Mapping[str, Any] | None = None,
    *,
    earlier_tries: Iterable[Linkable] = (),
    correlation_id: str | None = None,
) -> MessageProcess:
    """Return the operation of processing a message, or a batch of messages.

    One message continues the trace of its sender, and links to the send span; a batch only has links.

    Args:
        system: ``messaging.system``.
        destination: the queue, stream, topic or subject.
        headers: those of the message; a list of them is a batch.
        attributes: more attributes of the span.
        earlier_tries: the spans that tried to process it before, for a link to each.
        correlation_id: what the library calls its correlation id, for messages of producers without clew.

    Example:
        >>> with message_process("redis", "documents", {"clew-sent-at": "1700000000.0"}) as processing:
        ...     processing.set("topic", "news")
    """
    given = _attributes(system, destination, "process", attributes)
    if isinstance(headers, Mapping):
        carried = _correlated(extract(headers), correlation_id)
        one = MessageProcess(MESSAGE_PROCESS, given, parent=carried, links=(carried, *earlier_tries))
        _keep_waits(one, (headers,))
        return one
    batch = list(headers)
    given[semconv.MESSAGING_BATCH_MESSAGE_COUNT] = len(batch)
    links = [extract(item) for item in batch]
    correlated = {carried.correlation_id for carried in links}
    # A batch whose messages belong together keeps their correlation id
    only = correlated.pop() if len(correlated) == 1 else None
    parent = _correlated(Carried(Context()), only)
    # Messages that were sent together share their send span: one link says it
    distinct = {carried.span_context.span_id: carried for carried in links}
    many = MessageProcess(MESSAGE_PROCESS, given, parent=parent, links=(*distinct.values(), *earlier_tries), root=True)
    _keep_waits(many, batch)
    return many


def _correlated(carried: Carried, correlation_id: str | None) -> Carried:
    if carried.correlation_id is None and correlation_id is not None and is_valid_correlation_id(correlation_id):
        return Carried(with_correlation_id(correlation_id, carried.context))
    return carried


def _attributes(system: str, destination: str, operation: str, more: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        semconv.MESSAGING_SYSTEM: system,
        semconv.MESSAGING_DESTINATION_NAME: destination,
        semconv.MESSAGING_OPERATION_NAME: operation,
        semconv.MESSAGING_OPERATION_TYPE: operation,
        **(more or {}),
    }


def _keep_waits(processing: MessageProcess, messages: Iterable[Mapping[Any, Any]]) -> None:
    processing._waits_s = [waiting_s for headers in messages if (waiting_s := waited_s(headers)) is not None]
    if processing._waits_s:
        # Of a batch, the message that waited longest
        processing.attributes["clew.queue.wait_s"] = round(max(processing._waits_s), 6)


def waited_s(headers: Mapping[Any, Any]) -> float | None:
    """Return how long a message waited since it was sent, in seconds; ``None`` where its headers do not tell.

    Args:
        headers: those of the message.

    Example:
        >>> waited_s({"clew-sent-at": "1700000000.0"}) > 1e7, waited_s({"clew-sent-at": "soon"})
        (True, None)
    """
    value = headers.get(SENT_AT_HEADER) or headers.get(SENT_AT_HEADER.encode())
    if value is None:
        return None
    try:
        waiting_s = max(0.0, clock.now_ns() / 1e9 - float(value))
    except (TypeError, ValueError, OverflowError):
        # What a stranger wrote there is no reason not to process the message
        return None
    return waiting_s if math.isfinite(waiting_s) else None


def count_consumed(operation: Operation) -> None:
    """Count the messages that an operation works on: its attributes are those of messaging."""
    _count(MESSAGES_CONSUMED, operation, _messages(operation))


def _messages(operation: Operation) -> int:
    return int(operation.attributes.get(semconv.MESSAGING_BATCH_MESSAGE_COUNT, 1))


def _count(metric: Metric, operation: Operation, messages: int) -> None:
    labels = {key: operation.attributes[key] for key in metric.labels if key in operation.attributes}
    registry.declared(metric).add(messages, **labels)
