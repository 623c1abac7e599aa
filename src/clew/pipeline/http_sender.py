"""OTLP over HTTP: one kept-alive connection.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import gzip
import http.client
import io
import socket
import ssl
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from clew import clock
from clew._version import __version__
from clew.pipeline.transport import Outcome, delivered, printable, retry_after_s
from clew.settings import Destination, Signal

RETRYABLE: Final = frozenset({429, 502, 503, 504})
MAX_RESPONSE_BYTES: Final = 64 * 1024


class HttpSender:
    """Posts the batches of one signal."""

    def __init__(self, signal: Signal, destination: Destination) -> None:
        self._signal = signal
        self._destination = destination
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": f"clew/{__version__}",
            **destination.headers,
        }
        parts = urlsplit(destination.url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or "localhost"
        self._port = parts.port or (443 if self._secure else 80)
        self._path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        self._kept: http.client.HTTPConnection | None = None
        self._under_way: http.client.HTTPConnection | None = None

    def send(self, body: bytes, *, compressed: bool, timeout_s: float) -> Outcome:
        """Post one batch and read what the endpoint made of it."""
        deadline = clock.monotonic_s() + timeout_s
        if compressed and self._destination.compression == "none":
            # What waited on disk
            body, compressed = gzip.decompress(body), False
        headers = {**self._headers, "Content-Encoding": "gzip"} if compressed else self._headers
        while True:
            connection, was_kept = self._kept, self._kept is not None
            self._kept = None
            if connection is None:
                connection = self._connection()
            self._under_way = connection
            try:
                outcome, keep = self._post(connection, body, headers, deadline)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                closed = isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError)
                if closed and was_kept and clock.monotonic_s() < deadline:
                    # That the server closed a kept connection meanwhile says nothing about the server: connect anew, once
                    continue
                problem = f"closed the connection ({type(error).__name__})" if closed else _reason(error)
                return Outcome(retry=True, problem=f"{self._host}:{self._port}: {problem}")
            finally:
                self._under_way = None
            if keep:
                self._kept = connection
            else:
                connection.close()
            return outcome

    def cancel(self) -> None:
        """Shut the socket that a send is waiting on; the send returns as undelivered."""
        connection = self._under_way
        sock = connection.sock if connection is not None else None
        if sock is not None:
            # It may have ended by itself in the meantime
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the kept connection."""
        connection, self._kept = self._kept, None
        if connection is not None:
            connection.close()

    def _post(
        self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str], deadline: float
    ) -> tuple[Outcome, bool]:
        connection.timeout = _left(deadline)
        if connection.sock is not None:
            connection.sock.settimeout(_left(deadline))
        connection.response_class = lambda sock, **kwargs: http.client.HTTPResponse(_Answer(sock, deadline), **kwargs)  # type: ignore[assignment,arg-type]
        connection.request("POST", self._path, body=body, headers=headers)
        response = connection.getresponse()
        answer = response.read(MAX_RESPONSE_BYTES)
        return self._outcome(response, answer), response.isclosed() and not response.will_close

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port)
        destination = self._destination
        context = ssl.create_default_context(cafile=destination.certificate and str(destination.certificate))
        if destination.client_certificate:
            context.load_cert_chain(destination.client_certificate, destination.client_key)
        return http.client.HTTPSConnection(self._host, self._port, context=context)

    def _outcome(self, response: http.client.HTTPResponse, answer: bytes) -> Outcome:
        status = response.status
        if 200 <= status < 300:
            return delivered(self._signal, answer)
        if status in RETRYABLE:
            return Outcome(
                retry=True,
                answered=True,
                retry_after_s=retry_after_s(response.headers.get("Retry-After")),
                problem=f"the endpoint answered {status}",
            )
        if 300 <= status < 400:
            # Not followed: what is in the headers is for the address that was set. Nothing was refused, so nothing is lost
            target = printable(response.headers.get("Location", ""))
            return Outcome(
                retry=True,
                answered=True,
                problem=f"the endpoint answered {status}, which redirects to {target or 'nowhere'}",
            )
        text = printable(answer.decode("utf-8", "replace"))
        return Outcome(problem=f"the endpoint refused it with {status}{': ' + text if text else ''}")


class _Answer(io.RawIOBase):
    """What comes in on a socket until a deadline: a byte now and then does not prolong it, as a socket's own timeout would."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._sock = sock
        # Keeps the socket open where the connection is closed before the answer is read: "Connection: close"
        self._file = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def makefile(self, *_args: Any, **_kwargs: Any) -> io.BufferedReader:
        """Return a reader, as :class:`http.client.HTTPResponse` asks a socket for."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._file.readinto(buffer) or 0

    def close(self) -> None:
        self._file.close()
        super().close()


def _left(deadline: float) -> float:
    left = deadline - clock.monotonic_s()
    if left <= 0:
        raise TimeoutError
    return left


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return printable(str(getattr(error, "strerror", None) or error)) or type(error).__name__
