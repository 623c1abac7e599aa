"""The template of the route that a request takes, put together from every mount on its way.

A mounted app overwrites what the one above it wrote into the scope, and middleware may hand on a copy of the scope. So each route
notes itself, when it is chosen, on a trail that all copies of the scope share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import wrapt

from clew.diagnostics import report
from clew.instrumentation.asgi.protocol import TRAIL_KEY, Scope

_MOUNTED: Final = "/{path}"
_PATCHED: Final = "_clew_notes_its_route"
_MAX_DEPTH: Final = 50


class Trail:
    """The routes that one request was handed down."""

    # Most requests take one route and no mount
    _prefix = ""
    _ends_in_router = True
    leaf: str | None = None
    """The template of the route that was taken last, beneath the mounts; ``None`` where none was."""

    def mount(self, template: str, *, is_router: bool) -> None:
        """Note that a mount was taken.

        Args:
            template: the mount's path, without what is left to the mounted app.
            is_router: the mounted app has routes of its own, and without one of them nothing was matched.
        """
        self._prefix += template
        self.leaf = None
        self._ends_in_router = is_router

    @property
    def template(self) -> str | None:
        """The whole template, such as ``/m/s/{x}``; ``None`` where no route matched.

        Example:
            >>> trail = Trail()
            >>> trail.mount("/m", is_router=True)
            >>> trail.template
            >>> trail.leaf = "/{x}"
            >>> trail.template
            '/m/{x}'
        """
        if self.leaf is not None:
            return self._prefix + self.leaf or "/"
        return None if self._ends_in_router else self._prefix or "/"


def find_template(trail: Trail, scope: Scope) -> str | None:
    """Return the template of a request's route: by the trail, or by what a framework that is not Starlette left in the scope."""
    template = trail.template
    if template is not None:
        return template
    route = scope.get("route")
    if route is None or not type(route).__module__.startswith(("starlette.", "fastapi.")):
        path = getattr(route, "path_format", None) or getattr(route, "path", None)
        return path if isinstance(path, str) else None
    return None


@functools.cache
def follow_routes() -> None:
    """Let routes note themselves, whether Starlette and FastAPI are imported already or only later."""
    wrapt.when_imported("starlette.routing")(_follow_starlette)
    wrapt.when_imported("fastapi.routing")(_follow_fastapi)


def _follow_starlette(module: Any) -> None:
    for name in ("Route", "WebSocketRoute"):
        _note(getattr(module, name), _route)
    for name in ("Mount", "Host"):
        _note(getattr(module, name), functools.partial(_mount, module.Router))


def _follow_fastapi(module: Any) -> None:
    _note(module.APIRoute, _api_route)
    # Static front-ends came late to FastAPI
    if (frontend := getattr(module, "_FrontendRouteGroup", None)) is not None:
        _note(frontend, _frontend)


def _note(kind: Any, note: Callable[[Trail, Any, Scope], None]) -> None:
    """Make ``kind.handle`` note the route before it does what it did."""
    handle = kind.__dict__.get("handle")
    if handle is None or hasattr(handle, _PATCHED):
        return

    # Not a coroutine function itself: the route's own coroutine is handed on, without one more around it
    @functools.wraps(handle)
    def noting(self: Any, scope: Scope, *args: Any, **kwargs: Any) -> Any:
        trail = scope.get(TRAIL_KEY)
        if trail is not None:
            try:
                note(trail, self, scope)
            except Exception as error:
                report("http route", error)
        return handle(self, scope, *args, **kwargs)

    setattr(noting, _PATCHED, True)
    kind.handle = noting


def _route(trail: Trail, route: Any, _scope: Scope) -> None:
    trail.leaf = route.path_format


def _api_route(trail: Trail, route: Any, scope: Scope) -> None:
    # Where a router was included, newer FastAPI keeps the prefix beside the route
    context = scope.get("fastapi", {}).get("effective_route_context")
    included = context is not None and context.original_route is route
    trail.leaf = context.path_format if included else route.path_format


def _frontend(trail: Trail, group: Any, scope: Scope) -> None:
    context = scope.get("fastapi", {}).get("effective_route_context")
    included = context is not None and context.original_route is group
    prefix = context.frontend_prefix if included else ""
    _match, _child, route = group._match(scope, prefix=prefix)
    if route is not None:
        trail.leaf = f"{prefix}{route.path}".rstrip("/") + _MOUNTED


def _mount(router_kind: type, trail: Trail, mount: Any, _scope: Scope) -> None:
    # A Host has no path
    template = getattr(mount, "path_format", "").removesuffix(_MOUNTED)
    trail.mount(template, is_router=_leads_to_router(mount.app, router_kind))


def _leads_to_router(app: Any, router_kind: type) -> bool:
    """Tell whether ``app``, under its middleware, has routes of its own."""
    for _ in range(_MAX_DEPTH):
        if isinstance(app, router_kind) or isinstance(getattr(app, "router", None), router_kind):
            return True
        app = getattr(app, "app", None)
        if app is None:
            return False
    return False
