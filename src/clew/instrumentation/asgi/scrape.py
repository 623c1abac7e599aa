"""``/metrics`` for Prometheus, answered before the app, neither traced nor counted.

Each process answers for itself: with several workers behind one port a scrape sees one of them, and OTLP all of them. An app that
has a route or mount of exactly this path keeps it.
"""

from __future__ import annotations

from typing import Any, Final

from clew.diagnostics import report
from clew.engine.exposition import prometheus_text
from clew.instrumentation.asgi.incoming import read_headers
from clew.instrumentation.asgi.protocol import Scope, Send

_ACCEPT: Final = frozenset({b"accept"})
_MAX_DEPTH: Final = 50


def is_scrape(scope: Scope, metrics_path: str) -> bool:
    """Tell whether a request asks for the metrics of the process."""
    path = scope.get("path")
    if path != metrics_path:
        # Servers that know under which prefix the app is seen from outside put it before the path
        root_path = scope.get("root_path", "")
        if not root_path or path != root_path + metrics_path:
            return False
    return scope.get("method") in {"GET", "HEAD"}


def has_route(app: Any, path: str) -> bool:
    """Tell whether an app has a route or mount of exactly this path, which a catch-all route is not.

    Example:
        >>> has_route(object(), "/metrics")
        False
    """
    for _ in range(_MAX_DEPTH):
        if hasattr(app, "routes") or not hasattr(app, "app"):
            break
        # Middleware around the app
        app = app.app
    for route in getattr(app, "routes", None) or ():
        # A router that newer FastAPI included, with its prefix
        contexts = getattr(route, "effective_route_contexts", None)
        candidates = [route] if contexts is None else list(contexts())
        for candidate in candidates:
            known = getattr(candidate, "starlette_route", None) or candidate
            if getattr(known, "path", None) == path:
                return True
    return False


async def answer_scrape(scope: Scope, send: Send) -> None:
    """Send the metrics of now, in OpenMetrics where the ``Accept`` header asks for it."""
    accept = read_headers(scope, _ACCEPT).get(b"accept", b"").decode("latin-1")
    try:
        status, (body, content_type) = 200, prometheus_text(accept)
    except Exception as error:
        report("metrics page", error)
        status, body, content_type = 500, b"The metrics could not be written; see the log.\n", "text/plain"
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
