"""What the first message of a request tells: attributes, the thread it continues, and the settings that apply to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import propagate
from opentelemetry.context import Context

from clew.catalog import semconv
from clew.engine import runtime
from clew.engine.context import Carried, extract
from clew.engine.state import state
from clew.instrumentation.asgi.protocol import Scope
from clew.pipeline.coercion import attribute_values
from clew.pipeline.tracing import CORRELATION_ATTRIBUTE
from clew.settings import Settings

OTHER_METHOD: Final = "_OTHER"
KNOWN_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# Longer ones carry nothing for us: a host has at most 253 characters, and the propagators refuse what is longer than this
_MAX_HEADER_LENGTH: Final = 8_192
_NOTHING: Final = Context()
# Headers that may stand in several lines, which mean the same as one with commas
_LISTS: Final = frozenset({b"tracestate", b"baggage"})


@dataclass(frozen=True, kw_only=True)
class Border:
    """What the settings say about requests from outside, in the form in which it is looked up for each of them.

    Attributes:
        correlation_header: the name of the response header, in lower-case bytes.
        trusts: a request continues the trace that it names.
        metrics_path: where ``/metrics`` is answered, or ``""``.
        wanted: the request headers that are read.
        carriers: those of them that carry the thread.
    """

    correlation_header: bytes
    trusts: bool
    metrics_path: str
    wanted: frozenset[bytes]
    carriers: frozenset[bytes]


_known: tuple[Settings, Border] | None = None


def current_border() -> Border:
    """Return the border of the settings in force."""
    global _known
    settings = state.settings
    if _known is None or _known[0] is not settings:
        settings = runtime.ready().settings or Settings.load_or_default()[0]
        carriers = frozenset(name.lower().encode() for name in propagate.get_global_textmap().fields)
        border = Border(
            correlation_header=settings.correlation_header.lower().encode(),
            trusts=settings.trust_incoming,
            metrics_path=settings.metrics_path,
            wanted=carriers | {b"host", b"user-agent"},
            carriers=carriers,
        )
        _known = (settings, border)
    return _known[1]


def read_headers(scope: Scope, wanted: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return the request headers that are wanted and of a reasonable length; of several lines, the first one counts."""
    found: dict[bytes, bytes] = {}
    for name, value in scope.get("headers") or ():
        if name in wanted and len(value) <= _MAX_HEADER_LENGTH:
            if name not in found:
                found[name] = value
            elif name in _LISTS:
                found[name] = found[name] + b"," + value
    return found


def incoming_thread(headers: Mapping[bytes, bytes], border: Border) -> tuple[Context, tuple[Carried, ...]]:
    """Return the context that a request continues, and what its span is linked to instead where callers are not trusted."""
    if border.carriers.isdisjoint(headers):
        return _NOTHING, ()
    carried = extract({name: value for name, value in headers.items() if name in border.carriers})
    return (carried.context, ()) if border.trusts else (_NOTHING, (carried,))


class RequestFacts:
    """What a scope tells of a request or websocket, and later its response: attributes are made of it when they are needed.

    Args:
        scope: as the ASGI server gave it; it is not kept.
        headers: the headers that are read.

    Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
    """

    __slots__ = (
        "_agent",
        "_client",
        "_host",
        "_path",
        "_query",
        "_server",
        "_started",
        "_version",
        "correlation_id",
        "duration_ns",
        "error_type",
        "method",
        "route",
        "scheme",
        "status",
    )

    def __init__(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        get = scope.get
        # A websocket's handshake is a GET, and its scope does not say so
        self.method: Any = get("method", "GET")
        self.scheme: Any = get("scheme") or ("ws" if scope["type"] == "websocket" else "http")
        self._path = get("path", "")
        self._query = get("query_string")
        self._version = get("http_version")
        self._client = get("client")
        self._server = get("server")
        self._host = headers.get(b"host")
        self._agent = headers.get(b"user-agent")
        self._started: dict[str, Any] | None = None
        self.status = 0
        self.route: str | None = None
        self.error_type: str | None = None
        self.duration_ns = 0
        self.correlation_id: str | None = None

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the span, as far as they are known by now."""
        attributes = self._known()
        if self.correlation_id is not None:
            attributes[CORRELATION_ATTRIBUTE] = self.correlation_id
        return attributes

    def at_start(self) -> dict[str, Any]:
        """Return what was known when the request came in."""
        attributes = self.start()
        if self.correlation_id is not None:
            attributes["correlation_id"] = self.correlation_id
        return attributes

    def at_end(self) -> dict[str, Any]:
        """Return what is known now that the request has ended."""
        attributes = self._known()
        if self.correlation_id is not None:
            attributes["correlation_id"] = self.correlation_id
        attributes["duration_s"] = round(self.duration_ns / 1e9, 6)
        return attributes

    def start(self) -> dict[str, Any]:
        """Return the attributes that are known from the start."""
        started = self._started
        if started is None:
            started = self._started = self._start()
        return started.copy()

    def _start(self) -> dict[str, Any]:
        method = self.method
        attributes: dict[str, Any] = {
            semconv.HTTP_REQUEST_METHOD: method if method in KNOWN_METHODS else OTHER_METHOD,
            semconv.URL_SCHEME: self.scheme,
            semconv.URL_PATH: self._path,
        }
        if method not in KNOWN_METHODS:
            attributes[semconv.HTTP_REQUEST_METHOD_ORIGINAL] = method
        if self._query:
            attributes[semconv.URL_QUERY] = self._query.decode("latin-1")
        if self._version:
            attributes[semconv.NETWORK_PROTOCOL_VERSION] = self._version
        if self._client:
            attributes[semconv.CLIENT_ADDRESS] = self._client[0]
        if self._agent:
            attributes[semconv.USER_AGENT_ORIGINAL] = self._agent.decode("latin-1")
        address, port = _server(self._host, self._server, self.scheme)
        if address:
            attributes[semconv.SERVER_ADDRESS] = address
            if port is not None:
                attributes[semconv.SERVER_PORT] = port
        return attribute_values(attributes, max_length=state.max_value_length)

    def _known(self) -> dict[str, Any]:
        attributes = self.start()
        if self.status:
            attributes[semconv.HTTP_RESPONSE_STATUS_CODE] = self.status
        if self.route is not None:
            attributes[semconv.HTTP_ROUTE] = self.route
        if self.error_type is not None:
            attributes[semconv.ERROR_TYPE] = self.error_type
        return attributes


def _server(host: bytes | None, server: tuple[str, int | None] | None, scheme: str) -> tuple[str | None, int | None]:
    if not host:
        return server or (None, None)
    text = host.decode("latin-1")
    # A colon within brackets is part of an IPv6 address
    name, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        return text.strip("[]"), _DEFAULT_PORTS.get(scheme)
    return name.strip("[]"), int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else None
