"""ASGI apps as a server calls them, with scopes and messages that no well-behaved client could cause."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.websockets import WebSocketDisconnect

import clew
from clew.testing import CapturedSpan, CapturedTelemetry

Message = MutableMapping[str, Any]


def scope(path: str = "/x", **changes: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"unit.example")],
        "client": ("203.0.113.9", 4711),
        "server": ("127.0.0.1", 80),
        **changes,
    }


def call(
    app: Any,
    connection: dict[str, Any] | None = None,
    *incoming: Message,
    send_error: Exception | None = None,
) -> list[Message]:
    """Call an app as a server does, once, and return what it sent."""
    sent: list[Message] = []
    waiting = list(incoming) or [{"type": "http.request", "body": b""}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if send_error is not None and message["type"] == "http.response.body":
            raise send_error
        sent.append(message)

    asyncio.run(app(connection or scope(), receive, send))
    return sent


async def plain(connection: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"plain"})


async def text(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


class PlainObject:
    async def __call__(self, connection: Any, receive: Any, send: Any) -> None:
        await plain(connection, receive, send)


class SlottedObject:
    __slots__ = ()

    async def __call__(self, connection: Any, receive: Any, send: Any) -> None:
        await plain(connection, receive, send)


def fastapi_app() -> FastAPI:
    app = FastAPI()
    app.add_api_route("/x", text)
    return app


APPS: dict[str, Callable[[], Any]] = {
    "FastAPI": fastapi_app,
    "Starlette": lambda: Starlette(routes=[Route("/x", text)]),
    "Router": lambda: Router(routes=[Route("/x", text)]),
    "middleware": lambda: CORSMiddleware(Starlette(routes=[Route("/x", text)])),
    "object": PlainObject,
    "slots": SlottedObject,
    "function": lambda: plain,
}


def server_span(captured: CapturedTelemetry) -> CapturedSpan:
    spans = [span for span in captured.spans if span.kind == "server"]
    assert len(spans) == 1, [span.name for span in spans]
    return spans[0]


@pytest.mark.parametrize("kind", APPS)
def test_any_app_is_instrumented_once_however_often_it_is_asked_for(captured_telemetry, kind: str):
    app = APPS[kind]()
    served = clew.instrument(app)
    assert clew.instrument(served) is served
    assert clew.instrument(clew.instrument(served)) is served
    assert (served is app) is (kind != "function")
    assert isinstance(served, type(app)) or kind == "function"
    sent = call(served)
    assert sent[0]["status"] == 200
    span = server_span(captured_telemetry)
    has_routes = kind in {"FastAPI", "Starlette", "Router", "middleware"}
    assert (span.name, span.scope) == ("GET /x" if has_routes else "GET", "clew")
    assert captured_telemetry.metric("http.server.request.duration").count == 1


def test_an_app_can_be_instrumented_after_it_was_put_together(captured_telemetry):
    app = fastapi_app()
    app.middleware_stack = app.build_middleware_stack()
    call(clew.instrument(app))
    assert server_span(captured_telemetry).name == "GET /x"


def test_an_app_keeps_its_class_in_all_but_the_call(captured_telemetry):
    class Shop(FastAPI):
        """A shop."""

    app = clew.instrument(Shop(title="shop"))
    assert isinstance(app, Shop)
    assert (type(app).__name__, type(app).__doc__, app.title) == ("Shop", "A shop.", "shop")
    assert type(clew.instrument(Shop())) is type(app)
    assert type(Shop()) is Shop


def test_apps_within_apps_make_one_span_all_together(captured_telemetry):
    inner, middle = clew.instrument(fastapi_app()), clew.instrument(FastAPI())
    outer = clew.instrument(Starlette(routes=[Mount("/outer", app=clew.instrument(CORSMiddleware(middle)))]))
    middle.mount("/middle", inner)
    assert call(outer, scope("/outer/middle/x"))[0]["status"] == 200
    assert server_span(captured_telemetry).name == "GET /outer/middle/x"
    assert captured_telemetry.metric("http.server.request.duration").count == 1


def test_a_copy_of_the_scope_leads_to_the_same_template(captured_telemetry):
    class Copying:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, connection: Any, receive: Any, send: Any) -> None:
            await self.app(dict(connection), receive, send)

    inner = FastAPI()
    inner.add_api_route("/{x}", text)
    app = FastAPI()
    app.add_middleware(Copying)
    app.mount("/m", Copying(inner))
    call(clew.instrument(app), scope("/m/4"))
    assert server_span(captured_telemetry).name == "GET /m/{x}"


def test_routes_added_later_and_routers_within_routers_are_known(captured_telemetry):
    leaf, branch, app = APIRouter(), APIRouter(prefix="/b"), clew.instrument(FastAPI())
    leaf.add_api_route("/{x}/end", text)
    leaf.mount("/mounted/{y}", Starlette(routes=[Route("/in/{z}", text)]))
    branch.include_router(leaf, prefix="/l")
    app.include_router(branch, prefix="/a")
    statuses = [call(app, scope(path))[0]["status"] for path in ("/a/b/l/1/end", "/a/b/l/mounted/2/in/3")]
    names = [span.name for span in captured_telemetry.spans]
    assert statuses[0] == 200
    assert names[0] == "GET /a/b/l/{x}/end"
    # Older versions of FastAPI leave mounts out when they include a router
    assert names[1] == ("GET /a/b/l/mounted/{y}/in/{z}" if statuses[1] == 200 else "GET")


def test_static_front_ends_have_the_template_of_their_place(captured_telemetry, tmp_path):
    (tmp_path / "index.html").write_text("hello")
    app, router = clew.instrument(FastAPI()), APIRouter(prefix="/shop")
    app.frontend("/", directory=tmp_path)
    router.frontend("/ui", directory=tmp_path)
    app.include_router(router)
    for path in ("/index.html", "/shop/ui/index.html"):
        assert call(app, scope(path))[0]["status"] == 200
    assert [span.name for span in captured_telemetry.spans] == ["GET /{path}", "GET /shop/ui/{path}"]


def test_a_handler_that_answers_for_an_exception_does_not_hide_it(captured_telemetry):
    app = FastAPI()

    async def raises() -> None:
        raise LookupError("lost")

    async def answer(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("sorry", status_code=503)

    app.add_api_route("/x", raises)
    app.add_exception_handler(LookupError, answer)
    call(clew.instrument(app))
    span = server_span(captured_telemetry)
    assert (span.status, span.attributes["error.type"]) == ("error", "LookupError")
    assert span.attributes["http.response.status_code"] == 503


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        pytest.param({"client": None, "server": None, "headers": []}, {"client.address": None}, id="nothing known"),
        pytest.param(
            {"headers": [(b"host", b"[::1]:8000")]}, {"server.address": "::1", "server.port": 8000}, id="IPv6"
        ),
        pytest.param(
            {"headers": [(b"host", b"[::1]")]}, {"server.address": "::1", "server.port": 80}, id="IPv6, no port"
        ),
        pytest.param({"headers": [(b"host", b"a:b:c")]}, {"server.address": "a:b", "server.port": None}, id="no host"),
        pytest.param({"headers": [(b"host", b"\xff\x00:99999999")]}, {"server.port": None}, id="odd bytes in the host"),
        pytest.param(
            {"headers": [(b"user-agent", b"\xff\xfe\x00\n")]}, {"user_agent.original": "ÿþ\x00\n"}, id="odd bytes"
        ),
        pytest.param({"query_string": b"\xff=%00"}, {"url.query": "ÿ=%00"}, id="odd query"),
        pytest.param({"method": "x" * 100_000}, {"http.request.method": "_OTHER"}, id="endless method"),
        pytest.param({"scheme": "https", "headers": [(b"host", b"a")]}, {"server.port": 443}, id="https"),
        pytest.param({"headers": [(b"traceparent", b"\xff" * 55)]}, {}, id="odd traceparent"),
        pytest.param(
            {"headers": [(b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01")]}, {}, id="zero trace"
        ),
        pytest.param({"headers": [(b"x-" + b"y" * 500, b"z")] * 10_000}, {}, id="ten thousand headers"),
    ],
)
def test_no_scope_does_harm(captured_telemetry, changes: dict[str, Any], wanted: dict[str, Any]):
    assert call(clew.instrument(fastapi_app()), scope(**changes))[-1]["body"] in {b"ok", b"Method Not Allowed"} or (
        "method" in changes
    )
    span = server_span(captured_telemetry)
    assert {key: span.attributes.get(key) for key in wanted} == wanted
    assert span.parent_id == ""
    assert all(len(value) <= 8_192 for value in span.attributes.values() if isinstance(value, str))


@pytest.mark.parametrize(
    "header", ["traceparent", "tracestate", "baggage", "x-correlation-id", "host", "user-agent", "accept", "cookie"]
)
def test_a_header_of_ten_megabytes_is_left_alone(captured_telemetry, header: str):
    connection = scope(headers=[(header.encode(), b"a" * 10_000_000)])
    sent = call(clew.instrument(fastapi_app()), connection)
    assert sent[0]["status"] == 200
    assert len(dict(sent[0]["headers"])[b"x-correlation-id"]) == 32
    span = server_span(captured_telemetry)
    assert sum(len(str(value)) for value in span.attributes.values()) < 20_000
    records = [log for log in captured_telemetry.logs if log.body.startswith("request_")]
    assert len(records) == 2
    assert sum(len(str(record.attributes)) for record in records) < 40_000


def test_a_correlation_id_that_the_app_answers_with_is_kept(captured_telemetry):
    async def app(connection: Any, receive: Any, send: Any) -> None:
        # Any iterable will do as headers, also one that can be read only once
        await send({"type": "http.response.start", "status": 204, "headers": iter([(b"X-Correlation-Id", b"mine")])})
        await send({"type": "http.response.body"})

    assert call(clew.instrument(app))[0]["headers"] == [(b"X-Correlation-Id", b"mine")]


def test_trailers_and_files_by_path_end_a_response(captured_telemetry, tmp_path):
    (tmp_path / "file").write_bytes(b"z" * 321)

    async def trailers(connection: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "trailers": True})
        await send({"type": "http.response.body", "body": b"12345"})
        await send({"type": "http.response.trailers", "headers": []})

    async def path(connection: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201})
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})

    for app in (trailers, path):
        call(clew.instrument(app))
    assert [span.attributes.get("error.type") for span in captured_telemetry.spans] == [None, None]
    name = "http.server.response.body.size"
    assert captured_telemetry.metric(name, http__response__status_code=200).sum == 5
    assert captured_telemetry.metric(name, http__response__status_code=201).sum == 321


async def _silent(connection: Any, receive: Any, send: Any) -> None:
    """Return without an answer."""


async def _half(connection: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def _raising_late(connection: Any, receive: Any, send: Any) -> None:
    await plain(connection, receive, send)
    raise ValueError("after all was sent")


async def _waits_for_more(connection: Any, receive: Any, send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _bug_after_disconnect(connection: Any, receive: Any, send: Any) -> None:
    await _waits_for_more(connection, receive, send)
    raise OSError("an unrelated one")


async def _cancelled(connection: Any, receive: Any, send: Any) -> None:
    raise asyncio.CancelledError


async def _cancelled_by_disconnect(connection: Any, receive: Any, send: Any) -> None:
    await _waits_for_more(connection, receive, send)
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("app", "status", "error", "code"),
    [
        pytest.param(_silent, "error", "incomplete_response", 500, id="no answer"),
        pytest.param(_half, "error", "incomplete_response", 200, id="half an answer"),
        pytest.param(_raising_late, "error", "ValueError", 200, id="raises at the end"),
        pytest.param(_waits_for_more, "unset", "client_disconnect", None, id="client left"),
        pytest.param(_bug_after_disconnect, "error", "OSError", 500, id="client left, and a bug"),
        pytest.param(_cancelled, "unset", "cancelled", None, id="cancelled"),
        pytest.param(_cancelled_by_disconnect, "unset", "client_disconnect", None, id="cancelled when the client left"),
    ],
)
def test_how_a_request_ends_without_a_proper_response(
    captured_telemetry, app: Any, status: str, error: str, code: int | None
):
    with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):
        call(clew.instrument(app))
    span = server_span(captured_telemetry)
    assert (span.status, span.attributes["error.type"]) == (status, error)
    assert span.attributes.get("http.response.status_code") == code
    assert captured_telemetry.metric("http.server.request.duration", error__type=error).count == 1
    assert captured_telemetry.metric("http.server.active_requests").value == 0


def test_a_send_that_fails_means_that_the_client_is_gone(captured_telemetry):
    async def body() -> AsyncIterator[bytes]:
        yield b"first"

    async def endpoint(request: Request) -> StreamingResponse:
        return StreamingResponse(body())

    app = clew.instrument(Starlette(routes=[Route("/x", endpoint)]))
    # What happens to the exception is Starlette's affair: it makes a ClientDisconnect of it
    with pytest.raises(Exception, match=r"^$|reset") as raised:
        call(app, None, send_error=ConnectionResetError("reset"))
    assert type(raised.value).__name__ in {"ClientDisconnect", "ConnectionResetError"}
    span = server_span(captured_telemetry)
    assert (span.name, span.status, span.attributes["error.type"]) == ("GET /x", "unset", "client_disconnect")
    assert span.events == ()


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [(1000, "unset", None), (1001, "unset", None), (1005, "unset", None), (1006, "unset", "client_disconnect")],
)
def test_a_websocket_that_its_client_closes(captured_telemetry, code: int, status: str, error: str | None):
    app = clew.instrument(FastAPI())

    async def socket(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        # Raises when the client has gone, and the app does not care
        await websocket.receive_text()

    app.add_api_websocket_route("/ws/{room}", socket)
    with contextlib.suppress(WebSocketDisconnect):
        call(
            app,
            scope("/ws/1", type="websocket", scheme="ws", subprotocols=[]),
            {"type": "websocket.connect"},
            {"type": "websocket.disconnect", "code": code},
        )
    span = server_span(captured_telemetry)
    assert (span.status, span.attributes.get("error.type")) == (status, error)
    assert span.attributes["clew.websocket.close_code"] == code
    assert span.events == ()


def metrics_app(kind: str) -> Any:
    if kind == "own route":
        app = FastAPI()
        app.add_api_route("/metrics", text)
        return app
    if kind == "own mount":
        return Starlette(routes=[Mount("/metrics", app=plain)])
    if kind == "own included route":
        app, router = FastAPI(), APIRouter()
        router.add_api_route("/metrics", text)
        app.include_router(router)
        return app
    if kind == "own route under middleware":
        return CORSMiddleware(metrics_app("own route"))
    if kind == "catch-all":
        return Starlette(routes=[Route("/{path:path}", text)])
    return plain


@pytest.mark.parametrize(
    ("kind", "is_ours"),
    [
        ("own route", False),
        ("own mount", False),
        ("own included route", False),
        ("own route under middleware", False),
        ("catch-all", True),
        ("function", True),
    ],
)
def test_an_app_keeps_its_own_metrics_page(captured_telemetry, kind: str, is_ours: bool):
    clew.counter("crumbs").add(3)
    sent = call(clew.instrument(metrics_app(kind)), scope("/metrics"))
    assert (b"crumbs_total 3.0" in sent[-1]["body"]) is is_ours
    assert len([span for span in captured_telemetry.spans if span.kind == "server"]) == (0 if is_ours else 1)


def test_metrics_are_found_under_a_prefix_that_the_server_knows(captured_telemetry):
    sent = call(clew.instrument(plain), scope("/api/metrics", root_path="/api"))
    assert b"target_info" in sent[-1]["body"]


def test_other_kinds_of_connections_pass_through(captured_telemetry):
    seen = []

    async def app(connection: Any, receive: Any, send: Any) -> None:
        seen.append(connection["type"])

    call(clew.instrument(app), {"type": "lifespan"})
    call(clew.instrument(app), {"type": "something.new"})
    assert seen == ["lifespan", "something.new"]
    assert captured_telemetry.spans == []


def test_something_that_is_no_app_is_reported_and_returned():
    code = """
import clew
from starlette.datastructures import URL
url = URL("http://x")
assert clew.instrument(url) is url
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "a URL is no ASGI app" in done.stderr
