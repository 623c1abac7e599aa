"""A message on its way: sending it and processing it, whichever library carries it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.context import Context

from clew import clock
from clew.catalog import semconv
from clew.catalog.kind import OperationKind
from clew.catalog.metrics import (
    MESSAGES_CONSUMED,
    MESSAGES_SENT,
    QUEUE_DEAD_LETTERS,
    QUEUE_REDELIVERIES,
    QUEUE_REJECTED,
    QUEUE_WAIT,
)
from clew.catalog.operations import MESSAGE_PROCESS, MESSAGE_SEND
from clew.engine.context import Carried, extract, is_valid_correlation_id, with_correlation_id
from clew.engine.operation import Linkable, Operation
from clew.engine.plan import Handles
from clew.queues.record import ABSENT, REDELIVERY_COUNT, SOURCE, TYPE, USER, header_text, keep, service_name

SENT_AT_HEADER: Final = "clew-sent-at"
"""The header of a message in which its producer writes when it sent it, in seconds since the epoch."""
SOURCE_HEADER: Final = "clew-source"
"""The header with the name of the service that sent it."""
TYPE_HEADER: Final = "clew-type"
"""The header with its type. An app may write it itself; by default it is what :func:`~clew.queues.record.type_of` says."""
USER_HEADER: Final = "clew-user"
"""The header with the user for whom it was sent. An app writes it itself."""

_MAX_HEADER_LENGTH: Final = 255
CONSUMED: Final = Handles(MESSAGES_CONSUMED)
"""Counts the messages that were delivered, by the labels of the operation that has them first."""
_SENT: Final = Handles(MESSAGES_SENT)
_REDELIVERED: Final = Handles(QUEUE_REDELIVERIES)
_GIVEN_UP: Final = Handles(QUEUE_DEAD_LETTERS)
_REJECTED: Final = Handles(QUEUE_REJECTED)
_WAITS: Final = Handles(QUEUE_WAIT)


class MessageSend(Operation):
    """Sending one message, or a batch of them. Its carrier goes into the headers.

    Attributes:
        body: what is sent, for its record.
    """

    __slots__ = ("body",)

    def __init__(self, kind: OperationKind, attributes: dict[str, Any], **given: Any) -> None:
        super().__init__(kind, attributes, **given)
        self.body: Any = ABSENT

    def headers(self) -> dict[str, str]:
        """Return what the message must carry: the thread, when it was sent, by whom, and what it is."""
        headers = {
            **self.carrier,
            SENT_AT_HEADER: f"{clock.now_ns() / 1e9:.6f}",
            SOURCE_HEADER: header_text(self.attributes.get(SOURCE)),
        }
        for header, attribute in ((TYPE_HEADER, TYPE), (USER_HEADER, USER)):
            if (value := self.attributes.get(attribute)) is not None:
                headers[header] = header_text(value)
        return headers

    def finish(self, error: BaseException | None = None) -> None:
        """End the send, count the messages and record them."""
        super().finish(error)
        messages = _messages(self)
        _SENT.of(self.attributes).add(messages)
        # What was cancelled may have reached the broker, or not
        status = "sent" if self.error_type is None else "cancelled" if self._interrupted else "failed"
        keep(
            self,
            body=self.body,
            error=error,
            direction="sent",
            status=status,
            messages=messages,
            duration_s=_duration_s(self),
        )


class MessageProcess(Operation):
    """Processing one message, or a batch of them. Made by :func:`new_process`.

    Attributes:
        body: what was received, for its record.
        outcome: the status of its record where that is neither ``processed`` nor ``failed``.
        is_received: whether a receive operation has counted it: each delivery counts once.
    """

    __slots__ = ("_told", "body", "is_received", "outcome")

    def __init__(self, kind: OperationKind, attributes: dict[str, Any], **given: Any) -> None:
        super().__init__(kind, attributes, **given)
        self.body: Any = ABSENT
        self.outcome: str | None = None
        self.is_received = False
        self._told: tuple[list[float], float | None] = ([], None)

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the processing and record how long the messages waited."""
        super().begin(start_time_ns=start_time_ns)
        waits_s = self._told[0]
        if self.context is None or not waits_s:
            return
        waiting, within = _WAITS.of(self.attributes), self._span.get_span_context()
        for waited_s in waits_s:
            waiting.record_in(waited_s, within)

    def finish(self, error: BaseException | None = None) -> None:
        """End the processing, count the messages and record them."""
        super().finish(error)
        if self.outcome is None:
            # What was cancelled has not finished: the broker has the message still, or again
            self.outcome = "processed" if self.error_type is None else "returned" if self._interrupted else "failed"
        count_consumed(self, given_up=self.outcome == "dead_lettered", is_received=self.is_received)
        waits_s, sent_at = self._told
        keep(
            self,
            body=self.body,
            error=error or self._error,
            direction="received",
            status=self.outcome,
            messages=_messages(self),
            duration_s=_duration_s(self),
            wait_s=sum(waits_s) / len(waits_s) if waits_s else None,
            sent_at=sent_at,
        )

    def reject(self, error: BaseException) -> None:
        """Count the message as one that could not be read, and end its processing with that error."""
        self.outcome = "rejected"
        self.finish(error)
        _REJECTED.of(self.attributes).add(1)


