"""An app with every kind of route and mishap that HTTP has, for tests that serve it by a real server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

from a2wsgi import WSGIMiddleware
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

import clew

log = clew.get_logger("edges")


class RefusedError(Exception):
    """Has a handler that answers 418."""


class OverloadedError(Exception):
    """Has a handler that answers 503."""


app = FastAPI()


@app.exception_handler(RefusedError)
async def refused(request: Request, error: RefusedError) -> PlainTextResponse:
    return PlainTextResponse("teapot", status_code=418)


@app.exception_handler(OverloadedError)
async def overloaded(request: Request, error: OverloadedError) -> PlainTextResponse:
    return PlainTextResponse("later", status_code=503)


@app.middleware("http")
async def through(request: Request, call_next: Callable[[Request], Any]) -> Any:
    """Run every request in a task of its own, as Starlette does for this kind of middleware."""
    if request.headers.get("x-break") == "middleware":
        raise LookupError("in middleware")
    return await call_next(request)


@app.get("/items/{item_id}")
async def item(item_id: int) -> dict[str, int]:
    log.info("item.read", item_id=item_id)
    return {"item_id": item_id}


@app.get("/sync/{name}")
def sync(name: str) -> str:
    with clew.span("inside"):
        log.info("sync.read")
    return name


@app.post("/echo")
async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await request.body())


@app.head("/headed")
@app.get("/headed")
async def headed() -> PlainTextResponse:
    return PlainTextResponse("0123456789")


@app.get("/redirect")
async def redirect() -> RedirectResponse:
    return RedirectResponse("/items/1")


@app.get("/boom")
async def boom() -> None:
    raise ValueError("boom, and password=hunter2")


@app.get("/chosen/{status}")
async def chosen(status: int) -> None:
    raise HTTPException(status)


@app.get("/answered/{status}")
async def answered(status: int) -> JSONResponse:
    return JSONResponse({}, status_code=status)


@app.get("/refused")
async def raise_refused() -> None:
    raise RefusedError


@app.get("/overloaded")
async def raise_overloaded() -> None:
    raise OverloadedError("too much")


@app.get("/stream/{chunks}")
async def stream(chunks: int, fail_after: int = -1) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for number in range(chunks):
            if number == fail_after:
                raise OSError("the disk is gone")
            yield b"x" * 1000
            await asyncio.sleep(0.001)

    return StreamingResponse(body())


@app.get("/endless")
async def endless() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0.005)

    return StreamingResponse(body())


@app.get("/sized/{size}")
async def sized(size: int) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        left = size
        while left:
            part = min(left, 997)
            left -= part
            yield b"y" * part
            await asyncio.sleep(0)

    return StreamingResponse(body())


async def _work(seconds: float, *, fails: bool) -> None:
    with clew.span("clean up"):
        await asyncio.sleep(seconds)
        log.info("background.working")
    if fails:
        raise RuntimeError("in the background")


@app.get("/background")
async def background(tasks: BackgroundTasks, seconds: float = 0.3, fails: bool = False) -> str:
    tasks.add_task(_work, seconds, fails=fails)
    tasks.add_task(_work, 0.0, fails=False)
    return "accepted"


async def _connection() -> AsyncIterator[str]:
    yield "open"
    await asyncio.sleep(0.2)


@app.get("/after")
async def after(connection: Annotated[str, Depends(_connection)]) -> str:
    return connection


router = APIRouter(prefix="/shop")


@router.get("/orders/{order_id}")
async def order(order_id: str) -> str:
    return order_id


inner_router = APIRouter()


@inner_router.get("/lines/{line}")
async def line(order_id: str, line: int) -> int:
    return line


router.include_router(inner_router, prefix="/orders/{order_id}")
app.include_router(router, prefix="/v1")

sub = FastAPI()
sub_sub = FastAPI()


@sub.get("/things/{thing}")
async def thing(thing: str) -> str:
    return thing


@sub.get("/boom")
async def sub_boom() -> None:
    raise KeyError("inner")


@sub_sub.get("/{x}")
async def deep(x: str) -> str:
    return x


@sub_sub.websocket("/socket/{room}")
async def sub_socket(socket: WebSocket, room: str) -> None:
    await socket.accept()
    await socket.close()


sub.mount("/s", sub_sub)
app.mount("/m", sub)


async def starlette_endpoint(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


app.mount(
    "/starlette",
    Starlette(
        routes=[
            Route("/a/{b:int}", starlette_endpoint),
            Mount("/t/{tenant}", routes=[Route("/{page:path}", starlette_endpoint, methods=["GET", "PUT"])]),
        ]
    ),
)
app.mount("/wrapped", BaseHTTPMiddleware(Router(routes=[Route("/w/{x}", starlette_endpoint)]), dispatch=through))


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = b"wsgi " + environ["PATH_INFO"].encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


app.mount("/wsgi", WSGIMiddleware(wsgi))  # type: ignore[arg-type]


async def plain(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"].endswith("/raise"):
        raise ZeroDivisionError("plain")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"plain"})


app.mount("/plain", plain)
app.mount("/static", StaticFiles(directory=Path(__file__).parent))
app.router.routes.append(Host("tenant.example", app=Router(routes=[Route("/hosted/{x}", starlette_endpoint)])))


@app.websocket("/ws/{room}")
async def websocket(socket: WebSocket, room: str) -> None:
    if room == "closed":
        await socket.close()
        return
    await socket.accept()
    with clew.span("in socket"):
        log.info("socket.open")
    if room == "bye":
        await socket.send_text("bye")
        await socket.close(1000)
        return
    if room == "broken":
        raise ValueError("in socket")
    while True:
        text = await socket.receive_text()
        await socket.send_text(text)
        await socket.send_text(text.upper())


if os.environ.get("EDGES_INSTRUMENT", "1") == "1":
    clew.instrument(app)
else:
    clew.configure()
