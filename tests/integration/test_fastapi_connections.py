"""What happens on real connections: bodies in pieces, many at once, clients that leave, websockets."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect

from clew.testing import CapturedSpan
from tests.integration.server_process import ServerProcess, uvicorn
from tests.otlp_sink import OtlpSink

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        yield sink


@pytest.fixture(scope="module")
def server(sink: OtlpSink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("connections")
    environment = {**sink.environment, "OTEL_SERVICE_NAME": "edges", "PYTHONPATH": str(HERE)}
    with ServerProcess(uvicorn("http_edges_app:app"), cwd=folder, environment=environment) as server:
        yield server


def served(sink: OtlpSink, cid: str) -> CapturedSpan:
    def found(s: OtlpSink) -> list[CapturedSpan]:
        return [span for span in s.spans if span.attributes.get("clew.correlation.id") == cid and span.kind == "server"]

    spans = sink.wait(found, what=f"server span of {cid}")
    assert len(spans) == 1
    return spans[0]


def test_fifty_responses_at_once_keep_their_own_sizes(server: ServerProcess, sink: OtlpSink):
    sizes = [1 + number * 1_357 for number in range(50)]

    async def fetch_all() -> list[int]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            answers = await asyncio.gather(
                *(client.get(f"/sized/{size}", headers={"x-correlation-id": f"sized-{size}"}) for size in sizes)
            )
        return [len(answer.content) for answer in answers]

    assert asyncio.run(fetch_all()) == sizes
    spans = sink.wait_for_all(lambda s: s.named("GET /sized/{size}"), 50, what="fifty spans")
    assert {span.attributes["url.path"] for span in spans} == {f"/sized/{size}" for size in sizes}
    assert {span.attributes["clew.correlation.id"] for span in spans} == {f"sized-{size}" for size in sizes}
    assert len({span.trace_id for span in spans}) == 50

    def measured(s: OtlpSink) -> list[tuple[int, float]]:
        points = [point for point in s.metrics if point.name == "http.server.response.body.size"]
        return [(p.count, p.value) for p in points if p.attributes.get("http.route") == "/sized/{size}"]

    assert sink.wait(lambda s: measured(s) == [(50, sum(sizes))], what=f"50 sizes with the sum {sum(sizes)}")


def test_a_request_body_in_pieces_is_counted_as_received(server: ServerProcess, sink: OtlpSink):
    def pieces() -> Iterator[bytes]:
        for _ in range(7):
            yield b"a" * 10_001

    cid = uuid.uuid4().hex
    answer = httpx.post(f"{server.url}/echo", content=pieces(), headers={"x-correlation-id": cid})
    assert len(answer.content) == 70_007
    served(sink, cid)
    assert sink.wait(
        lambda s: [
            p
            for p in s.metrics
            if p.name == "http.server.request.body.size"
            and p.attributes.get("http.route") == "/echo"
            and p.value == 70_007
        ],
        what="request size",
    )


def leave_early(server: ServerProcess, path: str, cid: str) -> None:
    """Ask, read a little of the answer, and hang up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nx-correlation-id: {cid}\r\n\r\n".encode())
        assert client.recv(200).startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_is_no_failure_of_the_service(server: ServerProcess, sink: OtlpSink):
    cid = uuid.uuid4().hex
    leave_early(server, "/endless", cid)
    span = served(sink, cid)
    assert (span.status, span.attributes["error.type"]) == ("unset", "client_disconnect")
    assert span.events == ()
    assert span.attributes["http.response.status_code"] == 200
    line = sink.wait(
        lambda s: [log for log in s.logs if log.span_id == span.span_id and log.body == "request_out"],
        what="request_out",
    )[0]
    assert (line.severity, line.attributes["error.type"]) == ("INFO", "client_disconnect")
    assert sink.wait(
        lambda s: s.total("http.server.request.duration", error__type="client_disconnect"), what="measurement"
    )


def test_a_client_that_leaves_while_it_sends_is_no_failure_either(server: ServerProcess, sink: OtlpSink):
    cid = uuid.uuid4().hex
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(
            f"POST /echo HTTP/1.1\r\nHost: x\r\nx-correlation-id: {cid}\r\ncontent-length: 1000\r\n\r\nhalf".encode()
        )
    span = served(sink, cid)
    assert (span.name, span.status, span.attributes["error.type"]) == ("POST /echo", "unset", "client_disconnect")
    assert span.events == ()


def test_an_exception_in_the_middle_of_a_stream_is_a_failure(server: ServerProcess, sink: OtlpSink):
    cid = uuid.uuid4().hex
    # Starlette's middleware of functions ends the response properly all the same
    httpx.get(f"{server.url}/stream/9?fail_after=2", headers={"x-correlation-id": cid})
    span = served(sink, cid)
    # An OSError of the app's own, which is not what a lost connection looks like
    assert (span.status, span.attributes["error.type"]) == ("error", "OSError")
    assert [event.attributes["exception.message"] for event in span.events] == ["the disk is gone"]
    assert span.attributes["http.response.status_code"] == 200


