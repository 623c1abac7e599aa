"""An OTLP/gRPC endpoint on loopback, made with grpcio, that keeps what it is sent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from clew.testing import CapturedLog, CapturedSpan, read_logs, read_spans
from tests.integration.certificates import Certificates

SERVICES = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
}


class GrpcSink:
    """A server that takes OTLP over gRPC. ``refuse_with`` a status, ``answer`` bytes, or be ``silent``.

    Args:
        port: of loopback; by default a free one.
        certificates: make it speak TLS.
        mutual: demands a certificate of the client, too.
    """

    def __init__(self, *, port: int = 0, certificates: Certificates | None = None, mutual: bool = False) -> None:
        self.refuse_with: grpc.StatusCode | None = None
        self.retry_after_s: float | None = None
        self.answer = b""
        self.silent = False
        self.metadata: list[dict[str, Any]] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._bodies: dict[str, list[bytes]] = {signal: [] for signal in SERVICES.values()}
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        for service, signal in SERVICES.items():
            handler = grpc.unary_unary_rpc_method_handler(self._handler(signal))
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        if certificates is None:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            credentials = grpc.ssl_server_credentials(
                [(certificates.server_key.read_bytes(), certificates.server.read_bytes())],
                certificates.authority.read_bytes() if mutual else None,
                mutual,
            )
            self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        self._scheme = "https" if certificates else "http"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._server.stop(0).wait(5)

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that make an app export here, soon after things happen."""
        return {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"{self._scheme}://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
        }

    @property
    def spans(self) -> list[CapturedSpan]:
        """Return every span that has arrived."""
        with self._lock:
            return [span for body in self._bodies["traces"] for span in read_spans(body)]

    @property
    def logs(self) -> list[CapturedLog]:
        """Return every log record that has arrived."""
        with self._lock:
            return [record for body in self._bodies["logs"] for record in read_logs(body)]

    def count(self, signal: str) -> int:
        """Return how many batches of a signal have arrived."""
        with self._lock:
            return len(self._bodies[signal])

    def _handler(self, signal: str) -> Any:
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            self.metadata.append(dict(context.invocation_metadata()))
            if self.silent:
                self._ended.wait()
            if self.refuse_with is not None:
                if self.retry_after_s is not None:
                    seconds = int(self.retry_after_s)
                    info = RetryInfo(
                        retry_delay=Duration(seconds=seconds, nanos=int((self.retry_after_s - seconds) * 1e9))
                    )
                    detail = AnyMessage()
                    detail.Pack(info)
                    status = Status(code=self.refuse_with.value[0], message="as the test says", details=[detail])
                    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                context.abort(self.refuse_with, "as the test says")
            with self._lock:
                self._bodies[signal].append(body)
            return self.answer

        return export
