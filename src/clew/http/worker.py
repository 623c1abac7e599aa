"""A small HTTP server in a thread, for processes that have none: metrics, health and jobs.

It needs nothing but Python's own server, and is bounded in all that a stranger could use up: connections, their time, headers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from clew import clock
from clew._version import __version__
from clew.diagnostics import report
from clew.engine.exposition import prometheus_text
from clew.health import answers, loops, work
from clew.health.answers import PATIENCE_S, Answer
from clew.health.monitor import monitor
from clew.http.access import Caller, admin_token_in_force, refusal_to_read

MAX_CONNECTIONS: Final = 32
CONNECTION_TIMEOUT_S: Final = 10.0
_LOOP_TIMEOUT_S: Final = 1.0
_FOR_THE_MAIN_THREAD: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_POLL_S: Final = 0.5

Body = tuple[int, bytes, str]


class WorkerServer:
    """Answers for its process until it is stopped, or the process ends.

    Args:
        host: the address it listens on.
        port: the port; 0 takes any that is free.

    Raises:
        OSError: it can't listen there.

    Example:
        >>> with WorkerServer(host="127.0.0.1", port=0) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(self, *, host: str, port: int) -> None:
        self._server = _Server(host, port)
        self.host = host
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._serve, name="clew-worker-server", daemon=True)
        self._thread.start()
        _servers.add(self)

    def _serve(self) -> None:
        # A thread that starts others would now and then take a signal that is meant for the main thread, and Python would not wake
        # that one for it: a worker that sleeps would not notice that it is to end. The threads started from here block them as well
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_THREAD)
        self._server.serve_forever(_POLL_S)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def stop(self) -> None:
        """Let go of the port. Twice is harmless."""
        _servers.discard(self)
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def forget(self) -> None:
        """Close what a forked child has inherited: the port is its parent's."""
        self._server.socket.close()


_servers: Final[set[WorkerServer]] = set()


def _after_fork() -> None:
    for server in list(_servers):
        server.forget()
    _servers.clear()


os.register_at_fork(after_in_child=_after_fork)


class _Server(HTTPServer):
    """Python's server with a thread for each connection, and an end to both."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind, without asking a name server what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless there are too many."""
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                self.close_request(request)
                return
            self._open[request] = clock.monotonic_s() + CONNECTION_TIMEOUT_S
        thread = threading.Thread(
            target=self._answer, args=(request, client_address), name="clew-worker-answer", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._done(request)

    def service_actions(self) -> None:
        """Cut off whoever takes too long: a byte now and then keeps no connection."""
        now = clock.monotonic_s()
        with self._lock:
            late = [request for request, until in self._open.items() if now > until]
        for request in late:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away."""

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self._done(request)

    def _done(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        self.shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of a connection."""

    server_version = f"clew/{__version__}"
    sys_version = ""
    timeout = CONNECTION_TIMEOUT_S / 2

    def do_GET(self) -> None:
        self._send(*self._body())

    def do_HEAD(self) -> None:
        self._send(*self._body(), with_body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what can't be read in a sentence, too."""
        self.close_connection = True
        if not hasattr(self, "request_version") or self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"
        if code == 501:
            # What Python's server says of a method that there is nothing for
            self._send(*_error(405, f"{str(self.command)[:20]} is not allowed here: GET is"), {"Allow": "GET, HEAD"})
        else:
            self._send(*_error(code, message or "it can't be read"))

    def log_message(self, format: str, *args: Any) -> None:
        """Polls are not logged."""

    def _body(self) -> Body:
        path = urlsplit(self.path).path
        try:
            if path == "/metrics":
                text, content_type = prometheus_text(self.headers.get("Accept", ""))
                return 200, text, content_type
            if path in _GUARDED:
                caller = Caller(address=str(self.client_address[0]), headers=self.headers)
                refusal = refusal_to_read(caller, admin_token_in_force())
                return _error(refusal.status, refusal.message) if refusal is not None else _json(_GUARDED[path]())
            if path in _OPEN:
                return _json(_OPEN[path]())
        except Exception as error:
            report("worker server", error)
            return _error(500, "the answer could not be made; see the log")
        return _error(404, f"there is nothing at {path[:80]}: there is {', '.join(['/metrics', *_OPEN, *_GUARDED])}")

    def _send(
        self,
        status: int,
        body: bytes,
        content_type: str,
        more: Mapping[str, str] | None = None,
        *,
        with_body: bool = True,
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
            **({"WWW-Authenticate": "Bearer"} if status == 401 else {}),
            **(more or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _json(answer: Answer) -> Body:
    return answer.status, answer.body.model_dump_json().encode(), "application/json"


def _error(status: int, sentence: str) -> Body:
    return status, json.dumps({"detail": sentence}).encode(), "application/json"


def _alive() -> Answer:
    return answers.alive(loop_answers=loops.answers_within(_LOOP_TIMEOUT_S))


def _ready() -> Answer:
    return answers.ready(monitor.look(critical_only=True, patience_s=PATIENCE_S))


_OPEN: Final[dict[str, Callable[[], Answer]]] = {
    "/health": lambda: answers.health(monitor.look(patience_s=PATIENCE_S)),
    "/healthz": lambda: answers.overall(monitor.look(patience_s=PATIENCE_S)),
    "/livez": _alive,
    "/readyz": _ready,
    "/status": lambda: answers.service(monitor.look(patience_s=PATIENCE_S)),
}
_GUARDED: Final[dict[str, Callable[[], Answer]]] = {
    "/status/detailed": lambda: answers.detailed(monitor.look(patience_s=PATIENCE_S), monitor),
    "/scheduler": work.scheduled,
    "/jobs": work.jobs,
}
