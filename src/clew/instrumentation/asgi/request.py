"""One HTTP request: a server span that ends with the last byte of the response, and what is left to do after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, cast

from opentelemetry.context import create_key

from clew import clock
from clew.catalog import semconv
from clew.catalog.metrics import HTTP_REQUEST_SIZE, HTTP_RESPONSE_SIZE
from clew.catalog.operations import BACKGROUND_TASK, HTTP_SERVER
from clew.diagnostics import report
from clew.engine.instruments import BoundHistogram, Histogram
from clew.engine.metrics import registry
from clew.engine.operation import Operation
from clew.instrumentation.asgi.incoming import (
    KNOWN_METHODS,
    OTHER_METHOD,
    Border,
    RequestFacts,
    incoming_thread,
    read_headers,
)
from clew.instrumentation.asgi.protocol import FASTAPI_TELEMETRY_KEY, TRAIL_KEY, App, Message, Receive, Scope, Send
from clew.instrumentation.asgi.routes import Trail, find_template
from clew.pipeline.current import attach, detach, get_current
from clew.pipeline.tracing import CORRELATION_KEY, DeferredSpan

CLIENT_DISCONNECT: Final = "client_disconnect"
"""The ``error.type`` of a request whose client went away before the response ended."""

LATE_WORK_S: Final = 0.1
"""Work after a response that is no background task of Starlette's gets a span when it takes at least this long, in seconds."""
_LATE_WORK_NS: Final = int(LATE_WORK_S * 1e9)

_request_size: Final[Histogram] = registry.declared(HTTP_REQUEST_SIZE)
_response_size: Final[Histogram] = registry.declared(HTTP_RESPONSE_SIZE)

Key = tuple[str, str | None, int, str | None, str | None]


Series = tuple[BoundHistogram, BoundHistogram, BoundHistogram]
_known_series: Final[dict[Key, Series]] = {}
_MAX_REMEMBERED: Final = 10_000

_EXCHANGE_KEY: Final = create_key("clew-http-exchange")


def current_exchange() -> HttpExchange | None:
    """Return the request that the code at hand works for, also after its response."""
    return cast("HttpExchange | None", get_current().get(_EXCHANGE_KEY))


async def serve_request(app: App, scope: Scope, receive: Receive, send: Send, border: Border) -> None:
    """Let ``app`` answer a request, and trace, measure and log it. Whatever goes wrong in that, the app answers."""
    try:
        exchange = HttpExchange(scope, receive, send, border)
    except Exception as problem:
        report("http request", problem)
        await app(scope, receive, send)
        return
    context = exchange.context
    token = attach(context) if context is not None else None
    error: BaseException | None = None
    try:
        await app(scope, exchange.receive, exchange.send)
    except BaseException as raised:
        error = raised
        raise
    finally:
        scope.pop(TRAIL_KEY, None)
        exchange.close(error)
        if token is not None:
            detach(token)


