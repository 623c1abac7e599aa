"""How an app comes to be wrapped: in place where its class lets us, else by an object to be served in its stead."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable
from contextlib import suppress
from types import MethodType
from typing import Any, Final, TypeVar, cast

import wrapt

from clew.diagnostics import report
from clew.engine import ending, logs, runtime
from clew.instrumentation.asgi import unobserved
from clew.instrumentation.asgi.background import follow_background_tasks
from clew.instrumentation.asgi.incoming import current_border
from clew.instrumentation.asgi.protocol import FASTAPI_TELEMETRY_KEY, TRAIL_KEY, App, Message, Receive, Scope, Send
from clew.instrumentation.asgi.request import serve_request
from clew.instrumentation.asgi.routes import follow_routes
from clew.instrumentation.asgi.scrape import answer_scrape, has_route, is_scrape
from clew.instrumentation.asgi.websocket import serve_websocket

T = TypeVar("T")

_OWN_CALL: Final = "_clew_serves"
_RIVAL: Final = ("opentelemetry.instrumentation.asgi", "OpenTelemetryMiddleware")
_MAX_DEPTH: Final = 50


class InstrumentedApp:
    """An app that could not be changed in place, to be served in its stead. Everything else asked of it, the app answers."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await serve(self.app, self.app, scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)


