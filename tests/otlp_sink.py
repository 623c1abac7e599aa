"""An OTLP/HTTP endpoint on loopback that keeps what it is sent: a real server, for apps that run in processes of their own.

Example::

    def test_it_arrives(otlp_sink):
        subprocess.run([sys.executable, "app.py"], env=os.environ | otlp_sink.environment, check=True)
        assert otlp_sink.wait_for_span("price").attributes["sku"] == "A-17"
"""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, TypeVar

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, Metric, NumberDataPoint

from clew.testing import CapturedLog, CapturedSpan, read_attributes, read_logs, read_spans

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SinkPoint:
    """One series of a metric at one moment. ``value`` is the number, or the sum of a histogram; ``count`` is a histogram's."""

    name: str
    unit: str
    type: str
    scope: str
    value: float
    count: int = 0
    time_ns: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)
    resource: dict[str, Any] = field(default_factory=dict)


class OtlpSink:
    """A server that takes OTLP/HTTP protobuf and keeps it. Use it as a context manager, or as the ``otlp_sink`` fixture.

    ``answer`` may be set to another status (503, say) to make it refuse what it is sent; what it refuses it does not keep.
    ``answer_headers`` and ``answer_body`` go with it; ``requests`` are the headers of all that it was sent, refused or not.

    Args:
        port: of loopback; by default a free one.
        token: is demanded as a bearer token.
        tls: makes it speak HTTPS.
    """

    def __init__(self, *, port: int = 0, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.answer = 200
        self.answer_headers: dict[str, str] = {}
        self.answer_body = b""
        self.requests: list[dict[str, str]] = []
        self.connections = 0
        self._scheme = "https" if tls else "http"
        self._token = token
        self._lock = threading.Lock()
        self._bodies: dict[str, list[bytes]] = {"traces": [], "metrics": [], "logs": []}
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink.requests.append(dict(self.headers.items()))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if sink._token and self.headers.get("Authorization") != f"Bearer {sink._token}":
                    self.send_error(401)
                    return
                status = sink._take(self.path.rsplit("/", 1)[-1], body)
                self.send_response(status)
                for name, value in sink.answer_headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(sink.answer_body)))
                self.end_headers()
                self.wfile.write(sink.answer_body)

            def setup(self) -> None:
                sink.connections += 1
                super().setup()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: tests read the terminal of the app."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A process that is killed in the middle of an export is part of many tests."""

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                if tls is None:
                    return connection, address
                connection.settimeout(10)
                return tls.wrap_socket(connection, server_side=True), address

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Return what ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set to."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that make an app export here, soon after things happen."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
        }

    @property
    def spans(self) -> list[CapturedSpan]:
        """Return every span that has arrived, in the order of arrival."""
        return [span for body in self._of("traces") for span in read_spans(body)]

    @property
    def logs(self) -> list[CapturedLog]:
        """Return every log record that has arrived, by time."""
        records = [record for body in self._of("logs") for record in read_logs(body)]
        return sorted(records, key=lambda record: record.time_ns)

    @property
    def metrics(self) -> list[SinkPoint]:
        """Return the latest point of every series of every instance."""
        latest: dict[Any, SinkPoint] = {}
        for body in self._of("metrics"):
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                attributes = read_attributes(resource.resource.attributes)
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        for point in _points(metric, scope.scope.name, attributes):
                            key = (
                                attributes.get("service.instance.id"),
                                point.scope,
                                point.name,
                                tuple(sorted((name, str(value)) for name, value in point.attributes.items())),
                            )
                            if key not in latest or point.time_ns >= latest[key].time_ns:
                                latest[key] = point
        return list(latest.values())

    def history(self, name: str) -> list[float]:
        """Return the values of a metric with one series, in the order in which they arrived."""
        return [
            point.value
            for body in self._of("metrics")
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in _points(metric, scope.scope.name, {})
        ]

    def total(self, name: str, **attributes: Any) -> float:
        """Return the sum over the latest points of a metric: counts of a histogram, values of anything else.

        A dot in a label's name is written as two underscores.
        """
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return sum(
            point.count if point.type == "histogram" else point.value
            for point in self.metrics
            if point.name == name and wanted.items() <= point.attributes.items()
        )

    def named(self, name: str) -> list[CapturedSpan]:
        """Return the spans of a name."""
        return [span for span in self.spans if span.name == name]

    def clear(self) -> None:
        """Forget everything that has arrived."""
        with self._lock:
            for bodies in self._bodies.values():
                bodies.clear()

    def wait(self, until: Callable[[OtlpSink], T | None], *, what: str, timeout_s: float = 20.0) -> T:
        """Return the first true thing that ``until(sink)`` returns.

        Raises:
            AssertionError: nothing came within the deadline; the message says what was waited for and what is there.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = until(self)
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"no {what} within {timeout_s:g} s; spans {sorted({span.name for span in self.spans})}, "
                    f"logs {sorted({str(log.body) for log in self.logs})}, "
                    f"metrics {sorted({point.name for point in self.metrics})}"
                )
            time.sleep(0.02)

    def wait_for_all(
        self, until: Callable[[OtlpSink], list[T]], count: int, *, what: str, timeout_s: float = 20.0
    ) -> list[T]:
        """Return what ``until(sink)`` finds as soon as it finds ``count``, or more than that."""
        return self.wait(
            lambda sink: found if len(found := until(sink)) >= count else None, what=what, timeout_s=timeout_s
        )

    def wait_for_span(self, name: str, *, timeout_s: float = 20.0) -> CapturedSpan:
        """Return the first span of a name, as soon as it has arrived."""
        return self.wait(lambda sink: sink.named(name), what=f"span named {name!r}", timeout_s=timeout_s)[0]

    def wait_for_log(self, body: str, *, timeout_s: float = 20.0) -> CapturedLog:
        """Return the first log record with a body, as soon as it has arrived."""
        return self.wait(
            lambda sink: [log for log in sink.logs if log.body == body], what=f"log {body!r}", timeout_s=timeout_s
        )[0]

    def _take(self, signal: str, body: bytes) -> int:
        with self._lock:
            if signal not in self._bodies:
                return 404
            if self.answer == 200:
                self._bodies[signal].append(body)
            return self.answer

    def _of(self, signal: str) -> list[bytes]:
        with self._lock:
            return list(self._bodies[signal])


def _points(metric: Metric, scope: str, resource: dict[str, Any]) -> list[SinkPoint]:
    kind = metric.WhichOneof("data") or "gauge"
    points: Iterable[HistogramDataPoint | NumberDataPoint] = getattr(metric, kind).data_points
    found = []
    for point in points:
        if isinstance(point, HistogramDataPoint):
            value, count = point.sum, point.count
        else:
            value, count = getattr(point, point.WhichOneof("value") or "as_int"), 0
        found.append(
            SinkPoint(
                name=metric.name,
                unit=metric.unit,
                type=kind,
                scope=scope,
                value=value,
                count=count,
                time_ns=point.time_unix_nano,
                attributes=read_attributes(point.attributes),
                resource=resource,
            )
        )
    return found
