"""The OTLP/HTTP receiver: POST /v1/traces, /v1/metrics and /v1/logs, acknowledged once they are on disk.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clew.console.body import BodyLimits, InFlight, decompress, discard_body, read_body
from clew.console.errors import BodyRefusedError, StoreUnavailableError
from clew.console.model import Batch
from clew.console.otlp import Signal, WireFormat, decode_request, status_body, success_body, wire_format
from clew.console.records import batch_from
from clew.console.store import Store
from clew.http.access import Caller, refusal_to_send

# google.rpc.Code, by the HTTP status it goes with.
_RPC_CODES = {400: 3, 401: 16, 403: 7, 408: 4, 413: 8, 415: 3, 503: 14}
_RPC_INTERNAL = 13
_DECODING_AT_ONCE = 2  # decoding is what costs memory and CPU; more of it at once would only take turns


class Receiver:
    """Takes OTLP/HTTP requests into a store.

    Args:
        store: where the telemetry goes.
        token: bearer token that senders must present; None lets only programs on this machine send.
        limits: how much is taken in.
        retry_after_s: whole seconds a sender is told to wait when the store cannot take its data.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     [route.path for route in Receiver(store).routes()]
        ['/v1/traces', '/v1/metrics', '/v1/logs']
    """

    def __init__(
        self, store: Store, *, token: str | None = None, limits: BodyLimits | None = None, retry_after_s: int = 2
    ) -> None:
        self._store = store
        self._token = token
        self._limits = limits or BodyLimits()
        self._retry_after_s = retry_after_s
        self._in_flight = InFlight(max_bytes=self._limits.max_in_flight_bytes)
        self._decoding = asyncio.Semaphore(_DECODING_AT_ONCE)

    def routes(self) -> list[Route]:
        """Return the three routes of OTLP/HTTP."""
        return [Route(f"/v1/{signal.value}", self._endpoint(signal), methods=["POST"]) for signal in Signal]

    def _endpoint(self, signal: Signal) -> Callable[[Request], Awaitable[Response]]:
        async def receive(request: Request) -> Response:
            return await self._receive(request, signal)

        return receive

    async def _receive(self, request: Request, signal: Signal) -> Response:
        form = WireFormat.JSON  # for a request whose own format is unknown
        try:
            form = wire_format(request.headers.get("content-type", ""))
            self._let_in(request)
            batch = await self._batch(request, signal, form)
            if len(batch):
                await asyncio.wrap_future(self._store.add(batch))
        except BodyRefusedError as error:
            if error.status != 408:  # a sender that stopped halfway has no more to read
                await discard_body(request, self._limits)
            return self._refused(form, error.status, str(error))
        except StoreUnavailableError as error:
            return self._refused(form, 503, str(error))
        except Exception as error:  # answered, since a log line about it could come back as telemetry
            return self._refused(form, 500, f"the console failed on this request: {type(error).__name__}: {error}")
        body = success_body(signal, form, rejected=batch.rejected, reason=batch.reason)
        return Response(body, media_type=form.value)

    def _let_in(self, request: Request) -> None:
        refusal = refusal_to_send(Caller.of(request), self._token)
        if refusal is not None:
            raise BodyRefusedError(refusal.status, refusal.message)

    async def _batch(self, request: Request, signal: Signal, form: WireFormat) -> Batch:
        limits = self._limits
        encoding = request.headers.get("content-encoding", "")

        def decoded(body: bytes) -> Batch:
            plain = decompress(body, encoding, limits)
            return batch_from(decode_request(signal, plain, form, max_messages=limits.max_messages))

        with self._in_flight.share() as share:
            body = await read_body(request, limits, share)
            async with self._decoding:
                return await run_in_threadpool(decoded, body)

    def _refused(self, form: WireFormat, status: int, message: str) -> Response:
        headers = {}
        if status == 503:
            headers["Retry-After"] = str(self._retry_after_s)
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not worth reading
        content = status_body(form, code=_RPC_CODES.get(status, _RPC_INTERNAL), message=message)
        return Response(content, status, headers, media_type=form.value)
