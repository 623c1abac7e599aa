"""httpx and httpx2: a client span for each request, which carries the thread with it.

The spans and metrics are those of OpenTelemetry's own instrumentation. Around it is a thin layer that its hooks can't be: it
names the host before the headers are injected and forgets it afterwards, whatever happens in between, so that baggage only
goes to the hosts that the settings allow; and it sees to it that a request through a client that is instrumented twice, by
itself and with all others, has one span.

Source: https://opentelemetry-python-contrib.readthedocs.io/en/latest/instrumentation/httpx/httpx.html
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import wrapt
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.instrumentation.utils import suppress_http_instrumentation

from clew.engine.context import arrived, going_to

T = TypeVar("T")

_SYNC: Final = "handle_request"
_ASYNC: Final = "handle_async_request"
_STOCK: Final = {"httpx": HTTPXClientInstrumentor, "httpx2": HTTPX2ClientInstrumentor}
_MARK: Final = "_clew_instrumented"

# The request that is under way, to tell when one transport hands it to another
_under_way: ContextVar[Any] = ContextVar("clew_http_request", default=None)


def _host(request: Any) -> str:
    return str(getattr(getattr(request, "url", None), "host", ""))


def _send(wrapped: Callable[..., Any], _transport: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    request = args[0] if args else kwargs.get("request")
    if _under_way.get() is request:
        with suppress_http_instrumentation():
            return wrapped(*args, **kwargs)
    token, destination = _under_way.set(request), going_to(_host(request))
    try:
        return wrapped(*args, **kwargs)
    finally:
        arrived(destination)
        _under_way.reset(token)


async def _send_async(
    wrapped: Callable[..., Awaitable[Any]], _transport: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    request = args[0] if args else kwargs.get("request")
    if _under_way.get() is request:
        with suppress_http_instrumentation():
            return await wrapped(*args, **kwargs)
    token, destination = _under_way.set(request), going_to(_host(request))
    try:
        return await wrapped(*args, **kwargs)
    finally:
        arrived(destination)
        _under_way.reset(token)


def _wrap(owner: Any) -> None:
    """Put the layer around a transport, or around the class of one."""
    if hasattr(owner, _SYNC):
        wrapt.wrap_function_wrapper(owner, _SYNC, _send)
    if hasattr(owner, _ASYNC):
        wrapt.wrap_function_wrapper(owner, _ASYNC, _send_async)


def _library(client: Any) -> str | None:
    for kind in type(client).__mro__:
        name = kind.__module__.partition(".")[0]
        if name in _STOCK and kind.__name__ in ("Client", "AsyncClient"):
            return name
    return None


def instrument(target: T) -> T:
    """Instrument a client in place. Twice is harmless, and so is doing it besides :func:`instrument_all`.

    Args:
        target: a ``Client`` or an ``AsyncClient`` of httpx or httpx2, of whatever transport.

    Raises:
        TypeError: it is no such client.

    Example:
        >>> import httpx
        >>> client = instrument(httpx.Client())
    """
    client: Any = target
    library = _library(client)
    if library is None:
        raise TypeError(f"a {type(target).__qualname__} is no httpx client")
    if getattr(client, _MARK, False):
        return target
    if not getattr(client, "_is_instrumented_by_opentelemetry", False):
        _STOCK[library].instrument_client(client)
    for transport in {id(item): item for item in (client._transport, *client._mounts.values()) if item}.values():
        _wrap(transport)
    setattr(client, _MARK, True)
    return target


def instrument_all() -> None:
    """Instrument every client of the libraries that are imported, those that exist included. Twice is harmless."""
    for library, stock in _STOCK.items():
        module = sys.modules.get(library)
        if module is None or getattr(module.HTTPTransport, _MARK, False):
            continue
        instrumentor = stock()
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument()
        for transport in (module.HTTPTransport, module.AsyncHTTPTransport):
            _wrap(transport)
            setattr(transport, _MARK, True)
