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
from clew.instrumentation.asgi.protocol import Scope
from clew.settings import Settings

OTHER_METHOD: Final = "_OTHER"
_KNOWN_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# Longer ones carry nothing for us: a host has at most 253 characters, and the propagators refuse what is longer than this
_MAX_HEADER_LENGTH: Final = 8_192
_NOTHING: Final = Context()
_known_servers: Final[dict[tuple[bytes, str], tuple[str | None, int | None]]] = {}
_MAX_REMEMBERED: Final = 1_000
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
    settings = runtime.ready().settings or Settings.load_or_default()[0]
    if _known is None or _known[0] is not settings:
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


def request_attributes(scope: Scope, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the attributes of a request or websocket that are known from its start.

    Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
    """
    # A websocket's handshake is a GET, and its scope does not say so
    get = scope.get
    method = get("method", "GET")
    scheme = get("scheme") or ("ws" if scope["type"] == "websocket" else "http")
    attributes: dict[str, Any] = {
        semconv.HTTP_REQUEST_METHOD: method if method in _KNOWN_METHODS else OTHER_METHOD,
        semconv.URL_SCHEME: scheme,
        semconv.URL_PATH: get("path", ""),
    }
    if method not in _KNOWN_METHODS:
        attributes[semconv.HTTP_REQUEST_METHOD_ORIGINAL] = method
    if query := get("query_string"):
        attributes[semconv.URL_QUERY] = query.decode("latin-1")
    if version := get("http_version"):
        attributes[semconv.NETWORK_PROTOCOL_VERSION] = version
    if client := get("client"):
        attributes[semconv.CLIENT_ADDRESS] = client[0]
    if agent := headers.get(b"user-agent"):
        attributes[semconv.USER_AGENT_ORIGINAL] = agent.decode("latin-1")
    host = headers.get(b"host")
    known = _known_servers.get((host, scheme)) if host else None
    address, port = known or _server(scope, host, scheme)
    if address:
        attributes[semconv.SERVER_ADDRESS] = address
        if port is not None:
            attributes[semconv.SERVER_PORT] = port
    return attributes


def _server(scope: Scope, host: bytes | None, scheme: str) -> tuple[str | None, int | None]:
    if not host:
        server = scope.get("server") or (None, None)
        return server[0], server[1]
    text = host.decode("latin-1")
    # A colon within brackets is part of an IPv6 address
    name, colon, digits = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    port = _DEFAULT_PORTS.get(scheme)
    if colon:
        text, port = name, int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 else None
    found = text.strip("[]"), port
    # Most services are called by few names; what clients make up is not remembered for ever
    if len(_known_servers) < _MAX_REMEMBERED:
        _known_servers[host, scheme] = found
    return found
