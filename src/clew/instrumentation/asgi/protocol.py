"""The types of the ASGI protocol, and the place in a scope by which nested apps know that the request is taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TRAIL_KEY: Final = "clew.trail"
"""Where the scope of a request that is being traced keeps its :class:`~clew.instrumentation.asgi.routes.Trail`."""

FASTAPI_TELEMETRY_KEY: Final = "fastapi.telemetry"
"""FastAPI from 0.142 on makes telemetry of its own, unless its scope has this key."""
