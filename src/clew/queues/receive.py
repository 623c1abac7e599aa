"""Receiving: a call that asks a broker for messages, whichever library carries them. What is done with them is another operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clew import clock
from clew.catalog import semconv
from clew.catalog.kind import OperationKind
from clew.catalog.operations import MESSAGE_RECEIVE
from clew.diagnostics import report
from clew.engine import runtime
from clew.engine.context import Carried, correlation_id, extract, with_correlation_id
from clew.engine.operation import Operation
from clew.engine.state import state
from clew.pipeline.current import get_current
from clew.queues.message import CONSUMED, attributes_of


class MessageReceive(Operation):
    """Asking for messages. Made by :func:`new_receive`.

    Its span begins when a message has come, with the time at which it was asked for: a poll that brings nothing, as most do where little
    is to be done, is told by the metric alone. So nothing is its child, and what is written meanwhile belongs to the work around it.

    Source: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/#operation-types
    """

    __slots__ = ("_asked_ns", "_came", "_monotonic_ns")

    def __init__(self, kind: OperationKind, attributes: dict[str, Any], **given: Any) -> None:
        super().__init__(kind, attributes, **given)
        self._came = 0
        self._asked_ns = 0
        self._monotonic_ns = 0

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Note when it was asked."""
        if state.settings is None:
            runtime.ready()
        self._asked_ns, self._monotonic_ns = start_time_ns or clock.now_ns(), clock.monotonic_ns()

    def came(self, headers: Iterable[Mapping[Any, Any]]) -> None:
        """Take note of messages.

        Args:
            headers: those of each message; empty where it has none.
        """
        try:
            brought = [extract(each) for each in headers]
            if not brought:
                return
            self._came += len(brought)
            self._show(brought)
            # Messages that were sent together share their send span: one link says it
            for carried in {each.span_context.span_id: each for each in brought}.values():
                self.link(carried)
        except Exception as error:
            report("message_receive", error)

    def fail(self, error: BaseException | str, message: str = "") -> None:
        """Mark it as failed; see :meth:`clew.Operation.fail`."""
        self._show()
        super().fail(error, message)

    def finish(self, error: BaseException | None = None) -> None:
        """End it, and count the messages: they were delivered, whatever becomes of them."""
        if not self._monotonic_ns:
            return
        if error is not None:
            self._judge(error)
        if self.context is not None:
            super().finish()
            if self._came:
                CONSUMED.of(self.attributes).add(self._came)
            return
        if self.error_type is not None:
            self.attributes[semconv.ERROR_TYPE] = self.error_type
        self._record_metrics((clock.monotonic_ns() - self._monotonic_ns) / 1e9)

    def _show(self, brought: Iterable[Carried] = ()) -> None:
        """Begin the span."""
        if self.context is not None or not self._monotonic_ns:
            return
        correlated = {carried.correlation_id for carried in brought}
        only = correlated.pop() if len(correlated) == 1 else None
        if self._parent is None and only is not None and correlation_id() is None:
            # What belongs together keeps its correlation id
            self._parent = with_correlation_id(only, get_current())
        super().begin(start_time_ns=self._asked_ns)


def new_receive(system: str, destination: str, attributes: Mapping[str, Any] | None = None) -> MessageReceive:
    """Return the operation of asking for messages.

    Args:
        system: ``messaging.system``.
        destination: the queue, stream, topic or subject.
        attributes: more attributes of the span.

    Example:
        >>> with new_receive("redis", "documents") as receiving:
        ...     receiving.came([{"x-correlation-id": "order-17"}])
    """
    return MessageReceive(MESSAGE_RECEIVE, attributes_of(system, destination, "receive", attributes))
