"""Too large, too slow, malformed or of the wrong kind: each is answered with one sentence, and the console runs on."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from clew.console.body import BodyLimits
from clew.console.otlp import WireFormat, status_body
from clew.console.server import ConsoleServer

MIB = 1024 * 1024


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleServer]:
    limits = BodyLimits(
        max_body_bytes=MIB, max_decompressed_bytes=2 * MIB, max_in_flight_bytes=3 * MIB, body_timeout_s=0.5
    )
    with ConsoleServer(data_dir=tmp_path, port=0, limits=limits) as server:
        yield server


@pytest.mark.parametrize(
    ("content", "headers", "status", "sentence"),
    [
        (b"x", {"Content-Type": "text/plain"}, 415, "Content-Type 'text/plain' is not OTLP"),
        (b"x", {}, 415, "Content-Type '(missing)' is not OTLP"),
        (b"x", {"Content-Type": "application/json", "Content-Encoding": "zstd"}, 415, "send gzip or identity"),
        (b"{", {"Content-Type": "application/json"}, 400, "the body is not JSON"),
        (b"\xff", {"Content-Type": "application/json"}, 400, "the body is not JSON"),
        (b"[]", {"Content-Type": "application/json"}, 400, "send an object"),
        (b"[" * 200_000, {"Content-Type": "application/json"}, 400, "nested too deeply"),
        (b'{"resourceSpans": 3}', {"Content-Type": "application/json"}, 400, "repeated field resourceSpans must be"),
        (b'{"x": ' + b"9" * 5000 + b"}", {"Content-Type": "application/json"}, 400, "the body is not JSON"),
        (
            b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xyz"}]}]}]}',
            {"Content-Type": "application/json"},
            400,
            "traceId 'xyz' is not hexadecimal",
        ),
        (
            b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"\\ud800"}]}]}]}',
            {"Content-Type": "application/json"},
            400,
            "surrogate",
        ),
        (b"{}", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 400, "is not gzip"),
        (
            gzip.compress(b" " * 100 * MIB, mtime=0),
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            413,
            "larger than 2097152 bytes once decompressed",
        ),
    ],
)
def test_refusals_in_json(
    client: httpx.Client, content: bytes, headers: dict[str, str], status: int, sentence: str
) -> None:
    request = client.build_request("POST", "/v1/traces", content=content)
    request.headers.update(headers)
    answer = client.send(request)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert sentence in answer.json()["message"]
    assert "\n" not in answer.json()["message"]
    assert client.get("/api/healthz").json() == {"status": "ok"}


def test_refusals_in_protobuf_are_a_google_rpc_status(client: httpx.Client, otlp: Any) -> None:
    answer = client.post("/v1/traces", content=b"\xff\xff", headers=otlp.protobuf)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/x-protobuf")
    message = "the body is not a protobuf ExportTraceServiceRequest, or is nested too deeply"
    assert answer.content == status_body(WireFormat.PROTOBUF, code=3, message=message)


def test_the_status_is_what_protobuf_itself_would_write() -> None:
    from google.protobuf import (  # type: ignore[import-untyped, unused-ignore]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(name="status.proto", package="google.rpc", syntax="proto3")
    message = file.message_type.add(name="Status")
    message.field.add(name="code", number=1, type=5, label=1)
    message.field.add(name="message", number=2, type=9, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    status = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.rpc.Status"))
    for text in ("short", "ü" * 400):
        written = status_body(WireFormat.PROTOBUF, code=14, message=text)
        assert status.FromString(written) == status(code=14, message=text)


def nested_array(depth: int) -> bytes:
    """An AnyValue of arrays within arrays, written as bytes: protobuf itself refuses to build one this deep."""
    body = b""
    for _ in range(depth):
        for tag in (b"\x0a", b"\x2a"):  # ArrayValue.values, AnyValue.array_value
            size = len(body)
            body = tag + (bytes([size & 0x7F | 0x80, size >> 7]) if size > 0x7F else bytes([size])) + body
    return body


def test_protobuf_nested_too_deeply(client: httpx.Client, otlp: Any) -> None:
    body = nested_array(200)
    for tag in b"\x12\x4a\x12\x12\x0a":  # KeyValue.value, Span.attributes, spans, scope_spans, resource_spans
        body = bytes([tag, len(body) & 0x7F | 0x80, len(body) >> 7]) + body
    answer = client.post("/v1/traces", content=body, headers=otlp.protobuf)
    assert answer.status_code == 400
    assert b"nested too deeply" in answer.content


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_upload_reads_its_refusal(client: httpx.Client, otlp: Any, declared: bool) -> None:
    chunk = b"x" * 65536
    content = chunk * 32 if declared else (chunk for _ in range(32))  # without a Content-Length when generated
    answer = client.post("/v1/logs", content=content, headers=otlp.protobuf)
    assert answer.status_code == 413
    assert b"larger than 1048576 bytes: send smaller batches" in answer.content
    assert client.get("/api/healthz").status_code == 200


def test_a_sender_that_stops_halfway_is_not_waited_for(console: ConsoleServer) -> None:
    address = urlsplit(console.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = (
            f"POST /v1/logs HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100\r\n"
            "Content-Type: application/json\r\n\r\n{"
        )
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert "took longer than 0.5 s" in answer


def test_all_requests_together_are_bounded(tmp_path: Path, wait_until: Any) -> None:
    limits = BodyLimits(max_body_bytes=MIB, max_in_flight_bytes=2 * MIB)
    slow = []
    with ConsoleServer(data_dir=tmp_path, port=0, limits=limits) as console:
        address = urlsplit(console.url)
        head = (
            f"POST /v1/logs HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {MIB}\r\n"
            "Content-Type: application/json\r\n\r\n"
        )
        body = b"{" + b" " * (MIB // 2) + b"}"

        def post() -> httpx.Response:
            return httpx.post(f"{console.url}/v1/logs", content=body, headers={"Content-Type": "application/json"})

        for _ in range(2):
            connection = socket.create_connection((address.hostname, address.port), timeout=10)
            connection.sendall(head.encode() + b" " * (MIB - 1))
            slow.append(connection)
        wait_until(lambda: post().status_code == 503)  # as soon as both have been read
        answer = post()
        assert "send this one again later" in answer.json()["message"]
        assert int(answer.headers["retry-after"]) > 0
        for connection in slow:
            connection.close()
        wait_until(lambda: post().status_code == 200)


def test_a_header_of_ten_megabytes_is_refused_and_the_console_runs_on(
    console: ConsoleServer, client: httpx.Client
) -> None:
    try:
        status = httpx.get(f"{console.url}/api/summary", headers={"X-Large": "x" * 10 * MIB}).status_code
    except httpx.TransportError:
        status = None  # closed before all of it was sent
    assert status in (None, 400)
    assert client.get("/api/healthz").status_code == 200


def test_what_is_not_there_says_so(client: httpx.Client) -> None:
    answer = client.get("/v1/traces")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "GET is not allowed on /v1/traces" in answer.json()["error"]["message"]
    answer = client.post("/v1development/profiles", content=b"")
    assert answer.status_code == 404
    assert "there is nothing at /v1development/profiles" in answer.json()["error"]["message"]
    assert json.loads(client.get("/").content)["error"]["status"] == 404
