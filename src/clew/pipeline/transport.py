"""OTLP over HTTP: one kept-alive connection per address, no retries of its own. The worker decides what happens next.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import gzip
import http.client
import socket
import ssl
import threading
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Final, Protocol
from urllib.parse import urlsplit

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from clew._version import __version__
from clew.clock import utc_now
from clew.settings import Settings, Signal

RETRYABLE: Final = frozenset({429, 502, 503, 504})
MAX_RESPONSE_BYTES: Final = 64 * 1024
GZIP_LEVEL: Final = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an endpoint answered to one batch.

    Attributes:
        delivered: the endpoint took the batch.
        retry: the batch may be sent again; else it never will be accepted.
        rejected: items of a delivered batch that the endpoint refused.
        retry_after_s: how long the endpoint asked to be left alone, or ``None``.
        problem: why it was not delivered, in a few words.
    """

    delivered: bool = False
    retry: bool = False
    rejected: int = 0
    retry_after_s: float | None = None
    problem: str = ""


class Transport(Protocol):
    """Takes encoded batches somewhere."""

    def send(self, signal: Signal, body: bytes, *, compressed: bool, timeout_s: float) -> Outcome:
        """Deliver one batch; never raises."""
        ...

    def cancel(self) -> None:
        """End a send that is under way in another thread, at once."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class HttpTransport:
    """Posts batches to the addresses of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._urls: dict[Signal, tuple[str, str, int, str]] = {
            signal: _address(settings.url(signal)) for signal in ("traces", "metrics", "logs")
        }
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": f"clew/{__version__}",
            **settings.headers,
        }
        self._tls = _tls_context(settings)
        self._connections: dict[tuple[str, str, int], http.client.HTTPConnection] = {}
        self._lock = threading.Lock()
        self._under_way: http.client.HTTPConnection | None = None

    def send(self, signal: Signal, body: bytes, *, compressed: bool, timeout_s: float) -> Outcome:
        """Post one batch and read what the endpoint made of it."""
        scheme, host, port, path = self._urls[signal]
        headers = {**self._headers, "Content-Encoding": "gzip"} if compressed else self._headers
        key = (scheme, host, port)
        for kept_alive in (key in self._connections, False):
            connection = self._connections.get(key) or self._connect(scheme, host, port)
            connection.timeout = timeout_s
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            self._under_way = connection
            try:
                connection.request("POST", path, body=body, headers=headers)
                response = connection.getresponse()
                answer = response.read(MAX_RESPONSE_BYTES)
                if response.will_close or not response.isclosed():
                    self._forget(key)
                else:
                    self._connections[key] = connection
                return _outcome(signal, response.status, response.headers, answer)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                self._forget(key)
                connection.close()
                # A kept connection that the server closed meanwhile says nothing about the server: connect anew, once
                if kept_alive:
                    continue
                return Outcome(retry=True, problem=f"{host}:{port} closed the connection ({type(error).__name__})")
            except (OSError, http.client.HTTPException) as error:
                self._forget(key)
                connection.close()
                return Outcome(retry=True, problem=f"{host}:{port}: {_reason(error)}")
            finally:
                self._under_way = None
        return Outcome(retry=True, problem=f"{host}:{port} closed the connection")

    def cancel(self) -> None:
        """Shut the socket that a send is waiting on; the send returns as undelivered."""
        connection = self._under_way
        sock = connection.sock if connection is not None else None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # It ended by itself in the meantime
                return

    def close(self) -> None:
        """Close the kept connections."""
        with self._lock:
            connections, self._connections = self._connections, {}
        for connection in connections.values():
            connection.close()

    def _connect(self, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        if scheme == "https":
            return http.client.HTTPSConnection(host, port, context=self._tls)
        return http.client.HTTPConnection(host, port)

    def _forget(self, key: tuple[str, str, int]) -> None:
        with self._lock:
            self._connections.pop(key, None)


def compress(body: bytes) -> bytes:
    """Return ``body`` in gzip at the level at which telemetry shrinks most for its CPU time."""
    return gzip.compress(body, GZIP_LEVEL, mtime=0)


def _address(url: str) -> tuple[str, str, int, str]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = parts.path or "/"
    return parts.scheme, parts.hostname or "localhost", port, f"{path}?{parts.query}" if parts.query else path


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    if not any(settings.url(signal).startswith("https://") for signal in ("traces", "metrics", "logs")):
        return None
    context = ssl.create_default_context(cafile=str(settings.certificate) if settings.certificate else None)
    if settings.client_certificate:
        context.load_cert_chain(settings.client_certificate, settings.client_key)
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _retry_after_s(headers: Message) -> float | None:
    value = headers.get("Retry-After")
    if not value:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - utc_now()).total_seconds())
    except (TypeError, ValueError):
        return None


def _outcome(signal: Signal, status: int, headers: Message, answer: bytes) -> Outcome:
    if 200 <= status < 300:
        return Outcome(delivered=True, rejected=_rejected(signal, answer))
    if status in RETRYABLE:
        return Outcome(retry=True, retry_after_s=_retry_after_s(headers), problem=f"the endpoint answered {status}")
    text = answer[:200].decode("utf-8", "replace").strip()
    return Outcome(problem=f"the endpoint refused it with {status}{': ' + text if text.isprintable() and text else ''}")


def _rejected(signal: Signal, answer: bytes) -> int:
    if not answer:
        return 0
    try:
        if signal == "traces":
            return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
        if signal == "metrics":
            return int(ExportMetricsServiceResponse.FromString(answer).partial_success.rejected_data_points)
        return int(ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records)
    except Exception:
        return 0