class HttpExchange(Operation):
    """The operation of a request and its response, as they pass between the server and the app.

    Args:
        scope: the request; it is marked as taken.
        receive: what the server gave the app to receive by.
        send: what the server gave the app to send by.
        border: the settings about requests from outside.
    """

    __slots__ = (
        "_background_error",
        "_border",
        "_client_left",
        "_ended_ns",
        "_handled",
        "_in_background",
        "_is_finished",
        "_is_last_sent",
        "_lost",
        "_method",
        "_receive",
        "_received_bytes",
        "_scheme",
        "_scope",
        "_send",
        "_sent_bytes",
        "_status",
        "_trail",
        "_waits_for_trailers",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, border: Border) -> None:
        headers = read_headers(scope, border.wanted)
        facts = RequestFacts(scope, headers)
        method, scheme = facts.method, facts.scheme
        # The conventions want a method that nobody knows out of the name and the labels
        name = method
        if method not in KNOWN_METHODS:
            name, method = "HTTP", OTHER_METHOD
        parent, links = incoming_thread(headers, border)
        labels = {semconv.HTTP_REQUEST_METHOD: method, semconv.URL_SCHEME: scheme}
        Operation.__init__(self, HTTP_SERVER, labels, name=name, parent=parent, links=links)
        self._facts: RequestFacts = facts
        self._method: str = method
        self._scheme: str = scheme
        self._scope = scope
        self._receive = receive
        self._send = send
        self._border = border
        self._received_bytes = 0
        self._sent_bytes = 0
        self._status = 0
        self._waits_for_trailers = False
        self._is_last_sent = False
        self._client_left = False
        self._in_background = False
        self._is_finished = False
        self._ended_ns = 0
        self._handled: Exception | None = None
        self._background_error: BaseException | None = None
        self._lost: OSError | None = None
        self._trail = Trail()
        self.begin()
        if self.context is not None:
            # Nobody has the context yet
            dict.__setitem__(self.context, _EXCHANGE_KEY, self)
        scope[TRAIL_KEY] = self._trail
        if FASTAPI_TELEMETRY_KEY not in scope:
            scope[FASTAPI_TELEMETRY_KEY] = None

    async def receive(self) -> Message:
        """Receive for the app; count what came, and notice when the client left."""
        message = await self._receive()
        kind = message["type"]
        if kind == "http.request":
            self._received_bytes += len(message.get("body", b""))
        elif kind == "http.disconnect" and not self._is_last_sent:
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        """Send for the app; count what goes out, and end the request with the last of it."""
        kind = message["type"]
        is_last = False
        if kind == "http.response.body":
            self._sent_bytes += len(message.get("body", b""))
            is_last = not (message.get("more_body", False) or self._waits_for_trailers)
        elif kind == "http.response.start":
            message = self._started(message)
        elif kind == "http.response.trailers":
            is_last = not message.get("more_trailers", False)
        elif kind == "http.response.pathsend":
            self._sent_bytes += _file_size(message.get("path", ""))
            is_last = not self._waits_for_trailers
        if is_last:
            self._is_last_sent = True
        try:
            await self._send(message)
        except OSError as error:
            self._client_left = True
            self._lost = error
            raise
        if is_last and not self._ended_ns:
            self._end()

    def close(self, error: BaseException | None) -> None:
        """Take note that the app has returned or raised."""
        if error is not None and error is self._background_error:
            error = None
        if not self._ended_ns and not self._is_finished:
            self._close_early(error)
        self._finish(error)
        if self._ended_ns and clock.now_ns() - self._ended_ns >= _LATE_WORK_NS:
            late = self._late_operation()
            late.begin(start_time_ns=self._ended_ns)
            late.finish()
        # The context leads here, and a circle would wait for the garbage collector
        self.context = None

    def begin_background(self) -> Operation | None:
        """Return the operation of background tasks that are about to run; ``None`` where they are part of some that do."""
        if self._in_background:
            return None
        self._in_background = True
        # Not always is the response over: middleware may pass its last piece on in another task, after these have begun
        if self._ended_ns or self._client_left:
            self._finish(None)
        return self._late_operation()

    def end_background(self, error: BaseException | None) -> None:
        """Take note that background tasks have ended; what takes long after them is measured from here."""
        self._in_background = False
        self._background_error = error
        if self._ended_ns:
            self._ended_ns = clock.now_ns()

    def _late_operation(self) -> Operation:
        route = find_template(self._trail, self._scope)
        # The same trace, so that one click shows both, and a link, which says that it is no part of the request
        return Operation(
            BACKGROUND_TASK,
            {} if route is None else {semconv.HTTP_ROUTE: route},
            parent=self.context,
            links=(self._span.get_span_context(),),
        )

    def _started(self, message: Message) -> Message:
        self._status = message.get("status", 0)
        self._waits_for_trailers = bool(message.get("trailers", False))
        context, headers = self.context, message.get("headers") or ()
        if context is None or (correlation_id := context.get(CORRELATION_KEY)) is None:
            return message
        name = self._border.correlation_header
        # Any iterable will do as headers, also one that can be read only once
        headers = [*headers]
        for header in headers:
            if len(header[0]) == len(name) and header[0].lower() == name:
                return {**message, "headers": headers}
        headers.append((name, cast("str", correlation_id).encode()))
        return {**message, "headers": headers}

    def _end(self) -> None:
        """Take note that the response is complete.

        The request is finished when the app returns, which for most is at once, because only then it is known whether it raised:
        middleware may end a response properly, that broke off in the middle, and raise afterwards.
        """
        self._ended_ns = clock.now_ns()
        self._stopped = (clock.monotonic_ns(), self._ended_ns)
        if self._status >= 500:
            # A handler that answers for an exception does so while it is handled, and nobody sees it later
            handled = sys.exc_info()[1]
            if isinstance(handled, Exception) and not _is_answer(handled):
                self._handled = handled
        if self._in_background:
            self._finish(None)

    def _close_early(self, error: BaseException | None) -> None:
        """Judge an app that is done while its response is not."""
        if error is None and not self._client_left:
            self.fail("incomplete_response", "The app returned before it had sent a whole response.")
        is_failure = isinstance(error, Exception) and not self._is_disconnect(error)
        if not self._status and (is_failure or self.error_type is not None):
            # The server answers in the app's place
            self._status = 500

    def _finish(self, error: BaseException | None) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        if error is not None or self._client_left or self._status >= 500:
            error = self._outcome(error)
        try:
            self._conclude()
        except Exception as problem:
            report("http request", problem)
        self.finish(error)

    def _outcome(self, error: BaseException | None) -> BaseException | None:
        """Tell a client that left from a failure; return what remains of the exception."""
        error = error or self._handled
        if self._client_left and (error is None or self._is_disconnect(error)):
            self.interrupt(CLIENT_DISCONNECT)
            return None
        if self._status >= 500 and error is None and self.error_type is None:
            self.fail(str(self._status))
        return error

    def _conclude(self) -> None:
        """Add what is known from the response."""
        status, span, trail = self._status, self._span, self._trail
        route = trail.template if trail.leaf is not None else find_template(trail, self._scope)
        self._facts.status, self._facts.route = status, route
        if route is not None:
            self.attributes[semconv.HTTP_ROUTE] = route
            self._name = f"{self._name} {route}"
        if type(span) is DeferredSpan:
            span._name = self.name
            if span._built is not None:
                # Somebody has read them already, so that they are put together no more
                for key, value in ((semconv.HTTP_RESPONSE_STATUS_CODE, status or None), (semconv.HTTP_ROUTE, route)):
                    if value is not None:
                        span._put(key, value)

    def _record_metrics(self, duration_s: float) -> None:
        error_type = self._facts.error_type = self.error_type
        key = self._method, self._facts.route, self._status, self._scheme, error_type
        duration, request_size, response_size = _known_series.get(key) or self._find_series(key)
        span = self._span
        span_context = span._context if type(span) is DeferredSpan else span.get_span_context()
        duration.record_in(duration_s, span_context)
        request_size.record_in(self._received_bytes, span_context)
        response_size.record_in(0 if self._method == "HEAD" else self._sent_bytes, span_context)

    def _find_series(self, key: Key) -> Series:
        attributes = self.attributes
        if self._status:
            attributes[semconv.HTTP_RESPONSE_STATUS_CODE] = self._status
        labels = {name: attributes[name] for name in HTTP_REQUEST_SIZE.labels if name in attributes}
        series = self._plan.duration(attributes), _request_size.bind(**labels), _response_size.bind(**labels)
        # 200, 200.0 and True are equal as keys, and are no equal labels
        if len(_known_series) < _MAX_REMEMBERED and type(self._status) is int:
            _known_series[key] = series
        return series

    def _is_disconnect(self, error: BaseException) -> bool:
        """Tell whether an exception only says that the client is gone, or that the work was cancelled because of it."""
        if isinstance(error, BaseExceptionGroup):
            return all(self._is_disconnect(inner) for inner in error.exceptions)
        if isinstance(error, Exception):
            # The second is Starlette's, in place of the first
            return error is self._lost or type(error).__name__ == "ClientDisconnect"
        return self._client_left


def _is_answer(error: Exception) -> bool:
    """Tell whether an exception is how the app chose to answer with a status."""
    return any(kind.__name__ == "HTTPException" for kind in type(error).__mro__)


def _file_size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        # The server will find out too
        return 0