async def talk(url: str, cid: str, texts: list[str], code: int = 1000) -> list[str | bytes]:
    heard: list[str | bytes] = []
    async with connect(url, additional_headers={"x-correlation-id": cid}) as client:
        for text in texts:
            await client.send(text)
            heard += [await client.recv(), await client.recv()]
        await client.close(code)
    return heard


def test_a_websocket_is_one_span_and_its_messages_are_counted(server: ServerProcess, sink: OtlpSink):
    cid = uuid.uuid4().hex
    assert asyncio.run(talk(f"ws://127.0.0.1:{server.port}/ws/lobby", cid, ["a", "b", "c"])) == list("aAbBcC")
    span = served(sink, cid)
    wanted: dict[str, Any] = {
        "http.request.method": "GET",
        "http.route": "/ws/{room}",
        "url.scheme": "ws",
        "url.path": "/ws/lobby",
        "http.response.status_code": 101,
        "clew.websocket.messages.received": 3,
        "clew.websocket.messages.sent": 6,
        "clew.websocket.close_code": 1000,
    }
    assert wanted.items() <= span.attributes.items()
    assert (span.name, span.status, span.attributes.get("error.type")) == ("GET /ws/{room}", "unset", None)
    assert span.events == ()
    inside = sink.wait(
        lambda s: [inner for inner in s.named("in socket") if inner.trace_id == span.trace_id], what="inner"
    )[0]
    assert inside.parent_id == span.span_id
    lines = sink.wait_for_all(
        lambda s: [log for log in s.logs if log.logger == "clew.websocket" and log.span_id == span.span_id],
        2,
        what="open and close",
    )
    assert [line.body for line in lines] == ["websocket_open", "websocket_close"]
    route = {"http__route": "/ws/{room}"}
    assert sink.wait(
        lambda s: (
            s.total("clew.websocket.messages", clew__websocket__direction="receive", **route) == 3
            and s.total("clew.websocket.messages", clew__websocket__direction="send", **route) == 6
            and s.total("clew.websocket.duration", **route) == 1
        ),
        what="websocket metrics",
    )
    assert sink.wait(
        lambda s: {p.value for p in s.metrics if p.name == "clew.websocket.active"} == {0.0}, what="none open"
    )


def test_a_websocket_in_a_mounted_app_has_the_whole_template(server: ServerProcess, sink: OtlpSink):
    cid = uuid.uuid4().hex
    asyncio.run(talk(f"ws://127.0.0.1:{server.port}/m/s/socket/9", cid, []))
    assert served(sink, cid).name == "GET /m/s/socket/{room}"


def test_a_websocket_without_a_route_is_refused_and_has_no_path_in_its_name(server: ServerProcess, sink: OtlpSink):
    cid = uuid.uuid4().hex
    with pytest.raises(websockets.InvalidStatus):
        asyncio.run(talk(f"ws://127.0.0.1:{server.port}/no/such", cid, []))
    span = served(sink, cid)
    assert (span.name, span.attributes["http.response.status_code"], span.status) == ("GET", 403, "unset")


@pytest.mark.parametrize(
    ("room", "code", "status_code", "status", "error"),
    [
        pytest.param("bye", 1000, 101, "unset", None, id="closed by the app"),
        pytest.param("closed", None, 403, "unset", None, id="refused by the app"),
        pytest.param("broken", None, 101, "error", "ValueError", id="an exception"),
    ],
)
def test_how_a_websocket_ends(
    server: ServerProcess,
    sink: OtlpSink,
    room: str,
    code: int | None,
    status_code: int,
    status: str,
    error: str | None,
):
    cid = uuid.uuid4().hex

    async def listen() -> None:
        async with connect(
            f"ws://127.0.0.1:{server.port}/ws/{room}", additional_headers={"x-correlation-id": cid}
        ) as client:
            async for _ in client:
                pass

    try:
        asyncio.run(listen())
    except (websockets.ConnectionClosed, websockets.InvalidStatus):
        assert room != "bye"
    span = served(sink, cid)
    assert span.name == "GET /ws/{room}"
    assert span.attributes.get("clew.websocket.close_code") == code
    assert span.attributes["http.response.status_code"] == status_code
    assert (span.status, span.attributes.get("error.type")) == (status, error)


def test_a_websocket_client_that_vanishes_is_no_failure(server: ServerProcess, sink: OtlpSink):
    cid = uuid.uuid4().hex

    async def vanish() -> None:
        client = await connect(f"ws://127.0.0.1:{server.port}/ws/lobby", additional_headers={"x-correlation-id": cid})
        await client.send("a")
        await client.recv()
        client.transport.abort()

    asyncio.run(vanish())
    span = served(sink, cid)
    assert (span.status, span.events) == ("unset", ())
    # Some of uvicorn's protocols do not tell a lost connection from a close without a code
    seen = span.attributes["clew.websocket.close_code"], span.attributes.get("error.type")
    assert seen in {(1005, None), (1006, "client_disconnect")}
