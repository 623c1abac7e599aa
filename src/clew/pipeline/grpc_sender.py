"""OTLP over gRPC: the bytes that HTTP would post, as they are, over one channel.

Source: https://opentelemetry.io/docs/specs/otlp/#otlpgrpc
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

# Must be known when grpc is imported: a child that is forked makes a channel of its own. An app's own word is left
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "true")
# Else a line about each fork goes to the terminal
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from clew._version import __version__
from clew.pipeline.transport import Outcome, delivered, printable
from clew.settings import Destination, Signal

DEFAULT_PORT: Final = 4317
RETRYABLE: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
_METHODS: Final[dict[Signal, str]] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_OPTIONS: Final = (
    ("grpc.primary_user_agent", f"clew/{__version__}"),
    # A new channel connects at once; when to try is the breaker's to say
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


class GrpcSender:
    """Calls the export service of one signal."""

    def __init__(self, signal: Signal, destination: Destination) -> None:
        self._signal = signal
        self._destination = destination
        self._metadata = tuple((name.lower(), text) for name, text in destination.headers.items())
        self._compression = (
            grpc.Compression.Gzip if destination.compression == "gzip" else grpc.Compression.NoCompression
        )
        parts = urlsplit(destination.url if "://" in destination.url else f"//{destination.url}")
        self._target = parts.netloc if parts.port else f"{parts.netloc}:{DEFAULT_PORT}"
        self._secure = not destination.insecure if parts.scheme == "" else parts.scheme == "https"
        self._channel: Any = None
        self._export: Any = None

    def send(self, body: bytes, *, compressed: bool, timeout_s: float) -> Outcome:
        """Call with one batch and read what the endpoint made of it."""
        if self._channel is None:
            self._channel = self._connect()
            self._export = self._channel.unary_unary(_METHODS[self._signal])
        try:
            answer = self._export(
                gzip.decompress(body) if compressed else body,
                timeout=timeout_s,
                metadata=self._metadata,
                compression=self._compression,
            )
        except grpc.RpcError as error:
            outcome = self._failed(error)
        except ValueError as error:
            # Cancelled by another thread, which closed the channel
            outcome = Outcome(retry=True, problem=f"{self._target}: {error}")
        else:
            return delivered(self._signal, answer)
        if outcome.retry:
            # A channel waits ever longer before it connects again, and would not notice that the endpoint is back
            self.close()
        return outcome

    def cancel(self) -> None:
        """End the call that is under way; the send returns as undelivered."""
        self.close()

    def close(self) -> None:
        """Close the channel."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _connect(self) -> Any:
        if not self._secure:
            return grpc.insecure_channel(self._target, options=_OPTIONS)
        destination = self._destination
        credentials = grpc.ssl_channel_credentials(
            _bytes(destination.certificate), _bytes(destination.client_key), _bytes(destination.client_certificate)
        )
        return grpc.secure_channel(self._target, credentials, options=_OPTIONS)

    def _failed(self, error: Any) -> Outcome:
        code, said = error.code().name, printable(error.details() or "")
        asked_s = _retry_after_s(error.trailing_metadata() or ())
        if code in RETRYABLE or (code == "RESOURCE_EXHAUSTED" and asked_s is not None):
            reason = "no answer in time" if code == "DEADLINE_EXCEEDED" else f"{code} {said}".strip()
            return Outcome(
                retry=True,
                answered=asked_s is not None,
                retry_after_s=asked_s,
                problem=f"{self._target}: {reason}",
            )
        return Outcome(problem=f"the endpoint refused it with {code}{': ' + said if said else ''}")


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None else None


def _retry_after_s(metadata: Any) -> float | None:
    """Return the seconds that a ``RetryInfo`` among the details of a status asks for."""
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            try:
                for detail in Status.FromString(value).details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        return max(0.0, float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9))
            except Exception:
                return None
    return None
