"""Messages that the app fetches itself, with ``subscriber.get_one()`` or ``async for``: a receive operation for each poll.

The broker's middleware sees such a message once it is there, but not who asked for it, nor since when: so the two methods are wrapped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import wrapt
from faststream._internal.endpoint.subscriber import SubscriberUsecase
from faststream.message import StreamMessage

from clew.catalog import semconv
from clew.diagnostics import report
from clew.instrumentation.faststream.delivery import destination_of, group_of, message_id_of
from clew.queues.receive import MessageReceive, new_receive

_poll: ContextVar[MessageReceive | None] = ContextVar("clew-faststream-poll", default=None)


def wrap_polls(system_of: Callable[[Any], str | None]) -> None:
    """Wrap what fetches messages, in every kind of subscriber there is by now. Twice is harmless.

    Args:
        system_of: returns the ``messaging.system`` of a subscriber, or ``None`` where its broker is not instrumented.
    """
    kinds: list[Any] = [SubscriberUsecase]
    for kind in kinds:
        kinds += kind.__subclasses__()
        for name, wrapper in (("get_one", _fetching), ("__aiter__", _iterating)):
            if name in vars(kind) and not isinstance(vars(kind)[name], wrapt.FunctionWrapper):
                wrapt.wrap_function_wrapper(kind, name, wrapper(system_of))


def note_received(msg: StreamMessage[Any]) -> None:
    """Take note of the message that a poll of this task has brought."""
    receiving = _poll.get()
    if receiving is None:
        return
    batch = msg.batch_headers
    receiving.came(batch or [msg.headers])
    if len(batch) > 1:
        receiving.set(semconv.MESSAGING_BATCH_MESSAGE_COUNT, len(batch))
    receiving.set(semconv.MESSAGING_MESSAGE_ID, message_id_of(msg))
    if isinstance(msg.body, (bytes, bytearray)):
        receiving.set(semconv.MESSAGING_MESSAGE_BODY_SIZE, len(msg.body))


@contextmanager
def _polling(handler: Any, system: str) -> Iterator[None]:
    try:
        receiving = new_receive(system, destination_of(handler), group_of(handler))
    except Exception as error:
        report("instrument faststream", error)
        yield
        return
    with receiving:
        token = _poll.set(receiving)
        try:
            yield
        finally:
            _poll.reset(token)


def _fetching(system_of: Callable[[Any], str | None]) -> Callable[..., Any]:
    async def fetch(wrapped: Callable[..., Awaitable[Any]], handler: Any, args: Any, kwargs: Any) -> Any:
        system = system_of(handler)
        # What a subclass hands on to its parent is the same poll
        if system is None or _poll.get() is not None:
            return await wrapped(*args, **kwargs)
        with _polling(handler, system):
            return await wrapped(*args, **kwargs)

    return fetch


def _iterating(system_of: Callable[[Any], str | None]) -> Callable[..., Any]:
    def iterate(wrapped: Callable[..., Any], handler: Any, args: Any, kwargs: Any) -> Any:
        messages, system = wrapped(*args, **kwargs), system_of(handler)
        return messages if system is None else _each(messages, handler, system)

    return iterate


async def _each(messages: Any, handler: Any, system: str) -> AsyncIterator[Any]:
    try:
        while True:
            # What the app does with a message is not within the poll
            with _polling(handler, system):
                try:
                    msg = await anext(messages)
                except StopAsyncIteration:
                    return
            yield msg
    finally:
        await messages.aclose()
