"""The middleware: one scope for each message that a broker publishes or consumes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from faststream import BaseMiddleware
from faststream.exceptions import IgnoredException, NackMessage, RejectMessage
from faststream.message import StreamMessage
from faststream.message.source_type import SourceType
from faststream.response import PublishCommand
from faststream.response.publish_type import PublishType
from opentelemetry import context as otel_context
from opentelemetry import trace

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.instrumentation.faststream.delivery import (
    EarlierTries,
    EarlierTry,
    destination_of,
    fate_of,
    group_of,
    is_settled,
    keys_of,
    message_id_of,
    redeliveries_of,
    sent_id,
)
from clew.instrumentation.faststream.polling import note_received
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

TEMPORARY: Final = "(temporary)"
"""Stands for the destinations of replies, whose names are made up for one message each."""

_tries: Final = EarlierTries()


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
        self._handler: Any = None
        self._keys: list[Any] = []

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
            if semconv.MESSAGING_BATCH_MESSAGE_COUNT not in sending.attributes and (given := sent_id(result)):
                sending.set(semconv.MESSAGING_MESSAGE_ID, given)
            return result

    def _sending(self, cmd: PublishCommand) -> MessageSend | None:
        try:
            reply = cmd.publish_type is PublishType.REPLY
            attributes: dict[str, Any] = {}
            if len(cmd.batch_bodies) > 1:
                attributes[semconv.MESSAGING_BATCH_MESSAGE_COUNT] = len(cmd.batch_bodies)
            parent = self._processing.context if self._processing is not None else None
            destination = TEMPORARY if reply else _address(cmd)
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
        if handler is None or msg.source_type is SourceType.RESPONSE or not _unseen(msg):
            # A response, or a message that the app fetches itself: nobody processes it in here
            if msg.source_type is SourceType.CONSUME and handler is None:
                self._note_received(msg)
            return await call_next(msg)
        redeliveries = await redeliveries_of(handler, msg)
        processing = self._begin(handler, msg, redeliveries)
        token = processing.attach() if processing is not None else None
        try:
            return await call_next(msg)
        finally:
            if token is not None:
                otel_context.detach(token)

    def _note_received(self, msg: StreamMessage[Any]) -> None:
        try:
            if _unseen(msg):
                note_received(msg)
        except Exception as error:
            report("instrument faststream", error)

    def _begin(self, handler: Any, msg: StreamMessage[Any], redeliveries: int) -> MessageProcess | None:
        try:
            destination = destination_of(handler, msg)
            attributes: dict[str, Any] = {semconv.MESSAGING_MESSAGE_ID: message_id_of(msg), **group_of(handler)}
            if isinstance(msg.body, (bytes, bytearray)):
                attributes[semconv.MESSAGING_MESSAGE_BODY_SIZE] = len(msg.body)
            keys = keys_of(destination, handler, msg)
            earlier = _tries.find(keys)
            # Some brokers only say that it is not the first time, or nothing at all
            redeliveries = max(redeliveries, *(before.redeliveries + 1 for before in earlier), 0)
            if redeliveries:
                attributes[REDELIVERY_COUNT] = redeliveries
            processing = new_process(
                self._system,
                destination,
                msg.batch_headers or msg.headers,
                attributes,
                earlier_tries={before.span.span_id: before.span for before in earlier}.values(),
                correlation_id=msg.correlation_id,
            )
            processing.body = msg.body
            processing.begin()
            span = trace.get_current_span(processing.context).get_span_context()
            _tries.remember(keys, EarlierTry(span=span, redeliveries=redeliveries))
        except Exception as error:
            report("instrument faststream", error)
            return None
        self._processing, self._message, self._handler, self._keys = processing, msg, handler, keys
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
        if processing is None or self._message is None:
            self._reject_unparsed(error)
            return
        msg, handler = self._message, self._handler
        if isinstance(error, IgnoredException):
            # How a handler says what becomes of the message: no failure
            processing.set("clew.queue.outcome", type(error).__name__)
        fate = fate_of(handler, msg, error)
        if is_settled(handler, msg, error, fate):
            _tries.forget(self._keys, trace.get_current_span(processing.context).get_span_context())
        if isinstance(error, Exception) and await _is_unreadable(msg, error):
            processing.reject(error)
            return
        if isinstance(error, (NackMessage, RejectMessage)) or fate == "dead_lettered":
            processing.outcome = fate
        processing.finish(None if isinstance(error, IgnoredException) else error)

    def _reject_unparsed(self, error: BaseException | None) -> None:
        """Show a message that FastStream could not even parse: no handler has seen it."""
        handler = self.context.get_local("handler_")
        if not isinstance(error, Exception) or isinstance(error, IgnoredException) or self.msg is None:
            return
        if handler is None or self._message is not None:
            return
        attributes = {"clew.queue.outcome": "rejected", **group_of(handler)}
        processing = new_process(self._system, destination_of(handler), {}, attributes)
        processing.begin(start_time_ns=self._received_ns)
        processing.reject(error)


def _address(cmd: PublishCommand) -> str:
    """Return where a message goes; in RabbitMQ that may take the exchange to say."""
    exchange = getattr(getattr(cmd, "exchange", None), "name", "")
    if not exchange or exchange == "default":
        return str(cmd.destination)
    return f"{exchange}:{cmd.destination}" if cmd.destination else str(exchange)


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
