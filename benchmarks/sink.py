"""An OTLP endpoint that only keeps what it is sent; it is counted when somebody asks. Run as a process of its own.

``python -m benchmarks.sink http|grpc|silent [PORT]``: the last accepts connections and never answers.
gRPC needs ``grpcio``, so it runs in the environment of the stock exporters.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import wire
from benchmarks.orders import serve

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"


class Deliveries:
    """What has arrived, as it came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bodies: list[tuple[str, str, bytes]] = []

    def add(self, signal: str, encoding: str, body: bytes) -> None:
        """Keep one request."""
        with self._lock:
            self._bodies.append((signal, encoding, body))

    def take(self) -> dict[str, int]:
        """Return how many items of each signal arrived since the last call, and in how many posts and bytes."""
        with self._lock:
            bodies, self._bodies = self._bodies, []
        counts: Counter[str] = Counter(traces=0, logs=0, metrics=0, posts=len(bodies))
        for signal, encoding, body in bodies:
            counts["bytes"] += len(body)
            if signal in wire.PATHS:
                counts[signal] += wire.count(signal, _plain(encoding, body))
        return dict(counts)


def _plain(encoding: str, body: bytes) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    return zlib.decompress(body) if encoding == "deflate" else body


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection. Reads only what exporters send: a head and a body of a stated length."""

    def __init__(self, deliveries: Deliveries, *, silent: bool) -> None:
        self._deliveries = deliveries
        self._silent = silent
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection; a silent endpoint never reads from it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._silent:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Collect what comes, and answer every request that is whole."""
        self._received += data
        while (head_end := self._received.find(b"\r\n\r\n")) >= 0:
            lines = self._received[:head_end].decode("latin-1").split("\r\n")
            headers = {name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines[1:])}
            end = head_end + 4 + int(headers.get("content-length", "0"))
            if len(self._received) < end:
                return
            path = lines[0].split(" ")[1]
            body = bytes(self._received[head_end + 4 : end])
            del self._received[:end]
            self._deliveries.add(path.rsplit("/", 1)[-1], headers.get("content-encoding", ""), body)
            if self._transport is not None:
                self._transport.write(ANSWER)


def listen_http(deliveries: Deliveries, port: int, *, silent: bool) -> int:
    """Start to listen in a thread of its own; return the port."""
    started: list[int] = []
    ready = threading.Event()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(deliveries, silent=silent), "127.0.0.1", port, backlog=128)
        started.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    threading.Thread(target=asyncio.run, args=(run(),), daemon=True).start()
    if not ready.wait(10):
        raise OSError(f"port {port} can't be listened on")
    return started[0]


def listen_grpc(deliveries: Deliveries, port: int) -> tuple[int, object]:
    """Start a gRPC server that takes any OTLP export; return the port, and the server, which stops when it is let go of."""
    import grpc

    class Services(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc has no types
        def service(self, call: Any) -> Any:
            signal = {"trace": "traces", "logs": "logs", "metrics": "metrics"}[call.method.split(".")[3]]

            def take(body: bytes, _context: Any) -> bytes:
                deliveries.add(signal, "", body)
                return b""

            return grpc.unary_unary_rpc_method_handler(take)

    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((Services(),))
    bound: int = server.add_insecure_port(f"127.0.0.1:{port}")
    if bound == 0:
        raise OSError(f"port {port} can't be listened on")
    server.start()
    return bound, server


def main() -> None:
    """Listen when the first order comes, so that the process can be put on its core before it starts threads."""
    kind = sys.argv[1]
    deliveries = Deliveries()
    servers: list[object] = []

    def listen(port: int = 0) -> dict[str, int]:
        if kind == "grpc":
            port, server = listen_grpc(deliveries, port)
            servers.append(server)
            return {"port": port}
        return {"port": listen_http(deliveries, port, silent=kind == "silent")}

    serve({"listen": listen, "take": deliveries.take}, quiet=False)


if __name__ == "__main__":
    main()
