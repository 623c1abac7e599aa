"""Endpoints that behave badly, on real sockets, and apps in processes of their own that send to them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

EMIT = """
    import clew
    log = clew.get_logger("app")
    orders = clew.counter("orders.placed")
    for number in range({n}):
        with clew.span("place", number=number):
            log.info("order.placed", number=number)
            orders.add()
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an app to its end."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "OTEL_SERVICE_NAME": "app", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    """Start an app that is spoken to over its standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "OTEL_SERVICE_NAME": "app", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def closed_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(script: Callable[[socket.socket], None] | None) -> Iterator[str]:
    """Serve each connection by a script of its own, and return the address; without one, connect and do no more.

    A script ends when it returns, or when its peer is gone.
    """
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with closing(connection):
            connection.settimeout(20)
            try:
                script(connection) if script else ended.wait()
            except OSError:
                return

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        server.settimeout(0.1)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(5)


@contextmanager
def half_open() -> Iterator[str]:
    """Let the kernel take connections that nobody ever accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def read_request(connection: socket.socket) -> bytes:
    """Read one request with a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or _gone()
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536) or _gone()
    return head + b"\r\n\r\n" + body


def answering(data: bytes, *, again: bool = False) -> Callable[[socket.socket], None]:
    """Read a request and answer with these bytes, then close; with ``again`` go on to the next request."""

    def script(connection: socket.socket) -> None:
        while True:
            read_request(connection)
            connection.sendall(data)
            if not again:
                return

    return script


def trickling(connection: socket.socket) -> None:
    """Answer with one byte now and then, without end."""
    pause = threading.Event()
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Padding: ")
    while not pause.wait(0.02):
        connection.sendall(b"x")


def _gone() -> bytes:
    raise ConnectionError
