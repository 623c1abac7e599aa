"""Queues that are made by hand, over lists and streams or anything that carries bytes: two lines on each side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from clew import clock
from clew.catalog import semconv
from clew.catalog.kind import OperationKind
from clew.catalog.operations import MESSAGE_PROCESS, MESSAGE_RECEIVE, MESSAGE_SEND
from clew.diagnostics import report
from clew.engine.context import extract
from clew.history.ids import new_id
from clew.queues.envelope import (
    ATTEMPT_HEADER,
    EARLIER_TRY_HEADER,
    MAX_BYTES,
    MAX_HEADERS,
    MESSAGE_ID_HEADER,
    MessageError,
    Opened,
    opened,
    written,
)
from clew.queues.message import (
    SENT_AT_HEADER,
    MessageProcess,
    MessageSend,
    attributes_of,
    keep_told,
    new_process,
    tell_sender,
)
from clew.queues.receive import MessageReceive
from clew.queues.record import (
    ABSENT,
    ATTEMPT,
    ENVELOPE,
    REDELIVERY_COUNT,
    SOURCE,
    TYPE,
    USER,
    header_text,
    service_name,
    type_of,
)

SYSTEM: Final = "redis"
_MAX_ID_LENGTH: Final = 255
# What a try adds
_OWN_HEADERS: Final = 3


class Envelope(MessageSend):
    """A message that is being sent: :meth:`encode` gives what goes over the wire."""

    __slots__ = ("_encoded",)

    def __init__(self, kind: OperationKind, attributes: dict[str, Any], **given: Any) -> None:
        super().__init__(kind, attributes, **given)
        self._encoded: bytes | None = None

    @property
    def id(self) -> str:
        """The message's id."""
        return str(self.attributes.get(semconv.MESSAGING_MESSAGE_ID, ""))

    def encode(self) -> bytes:
        """Return the message as it goes over the wire: JSON in UTF-8. Within the ``with`` block, so that it carries the thread.

        Raises:
            MessageError: the body can't be put into JSON.
        """
        if self._encoded is None:
            headers = self.headers()
            headers[MESSAGE_ID_HEADER] = header_text(self.id)
            headers[ATTEMPT_HEADER] = str(self.attributes.get(ATTEMPT, 1))
            self._encoded = written(None if self.body is ABSENT else self.body, headers)
            self.set(semconv.MESSAGING_MESSAGE_BODY_SIZE, len(self._encoded))
        return self._encoded

    def __bytes__(self) -> bytes:
        """Return the same as :meth:`encode`."""
        return self.encode()

    def __str__(self) -> str:
        """Return the same as text."""
        return self.encode().decode()


class Receive(MessageReceive):
    """A poll: :meth:`got` takes what it brought.

    Attributes:
        messages: what came, in its order.
    """

    __slots__ = ("_opened", "messages")

    def __init__(self, kind: OperationKind, attributes: dict[str, Any], **given: Any) -> None:
        super().__init__(kind, attributes, **given)
        self.messages: list[bytes | str] = []
        self._opened: dict[int, tuple[bytes | str, Opened]] = {}

    def got(self, raw: bytes | str | Iterable[bytes | str] | None, /) -> None:
        """Take what came over the wire. Within the ``with`` block.

        Args:
            raw: a message, several of them, or ``None`` where the poll brought nothing.
        """
        try:
            if raw is None:
                return
            is_batch = not isinstance(raw, (bytes, bytearray, memoryview, str))
            brought: list[Any] = list(raw) if is_batch else [raw]
            headers = [self._read(each) for each in brought]
            self.messages += brought
            if is_batch:
                self.set(semconv.MESSAGING_BATCH_MESSAGE_COUNT, len(self.messages))
            elif message_id := headers[0].get(MESSAGE_ID_HEADER):
                self.set(semconv.MESSAGING_MESSAGE_ID, message_id[:_MAX_ID_LENGTH])
            self.came(headers)
        except Exception as error:
            report("message_receive", error)

    def _read(self, raw: Any) -> Mapping[str, str]:
        try:
            found = opened(raw)
        except MessageError:
            # It has come all the same; who processes it will be told
            return {}
        self._opened[id(raw)] = (raw, found)
        return found.headers

    def _found(self, raw: Any, max_bytes: int) -> Opened | None:
        """Return what is in a message that came, where that is known already. Once: a payload may be changed by whoever has it."""
        known, found = self._opened.pop(id(raw), (None, None))
        return found if known is raw and max_bytes >= MAX_BYTES else None


