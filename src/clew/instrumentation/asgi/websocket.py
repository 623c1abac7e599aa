"""One websocket: a span from its handshake to its close, its messages counted as they pass."""

from __future__ import annotations

from typing import Any, Final

from opentelemetry import context as otel_context

from clew.catalog import semconv
from clew.catalog.metrics import WEBSOCKET_MESSAGES
from clew.catalog.operations import WEBSOCKET
from clew.diagnostics import report
from clew.engine.instruments import BoundCounter, Counter
from clew.engine.metrics import registry
from clew.engine.operation import Operation
from clew.instrumentation.asgi.incoming import Border, RequestFacts, incoming_thread, read_headers
from clew.instrumentation.asgi.protocol import FASTAPI_TELEMETRY_KEY, TRAIL_KEY, App, Message, Receive, Scope, Send
from clew.instrumentation.asgi.request import CLIENT_DISCONNECT
from clew.instrumentation.asgi.routes import Trail, find_template

CLOSE_CODE: Final = "clew.websocket.close_code"
MESSAGES_RECEIVED: Final = "clew.websocket.messages.received"
MESSAGES_SENT: Final = "clew.websocket.messages.sent"
DIRECTION: Final = "clew.websocket.direction"

# Source: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
_NORMAL: Final = frozenset({1000, 1001, 1005, 1012})
_VANISHED: Final = 1006
_WENT_WRONG: Final = 1011

_messages: Final[Counter] = registry.declared(WEBSOCKET_MESSAGES)


async def serve_websocket(app: App, scope: Scope, receive: Receive, send: Send, border: Border) -> None:
    """Let ``app`` hold a websocket, and trace, measure and log it. Whatever goes wrong in that, the app holds it."""
    try:
        exchange = WebsocketExchange(scope, receive, send, border)
    except Exception as problem:
        report("websocket", problem)
        await app(scope, receive, send)
        return
    token = exchange.operation.attach()
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
            otel_context.detach(token)


class WebsocketExchange:
    """A websocket between the server and the app.

    Args:
        scope: the handshake; it is marked as taken.
        receive: what the server gave the app to receive by.
        send: what the server gave the app to send by.
        border: the settings about requests from outside.
    """

    __slots__ = (
        "_close_code",
        "_incoming",
        "_is_closed_by_app",
        "_outgoing",
        "_receive",
        "_received",
        "_scope",
        "_send",
        "_sent",
        "_status",
        "_trail",
        "operation",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, border: Border) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._received = 0
        self._sent = 0
        self._status = 0
        self._close_code: int | None = None
        self._is_closed_by_app = False
        self._incoming: BoundCounter | None = None
        self._outgoing: BoundCounter | None = None
        self._trail = Trail()
        headers = read_headers(scope, border.wanted)
        parent, links = incoming_thread(headers, border)
        self.operation = Operation(WEBSOCKET, RequestFacts(scope, headers).start(), parent=parent, links=links)
        self.operation.begin()
        scope[TRAIL_KEY] = self._trail
        scope.setdefault(FASTAPI_TELEMETRY_KEY, None)

    async def receive(self) -> Message:
        """Receive for the app, and count."""
        message = await self._receive()
        kind = message["type"]
        if kind == "websocket.receive":
            self._received += 1
            if self._incoming is None:
                self._incoming = self._counter("receive")
            self._incoming.add(1)
        elif kind == "websocket.disconnect" and self._close_code is None:
            self._close_code = message.get("code", 1005)
        return message

    async def send(self, message: Message) -> None:
        """Send for the app, and count."""
        kind = message["type"]
        if kind == "websocket.accept":
            self._status = 101
        elif kind == "websocket.http.response.start":
            self._status = message.get("status", 403)
        elif kind == "websocket.close":
            self._is_closed_by_app = True
            if not self._status:
                # Closed before it was accepted, which the server answers so
                self._status = 403
            elif self._close_code is None:
                self._close_code = message.get("code", 1000)
        try:
            await self._send(message)
        except OSError:
            # Nobody was there any more: the code that says so is never sent
            if self._close_code is None:
                self._close_code = _VANISHED
            raise
        if kind == "websocket.send":
            self._sent += 1
            if self._outgoing is None:
                self._outgoing = self._counter("send")
            self._outgoing.add(1)

    def close(self, error: BaseException | None) -> None:
        """Take note that the app has returned or raised."""
        operation = self.operation
        try:
            self._set_route()
            if not self._status and isinstance(error, Exception):
                self._status = 500
            if self._status:
                operation.set(semconv.HTTP_RESPONSE_STATUS_CODE, self._status)
            operation.set_all({MESSAGES_RECEIVED: self._received, MESSAGES_SENT: self._sent})
            if self._close_code is not None:
                operation.set(CLOSE_CODE, self._close_code)
            error = self._judge(error)
        except Exception as problem:
            report("websocket", problem)
        operation.finish(error)

    def _judge(self, error: BaseException | None) -> BaseException | None:
        """Tell a client's leaving, normal or not, from a failure; return what remains of the exception."""
        has_client_left = self._close_code is not None and not self._is_closed_by_app
        if error is not None and (has_client_left or self._is_closed_by_app) and _is_disconnect(error):
            error = None
        if error is None and has_client_left and self._close_code not in _NORMAL:
            self.operation.interrupt(CLIENT_DISCONNECT)
        elif error is None and self._is_closed_by_app and self._close_code == _WENT_WRONG:
            self.operation.fail(str(_WENT_WRONG))
        return error

    def _counter(self, direction: str) -> BoundCounter:
        # By now the handshake is over, so that the route is known
        labels: dict[str, Any] = {DIRECTION: direction}
        if (route := self._set_route()) is not None:
            labels[semconv.HTTP_ROUTE] = route
        return _messages.bind(**labels)

    def _set_route(self) -> str | None:
        route = find_template(self._trail, self._scope)
        if route is not None and semconv.HTTP_ROUTE not in self.operation.attributes:
            self.operation.set(semconv.HTTP_ROUTE, route)
            self.operation.rename()
        return route


def _is_disconnect(error: BaseException) -> bool:
    """Tell whether an exception only says that the other side is gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnect(inner) for inner in error.exceptions)
    # Starlette's, and what servers raise from a send into a closed websocket
    return type(error).__name__ in {"WebSocketDisconnect", "ClientDisconnected"} or isinstance(error, OSError)