def new_send(
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
        >>> with new_send("redis", "documents") as sending:
        ...     headers = sending.headers()
    """
    given = attributes_of(system, destination, "send", attributes)
    given[SOURCE] = service_name()
    return MessageSend(MESSAGE_SEND, given, parent=parent)


def new_process(
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
        >>> with new_process("redis", "documents", {"clew-sent-at": "1700000000.0"}) as processing:
        ...     processing.set("topic", "news")
    """
    given = attributes_of(system, destination, "process", attributes)
    if isinstance(headers, Mapping):
        carried = _correlated(extract(headers), correlation_id)
        tell_sender(given, headers)
        one = MessageProcess(MESSAGE_PROCESS, given, parent=carried, links=(carried, *earlier_tries))
        keep_told(one, (headers,))
        return one
    batch = list(headers)
    given[semconv.MESSAGING_BATCH_MESSAGE_COUNT] = len(batch)
    if batch:
        # What is sent together is mostly of one kind
        tell_sender(given, batch[0])
    links = [extract(item) for item in batch]
    correlated = {carried.correlation_id for carried in links}
    # A batch whose messages belong together keeps their correlation id
    only = correlated.pop() if len(correlated) == 1 else None
    parent = _correlated(Carried(Context()), only)
    # Messages that were sent together share their send span: one link says it
    distinct = {carried.span_context.span_id: carried for carried in links}
    many = MessageProcess(MESSAGE_PROCESS, given, parent=parent, links=(*distinct.values(), *earlier_tries), root=True)
    keep_told(many, batch)
    return many


def _correlated(carried: Carried, correlation_id: str | None) -> Carried:
    if carried.correlation_id is None and correlation_id is not None and is_valid_correlation_id(correlation_id):
        return Carried(with_correlation_id(correlation_id, carried.context))
    return carried


def attributes_of(
    system: str, destination: str, operation: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the attributes that every operation on messages has."""
    return {
        semconv.MESSAGING_SYSTEM: system,
        semconv.MESSAGING_DESTINATION_NAME: destination,
        semconv.MESSAGING_OPERATION_NAME: operation,
        semconv.MESSAGING_OPERATION_TYPE: operation,
        **(more or {}),
    }


def tell_sender(attributes: dict[str, Any], headers: Mapping[Any, Any]) -> None:
    """Add to the attributes of a try what the headers say of the sender, the type and the user."""
    for header, attribute in ((SOURCE_HEADER, SOURCE), (TYPE_HEADER, TYPE), (USER_HEADER, USER)):
        if attribute not in attributes and (value := header_of(headers, header)) is not None:
            attributes[attribute] = value


def header_of(headers: Mapping[Any, Any], name: str) -> str | None:
    """Return a header that clew writes, as text; ``None`` where there is none.

    Args:
        headers: of a message; names and values may be bytes.
        name: in small letters.

    Example:
        >>> header_of({b"clew-type": b"document"}, "clew-type"), header_of({}, "clew-type")
        ('document', None)
    """
    value = headers.get(name) or headers.get(name.encode())
    if not value or not isinstance(value, (str, bytes)):
        return None
    text = value[:_MAX_HEADER_LENGTH]
    return text.decode("latin-1") if isinstance(text, bytes) else text


def keep_told(processing: MessageProcess, messages: Iterable[Mapping[Any, Any]]) -> None:
    """Keep what the headers say of how long messages waited."""
    waits_s = [waiting_s for headers in messages if (waiting_s := waited_s(headers)) is not None]
    if waits_s:
        # Of a batch, the message that waited longest
        processing.attributes["clew.queue.wait_s"] = round(max(waits_s), 6)
        processing._told = (waits_s, clock.now_ns() / 1e9 - max(waits_s))


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


def count_consumed(operation: Operation, *, given_up: bool = False, is_received: bool = False) -> None:
    """Count the messages that an operation works on.

    Args:
        operation: its attributes are those of messaging.
        given_up: whether they were given up.
        is_received: whether a receive operation has counted their delivery.

    Source: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/#metric-messagingclientconsumedmessages
    """
    messages = _messages(operation)
    if not is_received:
        CONSUMED.of(operation.attributes).add(messages)
    if operation.attributes.get(REDELIVERY_COUNT):
        _REDELIVERED.of(operation.attributes).add(messages)
    if given_up:
        _GIVEN_UP.of(operation.attributes).add(messages)


def _duration_s(operation: Operation) -> float:
    return max(0.0, (clock.monotonic_ns() - operation._started_ns) / 1e9)


def _messages(operation: Operation) -> int:
    return int(operation.attributes.get(semconv.MESSAGING_BATCH_MESSAGE_COUNT, 1))