class Message(MessageProcess):
    """A message that is being processed.

    Attributes:
        payload: what it carries: JSON as Python has it; text or bytes that are no JSON as they are.
        headers: of its envelope; none where its producer has no clew.
        envelope: ``clew``, or ``plain`` where its producer has no clew.
        attempt: the number of this try, from 1.
    """

    __slots__ = ("attempt", "envelope", "headers", "payload")
    payload: Any
    headers: Mapping[str, str]
    envelope: str
    attempt: int

    @property
    def id(self) -> str | None:
        """The message's id, where it has one."""
        return self._told_of(semconv.MESSAGING_MESSAGE_ID)

    @property
    def type(self) -> str | None:
        """Its type, where the producer told it."""
        return self._told_of(TYPE)

    @property
    def source(self) -> str | None:
        """The service that sent it, where it has clew."""
        return self._told_of(SOURCE)

    @property
    def user(self) -> str | None:
        """The user for whom it was sent, where the producer told it."""
        return self._told_of(USER)

    @property
    def sent_at(self) -> datetime | None:
        """When it was sent, where the producer told it."""
        try:
            return datetime.fromtimestamp(float(self.headers[SENT_AT_HEADER]), UTC)
        except (KeyError, ValueError, OverflowError, OSError):
            return None

    def retry(self) -> bytes:
        """Return the message for its next try, for you to put back into the queue; this try counts as ``returned``.

        The next try is in the same trace, and has a link to this one.
        """
        self.outcome = "returned"
        headers = {
            **dict(islice(self.headers.items(), MAX_HEADERS - len(self.carrier) - _OWN_HEADERS)),
            ATTEMPT_HEADER: str(self.attempt + 1),
            EARLIER_TRY_HEADER: self.carrier.get("traceparent", ""),
            SENT_AT_HEADER: f"{clock.now_ns() / 1e9:.6f}",
        }
        if self.envelope == "plain":
            # From now on it has a thread: this one
            headers = {**self.carrier, **headers}
        return written(self.payload, headers)

    def dead_letter(self, error: BaseException | str | None = None) -> None:
        """Say that the message is given up: it counts, and is recorded, as ``dead_lettered``.

        Args:
            error: why, as :meth:`~clew.Operation.fail` takes it.
        """
        self.outcome = "dead_lettered"
        if error is not None:
            self.fail(error)

    def _told_of(self, attribute: str) -> str | None:
        value = self.attributes.get(attribute)
        return value if isinstance(value, str) else None


def message_send(
    queue: str, body: Any, /, *, type: str | None = None, user: str | None = None, system: str = SYSTEM
) -> Envelope:
    """Send a message through a queue of your own: a list, a stream, anything that carries bytes. For ``with`` and ``async with``.

    Args:
        queue: its name; of low cardinality, because it becomes a label.
        body: what to send: anything that JSON can have, also dates, UUIDs, dataclasses, models of pydantic, and bytes.
        type: the kind of message; by default the name of the body's class, or the text that a mapping has under ``type``.
        user: for whom it is sent.
        system: what carries it, as ``messaging.system`` of the conventions has it.

    Example:
        >>> import clew
        >>> with clew.message_send("documents", {"id": 1}, type="document") as envelope:
        ...     wire = envelope.encode()  # such as client.rpush("documents", envelope.encode())
    """
    attributes = attributes_of(system, queue, "send")
    try:
        kind = type if type is not None else type_of(body)
        attributes |= {SOURCE: service_name(), semconv.MESSAGING_MESSAGE_ID: new_id()}
        attributes |= {key: header_text(value) for key, value in ((TYPE, kind), (USER, user)) if value is not None}
    except Exception as error:
        report("message_send", error)
    envelope = Envelope(MESSAGE_SEND, attributes)
    envelope.body = body
    return envelope


