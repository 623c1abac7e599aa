"""Routes whose requests are neither traced, nor counted, nor logged: polls of clew's own routes of health.

A load balancer asks each second, and each of its polls would be a trace, two log events and a measurement. What a poll finds has
metrics and events of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from clew.instrumentation.asgi.protocol import Scope

T = TypeVar("T")

_MARK: Final = "_clew_unobserved"
_MAX_DEPTH: Final = 20

endings: tuple[str, ...] = ()
"""How the paths of such routes end, as a first look that costs nearly nothing."""

_paths: Final[weakref.WeakKeyDictionary[Any, tuple[int, frozenset[str]]]] = weakref.WeakKeyDictionary()


def unobserved(endpoint: T, path: str) -> T:
    """Have requests to an endpoint left alone.

    Args:
        endpoint: the function of a route.
        path: its path, to which an app may add a prefix.
    """
    global endings
    setattr(endpoint, _MARK, True)
    if path not in endings:
        endings = (*endings, path)
    return endpoint


def is_unobserved(app: Any, scope: Scope) -> bool:
    """Tell whether a request is to one of these endpoints, wherever in an app they are."""
    path, root_path = scope["path"], scope.get("root_path", "")
    paths = _paths_of(app)
    # Servers that know under which prefix the app is seen from outside put it before the path
    return path in paths or bool(root_path and path.startswith(root_path) and path[len(root_path) :] in paths)


def _paths_of(app: Any) -> frozenset[str]:
    for _ in range(_MAX_DEPTH):
        if hasattr(app, "routes") or not hasattr(app, "app"):
            break
        # Middleware around the app
        app = app.app
    routes = getattr(app, "routes", None) or ()
    try:
        known = _paths.get(app)
        if known is None or known[0] != len(routes):
            known = _paths[app] = (len(routes), frozenset(_walk(routes, "", _MAX_DEPTH)))
    except TypeError:
        # It can't be remembered
        return frozenset(_walk(routes, "", _MAX_DEPTH))
    return known[1]


def _walk(routes: Any, prefix: str, depth: int) -> Iterator[str]:
    for route in routes:
        # A router that newer FastAPI included, with its prefix
        contexts = getattr(route, "effective_route_contexts", None)
        for candidate in [route] if contexts is None else list(contexts()):
            original = getattr(candidate, "original_route", None) or candidate
            path = getattr(candidate, "path", None) or getattr(original, "path", None) or ""
            if getattr(getattr(original, "endpoint", None), _MARK, False):
                yield prefix + path
            beneath = getattr(original, "routes", None)
            if beneath and depth:
                yield from _walk(beneath, prefix + path, depth - 1)
