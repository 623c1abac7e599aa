"""The console as one ASGI application: the receiver and the JSON API over a store."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from clew.console.api import Api, error_answer
from clew.console.body import BodyLimits
from clew.console.receiver import Receiver
from clew.console.store import Store


def console_app(
    store: Store, *, token: str | None = None, admin_token: str | None = None, limits: BodyLimits | None = None
) -> Starlette:
    """Return the console for any ASGI server.

    Args:
        store: where telemetry is kept; the caller closes it.
        token: bearer token that senders must present; None lets only programs on this machine send.
        admin_token: bearer token that lets clients on other machines look; None lets only this machine.
        limits: how much the receiver takes in.

    Raises:
        ValueError: an empty token, which would let everybody in or nobody.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     len(console_app(store).routes)
        10
    """
    for name, value in (("token", token), ("admin_token", admin_token)):
        if value is not None and not value.strip():
            raise ValueError(f"{name} is empty: give a secret, or None for none")
    receiver = Receiver(store, token=token, limits=limits)
    api = Api(store, admin_token=admin_token)
    return Starlette(
        routes=[*receiver.routes(), *api.routes()],
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.url.path[:80]
    if status == 405:
        answer = error_answer(405, f"{request.method} is not allowed on {path}: use the methods in the Allow header")
        answer.headers.update(getattr(error, "headers", None) or {})
        return answer
    if status == 404:
        return error_answer(404, f"there is nothing at {path}: the API is under /api/, OTLP goes to /v1/traces")
    return error_answer(status, str(getattr(error, "detail", error)))