def message_receive(queue: str, /, *, group: str | None = None, system: str = SYSTEM) -> Receive:
    """Ask a queue of your own for messages: how long that took, and how many came. For ``with`` and ``async with``.

    A poll that brings nothing leaves no span, only its duration in ``messaging.client.operation.duration``. One that brings messages,
    or fails, is a span ``receive <queue>`` with a link to the send of each message. They are counted here, once, so tell
    :func:`message_process` of it.

    Args:
        queue: its name.
        group: the consumer group, where there is one.
        system: what carries it.

    Example:
        >>> import clew
        >>> with clew.message_receive("documents") as receive:
        ...     receive.got([b'{"id": 1}', b'{"id": 2}'])  # such as client.rpop("documents", 10)
        >>> for raw in receive.messages:
        ...     with clew.message_process("documents", raw, received=receive) as message:
        ...         message.payload
        {'id': 1}
        {'id': 2}

    Source: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/#operation-types
    """
    more = {} if group is None else {semconv.MESSAGING_CONSUMER_GROUP_NAME: group}
    return Receive(MESSAGE_RECEIVE, attributes_of(system, queue, "receive", more))


def message_process(
    queue: str,
    raw: bytes | str,
    /,
    *,
    max_bytes: int = MAX_BYTES,
    group: str | None = None,
    system: str = SYSTEM,
    received: Receive | None = None,
) -> Message:
    """Process a message that came through a queue of your own. For ``with`` and ``async with``.

    Messages of producers without clew are taken as well: JSON, text and bytes. They are marked ``plain``.

    Args:
        queue: its name.
        raw: what came over the wire.
        max_bytes: how large it may be.
        group: the consumer group, where there is one.
        system: what carried it.
        received: the poll that brought it, where :func:`message_receive` counted it.

    Raises:
        MessageError: it is too large, it is not what it pretends to be, or it is nested too deep. It is counted in
            ``clew.queue.rejected`` and recorded as ``rejected``: there is nothing to do but to go on with the next one, or to keep it.

    Example:
        >>> import clew
        >>> with clew.message_process("documents", b'{"id": 1}') as message:
        ...     (message.payload, message.envelope)
        ({'id': 1}, 'plain')
        >>> try:
        ...     clew.message_process("documents", b'{"id": ')
        ... except clew.MessageError as error:
        ...     error.reason
        'malformed'
    """
    more: dict[str, Any] = {}
    if group is not None:
        more[semconv.MESSAGING_CONSUMER_GROUP_NAME] = group
    is_received = received is not None
    try:
        known = received._found(raw, max_bytes) if isinstance(received, Receive) else None
        found = known or opened(raw, max_bytes=max_bytes)
    except MessageError as error:
        _reject(system, queue, raw, more, error, is_received=is_received)
        raise
    message = _message(system, queue, raw, found, more)
    message.is_received = is_received
    return message


def _message(system: str, queue: str, raw: Any, found: Opened, more: dict[str, Any]) -> Message:
    attributes = attributes_of(system, queue, "process", more)
    headers = found.headers
    attributes |= {
        ENVELOPE: found.envelope,
        ATTEMPT: found.attempt,
        semconv.MESSAGING_MESSAGE_BODY_SIZE: len(raw),
    }
    if found.attempt > 1:
        attributes[REDELIVERY_COUNT] = found.attempt - 1
    if message_id := headers.get(MESSAGE_ID_HEADER):
        attributes[semconv.MESSAGING_MESSAGE_ID] = message_id[:_MAX_ID_LENGTH]
    tell_sender(attributes, headers)
    carried = extract(headers)
    links = [carried]
    if earlier := headers.get(EARLIER_TRY_HEADER):
        before = extract({"traceparent": earlier})
        # The first try of a message that came without a thread is where its thread begins: one link says both
        if before.span_context.span_id != carried.span_context.span_id:
            links.append(before)
    message = Message(MESSAGE_PROCESS, attributes, parent=carried, links=links)
    message.body = message.payload = found.payload
    message.headers, message.envelope, message.attempt = headers, found.envelope, found.attempt
    keep_told(message, (headers,))
    return message


def _reject(system: str, queue: str, raw: Any, more: dict[str, Any], error: MessageError, *, is_received: bool) -> None:
    """Show a message that can't be read."""
    try:
        processing = new_process(system, queue, {}, {**more, "clew.queue.outcome": error.reason})
        processing.body = raw if isinstance(raw, (bytes, str)) else ABSENT
        processing.is_received = is_received
        processing.begin()
        processing.reject(error)
    except Exception as problem:
        report("message_process", problem)
