"""httpx and httpx2 against a real server: what goes out, what is recorded, and what must not be."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

import clew
from clew.instrumentation import httpx as drop_in
from clew.testing import CapturedTelemetry
from tests.integration.http_echo import HttpEcho

Get = Callable[[str], Any]


@pytest.fixture
def echo() -> Iterator[HttpEcho]:
    with HttpEcho() as server:
        yield server


@pytest.fixture
def all_clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Instrument every client, for one test."""
    drop_in.instrument_all()
    drop_in.instrument_all()
    yield
    for library, stock in drop_in._STOCK.items():
        for name, method in (("HTTPTransport", "handle_request"), ("AsyncHTTPTransport", "handle_async_request")):
            transport = getattr(sys.modules[library], name)
            setattr(transport, method, getattr(transport, method).__wrapped__)
            delattr(transport, drop_in._MARK)
        stock().uninstrument()


def get_sync(library: Any, prepare: Callable[[Any], Any]) -> Get:
    def get(url: str) -> Any:
        with prepare(library.Client()) as client:
            return client.get(url)

    return get


def get_async(library: Any, prepare: Callable[[Any], Any]) -> Get:
    def get(url: str) -> Any:
        async def main() -> Any:
            async with prepare(library.AsyncClient()) as client:
                return await client.get(url)

        return asyncio.run(main())

    return get


CLIENTS = pytest.mark.parametrize(
    ("kind", "library"),
    [(kind, library) for library in (httpx, httpx2) for kind in (get_sync, get_async)],
    ids=["httpx", "httpx-async", "httpx2", "httpx2-async"],
)


@CLIENTS
def test_the_thread_goes_out_with_a_request(
    captured_telemetry: CapturedTelemetry, echo: HttpEcho, kind: Any, library: Any
) -> None:
    get = kind(library, lambda client: clew.instrument(clew.instrument(client)))
    with clew.correlation("order-17"), clew.span("caller"):
        assert get(f"{echo.url}/orders?page=2").status_code == 200

    caller, call = captured_telemetry.span("caller"), captured_telemetry.span("GET")
    assert (call.parent_id, call.kind) == (caller.span_id, "client")
    (request,) = echo.requests
    assert request.headers["traceparent"].startswith(f"00-{call.trace_id}-{call.span_id}-0")
    assert request.headers["x-correlation-id"] == "order-17"
    assert call.attributes["url.full"] == f"{echo.url}/orders?page=2"
    assert call.attributes["http.response.status_code"] == 200
    assert call.attributes["clew.correlation.id"] == "order-17"


@CLIENTS
def test_one_request_has_one_span_however_it_is_instrumented(
    captured_telemetry: CapturedTelemetry, echo: HttpEcho, all_clients: None, kind: Any, library: Any
) -> None:
    kind(library, lambda client: client)(echo.url)
    kind(library, clew.instrument)(echo.url)
    assert [span.name for span in captured_telemetry.spans] == ["GET", "GET"]
    sent = [request.headers["traceparent"].split("-")[2] for request in echo.requests]
    assert sent == [span.span_id for span in captured_telemetry.spans]


@CLIENTS
def test_secrets_of_an_address_are_not_recorded(
    captured_telemetry: CapturedTelemetry, echo: HttpEcho, kind: Any, library: Any
) -> None:
    get = kind(library, clew.instrument)
    get(f"http://user:hunter2@127.0.0.1:{echo.port}/?api_key=planted-secret&token=planted-token&page=2")
    (call,) = captured_telemetry.spans
    everything = repr(captured_telemetry.spans) + repr(captured_telemetry.logs)
    for secret in ("hunter2", "planted-secret", "planted-token"):
        assert secret not in everything
    assert "page=2" in call.attributes["url.full"]


@CLIENTS
def test_a_failed_call_is_an_error_and_is_raised(
    captured_telemetry: CapturedTelemetry, kind: Any, library: Any
) -> None:
    get = kind(library, clew.instrument)
    with pytest.raises(library.ConnectError):
        get("http://127.0.0.1:1/")
    (call,) = captured_telemetry.spans
    assert (call.status, call.attributes["error.type"]) == ("error", "ConnectError")


BAGGAGE = """
import asyncio, sys, httpx, clew
from opentelemetry import baggage, context
from opentelemetry.context import attach

clew.configure(service_name="caller", baggage_keys=("tenant",), baggage_hosts=("localhost",))
port = sys.argv[1]
context = baggage.set_baggage("tenant", "north", baggage.set_baggage("secret", "s"))
attach(context)
with clew.instrument(httpx.Client()) as client:
    client.get(f"http://localhost:{port}/friend")
    client.get(f"http://127.0.0.1:{port}/stranger")
    try:
        client.get("http://127.0.0.1:1/")
    except httpx.ConnectError:
        pass

async def main():
    async with clew.instrument(httpx.AsyncClient()) as client:
        await asyncio.gather(client.get(f"http://localhost:{port}/friend"), client.get(f"http://127.0.0.1:{port}/stranger"))

asyncio.run(main())
# A queue of our own is no stranger, whatever was called before
assert clew.inject({})["baggage"] == "tenant=north", clew.inject({})
"""


def test_baggage_goes_to_the_hosts_that_are_allowed(echo: HttpEcho) -> None:
    subprocess.run(
        [sys.executable, "-c", BAGGAGE, str(echo.port)],
        env=os.environ
        | {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"},
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=60,
    )
    sent = sorted((request.path, request.headers.get("baggage")) for request in echo.requests)
    assert sent == [("/friend", "tenant=north")] * 2 + [("/stranger", None)] * 2
