"""A load generator: keep-alive connections that each send a request as soon as the last answer is whole."""

from __future__ import annotations

import selectors
import socket
import time
from array import array
from typing import Any

from benchmarks.orders import serve

REQUEST = b"GET /items/42 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n\r\n"


class Client:
    """One connection, and the request that it waits for."""

    __slots__ = ("received", "sent_at", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.sent_at = 0.0

    def send(self) -> None:
        """Send the next request."""
        self.sent_at = time.perf_counter()
        self.socket.sendall(REQUEST)

    def is_answered(self) -> bool:
        """Read what there is; tell whether the answer is whole."""
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.received += data
        head_end = self.received.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        if not self.received.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"the server answered {self.received[:40]!r}")
        head = self.received[:head_end].lower()
        length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0])
        if len(self.received) < head_end + 4 + length:
            return False
        self.received = b""
        return True


def run(port: int, concurrency: int, seconds: float) -> dict[str, Any]:
    """Load a server for a while; return the number of requests and their latencies."""
    clients = [Client(port) for _ in range(concurrency)]
    latencies = array("d")
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send()
        started = time.perf_counter()
        until = started + seconds
        now = started
        while now < until:
            for key, _ in selector.select(1.0):
                client = key.data
                if client.is_answered():
                    latencies.append(time.perf_counter() - client.sent_at)
                    client.send()
            now = time.perf_counter()
    for client in clients:
        client.socket.close()
    ordered = sorted(latencies)
    return {
        "requests": len(ordered),
        "per_s": len(ordered) / (now - started),
        "p50_s": ordered[len(ordered) // 2],
        "p99_s": ordered[len(ordered) * 99 // 100],
    }


if __name__ == "__main__":
    serve({"run": run}, quiet=False)