def serve(target: Any, app: App, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    """Serve one connection of an instrumented app.

    Args:
        target: the app as its author knows it.
        app: how it is called.
        scope: as the ASGI server gave it.
        receive: the same.
        send: the same.

    Returns:
        What is to be awaited.
    """
    kind = scope["type"]
    if TRAIL_KEY in scope or kind not in {"http", "websocket", "lifespan"}:
        # The app around this one has taken the request already
        return app(scope, receive, send)
    if kind == "lifespan":
        return _live(target, app, scope, receive, send)
    border = current_border()
    if kind == "websocket":
        return serve_websocket(app, scope, receive, send, border)
    path = border.metrics_path
    if path and scope["path"].endswith(path) and is_scrape(scope, path) and not has_route(target, path):
        return answer_scrape(scope, send)
    if unobserved.endings and scope["path"].endswith(unobserved.endings) and unobserved.is_unobserved(target, scope):
        # Marked, for FastAPI makes telemetry of its own, and for an app within this one
        scope[TRAIL_KEY] = scope[FASTAPI_TELEMETRY_KEY] = None
        return app(scope, receive, send)
    return serve_request(app, scope, receive, send, border)


async def _live(target: Any, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Let the app start and stop: adopt the server's log handlers, and send what is queued before the process ends."""
    _begin_life(target)
    scope[TRAIL_KEY] = None

    async def sending(message: Message) -> None:
        if message["type"] in {"lifespan.shutdown.complete", "lifespan.shutdown.failed"}:
            # Servers end the process by the signal that stopped them, and then nothing runs at exit
            await _end_life()
        await send(message)

    await app(scope, receive, sending)


def _begin_life(target: Any) -> None:
    try:
        runtime.ready()
        # A server puts its handlers in place before it starts the app, which may be after clew was configured
        logs.adopt_server_logs()
        ending.note_server()
        if _has_rival(target):
            report(
                "instrument",
                "opentelemetry-instrumentation-asgi is in this app's middleware as well, so that every request gets two server "
                "spans: take FastAPIInstrumentor or OpenTelemetryMiddleware out, or do not instrument the app with clew",
            )
    except Exception as error:
        report("instrument", error)


async def _end_life() -> None:
    loop = _running_loop() if ending.is_held_up() else None
    if loop is None:
        ending.flush_at_end()
        return
    # What goes on may do so upon this very loop, or have all threads of its pool
    over = asyncio.Event()

    def end() -> None:
        ending.flush_at_end()
        # Unless the server waited no longer, and has closed it
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(over.set)

    threading.Thread(target=end, name="clew-lifespan", daemon=True).start()
    await over.wait()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        # Served by trio
        return None


def _has_rival(app: Any) -> bool:
    if getattr(app, "_is_instrumented_by_opentelemetry", False):
        return True
    kinds = [getattr(middleware, "cls", None) for middleware in getattr(app, "user_middleware", None) or ()]
    layer = getattr(app, "middleware_stack", None)
    for _ in range(_MAX_DEPTH):
        if layer is None:
            break
        kinds.append(type(layer))
        layer = getattr(layer, "app", None)
    return any((getattr(kind, "__module__", ""), getattr(kind, "__name__", "")) == _RIVAL for kind in kinds)


def instrument(target: T) -> T:
    """Trace, measure and log what an ASGI app serves. Before or after it has started; twice is harmless.

    Args:
        target: a FastAPI or Starlette app, or any ASGI 3 app.

    Returns:
        The app, changed in place, or for a plain function an object to be served in its stead.

    Example:
        >>> async def app(scope, receive, send): ...
        >>> served = instrument(app)
        >>> instrument(served) is served
        True
    """
    follow_routes()
    follow_background_tasks()
    if isinstance(target, InstrumentedApp) or _serves_already(type(target)):
        return target
    if not callable(target):
        report("instrument", f"a {type(target).__qualname__} is no ASGI app: it can't be called")
        return target
    if inspect.isfunction(target) or inspect.ismethod(target):
        return cast("T", InstrumentedApp(target))
    try:
        target.__class__ = _served_class(cast("Any", type(target)))
    except TypeError:
        # Its class has slots, or is not written in Python
        return cast("T", InstrumentedApp(target))
    return target


def instrument_all() -> None:
    """Trace, measure and log what every FastAPI and Starlette app serves, whenever it was or will be made."""
    from starlette.applications import Starlette

    follow_routes()
    follow_background_tasks()
    _serve_all(Starlette)
    # FastAPI calls Starlette's call, but makes telemetry of its own before; Starlette may also be used without it
    wrapt.when_imported("fastapi.applications")(lambda module: _serve_all(module.FastAPI))


def _serve_all(kind: Any) -> None:
    call = kind.__dict__.get("__call__")
    if call is not None and not hasattr(call, _OWN_CALL):
        kind.__call__ = _serving(call)


def instrument_server(config_module: Any) -> None:
    """Make uvicorn serve every app instrumented, also one that is of no framework that clew knows.

    Args:
        config_module: the module ``uvicorn.config``. Its workers for gunicorn use it too.
    """
    load = config_module.Config.load
    if hasattr(load, _OWN_CALL):
        return

    @functools.wraps(load)
    def loading(self: Any) -> None:
        load(self)
        try:
            _instrument_loaded(self)
        except Exception as error:
            report("instrument", error)

    setattr(loading, _OWN_CALL, True)
    config_module.Config.load = loading


def _instrument_loaded(config: Any) -> None:
    """Wrap an app beneath the middleware of uvicorn itself, which knows the address of the client behind a proxy."""
    owner, name = config, "loaded_app"
    for _ in range(_MAX_DEPTH):
        app = getattr(owner, name)
        if not type(app).__module__.startswith(
            ("uvicorn.middleware.proxy_headers", "uvicorn.middleware.message_logger")
        ):
            break
        owner, name = app, "app"
    setattr(owner, name, instrument(getattr(owner, name)))


def _serves_already(kind: type) -> bool:
    return hasattr(kind.__call__, _OWN_CALL)


@functools.cache
def _served_class(kind: Any) -> Any:
    """Return a class like ``kind``, in all but its call."""
    attributes = {
        "__call__": _serving(kind.__call__),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__slots__": (),
    }
    return type(kind)(kind.__name__, (kind,), attributes)


def _serving(call: Any) -> Any:
    @functools.wraps(call)
    async def serving(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self, MethodType(call, self), scope, receive, send)

    setattr(serving, _OWN_CALL, True)
    return serving
